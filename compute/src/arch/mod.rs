//! Model families the engine serves: what their files say of their shape, which tensors a part needs, what it takes.
//!
//! Served, from Hugging Face folders and GGUF files: the Llama family (Llama with its rope scaling, SmolLM2, stories),
//! SmolLM3, Qwen2, Qwen3 with and without experts, Mistral with its window, Gemma 3 and Phi-3. Not here: bytes of tensors
//! (`weights`) and arithmetic (`cpu`). Everything is a pure function of names, types and dimensions.

mod describe;
mod family;
mod from_config;
mod from_gguf;
mod memory;
mod pattern;
mod rope;
mod scaling;
mod shape;
mod tensors;
#[cfg(test)]
mod tests;

pub use describe::{DescribeError, Description, describe};
pub(crate) use family::{hub_names, norms_lack_one, of as family};
pub(crate) use memory::weight_lines;
pub use memory::{LayerBytes, StageMemory, layer_bytes, pages_bytes, stage_memory};
pub(crate) use pattern::{Angles, angles, kinds as angle_kinds, window};
pub(crate) use rope::{are_factors, frequencies};
pub(crate) use shape::context;
pub(crate) use shape::shape;
pub use shape::{ShapeError, is_served};
#[cfg(test)]
pub(crate) use tensors::all_roles;
pub(crate) use tensors::{
    LayerRole, Projection, ROPE_FACTORS, Role, Wanted, layer_dimensions, name as tensor_name, sections, wanted,
};
pub use tensors::{StageError, stage_tensors};

use cairn_protocol::layers::LayerRange;

/// A contiguous part of a model: what one stage holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StagePart {
    /// Its layers.
    pub layers: LayerRange,
    /// It begins with the token embedding.
    pub embedding: bool,
    /// It ends with the final norm and the head.
    pub head: bool,
}

impl StagePart {
    /// All of a model with that many layers.
    pub fn whole(layers: u32) -> Self {
        Self { layers: LayerRange { start: 0, end: layers }, embedding: true, head: true }
    }

    /// The part of `layers`, with the ends that belong to it.
    pub fn of(layers: LayerRange, all: u32) -> Self {
        Self { layers, embedding: layers.start == 0, head: layers.end == all }
    }
}
