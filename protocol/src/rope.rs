//! How the frequencies of a model's rotary embedding differ from those of its base. Not the arithmetic (that is the engine's).
//! Invariant: a scaling that [`RopeScaling::is_possible`] gives finite, positive frequencies.

use crate::limits::{ROPE_CONTEXT_MAX, ROPE_FACTOR_MAX};
use crate::record_pb;

/// What divides rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency by the same.
    Linear {
        /// By this.
        factor: f64,
    },
    /// Long wavelengths by a factor, short ones by nothing, those between by something between (Llama 3.1).
    Llama3 {
        /// What divides the long ones.
        factor: f64,
        /// Wavelengths above `original_context / low` are long.
        low: f64,
        /// Wavelengths below `original_context / high` are short.
        high: f64,
        /// Positions that the model was first trained for.
        original_context: u32,
    },
    /// Each frequency by an element of the tensor `rope_freqs.weight`.
    Tensor,
    /// A kind that only a later version knows; never computed.
    Unknown,
}

impl RopeScaling {
    /// The signed form.
    pub fn to_pb(self) -> record_pb::RopeScaling {
        use record_pb::RopeScalingKind as Kind;
        let of = |kind: Kind| record_pb::RopeScaling { kind: kind as i32, ..Default::default() };
        match self {
            Self::Linear { factor } => record_pb::RopeScaling { factor, ..of(Kind::Linear) },
            Self::Llama3 { factor, low, high, original_context } => record_pb::RopeScaling {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
                ..of(Kind::Llama3)
            },
            Self::Tensor => of(Kind::Tensor),
            Self::Unknown => of(Kind::Unspecified),
        }
    }

    /// From the signed form.
    pub fn from_pb(pb: record_pb::RopeScaling) -> Self {
        use record_pb::RopeScalingKind as Kind;
        match Kind::try_from(pb.kind) {
            Ok(Kind::Linear) => Self::Linear { factor: pb.factor },
            Ok(Kind::Llama3) => Self::Llama3 {
                factor: pb.factor,
                low: pb.low_frequency_factor,
                high: pb.high_frequency_factor,
                original_context: pb.original_context,
            },
            Ok(Kind::Tensor) => Self::Tensor,
            Ok(Kind::Unspecified) | Err(_) => Self::Unknown,
        }
    }

    /// Whether its numbers are within their bounds.
    pub fn is_possible(&self) -> bool {
        let fits = |factor: f64| factor > 0.0 && factor <= f64::from(ROPE_FACTOR_MAX);
        match *self {
            Self::Linear { factor } => fits(factor) && factor >= 1.0,
            Self::Llama3 { factor, low, high, original_context } => {
                let context_fits = (1..=ROPE_CONTEXT_MAX).contains(&original_context);
                fits(factor) && factor >= 1.0 && fits(low) && fits(high) && low < high && context_fits
            }
            Self::Tensor | Self::Unknown => true,
        }
    }
}
