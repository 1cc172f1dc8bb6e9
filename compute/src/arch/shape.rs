//! From a described model to sizes that nothing has to check again, and nothing can overflow.

use super::{family, rope::rotary_width};
use crate::cpu::{
    kernels::HEAD_WIDTH_MAX,
    model::{Routing, Shape},
};
use cairn_protocol::{
    limits::{CONTEXT_MAX, LAYERS_MAX, MODEL_NUMBER_MAX},
    manifest::{Model, RopeScaling},
};

/// Why a described model cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ShapeError {
    /// No forward pass for it.
    #[error("architecture {0:?} is not served, only {known} are", known = family::names())]
    Architecture(String),
    /// A number outside its bounds.
    #[error("{name} is {value}, which is outside {least}..={most}")]
    Number {
        /// Which.
        name: &'static str,
        /// What it is.
        value: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
    /// Query heads have to share key/value heads evenly.
    #[error("{heads} query heads can't share {kv_heads} key/value heads evenly")]
    Heads {
        /// Query heads.
        heads: u32,
        /// Key/value heads.
        kv_heads: u32,
    },
    /// Rotary pairs need an even head.
    #[error("a head of {0} elements has no rotary pairs")]
    OddHead(u32),
    /// Numbers of a rotary scaling outside their bounds.
    #[error("the model's rope scaling is not possible")]
    RopeScaling,
    /// Something that models of its family have not.
    #[error("the model has {0}, which its architecture has not")]
    Foreign(&'static str),
    /// Something that models of its family can't do without.
    #[error("the model has no {0}, which its architecture needs")]
    Lacks(&'static str),
    /// Numbers of a variation outside their bounds.
    #[error("the model's {0} is not possible")]
    Variation(&'static str),
    /// A real number that has to be finite and positive.
    #[error("{0} is not a positive number")]
    NotPositive(&'static str),
}

/// Whether the engine can compute a model of this shape.
pub fn is_served(model: &Model) -> bool {
    shape(model).is_ok()
}

/// Checks a described model.
pub(crate) fn shape(model: &Model) -> Result<Shape, ShapeError> {
    let known = family::of(model).filter(|_| model.rope_scaling != Some(RopeScaling::Unknown));
    let unknown = || ShapeError::Architecture(model.architecture.chars().take(64).collect());
    let family = known.ok_or_else(unknown)?;
    family::check(model, family)?;
    model.variations.check(model.head_width).map_err(ShapeError::Variation)?;
    let number = |name, value: u32, most: u32| {
        let inside = (1..=most).contains(&value);
        let (value, most) = (value as u64, most as u64);
        if inside { Ok(value as usize) } else { Err(ShapeError::Number { name, value, least: 1, most }) }
    };
    number("layers", model.layers, LAYERS_MAX)?;
    number("context_max", model.context_max, u32::MAX)?;
    let shape = Shape {
        width: number("width", model.width, MODEL_NUMBER_MAX)?,
        heads: number("heads", model.heads, MODEL_NUMBER_MAX)?,
        kv_heads: number("kv_heads", model.kv_heads, model.heads)?,
        head_width: number("head_width", model.head_width, HEAD_WIDTH_MAX as u32)?,
        feed_forward: number("feed_forward", model.feed_forward, MODEL_NUMBER_MAX)?,
        vocabulary: number("vocabulary", model.vocabulary, MODEL_NUMBER_MAX)?,
        epsilon: positive("norm_epsilon", model.norm_epsilon)? as f32,
        rotary_width: rotary_width(model) as usize,
        score_scale: 1.0 / (model.variations.query_scalar.unwrap_or(f64::from(model.head_width)) as f32).sqrt(),
        embedding_scale: if family.scaled_embedding { (model.width as f32).sqrt() } else { 1.0 },
        activation: family.activation,
        routing: model.variations.experts.map(|experts| Routing {
            experts: experts.count as usize,
            used: experts.used as usize,
            is_normalised: experts.normalised,
        }),
    };
    positive("rope_base", model.rope_base)?;
    let attended = shape.heads as u64 * shape.head_width as u64;
    if attended > MODEL_NUMBER_MAX as u64 {
        let most = MODEL_NUMBER_MAX as u64;
        return Err(ShapeError::Number { name: "heads x head_width", value: attended, least: 1, most });
    }
    let inner = shape.routing.map_or(1, |routing| routing.experts as u64) * shape.feed_forward as u64;
    if inner > MODEL_NUMBER_MAX as u64 {
        let most = MODEL_NUMBER_MAX as u64;
        return Err(ShapeError::Number { name: "experts x feed_forward", value: inner, least: 1, most });
    }
    if model.rope_scaling.is_some_and(|scaling| !scaling.is_possible()) {
        return Err(ShapeError::RopeScaling);
    }
    if !shape.heads.is_multiple_of(shape.kv_heads) {
        return Err(ShapeError::Heads { heads: model.heads, kv_heads: model.kv_heads });
    }
    if !shape.head_width.is_multiple_of(2) {
        return Err(ShapeError::OddHead(model.head_width));
    }
    Ok(shape)
}

fn positive(name: &'static str, value: f64) -> Result<f64, ShapeError> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(ShapeError::NotPositive(name)) }
}

/// The context of a stage: what is asked for, within the model's and the protocol's.
pub(crate) fn context(model: &Model, asked: u32) -> usize {
    asked.clamp(1, model.context_max.min(CONTEXT_MAX)) as usize
}
