//! Attention of one head over one text: every token looks at every token of its text.
//!
//! Both products go through the engine's plain kernels, as if keys and values were weights: scores are queries times keys
//! in groups of sixteen positions, the mixed values are probabilities times values in groups of sixteen dimensions. Every
//! sum runs in one order that depends on the text alone.

use super::{lanes, relative};
use crate::cpu::{
    acts::Rows,
    kernels::{self, Post},
    level::Level,
    lines::{LINE_BYTES, Line},
    packed::LANES,
    plain::{Plain, PlainFormat},
};

/// Where a head's queries, keys and values are, and what is added to them.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Products of the whole pass, a panel: `[row / 16][token][16]`.
    pub panel: &'a [f32],
    /// What is added to each row.
    pub bias: &'a [f32],
    /// Tokens of the pass.
    pub tokens: usize,
    /// The first rows of its queries, keys and values.
    pub rows: [usize; 3],
    /// Its width.
    pub width: usize,
}

impl Head<'_> {
    /// Value `i` of a query (0), key (1) or value (2).
    #[inline]
    fn at(&self, which: usize, token: usize, i: usize) -> f32 {
        let row = self.rows[which] + i;
        self.panel[(row / LANES * self.tokens + token) * LANES + row % LANES] + self.bias[row]
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub struct Scratch {
    lines: Vec<Line>,
    panel: Vec<f32>,
    queries: Growing,
    probabilities: Growing,
}

/// Rows that grow as they are needed.
#[derive(Default)]
struct Growing(Option<Rows>);

impl Growing {
    /// `tokens` rows of `k` values, zero.
    fn clear(&mut self, k: usize, tokens: usize) -> &mut Rows {
        let rows = self.0.get_or_insert_with(|| Rows::new(0, 0));
        rows.values.clear();
        rows.stride = k.next_multiple_of(LANES);
        rows.set_tokens(tokens);
        rows
    }
}

/// Bias of scores by distance: `[bucket][head]`, for head `head`.
#[derive(Clone, Copy)]
pub struct Distances<'a> {
    pub table: &'a [f32],
    pub heads: usize,
    pub head: usize,
}

impl Distances<'_> {
    fn of(&self, query: usize, key: usize) -> f32 {
        let bucket = relative::bucket(key as isize - query as isize, self.table.len() / self.heads);
        self.table[bucket * self.heads + self.head]
    }
}

/// Mixes the values of the text whose tokens are `from..from + count` of the pass; `out` gets `[token][width]`.
pub fn attend(
    level: Level,
    head: Head,
    distances: Option<Distances>,
    from: usize,
    count: usize,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Scratch { lines, panel, queries, probabilities } = scratch;
    let queries = queries.clear(head.width, count);
    let scale = 1.0 / (head.width as f32).sqrt();
    for (token, row) in queries.values.chunks_exact_mut(queries.stride).enumerate() {
        for (i, to) in row[..head.width].iter_mut().enumerate() {
            *to = head.at(0, from + token, i) * scale;
        }
    }
    let groups = count.div_ceil(LANES);
    fill(lines, groups * head.width, |line, lane| {
        let token = line / head.width * LANES + lane;
        if token < count { head.at(1, from + token, line % head.width) } else { 0.0 }
    });
    product(level, lines, head.width, queries, panel);
    let probabilities = probabilities.clear(count, count);
    for (query, row) in probabilities.values.chunks_exact_mut(probabilities.stride).enumerate() {
        softmax(panel, count, query, distances, row);
    }
    let groups = head.width.div_ceil(LANES);
    fill(lines, groups * count, |line, lane| {
        let i = line / count * LANES + lane;
        if i < head.width { head.at(2, from + line % count, i) } else { 0.0 }
    });
    product(level, lines, count, probabilities, panel);
    for (token, row) in out.chunks_exact_mut(head.width).enumerate() {
        for (i, to) in row.iter_mut().enumerate() {
            *to = panel[(i / LANES * count + token) * LANES + i % LANES];
        }
    }
}

/// Sets `count` lines of sixteen values.
fn fill(lines: &mut Vec<Line>, count: usize, value: impl Fn(usize, usize) -> f32) {
    lines.resize(count, Line::ZERO);
    for (line, to) in lines.iter_mut().enumerate() {
        for (lane, to) in to.0.chunks_exact_mut(LINE_BYTES / LANES).enumerate() {
            to.copy_from_slice(&value(line, lane).to_le_bytes());
        }
    }
}

/// The panel of groups that are `k` lines each, times rows of `k` values.
fn product(level: Level, lines: &[Line], k: usize, rows: &Rows, panel: &mut Vec<f32>) {
    let groups = Plain::new(PlainFormat::F32, k, lines);
    panel.resize(groups.groups() * rows.tokens * LANES, 0.0);
    kernels::product_plain(level, groups, 0, rows, panel, Post::Store);
}

/// The probabilities of one query over `count` positions, from a panel of scores over `count` queries.
fn softmax(panel: &[f32], count: usize, query: usize, distances: Option<Distances>, row: &mut [f32]) {
    for (c, chunk) in row.chunks_exact_mut(LANES).enumerate() {
        chunk.copy_from_slice(&panel[(c * count + query) * LANES..][..LANES]);
    }
    if let Some(distances) = distances {
        for (key, score) in row[..count].iter_mut().enumerate() {
            *score += distances.of(query, key);
        }
    }
    row[count..].fill(f32::NEG_INFINITY);
    let top = row.iter().fold(f32::NEG_INFINITY, |top, x| if *x > top { *x } else { top });
    row.iter_mut().for_each(|x| *x = lanes::exp_of_negative(*x - top));
    // What stands after the last position is next to nothing, and becomes nothing.
    row[count..].fill(0.0);
    let sums = row.chunks_exact(LANES).fold([0.0; LANES], |sums, chunk| lanes::add(sums, lanes::load(chunk)));
    let share = 1.0 / lanes::sum(sums);
    row.iter_mut().for_each(|x| *x *= share);
}
