//! A GGUF file made again with other quants: what benchmarks of one model in several formats need.
//!
//! Metadata is copied byte by byte; matrices that are quantised become the target type by way of their F32 values (candle
//! quantises what `quant` does not), vectors and plain tensors stay. A matrix whose rows are no whole blocks of the target becomes the type
//! that llama.cpp takes then. Not a way to publish a good model: quantising twice loses twice.

use crate::{
    files::{self, FilesError},
    quant,
};
use cairn_protocol::{
    dtype::Dtype,
    gguf::{self, HeaderTensor},
};
use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// What can be made.
pub const TARGETS: [Dtype; 11] = [
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::IQ4_NL,
    Dtype::Q2_K,
    Dtype::Q3_K,
    Dtype::Q4_K,
    Dtype::Q5_K,
    Dtype::Q6_K,
];

/// Where tensors begin, unless metadata says otherwise.
const ALIGNMENT: u64 = 32;

/// Why there is no new file.
#[derive(Debug, thiserror::Error)]
pub enum RequantiseError {
    /// The source is not a GGUF file.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Reading or writing failed.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not one of [`TARGETS`].
    #[error("{0} is not made, only quantised types are")]
    Target(Dtype),
    /// candle could not quantise.
    #[error(transparent)]
    Quantiser(#[from] candle_core::Error),
    /// A tensor that can't be read.
    #[error("tensor {name} is of type {dtype}, which can't be read")]
    Type {
        /// Which.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
}

/// Writes `to`: the model of `from` with its quantised matrices as `target`.
pub fn requantise(from: &Path, to: &Path, target: Dtype) -> Result<(), RequantiseError> {
    if !TARGETS.contains(&target) {
        return Err(RequantiseError::Target(target));
    }
    let header = files::header(from, gguf::parse_header)?;
    let read_failed = |error| RequantiseError::Io { path: from.to_path_buf(), error };
    let write_failed = |error| RequantiseError::Io { path: to.to_path_buf(), error };
    let mut source = File::open(from).map_err(read_failed)?;
    let mut opening = vec![0; header.header_bytes as usize];
    source.read_exact(&mut opening).map_err(read_failed)?;
    let metadata_end = metadata_end(&opening).ok_or_else(|| read_failed(io::ErrorKind::InvalidData.into()))?;
    let alignment = header.u64("general.alignment").unwrap_or(ALIGNMENT).max(1);
    let mut out = BufWriter::new(File::create(to).map_err(write_failed)?);
    let infos = infos(&header.tensors, target, alignment);
    let begin = (metadata_end + infos.len()) as u64;
    out.write_all(&opening[..metadata_end]).and_then(|()| out.write_all(&infos)).map_err(write_failed)?;
    pad(&mut out, begin, alignment).map_err(write_failed)?;
    for tensor in &header.tensors {
        let mut bytes = vec![0; tensor.length as usize];
        source.seek(SeekFrom::Start(tensor.offset)).map_err(read_failed)?;
        source.read_exact(&mut bytes).map_err(read_failed)?;
        let bytes = turned(tensor, bytes, target)?;
        out.write_all(&bytes).map_err(write_failed)?;
        pad(&mut out, bytes.len() as u64, alignment).map_err(write_failed)?;
    }
    out.flush().map_err(write_failed)
}

/// The type that a tensor gets: the target, where its rows are whole blocks of it.
fn becomes(tensor: &HeaderTensor, target: Dtype) -> Dtype {
    let [_, row] = tensor.shape[..] else { return tensor.dtype };
    if tensor.dtype.block_elements() == 1 {
        return tensor.dtype;
    }
    if row.is_multiple_of(target.block_elements()) {
        return target;
    }
    match target {
        Dtype::Q2_K | Dtype::Q3_K => Dtype::IQ4_NL,
        Dtype::Q4_K => Dtype::Q5_0,
        Dtype::Q5_K => Dtype::Q5_1,
        _ => Dtype::Q8_0,
    }
}

fn turned(tensor: &HeaderTensor, bytes: Vec<u8>, target: Dtype) -> Result<Vec<u8>, RequantiseError> {
    let target = becomes(tensor, target);
    if target == tensor.dtype {
        return Ok(bytes);
    }
    let mut values = Vec::new();
    if !quant::dequantise(tensor.dtype, &bytes, &mut values) {
        return Err(RequantiseError::Type { name: tensor.name.clone(), dtype: tensor.dtype });
    }
    quantised(target, &values, (tensor.shape[0] as usize, tensor.shape[1] as usize))
}

/// Rows of values as blocks of `target`.
pub(crate) fn quantised(target: Dtype, values: &[f32], shape: (usize, usize)) -> Result<Vec<u8>, RequantiseError> {
    let mut out = Vec::new();
    let own = match target {
        Dtype::IQ4_NL => Some(quant::quantise_iq4_nl as fn(&[f32], &mut Vec<u8>)),
        Dtype::Q8_0 => Some(quant::quantise_q8_0 as _),
        Dtype::Q4_0 => Some(quant::quantise_q4_0 as _),
        _ => None,
    };
    if let Some(own) = own {
        own(values, &mut out);
        return Ok(out);
    }
    let candle = match target {
        Dtype::Q4_1 => GgmlDType::Q4_1,
        Dtype::Q5_0 => GgmlDType::Q5_0,
        Dtype::Q5_1 => GgmlDType::Q5_1,
        Dtype::Q2_K => GgmlDType::Q2K,
        Dtype::Q3_K => GgmlDType::Q3K,
        Dtype::Q4_K => GgmlDType::Q4K,
        Dtype::Q5_K => GgmlDType::Q5K,
        Dtype::Q6_K => GgmlDType::Q6K,
        other => return Err(RequantiseError::Target(other)),
    };
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, candle)?.data()?.into_owned())
}

