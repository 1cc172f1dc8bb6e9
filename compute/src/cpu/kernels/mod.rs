//! The arithmetic, in the instructions that were chosen at start.
//!
//! Matrices of activations are *panels*: `[rows / 16][tokens][16]`, so a group of output rows is contiguous whatever the
//! number of tokens, and with one token a panel is a plain vector. Rows past the last are zero.
//!
//! This file asserts bounds and picks the level; `text`, `attention` and `product` say what is computed, `vector` in which words, and
//! a file for each level spells those in its instructions. Unsafe here is only the call into a level that the
//! processor has.
#![allow(unsafe_code)]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod product;
mod scalar;
#[cfg(test)]
mod tests;
mod text;
mod vector;

use vector::Vector as _;

use super::{
    acts::{Acts, Planes, Rows},
    cache::Page,
    kv::{KV_BLOCK, KvFormat},
    level::Level,
    lines::Line,
    packed::{BLOCK, LANES, Packed},
    plain::Plain,
};
use half::f16;
use std::{ops::Range, sync::Arc};

/// Most queries that share one walk over a key/value head.
pub const QUERIES_MAX: usize = 48;
/// Positions a key/value store is rounded up to.
pub const KV_TILE: usize = 64;
/// The widest attention head.
pub const HEAD_WIDTH_MAX: usize = 256;

/// What becomes of a product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Post {
    /// It is stored.
    Store,
    /// It is added to what is there (residual).
    Add,
    /// It is multiplied by the silu of what is there (gate), and stored.
    Gate,
    /// The tanh approximation of its gelu is stored (gate).
    Gelu,
    /// It is multiplied by what is there, and stored.
    Times,
    /// Groups come in (gate, up) pairs; `silu(gate) * up` is stored. Packed weights only.
    SwiGlu,
}

/// Chunks of 16 values, chunk `i` at `i * step`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The values.
    pub values: &'a [f32],
    /// From one chunk to the next.
    pub step: usize,
}

/// Root-mean-square normalisation.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// Weights, padded with zeros to whole chunks.
    pub weights: &'a [f32],
    /// Added to the mean square.
    pub epsilon: f32,
}

/// Keys and values of one head, a tile of [`KV_TILE`] positions in each page, as [`super::kv`] says.
#[derive(Clone, Copy)]
pub struct KvHead<'a> {
    /// Pages of the sequence.
    pub pages: &'a [Arc<Page>],
    /// What they are held as.
    pub format: KvFormat,
    /// Where the head begins in each.
    pub at: usize,
    /// Lines of keys.
    pub key_lines: usize,
    /// Lines of keys and values.
    pub lines: usize,
}

impl<'a> KvHead<'a> {
    /// Keys and values of a tile.
    #[inline(always)]
    pub fn tile(&self, index: usize) -> (&'a [Line], &'a [Line]) {
        self.pages[index].lines()[self.at..][..self.lines].split_at(self.key_lines)
    }
}

/// Queries of heads that share keys and values.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// Width of a head.
    pub width: usize,
    /// A row of that width for each.
    pub rows: &'a [f32],
    /// The positions that each attends to; the later a query, the later both ends, or equal.
    pub at: &'a [Range<usize>],
    /// Where the result of each begins, of [`padded_head`] width.
    pub to: &'a [usize],
}

/// Width that a head's values are padded to: a number of chunks that kernels exist for.
pub fn padded_head(width: usize) -> usize {
    [1, 2, 4, 6, 8, 16]
        .into_iter()
        .map(|chunks| chunks * LANES)
        .find(|padded| *padded >= width)
        .unwrap_or(HEAD_WIDTH_MAX)
}

/// Calls a level's function of one name. The levels are safe to call where the processor has them, and a [`Level`] above
/// scalar is only made where it has (see `Engine::start` and `Level::best`).
macro_rules! at_level {
    ($level:expr, $name:ident ( $($arg:expr),* )) => {
        match $level {
            // SAFETY: the level says that the processor has the features; the caller above asserted the bounds.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::$name($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => unsafe { avx_vnni::$name($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::$name($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { neon::$name($($arg),*) },
            // SAFETY: bounds as above; no features.
            _ => unsafe { scalar::$name($($arg),*) },
        }
    };
}

/// Multiplies packed groups from `first` on by all tokens of `acts`, which were quantised at the same level. `out` is the panel of just those groups (of pairs
/// of groups for [`Post::SwiGlu`]).
pub fn product_packed(level: Level, w: Packed, first: usize, acts: &Acts, out: &mut [f32], post: Post) {
    let per = if post == Post::SwiGlu { 2 } else { 1 };
    let panel = acts.tokens * LANES;
    let count = out.len() / panel * per;
    assert!(out.len().is_multiple_of(panel) && first + count <= w.groups() && first.is_multiple_of(per));
    assert!(acts.blocks == w.blocks && acts.k == w.blocks * BLOCK && acts.words.len() >= acts.tokens * acts.stride);
    assert!(acts.stride >= acts.head() + 4 * acts.blocks && w.group_lines == w.format.group_lines(w.blocks));
    at_level!(level, product_packed(w, first, count, acts, out, post));
}

