//! Reads a model's shape from GGUF metadata. What llama.cpp takes for granted of a family, and writes nowhere, is here too.

use super::{
    describe::{DescribeError, Stop, unserved},
    family::{self, Family},
    scaling::{self, Scaling},
};
use cairn_protocol::{
    gguf::GgufHeader,
    manifest::{Experts, Model, Naming, TensorEntry, Variations},
};
use std::num::NonZeroU32;

/// Keys after the architecture's name that change what is computed, where they are not zero.
const UNSERVED: [&str; 11] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "expert_shared_count",
    "leading_dense_block_count",
    "expert_group_count",
];
/// Where Gemma 3's layers without a window stand, and the base of the others.
const GEMMA3_FULL_ATTENTION_EVERY: u32 = 6;
const GEMMA3_WINDOW_ROPE_BASE: f64 = 10_000.0;
/// Layers of the one Gemma 3 whose queries are scaled by their share of the width.
const GEMMA3_27B_LAYERS: u32 = 62;
/// Where SmolLM3's layers that do not rotate stand.
const SMOLLM3_UNROTATED_EVERY: u32 = 4;

/// Reads the metadata of one architecture.
struct Keys<'a> {
    header: &'a GgufHeader,
    architecture: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }
    fn find(&self, name: &str) -> Option<u32> {
        self.header.u64(&self.key(name)).and_then(|n| u32::try_from(n).ok())
    }
    fn need(&self, name: &str) -> Result<u32, DescribeError> {
        self.find(name).ok_or_else(|| DescribeError::Field(self.key(name)))
    }
    fn real(&self, name: &str) -> Option<f64> {
        self.header.f64(&self.key(name))
    }
    fn token(&self, name: &str) -> Option<u32> {
        self.header.u64(&format!("tokenizer.ggml.{name}_token_id")).and_then(|n| u32::try_from(n).ok())
    }
}

/// Reads a header.
pub(super) fn read(header: &GgufHeader, tensors: &[TensorEntry]) -> Result<Model, Stop> {
    let Some(architecture) = header.str("general.architecture") else { return Err(Stop::Nothing) };
    let Some(family) = family::named(architecture).filter(|f| f.is_in_gguf) else {
        let name: String = architecture.chars().take(64).collect();
        return unserved(format!("its architecture is {name}, which is not served, only {} are", family::names()));
    };
    let keys = Keys { header, architecture: family.name };
    let rope_scaling = match scaling::of_gguf(header, family, tensors)? {
        Scaling::Known(scaling) => scaling,
        Scaling::Other(why) => return unserved(why),
    };
    if let Some(name) = UNSERVED.into_iter().find(|name| keys.real(name).is_some_and(|value| value != 0.0)) {
        return unserved(format!("its {} is set, which is not served", keys.key(name)));
    }
    let (width, heads) = (keys.need("embedding_length")?, keys.need("attention.head_count")?);
    let missing = |name: &str| DescribeError::Field(name.to_string());
    let head_width = keys.find("attention.key_length").or(width.checked_div(heads));
    let head_width = head_width.ok_or_else(|| missing("head_count"))?;
    if keys.find("attention.value_length").is_some_and(|value| value != head_width) {
        return unserved("its values are not as wide as its keys, which is not served");
    }
    let rows = tensors.iter().find(|t| t.name == "token_embd.weight").and_then(|t| t.shape.first()).copied();
    let vocabulary = rows.or_else(|| header.array("tokenizer.ggml.tokens").map(|tokens| tokens.len() as u64));
    let experts = experts(&keys, family)?;
    let feed_forward = if experts.is_some() { "expert_feed_forward_length" } else { "feed_forward_length" };
    Ok(Model {
        layers: keys.need("block_count")?,
        width,
        heads,
        kv_heads: keys.find("attention.head_count_kv").unwrap_or(heads),
        head_width,
        feed_forward: keys.need(feed_forward)?,
        vocabulary: vocabulary.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| missing("token_embd.weight"))?,
        norm_epsilon: keys
            .real("attention.layer_norm_rms_epsilon")
            .ok_or_else(|| DescribeError::Field(keys.key("attention.layer_norm_rms_epsilon")))?,
        rope_base: keys.real("rope.freq_base").unwrap_or(10_000.0),
        context_max: keys.need("context_length")?,
        tied_embeddings: !tensors.iter().any(|t| t.name == "output.weight"),
        attention_bias: tensors.iter().any(|t| t.name == "blk.0.attn_q.bias"),
        naming: Naming::Gguf,
        rope_half_split: family.gguf_half_split,
        eos_tokens: [keys.token("eos"), keys.token("eot")].into_iter().flatten().fold(Vec::new(), with_new),
        bos_token: keys.token("bos"),
        architecture: family::architecture(family, rope_scaling),
        rope_scaling,
        window: window(&keys, family)?,
        variations: Variations { experts, ..variations(&keys, family, head_width)? },
    })
}

