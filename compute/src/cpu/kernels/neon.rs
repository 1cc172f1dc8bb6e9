//! NEON with the dot-product extension: the text over four registers, packed products a group at a time.
//!
//! Unsafe for two reasons only: functions need processor features, and they read through raw pointers inside bounds that
//! the callers in `kernels` assert.
#![allow(unsafe_code)]

use super::{
    super::{
        acts::{Acts, PLANE_SHIFT, Planes, Rows},
        packed::{LANES, Packed},
        plain::Plain,
    },
    KvHead, Norm, Post, Queries, View, attention,
    product::{self, Ints, Source},
    text,
    vector::Vector,
};
use half::{bf16, f16};
use std::{
    arch::{aarch64::*, asm},
    array,
};

/// # Safety
/// Features, and bounds as asserted in `kernels`; so for every function here.
#[target_feature(enable = "neon")]
pub unsafe fn quantise(x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    // SAFETY: as the contract.
    unsafe { text::quantise::<Wide, text::Bytes>(x, k, planes, norm, record) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon")]
pub unsafe fn normalise(x: View, k: usize, norm: Option<Norm>, row: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe { text::normalise::<Wide>(x, k, norm, row) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon")]
pub unsafe fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    // SAFETY: as the contract.
    unsafe { text::rotate::<Wide>(x, cos, sin, scale) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon")]
pub unsafe fn to_halves(x: &[f32], out: &mut [f16]) {
    // SAFETY: as the contract.
    unsafe { text::to_halves::<Wide>(x, out) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon")]
pub unsafe fn to_bytes(x: &[f32], out: &mut [i8], scales: &mut [f16]) {
    // SAFETY: as the contract.
    unsafe { text::to_bytes::<Wide>(x, out, scales) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon")]
pub unsafe fn finish_all(sums: &[f32], out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { text::finish_all::<Wide>(sums, out, post) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon")]
pub unsafe fn product_plain(w: Plain, first: usize, count: usize, x: &Rows, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { text::product_plain::<Wide>(w, first, count, x, out, post) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon")]
pub unsafe fn attend(q: &Queries, kv: KvHead, out: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe { attention::attend::<Wide>(q, kv, out) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn product_packed(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { product::product::<Quarters>(w, first, count, acts, out, post) }
}

/// Sixteen integer lanes in four registers.
#[derive(Clone, Copy)]
pub struct Quarters([int32x4_t; 4]);

impl Quarters {
    /// Each register through `f`.
    #[inline(always)]
    fn each(self, f: impl Fn(int32x4_t) -> int32x4_t) -> Self {
        Self(self.0.map(f))
    }

    /// Each pair of registers through `f`.
    #[inline(always)]
    fn with(self, other: Self, f: impl Fn(int32x4_t, int32x4_t) -> int32x4_t) -> Self {
        Self(array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY of the blocks below: the features are the contract of every method; pointers hold what the trait says.
impl Ints for Quarters {
    type Floats = Wide;
    const PAIRS: bool = false;
    const SIGNED: bool = true;
    const GROUPS: usize = 1;
    // Twelve sums of each kind, four words and an activation: 29 of 32 registers.
    const TOKENS: usize = 3;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        // SAFETY: see above; so everywhere here.
        unsafe { Self([vdupq_n_s32(x); 4]) }
    }
    #[inline(always)]
    unsafe fn load(line: *const u8) -> Self {
        // SAFETY: see above.
        unsafe { Self(array::from_fn(|i| vreinterpretq_s32_u8(vld1q_u8(line.add(i * 16))))) }
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { vandq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { vorrq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { veorq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn left(self, bits: i32) -> Self {
        // SAFETY: see above.
        self.each(|q| unsafe {
            let shifted = vshlq_u16(vreinterpretq_u16_s32(q), vdupq_n_s16(bits as i16));
            vreinterpretq_s32_u16(shifted)
        })
    }
    #[inline(always)]
    unsafe fn right(self, bits: i32) -> Self {
        // SAFETY: see above. A shift by less than nothing is one to the right.
        unsafe { self.left(-bits) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[u8; 16]) -> Self {
        // SAFETY: see above.
        self.each(|q| unsafe { vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_s32(q))) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { vaddq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn next_plane(self) -> Self {
        // SAFETY: see above.
        self.each(|q| unsafe { vshlq_n_s32::<{ PLANE_SHIFT as i32 }>(q) })
    }
    #[inline(always)]
    unsafe fn floats(self) -> Wide {
        // SAFETY: see above.
        Wide(self.0.map(|q| unsafe { vcvtq_f32_s32(q) }))
    }
    #[inline(always)]
    unsafe fn dot(self, word: Self, x: *const i32, j: usize) -> Self {
        // SAFETY: see above.
        unsafe {
            let x = vld1q_dup_s32(x.add(j));
            self.with(word, |acc, word| sdot(acc, word, x))
        }
    }
    #[inline(never)]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn tile<const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post) {
        // SAFETY: as the contract.
        unsafe { product::tile::<Self, F, G, T>(s, out, post) }
    }
}

/// Adds to each lane the four products of its signed bytes (the intrinsic `vdotq_s32` is not stable yet).
///
/// # Safety
/// The dot-product extension.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(mut acc: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: the extension is this function's; registers only.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// Sixteen lanes in four registers.
#[derive(Clone, Copy)]
pub struct Wide([float32x4_t; 4]);

impl Wide {
    /// Each register through `f`.
    #[inline(always)]
    fn each(self, f: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Self(self.0.map(f))
    }

    /// Each pair of registers through `f`.
    #[inline(always)]
    fn with(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    /// The four registers folded onto each other, and their lanes; `f` joins a lower lane and a higher one.
    #[inline(always)]
    fn fold(self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> f32 {
        let [a, b, c, d] = self.0;
        let s = f(f(a, c), f(b, d));
        // SAFETY: every aarch64 target of this file has NEON.
        unsafe {
            let s = f(s, vextq_f32::<2>(s, s));
            vgetq_lane_f32::<0>(f(s, vextq_f32::<1>(s, s)))
        }
    }
}

/// The larger; `b` when either is not a number (`fmax` would pass that on).
#[inline(always)]
fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every aarch64 target of this file has NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// The smaller; `b` when either is not a number.
#[inline(always)]
fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every aarch64 target of this file has NEON.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

// SAFETY of the blocks below: the features are the contract of every method; pointers hold 16 elements.
impl Vector for Wide {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above; so everywhere here.
        unsafe { Self([vdupq_n_f32(x); 4]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(array::from_fn(|i| vld1q_f32(from.add(i * 4)))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, quarter) in self.0.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1q_f32(to.add(i * 4), quarter) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        unsafe { Self(array::from_fn(|i| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.add(i * 4).cast()))))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        for (i, quarter) in self.0.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1_u16(to.add(i * 4).cast(), vreinterpret_u16_f16(vcvt_f16_f32(quarter))) };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: see above.
        unsafe { Self(array::from_fn(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(i * 4).cast()))))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_s8(from);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let ints = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            Quarters(ints).floats()
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see above.
        self.with(other, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(array::from_fn(|i| vfmaq_f32(plus.0[i], self.0[i], by.0[i]))) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.with(other, larger)
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.with(other, smaller)
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see above.
        self.each(|v| unsafe { vabsq_f32(v) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see above.
        self.each(|v| unsafe { vrndnq_f32(v) })
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        // SAFETY: see above.
        self.each(|v| unsafe {
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(v), vdupq_n_s32(127))))
        })
    }
    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        // SAFETY: see above.
        self.each(|v| unsafe { vrev64q_f32(v) })
    }
    #[inline(always)]
    unsafe fn first(self, live: usize, other: Self) -> Self {
        const LANE: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        // SAFETY: see above.
        unsafe {
            let live = vdupq_n_u32(live as u32);
            Self(array::from_fn(|i| {
                let is_live = vcltq_u32(vld1q_u32(LANE.as_ptr().add(i * 4)), live);
                vbslq_f32(is_live, self.0[i], other.0[i])
            }))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see above.
        self.fold(|a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn top(self) -> f32 {
        self.fold(larger)
    }
    #[inline(always)]
    unsafe fn store_quants(block: [Self; 2], high: Option<*mut i32>, low: *mut i32) -> [i32; 2] {
        // SAFETY: see above; 8 words at each pointer.
        unsafe {
            let mut q = block.map(|half| Quarters(half.0.map(|v| vcvtnq_s32_f32(v))));
            let sums = q.map(|Quarters([a, b, c, d])| vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d))));
            if let Some(high) = high {
                const SHIFT: i32 = PLANE_SHIFT as i32;
                let top = q.map(|q| q.each(|q| vshrq_n_s32::<SHIFT>(vaddq_s32(q, vdupq_n_s32(1 << (SHIFT - 1))))));
                put(top, high);
                for i in 0..2 {
                    q[i] = q[i].with(top[i], |q, top| vsubq_s32(q, vshlq_n_s32::<SHIFT>(top)));
                }
            }
            put(q, low);
            sums
        }
    }
}

/// Stores 32 small integers as bytes.
///
/// # Safety
/// 8 words at `to`.
#[inline(always)]
unsafe fn put(q: [Quarters; 2], to: *mut i32) {
    for (i, Quarters([a, b, c, d])) in q.into_iter().enumerate() {
        // SAFETY: every aarch64 target of this file has NEON; the caller has the words.
        unsafe {
            let low = vmovn_high_s32(vmovn_s32(a), b);
            let high = vmovn_high_s32(vmovn_s32(c), d);
            vst1q_s8(to.add(i * 4).cast(), vmovn_high_s16(vmovn_s16(low), high));
        }
    }
}
