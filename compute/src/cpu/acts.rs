//! Activations as the products read them: int8 records for packed weights, F32 rows for plain ones.
//!
//! Both are token-major, so a token's record depends on that token alone.

use super::packed::{BLOCK, LANES};

/// How far the high plane of int8 quants is above the low one, in bits.
pub const PLANE_SHIFT: u32 = 7;

/// How many int8 planes hold an activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Planes {
    /// A scale times an int8: faster, and changes the best token of a small model at 8-20 % of positions.
    One,
    /// A scale times `128 * high + low` (15 bits): next to no rounding error, for a second integer product.
    #[default]
    Two,
}

impl Planes {
    /// The number.
    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
    /// The largest quant.
    pub fn top_quant(self) -> f32 {
        match self {
            Self::One => 127.0,
            Self::Two => (127 << PLANE_SHIFT) as f32,
        }
    }
}

/// Activations of some tokens quantised block by block, one record of words a token: room of `k/2` words for quants, then
/// for each block its scale (F32 bits), minus the sum of its quants, scale times sum (F32 bits), and minus the sum of
/// its first half's quants.
///
/// How quants lie in their room is between a level's `quantise` and its products: as int8 planes of `k/4` words, the high
/// one first (bytes in order), or, where the processor multiplies 16 bits at a time, as pairs of whole quants.
pub struct Acts {
    /// Elements of a token; a multiple of 32.
    pub k: usize,
    /// Blocks of a token.
    pub blocks: usize,
    /// Tokens held.
    pub tokens: usize,
    /// Int8 planes.
    pub planes: Planes,
    /// Words from one token's record to the next.
    pub stride: usize,
    /// The records.
    pub words: Vec<i32>,
}

impl Acts {
    /// Room for `tokens_max` tokens of `k` elements, rounded down to whole blocks.
    pub fn new(k: usize, tokens_max: usize, planes: Planes) -> Self {
        let blocks = k / BLOCK;
        let stride = (blocks * BLOCK / 2 + 4 * blocks).next_multiple_of(16);
        Self { k: blocks * BLOCK, blocks, tokens: tokens_max, planes, stride, words: vec![0; stride * tokens_max] }
    }

    /// Sets how many tokens are held; allocates nothing below the number it was made for.
    pub fn set_tokens(&mut self, tokens: usize) {
        self.tokens = tokens;
        self.words.resize(self.stride * tokens, 0);
    }

    /// Words before the scales.
    pub fn head(&self) -> usize {
        self.k / 2
    }
}

/// Activations of some tokens in F32, rows padded with zeros to whole lanes.
pub struct Rows {
    /// Elements from one token to the next.
    pub stride: usize,
    /// Tokens held.
    pub tokens: usize,
    /// The rows.
    pub values: Vec<f32>,
}

impl Rows {
    /// Room for `tokens_max` tokens of `k` elements.
    pub fn new(k: usize, tokens_max: usize) -> Self {
        let stride = k.next_multiple_of(LANES);
        Self { stride, tokens: tokens_max, values: vec![0.0; stride * tokens_max] }
    }

    /// Sets how many tokens are held; allocates nothing below the number it was made for.
    pub fn set_tokens(&mut self, tokens: usize) {
        self.tokens = tokens;
        self.values.resize(self.stride * tokens, 0.0);
    }
}
