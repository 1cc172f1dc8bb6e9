//! Quantising while a stage loads, so that a model fits a node whose memory its own weights would not.
//!
//! The engine is shown a model whose matrices are of the target type already ([`as_loaded`]), and a source that makes
//! them so when they are asked for ([`Quantising`]): memory, plans and loading are those of any quantised model, and every node
//! that is asked for the same type computes the same bits. Nothing is written.

use super::{Existing, Target, becomes, pieces, turned};
use crate::{
    saved::Saves,
    weights::{SourceError, TensorSource},
};
use cairn_protocol::{dtype::elements, manifest::TensorEntry};
use std::borrow::Cow;

/// A model's tensors as they are to be held: those that would take more bits than `target` have its type and its bytes, and the
/// place of the stored ones.
pub fn as_loaded(tensors: &[TensorEntry], target: Option<Target>) -> Cow<'_, [TensorEntry]> {
    match target {
        None => Cow::Borrowed(tensors),
        Some(target) => tensors.iter().map(|entry| one_as_loaded(entry, target)).collect(),
    }
}

fn one_as_loaded(entry: &TensorEntry, target: Target) -> TensorEntry {
    let dtype = becomes(&entry.name, entry, target, Existing::Keep);
    // Vectors stay as they are stored: they weigh nothing.
    if dtype.block_elements() == 1 || dtype == entry.dtype {
        return entry.clone();
    }
    let length = elements(&entry.shape).and_then(|n| dtype.bytes_for(n)).unwrap_or(entry.length);
    TensorEntry { dtype, length, ..entry.clone() }
}

/// A source of tensors as [`as_loaded`] lists them, made of those that another has.
pub struct Quantising<S> {
    inner: S,
    /// As stored.
    stored: Vec<TensorEntry>,
}

impl<S: TensorSource> Quantising<S> {
    /// `stored` are the tensors that `inner` reads.
    pub fn new(inner: S, stored: Vec<TensorEntry>) -> Self {
        Self { inner, stored }
    }
}

impl<S: TensorSource> TensorSource for Quantising<S> {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        let is_it = |stored: &&TensorEntry| stored.name == entry.name && stored.offset == entry.offset;
        let stored = self.stored.iter().find(is_it).cloned();
        let stored = stored.ok_or_else(|| SourceError(format!("no tensor {} is stored", entry.name)))?;
        if stored.dtype == entry.dtype {
            return self.inner.tensor(&stored);
        }
        let mut out = Vec::with_capacity(entry.length as usize);
        for piece in pieces(&stored, 1) {
            let bytes = self.inner.tensor(&piece)?;
            let rows = piece.shape.first().copied().unwrap_or(1).max(1) as usize;
            let made = turned(&entry.name, stored.dtype, entry.dtype, rows, &bytes);
            out.extend(made.map_err(|error| SourceError(error.to_string()))?);
        }
        Ok(out)
    }

    fn saves(&mut self) -> Option<&mut dyn Saves> {
        self.inner.saves()
    }
}
