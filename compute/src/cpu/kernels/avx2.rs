//! AVX2 with FMA and F16C: the text over pairs of registers, packed products a group at a time.
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
    text::{self, Record},
    vector::Vector,
};
use half::{bf16, f16};
use std::{
    arch::{asm, x86_64::*},
    marker::PhantomData,
};

/// # Safety
/// Features, and bounds as asserted in `kernels`; so for every function here.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn quantise(x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    // SAFETY: as the contract.
    unsafe { text::quantise::<Wide, Pairs>(x, k, planes, norm, record) }
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
pub unsafe fn to_bytes(x: &[f32], out: &mut [i8], scales: &mut [f16]) {
    // SAFETY: as the contract.
    unsafe { text::to_bytes::<Wide>(x, out, scales) }
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
pub unsafe fn attend(q: &Queries, kv: KvHead, out: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe { attention::attend::<Wide>(q, kv, out) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn product_packed(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { product::product::<Halves<Madd>>(w, first, count, acts, out, post) }
}

/// Sixteen integer lanes in two registers, multiplied as `D` does.
pub struct Halves<D>(pub [__m256i; 2], PhantomData<D>);

impl<D> Clone for Halves<D> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<D> Copy for Halves<D> {}

impl<D> Halves<D> {
    #[inline(always)]
    pub fn new(halves: [__m256i; 2]) -> Self {
        Self(halves, PhantomData)
    }
}

/// How 256-bit registers multiply quants.
///
/// # Safety
/// Methods need the processor features of their level.
pub trait Dot: Sized {
    /// As in [`Ints`].
    const PAIRS: bool;
    /// As in [`Ints`].
    const TOKENS: usize;
    /// As in [`Ints`].
    unsafe fn dot(acc: [__m256i; 2], word: [__m256i; 2], x: *const i32, j: usize) -> [__m256i; 2];
    /// As in [`Ints`].
    unsafe fn tile<const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post);
}

/// Products of 16 bits, since those of bytes would saturate: `vpmaddwd` takes pairs of whole quants, so both planes cost
/// what one would, and one plane is no faster than two.
pub struct Madd;

impl Dot for Madd {
    const PAIRS: bool = true;
    const TOKENS: usize = 4;

    #[inline(always)]
    unsafe fn dot(mut acc: [__m256i; 2], word: [__m256i; 2], x: *const i32, j: usize) -> [__m256i; 2] {
        // SAFETY: features; words 2j and 2j + 1 of the block.
        unsafe {
            let even = _mm256_set1_epi32(*x.add(2 * j));
            let odd = _mm256_set1_epi32(*x.add(2 * j + 1));
            for h in 0..2 {
                let low = _mm256_and_si256(word[h], _mm256_set1_epi16(255));
                let high = _mm256_srli_epi16::<8>(word[h]);
                acc[h] = _mm256_add_epi32(acc[h], _mm256_madd_epi16(low, even));
                acc[h] = _mm256_add_epi32(acc[h], _mm256_madd_epi16(high, odd));
            }
            acc.map(|sum| in_register(sum))
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post) {
        // SAFETY: as the contract.
        unsafe { product::tile::<Halves<Self>, F, G, T>(s, out, post) }
    }
}

/// The same sum, of which the compiler knows nothing: else it would add the products of a whole block in an order of its own, for which
/// it keeps so many of them that most lie on the stack.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn in_register(mut sum: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags)) };
    sum
}

/// Quants as pairs of 16 bits: of elements 0 to 3, word 0 holds 0 and 2, word 1 holds 1 and 3, and so on.
struct Pairs;

impl Record<Wide> for Pairs {
    #[inline(always)]
    unsafe fn put(block: [Wide; 2], _: Planes, quants: *mut i32, _: usize, b: usize) -> [i32; 2] {
        // SAFETY: features; 16 words of block b.
        unsafe {
            let mut sums = [0; 2];
            for (i, part) in block.into_iter().enumerate() {
                let q = part.0.map(|half| _mm256_cvtps_epi32(half));
                sums[i] = sum(_mm256_add_epi32(q[0], q[1]));
                let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(q[0], q[1]));
                let order = _mm256_set1_epi64x(0x0706_0302_0504_0100);
                let order =
                    _mm256_add_epi8(order, _mm256_setr_epi64x(0, 0x0808_0808_0808_0808, 0, 0x0808_0808_0808_0808));
                _mm256_storeu_si256(quants.add(b * 16 + i * 8).cast(), _mm256_shuffle_epi8(halves, order));
            }
            sums
        }
    }
}

/// Both halves of one or more integer vectors through an intrinsic.
macro_rules! both_ints {
    ($f:ident($($v:expr),*)) => { Self::new([$f($($v.0[0]),*), $f($($v.0[1]),*)]) };
}

// SAFETY of the blocks below: the features are the contract of every method; pointers hold what the trait says.
impl<D: Dot> Ints for Halves<D> {
    type Floats = Wide;
    const PAIRS: bool = D::PAIRS;
    const SIGNED: bool = false;
    const GROUPS: usize = 1;
    const TOKENS: usize = D::TOKENS;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        // SAFETY: see above; so everywhere here.
        unsafe { Self::new([_mm256_set1_epi32(x); 2]) }
    }
    #[inline(always)]
    unsafe fn load(line: *const u8) -> Self {
        // SAFETY: see above.
        unsafe { Self::new([_mm256_load_si256(line.cast()), _mm256_load_si256(line.add(32).cast())]) }
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both_ints!(_mm256_and_si256(self, other)) }
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both_ints!(_mm256_or_si256(self, other)) }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both_ints!(_mm256_xor_si256(self, other)) }
    }
    #[inline(always)]
    unsafe fn left(self, bits: i32) -> Self {
        // SAFETY: see above.
        unsafe { Self::new(self.0.map(|half| _mm256_sll_epi16(half, _mm_cvtsi32_si128(bits)))) }
    }
    #[inline(always)]
    unsafe fn right(self, bits: i32) -> Self {
        // SAFETY: see above.
        unsafe { Self::new(self.0.map(|half| _mm256_srl_epi16(half, _mm_cvtsi32_si128(bits)))) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[u8; 16]) -> Self {
        // SAFETY: see above.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            Self::new(self.0.map(|half| _mm256_shuffle_epi8(table, half)))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { both_ints!(_mm256_add_epi32(self, other)) }
    }
    #[inline(always)]
    unsafe fn next_plane(self) -> Self {
        // SAFETY: see above.
        unsafe { Self::new(self.0.map(|half| _mm256_slli_epi32::<{ PLANE_SHIFT as i32 }>(half))) }
    }
    #[inline(always)]
    unsafe fn floats(self) -> Wide {
        // SAFETY: see above.
        unsafe { Wide(self.0.map(|half| _mm256_cvtepi32_ps(half))) }
    }
    #[inline(always)]
    unsafe fn dot(self, word: Self, x: *const i32, j: usize) -> Self {
        // SAFETY: see above.
        unsafe { Self::new(D::dot(self.0, word.0, x, j)) }
    }
    #[inline(always)]
    unsafe fn tile<const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post) {
        // SAFETY: see above.
        unsafe { D::tile::<F, G, T>(s, out, post) }
    }
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum(q: __m256i) -> i32 {
    let q = _mm_add_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
    let q = _mm_add_epi32(q, _mm_shuffle_epi32::<0b01_00_11_10>(q));
    _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32::<0b00_00_00_01>(q)))
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
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
            Self([_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)])
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
    unsafe fn store_quants(block: [Self; 2], high: Option<*mut i32>, low: *mut i32) -> [i32; 2] {
        // SAFETY: see above; 8 words at each pointer.
        unsafe {
            let mut q = [
                _mm256_cvtps_epi32(block[0].0[0]),
                _mm256_cvtps_epi32(block[0].0[1]),
                _mm256_cvtps_epi32(block[1].0[0]),
                _mm256_cvtps_epi32(block[1].0[1]),
            ];
            let sums = [sum(_mm256_add_epi32(q[0], q[1])), sum(_mm256_add_epi32(q[2], q[3]))];
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
            sums
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
