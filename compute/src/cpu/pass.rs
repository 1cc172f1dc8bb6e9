//! The forward pass of a stage: one walk over its layers for any mix of tokens, be it a prompt (many tokens of one
//! sequence) or one token each of many sequences.
//!
//! What a token becomes depends only on its own column and its own sequence's earlier positions: columns meet nowhere
//! but in attention, and there each query walks its keys alone.

use super::{
    acts::Planes,
    adapters::{Low, Read, Site},
    cache::Cache,
    feed_forward::{Stream, groups_read},
    kernels::{self, HEAD_WIDTH_MAX, KV_TILE, Norm, Post, View, padded_head},
    kv::TileMut,
    level::Level,
    lines::Line,
    matrix::{Feed, Fused},
    model::{Layer, Model, Shape},
    packed::LANES,
    pages::prefetch,
    pool::Pool,
    rope::Rope,
    work::Work,
};
use std::ops::Range;

/// Most positions, counted from the last, prefetched ahead of attention.
const NEAR: usize = 512;
/// From this many tokens on, quantising is worth a fork and a join.
pub(super) const QUANTISE_FORK: usize = 4;
/// From this many tokens on a pass is a prompt: stores fork, attention is dealt in small parts.
pub(super) const PROMPT: usize = 16;

/// Where one token of a pass belongs. A sequence's tokens stand in order, one position after the other.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Which of the pass's caches.
    pub sequence: usize,
    /// Its position, which the cache holds after the pass.
    pub position: usize,
}

/// What a pass works with.
pub struct Pass<'a> {
    /// The stage's weights.
    pub model: &'a Model,
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions.
    pub level: Level,
    /// Int8 planes.
    pub planes: Planes,
    /// The tokens.
    pub slots: &'a [Slot],
}

/// What becomes of a head of queries or keys before attention.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    pub norm: Option<&'a [f32]>,
    pub rope: &'a Rope,
    pub scale: f32,
}

