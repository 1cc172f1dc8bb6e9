//! Whether an adapter's tensors fit a model, and which of them a part needs.
//!
//! Invariant: a [`Fitted`] holds, for each matrix that is added to, one A and one B of the right dimensions, of types that
//! are computed with, and nothing else is in the files.

use super::AdapterSpec;
use crate::{
    arch::{self, LayerRole, ShapeError, StagePart},
    cpu::{
        adapters::{self, Site},
        lines::LINE_BYTES,
        matrix::Format,
        model::Shape,
        packed::LANES,
        plain::PlainFormat,
    },
    weights::{self, WeightsError},
};
use cairn_protocol::{
    dtype::{Dtype, elements},
    limits::{ADAPTER_BYTES_MAX, ADAPTER_RANK_MAX},
    manifest::{Model, TensorEntry},
};
use std::collections::BTreeMap;

/// Why an adapter can't be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdapterError {
    /// Its config can't be read.
    #[error("adapter_config.json is not JSON: {0}")]
    Json(String),
    /// A number that is missing or can't be.
    #[error("the adapter's {0} is missing or not a number that fits")]
    Field(&'static str),
    /// Something that would change the computation and is not computed here.
    #[error("the adapter asks for {0}, which is not served")]
    Unserved(String),
    /// A description of a later version.
    #[error("the adapter is of format {0:?}, which is not served")]
    Format(String),
    /// No description.
    #[error("it holds no adapter that was described when it was published")]
    Undescribed,
    /// No tensors.
    #[error("there is no adapter_model.safetensors with an adapter's tensors")]
    Empty,
    /// Neither A nor B of a matrix that can be added to.
    #[error("tensor {0} is of no matrix that adapters are computed for (q, k, v, o, gate, up and down of a layer)")]
    Unknown(String),
    /// Two tensors that mean the same.
    #[error("tensor {0} is there under another name, too")]
    Twice(String),
    /// A without B, or B without A.
    #[error("tensor {0} is without its other half")]
    Alone(String),
    /// A layer that the model has not.
    #[error("tensor {name} is of a layer that the model has not: it has {layers}")]
    Layer {
        /// Which.
        name: String,
        /// The model's.
        layers: u32,
    },
    /// Dimensions other than the model's.
    #[error("tensor {name} has dimensions {got:?}, the model's layer takes {want:?}")]
    Dimensions {
        /// Which.
        name: String,
        /// As indexed.
        got: Vec<u64>,
        /// As needed.
        want: Vec<u64>,
    },
    /// An element type that is not computed with.
    #[error("tensor {name} is of type {dtype}, adapters are computed in F32, F16 and BF16")]
    Type {
        /// Which.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// The index disagrees with itself.
    #[error("tensor {name} is said to take {got} bytes, its type and dimensions take {want}")]
    Length {
        /// Which.
        name: String,
        /// As indexed.
        got: u64,
        /// As computed.
        want: u64,
    },
    /// Another rank than the description's.
    #[error("tensor {name} is of rank {got}, the adapter's config says {want}")]
    Rank {
        /// Which.
        name: String,
        /// As indexed.
        got: u64,
        /// As described.
        want: f64,
    },
    /// More than adapters may have.
    #[error("the adapter has {what} of {got}, at most {max} are taken")]
    Limit {
        /// What.
        what: &'static str,
        /// As it is.
        got: u64,
        /// The most.
        max: u64,
    },
    /// A model whose numbers can't be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A tensor could not be had, or there is no memory.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// A and B of one matrix.
#[derive(Clone, Debug)]
pub(super) struct Pair<'a> {
    pub layer: u32,
    pub role: LayerRole,
    /// The matrix' name as patterns of the config match it.
    pub module: String,
    pub rank: u64,
    pub a: &'a TensorEntry,
    pub b: &'a TensorEntry,
}

/// An adapter's tensors for a part of a model.
#[derive(Clone, Debug)]
pub struct Fitted<'a> {
    pub(super) shape: Shape,
    pub(super) pairs: Vec<Pair<'a>>,
}

