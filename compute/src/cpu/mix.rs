//! Attention of a pass: which queries go over which keys and values together, and on which thread.
//!
//! Queries meet when they are of one sequence and their heads share a key/value head: those of several tokens of a prompt, or of
//! the heads of one token. The kernel keeps each query's arithmetic apart, so how they are grouped changes no bit.

use super::{
    cache::Cache,
    kernels::{self, HEAD_WIDTH_MAX, KvHead, QUERIES_MAX, Queries, padded_head},
    packed::LANES,
    pass::{PROMPT, Pass, Turn},
};
use std::ops::Range;

/// Parts a thread takes in turn in a prompt's attention: later tokens cost more.
const PROMPT_PARTS: usize = 4;
/// Values of queries that wait together: they stay in the first-level cache beside a tile of keys.
const WAITING_VALUES: usize = 3072;

impl Pass<'_> {
    /// Attention of every (token, head), token-major.
    pub(super) fn mix(&self, qkv: &[f32], caches: &[&mut Cache], layer: usize, out: &mut [f32]) {
        let (s, n) = (self.shape(), self.tokens());
        let padded = padded_head(s.head_width);
        // Few tokens are dealt head by head; those of a prompt whole, since the more queries share keys the better.
        let (unit, parts) = if n < PROMPT { (1, 1) } else { (s.heads, PROMPT_PARTS) };
        self.pool.split_parts(&mut out[..n * s.heads * padded], unit * padded, parts, |first, part| {
            let pairs = first * unit..first * unit + part.len() / padded;
            self.mix_pairs(qkv, caches, layer, pairs, part);
        });
    }

    /// Attention of some (token, head) pairs, token-major.
    fn mix_pairs(&self, qkv: &[f32], caches: &[&mut Cache], layer: usize, pairs: Range<usize>, out: &mut [f32]) {
        let s = self.shape();
        let (d, padded, share) = (s.head_width, padded_head(s.head_width), s.heads / s.kv_heads);
        let turn = self.query_turn(layer);
        let mut tokens = pairs.start / s.heads..pairs.end.div_ceil(s.heads);
        let mut waiting = Waiting::new(d);
        while !tokens.is_empty() {
            let sequence = self.slots[tokens.start].sequence;
            let count = self.slots[tokens.clone()].iter().take_while(|slot| slot.sequence == sequence).count();
            for kv_head in 0..s.kv_heads {
                let kv = caches[sequence].head(layer, kv_head);
                for t in tokens.start..tokens.start + count {
                    let (first, all) = (t * s.heads, t * s.heads + kv_head * share);
                    for pair in all.max(pairs.start)..(all + share).min(pairs.end) {
                        if waiting.is_full() {
                            waiting.attend(self, kv, out);
                        }
                        let attended = self.model.layers[layer].attended(self.slots[t].position);
                        let row = waiting.push(attended, (pair - pairs.start) * padded);
                        self.rotated(qkv, t, (pair - first) * d, turn, row);
                    }
                }
                waiting.attend(self, kv, out);
            }
            tokens.start += count;
        }
    }

    fn query_turn(&self, layer: usize) -> Turn<'_> {
        let norms = self.model.layers[layer].head_norms.as_ref();
        Turn { norm: norms.map(|[query, _]| &query[..]), rope: self.rope(layer), scale: self.shape().score_scale }
    }
}

/// Queries that will go over the keys and values of one head together.
struct Waiting {
    width: usize,
    count: usize,
    rows: [f32; WAITING_VALUES + LANES],
    at: [Range<usize>; QUERIES_MAX],
    to: [usize; QUERIES_MAX],
}

const _: () = assert!(WAITING_VALUES >= HEAD_WIDTH_MAX);

impl Waiting {
    fn new(width: usize) -> Self {
        let at = [const { 0..0 }; QUERIES_MAX];
        Self { width, count: 0, rows: [0.0; WAITING_VALUES + LANES], at, to: [0; QUERIES_MAX] }
    }

    fn is_full(&self) -> bool {
        self.count == QUERIES_MAX.min(WAITING_VALUES / self.width)
    }

    /// The row of one more, to be written; it is not full. The row's end may lie over the next one's begin.
    fn push(&mut self, at: Range<usize>, to: usize) -> &mut [f32] {
        let row = self.count * self.width;
        self.at[self.count] = at;
        self.to[self.count] = to;
        self.count += 1;
        &mut self.rows[row..]
    }

    /// Sends them on their way, and none waits any more.
    fn attend(&mut self, pass: &Pass, kv: KvHead, out: &mut [f32]) {
        let (at, to) = (&self.at[..self.count], &self.to[..self.count]);
        if self.count > 0 {
            let queries = Queries { width: self.width, rows: &self.rows, at, to };
            kernels::attend(pass.level, &queries, kv, out);
        }
        self.count = 0;
    }
}
