//! AVX-512 with VNNI: the text over one register, packed products in tiles of 2 groups by 6 tokens.
//!
//! Unsafe for two reasons only: functions need processor features, and they read through raw pointers inside bounds that
//! the callers in `kernels` assert.
#![allow(unsafe_code)]

use super::{
    super::{
        acts::{Acts, PLANE_SHIFT, Planes, Rows},
        packed::Packed,
        plain::Plain,
    },
    KvHead, Norm, Post, Queries, View, attention,
    product::{self, Ints, Source},
    text,
    vector::Vector,
};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// # Safety
/// Features, and bounds as asserted in `kernels`; so for every function here.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn quantise(x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    // SAFETY: as the contract.
    unsafe { text::quantise::<Wide, text::Bytes>(x, k, planes, norm, record) }
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
pub unsafe fn to_bytes(x: &[f32], out: &mut [i8], scales: &mut [f16]) {
    // SAFETY: as the contract.
    unsafe { text::to_bytes::<Wide>(x, out, scales) }
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
pub unsafe fn attend(q: &Queries, kv: KvHead, out: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe { attention::attend::<Wide>(q, kv, out) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub unsafe fn product_packed(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { product::product::<Whole>(w, first, count, acts, out, post) }
}

/// Sixteen integer lanes in one register.
#[derive(Clone, Copy)]
pub struct Whole(__m512i);

// SAFETY of the blocks below: the features are the contract of every method; pointers hold what the trait says.
impl Ints for Whole {
    type Floats = Wide;
    const PAIRS: bool = false;
    const SIGNED: bool = false;
    const GROUPS: usize = 2;
    const TOKENS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        // SAFETY: see above; so everywhere here.
        unsafe { Self(_mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn load(line: *const u8) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_load_si512(line.cast())) }
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_and_si512(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_or_si512(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_xor_si512(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn left(self, bits: i32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_sll_epi16(self.0, _mm_cvtsi32_si128(bits))) }
    }
    #[inline(always)]
    unsafe fn right(self, bits: i32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_srl_epi16(self.0, _mm_cvtsi32_si128(bits))) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[u8; 16]) -> Self {
        // SAFETY: see above.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            Self(_mm512_shuffle_epi8(table, self.0))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_add_epi32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn next_plane(self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_slli_epi32::<PLANE_SHIFT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn floats(self) -> Wide {
        // SAFETY: see above.
        unsafe { Wide(_mm512_cvtepi32_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn dot(self, word: Self, x: *const i32, j: usize) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_dpbusd_epi32(self.0, word.0, _mm512_set1_epi32(*x.add(j)))) }
    }
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tile<const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post) {
        // SAFETY: as the contract.
        unsafe { product::tile::<Self, F, G, T>(s, out, post) }
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
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
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
    unsafe fn store_quants(block: [Self; 2], high: Option<*mut i32>, low: *mut i32) -> [i32; 2] {
        // SAFETY: see above; 8 words at each pointer.
        unsafe {
            let mut q = [_mm512_cvtps_epi32(block[0].0), _mm512_cvtps_epi32(block[1].0)];
            let sums = q.map(|q| _mm512_reduce_add_epi32(q));
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
            sums
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
