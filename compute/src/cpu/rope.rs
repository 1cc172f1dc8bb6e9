//! Rotary position embedding: the table of angles, up to the context of a stage.
//!
//! Pairs are neighbours (`x[2i], x[2i+1]`); weights stored for half-split pairs have their rows permuted when loaded.

use super::packed::LANES;

/// Cosines and sines by position.
pub struct Rope {
    /// Values of a position.
    stride: usize,
    /// Values from one position to the next: none where nothing is rotated at any.
    step: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Angles of `positions` for heads with a pair for each of `frequencies` (radians a position); rows are padded to whole
    /// chunks with zeros.
    pub fn new(frequencies: &[f64], positions: usize) -> Self {
        let stride = (2 * frequencies.len()).next_multiple_of(LANES);
        let turns = frequencies.iter().any(|frequency| *frequency != 0.0);
        let (step, positions) = if turns { (stride, positions) } else { (0, 1) };
        let mut rope = Self { stride, step, cos: vec![0.0; stride * positions], sin: vec![0.0; stride * positions] };
        for position in 0..positions {
            for (i, frequency) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let at = position * stride + 2 * i;
                rope.cos[at..at + 2].fill(cos as f32);
                rope.sin[at..at + 2].copy_from_slice(&[-sin as f32, sin as f32]);
            }
        }
        rope
    }

    /// Cosines (each twice) and sines (minus, plus) of a position: `x * cos + swapped(x) * sin` rotates.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let at = position * self.step;
        (&self.cos[at..at + self.stride], &self.sin[at..at + self.stride])
    }

    /// Bytes held.
    pub fn bytes(width: usize, positions: usize) -> u64 {
        (width.next_multiple_of(LANES) * positions * 8) as u64
    }
}
