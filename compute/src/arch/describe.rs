//! Reads a model's shape from `config.json` and `generation_config.json`, or from GGUF metadata.
//!
//! Says nothing of a model that it does not know (`None`): such a revision is stored and shared like any other. What it
//! does say is checked: a described model can be computed if its tensors are as described.

use super::{
    family,
    scaling::{self, Scaling},
    tensors::{ROPE_FACTORS, layer_names},
};
use cairn_protocol::{
    gguf::GgufHeader,
    manifest::{Model, Naming, RopeScaling, TensorEntry},
};
use serde_json::Value;
use std::num::NonZeroU32;

/// A file that names a known architecture but cannot be understood.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DescribeError {
    /// Not JSON.
    #[error("{file} is not JSON: {why}")]
    Json {
        /// Which file.
        file: &'static str,
        /// What the parser says.
        why: String,
    },
    /// A number that is missing or of another kind.
    #[error("{0} is missing or not a number that fits")]
    Field(String),
}

/// Describes a model from what its files say; `None` when none of them names an architecture that is served, or the
/// model uses a part of it that is not (other scalings of rotary embeddings, heads rotated in part, windows in some layers only, experts, further norms or
/// biases).
pub fn describe(
    config_json: Option<&[u8]>,
    generation_config: Option<&[u8]>,
    gguf: Option<&GgufHeader>,
    tensors: &[TensorEntry],
) -> Result<Option<Model>, DescribeError> {
    let described = match (gguf, config_json) {
        (Some(header), _) => from_gguf(header, tensors)?,
        (None, Some(config)) => from_config(config, generation_config, tensors)?,
        (None, None) => None,
    };
    Ok(described.filter(|model| !has_strangers(model, tensors)).filter(super::is_served))
}

/// Tensors inside layers that the forward pass would leave out: another architecture under a known name.
fn has_strangers(model: &Model, tensors: &[TensorEntry]) -> bool {
    let (prefix, harmless) = match model.naming {
        Naming::Gguf => ("blk.", ""),
        Naming::HuggingFace => ("model.layers.", "self_attn.rotary_emb.inv_freq"),
    };
    let names = layer_names(model);
    let factors_are_left_out =
        |t: &TensorEntry| t.name == ROPE_FACTORS && model.rope_scaling != Some(RopeScaling::Tensor);
    let is_known = |rest: &str| names.contains(&rest) || rest == harmless;
    let within =
        |name: &str| name.strip_prefix(prefix).and_then(|n| n.split_once('.')).map(|(_, rest)| rest.to_string());
    tensors.iter().any(|t| factors_are_left_out(t) || within(&t.name).is_some_and(|rest| !is_known(&rest)))
}

fn from_gguf(header: &GgufHeader, tensors: &[TensorEntry]) -> Result<Option<Model>, DescribeError> {
    let Some(family) = header.str("general.architecture").and_then(family::named).filter(|f| f.is_in_gguf) else {
        return Ok(None);
    };
    let Scaling::Known(rope_scaling) = scaling::of_gguf(header, family, tensors)? else { return Ok(None) };
    let architecture = family.name;
    let key = |name: &str| format!("{architecture}.{name}");
    let find = |name: &str| header.u64(&key(name)).and_then(|n| u32::try_from(n).ok());
    let need = |name: &str| find(name).ok_or_else(|| DescribeError::Field(key(name)));
    let real = |name: &str| header.f64(&key(name));
    if find("expert_count").unwrap_or(0) > 0 {
        return Ok(None);
    }
    let (width, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_width = find("attention.key_length").or(width.checked_div(heads));
    if find("rope.dimension_count").is_some_and(|turned| Some(turned) != head_width) {
        return Ok(None);
    }
    let rows = tensors.iter().find(|t| t.name == "token_embd.weight").and_then(|t| t.shape.first()).copied();
    let vocabulary = rows.or_else(|| header.array("tokenizer.ggml.tokens").map(|tokens| tokens.len() as u64));
    let token = |name: &str| header.u64(&format!("tokenizer.ggml.{name}_token_id")).and_then(|n| u32::try_from(n).ok());
    let missing = |name: &str| DescribeError::Field(name.to_string());
    Ok(Some(Model {
        layers: need("block_count")?,
        width,
        heads,
        kv_heads: find("attention.head_count_kv").unwrap_or(heads),
        head_width: head_width.ok_or_else(|| missing("head_count"))?,
        feed_forward: need("feed_forward_length")?,
        vocabulary: vocabulary.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| missing("token_embd.weight"))?,
        norm_epsilon: real("attention.layer_norm_rms_epsilon")
            .ok_or_else(|| DescribeError::Field(key("attention.layer_norm_rms_epsilon")))?,
        rope_base: real("rope.freq_base").unwrap_or(10_000.0),
        context_max: need("context_length")?,
        tied_embeddings: !tensors.iter().any(|t| t.name == "output.weight"),
        attention_bias: tensors.iter().any(|t| t.name == "blk.0.attn_q.bias"),
        naming: Naming::Gguf,
        rope_half_split: family.gguf_half_split,
        eos_tokens: [token("eos"), token("eot")].into_iter().flatten().fold(Vec::new(), with_new),
        bos_token: token("bos"),
        architecture: family::architecture(family, rope_scaling),
        rope_scaling,
        window: None,
    }))
}