/// Multiplies plain groups from `first` on by all rows. `out` is the panel of just those groups.
pub fn product_plain(level: Level, w: Plain, first: usize, rows: &Rows, out: &mut [f32], post: Post) {
    let panel = rows.tokens * LANES;
    let count = out.len() / panel;
    assert!(out.len().is_multiple_of(panel) && first + count <= w.groups() && post != Post::SwiGlu);
    assert!(rows.stride >= w.k && rows.values.len() >= rows.tokens * rows.stride);
    assert!(w.group_lines == w.format.group_lines(w.k));
    at_level!(level, product_plain(w, first, count, rows, out, post));
}

/// Quantises `k` values (whole blocks) to a record of [`Acts`] for products of the same level, after normalisation where asked.
pub fn quantise(level: Level, x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    assert!(k.is_multiple_of(BLOCK) && k > 0 && x.values.len() >= (k / LANES - 1) * x.step + LANES);
    assert!(record.len() >= k / 2 + 4 * (k / BLOCK) && norm.is_none_or(|n| n.weights.len() >= k));
    at_level!(level, quantise(x, k, planes, norm, record));
}

/// Copies `k` values (padded to whole chunks) to a row, after normalisation where asked.
pub fn normalise(level: Level, x: View, k: usize, norm: Option<Norm>, row: &mut [f32]) {
    let padded = k.next_multiple_of(LANES);
    assert!(k > 0 && x.values.len() >= (padded / LANES - 1) * x.step + LANES);
    assert!(row.len() >= padded && norm.is_none_or(|n| n.weights.len() >= padded));
    at_level!(level, normalise(x, k, norm, row));
}

/// `e^x` of each of 16 values, the same bits at every level.
pub fn exp(x: &mut [f32; LANES]) {
    // SAFETY: scalar lanes need no feature; 16 values.
    unsafe { text::exp(vector::Lanes::load(x.as_ptr())).store(x.as_mut_ptr()) }
}

/// Leaves in `out` what a product with these sums would; whole chunks.
pub fn finish_all(level: Level, sums: &[f32], out: &mut [f32], post: Post) {
    assert!(sums.len() == out.len() && out.len().is_multiple_of(LANES) && post != Post::SwiGlu);
    at_level!(level, finish_all(sums, out, post));
}

/// Rotates neighbouring pairs: `x * cos + swapped(x) * sin`, times `scale`; whole chunks.
pub fn rotate(level: Level, x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    assert!(x.len().is_multiple_of(LANES) && cos.len() >= x.len() && sin.len() >= x.len());
    at_level!(level, rotate(x, cos, sin, scale));
}

/// Rounds to halves; whole chunks.
pub fn to_halves(level: Level, x: &[f32], out: &mut [f16]) {
    assert!(x.len().is_multiple_of(LANES) && out.len() >= x.len());
    at_level!(level, to_halves(x, out));
}

/// Rounds to bytes, each block of [`KV_BLOCK`] values with a scale; whole chunks of at most [`HEAD_WIDTH_MAX`] values.
pub fn to_bytes(
    level: Level,
    x: &[f32],
    out: &mut [i8; HEAD_WIDTH_MAX],
    scales: &mut [f16; HEAD_WIDTH_MAX / KV_BLOCK],
) {
    assert!(x.len().is_multiple_of(LANES) && x.len() <= HEAD_WIDTH_MAX);
    at_level!(level, to_bytes(x, out, scales));
}

/// Attention of queries, rotated and scaled, over one head's keys and values.
pub fn attend(level: Level, q: &Queries, kv: KvHead, out: &mut [f32]) {
    let (count, padded) = (q.at.len(), padded_head(q.width));
    assert!((1..=QUERIES_MAX).contains(&count) && q.to.len() == count && (1..=HEAD_WIDTH_MAX).contains(&q.width));
    assert!(q.rows.len() >= count * q.width && q.to.iter().all(|to| to + padded <= out.len()));
    assert!(q.at.iter().all(|at| at.start < at.end && at.end <= kv.pages.len() * KV_TILE));
    assert!(q.at.is_sorted_by(|a, b| a.start <= b.start && a.end <= b.end), "positions of queries are in order");
    assert!(kv.key_lines == kv.format.key_lines(q.width) && kv.lines == kv.key_lines + kv.format.value_lines(q.width));
    at_level!(level, attend(q, kv, out));
}
