//! Frequencies of rotary embeddings: those of the base, and what scales them. Angles by position are made by the engines.

use cairn_protocol::manifest::{Model, RopeScaling};
use std::f64::consts::TAU;

/// The frequency of each rotary pair, in radians a position. `factors` are the elements of the model's `rope_freqs.weight`
/// where it has one.
pub(crate) fn frequencies(model: &Model, factors: &[f32]) -> Vec<f64> {
    let width = model.head_width;
    let plain = |pair: u32| model.rope_base.powf(-2.0 * f64::from(pair) / f64::from(width));
    (0..width / 2).map(|pair| scaled(plain(pair), model.rope_scaling, factors.get(pair as usize))).collect()
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
