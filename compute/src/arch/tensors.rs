//! Names, roles and dimensions of the tensors that a part of a model needs.
//!
//! Both namings say the same things; what differs is the order of query and key rows (`Model::rope_half_split`).

use super::{ShapeError, StagePart, family, shape};
use crate::cpu::model::Shape;
use cairn_protocol::{
    dtype::{Dtype, elements},
    manifest::{Model, Naming, RopeScaling, TensorEntry},
};
use std::collections::{HashMap, HashSet};

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
    /// Rows of queries, then of keys, then of values.
    QueryKeyValue,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Out,
    PostAttentionNorm,
    FeedForwardNorm,
    Gate,
    Up,
    /// Rows of the gate, then of up.
    GateUp,
    Down,
    PostFeedForwardNorm,
    /// What chooses experts.
    Router,
    /// One projection of all experts, one after the other.
    Experts(Projection),
    /// One projection of one expert.
    Expert(u32, Projection),
}

/// A matrix of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Projection {
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
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

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
    let of_layer = layer_roles(model);
    let layer = |l| of_layer.iter().map(move |role| Role::Layer(l, *role));
    let first = part.embedding.then_some(Role::Embedding);
    let last = if part.head { &[Role::Norm, Role::Head][..] } else { &[] };
    let turns = model.rope_scaling == Some(RopeScaling::Tensor) && part.layers.start < part.layers.end;
    let rope = turns.then_some(Role::RopeFactors);
    first.into_iter().chain(rope).chain(part.layers.iter().flat_map(layer)).chain(last.iter().copied()).collect()
}

/// What a layer of the model has.
fn layer_roles(model: &Model) -> Vec<LayerRole> {
    use LayerRole::*;
    let family = family::of(model);
    let (has_head_norms, has_post_norms, is_fused) =
        family.map_or((false, false, false), |family| (family.head_norms, family.post_norms, family.is_fused));
    let mut roles = vec![AttentionNorm];
    roles.extend_from_slice(if is_fused { &[QueryKeyValue] } else { &[Query, Key, Value] });
    if model.attention_bias {
        roles.extend([QueryBias, KeyBias, ValueBias]);
    }
    if has_head_norms {
        roles.extend([QueryNorm, KeyNorm]);
    }
    roles.push(Out);
    if has_post_norms {
        roles.push(PostAttentionNorm);
    }
    roles.push(FeedForwardNorm);
    match model.variations.experts {
        Some(experts) => roles.extend(expert_roles(model.naming, experts.count)),
        None if is_fused => roles.extend([GateUp, Down]),
        None => roles.extend([Gate, Up, Down]),
    }
    if has_post_norms {
        roles.push(PostFeedForwardNorm);
    }
    roles
}

/// GGUF files stack the experts of a layer; files of the Hub hold each by itself.
fn expert_roles(naming: Naming, count: u32) -> Vec<LayerRole> {
    let all = [Projection::Gate, Projection::Up, Projection::Down];
    let mut roles = vec![LayerRole::Router];
    match naming {
        Naming::Gguf => roles.extend(all.map(LayerRole::Experts)),
        Naming::HuggingFace => {
            roles.extend((0..count).flat_map(|expert| all.map(|projection| LayerRole::Expert(expert, projection))));
        }
    }
    roles
}

fn found<'a>(
    model: &Model,
    sizes: &Shape,
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
pub(crate) fn layer_dimensions(s: &Shape, role: LayerRole) -> Vec<u64> {
    dimensions(s, Role::Layer(0, role))
}

fn dimensions(s: &Shape, role: Role) -> Vec<u64> {
    use LayerRole::*;
    let (queries, keys) = (s.heads * s.head_width, s.kv_heads * s.head_width);
    let experts = s.routing.map_or(0, |routing| routing.experts);
    let sizes = match role {
        Role::Embedding | Role::Head => vec![s.vocabulary, s.width],
        Role::RopeFactors => vec![s.rotary_width / 2],
        Role::Norm => vec![s.width],
        Role::Layer(_, AttentionNorm | PostAttentionNorm | FeedForwardNorm | PostFeedForwardNorm) => vec![s.width],
        Role::Layer(_, QueryNorm | KeyNorm) => vec![s.head_width],
        Role::Layer(_, Query) => vec![queries, s.width],
        Role::Layer(_, Key | Value) => vec![keys, s.width],
        Role::Layer(_, QueryKeyValue) => vec![queries + 2 * keys, s.width],
        Role::Layer(_, QueryBias) => vec![queries],
        Role::Layer(_, KeyBias | ValueBias) => vec![keys],
        Role::Layer(_, Out) => vec![s.width, queries],
        Role::Layer(_, Gate | Up) => vec![s.feed_forward, s.width],
        Role::Layer(_, GateUp) => vec![2 * s.feed_forward, s.width],
        Role::Layer(_, Down) => vec![s.width, s.feed_forward],
        Role::Layer(_, Router) => vec![experts, s.width],
        Role::Layer(_, Expert(_, Projection::Down)) => vec![s.width, s.feed_forward],
        Role::Layer(_, Expert(..)) => vec![s.feed_forward, s.width],
        Role::Layer(_, Experts(Projection::Down)) => vec![experts, s.width, s.feed_forward],
        Role::Layer(_, Experts(_)) => vec![experts, s.feed_forward, s.width],
    };
    sizes.into_iter().map(|n| n as u64).collect()
}

