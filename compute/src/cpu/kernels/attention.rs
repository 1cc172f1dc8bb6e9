//! Attention: queries that read the same keys and values, a tile of 64 positions at a time with a running maximum.
//!
//! (The maximum as in Milakov and Gimelshein 2018, section 3; tiles as in FlashAttention, Dao et al. 2022.) As many
//! queries as registers hold go over a tile together, so that each key and value is loaded and widened once for all of
//! them. Each has its own first and last position.
//!
//! Invariant: a query's sums run in the order of its own positions, and nothing that it doesn't attend to is added, not even
//! as zero: what it becomes does not depend on which queries are beside it.
#![allow(unsafe_code)]
// Indices run over several register arrays at once; iterators hide that.
#![allow(clippy::needless_range_loop)]

use super::{
    super::{
        kv::{KV_BLOCK, KvFormat},
        lines::Line,
        packed::LANES,
    },
    HEAD_WIDTH_MAX, KV_TILE, KvHead, QUERIES_MAX, Queries, padded_head,
    text::exp,
    vector::Vector,
};
use half::f16;
use std::{mem::MaybeUninit, ops::Range};

/// Registers of sixteen keys in a tile.
const CHUNKS: usize = KV_TILE / LANES;

/// The most blocks that a head has.
const BLOCKS_MAX: usize = HEAD_WIDTH_MAX / KV_BLOCK;

/// Weights of a tile's positions for `H` queries, for each block of their values.
type Scaled<const H: usize> = [MaybeUninit<[[f32; KV_TILE]; H]>; BLOCKS_MAX];

/// How a tile's keys and values are read ([`super::super::kv`]).
///
/// # Safety
/// Methods need the processor features of `V`, and pointers into a tile of the format.
trait Stored {
    /// Elements of a key or value that are summed before they are scaled.
    const BLOCK: usize;

    /// Sixteen elements from `at` on.
    unsafe fn load<V: Vector>(from: *const Line, at: usize) -> V;

    /// Adds a block's sums of 16 positions, `chunk` of the tile's, to what `to` holds of the blocks before.
    unsafe fn put<V: Vector>(sum: V, keys: *const Line, d: usize, chunk: usize, block: usize, to: *mut f32);

    /// Weights by block of values, made in `room` where they differ.
    unsafe fn scaled<'a, V: Vector, const H: usize>(
        weights: &'a [[f32; KV_TILE]; H],
        values: *const Line,
        chunks: usize,
        room: &'a mut Scaled<H>,
    ) -> *const [[f32; KV_TILE]; H];
}

/// As halves: there are no scales, and one block.
struct Halves;

impl Stored for Halves {
    const BLOCK: usize = HEAD_WIDTH_MAX;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Line, at: usize) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_f16(from.cast::<f16>().add(at)) }
    }

    #[inline(always)]
    unsafe fn put<V: Vector>(sum: V, _: *const Line, _: usize, _: usize, _: usize, to: *mut f32) {
        // SAFETY: as the contract.
        unsafe { sum.store(to) }
    }

    #[inline(always)]
    unsafe fn scaled<'a, V: Vector, const H: usize>(
        weights: &'a [[f32; KV_TILE]; H],
        _: *const Line,
        _: usize,
        _: &'a mut Scaled<H>,
    ) -> *const [[f32; KV_TILE]; H] {
        weights
    }
}

/// As bytes with scales: a block of a key is scaled once it is summed, values by way of their weights.
struct Bytes;

