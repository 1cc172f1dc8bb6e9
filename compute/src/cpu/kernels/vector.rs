//! Sixteen F32 lanes, in the instructions of each level: the words that `text` is written in.
//!
//! Every operation here gives the same bits at every level (IEEE arithmetic, one fixed order in reductions), so `text`
//! means the same everywhere. The methods are `inline(always)` and unsafe because they need the level's features: they
//! may only be called, directly or not, from a function that enables them.
#![allow(unsafe_code)]

use super::super::packed::LANES;
use half::{bf16, f16};

/// Sixteen lanes of F32.
///
/// # Safety
/// Methods need the processor features of their level; pointers must hold 16 elements.
pub trait Vector: Copy {
    /// Groups of rows that a plain tile takes at once (two where there are 32 registers).
    const WIDE: bool;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn store_f16(self, to: *mut f16);
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn load_i8(from: *const i8) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * by + plus`, rounded once.
    unsafe fn fma(self, by: Self, plus: Self) -> Self;
    /// The larger; `other` when either is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` when either is not a number.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// Two to the power of integral lanes within -126..=127.
    unsafe fn exp2i(self) -> Self;
    /// Lanes 0 and 1 exchanged, 2 and 3, and so on.
    unsafe fn swap_pairs(self) -> Self;
    /// The first `live` lanes of self, the rest of `other`.
    unsafe fn first(self, live: usize, other: Self) -> Self;
    /// The sum: halves folded onto each other, 8 then 4 then 2 then 1 lanes.
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn top(self) -> f32;
    /// Rounds 32 lanes to integers (ties to even) and stores them as 32 bytes at `low`; with `high`, as two planes, the
    /// high one there. Returns the sums of the first 16 and of the others.
    unsafe fn store_quants(block: [Self; 2], high: Option<*mut i32>, low: *mut i32) -> [i32; 2];
}

/// The scalar lanes.
#[derive(Clone, Copy)]
pub struct Lanes([f32; LANES]);

impl Lanes {
    #[inline(always)]
    fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY of the reads and writes below: the caller gives pointers to 16 elements; no processor feature is needed.
impl Vector for Lanes {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: see above.
        Self(unsafe { from.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: see above.
        unsafe { to.cast::<[f16; LANES]>().write_unaligned(self.0.map(f16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: see above.
        Self(
            unsafe { from.cast::<[bf16; LANES]>().read_unaligned() }
                .map(|x| f32::from_bits((x.to_bits() as u32) << 16)),
        )
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see above.
        Self(unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.with(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(by.0[i], plus.0[i])))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.with(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.with(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn exp2i(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        Self(std::array::from_fn(|i| self.0[i ^ 1]))
    }
    #[inline(always)]
    unsafe fn first(self, live: usize, other: Self) -> Self {
        Self(std::array::from_fn(|i| if i < live { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut s = self.0;
        for width in [8, 4, 2, 1] {
            (0..width).for_each(|i| s[i] += s[i + width]);
        }
        s[0]
    }
    #[inline(always)]
    unsafe fn top(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
    #[inline(always)]
    unsafe fn store_quants(block: [Self; 2], high: Option<*mut i32>, low: *mut i32) -> [i32; 2] {
        // SAFETY: the caller gives 8 words at each pointer.
        unsafe { store_quants(block[0].0, block[1].0, high, low) }
    }
}

/// The plain meaning of [`Vector::store_quants`].
///
/// # Safety
/// Each pointer holds 8 words.
#[inline(always)]
unsafe fn store_quants(a: [f32; LANES], b: [f32; LANES], high: Option<*mut i32>, low: *mut i32) -> [i32; 2] {
    use super::super::acts::PLANE_SHIFT;
    let mut q = [0i32; 2 * LANES];
    for i in 0..LANES {
        q[i] = a[i].round_ties_even() as i32;
        q[LANES + i] = b[i].round_ties_even() as i32;
    }
    let sum = |half: &[i32]| half.iter().fold(0i32, |s, q| s.wrapping_add(*q));
    let sums = [sum(&q[..LANES]), sum(&q[LANES..])];
    if let Some(high) = high {
        let top = q.map(|q| q.wrapping_add(1 << (PLANE_SHIFT - 1)) >> PLANE_SHIFT);
        (0..2 * LANES).for_each(|i| q[i] = q[i].wrapping_sub(top[i] << PLANE_SHIFT));
        // SAFETY: 8 words.
        unsafe { high.cast::<[u8; 2 * LANES]>().write_unaligned(top.map(|q| q as u8)) };
    }
    // SAFETY: 8 words.
    unsafe { low.cast::<[u8; 2 * LANES]>().write_unaligned(q.map(|q| q as u8)) };
    sums
}
