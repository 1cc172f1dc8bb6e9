//! The CPU engine: packed and plain weights, kernels for each instruction-set level, threads, and the forward pass.
//!
//! It keeps the reproducible-arithmetic law: a position's values are the same bits whatever the chunking of the prompt,
//! the batch around it, the split into stages, the number of threads, and (beyond what is promised) the level.
//! It knows nothing of files, names or sessions: `weights` fills it, `stage` drives it.

pub mod acts;
pub mod adapters;
pub mod cache;
pub mod cores;
mod feed_forward;
pub mod kernels;
pub mod kv;
pub mod level;
pub mod lines;
pub mod matrix;
mod mix;
pub mod model;
pub mod packed;
pub mod pages;
pub mod pass;
pub mod plain;
pub mod pool;
pub mod rope;
pub mod route;
pub mod work;
