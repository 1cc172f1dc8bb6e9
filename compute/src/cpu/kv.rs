//! How keys and values lie in a page: as halves, or as bytes with a scale for 32 of them.
//!
//! Of one head, a tile of [`KV_TILE`] positions, in whole lines:
//!
//! ```text
//! f16   keys [pos / 16][d][16] halves                      values [pos][padded d] halves
//! int8  keys [pos / 16][d][16] bytes,                      values [pos][padded d] bytes,
//!            [pos / 16][⌈d / 32⌉][16] scales (halves)             [⌈padded d / 32⌉][pos] scales (halves)
//! ```
//!
//! A byte means itself times the scale of its position and of the 32 elements that it is one of, as in ggml's Q8_0.

use super::{
    kernels::{self, KV_TILE, padded_head},
    level::Level,
    lines::{LINE_BYTES, Line},
    packed::LANES,
};
use half::f16;
use std::{fmt, str::FromStr};

/// Elements of a key or value that share a scale.
pub const KV_BLOCK: usize = 32;

/// What a session's keys and values are held as. A session keeps to one on all its stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvFormat {
    /// Halves.
    #[default]
    F16,
    /// Bytes, with a scale for 32 of them: 17 bits for 32 of halves.
    Int8,
}

/// No format of keys and values has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("keys and values are held as f16 or int8, not as {0:?}")]
pub struct UnknownKvFormat(pub String);

impl KvFormat {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F16, Self::Int8];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// The one of that name; without a name, halves.
    pub fn parse_wish(name: &str) -> Result<Self, UnknownKvFormat> {
        if name.is_empty() { Ok(Self::default()) } else { name.parse() }
    }

    /// Lines of a tile's keys of heads of this width.
    pub fn key_lines(self, width: usize) -> usize {
        self.quant_lines(width) + self.scale_lines(width)
    }

    /// Lines of a tile's values of heads of this width.
    pub fn value_lines(self, width: usize) -> usize {
        self.key_lines(padded_head(width))
    }

    /// Lines of what has no scale beside it, or is scaled.
    fn quant_lines(self, width: usize) -> usize {
        let bytes = match self {
            Self::F16 => size_of::<f16>(),
            Self::Int8 => 1,
        };
        KV_TILE * width * bytes / LINE_BYTES
    }

    fn scale_lines(self, width: usize) -> usize {
        match self {
            Self::F16 => 0,
            Self::Int8 => KV_TILE * width.div_ceil(KV_BLOCK) * size_of::<f16>() / LINE_BYTES,
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = UnknownKvFormat;

    fn from_str(name: &str) -> Result<Self, UnknownKvFormat> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| UnknownKvFormat(name.to_owned()))
    }
}

/// A tile of one head's keys and values, to be written.
pub struct TileMut<'a> {
    format: KvFormat,
    width: usize,
    keys: &'a mut [Line],
    values: &'a mut [Line],
}

impl<'a> TileMut<'a> {
    /// The tile in `lines`, which are as many as its format says.
    pub fn new(format: KvFormat, width: usize, lines: &'a mut [Line]) -> Self {
        let (keys, values) = lines.split_at_mut(format.key_lines(width));
        Self { format, width, keys, values }
    }

    /// Puts the key of a position of the tile; `key` is padded with zeros to whole chunks.
    pub fn put_key(&mut self, level: Level, position: usize, key: &[f32]) {
        let (chunk, lane, d) = (position / LANES, position % LANES, self.width);
        match self.format {
            KvFormat::F16 => {
                let mut halves = [f16::ZERO; kernels::HEAD_WIDTH_MAX];
                kernels::to_halves(level, key, &mut halves);
                let rows = Line::halves_mut(self.keys)[chunk * d * LANES..].as_chunks_mut::<LANES>().0;
                halves[..d].iter().zip(rows).for_each(|(half, row)| row[lane] = *half);
            }
            KvFormat::Int8 => {
                let quants = Quants::of(level, key);
                let (bytes, scales) = self.keys.split_at_mut(self.format.quant_lines(d));
                let rows = Line::bytes_mut(bytes)[chunk * d * LANES..].as_chunks_mut::<LANES>().0;
                quants.bytes[..d].iter().zip(rows).for_each(|(byte, row)| row[lane] = *byte as u8);
                let blocks = d.div_ceil(KV_BLOCK);
                let rows = Line::halves_mut(scales)[chunk * blocks * LANES..].as_chunks_mut::<LANES>().0;
                quants.scales[..blocks].iter().zip(rows).for_each(|(scale, row)| row[lane] = *scale);
            }
        }
    }

    /// Puts the value of a position of the tile; `value` is padded with zeros to the width of values.
    pub fn put_value(&mut self, level: Level, position: usize, value: &[f32]) {
        let padded = value.len();
        match self.format {
            KvFormat::F16 => {
                kernels::to_halves(level, value, &mut Line::halves_mut(self.values)[position * padded..]);
            }
            KvFormat::Int8 => {
                let quants = Quants::of(level, value);
                let (bytes, scales) = self.values.split_at_mut(self.format.quant_lines(padded));
                let row = &mut Line::bytes_mut(bytes)[position * padded..][..padded];
                row.iter_mut().zip(quants.bytes).for_each(|(to, byte)| *to = byte as u8);
                let scales = Line::halves_mut(scales).as_chunks_mut::<KV_TILE>().0;
                scales.iter_mut().zip(quants.scales).for_each(|(row, scale)| row[position] = scale);
            }
        }
    }
}

/// A key or value as bytes.
struct Quants {
    bytes: [i8; kernels::HEAD_WIDTH_MAX],
    scales: [f16; kernels::HEAD_WIDTH_MAX / KV_BLOCK],
}

impl Quants {
    fn of(level: Level, x: &[f32]) -> Self {
        let mut quants = Self { bytes: [0; _], scales: [f16::ZERO; _] };
        kernels::to_bytes(level, x, &mut quants.bytes, &mut quants.scales);
        quants
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_known_by_its_name_and_halves_are_the_default() {
        for format in KvFormat::ALL {
            assert_eq!(KvFormat::parse_wish(format.name()), Ok(format));
        }
        assert_eq!(KvFormat::parse_wish(""), Ok(KvFormat::F16));
        let error = KvFormat::parse_wish("q4").expect_err("unknown");
        assert!(error.to_string().contains("f16 or int8"), "{error}");
    }

    #[test]
    fn bytes_take_seventeen_bits_for_thirty_two() {
        for width in [32, 64, 128, 256] {
            let lines = |format: KvFormat| format.key_lines(width) + format.value_lines(width);
            assert_eq!(lines(KvFormat::Int8) * 32, lines(KvFormat::F16) * 17, "{width}");
        }
        assert_eq!((KvFormat::Int8.key_lines(20), KvFormat::Int8.value_lines(20)), (22, 34), "a narrow head");
    }
}
