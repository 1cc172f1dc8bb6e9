//! Training with candle: differentiable models, corpora, loops.
//!
//! What is here makes weights; it never serves them (that is the engine's work). Its invariant: every run is a
//! function of its text and its seed, up to the order in which the processor adds floating-point numbers.

pub mod corpus;
pub mod llama;
pub mod pretrain;

pub use pretrain::{PretrainOptions, Pretrained, Report, pretrain};