/// The table of tensors, as GGUF writes it: innermost dimension first, offsets from the first tensor.
fn infos(tensors: &[HeaderTensor], target: Dtype, alignment: u64) -> Vec<u8> {
    let (mut out, mut offset) = (Vec::new(), 0u64);
    for tensor in tensors {
        let dtype = becomes(tensor, target);
        let elements = tensor.shape.iter().product::<u64>();
        out.extend((tensor.name.len() as u64).to_le_bytes());
        out.extend(tensor.name.as_bytes());
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend((dtype.number() - 1).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += dtype.bytes_for(elements).unwrap_or(tensor.length).next_multiple_of(alignment);
    }
    out
}

fn pad(out: &mut impl Write, written: u64, alignment: u64) -> io::Result<()> {
    let missing = written.next_multiple_of(alignment) - written;
    out.write_all(&vec![0; missing as usize])
}

/// Where metadata ends in the opening of a file whose header was parsed.
fn metadata_end(bytes: &[u8]) -> Option<usize> {
    let mut at = Cursor { bytes, at: 16 };
    let entries = at.number(8)?;
    for _ in 0..entries {
        let key = at.number(8)?;
        at.skip(key)?;
        let kind = at.number(4)?;
        at.skip_value(kind)?;
    }
    Some(at.at)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn number(&mut self, size: usize) -> Option<u64> {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(self.bytes.get(self.at..self.at + size)?);
        self.at += size;
        Some(u64::from_le_bytes(wide))
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.at = self.at.checked_add(usize::try_from(bytes).ok()?).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }

    fn skip_value(&mut self, kind: u64) -> Option<()> {
        match kind {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => {
                let length = self.number(8)?;
                self.skip(length)
            }
            9 => {
                let (inner, count) = (self.number(4)?, self.number(8)?);
                (0..count).try_for_each(|_| self.skip_value(inner))
            }
            _ => None,
        }
    }
}
