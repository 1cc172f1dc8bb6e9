//! Texts to vectors, as the sentence-transformers library makes them: ids, hidden states, pooling, normalisation, each by
//! the repo's own files.
//!
//! | file | idea |
//! |---|---|
//! | [`recipe`] | how a model's hidden states become one vector, from `modules.json` and what it names |
//! | [`texts`] | text to ids, cut as the library cuts |
//! | [`pooling`] | hidden states to a vector |
//! | [`mod@bench`] | how fast that is here |
//!
//! Work is cut into passes of about [`PASS_TOKENS`] tokens, whole texts in their order, so that a generation on the same
//! engine waits for no longer than one of them. Invariant: a text's vector is the same bits alone and in any company.

pub mod bench;
mod pooling;
mod recipe;
mod texts;

pub use recipe::{Recipe, named_files};
pub use texts::{EncodeError, Encoded};

use super::{
    Served,
    encoder::Encoder,
    files::{Files, LoadError},
};
use crate::{
    Engine, TensorSource,
    engine::{Share, WorkError},
};
use std::{ops::Range, sync::Arc};

/// The row of the table of tasks.
pub const SERVED: Served = Served {
    name: "embed",
    tags: &["sentence-similarity", "feature-extraction"],
    does: "texts to vectors",
    memory: |files| Recipe::read(files).map(|recipe| recipe.memory()),
};

/// Tokens of one pass, about: enough for the matrix kernels, about a fiftieth of a second on two cores for a small model.
pub const PASS_TOKENS: usize = 256;

/// A loaded model.
pub struct Embedder {
    encoder: Encoder,
    recipe: Recipe,
    texts: texts::Texts,
    /// The engine's memory that it takes.
    _share: Option<Share>,
}

impl Embedder {
    /// Loads it. Reads a stranger's tokenizer through libraries that may panic: the caller catches.
    pub fn load(files: &Files, source: &mut dyn TensorSource, share: Option<Share>) -> Result<Embedder, LoadError> {
        let recipe = Recipe::read(files)?;
        let texts = texts::Texts::read(files, &recipe)?;
        let weights = recipe.weights_files(files);
        let tensors: Vec<_> = files.tensors.iter().filter(|t| weights.contains(&t.file)).cloned().collect();
        if tensors.is_empty() {
            return Err(LoadError::Missing(format!("{}model.safetensors", recipe.folder)));
        }
        let encoder = Encoder::load(recipe.shape, &tensors, source)?;
        Ok(Embedder { encoder, recipe, texts, _share: share })
    }

    /// Values of a vector.
    pub fn width(&self) -> usize {
        self.recipe.width()
    }

    /// How it makes vectors.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The ids of some texts, after the prompt of that name (none: the model's default, if it has one). Computes for long
    /// on long texts, and may panic in a library: the caller catches.
    pub fn encode(&self, texts: &[String], prompt: Option<&str>) -> Result<Encoded, EncodeError> {
        self.texts.encode(texts, self.recipe.prompt(prompt)?)
    }

    /// How to cut encoded texts into passes.
    pub fn passes(&self, encoded: &Encoded) -> Vec<Range<usize>> {
        passes(&encoded.ids)
    }

    /// Computes the vectors of one pass on the engine's thread, between other passes. `done` is called once, there, or at
    /// once on this thread when the engine does not take it.
    pub fn compute(
        self: &Arc<Self>,
        engine: &Engine,
        encoded: &Arc<Encoded>,
        pass: Range<usize>,
        done: impl FnOnce(Result<Vec<f32>, WorkError>) + Send + 'static,
    ) {
        let (embedder, encoded) = (self.clone(), encoded.clone());
        engine.work(
            move |hands| {
                let texts: Vec<&[u32]> = encoded.ids[pass].iter().map(Vec::as_slice).collect();
                let hidden = embedder.encoder.pass(hands, &texts);
                embedder.recipe.pool(&hidden, texts.iter().map(|ids| ids.len()))
            },
            done,
        );
    }
}

fn passes(ids: &[Vec<u32>]) -> Vec<Range<usize>> {
    let (mut passes, mut from, mut tokens) = (Vec::new(), 0, 0);
    for (at, text) in ids.iter().enumerate() {
        if at > from && tokens + text.len() > PASS_TOKENS {
            passes.push(from..at);
            (from, tokens) = (at, 0);
        }
        tokens += text.len();
    }
    if from < ids.len() {
        passes.push(from..ids.len());
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_hold_every_text_once_in_order_and_are_not_longer_than_a_long_text() {
        let texts: Vec<Vec<u32>> = [100, 100, 56, 1, 300, 3, 256, 1, 200].map(|n| vec![0; n]).to_vec();
        assert_eq!(passes(&texts), [0..3, 3..4, 4..5, 5..6, 6..7, 7..9]);
        assert!(passes(&[]).is_empty());
    }
}
