//! Quantised blocks: their values, and how types that the engine has no product for are turned into ones it has.
//!
//! The layouts are ggml's (llama.cpp, `ggml-common.h`); blocks lie within rows. Total: any bytes of the right length
//! give some numbers. Not here: which type becomes which (`weights`).

use cairn_protocol::dtype::Dtype;
use half::{bf16, f16};
use std::array::from_fn;

/// Elements of a Q8_0, Q4_0 or Q4_1 block.
const BLOCK: usize = 32;
/// The table of IQ4_NL.
pub const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Appends the values of whole blocks as F32. False for a type that is not read here.
#[must_use]
pub fn dequantise(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) -> bool {
    let block = dtype.block_bytes() as usize;
    let each: fn(&[u8], &mut Vec<f32>) = match dtype {
        Dtype::F32 => |b, o| o.push(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::F16 => |b, o| o.push(half(b, 0)),
        Dtype::BF16 => |b, o| o.push(bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        Dtype::Q8_0 => |b, o| o.extend(b[2..34].iter().map(|q| half(b, 0) * *q as i8 as f32)),
        Dtype::Q8_1 => |b, o| o.extend(b[4..36].iter().map(|q| half(b, 0) * *q as i8 as f32)),
        Dtype::Q4_0 => |b, o| o.extend((0..BLOCK).map(|i| half(b, 0) * (nibble(&b[2..], i) as i32 - 8) as f32)),
        Dtype::Q4_1 => |b, o| o.extend((0..BLOCK).map(|i| half(b, 0) * nibble(&b[4..], i) as f32 + half(b, 2))),
        Dtype::Q5_0 => |b, o| o.extend((0..BLOCK).map(|i| half(b, 0) * (five(&b[2..], i) as i32 - 16) as f32)),
        Dtype::Q5_1 => |b, o| o.extend((0..BLOCK).map(|i| half(b, 0) * five(&b[4..], i) as f32 + half(b, 2))),
        Dtype::IQ4_NL => |b, o| {
            o.extend((0..BLOCK).map(|i| half(b, 0) * IQ4_NL[nibble(&b[2..], i) as usize] as f32));
        },
        Dtype::Q2_K => q2_k,
        Dtype::Q3_K => q3_k,
        Dtype::Q4_K => |b, o| q45_k(Dtype::Q4_K, b, o),
        Dtype::Q5_K => |b, o| q45_k(Dtype::Q5_K, b, o),
        Dtype::Q6_K => q6_k,
        _ => return false,
    };
    bytes.chunks_exact(block).for_each(|b| each(b, out));
    true
}

fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Element `i` of 32 in 16 bytes: low nibbles first.
fn nibble(b: &[u8], i: usize) -> u8 {
    if i < 16 { b[i] & 15 } else { b[i - 16] >> 4 }
}

/// Element `i` of a 5-bit block: four bytes of fifth bits, then nibbles.
fn five(b: &[u8], i: usize) -> u8 {
    let fifth = b[i / 8] >> (i % 8) & 1;
    nibble(&b[4..], i) | fifth << 4
}

fn q2_k(b: &[u8], out: &mut Vec<f32>) {
    let (scales, quants) = (&b[..16], &b[16..80]);
    let (d, min) = (half(b, 80), half(b, 82));
    for i in 0..256 {
        let scale = scales[i / 16];
        let q = quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        out.push(d * (scale & 15) as f32 * q as f32 - min * (scale >> 4) as f32);
    }
}

fn q3_k(b: &[u8], out: &mut Vec<f32>) {
    let (high, quants, scales, d) = (&b[..32], &b[32..96], &b[96..108], half(b, 108));
    for i in 0..256 {
        let (group, low) = (i / 16, i % 128 / 32 * 2);
        let q = (quants[i / 128 * 32 + i % 32] >> low & 3) as i32;
        let q = q - if high[i % 32] >> (i / 32) & 1 == 0 { 4 } else { 0 };
        let four = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let two = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        out.push(d * ((four | two << 4) as i32 - 32) as f32 * q as f32);
    }
}

/// Scale and minimum number `j` of eight, 6 bits each in 12 bytes.
fn scale_min(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (scales[j] & 63, scales[j + 4] & 63);
    }
    let low = scales[j + 4];
    (low & 15 | scales[j - 4] >> 6 << 4, low >> 4 | scales[j] >> 6 << 4)
}

fn q45_k(dtype: Dtype, b: &[u8], out: &mut Vec<f32>) {
    for j in 0..8 {
        let (scale, min) = scale_min(&b[4..16], j);
        let (scale, min) = (half(b, 0) * scale as f32, half(b, 2) * min as f32);
        out.extend(units(dtype, b, j).map(|q| scale * q as f32 - min));
    }
}

fn q6_k(b: &[u8], out: &mut Vec<f32>) {
    for j in 0..8 {
        let scale = |i: usize| half(b, 208) * b[192 + j * 2 + i / 16] as i8 as f32;
        out.extend(units(Dtype::Q6_K, b, j).iter().enumerate().map(|(i, q)| scale(i) * (*q as i32 - 32) as f32));
    }
}

/// The quants of 32 elements as the packed layout takes them, unsigned: part `j` of a block (a block of 32 is one part).
/// Only for types that are packed as they are.
pub fn units(dtype: Dtype, b: &[u8], j: usize) -> [u8; BLOCK] {
    match dtype {
        Dtype::Q8_0 => from_fn(|i| b[2 + i] ^ 0x80),
        Dtype::Q4_0 | Dtype::IQ4_NL => from_fn(|i| nibble(&b[2..], i)),
        Dtype::Q4_1 => from_fn(|i| nibble(&b[4..], i)),
        Dtype::Q5_0 => from_fn(|i| five(&b[2..], i)),
        Dtype::Q5_1 => from_fn(|i| five(&b[4..], i)),
        Dtype::Q4_K => from_fn(|i| b[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15),
        Dtype::Q5_K => from_fn(|i| b[48 + j / 2 * 32 + i] >> (j % 2 * 4) & 15 | (b[16 + i] >> j & 1) << 4),
        Dtype::Q6_K => {
            let (half, quarter) = (j / 4, j % 4);
            let low = &b[half * 64 + quarter % 2 * 32..];
            let high = &b[128 + half * 32..];
            from_fn(|i| low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4)
        }
        _ => unreachable!("{dtype} is not packed as it is"),
    }
}

/// Scales of a block of a K type.
pub struct SuperScales {
    /// The half that scales are multiplied with.
    pub d: [u8; 2],
    /// The half that minima are multiplied with.
    pub least: [u8; 2],
    /// Scales: of 32 elements in the first eight, of 16 in all for Q6_K.
    pub small: [i8; 16],
    /// Minima.
    pub small_mins: [u8; 8],
}

/// The scales of a Q4_K, Q5_K or Q6_K block.
pub fn scales(dtype: Dtype, b: &[u8]) -> SuperScales {
    if dtype == Dtype::Q6_K {
        let small = from_fn(|i| b[192 + i] as i8);
        return SuperScales { d: [b[208], b[209]], least: [0; 2], small, small_mins: [0; 8] };
    }
    let pairs: [(u8, u8); 8] = from_fn(|j| scale_min(&b[4..16], j));
    let small = from_fn(|i| pairs.get(i).map_or(0, |pair| pair.0 as i8));
    SuperScales { d: [b[0], b[1]], least: [b[2], b[3]], small, small_mins: pairs.map(|pair| pair.1) }
}

/// Q8_1 and IQ4_NL to Q8_0 without loss: their quants are whole numbers under one scale.
pub fn widen_exactly(dtype: Dtype, bytes: &[u8], out: &mut Vec<u8>) {
    for b in bytes.chunks_exact(dtype.block_bytes() as usize) {
        out.extend_from_slice(&b[..2]);
        match dtype {
            Dtype::Q8_1 => out.extend_from_slice(&b[4..36]),
            _ => out.extend((0..BLOCK).map(|i| IQ4_NL[nibble(&b[2..], i) as usize] as u8)),
        }
    }
}

/// Values to Q8_0, as ggml's reference does it. Whole blocks.
pub fn quantise_q8_0(values: &[f32], out: &mut Vec<u8>) {
    for block in values.as_chunks::<BLOCK>().0 {
        let top = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        let (d, inverse) = (top / 127.0, if top > 0.0 { 127.0 / top } else { 0.0 });
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_to_q8_0_loses_nothing() {
        let eight: Vec<u8> = (0..36u8).map(|i| if i < 4 { [0, 0x2c, 0, 0x40][i as usize] } else { i * 7 }).collect();
        let mut four: Vec<u8> = Vec::new();
        for i in 0..16u8 {
            four.extend(f16::from_f32(0.01 * (i as f32 - 7.0)).to_le_bytes());
            four.extend((0..16u8).map(|j| i.wrapping_mul(37).wrapping_add(j * 17)));
        }
        for (dtype, bytes) in [(Dtype::Q8_1, eight), (Dtype::IQ4_NL, four)] {
            let (mut wide, mut want, mut got) = (Vec::new(), Vec::new(), Vec::new());
            widen_exactly(dtype, &bytes, &mut wide);
            assert!(dequantise(dtype, &bytes, &mut want) && dequantise(Dtype::Q8_0, &wide, &mut got));
            assert_eq!(want, got, "{dtype}");
        }
    }
}
