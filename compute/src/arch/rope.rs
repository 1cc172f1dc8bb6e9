//! Frequencies of rotary embeddings: those of the base, and what scales them. Angles by position are made by the engines.

use super::pattern::Angles;
use cairn_protocol::manifest::{Model, RopeScaling};
use std::f64::consts::TAU;

/// The frequency of each rotary pair of a head, in radians a position; zero for elements that are not rotated. `factors`
/// are the elements of the model's `rope_freqs.weight` where it has one.
pub(crate) fn frequencies(model: &Model, factors: &[f32], angles: Angles) -> Vec<f64> {
    let width = rotary_width(model);
    let (base, scaling) = match angles {
        Angles::Model => (model.rope_base, model.rope_scaling),
        Angles::Window => (model.variations.window_rope_base.unwrap_or(model.rope_base), None),
        Angles::Still => return vec![0.0; model.head_width as usize / 2],
    };
    let plain = |pair: u32| base.powf(-2.0 * f64::from(pair) / f64::from(width));
    let turned = (0..width / 2).map(|pair| scaled(plain(pair), scaling, factors.get(pair as usize)));
    turned.chain((width / 2..model.head_width / 2).map(|_| 0.0)).collect()
}

/// Elements of a head that are rotated.
pub(crate) fn rotary_width(model: &Model) -> u32 {
    model.variations.rotary_width.map_or(model.head_width, |width| width.get().min(model.head_width))
}

/// Whether elements of a `rope_freqs.weight` can divide frequencies.
pub(crate) fn are_factors(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite() && *value > 0.0)
}

fn scaled(frequency: f64, scaling: Option<RopeScaling>, divisor: Option<&f32>) -> f64 {
    match scaling {
        Some(RopeScaling::Linear { factor }) => frequency / factor,
        Some(RopeScaling::Llama3 { factor, low, high, original_context }) => {
            // Turns that this pair makes over the context of the first training.
            let turns = f64::from(original_context) * frequency / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
        Some(RopeScaling::Tensor) => frequency / divisor.map_or(1.0, |d| f64::from(*d)),
        Some(RopeScaling::Unknown) | None => frequency,
    }
}
