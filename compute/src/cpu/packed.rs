//! Quantised weights repacked for dot-product kernels.
//!
//! Rows are taken 16 at a time (a *group*), so that one 512-bit register holds one 32-bit lane per row. A group is one
//! contiguous record:
//!
//! ```text
//! scales  nb x 16 x f16                      (32 bytes a block)
//! mins    nb x 16 x f16                      (Q4_1 only)
//! pad to 64 bytes
//! quants  nb x 8 lines of 64 bytes (Q8_0)    line j = 16 rows x k[4j..4j+4]
//!         nb x 4 lines of 64 bytes (Q4_x)    low nibbles k[4j..], high k[16+4j..]
//! ```
//!
//! Quants are stored unsigned (Q8_0 with the sign bit flipped, i.e. plus 128; Q4 as they are, i.e. plus 8), since the
//! dot-product instruction multiplies unsigned by signed. The offset is taken back with the sum of the activation
//! block, which costs one broadcast a block and no weight memory. Rows past the last are zero: scale, min and all.

use super::lines::{LINE_BYTES, Line};
use half::f16;

/// Rows in a group.
pub const LANES: usize = 16;
/// Elements that share a scale.
pub const BLOCK: usize = 32;

/// How quants are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PackedFormat {
    /// Signed bytes times a scale.
    Q8_0,
    /// 4 bits minus 8, times a scale.
    Q4_0,
    /// 4 bits times a scale, plus a minimum.
    Q4_1,
}

impl PackedFormat {
    /// Bytes before the quants in a source block: scale, and minimum.
    pub fn head_bytes(self) -> usize {
        if self == Self::Q4_1 { 4 } else { 2 }
    }
    /// Bytes of a source block of 32 elements.
    pub fn block_bytes(self) -> usize {
        self.head_bytes() + if self == Self::Q8_0 { 32 } else { 16 }
    }
    /// Packed lines of quants in a block of 16 rows.
    pub fn block_lines(self) -> usize {
        if self == Self::Q8_0 { 8 } else { 4 }
    }
    /// Lines of scales (and mins) that open a group.
    pub fn scale_lines(self, blocks: usize) -> usize {
        (blocks * LANES * self.head_bytes()).div_ceil(LINE_BYTES)
    }
    /// Lines in a group of 16 rows of `blocks` blocks.
    pub fn group_lines(self, blocks: usize) -> usize {
        self.scale_lines(blocks) + blocks * self.block_lines()
    }
    /// What is taken from a stored quant to get its signed value.
    pub fn offset(self) -> i32 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
        }
    }
}

/// Groups of packed rows, borrowed from a store.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    /// How quants are stored.
    pub format: PackedFormat,
    /// Blocks in a row.
    pub blocks: usize,
    /// Lines of scales (and mins) that open a group.
    pub scale_lines: usize,
    /// Lines in a group.
    pub group_lines: usize,
    /// All groups.
    pub lines: &'a [Line],
}

impl<'a> Packed<'a> {
    /// A view of `lines` as groups of rows of `blocks` blocks.
    pub fn new(format: PackedFormat, blocks: usize, lines: &'a [Line]) -> Self {
        let (scale_lines, group_lines) = (format.scale_lines(blocks), format.group_lines(blocks));
        debug_assert!(lines.len().is_multiple_of(group_lines));
        Self { format, blocks, scale_lines, group_lines, lines }
    }

    /// Groups of 16 rows.
    pub fn groups(&self) -> usize {
        self.lines.len() / self.group_lines
    }

    /// The lines of group `g`.
    pub fn group(&self, g: usize) -> &'a [Line] {
        &self.lines[g * self.group_lines..][..self.group_lines]
    }

    /// Scale (`which == 0`) or minimum (`which == 1`) of a block of a row.
    pub fn scale(&self, row: usize, block: usize, which: usize) -> f32 {
        let at = (which * self.blocks + block) * 32 + row % LANES * 2;
        let line = &self.group(row / LANES)[at / LINE_BYTES].0;
        f16::from_le_bytes([line[at % LINE_BYTES], line[at % LINE_BYTES + 1]]).to_f32()
    }

    /// The unsigned quant at `i` of a block of a row.
    pub fn quant(&self, row: usize, block: usize, i: usize) -> u8 {
        let j = if self.format == PackedFormat::Q8_0 { i } else { i % 16 };
        let line = self.scale_lines + block * self.format.block_lines() + j / 4;
        let q = self.group(row / LANES)[line].0[row % LANES * 4 + j % 4];
        match self.format {
            PackedFormat::Q8_0 => q,
            _ if i < 16 => q & 15,
            _ => q >> 4,
        }
    }

    /// One row as F32 (the embedding look-up), handed out element by element.
    pub fn row(&self, row: usize, mut put: impl FnMut(usize, f32)) {
        for b in 0..self.blocks {
            let d = self.scale(row, b, 0);
            let min = if self.format == PackedFormat::Q4_1 { self.scale(row, b, 1) } else { 0.0 };
            for i in 0..BLOCK {
                let q = self.quant(row, b, i) as i32 - self.format.offset();
                put(b * BLOCK + i, d * q as f32 + min);
            }
        }
    }
}

/// Writes one source row (its blocks, as in a file) into lane `lane` of a zeroed group.
pub fn fill_row(format: PackedFormat, blocks: usize, group: &mut [Line], lane: usize, row: &[u8]) {
    let scale_lines = format.scale_lines(blocks);
    for (b, source) in row.chunks_exact(format.block_bytes()).enumerate().take(blocks) {
        let (head, quants) = source.split_at(format.head_bytes());
        for (which, half) in head.chunks_exact(2).enumerate() {
            let at = (which * blocks + b) * 32 + lane * 2;
            group[at / LINE_BYTES].0[at % LINE_BYTES..][..2].copy_from_slice(half);
        }
        let lines = &mut group[scale_lines + b * format.block_lines()..];
        for (word, line) in quants.as_chunks::<4>().0.iter().zip(lines) {
            let flipped = if format == PackedFormat::Q8_0 { word.map(|q| q ^ 0x80) } else { *word };
            line.0[lane * 4..][..4].copy_from_slice(&flipped);
        }
    }
}