/// Holds all of an adapter's tensors against a model, and keeps those of the part's layers.
pub fn fit<'a>(
    model: &Model,
    spec: &AdapterSpec,
    tensors: &'a [TensorEntry],
    part: &StagePart,
) -> Result<Fitted<'a>, AdapterError> {
    let shape = arch::shape(model)?;
    let mut pairs = pairs(tensors)?;
    for pair in &pairs {
        if shape.routing.is_some() && matches!(pair.role, LayerRole::Gate | LayerRole::Up | LayerRole::Down) {
            return Err(AdapterError::Unserved(format!("an addition to experts ({})", pair.a.name)));
        }
        if pair.layer >= model.layers {
            return Err(AdapterError::Layer { name: pair.a.name.clone(), layers: model.layers });
        }
        let base = arch::layer_dimensions(&shape, pair.role);
        has(pair.a, vec![pair.rank, base[1]])?;
        has(pair.b, vec![base[0], pair.rank])?;
        spec.scale(&pair.module, pair.rank)?;
    }
    pairs.retain(|pair| (part.layers.start..part.layers.end).contains(&pair.layer));
    pairs.sort_by_key(|pair| (pair.layer, place(&shape, pair.role)));
    Ok(Fitted { shape, pairs })
}

fn has(entry: &TensorEntry, want: Vec<u64>) -> Result<(), AdapterError> {
    if entry.shape == want {
        return Ok(());
    }
    Err(AdapterError::Dimensions { name: entry.name.clone(), got: entry.shape.clone(), want })
}

/// An A or a B, with what its name says.
type Half<'a> = (Name, &'a TensorEntry);

/// All pairs of A and B, checked as far as they can be without a model.
pub(super) fn pairs(tensors: &[TensorEntry]) -> Result<Vec<Pair<'_>>, AdapterError> {
    let bytes = tensors.iter().fold(0, |sum: u64, t| sum.saturating_add(t.length));
    limit("bytes", bytes, ADAPTER_BYTES_MAX)?;
    let mut halves: BTreeMap<(u32, usize), [Option<Half>; 2]> = BTreeMap::new();
    for entry in tensors {
        let name = parse(&entry.name).ok_or_else(|| AdapterError::Unknown(entry.name.clone()))?;
        check(entry)?;
        let key = (name.layer, MODULES.iter().position(|(_, role)| *role == name.role).unwrap_or(MODULES.len()));
        let half = &mut halves.entry(key).or_default()[usize::from(name.is_b)];
        if half.replace((name, entry)).is_some() {
            return Err(AdapterError::Twice(entry.name.clone()));
        }
    }
    let paired = halves.into_values().map(|halves| match halves {
        [Some((name, a)), Some((_, b))] => {
            let rank = a.shape[0];
            limit("a rank", rank, ADAPTER_RANK_MAX)?;
            Ok(Pair { layer: name.layer, role: name.role, module: name.module, rank, a, b })
        }
        [Some((_, entry)), None] | [None, Some((_, entry))] => Err(AdapterError::Alone(entry.name.clone())),
        [None, None] => Err(AdapterError::Empty),
    });
    let paired: Vec<Pair> = paired.collect::<Result<_, _>>()?;
    if paired.is_empty() { Err(AdapterError::Empty) } else { Ok(paired) }
}

fn limit(what: &'static str, got: u64, max: u64) -> Result<(), AdapterError> {
    if got <= max { Ok(()) } else { Err(AdapterError::Limit { what, got, max }) }
}

fn check(entry: &TensorEntry) -> Result<(), AdapterError> {
    let name = || entry.name.clone();
    let got = entry.shape.clone();
    if got.len() != 2 || got.contains(&0) {
        return Err(AdapterError::Dimensions { name: name(), got, want: Vec::new() });
    }
    if format(entry).is_none() {
        return Err(AdapterError::Type { name: name(), dtype: entry.dtype });
    }
    let want = elements(&entry.shape).and_then(|n| entry.dtype.bytes_for(n)).unwrap_or(u64::MAX);
    if want == entry.length { Ok(()) } else { Err(AdapterError::Length { name: name(), got: entry.length, want }) }
}

