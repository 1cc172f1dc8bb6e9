//! An encoder's weights in memory: matrices in groups of sixteen rows as the engine's plain kernels read them, tables row
//! by row, norms and biases widened. Each matrix and table keeps its stored width (F32, F16, BF16), so nothing is lost.
//!
//! Invariant: what is loaded has the dimensions of the shape, and each tensor's bytes are as long as its dimensions say.

use cairn_protocol::{dtype::Dtype, manifest::TensorEntry};
use std::collections::HashMap;

use super::{
    super::LoadError,
    lanes::Norm,
    names::{self, Part},
    shape::Shape,
};
use crate::{
    TensorSource,
    cpu::{
        lines::Store,
        matrix::{Format, Fused, Matrix},
        packed::LANES,
        plain::PlainFormat,
    },
};

/// All weights.
pub struct Weights {
    pub store: Store,
    pub words: Table,
    pub positions: Table,
    /// What the first token type adds to every token; zeros where there is none.
    pub first_type: Vec<f32>,
    pub norm: Norm,
    pub layers: Vec<Layer>,
    /// Bias of scores, `[bucket][head]`; empty where there is none.
    pub distances: Vec<f32>,
}

/// One layer.
pub struct Layer {
    /// Queries, keys and values, each from a new group on.
    pub qkv: Linear,
    pub out: Linear,
    pub attention_norm: Norm,
    pub up: Linear,
    pub down: Linear,
    pub output_norm: Norm,
}

/// A matrix and what is added to its products, padded with zeros to whole groups.
pub struct Linear {
    pub matrix: Fused,
    pub bias: Vec<f32>,
}

/// Rows that are looked up.
pub struct Table {
    format: PlainFormat,
    width: usize,
    bytes: Vec<u8>,
}

impl Table {
    /// Adds a row to `to`.
    pub fn add(&self, row: usize, to: &mut [f32]) {
        let size = self.format.bytes();
        let row = &self.bytes[row * self.width * size..][..self.width * size];
        for (to, element) in to.iter_mut().zip(row.chunks_exact(size)) {
            *to += self.format.value(element);
        }
    }
}

/// Loads everything.
pub fn load(shape: &Shape, tensors: &[TensorEntry], source: &mut dyn TensorSource) -> Result<Weights, LoadError> {
    let room = shape.memory(0) / LANES as u64 / 4;
    let store = Store::with_room(store_lines(shape)).ok_or(LoadError::Memory(room))?;
    let by_name: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let prefixes = names::prefixes(shape.family);
    let prefix = prefixes.into_iter().find(|p| by_name.contains_key(format!("{p}{}", names::WORDS).as_str()));
    let prefix = prefix.ok_or_else(|| LoadError::tensor(names::WORDS, "the revision has none of that name"))?;
    let mut loader = Loader { shape, prefix, by_name, source, store };
    let words = loader.table(names::WORDS, shape.vocabulary)?;
    let positions = loader.table(names::POSITIONS, shape.position_rows)?;
    let mut first_type = vec![0.0; shape.width];
    if shape.types > 0 {
        loader.table(names::TYPES, shape.types)?.add(0, &mut first_type);
    }
    let norm = loader.norm(names::EMBEDDINGS_NORM)?;
    let layers = (0..shape.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
    let distances = match shape.buckets {
        0 => Vec::new(),
        buckets => loader.values(names::DISTANCES, &[buckets, shape.heads])?,
    };
    Ok(Weights { store: loader.store, words, positions, first_type, norm, layers, distances })
}

/// Lines of all matrices at their widest, so that the store never moves.
fn store_lines(shape: &Shape) -> usize {
    let groups = |rows: usize| rows.div_ceil(LANES);
    let lines = |rows: usize, k: usize| groups(rows) * PlainFormat::F32.group_lines(k);
    let (width, inner) = (shape.width, shape.feed_forward);
    shape.layers * (4 * lines(width, width) + lines(inner, width) + lines(width, inner))
}

struct Loader<'a> {
    shape: &'a Shape,
    prefix: &'static str,
    by_name: HashMap<&'a str, &'a TensorEntry>,
    source: &'a mut dyn TensorSource,
    store: Store,
}

