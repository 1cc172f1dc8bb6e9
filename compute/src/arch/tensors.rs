//! Names, roles and dimensions of the tensors that a part of a model needs.
//!
//! Both namings say the same things; what differs is the order of query and key rows (`Model::rope_half_split`).

use super::{ShapeError, StagePart, family::has_head_norms, shape};
use cairn_protocol::{
    dtype::{Dtype, elements},
    manifest::{Model, Naming, RopeScaling, TensorEntry},
};
use std::collections::HashMap;

/// Why a part's tensors can't be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StageError {
    /// The model's numbers can't be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A range outside the model, or an end that does not belong to it.
    #[error("layers {start}..{end} are not a part of a model with {layers}")]
    Part {
        /// First layer.
        start: u32,
        /// One after the last.
        end: u32,
        /// The model's.
        layers: u32,
    },
    /// Not in the index.
    #[error("the model has no tensor {0}")]
    Missing(String),
    /// Other dimensions than the model's numbers say.
    #[error("tensor {name} has dimensions {got:?}, the model's numbers say {want:?}")]
    Dimensions {
        /// Which.
        name: String,
        /// As indexed.
        got: Vec<u64>,
        /// As needed.
        want: Vec<u64>,
    },
    /// An element type that the engine does not compute with.
    #[error("tensor {name} is of type {dtype}, which the engine can't read")]
    Type {
        /// Which.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Divisors of rotary frequencies that divide nothing.
    #[error("tensor rope_freqs.weight holds values that are not positive numbers")]
    RopeFactors,
    /// The index disagrees with itself.
    #[error("tensor {name} is said to take {got} bytes, its type and dimensions take {want}")]
    Length {
        /// Which.
        name: String,
        /// As indexed.
        got: u64,
        /// As computed.
        want: u64,
    },
}

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayerRole {
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Out,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
}

/// What a tensor is to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Embedding,
    /// What divides rotary frequencies, read by every stage with layers.
    RopeFactors,
    Layer(u32, LayerRole),
    Norm,
    Head,
}

/// A tensor that a part needs, found in the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub role: Role,
    pub entry: &'a TensorEntry,
}

/// What llama.cpp's converter calls the divisors of Llama 3's rotary frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

const LAYER_ROLES: [LayerRole; 14] = [
    LayerRole::AttentionNorm,
    LayerRole::Query,
    LayerRole::Key,
    LayerRole::Value,
    LayerRole::QueryBias,
    LayerRole::KeyBias,
    LayerRole::ValueBias,
    LayerRole::QueryNorm,
    LayerRole::KeyNorm,
    LayerRole::Out,
    LayerRole::FeedForwardNorm,
    LayerRole::Gate,
    LayerRole::Up,
    LayerRole::Down,
];

/// What a stage needs, in order of use, each tensor once (a tied embedding serves embedding and head).
pub fn stage_tensors<'a>(
    model: &Model,
    tensors: &'a [TensorEntry],
    part: &StagePart,
) -> Result<Vec<&'a TensorEntry>, StageError> {
    let mut all: Vec<&TensorEntry> = Vec::new();
    for tensor in wanted(model, tensors, part)? {
        let is_tied_head = tensor.role == Role::Head && model.tied_embeddings && part.embedding;
        if !is_tied_head {
            all.push(tensor.entry);
        }
    }
    Ok(all)
}

/// What a stage needs, in order of use and by role, checked against the model's numbers.
pub(crate) fn wanted<'a>(
    model: &Model,
    tensors: &'a [TensorEntry],
    part: &StagePart,
) -> Result<Vec<Wanted<'a>>, StageError> {
    let sizes = shape(model)?;
    let (start, end, layers) = (part.layers.start, part.layers.end, model.layers);
    let ends_fit = (!part.embedding || start == 0) && (!part.head || end == layers);
    if start > end || end > layers || !ends_fit || (start == end && !part.embedding && !part.head) {
        return Err(StageError::Part { start, end, layers });
    }
    let index: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let roles = roles(model, part);
    roles.into_iter().map(|role| found(model, &sizes, &index, role)).collect()
}

fn roles(model: &Model, part: &StagePart) -> Vec<Role> {
    let layer = |l| layer_roles(model).map(move |role| Role::Layer(l, role));
    let first = part.embedding.then_some(Role::Embedding);
    let last = if part.head { &[Role::Norm, Role::Head][..] } else { &[] };
    let turns = model.rope_scaling == Some(RopeScaling::Tensor) && part.layers.start < part.layers.end;
    let rope = turns.then_some(Role::RopeFactors);
    first.into_iter().chain(rope).chain(part.layers.iter().flat_map(layer)).chain(last.iter().copied()).collect()
}

/// What a layer of the model has.
fn layer_roles(model: &Model) -> impl Iterator<Item = LayerRole> {
    let (has_bias, has_head_norms) = (model.attention_bias, has_head_norms(model));
    LAYER_ROLES.into_iter().filter(move |role| match role {
        LayerRole::QueryBias | LayerRole::KeyBias | LayerRole::ValueBias => has_bias,
        LayerRole::QueryNorm | LayerRole::KeyNorm => has_head_norms,
        _ => true,
    })
}

