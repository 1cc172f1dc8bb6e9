//! Transformers that read a whole text at once: BERT and its kin, on the engine's own kernels.
//!
//! ```text
//! ids ─ embeddings ─ norm ─ layers × (attention, feed-forward; each added and normalised) ─ one hidden state a token
//! ```
//!
//! Several texts go through one pass side by side, their tokens one after the other without padding: products see one
//! long row of tokens, and attention walks each text by itself. So nothing is computed for nobody, and a text's values
//! are the same bits whatever stands beside it, on any number of threads, at any instruction-set level.
//!
//! Not here: text to ids and hidden states to a vector ([`super::embed`]). Architectures: Devlin et al. 2018 (BERT), Liu
//! et al. 2019 (RoBERTa, and XLM-R by Conneau et al. 2020), Sanh et al. 2019 (DistilBERT), Song et al. 2020 (MPNet).

mod attend;
mod lanes;
mod names;
mod pass;
mod relative;
mod shape;
#[cfg(test)]
mod tests;
mod weights;

pub use shape::Shape;

use crate::{TensorSource, stage::Hands};
use cairn_protocol::manifest::TensorEntry;

use super::LoadError;

/// A loaded encoder.
pub struct Encoder {
    shape: Shape,
    weights: weights::Weights,
}

impl Encoder {
    /// Loads the weights. Tensors are looked for under the names that the family's checkpoints have, with or without
    /// the prefix of a model with a head.
    pub fn load(shape: Shape, tensors: &[TensorEntry], source: &mut dyn TensorSource) -> Result<Encoder, LoadError> {
        let weights = weights::load(&shape, tensors, source)?;
        Ok(Encoder { shape, weights })
    }

    /// The hidden states of some texts' tokens, `[token][width]`, texts one after the other. Ids are within the
    /// vocabulary, and no text is empty or longer than the positions.
    pub fn pass(&self, hands: &Hands, texts: &[&[u32]]) -> Hidden {
        pass::pass(self, hands, texts)
    }
}

/// Hidden states, `[token][stride]`, of which `width` values count.
pub struct Hidden {
    /// The values.
    pub values: Vec<f32>,
    /// From one token to the next.
    pub stride: usize,
    /// Values of a token.
    pub width: usize,
}
