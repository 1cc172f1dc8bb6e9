//! Quantised blocks, held against candle's reading of them.

use crate::quant::{dequantise, quantise_q8_0};
use cairn_protocol::dtype::Dtype;
use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor},
};

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 * 12.9898).sin() * 43_758.547).fract() - 0.3).collect()
}

/// Blocks as candle quantises them, and its values of them.
fn candle(dtype: GgmlDType, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let tensor = candle_core::Tensor::from_slice(values, (values.len() / 256, 256), &Device::Cpu).unwrap();
    let quantised = QTensor::quantize(&tensor, dtype).unwrap();
    let back = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (quantised.data().unwrap().into_owned(), back)
}

#[test]
fn values_of_every_type_are_those_that_candle_reads() {
    let pairs = [
        (Dtype::Q4_0, GgmlDType::Q4_0),
        (Dtype::Q4_1, GgmlDType::Q4_1),
        (Dtype::Q5_0, GgmlDType::Q5_0),
        (Dtype::Q5_1, GgmlDType::Q5_1),
        (Dtype::Q8_0, GgmlDType::Q8_0),
        (Dtype::Q2_K, GgmlDType::Q2K),
        (Dtype::Q3_K, GgmlDType::Q3K),
        (Dtype::Q4_K, GgmlDType::Q4K),
        (Dtype::Q5_K, GgmlDType::Q5K),
        (Dtype::Q6_K, GgmlDType::Q6K),
        (Dtype::F16, GgmlDType::F16),
        (Dtype::BF16, GgmlDType::BF16),
        (Dtype::F32, GgmlDType::F32),
    ];
    for (ours, theirs) in pairs {
        let (bytes, want) = candle(theirs, &noise(1024));
        let mut got = Vec::new();
        assert!(dequantise(ours, &bytes, &mut got));
        for (i, (w, g)) in want.iter().zip(&got).enumerate() {
            assert!((w - g).abs() <= 1e-6 + w.abs() * 1e-6, "{ours} element {i}: {w} and {g}");
        }
        assert_eq!(want.len(), got.len(), "{ours}");
    }
}

#[test]
fn requantised_values_are_those_of_candle() {
    let values = noise(1024);
    let (mut bytes, mut got) = (Vec::new(), Vec::new());
    quantise_q8_0(&values, &mut bytes);
    assert!(dequantise(Dtype::Q8_0, &bytes, &mut got));
    let want = candle(GgmlDType::Q8_0, &values).1;
    assert!(want.iter().zip(&got).all(|(w, g)| (w - g).abs() < 1e-3));
}