impl Loader<'_> {
    fn layer(&mut self, layer: usize) -> Result<Layer, LoadError> {
        let Shape { family, width, feed_forward, .. } = *self.shape;
        let name = |part| names::layer(family, layer, part);
        Ok(Layer {
            qkv: self.linear(&[name(Part::Query), name(Part::Key), name(Part::Value)], width, width)?,
            out: self.linear(&[name(Part::Out)], width, width)?,
            attention_norm: self.norm(&name(Part::AttentionNorm))?,
            up: self.linear(&[name(Part::Up)], feed_forward, width)?,
            down: self.linear(&[name(Part::Down)], width, feed_forward)?,
            output_norm: self.norm(&name(Part::OutputNorm))?,
        })
    }

    /// Matrices of `rows` by `k`, one below the other, with their biases.
    fn linear(&mut self, names: &[String], rows: usize, k: usize) -> Result<Linear, LoadError> {
        let (mut sections, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            let (format, bytes) = self.bytes(&format!("{name}.weight"), &[rows, k])?;
            let matrix = Matrix::place(&mut self.store, Format::Plain(format), rows.div_ceil(LANES), k);
            for (row, bytes) in bytes.chunks_exact(k * format.bytes()).enumerate() {
                matrix.fill(&mut self.store, row / LANES, row % LANES, bytes);
            }
            sections.push(matrix);
            bias.extend(padded(self.values(&format!("{name}.bias"), &[rows])?));
        }
        Ok(Linear { matrix: Fused { sections }, bias })
    }

    fn norm(&mut self, name: &str) -> Result<Norm, LoadError> {
        let has = |name: String| self.by_name.contains_key(format!("{}{name}", self.prefix).as_str());
        let [weight, bias] = match has(format!("{name}.gamma")) {
            true => ["gamma", "beta"],
            false => ["weight", "bias"],
        };
        let weight = padded(self.values(&format!("{name}.{weight}"), &[self.shape.width])?);
        let bias = padded(self.values(&format!("{name}.{bias}"), &[self.shape.width])?);
        Ok(Norm { weight, bias, epsilon: self.shape.epsilon })
    }

    fn table(&mut self, name: &str, rows: usize) -> Result<Table, LoadError> {
        let (format, bytes) = self.bytes(name, &[rows, self.shape.width])?;
        Ok(Table { format, width: self.shape.width, bytes })
    }

    fn values(&mut self, name: &str, dimensions: &[usize]) -> Result<Vec<f32>, LoadError> {
        let (format, bytes) = self.bytes(name, dimensions)?;
        Ok(bytes.chunks_exact(format.bytes()).map(|element| format.value(element)).collect())
    }

    /// The bytes of a tensor, held against its dimensions before they are asked for.
    fn bytes(&mut self, name: &str, dimensions: &[usize]) -> Result<(PlainFormat, Vec<u8>), LoadError> {
        let entry = self.by_name.get(format!("{}{name}", self.prefix).as_str());
        let entry = *entry.ok_or_else(|| LoadError::tensor(name, "the revision has none of that name"))?;
        let format = match entry.dtype {
            Dtype::F32 => PlainFormat::F32,
            Dtype::F16 => PlainFormat::F16,
            Dtype::BF16 => PlainFormat::Bf16,
            other => {
                return Err(LoadError::tensor(name, format!("its type is {other:?}; F32, F16 and BF16 are served")));
            }
        };
        if !entry.shape.iter().copied().eq(dimensions.iter().map(|n| *n as u64)) {
            let why = format!("its dimensions are {:?}, the configuration says {dimensions:?}", entry.shape);
            return Err(LoadError::tensor(name, why));
        }
        let bytes = self.source.tensor(entry);
        let bytes = bytes.map_err(|error| LoadError::Source { name: name.to_owned(), error })?;
        let wanted = dimensions.iter().product::<usize>() * format.bytes();
        match bytes.len() == wanted {
            true => Ok((format, bytes)),
            false => Err(LoadError::tensor(name, format!("it came with {} bytes, {wanted} are needed", bytes.len()))),
        }
    }
}

/// With zeros up to whole chunks.
fn padded(mut values: Vec<f32>) -> Vec<f32> {
    values.resize(values.len().next_multiple_of(LANES), 0.0);
    values
}
