//! AVX2 with AVX-VNNI: as AVX2, but bytes are multiplied as AVX-512 does it, in registers of half the width.
#![allow(unsafe_code)]

pub use super::avx2::{attend, finish_all, normalise, product_plain, rotate, to_bytes, to_halves};

use super::{
    super::{
        acts::{Acts, Planes},
        packed::Packed,
    },
    Norm, Post, View,
    avx2::{Dot, Halves, Wide},
    product::{self, Source},
    text,
};
use std::arch::x86_64::*;

/// # Safety
/// Features, and bounds as asserted in `kernels`; so for every function here.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn quantise(x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    // SAFETY: as the contract.
    unsafe { text::quantise::<Wide, text::Bytes>(x, k, planes, norm, record) }
}

/// # Safety
/// Features, bounds.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub unsafe fn product_packed(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    // SAFETY: as the contract.
    unsafe { product::product::<Halves<Vnni>>(w, first, count, acts, out, post) }
}

/// Four products of bytes, summed: `vpdpbusd`.
struct Vnni;

impl Dot for Vnni {
    const PAIRS: bool = false;
    const TOKENS: usize = 6;

    #[inline(always)]
    unsafe fn dot(acc: [__m256i; 2], word: [__m256i; 2], x: *const i32, j: usize) -> [__m256i; 2] {
        // SAFETY: features; word j of the block.
        unsafe {
            let x = _mm256_set1_epi32(*x.add(j));
            [_mm256_dpbusd_avx_epi32(acc[0], word[0], x), _mm256_dpbusd_avx_epi32(acc[1], word[1], x)]
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn tile<const F: u8, const G: usize, const T: usize>(s: &Source<G>, out: *mut f32, post: Post) {
        // SAFETY: as the contract.
        unsafe { product::tile::<Halves<Self>, F, G, T>(s, out, post) }
    }
}
