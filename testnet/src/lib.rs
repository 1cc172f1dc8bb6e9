//! Meshes of real `cairn` processes for tests: started, asked, killed, restarted.
//!
//! A test names the program (`env!("CARGO_BIN_EXE_cairn")`), so that cargo builds it first. Not here: assertions about
//! speed, and sleeping for luck: everything waits for an event with a deadline.

mod encoder;
mod generation;
mod hosts;
mod memory;
mod metrics;
mod models;
mod net;

pub use encoder::{ENCODER_WIDTH, encoder_model};
pub use generation::{Generation, greedy};
pub use hosts::Hosts;
pub use memory::Memory;
pub use metrics::metric;
pub use models::{full_precision_model, minilm_model, random_adapter, real_model, tiny_model};
pub use net::{PATIENCE, Testnet, publish, pull, wait_until};
