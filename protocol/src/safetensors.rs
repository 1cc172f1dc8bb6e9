//! Reads the header of a safetensors file. Not the tensors. Invariant: total and bounded: a header of at most 100 MB (the
//! format's own limit) is read as a stream of JSON, so memory stays a small multiple of the bytes that are really there.
//!
//! The format: a little-endian u64 with the length of a JSON object, the object (`name → {dtype, shape, data_offsets}`, and
//! `__metadata__`), then the tensors; offsets count from the object's end.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::dtype::Dtype;
use crate::header::{check_shape, check_tensors, within};
use crate::limits::{HEADER_ENTRIES_MAX, HEADER_TENSORS_MAX, SAFETENSORS_HEADER_BYTES_MAX, TENSOR_DIMENSIONS_MAX};

pub use crate::header::{HeaderError, HeaderTensor};

/// The bytes of the length.
const PREFIX_BYTES: u64 = 8;

/// What a safetensors file begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetensorsHeader {
    /// Bytes before the first tensor's: length and object.
    pub header_bytes: u64,
    /// The tensors, in order of their place.
    pub tensors: Vec<HeaderTensor>,
    /// The `__metadata__`.
    pub metadata: Vec<(String, String)>,
}

/// Reads a header from the file's first bytes; [`HeaderError::NeedMore`] says how many are needed.
pub fn parse_header(bytes: &[u8], file_size: u64) -> Result<SafetensorsHeader, HeaderError> {
    if file_size < PREFIX_BYTES {
        return Err(HeaderError::Format("safetensors"));
    }
    let Some(prefix) = bytes.first_chunk::<8>() else { return Err(HeaderError::NeedMore(PREFIX_BYTES)) };
    let length = u64::from_le_bytes(*prefix);
    within("bytes", length, SAFETENSORS_HEADER_BYTES_MAX)?;
    let header_bytes = PREFIX_BYTES + length;
    if header_bytes > file_size {
        return Err(HeaderError::Truncated);
    }
    // Bounded by the limit just checked, so it fits any usize.
    let Some(object) = bytes.get(PREFIX_BYTES as usize..header_bytes as usize) else {
        return Err(HeaderError::NeedMore(header_bytes));
    };
    if object.first() != Some(&b'{') {
        return Err(HeaderError::Format("safetensors"));
    }
    let raw: Raw = serde_json::from_slice(object).map_err(|error| HeaderError::malformed(error.to_string()))?;
    let tensors = raw.tensors.into_iter().map(|(name, info)| place(name, info, header_bytes));
    let mut tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    check_tensors(&mut tensors, header_bytes, file_size)?;
    Ok(SafetensorsHeader { header_bytes, tensors, metadata: raw.metadata })
}

fn place(name: String, info: Info, header_bytes: u64) -> Result<HeaderTensor, HeaderError> {
    let count = check_shape(&name, &info.shape.0)?;
    let (start, end) = info.data_offsets;
    let length = end.checked_sub(start).ok_or_else(|| HeaderError::tensor(&name, "it ends before it starts"))?;
    let offset =
        start.checked_add(header_bytes).ok_or_else(|| HeaderError::tensor(&name, "it lies outside of the file"))?;
    if info.dtype != Dtype::Other && info.dtype.bytes_for(count) != Some(length) {
        return Err(HeaderError::tensor(&name, "its shape and its length disagree"));
    }
    Ok(HeaderTensor { name, dtype: info.dtype, shape: info.shape.0, offset, length })
}

/// The object as it stands, bounded in numbers.
#[derive(Default)]
struct Raw {
    tensors: Vec<(String, Info)>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(deserialize_with = "dtype")]
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Types that are not known here have a place all the same.
fn dtype<'de, D: Deserializer<'de>>(from: D) -> Result<Dtype, D::Error> {
    let name = std::borrow::Cow::<'de, str>::deserialize(from)?;
    Ok(Dtype::from_safetensors(&name).unwrap_or(Dtype::Other))
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("__metadata__ occurs twice"));
                }
                raw.metadata = map.next_value_seed(Metadata)?;
            } else if raw.tensors.len() as u64 >= HEADER_TENSORS_MAX {
                return Err(A::Error::custom(format!("more than {HEADER_TENSORS_MAX} tensors")));
            } else {
                raw.tensors.push((name, map.next_value()?));
            }
        }
        Ok(raw)
    }
}

/// Reads the `__metadata__`: texts under different keys.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(String, String)> = Vec::new();
        let mut keys = HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if entries.len() as u64 >= HEADER_ENTRIES_MAX || !keys.insert(key.clone()) {
                return Err(A::Error::custom("__metadata__ has too many keys or one twice"));
            }
            entries.push((key, value));
        }
        Ok(entries)
    }
}

/// At most as many dimensions as a tensor may have; the rest is not even kept.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while shape.len() < TENSOR_DIMENSIONS_MAX {
                    match list.next_element()? {
                        Some(dimension) => shape.push(dimension),
                        None => return Ok(Shape(shape)),
                    }
                }
                match list.next_element::<IgnoredAny>()? {
                    Some(_) => Err(A::Error::custom("too many dimensions")),
                    None => Ok(Shape(shape)),
                }
            }
        }
        from.deserialize_seq(Dimensions)
    }
}
