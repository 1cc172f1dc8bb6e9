//! What parts of a model take: bytes in files for planning, bytes in memory for admission.

use super::{Role, StageError, StagePart, Wanted, shape, shape::context, wanted};
use crate::{
    cpu::{
        cache::Cache,
        lines::LINE_BYTES,
        packed::LANES,
        rope::Rope,
        work::{PASS_TOKENS_MAX, SAMPLED_MAX},
    },
    weights::held,
};
use cairn_protocol::manifest::{Model, TensorEntry};

/// Bytes of a model's parts in its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBytes {
    /// Of each layer.
    pub layers: Vec<u64>,
    /// Of the token embedding.
    pub embedding: u64,
    /// Of the final norm and the head (the embedding again where they are tied).
    pub head: u64,
}

/// Bytes of each layer and of both ends in the model's files. Refuses what could not be loaded.
pub fn layer_bytes(model: &Model, tensors: &[TensorEntry]) -> Result<LayerBytes, StageError> {
    shape(model)?;
    let mut bytes = LayerBytes { layers: vec![0; model.layers as usize], embedding: 0, head: 0 };
    for Wanted { role, entry } in wanted(model, tensors, &StagePart::whole(model.layers))? {
        match role {
            Role::Embedding => bytes.embedding += entry.length,
            Role::Layer(layer, _) => bytes.layers[layer as usize] += entry.length,
            Role::Norm | Role::Head => bytes.head += entry.length,
            // A few hundred bytes that every stage reads: they weigh nothing in a plan.
            Role::RopeFactors => {}
        }
    }
    Ok(bytes)
}

/// Bytes of memory that a stage takes with one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageMemory {
    /// Weights, as the engine holds them.
    pub weights: u64,
    /// Keys and values of the session.
    pub cache: u64,
    /// Angles of all positions.
    pub angles: u64,
    /// Activations of the widest pass.
    pub buffers: u64,
}

impl StageMemory {
    /// All together.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.angles + self.buffers
    }
}

/// Memory that a stage takes with a session of `context` positions: weights as the engine holds them, keys and values,
/// angles and buffers.
pub fn stage_memory(
    model: &Model,
    tensors: &[TensorEntry],
    part: &StagePart,
    context_asked: u32,
) -> Result<StageMemory, StageError> {
    let sizes = shape(model)?;
    let wanted = wanted(model, tensors, part)?;
    let weights = weight_lines(model, &wanted, part) as u64 * LINE_BYTES as u64;
    let positions = context(model, context_asked);
    let (kv_heads, head_width) = (sizes.kv_heads as u64, sizes.head_width);
    let cache = Cache::bytes(part.layers.len() as u64, kv_heads, head_width, positions as u64);
    let columns = 8 * sizes.width + 4 * sizes.heads * head_width + 4 * sizes.feed_forward;
    let buffers =
        (columns * 4 * PASS_TOKENS_MAX + if part.head { 4 * sizes.vocabulary * (SAMPLED_MAX + 1) } else { 0 }) as u64;
    Ok(StageMemory { weights, cache, angles: Rope::bytes(head_width, positions), buffers })
}

/// Lines of all matrices of a stage.
pub(crate) fn weight_lines(model: &Model, wanted: &[Wanted], part: &StagePart) -> usize {
    let is_matrix = |w: &&Wanted| w.entry.shape.len() == 2;
    let is_tied_head = |w: &Wanted| w.role == Role::Head && model.tied_embeddings && part.embedding;
    let lines = |w: &Wanted| {
        let (rows, k) = (w.entry.shape[0] as usize, w.entry.shape[1] as usize);
        held(w.entry.dtype).map_or(0, |held| rows.div_ceil(LANES) * held.format.group_lines(k))
    };
    wanted.iter().filter(is_matrix).filter(|w| !is_tied_head(w)).map(lines).sum()
}
