//! Keys and values of one sequence in one stage, preallocated up to the context; never grown.
//!
//! Layout `[layer][kv head]{keys, values}`, keys as `[pos / 16][d][16]`, values as `[pos][padded d]`, halves. Memory is
//! zero pages until positions are written, so a long context costs address space first and memory as it fills.

use super::kernels::{KV_TILE, padded_head};
use half::{f16, slice::HalfBitsSliceExt};

/// The key/value store of a sequence.
pub struct Cache {
    bits: Vec<u16>,
    /// Halves of keys of one head.
    key_halves: usize,
    /// Halves of keys and values of one head.
    head_halves: usize,
    /// Halves of a layer.
    layer_halves: usize,
}

impl Cache {
    /// Room for `context` positions of `layers` layers with `kv_heads` heads of `width`.
    pub fn new(layers: usize, kv_heads: usize, width: usize, context: usize) -> Self {
        let room = context.next_multiple_of(KV_TILE);
        let (key_halves, padded) = (room * width, padded_head(width));
        let head_halves = key_halves + room * padded;
        let layer_halves = head_halves * kv_heads;
        let mut bits = vec![0u16; layers * layer_halves];
        super::pages::prefer_huge(&mut bits);
        Self { bits, key_halves, head_halves, layer_halves }
    }

    /// Bytes that a cache of these sizes takes when full.
    pub fn bytes(layers: u64, kv_heads: u64, width: usize, context: u64) -> u64 {
        let room = context.next_multiple_of(KV_TILE as u64);
        room * Self::position_bytes(layers, kv_heads, width)
    }

    /// Bytes that a position takes.
    pub fn position_bytes(layers: u64, kv_heads: u64, width: usize) -> u64 {
        layers * kv_heads * (width + padded_head(width)) as u64 * 2
    }

    /// Halves of keys of one head; values follow.
    pub fn key_halves(&self) -> usize {
        self.key_halves
    }

    /// Halves of keys and values of one head.
    pub fn head_halves(&self) -> usize {
        self.head_halves
    }

    /// All heads of a layer of this stage.
    pub fn layer(&self, layer: usize) -> &[f16] {
        self.bits[layer * self.layer_halves..][..self.layer_halves].reinterpret_cast()
    }

    /// All heads of a layer of this stage, to be written.
    pub fn layer_mut(&mut self, layer: usize) -> &mut [f16] {
        self.bits[layer * self.layer_halves..][..self.layer_halves].reinterpret_cast_mut()
    }

    /// Keys and values of one head of a layer.
    pub fn head(&self, layer: usize, head: usize) -> (&[f16], &[f16]) {
        self.layer(layer)[head * self.head_halves..][..self.head_halves].split_at(self.key_halves)
    }
}