/// How a tensor is held.
pub(super) fn format(entry: &TensorEntry) -> Option<PlainFormat> {
    match weights::held(entry.dtype)?.format {
        Format::Plain(format) => Some(format),
        Format::Packed(_) => None,
    }
}

/// Matrices that are added to, as the Hub's files name them.
const MODULES: [(&str, LayerRole); 7] = [
    ("self_attn.q_proj", LayerRole::Query),
    ("self_attn.k_proj", LayerRole::Key),
    ("self_attn.v_proj", LayerRole::Value),
    ("self_attn.o_proj", LayerRole::Out),
    ("mlp.gate_proj", LayerRole::Gate),
    ("mlp.up_proj", LayerRole::Up),
    ("mlp.down_proj", LayerRole::Down),
];

/// What a tensor's name says.
struct Name {
    layer: u32,
    role: LayerRole,
    module: String,
    is_b: bool,
}

/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`; adapters of bare decoders have one `model.` less.
fn parse(name: &str) -> Option<Name> {
    let rest = name.strip_prefix("base_model.model.")?;
    let (module, is_b) = match (rest.strip_suffix(".lora_A.weight"), rest.strip_suffix(".lora_B.weight")) {
        (Some(module), _) => (module, false),
        (_, Some(module)) => (module, true),
        _ => return None,
    };
    let within = module.strip_prefix("model.").unwrap_or(module).strip_prefix("layers.")?;
    let (layer, matrix) = within.split_once('.')?;
    let (_, role) = MODULES.iter().find(|(name, _)| *name == matrix)?;
    let is_number = layer == "0" || !layer.starts_with('0') && layer.bytes().all(|b| b.is_ascii_digit());
    let layer = layer.parse().ok().filter(|_| is_number)?;
    Some(Name { layer, role: *role, module: module.to_owned(), is_b })
}

/// Which product a matrix belongs to, which of its panels, and the first group that it has there.
pub(super) fn place(shape: &Shape, role: LayerRole) -> (Site, usize, usize) {
    let [queries, keys, values, _] = shape.qkv_rows().map(|row| row / LANES);
    match role {
        LayerRole::Key => (Site::Qkv, 0, keys),
        LayerRole::Value => (Site::Qkv, 0, values),
        LayerRole::Out => (Site::Out, 0, 0),
        LayerRole::Gate => (Site::GateUp, 0, 0),
        LayerRole::Up => (Site::GateUp, 1, 0),
        LayerRole::Down => (Site::Down, 0, 0),
        _ => (Site::Qkv, 0, queries),
    }
}

impl<'a> Fitted<'a> {
    /// The part's tensors, in order of use.
    pub fn tensors(&self) -> Vec<&'a TensorEntry> {
        self.pairs.iter().flat_map(|pair| [pair.a, pair.b]).collect()
    }

    /// Bytes of memory that they take, with the buffers of passes.
    pub fn memory(&self) -> u64 {
        let s = &self.shape;
        let widest = s.width.max(s.heads * s.head_width).max(s.feed_forward);
        let rank = self.pairs.iter().map(|pair| pair.rank).max().unwrap_or(0) as usize;
        self.lines() as u64 * LINE_BYTES as u64 + adapters::buffer_bytes(widest, rank)
    }

    /// Bytes of memory of each layer of the model, without buffers.
    pub fn layer_memory(&self, layers: u32) -> Vec<u64> {
        let mut bytes = vec![0; layers as usize];
        for pair in &self.pairs {
            bytes[pair.layer as usize] += pair.lines() as u64 * LINE_BYTES as u64;
        }
        bytes
    }

    pub(super) fn lines(&self) -> usize {
        self.pairs.iter().map(Pair::lines).sum()
    }
}

impl Pair<'_> {
    fn lines(&self) -> usize {
        let lines = |entry: &TensorEntry| {
            let (rows, k) = (entry.shape[0] as usize, entry.shape[1] as usize);
            format(entry).map_or(0, |format| rows.div_ceil(LANES) * format.group_lines(k))
        };
        lines(self.a) + lines(self.b)
    }
}
