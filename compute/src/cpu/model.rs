//! The weights of a stage, ready to compute with.
//!
//! Sizes here were checked when they were made (`arch::shape`): nothing below checks them again.

use super::{lines::Store, matrix::Fused, matrix::Matrix, packed::LANES, rope::Rope};
use std::ops::Range;

/// Sizes of the model that a stage belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Elements of a hidden state.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_width: usize,
    /// Elements between up and down.
    pub feed_forward: usize,
    /// Tokens known.
    pub vocabulary: usize,
    /// Positions that attention looks back over, the position itself among them; the most there can be for all.
    pub window: usize,
    /// Added to mean squares.
    pub epsilon: f32,
}

/// Gate and up: one matrix of alternating groups, or two of different formats.
pub enum GateUp {
    /// Groups of 16 rows of gate and up in turn, of one packed format.
    Paired(Fused),
    /// Gate, then up.
    Apart(Fused, Fused),
}

/// One layer.
pub struct Layer {
    /// Norm before attention, padded.
    pub attention_norm: Vec<f32>,
    /// Norm before feed-forward, padded.
    pub feed_forward_norm: Vec<f32>,
    /// Queries, keys and values; each begins at a group.
    pub qkv: Fused,
    /// Added to them, padded like their rows.
    pub bias: Option<Vec<f32>>,
    /// Norms of each head of queries and of keys, before rotation; padded.
    pub head_norms: Option<[Vec<f32>; 2]>,
    /// Attention's output projection.
    pub out: Fused,
    /// Gate and up.
    pub gate_up: GateUp,
    /// Down.
    pub down: Fused,
}

/// The end of the model.
pub struct Head {
    /// Norm before it, padded.
    pub norm: Vec<f32>,
    /// The matrix (the embedding itself where they are tied).
    pub matrix: Fused,
}

/// The weights of a stage.
pub struct Model {
    /// Sizes.
    pub shape: Shape,
    /// Where all matrices lie.
    pub store: Store,
    /// Token embedding, in a first stage.
    pub embedding: Option<Matrix>,
    /// The stage's layers.
    pub layers: Vec<Layer>,
    /// Norm and head, in a last stage.
    pub head: Option<Head>,
    /// Angles by position.
    pub rope: Rope,
}

impl Model {
    /// Bytes of weights held.
    pub fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Bytes of weights that one decoded token reads (the embedding gives one row only, unless it is the head).
    pub fn bytes_a_token(&self) -> u64 {
        let layer = |l: &Layer| l.qkv.bytes() + l.out.bytes() + l.gate_up.bytes() + l.down.bytes();
        self.layers.iter().map(layer).sum::<u64>() + self.head.as_ref().map_or(0, |h| h.matrix.bytes())
    }
}

impl GateUp {
    /// Both parts.
    pub fn parts(&self) -> impl Iterator<Item = &Fused> {
        match self {
            Self::Paired(both) => [Some(both), None],
            Self::Apart(gate, up) => [Some(gate), Some(up)],
        }
        .into_iter()
        .flatten()
    }
    /// Bytes that a product reads.
    pub fn bytes(&self) -> u64 {
        self.parts().map(Fused::bytes).sum()
    }
}

impl Shape {
    /// The positions that a query at `position` attends to.
    pub fn attended(&self, position: usize) -> Range<usize> {
        (position + 1).saturating_sub(self.window)..position + 1
    }

    /// First rows of queries, keys and values in their fused panel, and its rows in all.
    pub fn qkv_rows(&self) -> [usize; 4] {
        let queries = (self.heads * self.head_width).next_multiple_of(LANES);
        let keys = (self.kv_heads * self.head_width).next_multiple_of(LANES);
        [0, queries, queries + keys, queries + 2 * keys]
    }
}