fn with_new(mut all: Vec<u32>, one: u32) -> Vec<u32> {
    if !all.contains(&one) {
        all.push(one);
    }
    all
}

/// A window where the family looks at that key; a Llama that says it has one is none that is served.
fn window(keys: &Keys, family: Family) -> Result<Option<NonZeroU32>, Stop> {
    let window = keys.find("attention.sliding_window").and_then(NonZeroU32::new);
    match family.name {
        "gemma3" if window.is_none() => Err(DescribeError::Field(keys.key("attention.sliding_window")).into()),
        "gemma3" | "phi3" => Ok(window),
        _ if window.is_some() => {
            unserved(format!("its {} is set, which is not served", keys.key("attention.sliding_window")))
        }
        _ => Ok(None),
    }
}

fn experts(keys: &Keys, family: Family) -> Result<Option<Experts>, Stop> {
    match (keys.find("expert_count").unwrap_or(0), family.name) {
        (0, _) => Ok(None),
        (count, "qwen3moe") => {
            let scale = keys.real("expert_weights_scale").unwrap_or(1.0);
            if scale != 0.0 && scale != 1.0 {
                return unserved("its experts' weights are scaled, which is not served");
            }
            Ok(Some(Experts { count, used: keys.need("expert_used_count")?, normalised: true }))
        }
        (count, name) => unserved(format!("it is a {name} of {count} experts, which is not served")),
    }
}

/// What a family's layers have beside, but for experts.
fn variations(keys: &Keys, family: Family, head_width: u32) -> Result<Variations, Stop> {
    let rotary_width = keys.find("rope.dimension_count").filter(|width| *width != head_width);
    let rotary_width = rotary_width.and_then(NonZeroU32::new);
    let none = Variations { rotary_width, ..Variations::default() };
    match family.name {
        "gemma3" => gemma3(keys, none),
        "smollm3" => Ok(Variations { unrotated_every: NonZeroU32::new(SMOLLM3_UNROTATED_EVERY), ..none }),
        _ => Ok(none),
    }
}

fn gemma3(keys: &Keys, none: Variations) -> Result<Variations, Stop> {
    let pattern = keys.key("attention.sliding_window_pattern");
    let every = match (keys.header.u64(&pattern), keys.header.array(&pattern)) {
        (None, None) => GEMMA3_FULL_ATTENTION_EVERY,
        (Some(every), _) => u32::try_from(every).map_err(|_| DescribeError::Field(pattern))?,
        (None, Some(_)) => return unserved(format!("its {pattern} is a list, which is not served")),
    };
    let (layers, width, heads) =
        (keys.need("block_count")?, keys.need("embedding_length")?, keys.need("attention.head_count")?);
    let query_scalar = (layers == GEMMA3_27B_LAYERS && heads > 0).then(|| f64::from(width / heads));
    let window_rope_base = Some(keys.real("rope.freq_base_swa").unwrap_or(GEMMA3_WINDOW_ROPE_BASE));
    Ok(Variations { full_attention_every: NonZeroU32::new(every), window_rope_base, query_scalar, ..none })
}
