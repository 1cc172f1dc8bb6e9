//! The shape of a language model, as stages need it. Not read from files here (that is the engine's knowledge). Invariant: a
//! parsed [`Model`] has sane numbers: nothing zero that divides, nothing so large that a product overflows.

use std::num::NonZeroU32;

use crate::limits::{EOS_TOKENS_MAX, LAYERS_MAX, MODEL_NUMBER_MAX, WORD_BYTES_MAX};
use crate::record_pb;
use crate::variations;

pub use crate::rope::RopeScaling;
pub use crate::variations::{Experts, Variations};

/// The shape of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The forward pass it needs: "llama", "gemma3", "llama+scaled-rope".
    pub architecture: String,
    /// Decoder layers.
    pub layers: u32,
    /// Values of a hidden state.
    pub width: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Values of one head.
    pub head_width: u32,
    /// Inner width of the feed-forward block, of one expert where there are many.
    pub feed_forward: u32,
    /// Tokens.
    pub vocabulary: u32,
    /// Of the RMS norms.
    pub norm_epsilon: f64,
    /// Base of the rotary embedding's frequencies.
    pub rope_base: f64,
    /// Most positions.
    pub context_max: u32,
    /// The head reads the embedding's rows.
    pub tied_embeddings: bool,
    /// Query, key and value projections have a bias.
    pub attention_bias: bool,
    /// How tensors are named.
    pub naming: Naming,
    /// Rotary pairs are (i, i + half), not (2i, 2i + 1).
    pub rope_half_split: bool,
    /// Tokens that end a generation.
    pub eos_tokens: Vec<u32>,
    /// The token that begins a text.
    pub bos_token: Option<u32>,
    /// How rotary frequencies differ from those of the base.
    pub rope_scaling: Option<RopeScaling>,
    /// Positions that attention looks back over, the position itself among them; all of them where there is none.
    pub window: Option<NonZeroU32>,
    /// What sets the layers of later families apart.
    pub variations: Variations,
}

/// How tensors are named and query and key rows are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Naming {
    /// `model.layers.N.self_attn.q_proj.weight`
    HuggingFace,
    /// `blk.N.attn_q.weight`
    Gguf,
}

impl Model {
    /// The signed form.
    pub fn to_pb(&self) -> record_pb::Model {
        let naming = match self.naming {
            Naming::HuggingFace => record_pb::Naming::HuggingFace,
            Naming::Gguf => record_pb::Naming::Gguf,
        };
        record_pb::Model {
            architecture: self.architecture.clone(),
            layers: self.layers,
            width: self.width,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_width: self.head_width,
            feed_forward: self.feed_forward,
            vocabulary: self.vocabulary,
            norm_epsilon: self.norm_epsilon,
            rope_base: self.rope_base,
            context_max: self.context_max,
            tied_embeddings: self.tied_embeddings,
            attention_bias: self.attention_bias,
            naming: naming as i32,
            rope_half_split: self.rope_half_split,
            eos_tokens: self.eos_tokens.clone(),
            bos_token: self.bos_token.unwrap_or(0),
            has_bos: self.bos_token.is_some(),
            rope_scaling: self.rope_scaling.map(RopeScaling::to_pb),
            window: self.window.map_or(0, NonZeroU32::get),
            full_attention_every: variations::number(self.variations.full_attention_every),
            window_rope_base: self.variations.window_rope_base.unwrap_or(0.0),
            unrotated_every: variations::number(self.variations.unrotated_every),
            experts: self.variations.experts.map(Experts::to_pb),
            query_scalar: self.variations.query_scalar.unwrap_or(0.0),
            rotary_width: variations::number(self.variations.rotary_width),
        }
    }

    /// From the signed form; the error names the field that can't be.
    pub fn from_pb(pb: record_pb::Model) -> Result<Self, &'static str> {
        let naming = match record_pb::Naming::try_from(pb.naming) {
            Ok(record_pb::Naming::HuggingFace) => Naming::HuggingFace,
            Ok(record_pb::Naming::Gguf) => Naming::Gguf,
            _ => return Err("naming"),
        };
        let variations = Variations::from_pb(&pb);
        let model = Self {
            architecture: pb.architecture,
            layers: pb.layers,
            width: pb.width,
            heads: pb.heads,
            kv_heads: pb.kv_heads,
            head_width: pb.head_width,
            feed_forward: pb.feed_forward,
            vocabulary: pb.vocabulary,
            norm_epsilon: pb.norm_epsilon,
            rope_base: pb.rope_base,
            context_max: pb.context_max,
            tied_embeddings: pb.tied_embeddings,
            attention_bias: pb.attention_bias,
            naming,
            rope_half_split: pb.rope_half_split,
            eos_tokens: pb.eos_tokens,
            bos_token: pb.has_bos.then_some(pb.bos_token),
            rope_scaling: pb.rope_scaling.map(RopeScaling::from_pb),
            window: NonZeroU32::new(pb.window),
            variations,
        };
        model.check().map(|()| model)
    }

    fn check(&self) -> Result<(), &'static str> {
        let numbers = [
            ("layers", self.layers, LAYERS_MAX),
            ("width", self.width, MODEL_NUMBER_MAX),
            ("heads", self.heads, MODEL_NUMBER_MAX),
            ("kv_heads", self.kv_heads, self.heads),
            ("head_width", self.head_width, MODEL_NUMBER_MAX),
            ("feed_forward", self.feed_forward, MODEL_NUMBER_MAX),
            ("vocabulary", self.vocabulary, MODEL_NUMBER_MAX),
            ("context_max", self.context_max, u32::MAX),
        ];
        if let Some((name, ..)) = numbers.iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
            return Err(name);
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match () {
            () if self.architecture.is_empty() || self.architecture.len() > WORD_BYTES_MAX => Err("architecture"),
            () if !self.heads.is_multiple_of(self.kv_heads) => Err("kv_heads"),
            () if u64::from(self.heads) * u64::from(self.head_width) > u64::from(MODEL_NUMBER_MAX) => Err("head_width"),
            () if !positive(self.norm_epsilon) => Err("norm_epsilon"),
            () if !positive(self.rope_base) => Err("rope_base"),
            () if self.rope_scaling.is_some_and(|scaling| !scaling.is_possible()) => Err("rope_scaling"),
            () if self.eos_tokens.len() > EOS_TOKENS_MAX => Err("eos_tokens"),
            () => self.variations.check(self.head_width),
        }
    }
}
