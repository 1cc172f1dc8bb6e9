//! The weights of a stage, ready to compute with.
//!
//! Sizes here were checked when they were made (`arch::shape`): nothing below checks them again.

use super::{cache::PageShape, kv::KvFormat, lines::Store, matrix::Fused, matrix::Matrix, packed::LANES, rope::Rope};
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
    /// Elements between up and down, of one expert where there are many.
    pub feed_forward: usize,
    /// Tokens known.
    pub vocabulary: usize,
    /// Added to mean squares.
    pub epsilon: f32,
    /// Elements of a head that are rotated, the first ones; even.
    pub rotary_width: usize,
    /// What scores are multiplied by.
    pub score_scale: f32,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// What the gate is passed through.
    pub activation: Activation,
    /// How tokens choose experts, where there are any.
    pub routing: Option<Routing>,
}

/// What the gate of a feed-forward block is passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`
    Gelu,
}

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token goes through.
    pub used: usize,
    /// Their weights are divided by their sum.
    pub is_normalised: bool,
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
    /// Norms of what attention and feed-forward give, before it is added; padded.
    pub post_norms: Option<[Vec<f32>; 2]>,
    /// Positions that attention looks back over, the position itself among them; the most there can be for all.
    pub window: usize,
    /// Which of the model's tables of angles it rotates by.
    pub rope: usize,
    /// Queries, keys and values; each begins at a group.
    pub qkv: Fused,
    /// Added to them, padded like their rows.
    pub bias: Option<Vec<f32>>,
    /// Norms of each head of queries and of keys, before rotation; padded.
    pub head_norms: Option<[Vec<f32>; 2]>,
    /// Attention's output projection.
    pub out: Fused,
    /// What follows attention.
    pub feed_forward: FeedForward,
}

/// The part of a layer after attention.
pub enum FeedForward {
    /// One block for all tokens.
    Block(Block),
    /// Each token goes through some of many.
    Experts(Experts),
}

/// Gate and up, an activation, down.
pub struct Block {
    /// Gate and up.
    pub gate_up: GateUp,
    /// Down.
    pub down: Fused,
}

/// Many blocks and what chooses among them.
pub struct Experts {
    /// A row for each block.
    pub router: Fused,
    /// The blocks.
    pub blocks: Vec<Block>,
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
    /// Tables of angles by position, one of each kind that layers rotate by.
    pub ropes: Vec<Rope>,
}

impl Model {
    /// What a page of its sessions' keys and values is of.
    pub fn page_shape(&self, format: KvFormat) -> PageShape {
        let Shape { kv_heads, head_width: width, .. } = self.shape;
        PageShape { layers: self.layers.len(), kv_heads, width, format }
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Bytes of weights that one decoded token reads (the embedding gives one row only, unless it is the head).
    pub fn bytes_a_token(&self) -> u64 {
        let layer = |l: &Layer| l.qkv.bytes() + l.out.bytes() + l.feed_forward.bytes_a_token(&self.shape);
        self.layers.iter().map(layer).sum::<u64>() + self.head.as_ref().map_or(0, |h| h.matrix.bytes())
    }
}

impl Layer {
    /// The positions that a query at `position` attends to.
    pub fn attended(&self, position: usize) -> Range<usize> {
        attended(self.window, position)
    }
}

/// The positions that a query at `position` attends to over a window.
pub fn attended(window: usize, position: usize) -> Range<usize> {
    (position + 1).saturating_sub(window)..position + 1
}

impl FeedForward {
    /// All blocks.
    pub fn blocks(&self) -> &[Block] {
        match self {
            Self::Block(block) => std::slice::from_ref(block),
            Self::Experts(experts) => &experts.blocks,
        }
    }

    /// What reads the normalised residual stream: the router, then gates and ups.
    pub fn readers(&self) -> impl Iterator<Item = &Fused> {
        let router = match self {
            Self::Block(_) => None,
            Self::Experts(experts) => Some(&experts.router),
        };
        router.into_iter().chain(self.blocks().iter().flat_map(|block| block.gate_up.parts()))
    }

    /// Bytes of weights that one decoded token reads: of experts, those that it goes through.
    fn bytes_a_token(&self, shape: &Shape) -> u64 {
        let blocks: u64 = self.blocks().iter().map(|block| block.gate_up.bytes() + block.down.bytes()).sum();
        match (self, shape.routing) {
            (Self::Experts(experts), Some(r)) => experts.router.bytes() + blocks * r.used as u64 / r.experts as u64,
            _ => blocks,
        }
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
    /// First rows of queries, keys and values in their fused panel, and its rows in all.
    pub fn qkv_rows(&self) -> [usize; 4] {
        let queries = (self.heads * self.head_width).next_multiple_of(LANES);
        let keys = (self.kv_heads * self.head_width).next_multiple_of(LANES);
        [0, queries, queries + keys, queries + 2 * keys]
    }
}
