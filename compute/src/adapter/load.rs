//! From an adapter's tensors to what the engine computes with.
//!
//! Weights keep their own width. B's rows for queries and keys are put in the order of neighbouring rotary pairs, as the
//! base's are: PEFT trains on the Hub's models, whose pairs are half-split, whatever files the base was loaded from.

use super::{
    AdapterSpec,
    fit::{AdapterError, Fitted, format, place},
};
use crate::{
    arch::{LayerRole, StagePart},
    cpu::{
        adapters::{Adapter, LayerAdapter, Part},
        lines::{LINE_BYTES, Store},
        matrix::{Format, Matrix},
        packed::LANES,
    },
    weights::{TensorSource, WeightsError, half_split_row},
};
use cairn_protocol::manifest::TensorEntry;

/// Reads the tensors of a part.
pub(crate) fn load(
    fitted: &Fitted,
    spec: &AdapterSpec,
    part: &StagePart,
    source: &mut dyn TensorSource,
) -> Result<Adapter, AdapterError> {
    let lines = fitted.lines();
    let bytes = (lines * LINE_BYTES) as u64;
    let mut store = Store::with_room(lines).ok_or(WeightsError::Memory { bytes })?;
    let mut layers: Vec<LayerAdapter> = part.layers.iter().map(|_| LayerAdapter::default()).collect();
    for pair in &fitted.pairs {
        let rotates = matches!(pair.role, LayerRole::Query | LayerRole::Key);
        let widths = (fitted.shape.head_width, fitted.shape.rotary_width);
        let down = matrix(&mut store, pair.a, source, |row| row)?;
        let up = matrix(&mut store, pair.b, source, |row| if rotates { half_split_row(row, widths) } else { row })?;
        let (site, panel, first) = place(&fitted.shape, pair.role);
        let scale = spec.scale(&pair.module, pair.rank)?;
        let layer = &mut layers[(pair.layer - part.layers.start) as usize];
        layer.push(site, Part { panel, first, down, up, scale });
    }
    Ok(Adapter { store, layers })
}

/// A matrix whose row `row` is stored at `from(row)`.
fn matrix(
    store: &mut Store,
    entry: &TensorEntry,
    source: &mut dyn TensorSource,
    from: impl Fn(usize) -> usize,
) -> Result<Matrix, AdapterError> {
    let name = || entry.name.clone();
    let format = format(entry).ok_or_else(|| AdapterError::Type { name: name(), dtype: entry.dtype })?;
    let bytes = source.tensor(entry).map_err(|error| WeightsError::Source { name: name(), error })?;
    if bytes.len() as u64 != entry.length {
        return Err(WeightsError::Length { name: name(), got: bytes.len(), want: entry.length }.into());
    }
    let (rows, k) = (entry.shape[0] as usize, entry.shape[1] as usize);
    let matrix = Matrix::place(store, Format::Plain(format), rows.div_ceil(LANES), k);
    let row_bytes = k * format.bytes();
    for row in 0..rows {
        matrix.fill(store, row / LANES, row % LANES, &bytes[from(row) * row_bytes..][..row_bytes]);
    }
    Ok(matrix)
}
