//! AVX-512 with VNNI: the text over one register, and its own integer product in tiles of 2 groups by 6 tokens.
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn quantise(x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    // SAFETY: as the contract.
    unsafe { text::quantise::<Wide>(x, k, planes, norm, record) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn normalise(x: View, k: usize, norm: Option<Norm>, row: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe { text::normalise::<Wide>(x, k, norm, row) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    // SAFETY: as the contract.
    unsafe { text::rotate::<Wide>(x, cos, sin, scale) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn to_halves(x: &[f32], out: &mut [f16]) {
    // SAFETY: as the contract.
    unsafe { text::to_halves::<Wide>(x, out) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn finish_all(sums: &[f32], out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { text::finish_all::<Wide>(sums, out, post) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn product_plain(w: Plain, first: usize, count: usize, x: &Rows, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { text::product_plain::<Wide>(w, first, count, x, out, post) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn attend(q: &[f32], heads: usize, d: usize, kv: KvHead, at: &Range<usize>, out: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe {
        match padded_head(d) / LANES {
            1 => attend_by_heads::<1>(q, heads, d, kv, at, out),
            2 => attend_by_heads::<2>(q, heads, d, kv, at, out),
            4 => attend_by_heads::<4>(q, heads, d, kv, at, out),
            6 => attend_one_by_one::<6>(q, heads, d, kv, at, out),
            8 => attend_one_by_one::<8>(q, heads, d, kv, at, out),
            _ => attend_one_by_one::<16>(q, heads, d, kv, at, out),
        }
    }
}

/// Heads that share keys and values go together while registers last.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn attend_by_heads<const C: usize>(
    q: &[f32],
    heads: usize,
    d: usize,
    kv: KvHead,
    at: &Range<usize>,
    out: &mut [f32],
) {
    // SAFETY: as the contract.
    unsafe {
        match heads {
            1 => text::attend::<Wide, 1, C>(q, d, kv, at, out),
            2 => text::attend::<Wide, 2, C>(q, d, kv, at, out),
            3 => text::attend::<Wide, 3, C>(q, d, kv, at, out),
            _ => text::attend::<Wide, 4, C>(q, d, kv, at, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn attend_one_by_one<const C: usize>(
    q: &[f32],
    heads: usize,
    d: usize,
    kv: KvHead,
    at: &Range<usize>,
    out: &mut [f32],
) {
    for h in 0..heads {
        // SAFETY: as the contract, a head at a time.
        unsafe { text::attend::<Wide, 1, C>(&q[h * d..], d, kv, at, &mut out[h * C * LANES..]) }
    }
}

const Q8_0: u8 = 0;
const Q4_0: u8 = 1;
const Q4_1: u8 = 2;

/// Prefetch: none, a little ahead in the same strip, or the strip after it.
const NONE: u8 = 0;
const SAME: u8 = 1;
const NEXT: u8 = 2;

/// How far ahead [`SAME`] looks, in bytes.
const AHEAD: usize = 4096;

/// With more passes over a strip than this, computing hides all fetching.
const MOST_PASSES: usize = 4;

/// Pointers to what a tile reads: `R` groups of weights, tokens of `acts`.
struct Source<'a, const R: usize> {
    scales: [*const u8; R],
    quants: [*const u8; R],
    acts: *const i32,
    shape: &'a Acts,
    /// The share of the next strip that this pass prefetches, and how many
    /// lines of it with each block.
    next: *const i8,
    fetch: usize,
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn product_packed(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    // SAFETY: as this function's own contract.
    unsafe {
        match w.format {
            PackedFormat::Q8_0 => product::<Q8_0>(w, first, count, acts, out, post),
            PackedFormat::Q4_0 => product::<Q4_0>(w, first, count, acts, out, post),
            PackedFormat::Q4_1 => product::<Q4_1>(w, first, count, acts, out, post),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn product<const F: u8>(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    let panel = acts.tokens * LANES;
    let mut g = 0;
    while g < count {
        let at = if post == Post::SwiGlu { g / 2 } else { g } * panel;
        // SAFETY: groups g.. are inside w, and out[at..] holds their panels.
        unsafe {
            let out = out[at..].as_mut_ptr();
            match (count - g, acts.tokens.div_ceil(6)) {
                (1, _) => strip::<F, 1, NONE>(w, first + g, acts, out, post),
                (_, 1) => strip::<F, 2, SAME>(w, first + g, acts, out, post),
                (_, 2..=MOST_PASSES) => strip::<F, 2, NEXT>(w, first + g, acts, out, post),
                _ => strip::<F, 2, NONE>(w, first + g, acts, out, post),
            }
        }
        g += 2;
    }
}

/// `R` groups of rows by all tokens, a few tokens at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn strip<const F: u8, const R: usize, const P: u8>(w: Packed, g: usize, acts: &Acts, out: *mut f32, post: Post) {
    let base: [*const u8; R] = std::array::from_fn(|r| w.group(g + r).as_ptr().cast::<u8>());
    let strip = w.group_lines * R;
    let fetch = strip.div_ceil(acts.tokens.div_ceil(6) * w.blocks);
    let (mut t, mut pass) = (0, 0);
    while t < acts.tokens {
        // SAFETY: pointers stay inside the group, the record and the panel.
        unsafe {
            let s = Source {
                scales: base,
                quants: base.map(|p| p.add(w.scale_lines * 64)),
                acts: acts.words.as_ptr().add(t * acts.stride),
                shape: acts,
                next: base[0].wrapping_add((strip + pass * fetch * w.blocks) * 64).cast(),
                fetch,
            };
            pass += 1;
            let out = out.add(t * LANES);
            t += match acts.tokens - t {
                1 => tile::<F, R, 1, P>(&s, out, post),
                2 => tile::<F, R, 2, P>(&s, out, post),
                3 => tile::<F, R, 3, P>(&s, out, post),
                4 | 7 | 8 => tile::<F, R, 4, P>(&s, out, post),
                5 | 9 | 10 => tile::<F, R, 5, P>(&s, out, post),
                _ => tile::<F, R, 6, P>(&s, out, post),
            };
        }
    }
}

/// `R` groups of rows by `T` tokens, all sums in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<const F: u8, const R: usize, const T: usize, const P: u8>(
    s: &Source<R>,
    out: *mut f32,
    post: Post,
) -> usize {
    let (blocks, stride) = (s.shape.blocks, s.shape.stride);
    let mut f = [[_mm512_setzero_ps(); T]; R];
    let last = s.acts.wrapping_add(s.shape.head() - s.shape.k / 4);
    for b in 0..blocks {
        // SAFETY: b < blocks, so all of the block's reads are inside its records.
        unsafe {
            if P == NEXT {
                for i in 0..s.fetch {
                    _mm_prefetch::<_MM_HINT_T1>(s.next.wrapping_add((b * s.fetch + i) * 64));
                }
            }
            let rest = s.acts.add(s.shape.head() + b);
            let mut acc = [[_mm512_setzero_si512(); T]; R];
            if s.shape.planes == Planes::Two {
                block::<F, R, T, P>(s, s.acts, b, &mut acc);
                for r in 0..R {
                    for t in 0..T {
                        acc[r][t] = _mm512_slli_epi32::<PLANE_SHIFT>(acc[r][t]);
                    }
                }
            }
            if F != Q4_1 {
                for t in 0..T {
                    let n = _mm512_set1_epi32(*rest.add(blocks + t * stride));
                    let n = if F == Q8_0 { _mm512_slli_epi32::<7>(n) } else { _mm512_slli_epi32::<3>(n) };
                    for r in 0..R {
                        acc[r][t] = _mm512_add_epi32(acc[r][t], n);
                    }
                }
            }
            block::<F, R, T, P>(s, last, b, &mut acc);
            let mut d = [_mm512_setzero_ps(); R];
            for r in 0..R {
                d[r] = half16(s.scales[r].add(b * 32));
            }
            for t in 0..T {
                let dx = _mm512_set1_ps(f32::from_bits(*rest.add(t * stride) as u32));
                for r in 0..R {
                    f[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][t]), _mm512_mul_ps(d[r], dx), f[r][t]);
                }
            }
            if F == Q4_1 {
                let mut m = [_mm512_setzero_ps(); R];
                for r in 0..R {
                    m[r] = half16(s.scales[r].add((blocks + b) * 32));
                }
                for t in 0..T {
                    let sx = _mm512_set1_ps(f32::from_bits(*rest.add(2 * blocks + t * stride) as u32));
                    for r in 0..R {
                        f[r][t] = _mm512_fmadd_ps(m[r], sx, f[r][t]);
                    }
                }
            }
        }
    }
    // SAFETY: `out` holds the panels of these groups.
    unsafe { finish(&f, out, s.shape.tokens * LANES, post) };
    T
}

/// Adds the integer dot products of block `b` with the plane at `plane`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn block<const F: u8, const R: usize, const T: usize, const P: u8>(
    s: &Source<R>,
    plane: *const i32,
    b: usize,
    acc: &mut [[__m512i; T]; R],
) {
    let (lines, stride) = (if F == Q8_0 { 8 } else { 4 }, s.shape.stride);
    let low = _mm512_set1_epi8(15);
    for j in 0..lines {
        // SAFETY: line j of block b, words j and j + 4 of the same block.
        unsafe {
            let at = (b * lines + j) * 64;
            let mut first = [_mm512_setzero_si512(); R];
            let mut second = [_mm512_setzero_si512(); R];
            for r in 0..R {
                if P == SAME {
                    _mm_prefetch::<_MM_HINT_T0>(s.quants[r].wrapping_add(at + AHEAD).cast());
                }
                first[r] = _mm512_load_si512(s.quants[r].add(at).cast());
                if F != Q8_0 {
                    second[r] = _mm512_and_si512(_mm512_srli_epi16::<4>(first[r]), low);
                    first[r] = _mm512_and_si512(first[r], low);
                }
            }
            let x = plane.add(b * 8 + j);
            for t in 0..T {
                let x = _mm512_set1_epi32(*x.add(t * stride));
                for r in 0..R {
                    acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], first[r], x);
                }
            }
            if F != Q8_0 {
                for t in 0..T {
                    let x = _mm512_set1_epi32(*x.add(4 + t * stride));
                    for r in 0..R {
                        acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], second[r], x);
                    }
                }
            }
        }
    }
}

/// Puts the sums of a tile where they belong.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn finish<const R: usize, const T: usize>(f: &[[__m512; T]; R], out: *mut f32, panel: usize, post: Post) {
    // SAFETY: the caller's `out` holds the panels.
    unsafe {
        for t in 0..T {
            if post == Post::SwiGlu {
                let value = text::silu(Wide(f[0][t])).mul(Wide(f[R - 1][t]));
                value.store(out.add(t * LANES));
                continue;
            }
            for r in 0..R {
                text::finish(Wide(f[r][t]), out.add(r * panel + t * LANES), post);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn half16(p: *const u8) -> __m512 {
    // SAFETY: the caller has 32 bytes at p.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
}

/// Sixteen lanes in one register.
#[derive(Clone, Copy)]
pub struct Wide(__m512);

// SAFETY of the blocks below: the features are the contract of every method; pointers hold 16 elements.
impl Vector for Wide {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above; so everywhere here.
        unsafe { Self(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        unsafe { Self(half16(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_fmadd_ps(self.0, by.0, plus.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see above. 8 is: to nearest even, no exceptions, no fraction bits.
        unsafe { Self(_mm512_roundscale_ps::<8>(self.0)) }
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_permute_ps::<0b10_11_00_01>(self.0)) }
    }
    #[inline(always)]
    unsafe fn first(self, live: usize, other: Self) -> Self {
        let mask = ((1u32 << live) - 1) as u16;
        // SAFETY: see above.
        unsafe { Self(_mm512_mask_blend_ps(mask, other.0, self.0)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let s = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            let s = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
            let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
            _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)))
        }
    }
    #[inline(always)]
    unsafe fn top(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn store_quants(block: [Self; 2], high: Option<*mut i32>, low: *mut i32) -> i32 {
        // SAFETY: see above; 8 words at each pointer.
        unsafe {
            let mut q = [_mm512_cvtps_epi32(block[0].0), _mm512_cvtps_epi32(block[1].0)];
            let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]));
            if let Some(high) = high {
                let half = _mm512_set1_epi32(1 << (PLANE_SHIFT - 1));
                let mut top = q;
                for q in &mut top {
                    *q = _mm512_srai_epi32::<PLANE_SHIFT>(_mm512_add_epi32(*q, half));
                }
                put(top, high);
                for i in 0..2 {
                    q[i] = _mm512_sub_epi32(q[i], _mm512_slli_epi32::<PLANE_SHIFT>(top[i]));
                }
            }
            put(q, low);
            sum
        }
    }
}

/// Stores 32 small integers as bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn put(q: [__m512i; 2], to: *mut i32) {
    for (i, q) in q.into_iter().enumerate() {
        // SAFETY: the caller has 8 words at `to`.
        unsafe { _mm_storeu_si128(to.add(i * 4).cast(), _mm512_cvtepi32_epi8(q)) };
    }
}