impl Stored for Bytes {
    const BLOCK: usize = KV_BLOCK;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Line, at: usize) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_i8(from.cast::<i8>().add(at)) }
    }

    #[inline(always)]
    unsafe fn put<V: Vector>(sum: V, keys: *const Line, d: usize, chunk: usize, block: usize, to: *mut f32) {
        // SAFETY: scales follow the bytes of the tile's keys, `[chunk][block][16]`; 16 values at `to`.
        unsafe {
            let scales = keys.byte_add(KV_TILE * d).cast::<f16>();
            let scale = V::load_f16(scales.add((chunk * d.div_ceil(KV_BLOCK) + block) * LANES));
            let sum = if block == 0 { sum.mul(scale) } else { sum.fma(scale, V::load(to)) };
            sum.store(to);
        }
    }

    #[inline(always)]
    unsafe fn scaled<'a, V: Vector, const H: usize>(
        weights: &'a [[f32; KV_TILE]; H],
        values: *const Line,
        chunks: usize,
        room: &'a mut Scaled<H>,
    ) -> *const [[f32; KV_TILE]; H] {
        // SAFETY: scales follow the bytes of the tile's values, `[block][64]`; the room is of the most blocks.
        unsafe {
            let scales = values.byte_add(KV_TILE * chunks * LANES).cast::<f16>();
            for block in 0..(chunks * LANES).div_ceil(KV_BLOCK) {
                let to = room[block].as_mut_ptr().cast::<f32>();
                for c in 0..CHUNKS {
                    let scale = V::load_f16(scales.add(block * KV_TILE + c * LANES));
                    for h in 0..H {
                        let weight = V::load(weights[h].as_ptr().add(c * LANES));
                        weight.mul(scale).store(to.add(h * KV_TILE + c * LANES));
                    }
                }
            }
        }
        room.as_ptr().cast()
    }
}

/// What is known of a query after some tiles, beside its weighted values.
#[derive(Clone, Copy)]
struct State<V> {
    /// The largest score.
    top: f32,
    /// The weights' sum.
    total: V,
}

/// See `kernels::attend`.
///
/// # Safety
/// The processor features of `V`, and bounds as asserted there; so for every function here.
#[inline(always)]
pub unsafe fn attend<V: Vector>(q: &Queries, kv: KvHead, out: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe {
        match kv.format {
            KvFormat::F16 => attend_to::<V, Halves>(q, kv, out),
            KvFormat::Int8 => attend_to::<V, Bytes>(q, kv, out),
        }
    }
}

#[inline(always)]
unsafe fn attend_to<V: Vector, S: Stored>(q: &Queries, kv: KvHead, out: &mut [f32]) {
    // SAFETY: as the contract.
    unsafe {
        let chunks = padded_head(q.width) / LANES;
        let start = State { top: f32::NEG_INFINITY, total: V::splat(0.0) };
        let mut walk = Walk { q, chunks, states: [start; QUERIES_MAX], out: out.as_mut_ptr() };
        for to in q.to {
            (0..chunks).for_each(|c| V::splat(0.0).store(walk.out.add(to + c * LANES)));
        }
        let (first, end) = (q.at[0].start / KV_TILE, q.at[q.at.len() - 1].end.div_ceil(KV_TILE));
        let (mut from, mut until) = (0, 0);
        for tile in first..end {
            // Both ends of what queries attend to are in order: those that read the tile are a run.
            while q.at[from].end <= tile * KV_TILE {
                from += 1;
            }
            while until < q.at.len() && q.at[until].start < (tile + 1) * KV_TILE {
                until += 1;
            }
            walk.tile::<S>(tile, from..until, kv);
        }
        for (state, to) in walk.states.iter().zip(q.to) {
            let inverse = V::splat(1.0 / state.total.sum());
            for c in 0..chunks {
                let sum = walk.out.add(to + c * LANES);
                V::load(sum).mul(inverse).store(sum);
            }
        }
    }
}

/// Queries on their way over the tiles; their weighted values gather where the result will be.
struct Walk<'a, V> {
    q: &'a Queries<'a>,
    chunks: usize,
    states: [State<V>; QUERIES_MAX],
    out: *mut f32,
}

