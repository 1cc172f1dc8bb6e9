//! What a task is loaded from: a revision's small files and the index of its tensors. Not their bytes, which come from a
//! [`crate::TensorSource`]. Invariant: nothing here was checked beyond its size; who reads a file says what is wrong with it.

use cairn_protocol::manifest::TensorEntry;
use std::collections::BTreeMap;

use crate::{SourceError, text::TokenizerError};

/// Files at the root that tell what a model is. `modules.json` may name more ([`super::embed::named_files`]), and a
/// tokenizer is read when the model is loaded.
pub const SMALL_FILES: [&str; 6] = [
    "README.md",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
];

/// A model's files as a task reads them.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Small files by their path in the revision.
    pub small: BTreeMap<String, Vec<u8>>,
    /// The tensors of the revision; `file` counts in [`Files::listing`].
    pub tensors: Vec<TensorEntry>,
    /// Path and size of every file, in the manifest's order.
    pub listing: Vec<(String, u64)>,
}

impl Files {
    /// A small file, if it is there.
    pub fn small(&self, path: &str) -> Option<&[u8]> {
        self.small.get(path).map(Vec::as_slice)
    }

    /// The bytes of a file, be it small or not; 0 if it is not there.
    pub fn size(&self, path: &str) -> u64 {
        self.listing.iter().find(|(listed, _)| listed == path).map_or(0, |(_, size)| *size)
    }

    /// What they say the model is for.
    pub fn card(&self) -> super::Card {
        let has_modules = self.small("modules.json").is_some();
        super::Card::read(self.small("README.md"), self.small("config.json"), has_modules)
    }
}

/// Why a model can't be loaded for its task.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that is needed is not in the revision.
    #[error("it has no {0}")]
    Missing(String),
    /// A file is not what its format says.
    #[error("{file}: {why}")]
    Malformed {
        /// Which.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// It can be understood and is not computed.
    #[error("{what} {name:?} is not served (served: {served})")]
    Unserved {
        /// Which part.
        what: &'static str,
        /// What it is.
        name: String,
        /// What would be.
        served: &'static str,
    },
    /// A tensor is missing, or has other dimensions than the configuration says.
    #[error("tensor {name}: {why}")]
    Tensor {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A tensor's bytes could not be had.
    #[error("tensor {name} could not be read: {error}")]
    Source {
        /// Which.
        name: String,
        /// Why.
        error: SourceError,
    },
    /// Its tokenizer can't be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The system has not that much memory.
    #[error("{0} bytes of memory can't be had")]
    Memory(u64),
}

impl LoadError {
    pub(super) fn malformed(file: &str, why: impl ToString) -> LoadError {
        LoadError::Malformed { file: file.to_owned(), why: why.to_string() }
    }

    pub(super) fn tensor(name: &str, why: impl Into<String>) -> LoadError {
        LoadError::Tensor { name: name.to_owned(), why: why.into() }
    }
}
