//! Buffers of a pass, made once for a stage and kept: no allocation per token.

use super::{
    acts::{Acts, Planes, Rows},
    adapters::Low,
    kernels::padded_head,
    matrix::{Feed, Fused},
    model::Model,
    packed::LANES,
    route::Choice,
};
use crate::sample::Sampler;

/// Most tokens in one pass; longer prompts are cut. Their activations stay in the second-level cache.
pub const PASS_TOKENS_MAX: usize = 128;

/// Most tokens of one pass whose logits are wanted: each takes a vocabulary of buffer.
pub const SAMPLED_MAX: usize = 16;

/// Buffers of a pass.
pub struct Work {
    /// Residual stream, a panel.
    pub x: Vec<f32>,
    /// Queries, keys, values, a panel.
    pub qkv: Vec<f32>,
    /// What attention gives, `[token][head][padded head width]`.
    pub mixed: Vec<f32>,
    /// The same without the padding of heads, `[token][padded width]`; unused where heads have none.
    pub compact: Vec<f32>,
    /// Between up and down, a panel; of one token's experts, one after the other.
    pub hidden: Vec<f32>,
    /// What an expert gives, or a part of a layer before it is normalised, a panel; of one token's experts, one after the
    /// other. Empty where neither is.
    pub branch: Vec<f32>,
    /// A branch normalised, `[token][padded width]`; empty where none is.
    pub normed: Vec<f32>,
    /// How well each expert fits each token, a panel.
    pub routes: Vec<f32>,
    /// The same of one token.
    pub scores: Vec<f32>,
    /// Which experts the tokens of the pass go through.
    pub choices: Vec<Choice>,
    /// Of the narrow feed, the tokens of one expert.
    pub picked: Option<Feed>,
    /// For the downs of one token's experts.
    pub each: Vec<Feed>,
    /// Normalised residual stream, for qkv, gate and up.
    pub narrow: Feed,
    /// What attention gives, for its output projection.
    pub attended: Feed,
    /// For down.
    pub wide: Feed,
    /// Normalised residual stream of the wanted tokens, for the head.
    pub last: Feed,
    /// What adapters of some columns add; empty for a pass without.
    pub low: Low,
    /// Logits, a panel.
    pub logits: Vec<f32>,
    /// The logits of one token of several.
    pub column: Vec<f32>,
    /// Chooses tokens.
    pub sampler: Sampler,
}

impl Work {
    /// Buffers for up to `tokens` tokens a pass, of which `wanted` give logits.
    pub fn new(model: &Model, planes: Planes, tokens: usize, wanted: usize) -> Self {
        let (s, padded) = (&model.shape, |n: usize| n.next_multiple_of(LANES));
        let each = |f: fn(&super::model::Layer) -> Vec<&Fused>| model.layers.iter().flat_map(f).collect::<Vec<_>>();
        let attended = s.heads * s.head_width;
        let whole_heads = padded_head(s.head_width) == s.head_width;
        let head = model.head.as_ref();
        let routing = model.shape.routing;
        let downs = each(|l| l.feed_forward.blocks().iter().map(|block| &block.down).collect());
        let inward = each(|l| l.feed_forward.readers().collect());
        let has_post_norms = model.layers.iter().any(|layer| layer.post_norms.is_some());
        // A lone token's experts stand side by side.
        let columns = tokens.max(routing.map_or(0, |routing| routing.used));
        let branches = if has_post_norms || routing.is_some() { columns } else { 0 };
        let wanted = if head.is_some() { wanted } else { 0 };
        Self {
            x: vec![0.0; padded(s.width) * tokens],
            qkv: vec![0.0; s.qkv_rows()[3] * tokens],
            mixed: vec![0.0; s.heads * padded_head(s.head_width) * tokens],
            compact: vec![0.0; if whole_heads { 0 } else { padded(attended) * tokens }],
            hidden: vec![0.0; padded(s.feed_forward) * columns],
            branch: vec![0.0; padded(s.width) * branches],
            normed: vec![0.0; if has_post_norms { padded(s.width) * tokens } else { 0 }],
            routes: vec![0.0; routing.map_or(0, |routing| padded(routing.experts)) * tokens],
            scores: vec![0.0; routing.map_or(0, |routing| routing.experts)],
            choices: Vec::new(),
            picked: routing.map(|_| feed(s.width, tokens, planes, inward)),
            each: routing
                .map_or(Vec::new(), |r| (0..r.used).map(|_| feed(s.feed_forward, 1, planes, downs.clone())).collect()),
            narrow: feed(
                s.width,
                tokens,
                planes,
                each(|l| [&l.qkv].into_iter().chain(l.feed_forward.readers()).collect()),
            ),
            attended: feed(attended, tokens, planes, each(|l| vec![&l.out])),
            wide: feed(s.feed_forward, tokens, planes, downs),
            last: feed(s.width, wanted, planes, head.iter().map(|h| &h.matrix).collect()),
            low: Low::default(),
            logits: vec![0.0; head.map_or(0, |h| h.matrix.groups() * LANES * wanted)],
            column: Vec::new(),
            sampler: Sampler::default(),
        }
    }
}

fn feed(k: usize, tokens: usize, planes: Planes, readers: Vec<&Fused>) -> Feed {
    let room = |needed: bool| if needed { tokens } else { 0 };
    Feed {
        acts: Acts::new(k, room(readers.iter().any(|r| r.reads_acts())), planes),
        rows: Rows::new(k, room(readers.iter().any(|r| r.reads_rows()))),
    }
}