fn found<'a>(
    model: &Model,
    sizes: &crate::cpu::model::Shape,
    index: &HashMap<&str, &'a TensorEntry>,
    role: Role,
) -> Result<Wanted<'a>, StageError> {
    let name = name(model, role);
    let Some(entry) = index.get(name.as_str()).copied() else { return Err(StageError::Missing(name)) };
    let want = dimensions(sizes, role);
    if entry.shape != want {
        return Err(StageError::Dimensions { name, got: entry.shape.clone(), want });
    }
    let is_vector = want.len() == 1;
    if !crate::weights::is_readable(entry.dtype, is_vector) {
        return Err(StageError::Type { name, dtype: entry.dtype });
    }
    // Blocks lie within rows, so a row has to be whole blocks.
    let row = want.last().copied().unwrap_or(1);
    let bytes = entry.dtype.bytes_for(row).and_then(|bytes| bytes.checked_mul(elements(&want)? / row));
    match bytes {
        Some(bytes) if bytes == entry.length => Ok(Wanted { role, entry }),
        _ => Err(StageError::Length { name, got: entry.length, want: bytes.unwrap_or(0) }),
    }
}

/// Rows and columns of a layer's matrix.
pub(crate) fn layer_dimensions(s: &crate::cpu::model::Shape, role: LayerRole) -> Vec<u64> {
    dimensions(s, Role::Layer(0, role))
}

fn dimensions(s: &crate::cpu::model::Shape, role: Role) -> Vec<u64> {
    use LayerRole::*;
    let (queries, keys) = (s.heads * s.head_width, s.kv_heads * s.head_width);
    let sizes = match role {
        Role::Embedding | Role::Head => vec![s.vocabulary, s.width],
        Role::RopeFactors => vec![s.head_width / 2],
        Role::Norm | Role::Layer(_, AttentionNorm | FeedForwardNorm) => vec![s.width],
        Role::Layer(_, QueryNorm | KeyNorm) => vec![s.head_width],
        Role::Layer(_, Query) => vec![queries, s.width],
        Role::Layer(_, Key | Value) => vec![keys, s.width],
        Role::Layer(_, QueryBias) => vec![queries],
        Role::Layer(_, KeyBias | ValueBias) => vec![keys],
        Role::Layer(_, Out) => vec![s.width, queries],
        Role::Layer(_, Gate | Up) => vec![s.feed_forward, s.width],
        Role::Layer(_, Down) => vec![s.width, s.feed_forward],
    };
    sizes.into_iter().map(|n| n as u64).collect()
}

/// A tensor's name in the model's files.
pub(crate) fn name(model: &Model, role: Role) -> String {
    let tied = model.tied_embeddings;
    match (model.naming, role) {
        (_, Role::RopeFactors) => ROPE_FACTORS.to_string(),
        (Naming::Gguf, Role::Layer(layer, role)) => format!("blk.{layer}.{}", gguf_name(role)),
        (Naming::Gguf, Role::Head) if !tied => "output.weight".to_string(),
        (Naming::Gguf, Role::Embedding | Role::Head) => "token_embd.weight".to_string(),
        (Naming::Gguf, Role::Norm) => "output_norm.weight".to_string(),
        (Naming::HuggingFace, Role::Layer(layer, role)) => format!("model.layers.{layer}.{}", hugging_face_name(role)),
        (Naming::HuggingFace, Role::Head) if !tied => "lm_head.weight".to_string(),
        (Naming::HuggingFace, Role::Embedding | Role::Head) => "model.embed_tokens.weight".to_string(),
        (Naming::HuggingFace, Role::Norm) => "model.norm.weight".to_string(),
    }
}

/// Every role of a model with its dimensions, for building one.
#[cfg(test)]
pub(crate) fn all_roles(model: &Model) -> Vec<(Role, Vec<u64>)> {
    let sizes = shape(model).expect("a test's model");
    let roles = roles(model, &StagePart::whole(model.layers));
    roles.into_iter().map(|role| (role, dimensions(&sizes, role))).collect()
}

/// The names of a layer's tensors after its prefix, for telling strangers apart.
pub(super) fn layer_names(model: &Model) -> Vec<&'static str> {
    let name = |role| match model.naming {
        Naming::Gguf => gguf_name(role),
        Naming::HuggingFace => hugging_face_name(role),
    };
    layer_roles(model).map(name).collect()
}

fn gguf_name(role: LayerRole) -> &'static str {
    match role {
        LayerRole::AttentionNorm => "attn_norm.weight",
        LayerRole::Query => "attn_q.weight",
        LayerRole::Key => "attn_k.weight",
        LayerRole::Value => "attn_v.weight",
        LayerRole::QueryBias => "attn_q.bias",
        LayerRole::KeyBias => "attn_k.bias",
        LayerRole::ValueBias => "attn_v.bias",
        LayerRole::QueryNorm => "attn_q_norm.weight",
        LayerRole::KeyNorm => "attn_k_norm.weight",
        LayerRole::Out => "attn_output.weight",
        LayerRole::FeedForwardNorm => "ffn_norm.weight",
        LayerRole::Gate => "ffn_gate.weight",
        LayerRole::Up => "ffn_up.weight",
        LayerRole::Down => "ffn_down.weight",
    }
}

fn hugging_face_name(role: LayerRole) -> &'static str {
    match role {
        LayerRole::AttentionNorm => "input_layernorm.weight",
        LayerRole::Query => "self_attn.q_proj.weight",
        LayerRole::Key => "self_attn.k_proj.weight",
        LayerRole::Value => "self_attn.v_proj.weight",
        LayerRole::QueryBias => "self_attn.q_proj.bias",
        LayerRole::KeyBias => "self_attn.k_proj.bias",
        LayerRole::ValueBias => "self_attn.v_proj.bias",
        LayerRole::QueryNorm => "self_attn.q_norm.weight",
        LayerRole::KeyNorm => "self_attn.k_norm.weight",
        LayerRole::Out => "self_attn.o_proj.weight",
        LayerRole::FeedForwardNorm => "post_attention_layernorm.weight",
        LayerRole::Gate => "mlp.gate_proj.weight",
        LayerRole::Up => "mlp.up_proj.weight",
        LayerRole::Down => "mlp.down_proj.weight",
    }
}
