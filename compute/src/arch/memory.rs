//! What parts of a model take: bytes in files for planning, bytes in memory for admission.

use super::{
    Angles, LayerRole, Role, StageError, StagePart, Wanted, angle_kinds, sections, shape, shape::context, wanted,
};
use crate::{
    cpu::{
        cache::PageShape,
        kv::KvFormat,
        lines::LINE_BYTES,
        model::Shape,
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
    /// Of each layer, what a decoded token reads: of experts those that it goes through.
    pub read: Vec<u64>,
    /// Of the token embedding.
    pub embedding: u64,
    /// Of the final norm and the head (the embedding again where they are tied).
    pub head: u64,
}

/// Bytes of each layer and of both ends in the model's files. Refuses what could not be loaded.
pub fn layer_bytes(model: &Model, tensors: &[TensorEntry]) -> Result<LayerBytes, StageError> {
    let routing = shape(model)?.routing;
    let none = vec![0; model.layers as usize];
    let mut bytes = LayerBytes { layers: none.clone(), read: none, embedding: 0, head: 0 };
    let share = |length: u64| routing.map_or(length, |r| length * r.used as u64 / r.experts as u64);
    for Wanted { role, entry } in wanted(model, tensors, &StagePart::whole(model.layers))? {
        match role {
            Role::Embedding => bytes.embedding += entry.length,
            Role::Layer(layer, role) => {
                let is_expert = matches!(role, LayerRole::Experts(_) | LayerRole::Expert(..));
                bytes.layers[layer as usize] += entry.length;
                bytes.read[layer as usize] += if is_expert { share(entry.length) } else { entry.length };
            }
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

/// Memory that a stage takes with a session of `context` positions: weights as the engine holds them, keys and values as halves,
/// angles and buffers.
pub fn stage_memory(
    model: &Model,
    tensors: &[TensorEntry],
    part: &StagePart,
    context_asked: u32,
) -> Result<StageMemory, StageError> {
    let sizes = shape(model)?;
    let wanted = wanted(model, tensors, part)?;
    let weights = weight_lines(model, &sizes, &wanted, part) as u64 * LINE_BYTES as u64;
    let positions = context(model, context_asked);
    let (head_width, cache) = (sizes.head_width, pages(&sizes, part, KvFormat::F16).bytes(positions as u64));
    let experts = sizes.routing.map_or(0, |routing| routing.experts);
    let columns = 12 * sizes.width + 4 * sizes.heads * head_width + 4 * sizes.feed_forward + experts;
    let buffers =
        (columns * 4 * PASS_TOKENS_MAX + if part.head { 4 * sizes.vocabulary * (SAMPLED_MAX + 1) } else { 0 }) as u64;
    let tables = angle_kinds(model, part.layers.iter()).into_iter().filter(|kind| *kind != Angles::Still).count();
    let angles = tables as u64 * Rope::bytes(head_width, positions);
    Ok(StageMemory { weights, cache, angles, buffers })
}

/// Bytes of keys and values that a stage takes for a session of `context` positions, held as `kv`.
pub fn pages_bytes(model: &Model, part: &StagePart, context_asked: u32, kv: KvFormat) -> Result<u64, StageError> {
    Ok(pages(&shape(model)?, part, kv).bytes(context(model, context_asked) as u64))
}

fn pages(sizes: &Shape, part: &StagePart, format: KvFormat) -> PageShape {
    PageShape { layers: part.layers.len() as usize, kv_heads: sizes.kv_heads, width: sizes.head_width, format }
}

/// Lines of all matrices of a stage.
pub(crate) fn weight_lines(model: &Model, sizes: &Shape, wanted: &[Wanted], part: &StagePart) -> usize {
    let is_matrix = |w: &&Wanted| w.entry.shape.len() > 1;
    let is_tied_head = |w: &Wanted| w.role == Role::Head && model.tied_embeddings && part.embedding;
    let lines = |w: &Wanted| {
        let k = w.entry.shape.last().copied().unwrap_or(0) as usize;
        let groups: usize = sections(sizes, w.role).into_iter().map(|rows| rows.div_ceil(LANES)).sum();
        held(w.entry.dtype).map_or(0, |held| groups * held.format.group_lines(k))
    };
    wanted.iter().filter(is_matrix).filter(|w| !is_tied_head(w)).map(lines).sum()
}
