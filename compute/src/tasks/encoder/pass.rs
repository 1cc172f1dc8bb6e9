//! One walk through an encoder's layers for several texts side by side.
//!
//! The residual stream is token-major rows; products come as panels, `[row / 16][token][16]`, and are added, activated and
//! normalised on their way back into rows. Tokens meet in attention only, and there those of one text.

use super::{
    Encoder, Hidden,
    attend::{self, Distances, Head, Scratch},
    lanes::{self, Norm},
    weights::{Layer, Linear},
};
use crate::{
    cpu::{
        acts::{Acts, Planes, Rows},
        kernels::Post,
        matrix::Feed,
        packed::LANES,
    },
    stage::Hands,
};

/// Parts a thread takes in turn in attention: heads of long texts cost more than the rest.
const HEAD_PARTS: usize = 4;

/// See [`Encoder::pass`].
pub fn pass(encoder: &Encoder, hands: &Hands, texts: &[&[u32]]) -> Hidden {
    let lengths = texts.iter().map(|ids| ids.len()).collect();
    let mut walk = Walk::new(encoder, hands, lengths);
    walk.embed(texts);
    for layer in &encoder.weights.layers {
        walk.attention(layer);
        walk.feed_forward(layer);
    }
    let Rows { values, stride, .. } = walk.x.rows;
    Hidden { values, stride, width: encoder.shape.width }
}

struct Walk<'a> {
    encoder: &'a Encoder,
    hands: &'a Hands,
    /// Tokens of each text.
    lengths: Vec<usize>,
    tokens: usize,
    /// The residual stream.
    x: Feed,
    /// What attention mixes, `[head][token][head width]`.
    heads: Vec<f32>,
    /// The same as rows.
    mixed: Feed,
    /// Between the products of a feed-forward.
    inner: Feed,
    /// The newest product.
    panel: Vec<f32>,
}

fn feed(k: usize, tokens: usize) -> Feed {
    Feed { acts: Acts::new(0, 0, Planes::One), rows: Rows::new(k, tokens) }
}

impl<'a> Walk<'a> {
    fn new(encoder: &'a Encoder, hands: &'a Hands, lengths: Vec<usize>) -> Walk<'a> {
        let (shape, tokens) = (&encoder.shape, lengths.iter().sum());
        Walk {
            encoder,
            hands,
            lengths,
            tokens,
            x: feed(shape.width, tokens),
            heads: vec![0.0; tokens * shape.width],
            mixed: feed(shape.width, tokens),
            inner: feed(shape.feed_forward, tokens),
            panel: Vec::new(),
        }
    }

    fn embed(&mut self, texts: &[&[u32]]) {
        let (shape, weights) = (&self.encoder.shape, &self.encoder.weights);
        let stride = self.x.rows.stride;
        let tokens = texts.iter().flat_map(|ids| ids.iter().enumerate());
        for (row, (position, id)) in self.x.rows.values.chunks_exact_mut(stride).zip(tokens) {
            weights.words.add(*id as usize, row);
            weights.positions.add(shape.first_position + position, row);
            row.iter_mut().zip(&weights.first_type).for_each(|(x, kind)| *x += kind);
            weights.norm.apply(row, shape.width);
        }
    }

    fn attention(&mut self, layer: &Layer) {
        self.panel = self.product(&layer.qkv, &self.x);
        self.mix(layer);
        self.panel = self.product(&layer.out, &self.mixed);
        self.add_and_normalise(&layer.out, &layer.attention_norm);
    }

    fn feed_forward(&mut self, layer: &Layer) {
        self.panel = self.product(&layer.up, &self.x);
        self.activate(&layer.up);
        self.panel = self.product(&layer.down, &self.inner);
        self.add_and_normalise(&layer.down, &layer.output_norm);
    }

    /// A panel of a matrix's products with all tokens.
    fn product(&self, linear: &Linear, feed: &Feed) -> Vec<f32> {
        let (unit, store, level) = (self.tokens * LANES, &self.encoder.weights.store, self.hands.level);
        let mut panel = vec![0.0; linear.matrix.groups() * unit];
        self.hands.pool.split(&mut panel, unit, |first, part| {
            linear.matrix.product(level, store, first, feed, part, Post::Store);
        });
        panel
    }

    /// Attention of every head over every text, and its results as rows.
    fn mix(&mut self, layer: &Layer) {
        let shape = self.encoder.shape;
        let (width, tokens, section) = (shape.head_width, self.tokens, shape.width.next_multiple_of(LANES));
        let (panel, lengths, level) = (&self.panel, &self.lengths, self.hands.level);
        let table = &self.encoder.weights.distances;
        self.hands.pool.split_parts(&mut self.heads, tokens * width, HEAD_PARTS, |first, part| {
            let mut scratch = Scratch::default();
            for (head, out) in (first..).zip(part.chunks_exact_mut(tokens * width)) {
                let rows = [0, 1, 2].map(|which| which * section + head * width);
                let of = Head { panel, bias: &layer.qkv.bias, tokens, rows, width };
                let distances = (!table.is_empty()).then_some(Distances { table, heads: shape.heads, head });
                let mut from = 0;
                for &count in lengths {
                    let out = &mut out[from * width..][..count * width];
                    attend::attend(level, of, distances, from, count, &mut scratch, out);
                    from += count;
                }
            }
        });
        let (heads, stride) = (&self.heads, self.mixed.rows.stride);
        self.hands.pool.split(&mut self.mixed.rows.values, stride, |first, part| {
            for (token, row) in (first..).zip(part.chunks_exact_mut(stride)) {
                for (head, to) in row[..shape.width].chunks_exact_mut(width).enumerate() {
                    to.copy_from_slice(&heads[(head * tokens + token) * width..][..width]);
                }
            }
        });
    }

    /// Adds the panel and a bias to the residual stream and normalises it.
    fn add_and_normalise(&mut self, linear: &Linear, norm: &Norm) {
        let (panel, tokens, stride, width) = (&self.panel, self.tokens, self.x.rows.stride, self.encoder.shape.width);
        self.hands.pool.split(&mut self.x.rows.values, stride, |first, part| {
            for (token, row) in (first..).zip(part.chunks_exact_mut(stride)) {
                for (c, (chunk, bias)) in row.chunks_exact_mut(LANES).zip(linear.bias.chunks_exact(LANES)).enumerate() {
                    let product = lanes::load(&panel[(c * tokens + token) * LANES..][..LANES]);
                    let sum = lanes::add(lanes::add(product, lanes::load(bias)), lanes::load(chunk));
                    chunk.copy_from_slice(&sum);
                }
                norm.apply(row, width);
            }
        });
    }

    /// The panel with its bias through the activation, as rows.
    fn activate(&mut self, linear: &Linear) {
        let (panel, tokens, stride) = (&self.panel, self.tokens, self.inner.rows.stride);
        let activation = self.encoder.shape.activation;
        self.hands.pool.split(&mut self.inner.rows.values, stride, |first, part| {
            for (token, row) in (first..).zip(part.chunks_exact_mut(stride)) {
                for (c, (chunk, bias)) in row.chunks_exact_mut(LANES).zip(linear.bias.chunks_exact(LANES)).enumerate() {
                    let product = lanes::load(&panel[(c * tokens + token) * LANES..][..LANES]);
                    chunk.copy_from_slice(&activation.of(lanes::add(product, lanes::load(bias))));
                }
            }
        });
    }
}
