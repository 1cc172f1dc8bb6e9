//! Reads the header of a GGUF file, versions 2 and 3, little-endian. Not the tensors. Invariant: total and bounded: nothing
//! is allocated for a claim that the bytes at hand do not back, so memory stays a small multiple of them.
//!
//! The format: `GGUF`, version, number of tensors, number of metadata entries; the entries (key, type, value); the tensors
//! (name, dimensions innermost first, type, offset); padding to `general.alignment`; then the data that offsets count from.

use std::collections::HashSet;

use crate::dtype::Dtype;
use crate::header::{check_shape, check_tensors, within};
use crate::limits::{
    GGUF_ARRAY_DEPTH_MAX, GGUF_HEADER_BYTES_MAX, HEADER_ENTRIES_MAX, HEADER_TENSORS_MAX, TENSOR_DIMENSIONS_MAX,
};

pub use crate::header::{HeaderError, HeaderTensor};

/// The alignment of files that state none.
const ALIGNMENT_DEFAULT: u64 = 32;
/// Largest alignment that is accepted: a huge page.
const ALIGNMENT_MAX: u64 = 1 << 21;
/// The most that is asked for at first when a header goes on.
const STEP_BYTES_MIN: u64 = 64 * 1024;

/// What a GGUF file begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufHeader {
    /// 2 or 3.
    pub version: u32,
    /// Keys are unique; order as in the file.
    pub metadata: Vec<(String, GgufValue)>,
    /// The tensors, in order of their place.
    pub tensors: Vec<HeaderTensor>,
    /// Bytes before the first tensor's, padding included.
    pub header_bytes: u64,
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Unsigned, of 8, 16, 32 or 64 bits.
    Unsigned(u64),
    /// Signed, of 8, 16, 32 or 64 bits.
    Signed(i64),
    /// Of 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    String(String),
    /// A list.
    Array(GgufArray),
}

/// A list of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    /// Bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// Two bytes each.
    U16(Vec<u16>),
    /// Two bytes each.
    I16(Vec<i16>),
    /// Four bytes each.
    U32(Vec<u32>),
    /// Four bytes each.
    I32(Vec<i32>),
    /// Eight bytes each.
    U64(Vec<u64>),
    /// Eight bytes each.
    I64(Vec<i64>),
    /// Singles.
    F32(Vec<f32>),
    /// Doubles.
    F64(Vec<f64>),
    /// True or false.
    Bool(Vec<bool>),
    /// Texts.
    String(Vec<String>),
    /// Lists.
    Array(Vec<GgufArray>),
}

impl GgufArray {
    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(list) => list.len(),
            Self::I8(list) => list.len(),
            Self::U16(list) => list.len(),
            Self::I16(list) => list.len(),
            Self::U32(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::U64(list) => list.len(),
            Self::I64(list) => list.len(),
            Self::F32(list) => list.len(),
            Self::F64(list) => list.len(),
            Self::Bool(list) => list.len(),
            Self::String(list) => list.len(),
            Self::Array(list) => list.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The texts, of a list of texts.
    pub fn strings(&self) -> Option<&[String]> {
        match self {
            Self::String(list) => Some(list),
            _ => None,
        }
    }

    /// The numbers, of a list of whole numbers that fit.
    pub fn integers(&self) -> Option<Vec<i64>> {
        Some(match self {
            Self::U8(list) => list.iter().map(|n| i64::from(*n)).collect(),
            Self::I8(list) => list.iter().map(|n| i64::from(*n)).collect(),
            Self::U16(list) => list.iter().map(|n| i64::from(*n)).collect(),
            Self::I16(list) => list.iter().map(|n| i64::from(*n)).collect(),
            Self::U32(list) => list.iter().map(|n| i64::from(*n)).collect(),
            Self::I32(list) => list.iter().map(|n| i64::from(*n)).collect(),
            Self::U64(list) => list.iter().map(|n| i64::try_from(*n)).collect::<Result<_, _>>().ok()?,
            Self::I64(list) => list.clone(),
            _ => return None,
        })
    }

    /// The numbers, of a list of singles or doubles.
    pub fn floats(&self) -> Option<Vec<f64>> {
        match self {
            Self::F32(list) => Some(list.iter().map(|n| f64::from(*n)).collect()),
            Self::F64(list) => Some(list.clone()),
            _ => None,
        }
    }
}

impl GgufHeader {
    /// The value under a key; one pass over all.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// A text.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            GgufValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative, of whatever type.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            GgufValue::Unsigned(number) => Some(*number),
            GgufValue::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A number, of whatever type.
    pub fn f64(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            GgufValue::Float(number) => Some(*number),
            GgufValue::Unsigned(number) => Some(*number as f64),
            GgufValue::Signed(number) => Some(*number as f64),
            _ => None,
        }
    }

