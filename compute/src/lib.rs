//! What a Cairn node computes: one generation's stages, where they go, and text to tokens and back.
//!
//! Not a network and not a disk: a model reaches this crate as a shape and a source of tensor bytes. No async runtime; the engine's threads are its own.

pub mod adapter;
pub mod arch;
pub mod bench;
pub mod choose;
mod cpu;
pub mod engine;
pub mod files;
pub mod full_precision;
pub mod measure;
pub mod plan;
mod quant;
pub mod quantise;
#[cfg(test)]
mod references;
pub mod sample;
mod saved;
pub mod session;
mod stage;
pub mod tasks;
pub mod text;
#[cfg(test)]
mod tiny;
pub mod train;
mod weights;

pub use arch::StagePart;
pub use cpu::{
    kernels::KV_TILE as PAGE_POSITIONS,
    kv::{KvFormat, UnknownKvFormat},
};
pub use engine::{AdapterHandle, Engine, EngineConfig, LoadError, LoadOptions, LoadReport, StageHandle, WantedAdapter};
pub use saved::Saves;
pub use stage::{PageKey, StepError, StepInput, StepOutput};
pub use weights::{Conversion, SourceError, TensorSource, WeightsError};
