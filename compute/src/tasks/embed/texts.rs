//! Texts to ids as an encoder reads them: stripped, after a prompt, between the special tokens, cut at the end.
//!
//! The `tokenizers` crate does it, told by the model's `tokenizer.json`, which was looked through for what the crate takes
//! on trust. Padding is never added. Invariant: every text has at least one id, at most the recipe's number, and all are
//! within the vocabulary.

use tokenizers::{
    Tokenizer, TruncationDirection,
    utils::truncation::{TruncationParams, TruncationStrategy},
};

use super::{
    super::files::{Files, LoadError},
    Recipe,
};
use crate::text::checked_tokenizer;

/// Some texts' ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Of each text.
    pub ids: Vec<Vec<u32>>,
    /// Texts whose end was cut off.
    pub truncated: u32,
}

impl Encoded {
    /// Tokens of all texts, the special ones too.
    pub fn tokens(&self) -> u64 {
        self.ids.iter().map(|ids| ids.len() as u64).sum()
    }
}

/// Why texts have no ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The tokenizer failed on a text.
    #[error("the tokenizer can't encode text {text}: {why}")]
    Tokenizer {
        /// Which.
        text: usize,
        /// What it says.
        why: String,
    },
    /// It makes ids that the model has not, or none.
    #[error("the tokenizer gives text {text} ids that the model has not")]
    Foreign {
        /// Which.
        text: usize,
    },
    /// No such prompt.
    #[error("the model has no prompt {name:?} (it has: {known})")]
    Prompt {
        /// Asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

/// A model's way with texts.
pub struct Texts {
    tokenizer: Tokenizer,
    tokens_max: usize,
    vocabulary: usize,
    lowers_case: bool,
}

impl Texts {
    /// From `tokenizer.json`.
    pub fn read(files: &Files, recipe: &Recipe) -> Result<Texts, LoadError> {
        let path = recipe.tokenizer_file();
        let bytes = files.small(&path).ok_or_else(|| LoadError::Missing(path.clone()))?;
        let mut tokenizer = checked_tokenizer(bytes)?;
        tokenizer.with_padding(None);
        let max_length = recipe.tokens_max;
        let (strategy, direction, stride) = (TruncationStrategy::LongestFirst, TruncationDirection::Right, 0);
        let truncation = TruncationParams { max_length, strategy, direction, stride };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| LoadError::malformed(&path, error))?;
        let (tokens_max, lowers_case) = (recipe.tokens_max, recipe.lowers_case);
        Ok(Texts { tokenizer, tokens_max, vocabulary: recipe.shape.vocabulary, lowers_case })
    }

    /// The ids of texts after a prompt.
    pub fn encode(&self, texts: &[String], prompt: &str) -> Result<Encoded, EncodeError> {
        let mut encoded = Encoded::default();
        for (at, text) in texts.iter().enumerate() {
            let text = format!("{prompt}{text}");
            let text = if self.lowers_case { text.trim().to_lowercase() } else { text.trim().to_owned() };
            let failed = |why: tokenizers::Error| EncodeError::Tokenizer { text: at, why: why.to_string() };
            let encoding = self.tokenizer.encode_fast(text, true).map_err(failed)?;
            let ids = encoding.get_ids().to_vec();
            let is_known = |id: &u32| (*id as usize) < self.vocabulary;
            if ids.is_empty() || ids.len() > self.tokens_max || !ids.iter().all(is_known) {
                return Err(EncodeError::Foreign { text: at });
            }
            encoded.truncated += u32::from(!encoding.get_overflowing().is_empty());
            encoded.ids.push(ids);
        }
        Ok(encoded)
    }
}
