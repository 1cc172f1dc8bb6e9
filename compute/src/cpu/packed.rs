//! Quantised weights repacked for dot-product kernels.
//!
//! Rows are taken 16 at a time (a *group*), so that one 512-bit register holds one 32-bit lane per row. Elements are taken
//! 32 at a time (a *block*). A group is one contiguous record, its scales before its quants:
//!
//! ```text
//! Q8_0 Q4_x Q5_x IQ4_NL   scales  nb x 16 x f16              K types   d       nb/8 x 16 x f16
//!                         mins    nb x 16 x f16  (x_1)                 -dmin   nb/8 x 16 x f16  (Q4_K, Q5_K)
//!                                                                      scales  nb x 16 x i8     (Q6_K: 2 nb)
//!                                                                      mins    nb x 16 x i8     (Q4_K, Q5_K)
//! pad to 64 bytes
//! quants  nb blocks of as many lines of 64 bytes as an element has bits
//! ```
//!
//! *Word* j of a block holds elements 4j..4j+4 of each of 16 rows, a byte an element. With eight bits, line j is word j.
//! With fewer, line i of the first four holds the low nibbles of word 2i and, above them, those of word 2i + 1. Fifth bits fill
//! one line more (bit j of each byte belongs to word j), fifth and sixth bits two (bits 2i and 2i + 1 of line m to
//! word 4m + i). So every word comes out of its lines by a shift and a mask, and nothing takes more room than in the file
//! (but the scales of Q4_K and Q5_K: a byte each instead of six bits).
//!
//! Quants are stored unsigned, since the dot-product instruction multiplies unsigned by signed. The offset is taken
//! back with the sum of the activation block, which costs one broadcast a block and no weight memory. A scale times its
//! super-block's is exact in F32 (11 bits times 7). Rows past the last are zero: scale, min and all.

use super::lines::{LINE_BYTES, Line};
use crate::quant::{self, IQ4_NL};
use cairn_protocol::dtype::Dtype;
use half::f16;

/// Rows in a group.
pub const LANES: usize = 16;
/// Elements of a block.
pub const BLOCK: usize = 32;
/// Blocks under one `d` of the K types.
pub const SUPER_BLOCKS: usize = 8;

/// How quants are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(non_camel_case_types)]
pub enum PackedFormat {
    /// Signed bytes times a scale.
    Q8_0,
    /// 4 bits minus 8, times a scale.
    Q4_0,
    /// 4 bits times a scale, plus a minimum.
    Q4_1,
    /// 5 bits minus 16, times a scale.
    Q5_0,
    /// 5 bits times a scale, plus a minimum.
    Q5_1,
    /// 4 bits that choose of a table, times a scale.
    IQ4_NL,
    /// 4 bits with scales and minima in two steps.
    Q4_K,
    /// 5 bits with scales and minima in two steps.
    Q5_K,
    /// 6 bits minus 32, with a scale in two steps for each 16 elements.
    Q6_K,
}

/// How the quants of a block lie in its lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quants {
    /// Nibbles.
    Four,
    /// Nibbles that choose of [`TABLE`].
    Table,
    /// Nibbles and fifth bits.
    Five,
    /// Nibbles and the two bits above; two scales a block.
    Six,
    /// Bytes.
    Eight,
}

/// What IQ4_NL's nibbles stand for, made unsigned by adding 128.
pub const TABLE: [u8; 16] = {
    let (mut table, mut i) = ([0; 16], 0);
    while i < 16 {
        table[i] = (IQ4_NL[i] as u8) ^ 0x80;
        i += 1;
    }
    table
};

