//! What the kernels compute, written once over [`Vector`] and compiled for every level.
//!
//! The order of every sum is here and nowhere else: it depends on a token's own values and positions, never on how many
//! tokens are computed together, how a prompt was cut, or which thread does it. That is the reproducible-arithmetic law.
//! (The products of packed weights are in `product`, their F32 sums in the same order at every level.)
#![allow(unsafe_code)]
// Indices run over several register arrays at once; iterators hide that.
#![allow(clippy::needless_range_loop)]

use super::{
    super::{
        acts::{Planes, Rows},
        kv::KV_BLOCK,
        packed::{BLOCK, LANES},
        plain::{Plain, PlainFormat},
    },
    Norm, Post, View,
    vector::Vector,
};
use half::{bf16, f16};

/// `e^x` for any x: range reduction by ln 2 and a polynomial of degree 6 (2 ulp or so); below -87 it stays at e^-87.
///
/// # Safety
/// The processor features of `V`; so for every function here.
#[inline(always)]
pub unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: as this function's contract.
    unsafe {
        let x = x.min(V::splat(88.0)).max(V::splat(-87.0));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(V::splat(-0.693_359_4), x);
        let r = n.fma(V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.fma(r, V::splat(c));
        }
        p.mul(n.exp2i())
    }
}

/// `x / (1 + e^-x)`.
///
/// # Safety
/// Features.
#[inline(always)]
pub unsafe fn silu<V: Vector>(x: V) -> V {
    // SAFETY: features.
    unsafe { x.div(V::splat(1.0).add(exp(V::splat(0.0).sub(x)))) }
}

/// The tanh approximation of gelu (Hendrycks and Gimpel 2016, section 2), as `x / (1 + e^(-2u))` with
/// `u = √(2/π) (x + 0.044715 x³)`.
///
/// # Safety
/// Features.
#[inline(always)]
pub unsafe fn gelu<V: Vector>(x: V) -> V {
    // SAFETY: features.
    unsafe {
        let bent = x.mul(x).fma(V::splat(0.044_715), V::splat(1.0)).mul(x);
        x.div(V::splat(1.0).add(exp(bent.mul(V::splat(-1.595_769)))))
    }
}

/// One over the root mean square of `k` values; the chunks' padding is zero.
///
/// # Safety
/// Features; the view holds `k` values in whole chunks.
#[inline(always)]
unsafe fn inverse_rms<V: Vector>(x: &View, k: usize, epsilon: f32) -> f32 {
    // SAFETY: chunk c is inside the view.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        for c in 0..k.div_ceil(LANES) {
            let v = V::load(x.values.as_ptr().add(c * x.step));
            sums[c % 4] = v.fma(v, sums[c % 4]);
        }
        let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
        1.0 / (sum / k as f32 + epsilon).sqrt()
    }
}

/// Chunk `c`, normalised.
#[inline(always)]
unsafe fn chunk<V: Vector>(x: &View, c: usize, norm: Option<(&[f32], V)>) -> V {
    // SAFETY: chunk c is inside the view and the weights.
    unsafe {
        let v = V::load(x.values.as_ptr().add(c * x.step));
        match norm {
            Some((weights, inverse)) => v.mul(inverse).mul(V::load(weights.as_ptr().add(c * LANES))),
            None => v,
        }
    }
}

/// How quants lie in a record.
pub trait Record<V: Vector> {
    /// Stores block `b` of the quants of `k` elements, rounded, and returns the sums of its first 16 and of the others.
    ///
    /// # Safety
    /// Features; `quants` is the room of `k` elements.
    unsafe fn put(block: [V; 2], planes: Planes, quants: *mut i32, k: usize, b: usize) -> [i32; 2];
}

/// Int8 planes of `k/4` words, the high one first.
pub struct Bytes;

impl<V: Vector> Record<V> for Bytes {
    #[inline(always)]
    unsafe fn put(block: [V; 2], planes: Planes, quants: *mut i32, k: usize, b: usize) -> [i32; 2] {
        // SAFETY: as the contract.
        unsafe {
            let high = (planes == Planes::Two).then(|| quants.add(b * 8));
            V::store_quants(block, high, quants.add((planes.count() - 1) * k / 4 + b * 8))
        }
    }
}

