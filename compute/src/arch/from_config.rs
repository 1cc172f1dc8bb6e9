//! Reads a model's shape from the Hub's `config.json` and `generation_config.json`, with the defaults of transformers.

use super::{
    describe::{DescribeError, Stop, unserved},
    family::{self, Family},
    scaling::{self, Scaling},
};
use crate::cpu::model::Activation;
use cairn_protocol::manifest::{Experts, Model, Naming, TensorEntry, Variations};
use serde_json::Value;
use std::num::NonZeroU32;

/// Attributes that change what is computed, where they are there and neither null, false nor a list without entries.
const UNSERVED: [&str; 14] = [
    "use_sliding_window",
    "use_bidirectional_attention",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_chunk_size",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "clip_qkv",
    "mlp_only_layers",
    "shared_expert_intermediate_size",
    "attn_temperature_tuning",
    "quantization_config",
];

/// Reads a configuration.
pub(super) fn read(config: &[u8], generation_config: Option<&[u8]>, tensors: &[TensorEntry]) -> Result<Model, Stop> {
    let config = json("config.json", config)?;
    let generation = generation_config.map(|bytes| json("generation_config.json", bytes)).transpose()?;
    let family = family(&config)?;
    let rope_scaling = match scaling::of_config(&config)? {
        Scaling::Known(scaling) => scaling,
        Scaling::Other(why) => return unserved(why),
    };
    refuse_more(&config, family)?;
    let fields = Fields(&config);
    let has = |name: &str| tensors.iter().any(|t| t.name == name);
    let rows = tensors.iter().find(|t| t.name == "model.embed_tokens.weight").and_then(|t| t.shape.first()).copied();
    let (width, heads) = (fields.need("hidden_size")?, fields.need("num_attention_heads")?);
    let split = width.checked_div(heads).ok_or_else(|| DescribeError::Field("num_attention_heads".to_string()))?;
    let eos = |from: &Value| tokens(from.get("eos_token_id"));
    let own_eos = generation.as_ref().map(eos).filter(|ids| !ids.is_empty());
    let head_width = fields.find("head_dim").unwrap_or(if family.name == "gemma3" { 256 } else { split });
    let experts = experts(&fields, family)?;
    Ok(Model {
        architecture: family::architecture(family, rope_scaling),
        layers: fields.need("num_hidden_layers")?,
        width,
        heads,
        kv_heads: fields.find("num_key_value_heads").unwrap_or(heads),
        head_width,
        feed_forward: fields.need(if experts.is_some() { "moe_intermediate_size" } else { "intermediate_size" })?,
        vocabulary: rows.and_then(|n| u32::try_from(n).ok()).map_or_else(|| fields.need("vocab_size"), Ok)?,
        norm_epsilon: fields.real("rms_norm_eps").unwrap_or(1e-6),
        rope_base: rope_base(&config, family),
        context_max: fields.find("max_position_embeddings").unwrap_or(2048),
        tied_embeddings: !has("lm_head.weight"),
        attention_bias: has("model.layers.0.self_attn.q_proj.bias"),
        naming: Naming::HuggingFace,
        rope_half_split: true,
        eos_tokens: own_eos.unwrap_or_else(|| eos(&config)),
        bos_token: tokens(config.get("bos_token_id")).first().copied(),
        rope_scaling,
        window: window(&config, family)?,
        variations: Variations { experts, ..variations(&fields, family, head_width)? },
    })
}

/// The numbers of a configuration.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn find(&self, name: &str) -> Option<u32> {
        self.0.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
    }
    fn need(&self, name: &str) -> Result<u32, DescribeError> {
        self.find(name).ok_or_else(|| DescribeError::Field(name.to_string()))
    }
    fn real(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }
}

fn json(file: &'static str, bytes: &[u8]) -> Result<Value, DescribeError> {
    serde_json::from_slice(bytes).map_err(|error| DescribeError::Json { file, why: error.to_string() })
}

fn family(config: &Value) -> Result<Family, Stop> {
    let Some(kind) = config.get("model_type").and_then(Value::as_str) else { return Err(Stop::Nothing) };
    let unknown = || {
        let kind: String = kind.chars().take(64).collect();
        Stop::Unserved(format!("its model_type is {kind}, which is not served, only {} are", family::names()))
    };
    family::of_hub_type(kind).ok_or_else(unknown)
}

/// Refuses a config that asks for something that the forward pass has not.
fn refuse_more(config: &Value, family: Family) -> Result<(), Stop> {
    let is_set = |name: &str| match config.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(all)) => !all.is_empty(),
        Some(_) => true,
    };
    if let Some(name) = UNSERVED.into_iter().find(|name| is_set(name)) {
        return unserved(format!("its config.json sets {name}, which is not served"));
    }
    let activation = config.get("hidden_activation").or(config.get("hidden_act")).and_then(Value::as_str);
    let (usual, known): (&str, &[&str]) = match family.activation {
        Activation::Silu => ("silu", &["silu", "swish"]),
        Activation::Gelu => ("gelu_pytorch_tanh", &["gelu_pytorch_tanh"]),
    };
    let activation = activation.unwrap_or(usual);
    if !known.contains(&activation) {
        let activation: String = activation.chars().take(64).collect();
        return unserved(format!("its activation is {activation}, which is not served for {}", family.name));
    }
    if config.get("rope_parameters").is_some_and(|p| p.get("full_attention").is_some()) {
        return unserved("its rope_parameters differ by kinds of layers, which is not served");
    }
    Ok(())
}

