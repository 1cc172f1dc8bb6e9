//! Adapters: small additions to a model, chosen by each request (LoRA, Hu et al. 2021), as PEFT stores them.
//!
//! ```text
//! adapter_config.json ─ describe ─▶ metadata (signed) ─ AdapterSpec ─ fit(model, tensors, part) ─▶ Fitted ─ load ─▶ engine
//! ```
//!
//! An adapter's folder is described when it is published: what it says of itself becomes metadata of the signed manifest, and
//! that alone is what stages compute by. What would change the computation and is not served is refused with its name.
//! Not here: arithmetic (`cpu::adapters`) and where bytes come from. Everything but `load` is a pure function of names,
//! numbers and dimensions.

mod describe;
mod files;
mod fit;
mod load;
#[cfg(test)]
pub(crate) mod tests;

pub use describe::{AdapterSpec, describe};
pub use files::{AdapterFiles, AdapterFilesError};
pub use fit::{AdapterError, Fitted, fit};
pub(crate) use load::load;
