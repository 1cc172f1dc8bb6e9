//! What the readers of safetensors and GGUF headers have in common: a tensor's place and what can be wrong. Not a format.
//! Invariant: tensors that passed [`check_tensors`] lie inside their file, share no byte and have different names.

use std::collections::HashSet;

use crate::dtype::{Dtype, elements};
use crate::limits::{TENSOR_DIMENSIONS_MAX, TENSOR_NAME_BYTES_MAX};

/// Where a tensor lies in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// From the file's first byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Why a header can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The bytes end before the header does: call again with this many of the file's first bytes (never more than it has).
    #[error("the header goes on: {0} bytes of the file are needed")]
    NeedMore(u64),
    /// Another format.
    #[error("not a {0} file")]
    Format(&'static str),
    /// A version or variant that is not read here.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The header claims more than is accepted.
    #[error("the header claims {got} {what}, at most {max} are accepted")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The claim.
        got: u64,
        /// The limit.
        max: u64,
    },
    /// The file ends before its header does.
    #[error("the file ends inside its header")]
    Truncated,
    /// The header contradicts the format.
    #[error("the header is malformed: {0}")]
    Malformed(String),
    /// A tensor that can't be.
    #[error("tensor `{name}`: {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl HeaderError {
    pub(crate) fn tensor(name: &str, what: &'static str) -> Self {
        Self::Tensor { name: name.chars().take(100).collect(), what }
    }

    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed(what.into())
    }
}

/// Refuses claims above a limit before anything is allocated for them.
pub(crate) fn within(what: &'static str, got: u64, max: u64) -> Result<(), HeaderError> {
    match got > max {
        true => Err(HeaderError::TooLarge { what, got, max }),
        false => Ok(()),
    }
}

/// A name and a shape that any tensor may have; the number of its elements.
pub(crate) fn check_shape(name: &str, shape: &[u64]) -> Result<u64, HeaderError> {
    if name.is_empty() || name.len() > TENSOR_NAME_BYTES_MAX {
        return Err(HeaderError::tensor(name, "its name is empty or too long"));
    }
    if shape.len() > TENSOR_DIMENSIONS_MAX {
        return Err(HeaderError::tensor(name, "it has too many dimensions"));
    }
    elements(shape).ok_or_else(|| HeaderError::tensor(name, "its shape overflows"))
}

/// Sorts by place, and refuses what lies outside of the file, overlaps, or has another's name.
pub(crate) fn check_tensors(
    tensors: &mut [HeaderTensor],
    header_bytes: u64,
    file_size: u64,
) -> Result<(), HeaderError> {
    let mut names = HashSet::with_capacity(tensors.len());
    for tensor in tensors.iter() {
        if !names.insert(tensor.name.as_str()) {
            return Err(HeaderError::tensor(&tensor.name, "its name occurs twice"));
        }
        let end = tensor.offset.checked_add(tensor.length);
        if tensor.offset < header_bytes || end.is_none_or(|end| end > file_size) {
            return Err(HeaderError::tensor(&tensor.name, "it lies outside of the file"));
        }
    }
    drop(names);
    tensors.sort_by(|a, b| (a.offset, a.length, &a.name).cmp(&(b.offset, b.length, &b.name)));
    for pair in tensors.windows(2) {
        if pair[0].offset + pair[0].length > pair[1].offset {
            return Err(HeaderError::tensor(&pair[1].name, "it overlaps another"));
        }
    }
    Ok(())
}