fn with_new(mut all: Vec<u32>, one: u32) -> Vec<u32> {
    if !all.contains(&one) {
        all.push(one);
    }
    all
}

fn json(file: &'static str, bytes: &[u8]) -> Result<Value, DescribeError> {
    serde_json::from_slice(bytes).map_err(|error| DescribeError::Json { file, why: error.to_string() })
}

fn from_config(
    config: &[u8],
    generation_config: Option<&[u8]>,
    tensors: &[TensorEntry],
) -> Result<Option<Model>, DescribeError> {
    let config = json("config.json", config)?;
    let generation = generation_config.map(|bytes| json("generation_config.json", bytes)).transpose()?;
    let Some(family) = config.get("model_type").and_then(Value::as_str).and_then(family::named) else {
        return Ok(None);
    };
    let Scaling::Known(rope_scaling) = scaling::of_config(&config)? else { return Ok(None) };
    if uses_more(&config) {
        return Ok(None);
    }
    let find = |name: &str| config.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let need = |name: &str| find(name).ok_or_else(|| DescribeError::Field(name.to_string()));
    let has = |name: &str| tensors.iter().any(|t| t.name == name);
    let rows = tensors.iter().find(|t| t.name == "model.embed_tokens.weight").and_then(|t| t.shape.first()).copied();
    let (width, heads) = (need("hidden_size")?, need("num_attention_heads")?);
    let split = width.checked_div(heads).ok_or_else(|| DescribeError::Field("num_attention_heads".to_string()))?;
    let eos = |from: &Value| tokens(from.get("eos_token_id"));
    let own_eos = generation.as_ref().map(eos).filter(|ids| !ids.is_empty());
    Ok(Some(Model {
        architecture: family::architecture(family, rope_scaling),
        layers: need("num_hidden_layers")?,
        width,
        heads,
        kv_heads: find("num_key_value_heads").unwrap_or(heads),
        head_width: find("head_dim").unwrap_or(split),
        feed_forward: need("intermediate_size")?,
        vocabulary: rows.and_then(|n| u32::try_from(n).ok()).map_or_else(|| need("vocab_size"), Ok)?,
        norm_epsilon: config.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
        rope_base: rope_base(&config),
        context_max: find("max_position_embeddings").unwrap_or(2048),
        tied_embeddings: !has("lm_head.weight"),
        attention_bias: has("model.layers.0.self_attn.q_proj.bias"),
        naming: Naming::HuggingFace,
        rope_half_split: true,
        eos_tokens: own_eos.unwrap_or_else(|| eos(&config)),
        bos_token: tokens(config.get("bos_token_id")).first().copied(),
        rope_scaling,
        window: if family.may_have_window { window(&config)? } else { None },
    }))
}

/// Whether a config asks for something that the forward pass has not.
fn uses_more(config: &Value) -> bool {
    let is_set = |name: &str| config.get(name).is_some_and(|v| !v.is_null() && v != &Value::Bool(false));
    let activation = config.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
    let is_turned_in_part = config.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|part| part != 1.0);
    is_turned_in_part || is_set("use_sliding_window") || !["silu", "swish"].contains(&activation)
}

/// Mistral's window; transformers takes a config that does not speak of it for one of the first release.
fn window(config: &Value) -> Result<Option<NonZeroU32>, DescribeError> {
    let wrong = || DescribeError::Field("sliding_window".to_string());
    match config.get("sliding_window") {
        None => Ok(NonZeroU32::new(4096)),
        Some(Value::Null) => Ok(None),
        Some(number) => {
            let window = number.as_u64().and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new);
            window.map(Some).ok_or_else(wrong)
        }
    }
}

fn rope_base(config: &Value) -> f64 {
    let nested = config.get("rope_parameters").and_then(|p| p.get("rope_theta"));
    config.get("rope_theta").or(nested).and_then(Value::as_f64).unwrap_or(10_000.0)
}

/// A token id or a list of them.
fn tokens(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Some(Value::Array(all)) => all.iter().filter_map(one).collect(),
        Some(single) => one(single).into_iter().collect(),
        None => Vec::new(),
    }
}