/// See `kernels::quantise`.
///
/// # Safety
/// Features; bounds as asserted there.
#[inline(always)]
pub unsafe fn quantise<V: Vector, R: Record<V>>(
    x: View,
    k: usize,
    planes: Planes,
    norm: Option<Norm>,
    record: &mut [i32],
) {
    // SAFETY: k whole blocks in the view, and a record of that many.
    unsafe {
        let norm = norm.map(|n| (n.weights, V::splat(inverse_rms::<V>(&x, k, n.epsilon))));
        let (blocks, most) = (k / BLOCK, planes.top_quant());
        let to = record.as_mut_ptr();
        for b in 0..blocks {
            let v = [chunk(&x, b * 2, norm), chunk(&x, b * 2 + 1, norm)];
            let top = v[0].abs().max(v[1].abs()).top();
            let (d, inverse) = (top / most, if top > 0.0 { most / top } else { 0.0 });
            let inverse = V::splat(inverse);
            let sums = R::put([v[0].mul(inverse), v[1].mul(inverse)], planes, to, k, b);
            let sum = sums[0].wrapping_add(sums[1]);
            let rest = to.add(k / 2 + b);
            *rest = d.to_bits() as i32;
            *rest.add(blocks) = sum.wrapping_neg();
            *rest.add(2 * blocks) = (d * sum as f32).to_bits() as i32;
            *rest.add(3 * blocks) = sums[0].wrapping_neg();
        }
    }
}

/// See `kernels::normalise`.
///
/// # Safety
/// Features; bounds as asserted there.
#[inline(always)]
pub unsafe fn normalise<V: Vector>(x: View, k: usize, norm: Option<Norm>, row: &mut [f32]) {
    // SAFETY: whole chunks of k in the view and the row.
    unsafe {
        let norm = norm.map(|n| (n.weights, V::splat(inverse_rms::<V>(&x, k, n.epsilon))));
        for c in 0..k.div_ceil(LANES) {
            chunk(&x, c, norm).store(row.as_mut_ptr().add(c * LANES));
        }
    }
}

/// See `kernels::rotate`.
///
/// # Safety
/// Features; all three hold the same whole chunks.
#[inline(always)]
pub unsafe fn rotate<V: Vector>(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    for c in (0..x.len()).step_by(LANES) {
        // SAFETY: chunk c is inside all three.
        unsafe {
            let v = V::load(x.as_ptr().add(c));
            let turned = v.swap_pairs().mul(V::load(sin.as_ptr().add(c)));
            let v = v.mul(V::load(cos.as_ptr().add(c))).add(turned).mul(V::splat(scale));
            v.store(x.as_mut_ptr().add(c));
        }
    }
}

/// See `kernels::to_halves`.
///
/// # Safety
/// Features; both hold the same whole chunks.
#[inline(always)]
pub unsafe fn to_halves<V: Vector>(x: &[f32], out: &mut [f16]) {
    for c in (0..x.len()).step_by(LANES) {
        // SAFETY: chunk c is inside both.
        unsafe { V::load(x.as_ptr().add(c)).store_f16(out.as_mut_ptr().add(c)) };
    }
}

/// See `kernels::to_bytes`.
///
/// # Safety
/// Features; whole chunks of `x`, and room for their blocks.
#[inline(always)]
pub unsafe fn to_bytes<V: Vector>(x: &[f32], out: &mut [i8], scales: &mut [f16]) {
    // SAFETY: chunks of block b; the room is of whole blocks.
    unsafe {
        for b in 0..x.len().div_ceil(KV_BLOCK) {
            let at = x.as_ptr().add(b * KV_BLOCK);
            let rest = if x.len() > b * KV_BLOCK + LANES { V::load(at.add(LANES)) } else { V::splat(0.0) };
            let v = [V::load(at), rest];
            let scale = f16::from_f32(v[0].abs().max(v[1].abs()).top() / 127.0);
            scales[b] = scale;
            let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
            // A scale that was rounded down would give more than a byte holds.
            let whole = |v: V| v.mul(V::splat(inverse)).min(V::splat(127.0)).max(V::splat(-127.0));
            V::store_quants([whole(v[0]), whole(v[1])], None, out.as_mut_ptr().add(b * KV_BLOCK).cast());
        }
    }
}