impl<V: Vector> Walk<'_, V> {
    /// Takes the queries `run` over a tile.
    #[inline(always)]
    unsafe fn tile<S: Stored>(&mut self, tile: usize, run: Range<usize>, kv: KvHead) {
        let (keys, values) = kv.tile(tile);
        let (keys, values) = (keys.as_ptr(), values.as_ptr());
        let mut at = run.start;
        while at < run.end {
            // SAFETY: so many queries are left; the tile holds 64 positions of the head's width.
            unsafe {
                at += match run.end - at {
                    1 => self.together::<S, 1>(tile, at, keys, values),
                    2 => self.together::<S, 2>(tile, at, keys, values),
                    3 | 5 => self.together::<S, 3>(tile, at, keys, values),
                    4 | 7 | 8 => self.together::<S, 4>(tile, at, keys, values),
                    _ => self.together::<S, 6>(tile, at, keys, values),
                }
            }
        }
    }

    /// Takes `H` queries from `at` on over a tile.
    #[inline(always)]
    unsafe fn together<S: Stored, const H: usize>(
        &mut self,
        tile: usize,
        at: usize,
        keys: *const Line,
        values: *const Line,
    ) -> usize {
        // SAFETY: as the contract.
        unsafe {
            let (q, d) = (self.q.rows.as_ptr().add(at * self.q.width), self.q.width);
            let mut weights = [[0f32; KV_TILE]; H];
            match (V::WIDE, H) {
                (true, _) | (_, 1) => scores::<V, S, H, 4>(q, d, keys, &mut weights),
                (_, 2 | 3) => scores::<V, S, H, 2>(q, d, keys, &mut weights),
                _ => scores::<V, S, H, 1>(q, d, keys, &mut weights),
            }
            let (mut live, mut sums) = ([const { 0..0 }; H], [self.out; H]);
            for h in 0..H {
                let Range { start, end } = self.q.at[at + h];
                live[h] = start.saturating_sub(tile * KV_TILE)..KV_TILE.min(end - tile * KV_TILE);
                sums[h] = self.out.add(self.q.to[at + h]);
                weigh(&mut self.states[at + h], sums[h], self.chunks, &live[h], &mut weights[h]);
            }
            let mut room = [const { MaybeUninit::uninit() }; BLOCKS_MAX];
            let weights = S::scaled::<V, H>(&weights, values, self.chunks, &mut room);
            gather::<V, S, H>(sums, weights, values, self.chunks, &live);
        }
        H
    }
}

/// Scores of 64 positions, `B` registers of them at a time.
#[inline(always)]
unsafe fn scores<V: Vector, S: Stored, const H: usize, const B: usize>(
    q: *const f32,
    d: usize,
    keys: *const Line,
    to: &mut [[f32; KV_TILE]; H],
) {
    // SAFETY: row i of chunk c; the tile of 64 positions is in bounds, as are H rows of q.
    unsafe {
        for first in (0..CHUNKS).step_by(B) {
            for block in 0..d.div_ceil(S::BLOCK) {
                let mut s = [[V::splat(0.0); B]; H];
                for i in block * S::BLOCK..d.min((block + 1) * S::BLOCK) {
                    let mut key = [V::splat(0.0); B];
                    for c in 0..B {
                        key[c] = S::load::<V>(keys, ((first + c) * d + i) * LANES);
                    }
                    for h in 0..H {
                        let q = V::splat(*q.add(h * d + i));
                        for c in 0..B {
                            s[h][c] = key[c].fma(q, s[h][c]);
                        }
                    }
                }
                for h in 0..H {
                    for c in 0..B {
                        S::put(s[h][c], keys, d, first + c, block, to[h].as_mut_ptr().add((first + c) * LANES));
                    }
                }
            }
        }
    }
}

/// Turns a query's scores to weights against its running maximum.
#[inline(always)]
unsafe fn weigh<V: Vector>(
    state: &mut State<V>,
    sums: *mut f32,
    chunks: usize,
    live: &Range<usize>,
    weights: &mut [f32; KV_TILE],
) {
    // SAFETY: features.
    unsafe {
        if *live == (0..KV_TILE) {
            weigh_where(state, sums, chunks, weights, |_, v, _| v);
        } else {
            weigh_where(state, sums, chunks, weights, |c, v, other| within(live, c, v, other));
        }
    }
}

/// [`weigh`], with a way to put something else where the query doesn't attend.
#[inline(always)]
unsafe fn weigh_where<V: Vector>(
    state: &mut State<V>,
    sums: *mut f32,
    chunks: usize,
    weights: &mut [f32; KV_TILE],
    only: impl Fn(usize, V, V) -> V,
) {
    // SAFETY: features; `weights` holds 64 values, `sums` so many chunks.
    unsafe {
        let (none, zero, at) = (V::splat(f32::NEG_INFINITY), V::splat(0.0), weights.as_mut_ptr());
        let mut s = [zero; CHUNKS];
        for c in 0..CHUNKS {
            s[c] = only(c, V::load(at.add(c * LANES)), none);
        }
        let new = s[0].max(s[1]).max(s[2].max(s[3])).top();
        if new > state.top {
            let keep = exp(V::splat(state.top - new));
            state.total = state.total.mul(keep);
            for c in 0..chunks {
                let sum = sums.add(c * LANES);
                V::load(sum).mul(keep).store(sum);
            }
            state.top = new;
        }
        let top = V::splat(state.top);
        for c in 0..CHUNKS {
            let w = only(c, exp(s[c].sub(top)), zero);
            state.total = state.total.add(w);
            w.store(at.add(c * LANES));
        }
    }
}

