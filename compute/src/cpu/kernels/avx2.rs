//! AVX2 with FMA and F16C: the text over pairs of registers, and its own integer product.
//!
//! Unsafe for two reasons only: functions need processor features, and they read through raw pointers inside bounds that
//! the callers in `kernels` assert.
#![allow(unsafe_code)]
// Indices run over several register arrays at once; iterators hide that.
#![allow(clippy::needless_range_loop)]

use super::{
    super::{
        acts::{Acts, PLANE_SHIFT, Planes, Rows},
        packed::{LANES, Packed, PackedFormat},
        plain::Plain,
    },
    KvHead, Norm, Post, View, padded_head, text,
    vector::Vector,
};
use half::{bf16, f16};
use std::{arch::x86_64::*, ops::Range};

/// # Safety
/// Features, and bounds as asserted in `kernels`; so for every function here.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn quantise(x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    // SAFETY: as the contract.
    unsafe { text::quantise::<Wide>(x, k, planes, norm, record) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn normalise(x: View, k: usize, norm: Option<Norm>, row: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe { text::normalise::<Wide>(x, k, norm, row) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    // SAFETY: as the contract.
    unsafe { text::rotate::<Wide>(x, cos, sin, scale) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn to_halves(x: &[f32], out: &mut [f16]) {
    // SAFETY: as the contract.
    unsafe { text::to_halves::<Wide>(x, out) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn finish_all(sums: &[f32], out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { text::finish_all::<Wide>(sums, out, post) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn product_plain(w: Plain, first: usize, count: usize, x: &Rows, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { text::product_plain::<Wide>(w, first, count, x, out, post) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn attend(q: &[f32], heads: usize, d: usize, kv: KvHead, at: &Range<usize>, out: &mut [f32]) {
    let padded = padded_head(d);
    for h in 0..heads {
        let (q, out) = (&q[h * d..], &mut out[h * padded..]);
        // SAFETY: as the contract, a head at a time (16 registers hold no more).
        unsafe {
            match padded / LANES {
                1 => text::attend::<Wide, 1, 1>(q, d, kv, at, out),
                2 => text::attend::<Wide, 1, 2>(q, d, kv, at, out),
                4 => text::attend::<Wide, 1, 4>(q, d, kv, at, out),
                6 => text::attend::<Wide, 1, 6>(q, d, kv, at, out),
                8 => text::attend::<Wide, 1, 8>(q, d, kv, at, out),
                _ => text::attend::<Wide, 1, 16>(q, d, kv, at, out),
            }
        }
    }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn product_packed(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    let per = if post == Post::SwiGlu { 2 } else { 1 };
    for g in (0..count).step_by(per) {
        let mut t = 0;
        while t < acts.tokens {
            // SAFETY: group and tokens are in bounds, as is their panel.
            unsafe {
                let panel = out.as_mut_ptr().add((g / per * acts.tokens + t) * LANES);
                t += match acts.tokens - t {
                    1 => step::<1>(w, first + g, acts, t, panel, post),
                    2 | 3 => step::<2>(w, first + g, acts, t, panel, post),
                    _ => step::<4>(w, first + g, acts, t, panel, post),
                };
            }
        }
    }
}

/// One group (or pair) of rows by `T` tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn step<const T: usize>(w: Packed, g: usize, acts: &Acts, t0: usize, out: *mut f32, post: Post) -> usize {
    // SAFETY: as the caller's contract.
    unsafe {
        let mut sums = sums::<T>(w, g, acts, t0);
        if post == Post::SwiGlu {
            let up = self::sums::<T>(w, g + 1, acts, t0);
            for t in 0..T {
                sums[t] = text::silu(sums[t]).mul(up[t]);
            }
        }
        for t in 0..T {
            text::finish(sums[t], out.add(t * LANES), post);
        }
    }
    T
}

/// The dot products of a group's rows with `T` records.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sums<const T: usize>(w: Packed, g: usize, acts: &Acts, t0: usize) -> [Wide; T] {
    let base = w.group(g).as_ptr().cast::<u8>();
    let mut f = [[_mm256_setzero_ps(); 2]; T];
    for b in 0..w.blocks {
        // SAFETY: block b of the group and of the tokens' records.
        unsafe {
            let quants = base.add((w.scale_lines + b * w.format.block_lines()) * 64);
            let record = acts.words.as_ptr().add(t0 * acts.stride);
            let mut ints = [[_mm256_setzero_si256(); 2]; T];
            for plane in 0..acts.planes.count() {
                shift(&mut ints);
                let words = record.add(plane * acts.k / 4 + b * 8);
                match w.format {
                    PackedFormat::Q8_0 => block8(quants, words, acts.stride, &mut ints),
                    _ => block4(quants, words, acts.stride, &mut ints),
                }
            }
            scale(&w, b, base, record.add(acts.head() + b), acts.stride, &ints, &mut f);
        }
    }
    let mut out = [Wide(f[0]); T];
    for t in 1..T {
        out[t] = Wide(f[t]);
    }
    out
}

/// Makes room for the plane below.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn shift<const T: usize>(ints: &mut [[__m256i; 2]; T]) {
    for t in 0..T {
        for h in 0..2 {
            ints[t][h] = _mm256_slli_epi32::<{ PLANE_SHIFT as i32 }>(ints[t][h]);
        }
    }
}

/// Adds a block's integer products, times their scales; `rest` is the first token's scale of the block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale<const T: usize>(
    w: &Packed,
    b: usize,
    base: *const u8,
    rest: *const i32,
    stride: usize,
    ints: &[[__m256i; 2]; T],
    f: &mut [[__m256; 2]; T],
) {
    for h in 0..2 {
        // SAFETY: as the caller's contract.
        unsafe {
            let d = half8(base.add(b * 32 + h * 16));
            for t in 0..T {
                let rest = rest.add(t * stride);
                // Signed Q8 products need no offset; Q4_1 has none.
                let offset = if w.format == PackedFormat::Q4_0 { *rest.add(w.blocks) << 3 } else { 0 };
                let i = _mm256_add_epi32(ints[t][h], _mm256_set1_epi32(offset));
                let dx = _mm256_set1_ps(f32::from_bits(*rest as u32));
                f[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(i), _mm256_mul_ps(d, dx), f[t][h]);
                if w.format == PackedFormat::Q4_1 {
                    let sx = _mm256_set1_ps(f32::from_bits(*rest.add(2 * w.blocks) as u32));
                    f[t][h] = _mm256_fmadd_ps(half8(base.add((w.blocks + b) * 32 + h * 16)), sx, f[t][h]);
                }
            }
        }
    }
}

/// Q8 products: the sign of the weight moves to the activation, since the instruction wants one unsigned side and its
/// 16-bit sums must not saturate. A weight of -128 has the size 128 as an unsigned byte; 2 * 128 * 127 fits 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block8<const T: usize>(quants: *const u8, words: *const i32, stride: usize, acc: &mut [[__m256i; 2]; T]) {
    let (flip, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
    for j in 0..8 {
        for h in 0..2 {
            // SAFETY: half line h of line j; word j of the block of each token.
            unsafe {
                let q = _mm256_xor_si256(_mm256_load_si256(quants.add(j * 64 + h * 32).cast()), flip);
                let size = _mm256_abs_epi8(q);
                for t in 0..T {
                    let x = _mm256_sign_epi8(_mm256_set1_epi32(*words.add(t * stride + j)), q);
                    let p = _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones);
                    acc[t][h] = _mm256_add_epi32(acc[t][h], p);
                }
            }
        }
    }
}

/// Q4 products: the weights are unsigned as they are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block4<const T: usize>(quants: *const u8, words: *const i32, stride: usize, acc: &mut [[__m256i; 2]; T]) {
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    for j in 0..4 {
        for h in 0..2 {
            // SAFETY: half line h of line j; words j and j + 4 of the block of each token.
            unsafe {
                let q = _mm256_load_si256(quants.add(j * 64 + h * 32).cast());
                let first = _mm256_and_si256(q, low);
                let second = _mm256_and_si256(_mm256_srli_epi16::<4>(q), low);
                for t in 0..T {
                    let words = words.add(t * stride + j);
                    let p = _mm256_maddubs_epi16(first, _mm256_set1_epi32(*words));
                    // Four products of at most 15 * 127 fit 16 bits.
                    let p = _mm256_add_epi16(p, _mm256_maddubs_epi16(second, _mm256_set1_epi32(*words.add(4))));
                    acc[t][h] = _mm256_add_epi32(acc[t][h], _mm256_madd_epi16(p, ones));
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half8(p: *const u8) -> __m256 {
    // SAFETY: the caller has 16 bytes at p.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
}

/// Sixteen lanes in two registers.
#[derive(Clone, Copy)]
pub struct Wide([__m256; 2]);

/// Both halves of one or more vectors through an intrinsic.
macro_rules! both {
    ($f:ident($($v:expr),*)) => { Wide([$f($($v.0[0]),*), $f($($v.0[1]),*)]) };
}

// SAFETY of the blocks below: the features are the contract of every method; pointers hold 16 elements.
impl Vector for Wide {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above; so everywhere here.
        unsafe { Self([_mm256_set1_ps(x); 2]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { Self([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to, self.0[0]);
            _mm256_storeu_ps(to.add(8), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        unsafe { Self([half8(from.cast()), half8(from.add(8).cast())]) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: see above.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0[0]));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0[1]));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: see above.
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast())));
            Self([_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)])
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both!(_mm256_add_ps(self, other)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both!(_mm256_sub_ps(self, other)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both!(_mm256_mul_ps(self, other)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both!(_mm256_div_ps(self, other)) }
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: see above.
        unsafe { both!(_mm256_fmadd_ps(self, by, plus)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both!(_mm256_max_ps(self, other)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both!(_mm256_min_ps(self, other)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let sign = Self([_mm256_set1_ps(-0.0); 2]);
            both!(_mm256_andnot_ps(sign, self))
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see above.
        unsafe { Self([_mm256_round_ps::<NEAREST>(self.0[0]), _mm256_round_ps::<NEAREST>(self.0[1])]) }
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0[0]), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0[1]), bias));
            Self([_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)])
        }
    }
    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        // SAFETY: see above.
        unsafe { Self([_mm256_permute_ps::<0b10_11_00_01>(self.0[0]), _mm256_permute_ps::<0b10_11_00_01>(self.0[1])]) }
    }
    #[inline(always)]
    unsafe fn first(self, live: usize, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let live = _mm256_set1_epi32(live as i32);
            let low = _mm256_cmpgt_epi32(live, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(live, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            Self([
                _mm256_blendv_ps(other.0[0], self.0[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other.0[1], self.0[1], _mm256_castsi256_ps(high)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let s = _mm256_add_ps(self.0[0], self.0[1]);
            let s = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
            let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
            _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)))
        }
    }
    #[inline(always)]
    unsafe fn top(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let s = _mm256_max_ps(self.0[0], self.0[1]);
            let s = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
            let s = _mm_max_ps(s, _mm_movehl_ps(s, s));
            _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)))
        }
    }
    #[inline(always)]
    unsafe fn store_quants(block: [Self; 2], high: Option<*mut i32>, low: *mut i32) -> i32 {
        // SAFETY: see above; 8 words at each pointer.
        unsafe {
            let mut q = [
                _mm256_cvtps_epi32(block[0].0[0]),
                _mm256_cvtps_epi32(block[0].0[1]),
                _mm256_cvtps_epi32(block[1].0[0]),
                _mm256_cvtps_epi32(block[1].0[1]),
            ];
            let total = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
            if let Some(high) = high {
                let half = _mm256_set1_epi32(1 << (PLANE_SHIFT - 1));
                let mut top = q;
                for q in &mut top {
                    *q = _mm256_srai_epi32::<{ PLANE_SHIFT as i32 }>(_mm256_add_epi32(*q, half));
                }
                put(top, high);
                for i in 0..4 {
                    q[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32::<{ PLANE_SHIFT as i32 }>(top[i]));
                }
            }
            put(q, low);
            let mut lanes = [0i32; 8];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), total);
            lanes.iter().fold(0, |s, x| s.wrapping_add(*x))
        }
    }
}

/// Stores 32 small integers as bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn put(q: [__m256i; 4], to: *mut i32) {
    // SAFETY: the caller has 8 words at `to`.
    unsafe {
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(packed, order));
    }
}