/// Values of columns, in one of two layouts.
#[derive(Clone, Copy)]
pub(super) enum Columns<'a> {
    Panel(&'a [f32]),
    Rows(&'a [f32], usize),
}

impl Pass<'_> {
    pub(super) fn shape(&self) -> &Shape {
        &self.model.shape
    }

    pub(super) fn tokens(&self) -> usize {
        self.slots.len()
    }

    /// Sets the residual stream to the embeddings of `ids`, one a slot. Ids are within the vocabulary.
    pub fn embed(&self, work: &mut Work, ids: impl Iterator<Item = u32>) {
        let n = self.tokens();
        let Some(embedding) = &self.model.embedding else { return };
        let scale = self.shape().embedding_scale;
        self.clear(work);
        for (t, id) in ids.enumerate() {
            let x = &mut work.x;
            embedding
                .row(&self.model.store, id as usize, |i, v| x[(i / LANES * n + t) * LANES + i % LANES] = v * scale);
        }
    }

    /// Zeroes the residual stream: its padding has to be zero.
    fn clear(&self, work: &mut Work) {
        work.x[..self.shape().width.next_multiple_of(LANES) * self.tokens()].fill(0.0);
    }

    /// Sets the residual stream to `rows` of the model's width, one a slot.
    pub fn receive<'v>(&self, work: &mut Work, rows: impl Iterator<Item = &'v [f32]>) {
        let n = self.tokens();
        self.clear(work);
        for (t, row) in rows.enumerate() {
            for (c, chunk) in row.chunks(LANES).enumerate() {
                work.x[(c * n + t) * LANES..][..chunk.len()].copy_from_slice(chunk);
            }
        }
    }

    /// The residual stream, a row of the model's width for each slot.
    pub fn send<'v>(&self, work: &Work, rows: impl Iterator<Item = &'v mut [f32]>) {
        let n = self.tokens();
        for (t, row) in rows.enumerate() {
            for (c, chunk) in row.chunks_mut(LANES).enumerate() {
                chunk.copy_from_slice(&work.x[(c * n + t) * LANES..][..chunk.len()]);
            }
        }
    }

    /// Walks the layers. Caches hold the slots' positions afterwards; they have pages for them.
    pub fn walk(&self, work: &mut Work, caches: &mut [&mut Cache]) {
        for (index, layer) in self.model.layers.iter().enumerate() {
            self.attention(work, caches, index, layer);
            self.feed_forward(work, index, layer);
        }
    }

    /// Logits of the `wanted` columns, as a panel of that many tokens in `work.logits`.
    pub fn logits(&self, work: &mut Work, wanted: &[usize]) {
        let Some(head) = self.model.head.as_ref().filter(|_| !wanted.is_empty()) else { return };
        let n = self.tokens();
        let norm = Norm { weights: &head.norm, epsilon: self.shape().epsilon };
        set_tokens(&mut work.last, &head.matrix, wanted.len());
        for (i, column) in wanted.iter().enumerate() {
            let view = View { values: &work.x[column * LANES..], step: n * LANES };
            self.feed_one(&mut work.last, &head.matrix, i, view, self.shape().width, Some(norm));
        }
        work.logits.resize(head.matrix.groups() * LANES * wanted.len(), 0.0);
        self.product(&head.matrix, &work.last, wanted.len(), &mut work.logits, Post::Store);
    }

    /// The logits of one of the `wanted` columns, as many as the vocabulary has tokens.
    pub fn column<'w>(&self, work: &'w mut Work, column: usize, wanted: usize) -> &'w [f32] {
        let vocabulary = self.shape().vocabulary;
        if wanted == 1 {
            return &work.logits[..vocabulary];
        }
        let chunks = work.logits.as_chunks::<LANES>().0.iter().skip(column).step_by(wanted);
        work.column.clear();
        work.column.extend(chunks.flatten().take(vocabulary));
        &work.column
    }

    fn attention(&self, work: &mut Work, caches: &mut [&mut Cache], index: usize, layer: &Layer) {
        let (n, s) = (self.tokens(), self.shape());
        let norm = Norm { weights: &layer.attention_norm, epsilon: s.epsilon };
        self.feed(&mut work.narrow, &layer.qkv, Columns::Panel(&work.x), s.width, Some(norm));
        self.project(&mut work.low, (index, Site::Qkv), Columns::Panel(&work.x), s.width, Some(norm));
        let (qkv, low) = (&mut work.qkv[..s.qkv_rows()[3] * n], &work.low);
        let shared = &*caches;
        self.pool.split(qkv, n * LANES, |g, part| {
            let groups = part.len() / (n * LANES);
            self.near(shared, index, g..g + groups, layer.qkv.groups());
            layer.qkv.product(self.level, &self.model.store, g, &work.narrow, part, Post::Store);
            low.add(self.level, 0, g, n, part);
            if let Some(bias) = &layer.bias {
                add_bias(&bias[g * LANES..], n, part);
            }
        });
        self.store(&work.qkv, caches, index);
        self.mix(&work.qkv, caches, index, &mut work.mixed);
        let (columns, k) = (self.attended(&mut work.compact, &work.mixed), s.heads * s.head_width);
        self.feed(&mut work.attended, &layer.out, columns, k, None);
        self.project(&mut work.low, (index, Site::Out), columns, k, None);
        let norm = layer.post_norms.as_ref().map(|[norm, _]| &norm[..]);
        let stream = Stream { x: &mut work.x, branch: &mut work.branch, normed: &mut work.normed, low: &work.low };
        self.join(stream, &layer.out, &work.attended, norm);
    }

    pub(super) fn product(&self, matrix: &Fused, feed: &Feed, tokens: usize, out: &mut [f32], post: Post) {
        self.pool.split(out, tokens * LANES, |g, part| {
            matrix.product(self.level, &self.model.store, g * groups_read(post), feed, part, post);
        });
    }

    /// Computes what adapters need of a product's input.
    pub(super) fn project(
        &self,
        low: &mut Low,
        (layer, site): (usize, Site),
        from: Columns,
        k: usize,
        norm: Option<Norm>,
    ) {
        let n = self.tokens();
        low.project(self.pool, self.level, Read { layer, site, k, norm, view: |t| from.view(t, n) });
    }

    /// Brings all columns of the pass into the forms that `reader` reads.
    pub(super) fn feed(&self, feed: &mut Feed, reader: &Fused, from: Columns, k: usize, norm: Option<Norm>) {
        self.feed_columns(self.tokens(), feed, reader, from, k, norm);
    }

    /// Brings `n` columns into the forms that `reader` reads, on this thread when there are few.
    pub(super) fn feed_columns(
        &self,
        n: usize,
        feed: &mut Feed,
        reader: &Fused,
        from: Columns,
        k: usize,
        norm: Option<Norm>,
    ) {
        set_tokens(feed, reader, n);
        if n < QUANTISE_FORK {
            return (0..n).for_each(|t| self.feed_one(feed, reader, t, from.view(t, n), k, norm));
        }
        if reader.reads_acts() {
            let stride = feed.acts.stride;
            self.pool.split(&mut feed.acts.words, stride, |first, part| {
                for (i, record) in part.chunks_exact_mut(stride).enumerate() {
                    kernels::quantise(self.level, from.view(first + i, n), k, self.planes, norm, record);
                }
            });
        }
        if reader.reads_rows() {
            let stride = feed.rows.stride;
            self.pool.split(&mut feed.rows.values, stride, |first, part| {
                for (i, row) in part.chunks_exact_mut(stride).enumerate() {
                    kernels::normalise(self.level, from.view(first + i, n), k, norm, row);
                }
            });
        }
    }

    fn feed_one(&self, feed: &mut Feed, reader: &Fused, t: usize, from: View, k: usize, norm: Option<Norm>) {
        if reader.reads_acts() {
            let record = &mut feed.acts.words[t * feed.acts.stride..];
            kernels::quantise(self.level, from, k, self.planes, norm, record);
        }
        if reader.reads_rows() {
            let row = &mut feed.rows.values[t * feed.rows.stride..];
            kernels::normalise(self.level, from, k, norm, row);
        }
    }

    /// Prefetches keys and values that this thread is likely to need next, to arrive while weights stream: the share of
    /// (token, head) pairs that matches its share of qkv groups.
    fn near(&self, caches: &[&mut Cache], layer: usize, groups: Range<usize>, all: usize) {
        let s = self.shape();
        let pairs = self.tokens() * s.kv_heads;
        if self.tokens() > PROMPT {
            return;
        }
        for pair in pairs * groups.start / all..(pairs * groups.end).div_ceil(all) {
            let slot = self.slots[pair / s.kv_heads];
            let kv = caches[slot.sequence].head(layer, pair % s.kv_heads);
            let Range { start, end } = self.model.layers[layer].attended(slot.position);
            let start = start.max(end.saturating_sub(NEAR));
            for tile in start / KV_TILE..end.div_ceil(KV_TILE) {
                let (first, last) = (start.saturating_sub(tile * KV_TILE), (end - tile * KV_TILE).min(KV_TILE));
                // Of bytes the scales lie behind, which moves the part a little: this is advice only.
                let (keys, values) = kv.tile(tile);
                let part = |lines: &[Line], first: usize, last: usize| {
                    first * lines.len() / KV_TILE..(last * lines.len()).div_ceil(KV_TILE)
                };
                prefetch(&keys[part(keys, first / LANES * LANES, last.next_multiple_of(LANES))]);
                prefetch(&values[part(values, first, last)]);
            }
        }
    }

    /// A head's rows of token `t` of the fused panel, normalised where the model does so, rotated and scaled.
    pub(super) fn rotated(&self, qkv: &[f32], t: usize, row: usize, turn: Turn, out: &mut [f32]) {
        let (d, epsilon) = (self.shape().head_width, self.shape().epsilon);
        let whole = &mut out[..d.next_multiple_of(LANES)];
        match turn.norm {
            None => copy_rows(qkv, self.tokens(), t, row, &mut whole[..d]),
            Some(weights) => {
                // Zeros past the head, since norms read whole chunks.
                let mut raw = [0f32; HEAD_WIDTH_MAX];
                copy_rows(qkv, self.tokens(), t, row, &mut raw[..d]);
                let view = View { values: &raw, step: LANES };
                kernels::normalise(self.level, view, d, Some(Norm { weights, epsilon }), whole);
            }
        }
        let (cos, sin) = turn.rope.row(self.slots[t].position);
        kernels::rotate(self.level, whole, cos, sin, turn.scale);
    }

    pub(super) fn rope(&self, layer: usize) -> &Rope {
        &self.model.ropes[self.model.layers[layer].rope]
    }

    /// Puts the new keys (rotated) and values into the caches, page by page.
    fn store(&self, qkv: &[f32], caches: &mut [&mut Cache], layer: usize) {
        let norms = self.model.layers[layer].head_norms.as_ref();
        let turn = Turn { norm: norms.map(|[_, key]| &key[..]), rope: self.rope(layer), scale: 1.0 };
        let mut slots = self.slots;
        while let Some(first) = slots.first() {
            let (sequence, page) = (first.sequence, first.position / KV_TILE);
            let count =
                slots.iter().take_while(|slot| (slot.sequence, slot.position / KV_TILE) == (sequence, page)).count();
            let tokens = self.slots.len() - slots.len()..self.slots.len() - slots.len() + count;
            slots = &slots[count..];
            let shape = caches[sequence].shape();
            let unit = shape.head_lines();
            let each = |first: usize, part: &mut [Line]| {
                for (h, lines) in part.chunks_exact_mut(unit).enumerate() {
                    let tile = TileMut::new(shape.format, shape.width, lines);
                    self.store_head(qkv, tokens.clone(), turn, first + h, tile);
                }
            };
            let heads = caches[sequence].layer_mut(page, layer);
            if self.tokens() < PROMPT { each(0, heads) } else { self.pool.split(heads, unit, each) }
        }
    }

    /// Keys and values of one head of `tokens`, whose positions are all in the tile's page.
    fn store_head(&self, qkv: &[f32], tokens: Range<usize>, turn: Turn, head: usize, mut tile: TileMut) {
        let (s, n) = (self.shape(), self.tokens());
        let (d, padded) = (s.head_width, padded_head(s.head_width));
        let [_, key_rows, value_rows, _] = s.qkv_rows();
        for t in tokens {
            let position = self.slots[t].position % KV_TILE;
            let mut wide = [0f32; HEAD_WIDTH_MAX];
            self.rotated(qkv, t, key_rows + head * d, turn, &mut wide);
            tile.put_key(self.level, position, &wide[..d.next_multiple_of(LANES)]);
            wide[..padded].fill(0.0);
            copy_rows(qkv, n, t, value_rows + head * d, &mut wide[..d]);
            tile.put_value(self.level, position, &wide[..padded]);
        }
    }

    /// What attention gave, heads side by side.
    fn attended<'w>(&self, compact: &'w mut [f32], mixed: &'w [f32]) -> Columns<'w> {
        let s = self.shape();
        let (d, padded) = (s.head_width, padded_head(s.head_width));
        if d == padded {
            return Columns::Rows(mixed, s.heads * d);
        }
        let stride = (s.heads * d).next_multiple_of(LANES);
        for (row, mixed) in
            compact.chunks_exact_mut(stride).zip(mixed.chunks_exact(s.heads * padded)).take(self.tokens())
        {
            for (to, from) in row.chunks_exact_mut(d).zip(mixed.chunks_exact(padded)) {
                to.copy_from_slice(&from[..d]);
            }
        }
        Columns::Rows(compact, stride)
    }
}