/// Chunk `c` of a tile, `other` at the positions that are not live.
#[inline(always)]
unsafe fn within<V: Vector>(live: &Range<usize>, c: usize, v: V, other: V) -> V {
    let lanes = |end: usize| end.saturating_sub(c * LANES).min(LANES);
    // SAFETY: features.
    unsafe {
        let v = v.first(lanes(live.end), other);
        // Only the first tile of a window has positions before it.
        if live.start == 0 { v } else { other.first(lanes(live.start), v) }
    }
}

/// Adds the weighted values of a tile: together where all queries attend, each alone before and after.
#[inline(always)]
unsafe fn gather<V: Vector, S: Stored, const H: usize>(
    sums: [*mut f32; H],
    weights: *const [[f32; KV_TILE]; H],
    values: *const Line,
    chunks: usize,
    live: &[Range<usize>; H],
) {
    let common = live.iter().fold(0..KV_TILE, |all, live| all.start.max(live.start)..all.end.min(live.end));
    // SAFETY: positions of the tile; so many chunks at each of `sums`, weights for each of their blocks.
    unsafe {
        let tile = Values { values, chunks, step: H * KV_TILE };
        let of = |h: usize| weights.cast::<f32>().add(h * KV_TILE);
        if H == 1 || common.is_empty() {
            return (0..H).for_each(|h| tile.add::<V, S, 1>([sums[h]], [of(h)], live[h].clone()));
        }
        for h in 0..H {
            tile.add::<V, S, 1>([sums[h]], [of(h)], live[h].start..common.start);
        }
        tile.add::<V, S, H>(sums, std::array::from_fn(of), common.clone());
        for h in 0..H {
            tile.add::<V, S, 1>([sums[h]], [of(h)], common.end..live[h].end);
        }
    }
}

/// A tile's values, and how far a query's weights for one block of them are from those for the next.
struct Values {
    values: *const Line,
    chunks: usize,
    step: usize,
}

impl Values {
    /// Adds the weighted values of some positions, as many chunks at a time as registers hold.
    #[inline(always)]
    unsafe fn add<V: Vector, S: Stored, const H: usize>(
        &self,
        sums: [*mut f32; H],
        weights: [*const f32; H],
        at: Range<usize>,
    ) {
        if at.is_empty() {
            return;
        }
        let most = if V::WIDE || H == 1 { 4 } else { 6 / H };
        let mut c = 0;
        while c < self.chunks {
            // SAFETY: so many chunks are left.
            unsafe {
                c += match most.min(self.chunks - c) {
                    1 => self.add_chunks::<V, S, H, 1>(c, sums, weights, at.clone()),
                    2 | 3 => self.add_chunks::<V, S, H, 2>(c, sums, weights, at.clone()),
                    _ => self.add_chunks::<V, S, H, 4>(c, sums, weights, at.clone()),
                };
            }
        }
    }

    #[inline(always)]
    unsafe fn add_chunks<V: Vector, S: Stored, const H: usize, const B: usize>(
        &self,
        first: usize,
        sums: [*mut f32; H],
        weights: [*const f32; H],
        at: Range<usize>,
    ) -> usize {
        // SAFETY: chunks first..first + B of every position and sum, and weights for the blocks that they are in.
        unsafe {
            let mut sum = [[V::splat(0.0); B]; H];
            for h in 0..H {
                for c in 0..B {
                    sum[h][c] = V::load(sums[h].add((first + c) * LANES));
                }
            }
            for i in at {
                let mut value = [V::splat(0.0); B];
                for c in 0..B {
                    value[c] = S::load::<V>(self.values, (i * self.chunks + first + c) * LANES);
                }
                for h in 0..H {
                    for c in 0..B {
                        let block = (first + c) * LANES / S::BLOCK;
                        let w = V::splat(*weights[h].add(block * self.step + i));
                        sum[h][c] = value[c].fma(w, sum[h][c]);
                    }
                }
            }
            for h in 0..H {
                for c in 0..B {
                    sum[h][c].store(sums[h].add((first + c) * LANES));
                }
            }
        }
        B
    }
}
