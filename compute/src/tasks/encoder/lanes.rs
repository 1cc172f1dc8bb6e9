//! Sixteen values at a time: norms, activations and exponentials of an encoder, in plain Rust.
//!
//! Written without fused operations and without the system's mathematical library, so that every processor gives the same
//! bits; loops over sixteen lanes become vector instructions by themselves. Rows are padded with zeros to whole chunks.

use crate::cpu::packed::LANES;

/// A chunk of a row.
pub type Chunk = [f32; LANES];

/// What stands between the two products of a feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)`, by the error function.
    Gelu,
    /// Its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// By its name in `config.json`.
    pub fn named(word: &str) -> Option<Activation> {
        match word {
            "gelu" => Some(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
            "relu" => Some(Activation::Relu),
            _ => None,
        }
    }

    /// Of each lane.
    #[inline]
    pub fn of(self, x: Chunk) -> Chunk {
        match self {
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_tanh(x),
            Activation::Relu => x.map(|x| if x > 0.0 { x } else { 0.0 }),
        }
    }
}

/// `e^x` for x up to 0, as softmax and the activations need it: range reduction by ln 2 in two parts and a polynomial of
/// degree 6, about 2 ulp. Below -87 it stays at e^-87.
#[inline]
pub fn exp_of_negative(x: f32) -> f32 {
    // 1.5 · 2²³: adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// By the rational approximation of the error function, Abramowitz and Stegun 7.1.26: off by at most 1.5e-7.
#[inline]
fn gelu(x: Chunk) -> Chunk {
    x.map(|x| {
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + 0.327_591_1 * z);
        let mut p = 1.061_405_4;
        for c in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
            p = p * t + c;
        }
        // erfc(z) for z ≥ 0; Φ(x) is half of it below zero and one less half of it above.
        let tail = 0.5 * p * t * exp_of_negative(-z * z);
        x * if x > 0.0 { 1.0 - tail } else { tail }
    })
}

/// `x / (1 + e^-2u)` with `u = √(2/π) (x + 0.044715 x³)` (Hendrycks and Gimpel 2016, section 2).
#[inline]
fn gelu_tanh(x: Chunk) -> Chunk {
    x.map(|x| {
        let u = 1.595_769 * (x + 0.044_715 * x * x * x);
        let small = exp_of_negative(-u.abs());
        let upper = 1.0 / (1.0 + small);
        x * if u > 0.0 { upper } else { small * upper }
    })
}

/// The sum of all lanes, halves folded onto each other.
#[inline]
pub fn sum(x: Chunk) -> f32 {
    let mut x = x;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] += x[i + half];
        }
    }
    x[0]
}

/// Layer normalisation.
pub struct Norm {
    /// Factors, padded with zeros.
    pub weight: Vec<f32>,
    /// Addends, padded with zeros.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
}

impl Norm {
    /// Normalises the first `width` values of a row in place; its padding is and stays zero.
    pub fn apply(&self, row: &mut [f32], width: usize) {
        let total = row.chunks_exact(LANES).fold([0.0; LANES], |sums, chunk| add(sums, load(chunk)));
        let mean = sum(total) / width as f32;
        let mut squares = [0.0; LANES];
        for (c, chunk) in row.chunks_exact(LANES).enumerate() {
            let live = width.saturating_sub(c * LANES).min(LANES);
            for (square, x) in squares.iter_mut().zip(chunk).take(live) {
                *square += (x - mean) * (x - mean);
            }
        }
        let inverse = 1.0 / (sum(squares) / width as f32 + self.epsilon).sqrt();
        let rules = self.weight.chunks_exact(LANES).zip(self.bias.chunks_exact(LANES));
        for (chunk, (weight, bias)) in row.chunks_exact_mut(LANES).zip(rules) {
            for i in 0..LANES {
                chunk[i] = (chunk[i] - mean) * inverse * weight[i] + bias[i];
            }
        }
    }
}

/// Sixteen values from a slice of as many.
#[inline]
pub fn load(chunk: &[f32]) -> Chunk {
    std::array::from_fn(|i| chunk[i])
}

/// Lane by lane.
#[inline]
pub fn add(a: Chunk, b: Chunk) -> Chunk {
    std::array::from_fn(|i| a[i] + b[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its series, in 64 bits.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn exponentials_and_activations_are_those_of_64_bits() {
        for i in -4000..=0 {
            let x = i as f32 / 50.0;
            let (got, want) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 4e-7 * want, "e^{x}: {got} against {want}");
        }
        for i in -400..=400 {
            let x = i as f32 / 100.0;
            let wide = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            for (activation, want, most) in [
                (Activation::Gelu, 0.5 * wide * (1.0 + erf(wide / 2f64.sqrt())), 6e-7),
                (Activation::GeluTanh, 0.5 * wide * (1.0 + u.tanh()), 6e-7),
                (Activation::Relu, wide.max(0.0), 0.0),
            ] {
                let got = f64::from(activation.of([x; LANES])[7]);
                assert!((got - want).abs() <= most, "{activation:?} {x}: {got} against {want}");
            }
        }
        for x in [-1e30, -100.0, 100.0, 1e30] {
            let kept = if x > 0.0 { x } else { 0.0 };
            for activation in [Activation::Gelu, Activation::GeluTanh] {
                assert!((activation.of([x; LANES])[0] - kept).abs() <= 1e-30 * x.abs(), "{activation:?} {x}");
            }
        }
    }

    #[test]
    fn a_norm_leaves_the_padding_zero_and_counts_only_what_lives() {
        let width = 20;
        let (mut weight, mut bias) = (vec![2.0; width], vec![0.5; width]);
        weight.resize(32, 0.0);
        bias.resize(32, 0.0);
        let mut row: Vec<f32> = (0..width).map(|i| (i * i) as f32).collect();
        let (mean, square) = (row.iter().sum::<f32>() / 20.0, row.iter().map(|x| x * x).sum::<f32>() / 20.0);
        row.resize(32, 0.0);
        Norm { weight, bias, epsilon: 1e-5 }.apply(&mut row, width);
        for (i, got) in row.iter().enumerate() {
            let want = ((i * i) as f32 - mean) / (square - mean * mean + 1e-5).sqrt() * 2.0 + 0.5;
            let want = if i < width { want } else { 0.0 };
            assert!((got - want).abs() < 1e-5, "{i}: {got} against {want}");
        }
    }
}