/// The rows of the matrices that a tensor holds one after the other.
pub(crate) fn sections(s: &Shape, role: Role) -> Vec<usize> {
    use LayerRole::*;
    let (queries, keys) = (s.heads * s.head_width, s.kv_heads * s.head_width);
    let experts = s.routing.map_or(0, |routing| routing.experts);
    match role {
        Role::Layer(_, QueryKeyValue) => vec![queries, keys, keys],
        Role::Layer(_, GateUp) => vec![s.feed_forward; 2],
        Role::Layer(_, Experts(Projection::Down)) => vec![s.width; experts],
        Role::Layer(_, Experts(_)) => vec![s.feed_forward; experts],
        _ => vec![dimensions(s, role)[0] as usize],
    }
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
        (Naming::HuggingFace, Role::Layer(layer, role)) => {
            format!("model.layers.{layer}.{}", hugging_face_name(role, has_post_norms(model)))
        }
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
pub(super) fn layer_names(model: &Model) -> HashSet<String> {
    let has_post_norms = has_post_norms(model);
    let name = |role| match model.naming {
        Naming::Gguf => gguf_name(role).to_string(),
        Naming::HuggingFace => hugging_face_name(role, has_post_norms),
    };
    layer_roles(model).into_iter().map(name).collect()
}

fn has_post_norms(model: &Model) -> bool {
    family::of(model).is_some_and(|family| family.post_norms)
}

fn gguf_name(role: LayerRole) -> &'static str {
    match role {
        LayerRole::AttentionNorm => "attn_norm.weight",
        LayerRole::Query => "attn_q.weight",
        LayerRole::Key => "attn_k.weight",
        LayerRole::Value => "attn_v.weight",
        LayerRole::QueryKeyValue => "attn_qkv.weight",
        LayerRole::QueryBias => "attn_q.bias",
        LayerRole::KeyBias => "attn_k.bias",
        LayerRole::ValueBias => "attn_v.bias",
        LayerRole::QueryNorm => "attn_q_norm.weight",
        LayerRole::KeyNorm => "attn_k_norm.weight",
        LayerRole::Out => "attn_output.weight",
        LayerRole::PostAttentionNorm => "post_attention_norm.weight",
        LayerRole::FeedForwardNorm => "ffn_norm.weight",
        LayerRole::Gate => "ffn_gate.weight",
        // llama.cpp's converter calls gate and up together so.
        LayerRole::Up | LayerRole::GateUp => "ffn_up.weight",
        LayerRole::Down => "ffn_down.weight",
        LayerRole::PostFeedForwardNorm => "post_ffw_norm.weight",
        LayerRole::Router => "ffn_gate_inp.weight",
        LayerRole::Experts(Projection::Gate) | LayerRole::Expert(_, Projection::Gate) => "ffn_gate_exps.weight",
        LayerRole::Experts(Projection::Up) | LayerRole::Expert(_, Projection::Up) => "ffn_up_exps.weight",
        LayerRole::Experts(Projection::Down) | LayerRole::Expert(_, Projection::Down) => "ffn_down_exps.weight",
    }
}

/// Where norms stand on both sides of the feed-forward part, `post_attention_layernorm` is not the one before it.
fn hugging_face_name(role: LayerRole, has_post_norms: bool) -> String {
    let name = match role {
        LayerRole::AttentionNorm => "input_layernorm",
        LayerRole::Query => "self_attn.q_proj",
        LayerRole::Key => "self_attn.k_proj",
        LayerRole::Value => "self_attn.v_proj",
        LayerRole::QueryKeyValue => "self_attn.qkv_proj",
        LayerRole::QueryBias => return "self_attn.q_proj.bias".to_string(),
        LayerRole::KeyBias => return "self_attn.k_proj.bias".to_string(),
        LayerRole::ValueBias => return "self_attn.v_proj.bias".to_string(),
        LayerRole::QueryNorm => "self_attn.q_norm",
        LayerRole::KeyNorm => "self_attn.k_norm",
        LayerRole::Out => "self_attn.o_proj",
        LayerRole::FeedForwardNorm if has_post_norms => "pre_feedforward_layernorm",
        LayerRole::PostAttentionNorm | LayerRole::FeedForwardNorm => "post_attention_layernorm",
        LayerRole::Gate => "mlp.gate_proj",
        LayerRole::Up => "mlp.up_proj",
        LayerRole::GateUp => "mlp.gate_up_proj",
        LayerRole::Down => "mlp.down_proj",
        LayerRole::PostFeedForwardNorm => "post_feedforward_layernorm",
        LayerRole::Router => "mlp.gate",
        LayerRole::Experts(projection) => return format!("mlp.experts.{}.weight", projection_name(projection)),
        LayerRole::Expert(expert, projection) => {
            return format!("mlp.experts.{expert}.{}.weight", projection_name(projection));
        }
    };
    format!("{name}.weight")
}

fn projection_name(projection: Projection) -> &'static str {
    match projection {
        Projection::Gate => "gate_proj",
        Projection::Up => "up_proj",
        Projection::Down => "down_proj",
    }
}