    /// True or false.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            GgufValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A list.
    pub fn array(&self, key: &str) -> Option<&GgufArray> {
        match self.get(key)? {
            GgufValue::Array(list) => Some(list),
            _ => None,
        }
    }

    /// A list of texts: the tokens of a vocabulary.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        self.array(key)?.strings()
    }
}

/// Reads a header from the file's first bytes; [`HeaderError::NeedMore`] says how many to try with next.
pub fn parse_header(bytes: &[u8], file_size: u64) -> Result<GgufHeader, HeaderError> {
    let mut cursor = Cursor { bytes, at: 0, file_size };
    if cursor.take(4)? != b"GGUF" {
        return Err(HeaderError::Format("GGUF"));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(HeaderError::Unsupported(format!("GGUF version {version}")));
    }
    let tensor_count = cursor.u64()?;
    within("tensors", tensor_count, HEADER_TENSORS_MAX)?;
    let entry_count = cursor.u64()?;
    within("metadata entries", entry_count, HEADER_ENTRIES_MAX)?;
    let metadata = entries(&mut cursor, entry_count)?;
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(info(&mut cursor)?);
    }
    let alignment = alignment(&metadata)?;
    let header_bytes = (cursor.at as u64).next_multiple_of(alignment);
    // A file without tensors may end without padding.
    let header_bytes = if infos.is_empty() { header_bytes.min(file_size) } else { header_bytes };
    let tensors = infos.into_iter().map(|info| place(info, header_bytes, alignment));
    let mut tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    check_tensors(&mut tensors, header_bytes, file_size)?;
    Ok(GgufHeader { version, metadata, tensors, header_bytes })
}

fn entries(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<(String, GgufValue)>, HeaderError> {
    let mut entries = Vec::new();
    let mut keys = HashSet::new();
    for _ in 0..count {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind)?;
        if !keys.insert(key.clone()) {
            return Err(HeaderError::malformed(format!(
                "key {:?} occurs twice",
                key.chars().take(100).collect::<String>()
            )));
        }
        entries.push((key, value));
    }
    Ok(entries)
}

fn alignment(metadata: &[(String, GgufValue)]) -> Result<u64, HeaderError> {
    match metadata.iter().find(|(key, _)| key == "general.alignment") {
        None => Ok(ALIGNMENT_DEFAULT),
        Some((_, GgufValue::Unsigned(n))) if n.is_power_of_two() && *n <= ALIGNMENT_MAX => Ok(*n),
        Some(_) => Err(HeaderError::malformed("general.alignment is no power of two")),
    }
}

struct Info {
    name: String,
    shape: Vec<u64>,
    dtype: Dtype,
    offset: u64,
}

fn info(cursor: &mut Cursor<'_>) -> Result<Info, HeaderError> {
    let name = cursor.string()?;
    let dimensions = cursor.u32()?;
    within("dimensions of a tensor", u64::from(dimensions), TENSOR_DIMENSIONS_MAX as u64)?;
    let mut shape = (0..dimensions).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    Ok(Info { name, shape, dtype: Dtype::from_ggml(cursor.u32()?), offset: cursor.u64()? })
}

fn place(info: Info, header_bytes: u64, alignment: u64) -> Result<HeaderTensor, HeaderError> {
    let wrong = |what| HeaderError::tensor(&info.name, what);
    let count = check_shape(&info.name, &info.shape)?;
    if info.dtype == Dtype::Other {
        return Err(wrong("its type is not known"));
    }
    let row = info.shape.last().copied().unwrap_or(1);
    let length = info.dtype.bytes_for(count).filter(|_| row.is_multiple_of(info.dtype.block_elements()));
    let length = length.ok_or_else(|| wrong("its rows are no whole blocks"))?;
    if !info.offset.is_multiple_of(alignment) {
        return Err(wrong("its offset is not aligned"));
    }
    let offset = info.offset.checked_add(header_bytes).ok_or_else(|| wrong("it lies outside of the file"))?;
    Ok(HeaderTensor { name: info.name, dtype: info.dtype, shape: info.shape, offset, length })
}