impl PackedFormat {
    /// Every format.
    pub const ALL: [Self; 9] =
        [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::IQ4_NL, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// The type in files whose blocks hold the same.
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::Q8_0 => Dtype::Q8_0,
            Self::Q4_0 => Dtype::Q4_0,
            Self::Q4_1 => Dtype::Q4_1,
            Self::Q5_0 => Dtype::Q5_0,
            Self::Q5_1 => Dtype::Q5_1,
            Self::IQ4_NL => Dtype::IQ4_NL,
            Self::Q4_K => Dtype::Q4_K,
            Self::Q5_K => Dtype::Q5_K,
            Self::Q6_K => Dtype::Q6_K,
        }
    }

    /// How its quants lie.
    pub const fn quants(self) -> Quants {
        match self {
            Self::Q8_0 => Quants::Eight,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => Quants::Four,
            Self::IQ4_NL => Quants::Table,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => Quants::Five,
            Self::Q6_K => Quants::Six,
        }
    }

    /// True when scales are a super-block's times a small one.
    pub const fn is_super(self) -> bool {
        matches!(self, Self::Q4_K | Self::Q5_K | Self::Q6_K)
    }

    /// True when a minimum is added.
    pub const fn has_min(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K)
    }

    /// Scales of a block.
    pub const fn scales_a_block(self) -> usize {
        if matches!(self, Self::Q6_K) { 2 } else { 1 }
    }

    /// What is taken from a stored quant to get its signed value.
    pub const fn offset(self) -> i32 {
        match self {
            Self::Q8_0 | Self::IQ4_NL => 128,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => 0,
        }
    }

    /// Packed lines of quants in a block of 16 rows: the bits of an element.
    pub const fn block_lines(self) -> usize {
        match self.quants() {
            Quants::Four | Quants::Table => 4,
            Quants::Five => 5,
            Quants::Six => 6,
            Quants::Eight => 8,
        }
    }

    /// Lines of scales (and mins) that open a group.
    pub fn scale_lines(self, blocks: usize) -> usize {
        Scales::of(self, blocks).end.div_ceil(LINE_BYTES)
    }

    /// Lines in a group of 16 rows of `blocks` blocks.
    pub fn group_lines(self, blocks: usize) -> usize {
        self.scale_lines(blocks) + blocks * self.block_lines()
    }
}

/// Where the parts of a group's opening begin, in bytes. The scales (of super-blocks, where there are) begin it.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// Mins, or super-blocks' mins.
    pub mins: usize,
    /// Small scales.
    pub small: usize,
    /// Small mins.
    pub small_mins: usize,
    /// One after the last byte.
    pub end: usize,
}

impl Scales {
    /// Of a group of rows of `blocks` blocks.
    pub fn of(format: PackedFormat, blocks: usize) -> Self {
        let is_super = format.is_super();
        let halves = if is_super { blocks.div_ceil(SUPER_BLOCKS) } else { blocks } * LANES * 2;
        let mins = halves;
        let small = mins + if format.has_min() { halves } else { 0 };
        let bytes = |is_there: bool, each: usize| if is_super && is_there { blocks * each * LANES } else { 0 };
        let small_mins = small + bytes(true, format.scales_a_block());
        Self { mins, small, small_mins, end: small_mins + bytes(format.has_min(), 1) }
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

    /// The scale of a block of a row, or of its first or second half where it has two.
    pub fn scale(&self, row: usize, block: usize, half: usize) -> f32 {
        if !self.format.is_super() {
            return self.half(row, block * LANES * 2);
        }
        let at = Scales::of(self.format, self.blocks).small + (block * self.format.scales_a_block() + half) * LANES;
        self.half(row, block / SUPER_BLOCKS * LANES * 2) * self.small(row, at)
    }

    /// What is added to each element of a block of a row; zero in formats without.
    pub fn min(&self, row: usize, block: usize) -> f32 {
        let at = Scales::of(self.format, self.blocks);
        match (self.format.has_min(), self.format.is_super()) {
            (false, _) => 0.0,
            (true, false) => self.half(row, at.mins + block * LANES * 2),
            (true, true) => {
                let least = self.half(row, at.mins + block / SUPER_BLOCKS * LANES * 2);
                least * self.small(row, at.small_mins + block * LANES)
            }
        }
    }

    fn half(&self, row: usize, at: usize) -> f32 {
        let at = at + row % LANES * 2;
        let line = &self.group(row / LANES)[at / LINE_BYTES].0;
        f16::from_le_bytes([line[at % LINE_BYTES], line[at % LINE_BYTES + 1]]).to_f32()
    }

    fn small(&self, row: usize, at: usize) -> f32 {
        let at = at + row % LANES;
        self.group(row / LANES)[at / LINE_BYTES].0[at % LINE_BYTES] as i8 as f32
    }

    /// The unsigned quant at `i` of a block of a row.
    pub fn quant(&self, row: usize, block: usize, i: usize) -> u8 {
        let lines = &self.group(row / LANES)[self.scale_lines + block * self.format.block_lines()..];
        let byte = |line: usize| lines[line].0[row % LANES * 4 + i % 4];
        let word = i / 4;
        if self.format.quants() == Quants::Eight {
            return byte(word);
        }
        let nibble = byte(word / 2) >> (word % 2 * 4) & 15;
        match self.format.quants() {
            Quants::Table => TABLE[nibble as usize],
            Quants::Five => nibble | (byte(4) >> word & 1) << 4,
            Quants::Six => nibble | (byte(4 + word / 4) >> (word % 4 * 2) & 3) << 4,
            Quants::Four | Quants::Eight => nibble,
        }
    }

    /// One row as F32 (the embedding look-up), handed out element by element.
    pub fn row(&self, row: usize, mut put: impl FnMut(usize, f32)) {
        let elements_a_scale = BLOCK / self.format.scales_a_block();
        for b in 0..self.blocks {
            let min = self.min(row, b);
            for i in 0..BLOCK {
                let q = self.quant(row, b, i) as i32 - self.format.offset();
                put(b * BLOCK + i, self.scale(row, b, i / elements_a_scale) * q as f32 + min);
            }
        }
    }
}

/// Writes one source row (its blocks, as in a file) into lane `lane` of a zeroed group.
pub fn fill_row(format: PackedFormat, blocks: usize, group: &mut [Line], lane: usize, row: &[u8]) {
    let (dtype, scales) = (format.dtype(), Scales::of(format, blocks));
    let (head, lines) = group.split_at_mut(format.scale_lines(blocks));
    let mut head = Lane { lines: head, lane };
    let parts = dtype.block_elements() as usize / BLOCK;
    let sources = row.chunks_exact(dtype.block_bytes() as usize).take(blocks.div_ceil(parts));
    let mut lines = lines.chunks_exact_mut(format.block_lines());
    for (s, source) in sources.enumerate() {
        if format.is_super() {
            head.put_super(format, scales, s, source);
        } else {
            head.put_half(s, [source[0], source[1]]);
            if format.has_min() {
                head.put_half(blocks + s, [source[2], source[3]]);
            }
        }
        for (part, lines) in (0..parts).zip(&mut lines) {
            put_quants(format.quants(), lines, lane, &quant::units(dtype, source, part));
        }
    }
}

/// One lane of the scales that open a group.
struct Lane<'a> {
    lines: &'a mut [Line],
    lane: usize,
}

