//! Unquantised weights (F32, F16, BF16), kept in their own width and computed in F32.
//!
//! Rows are taken 16 at a time, as in `packed`: a group is `[k][16]` elements, padded to whole lines, so that one
//! register holds one element of each of 16 rows and every sum runs over k in order, in its own lane.

use super::{
    lines::{LINE_BYTES, Line},
    packed::LANES,
};
use half::{bf16, f16};

/// Width of an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PlainFormat {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE half.
    F16,
    /// 16 bits, the upper half of an F32.
    Bf16,
}

impl PlainFormat {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
    /// Lines in a group of 16 rows of `k` elements.
    pub fn group_lines(self, k: usize) -> usize {
        (k * LANES * self.bytes()).div_ceil(LINE_BYTES)
    }
    /// The element that begins `bytes`, as F32.
    pub fn value(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }
}

/// Groups of plain rows, borrowed from a store.
#[derive(Clone, Copy)]
pub struct Plain<'a> {
    /// Width of an element.
    pub format: PlainFormat,
    /// Elements in a row.
    pub k: usize,
    /// Lines in a group.
    pub group_lines: usize,
    /// All groups.
    pub lines: &'a [Line],
}

impl<'a> Plain<'a> {
    /// A view of `lines` as groups of rows of `k` elements.
    pub fn new(format: PlainFormat, k: usize, lines: &'a [Line]) -> Self {
        let group_lines = format.group_lines(k);
        debug_assert!(lines.len().is_multiple_of(group_lines));
        Self { format, k, group_lines, lines }
    }

    /// Groups of 16 rows.
    pub fn groups(&self) -> usize {
        self.lines.len() / self.group_lines
    }

    /// The lines of group `g`.
    pub fn group(&self, g: usize) -> &'a [Line] {
        &self.lines[g * self.group_lines..][..self.group_lines]
    }

    /// One row as F32, handed out element by element.
    pub fn row(&self, row: usize, mut put: impl FnMut(usize, f32)) {
        for i in 0..self.k {
            put(i, self.at(row, i));
        }
    }

    /// Element `i` of a row.
    pub fn at(&self, row: usize, i: usize) -> f32 {
        let at = (i * LANES + row % LANES) * self.format.bytes();
        self.format.value(&self.group(row / LANES)[at / LINE_BYTES].0[at % LINE_BYTES..])
    }
}

/// Writes one source row (little-endian elements, as in a file) into lane `lane` of a zeroed group.
pub fn fill_row(format: PlainFormat, group: &mut [Line], lane: usize, row: &[u8]) {
    let size = format.bytes();
    for (i, element) in row.chunks_exact(size).enumerate() {
        let at = (i * LANES + lane) * size;
        group[at / LINE_BYTES].0[at % LINE_BYTES..][..size].copy_from_slice(element);
    }
}