/// The bytes at hand and the place in them.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_size: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], HeaderError> {
        let end = self.need(count)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// The place after `count` more bytes, if they are there.
    fn need(&self, count: u64) -> Result<usize, HeaderError> {
        let end =
            (self.at as u64).checked_add(count).filter(|end| *end <= self.file_size).ok_or(HeaderError::Truncated)?;
        within("bytes", end, GGUF_HEADER_BYTES_MAX)?;
        match usize::try_from(end).ok().filter(|end| *end <= self.bytes.len()) {
            Some(end) => Ok(end),
            None => Err(self.more(end)),
        }
    }

    /// At least what is missing, and twice what there is, so that a long header takes few readings.
    fn more(&self, end: u64) -> HeaderError {
        let ample = (self.bytes.len() as u64).saturating_mul(2).clamp(STEP_BYTES_MIN, GGUF_HEADER_BYTES_MAX);
        match self.bytes.len() as u64 >= self.file_size {
            true => HeaderError::Truncated,
            false => HeaderError::NeedMore(end.max(ample).min(self.file_size)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String, HeaderError> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| HeaderError::malformed("a text is not UTF-8"))
    }

    fn bool(&mut self) -> Result<bool, HeaderError> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(HeaderError::malformed("a bool is neither 0 nor 1")),
        }
    }

    fn value(&mut self, kind: u32) -> Result<GgufValue, HeaderError> {
        Ok(match kind {
            0 => GgufValue::Unsigned(self.array().map(u8::from_le_bytes)?.into()),
            1 => GgufValue::Signed(self.array().map(i8::from_le_bytes)?.into()),
            2 => GgufValue::Unsigned(self.array().map(u16::from_le_bytes)?.into()),
            3 => GgufValue::Signed(self.array().map(i16::from_le_bytes)?.into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => GgufValue::Signed(self.array().map(i32::from_le_bytes)?.into()),
            6 => GgufValue::Float(self.array().map(f32::from_le_bytes)?.into()),
            7 => GgufValue::Bool(self.bool()?),
            8 => GgufValue::String(self.string()?),
            9 => GgufValue::Array(self.list(GGUF_ARRAY_DEPTH_MAX)?),
            10 => GgufValue::Unsigned(self.u64()?),
            11 => GgufValue::Signed(self.array().map(i64::from_le_bytes)?),
            12 => GgufValue::Float(self.array().map(f64::from_le_bytes)?),
            _ => return Err(HeaderError::malformed(format!("value type {kind}"))),
        })
    }

    fn list(&mut self, depth: usize) -> Result<GgufArray, HeaderError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        Ok(match kind {
            0 => GgufArray::U8(self.numbers(count, u8::from_le_bytes)?),
            1 => GgufArray::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => GgufArray::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => GgufArray::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => GgufArray::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => GgufArray::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => GgufArray::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => GgufArray::Bool(self.each(count, 1, Self::bool)?),
            8 => GgufArray::String(self.each(count, 8, Self::string)?),
            9 if depth > 1 => GgufArray::Array(self.each(count, 12, |cursor| cursor.list(depth - 1))?),
            9 => return Err(HeaderError::Unsupported("a list in a list in a list".to_owned())),
            10 => GgufArray::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => GgufArray::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => GgufArray::F64(self.numbers(count, f64::from_le_bytes)?),
            _ => return Err(HeaderError::malformed(format!("value type {kind} in a list"))),
        })
    }

    /// Numbers of a fixed width: allocated only once their bytes are seen to be there.
    fn numbers<T, const N: usize>(&mut self, count: u64, read: fn([u8; N]) -> T) -> Result<Vec<T>, HeaderError> {
        let bytes = count.checked_mul(N as u64).ok_or(HeaderError::Truncated)?;
        let (chunks, _) = self.take(bytes)?.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| read(*chunk)).collect())
    }

    /// Elements of at least `bytes_min` each: a count that the bytes at hand can't hold is not allocated for.
    fn each<T>(
        &mut self,
        count: u64,
        bytes_min: u64,
        read: impl Fn(&mut Self) -> Result<T, HeaderError>,
    ) -> Result<Vec<T>, HeaderError> {
        self.need(count.checked_mul(bytes_min).ok_or(HeaderError::Truncated)?)?;
        (0..count).map(|_| read(self)).collect()
    }
}