/// The window; transformers takes a config that does not speak of it for one of the first release.
fn window(config: &Value, family: Family) -> Result<Option<NonZeroU32>, DescribeError> {
    let assumed = match family.name {
        "mistral" | "gemma3" => NonZeroU32::new(4096),
        "phi3" => None,
        _ => return Ok(None),
    };
    match config.get("sliding_window") {
        None => Ok(assumed),
        Some(Value::Null) => Ok(None),
        Some(number) => {
            let window = number.as_u64().and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new);
            window.map(Some).ok_or_else(|| DescribeError::Field("sliding_window".to_string()))
        }
    }
}

fn experts(fields: &Fields, family: Family) -> Result<Option<Experts>, Stop> {
    if family.name != "qwen3moe" {
        return Ok(None);
    }
    if fields.find("decoder_sparse_step").is_some_and(|step| step != 1) {
        return unserved("its decoder_sparse_step is not 1: experts in some layers only are not served");
    }
    let normalised = fields.0.get("norm_topk_prob").and_then(Value::as_bool).unwrap_or(false);
    Ok(Some(Experts { count: fields.need("num_experts")?, used: fields.need("num_experts_per_tok")?, normalised }))
}

/// What a family's layers have beside, but for experts.
fn variations(fields: &Fields, family: Family, head_width: u32) -> Result<Variations, Stop> {
    let layers = fields.need("num_hidden_layers")? as usize;
    let part = fields.real("partial_rotary_factor").unwrap_or(1.0);
    let rotary_width = NonZeroU32::new((part * f64::from(head_width)) as u32).filter(|width| width.get() != head_width);
    let none = Variations { rotary_width, ..Variations::default() };
    match family.name {
        "gemma3" => {
            let query_scalar = fields.real("query_pre_attn_scalar").unwrap_or(256.0);
            Ok(Variations {
                full_attention_every: full_attention_every(fields, layers)?,
                window_rope_base: Some(fields.real("rope_local_base_freq").unwrap_or(10_000.0)),
                query_scalar: Some(query_scalar).filter(|scalar| *scalar != f64::from(head_width)),
                ..none
            })
        }
        "smollm3" => Ok(Variations { unrotated_every: unrotated_every(fields, layers)?, ..none }),
        _ => Ok(none),
    }
}

/// Gemma 3's layers without a window: a list of kinds, or every so many.
fn full_attention_every(fields: &Fields, layers: usize) -> Result<Option<NonZeroU32>, Stop> {
    let Some(kinds) = fields.0.get("layer_types").and_then(Value::as_array) else {
        return Ok(NonZeroU32::new(fields.find("sliding_window_pattern").unwrap_or(6)));
    };
    let is_full: Vec<bool> = kinds.iter().map(|kind| kind.as_str() == Some("full_attention")).collect();
    let is_known = kinds.iter().all(|kind| ["full_attention", "sliding_attention"].map(Some).contains(&kind.as_str()));
    match every(&is_full) {
        Some(every) if is_known && kinds.len() == layers => Ok(every),
        _ => unserved("its layer_types are not one layer without a window after so many with one, which is not served"),
    }
}

/// SmolLM3's layers that do not rotate: a list (where 0 says so), or every so many.
fn unrotated_every(fields: &Fields, layers: usize) -> Result<Option<NonZeroU32>, Stop> {
    let Some(rotates) = fields.0.get("no_rope_layers").and_then(Value::as_array) else {
        return Ok(NonZeroU32::new(fields.find("no_rope_layer_interval").unwrap_or(4)));
    };
    let is_still: Vec<bool> = rotates.iter().map(|rotates| rotates.as_u64() == Some(0)).collect();
    match every(&is_still) {
        Some(every) if rotates.len() == layers => Ok(every),
        _ => unserved("its no_rope_layers are not one after so many that rotate, which is not served"),
    }
}

/// After how many layers one stands out, if it is always the same number: `None` inside when none does.
fn every(stands_out: &[bool]) -> Option<Option<NonZeroU32>> {
    let Some(first) = stands_out.iter().position(|out| *out) else { return Some(None) };
    let is_regular = stands_out.iter().enumerate().all(|(i, out)| *out == (i + 1).is_multiple_of(first + 1));
    is_regular.then(|| NonZeroU32::new(first as u32 + 1))
}

fn rope_base(config: &Value, family: Family) -> f64 {
    let nested = config.get("rope_parameters").and_then(|p| p.get("rope_theta"));
    let assumed = match family.name {
        "gemma3" => 1_000_000.0,
        "smollm3" => 2_000_000.0,
        _ => 10_000.0,
    };
    config.get("rope_theta").or(nested).and_then(Value::as_f64).unwrap_or(assumed)
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
