//! What sets the layers of a family apart from the plain block: layers of two kinds, experts, other scales. Invariant: absent
//! everywhere, it adds no byte to a manifest; checked, nothing divides by zero and nothing is chosen that is not there.

use std::num::NonZeroU32;

use crate::limits::EXPERTS_MAX;
use crate::record_pb;

/// What sets a model's layers apart; none of it in the plain block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Variations {
    /// Every so many layers one looks at all positions, the last of them; the others look over the window.
    pub full_attention_every: Option<NonZeroU32>,
    /// Base of the rotary frequencies, which nothing scales, in layers that look over the window.
    pub window_rope_base: Option<f64>,
    /// Every so many layers one does not rotate, the last of them.
    pub unrotated_every: Option<NonZeroU32>,
    /// The feed-forward part is a choice of many blocks.
    pub experts: Option<Experts>,
    /// Scores are divided by the square root of this, not of the head's width.
    pub query_scalar: Option<f64>,
    /// Elements of a head that are rotated, the first ones.
    pub rotary_width: Option<NonZeroU32>,
}

/// Feed-forward blocks of which a router chooses some for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Blocks of a layer.
    pub count: u32,
    /// Blocks that each token goes through.
    pub used: u32,
    /// The weights of those blocks are divided by their sum.
    pub normalised: bool,
}

impl Experts {
    pub(crate) fn to_pb(self) -> record_pb::Experts {
        record_pb::Experts { count: self.count, used: self.used, normalised: self.normalised }
    }
}

/// Absent numbers are zero in the signed form.
pub(crate) fn number(value: Option<NonZeroU32>) -> u32 {
    value.map_or(0, NonZeroU32::get)
}

impl Variations {
    pub(crate) fn from_pb(pb: &record_pb::Model) -> Self {
        let real = |value: f64| Some(value).filter(|value| *value != 0.0);
        let experts = |pb: &record_pb::Experts| Experts { count: pb.count, used: pb.used, normalised: pb.normalised };
        Self {
            full_attention_every: NonZeroU32::new(pb.full_attention_every),
            window_rope_base: real(pb.window_rope_base),
            unrotated_every: NonZeroU32::new(pb.unrotated_every),
            experts: pb.experts.as_ref().map(experts),
            query_scalar: real(pb.query_scalar),
            rotary_width: NonZeroU32::new(pb.rotary_width),
        }
    }

    /// Whether its numbers can be, in heads of that width; the error names the one that can't.
    pub fn check(&self, head_width: u32) -> Result<(), &'static str> {
        let positive = |value: Option<f64>| value.is_none_or(|value| value.is_finite() && value > 0.0);
        let chosen = |e: Experts| (1..=EXPERTS_MAX).contains(&e.count) && (1..=e.count).contains(&e.used);
        match () {
            () if !positive(self.window_rope_base) => Err("window_rope_base"),
            () if !positive(self.query_scalar) => Err("query_scalar"),
            () if !self.experts.is_none_or(chosen) => Err("experts"),
            () if self.rotary_width.is_some_and(|n| n.get() > head_width || n.get() % 2 == 1) => Err("rotary_width"),
            () => Ok(()),
        }
    }
}