impl<'a> Columns<'a> {
    fn view(self, t: usize, n: usize) -> View<'a> {
        match self {
            Self::Panel(values) => View { values: &values[t * LANES..], step: n * LANES },
            Self::Rows(values, stride) => View { values: &values[t * stride..], step: LANES },
        }
    }
}

fn set_tokens(feed: &mut Feed, reader: &Fused, tokens: usize) {
    if reader.reads_acts() {
        feed.acts.set_tokens(tokens);
    }
    if reader.reads_rows() {
        feed.rows.set_tokens(tokens);
    }
}

/// Rows from `row` on of token `t` of a panel of `n` tokens.
pub(super) fn copy_rows(panel: &[f32], n: usize, t: usize, row: usize, out: &mut [f32]) {
    if row.is_multiple_of(LANES) && out.len().is_multiple_of(LANES) {
        for (c, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            out.copy_from_slice(&panel[((row / LANES + c) * n + t) * LANES..][..LANES]);
        }
        return;
    }
    for (i, out) in out.iter_mut().enumerate() {
        let at = row + i;
        *out = panel[(at / LANES * n + t) * LANES + at % LANES];
    }
}

fn add_bias(bias: &[f32], n: usize, panel: &mut [f32]) {
    for (group, bias) in panel.chunks_exact_mut(n * LANES).zip(bias.as_chunks::<LANES>().0) {
        for column in group.as_chunks_mut::<LANES>().0 {
            (0..LANES).for_each(|i| column[i] += bias[i]);
        }
    }
}
