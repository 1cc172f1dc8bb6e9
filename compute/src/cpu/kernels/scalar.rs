//! The kernels without any processor feature: the text over plain lanes, and the plain integer product.
#![allow(unsafe_code)]

use super::{
    super::{
        acts::{Acts, PLANE_SHIFT, Planes, Rows},
        packed::{BLOCK, LANES, Packed},
        plain::Plain,
    },
    KvHead, Norm, Post, Queries, View, attention, text,
    vector::{Lanes, Vector},
};
use half::f16;
use std::ops::Range;

/// # Safety
/// Bounds as asserted in `kernels`; so for every function here.
pub unsafe fn quantise(x: View, k: usize, planes: Planes, norm: Option<Norm>, record: &mut [i32]) {
    // SAFETY: bounds.
    unsafe { text::quantise::<Lanes, text::Bytes>(x, k, planes, norm, record) }
}

/// # Safety
/// Bounds.
pub unsafe fn normalise(x: View, k: usize, norm: Option<Norm>, row: &mut [f32]) {
    // SAFETY: bounds.
    unsafe { text::normalise::<Lanes>(x, k, norm, row) }
}

/// # Safety
/// Bounds.
pub unsafe fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    // SAFETY: bounds.
    unsafe { text::rotate::<Lanes>(x, cos, sin, scale) }
}

/// # Safety
/// Bounds.
pub unsafe fn to_halves(x: &[f32], out: &mut [f16]) {
    // SAFETY: bounds.
    unsafe { text::to_halves::<Lanes>(x, out) }
}

/// # Safety
/// Bounds.
pub unsafe fn to_bytes(x: &[f32], out: &mut [i8], scales: &mut [f16]) {
    // SAFETY: bounds.
    unsafe { text::to_bytes::<Lanes>(x, out, scales) }
}

/// # Safety
/// Bounds.
pub unsafe fn finish_all(sums: &[f32], out: &mut [f32], post: Post) {
    // SAFETY: bounds.
    unsafe { text::finish_all::<Lanes>(sums, out, post) }
}

/// # Safety
/// Bounds.
pub unsafe fn product_plain(w: Plain, first: usize, count: usize, x: &Rows, out: &mut [f32], post: Post) {
    // SAFETY: bounds.
    unsafe { text::product_plain::<Lanes>(w, first, count, x, out, post) }
}

/// # Safety
/// Bounds.
pub unsafe fn attend(q: &Queries, kv: KvHead, out: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe { attention::attend::<Lanes>(q, kv, out) }
}

/// # Safety
/// Bounds.
pub unsafe fn product_packed(w: Packed, first: usize, count: usize, acts: &Acts, out: &mut [f32], post: Post) {
    let per = if post == Post::SwiGlu { 2 } else { 1 };
    for g in (0..count).step_by(per) {
        for t in 0..acts.tokens {
            let record = &acts.words[t * acts.stride..];
            let out = &mut out[(g / per * acts.tokens + t) * LANES..][..LANES];
            // SAFETY: 16 values at `out`.
            unsafe {
                let mut sum = sums(w, first + g, acts, record);
                if post == Post::SwiGlu {
                    sum = text::silu(sum).mul(sums(w, first + g + 1, acts, record));
                }
                text::finish(sum, out.as_mut_ptr(), post);
            }
        }
    }
}

/// The dot products of a group's 16 rows with one record.
fn sums(w: Packed, g: usize, acts: &Acts, record: &[i32]) -> Lanes {
    let row: [f32; LANES] = std::array::from_fn(|lane| dot(w, g * LANES + lane, acts, record));
    // SAFETY: 16 values.
    unsafe { Lanes::load(row.as_ptr()) }
}

fn dot(w: Packed, row: usize, acts: &Acts, record: &[i32]) -> f32 {
    let head = |which: usize, b: usize| record[acts.head() + which * w.blocks + b];
    let parts = w.format.scales_a_block();
    (0..w.blocks).fold(0.0, |sum: f32, b| {
        let dx = f32::from_bits(head(0, b) as u32);
        // Minus the sum of a part's quants.
        let less = if parts == 1 { [head(1, b), 0] } else { [head(3, b), head(1, b) - head(3, b)] };
        let sum = (0..parts).fold(sum, |sum, part| {
            let elements = part * BLOCK / parts..(part + 1) * BLOCK / parts;
            let planes = (0..acts.planes.count())
                .fold(0, |i, p| (i << PLANE_SHIFT) + block_dot(w, row, b, &record[p * acts.k / 4..], elements.clone()));
            let ints = planes + w.format.offset() * less[part];
            (ints as f32).mul_add(w.scale(row, b, part) * dx, sum)
        });
        if !w.format.has_min() {
            return sum;
        }
        w.min(row, b).mul_add(f32::from_bits(head(2, b) as u32), sum)
    })
}

/// Dot product of some elements of one block: exact in integers.
fn block_dot(w: Packed, row: usize, b: usize, plane: &[i32], elements: Range<usize>) -> i32 {
    elements.map(|i| w.quant(row, b, i) as i32 * (plane[b * 8 + i / 4] >> (i % 4 * 8)) as i8 as i32).sum()
}