impl Lane<'_> {
    /// Half number `i` of the lane.
    fn put_half(&mut self, i: usize, half: [u8; 2]) {
        let at = (i * LANES + self.lane) * 2;
        self.lines[at / LINE_BYTES].0[at % LINE_BYTES..][..2].copy_from_slice(&half);
    }

    /// Byte number `i` of the lane's bytes that begin at `from`.
    fn put_small(&mut self, from: usize, i: usize, small: u8) {
        let at = from + i * LANES + self.lane;
        self.lines[at / LINE_BYTES].0[at % LINE_BYTES] = small;
    }

    /// Scales and minima of super-block `s`.
    fn put_super(&mut self, format: PackedFormat, at: Scales, s: usize, source: &[u8]) {
        let found = quant::scales(format.dtype(), source);
        self.put_half(s, found.d);
        let each = SUPER_BLOCKS * format.scales_a_block();
        for (i, small) in found.small[..each].iter().enumerate() {
            self.put_small(at.small, s * each + i, *small as u8);
        }
        if format.has_min() {
            // Minima are added here and taken away in files.
            self.put_half(at.mins / (2 * LANES) + s, [found.least[0], found.least[1] ^ 0x80]);
            for (i, small) in found.small_mins.iter().enumerate() {
                self.put_small(at.small_mins, s * SUPER_BLOCKS + i, *small);
            }
        }
    }
}

/// Writes the quants of a block into one lane of its zeroed lines.
fn put_quants(quants: Quants, lines: &mut [Line], lane: usize, units: &[u8; BLOCK]) {
    let words = units.as_chunks::<4>().0;
    let mut put = |line: usize, word: [u8; 4]| lines[line].0[lane * 4..][..4].copy_from_slice(&word);
    if quants == Quants::Eight {
        return words.iter().enumerate().for_each(|(j, word)| put(j, *word));
    }
    for i in 0..4 {
        put(i, std::array::from_fn(|b| words[2 * i][b] & 15 | words[2 * i + 1][b] << 4));
    }
    match quants {
        Quants::Five => put(4, std::array::from_fn(|b| (0..8).fold(0, |bits, j| bits | words[j][b] >> 4 << j))),
        Quants::Six => {
            for m in 0..2 {
                let bits = |b: usize| (0..4).fold(0, |bits, i| bits | words[m * 4 + i][b] >> 4 << (2 * i));
                put(4 + m, std::array::from_fn(bits));
            }
        }
        Quants::Four | Quants::Table | Quants::Eight => {}
    }
}