/// Puts what a tile has summed where it belongs.
///
/// # Safety
/// Features; 16 values at `out`.
#[inline(always)]
pub unsafe fn finish<V: Vector>(sum: V, out: *mut f32, post: Post) {
    // SAFETY: as the contract.
    unsafe {
        let value = match post {
            Post::Store | Post::SwiGlu => sum,
            Post::Add => V::load(out).add(sum),
            Post::Gate => silu(V::load(out)).mul(sum),
            Post::Gelu => gelu(sum),
            Post::Times => V::load(out).mul(sum),
        };
        value.store(out);
    }
}

/// See `kernels::finish_all`.
///
/// # Safety
/// Features; both hold the same whole chunks.
#[inline(always)]
pub unsafe fn finish_all<V: Vector>(sums: &[f32], out: &mut [f32], post: Post) {
    for c in (0..out.len()).step_by(LANES) {
        // SAFETY: chunk c is inside both.
        unsafe { finish(V::load(sums.as_ptr().add(c)), out.as_mut_ptr().add(c), post) };
    }
}

/// See `kernels::product_plain`: `count` groups from `first` on by all rows.
///
/// # Safety
/// Features; bounds as asserted there.
#[inline(always)]
pub unsafe fn product_plain<V: Vector>(w: Plain, first: usize, count: usize, x: &Rows, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe {
        match w.format {
            PlainFormat::F32 => groups::<V, f32>(w, first, count, x, out, post),
            PlainFormat::F16 => groups::<V, f16>(w, first, count, x, out, post),
            PlainFormat::Bf16 => groups::<V, bf16>(w, first, count, x, out, post),
        }
    }
}

/// A kind of stored element.
trait Element: Copy {
    /// # Safety
    /// Features; 16 elements at `from`.
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: as the contract.
        unsafe { V::load(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_f16(from) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_bf16(from) }
    }
}

#[inline(always)]
unsafe fn groups<V: Vector, E: Element>(w: Plain, first: usize, count: usize, x: &Rows, out: &mut [f32], post: Post) {
    let (stride, tokens) = (x.stride, x.tokens);
    let mut g = 0;
    while g < count {
        let rows = if V::WIDE && count - g >= 2 { 2 } else { 1 };
        let base = |r: usize| w.group(first + g + r).as_ptr().cast::<E>();
        let mut t = 0;
        while t < tokens {
            // SAFETY: groups g.. and tokens t.. are in bounds, as is their panel.
            unsafe {
                let x = x.values.as_ptr().add(t * stride);
                let out = out.as_mut_ptr().add((g * tokens + t) * LANES);
                let tile = Tile { k: w.k, stride, panel: tokens * LANES, post };
                t += match (rows, tokens - t) {
                    (2, 1) => tile.run::<V, E, 2, 1>([base(0), base(1)], x, out),
                    (2, 2 | 3) => tile.run::<V, E, 2, 2>([base(0), base(1)], x, out),
                    (2, 4 | 5) => tile.run::<V, E, 2, 4>([base(0), base(1)], x, out),
                    (2, _) => tile.run::<V, E, 2, 6>([base(0), base(1)], x, out),
                    (_, 1) => tile.run::<V, E, 1, 1>([base(0)], x, out),
                    (_, 2 | 3) => tile.run::<V, E, 1, 2>([base(0)], x, out),
                    _ => tile.run::<V, E, 1, 4>([base(0)], x, out),
                };
            }
        }
        g += rows;
    }
}

/// What tiles of one product share.
struct Tile {
    k: usize,
    stride: usize,
    panel: usize,
    post: Post,
}

impl Tile {
    /// `R` groups of rows by `T` tokens, every sum over k in order in its lane.
    #[inline(always)]
    unsafe fn run<V: Vector, E: Element, const R: usize, const T: usize>(
        &self,
        w: [*const E; R],
        x: *const f32,
        out: *mut f32,
    ) -> usize {
        // SAFETY: the caller's groups hold k elements of 16 rows, its tokens k values, its panel R groups.
        unsafe {
            let mut sum = [[V::splat(0.0); T]; R];
            for i in 0..self.k {
                let mut row = [V::splat(0.0); R];
                for r in 0..R {
                    row[r] = E::load(w[r].add(i * LANES));
                }
                for t in 0..T {
                    let x = V::splat(*x.add(t * self.stride + i));
                    for r in 0..R {
                        sum[r][t] = row[r].fma(x, sum[r][t]);
                    }
                }
            }
            for r in 0..R {
                for t in 0..T {
                    finish(sum[r][t], out.add(r * self.panel + t * LANES), self.post);
                }
            }
        }
        T
    }
}
