//! From tensors in files to the weights of a stage.
//!
//! What each stored type becomes:
//!
//! | stored | held as | lost |
//! |---|---|---|
//! | F32, F16, BF16 | itself | nothing |
//! | Q8_0, Q4_0, Q4_1 | itself | nothing |
//! | Q5_0, Q8_1, IQ4_NL | Q8_0 | nothing: the same scale, quants that fit 8 bits |
//! | Q4_K | Q4_1 | scale and minimum of a block are rounded to halves (a relative 2⁻¹¹) |
//! | Q5_1, Q5_K, Q6_K, Q2_K, Q3_K | Q8_0 | values are quantised again: at most 1/254 of a block's largest value |
//!
//! A type that grows costs memory and decoding speed; the load report names every conversion. Query and key rows that
//! are stored for half-split rotary pairs are permuted to neighbouring pairs. Not here: names and dimensions (`arch`).

use crate::{
    arch::{self, LayerRole, Role, StageError, StagePart, Wanted},
    cpu::{
        lines::Store,
        matrix::{Format, Fused, Matrix},
        model::{GateUp, Head, Layer, Model},
        packed::{LANES, PackedFormat},
        plain::PlainFormat,
        rope::Rope,
    },
    quant,
};
use cairn_protocol::{
    dtype::Dtype,
    manifest::{self, TensorEntry},
};

/// Where a stage's tensors come from.
pub trait TensorSource: Send {
    /// The bytes of one tensor, all of them.
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError>;
}

/// A tensor could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Why a stage could not be loaded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// The index does not hold what the part needs.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A tensor could not be had.
    #[error("tensor {name} could not be read: {error}")]
    Source {
        /// Which.
        name: String,
        /// Why.
        error: SourceError,
    },
    /// A source gave another number of bytes than the index says.
    #[error("tensor {name} came with {got} bytes, the index says {want}")]
    Length {
        /// Which.
        name: String,
        /// Bytes that came.
        got: usize,
        /// Bytes announced.
        want: u64,
    },
    /// The system has not that much memory.
    #[error("no memory for {bytes} bytes of weights")]
    Memory {
        /// Asked for.
        bytes: u64,
    },
}

/// Tensors of one stored type that are held as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// As stored.
    pub from: Dtype,
    /// As held.
    pub to: Dtype,
    /// Values changed on the way, if only by rounding.
    pub is_lossy: bool,
    /// How many tensors.
    pub tensors: u32,
}

/// How the engine holds a stored type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub format: Format,
    turn: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Keep,
    WidenExactly,
    RoundScales,
    Requantise,
}

/// How a stored type is held; `None` when the engine can't read it.
pub(crate) fn held(dtype: Dtype) -> Option<Held> {
    let packed = |format, turn| Some(Held { format: Format::Packed(format), turn });
    let plain = |format| Some(Held { format: Format::Plain(format), turn: Turn::Keep });
    match dtype {
        Dtype::F32 => plain(PlainFormat::F32),
        Dtype::F16 => plain(PlainFormat::F16),
        Dtype::BF16 => plain(PlainFormat::Bf16),
        Dtype::Q8_0 => packed(PackedFormat::Q8_0, Turn::Keep),
        Dtype::Q4_0 => packed(PackedFormat::Q4_0, Turn::Keep),
        Dtype::Q4_1 => packed(PackedFormat::Q4_1, Turn::Keep),
        Dtype::Q5_0 | Dtype::Q8_1 | Dtype::IQ4_NL => packed(PackedFormat::Q8_0, Turn::WidenExactly),
        Dtype::Q4_K => packed(PackedFormat::Q4_1, Turn::RoundScales),
        Dtype::Q5_1 | Dtype::Q5_K | Dtype::Q6_K | Dtype::Q2_K | Dtype::Q3_K => {
            packed(PackedFormat::Q8_0, Turn::Requantise)
        }
        _ => None,
    }
}

/// Whether the engine reads a type: any that is held for a matrix, plain ones for a vector.
pub(crate) fn is_readable(dtype: Dtype, is_vector: bool) -> bool {
    held(dtype).is_some_and(|held| !is_vector || matches!(held.format, Format::Plain(_)))
}

/// A loaded stage.
pub(crate) struct Loaded {
    pub model: Model,
    pub conversions: Vec<Conversion>,
}

/// Reads and packs what a part needs, for sessions of up to `context` positions.
pub(crate) fn load(
    model: &manifest::Model,
    tensors: &[TensorEntry],
    part: &StagePart,
    context: usize,
    source: &mut dyn TensorSource,
) -> Result<Loaded, WeightsError> {
    let shape = arch::shape(model).map_err(StageError::from)?;
    let wanted = arch::wanted(model, tensors, part)?;
    let lines = arch::weight_lines(model, &wanted, part);
    let bytes = (lines * crate::cpu::lines::LINE_BYTES) as u64;
    let store = Store::with_room(lines).ok_or(WeightsError::Memory { bytes })?;
    let half_split = model.rope_half_split.then_some(shape.head_width);
    let mut loader = Loader { wanted, half_split, source, store, conversions: Vec::new() };
    let embedding = loader.embedding()?;
    let layers = part.layers.iter().map(|l| loader.layer(l)).collect::<Result<_, _>>()?;
    let head = loader.head(embedding.filter(|_| model.tied_embeddings))?;
    let factors = loader.rope_factors()?;
    let rope = Rope::new(&arch::frequencies(model, &factors), context);
    let model = Model { shape, store: loader.store, embedding, layers, head, rope };
    Ok(Loaded { model, conversions: loader.conversions })
}

struct Loader<'a> {
    wanted: Vec<Wanted<'a>>,
    /// Width of heads whose query and key rows have to be permuted.
    half_split: Option<usize>,
    source: &'a mut dyn TensorSource,
    store: Store,
    conversions: Vec<Conversion>,
}

/// One tensor of a fused matrix.
#[derive(Clone, Copy)]
struct Part<'a> {
    entry: &'a TensorEntry,
    held: Held,
    is_permuted: bool,
}

impl<'a> Part<'a> {
    fn rows(&self) -> usize {
        self.entry.shape[0] as usize
    }
    fn k(&self) -> usize {
        self.entry.shape[1] as usize
    }
    fn groups(&self) -> usize {
        self.rows().div_ceil(LANES)
    }
}

impl<'a> Loader<'a> {
    fn embedding(&mut self) -> Result<Option<Matrix>, WeightsError> {
        let Some(entry) = self.find(Role::Embedding) else { return Ok(None) };
        let part = self.part(entry, false)?;
        Ok(self.stacked(&[part])?.sections.first().copied())
    }

    fn head(&mut self, tied: Option<Matrix>) -> Result<Option<Head>, WeightsError> {
        let (Some(norm), Some(head)) = (self.find(Role::Norm), self.find(Role::Head)) else { return Ok(None) };
        let norm = self.vector(norm, false)?;
        let matrix = match tied {
            Some(matrix) => Fused { sections: vec![matrix] },
            None => {
                let part = self.part(head, false)?;
                self.stacked(&[part])?
            }
        };
        Ok(Some(Head { norm, matrix }))
    }

    fn layer(&mut self, layer: u32) -> Result<Layer, WeightsError> {
        use LayerRole::*;
        let attention_norm = self.layer_vector(layer, AttentionNorm)?;
        let qkv = [(Query, true), (Key, true), (Value, false)];
        let parts = qkv.map(|(role, is_permuted)| self.layer_part(layer, role, is_permuted));
        let [q, k, v] = parts;
        let qkv = self.stacked(&[q?, k?, v?])?;
        let (bias, head_norms) = (self.bias(layer)?, self.head_norms(layer)?);
        let out = self.layer_part(layer, Out, false)?;
        let out = self.stacked(&[out])?;
        let feed_forward_norm = self.layer_vector(layer, FeedForwardNorm)?;
        let (gate, up) = (self.layer_part(layer, Gate, false)?, self.layer_part(layer, Up, false)?);
        let gate_up = self.gate_up(gate, up)?;
        let down = self.layer_part(layer, Down, false)?;
        let down = self.stacked(&[down])?;
        Ok(Layer { attention_norm, feed_forward_norm, qkv, bias, head_norms, out, gate_up, down })
    }

    /// Divisors of rotary frequencies; none where the model has none.
    fn rope_factors(&mut self) -> Result<Vec<f32>, WeightsError> {
        let Some(entry) = self.find(Role::RopeFactors) else { return Ok(Vec::new()) };
        let mut factors = self.vector(entry, false)?;
        factors.truncate(entry.shape[0] as usize);
        if arch::are_factors(&factors) { Ok(factors) } else { Err(StageError::RopeFactors.into()) }
    }

    fn find(&self, role: Role) -> Option<&'a TensorEntry> {
        self.wanted.iter().find(|w| w.role == role).map(|w| w.entry)
    }

    fn layer_entry(&self, layer: u32, role: LayerRole) -> Result<&'a TensorEntry, WeightsError> {
        let missing = || StageError::Missing(format!("{role:?} of layer {layer}"));
        Ok(self.find(Role::Layer(layer, role)).ok_or_else(missing)?)
    }

    fn layer_part(&self, layer: u32, role: LayerRole, is_permuted: bool) -> Result<Part<'a>, WeightsError> {
        self.part(self.layer_entry(layer, role)?, is_permuted)
    }

    fn layer_vector(&mut self, layer: u32, role: LayerRole) -> Result<Vec<f32>, WeightsError> {
        let entry = self.layer_entry(layer, role)?;
        self.vector(entry, false)
    }

    fn part(&self, entry: &'a TensorEntry, is_permuted: bool) -> Result<Part<'a>, WeightsError> {
        let unread = || StageError::Type { name: entry.name.clone(), dtype: entry.dtype };
        Ok(Part { entry, held: held(entry.dtype).ok_or_else(unread)?, is_permuted })
    }

    /// Biases of queries, keys and values, laid out like their rows.
    fn bias(&mut self, layer: u32) -> Result<Option<Vec<f32>>, WeightsError> {
        if self.find(Role::Layer(layer, LayerRole::QueryBias)).is_none() {
            return Ok(None);
        }
        let mut all = Vec::new();
        for (role, is_permuted) in
            [(LayerRole::QueryBias, true), (LayerRole::KeyBias, true), (LayerRole::ValueBias, false)]
        {
            let entry = self.layer_entry(layer, role)?;
            all.extend(self.vector(entry, is_permuted)?);
        }
        Ok(Some(all))
    }

    /// Norms of heads of queries and keys, in the order of their rotary pairs.
    fn head_norms(&mut self, layer: u32) -> Result<Option<[Vec<f32>; 2]>, WeightsError> {
        let norms = [LayerRole::QueryNorm, LayerRole::KeyNorm].map(|role| self.find(Role::Layer(layer, role)));
        let [Some(query), Some(key)] = norms else { return Ok(None) };
        Ok(Some([self.vector(query, true)?, self.vector(key, true)?]))
    }

    /// A vector, padded with zeros to whole lanes.
    fn vector(&mut self, entry: &TensorEntry, is_permuted: bool) -> Result<Vec<f32>, WeightsError> {
        let bytes = self.bytes(entry)?;
        let mut values = Vec::new();
        if !quant::dequantise(entry.dtype, &bytes, &mut values) {
            return Err(StageError::Type { name: entry.name.clone(), dtype: entry.dtype }.into());
        }
        if is_permuted {
            values = (0..values.len()).map(|row| values[self.source_row(row)]).collect();
        }
        values.resize(values.len().next_multiple_of(LANES), 0.0);
        Ok(values)
    }

    /// One after the other; neighbours of one format are one section.
    fn stacked(&mut self, parts: &[Part<'a>]) -> Result<Fused, WeightsError> {
        let mut fused = Fused::default();
        for same in parts.chunk_by(|a, b| a.held.format == b.held.format) {
            let groups = same.iter().map(Part::groups).sum();
            let matrix = Matrix::place(&mut self.store, same[0].held.format, groups, same[0].k());
            let mut group = 0;
            for part in same {
                self.fill(&matrix, part, group, 1)?;
                group += part.groups();
            }
            fused.sections.push(matrix);
        }
        Ok(fused)
    }

    /// Groups in turn where both are packed in one format; else one after the other.
    fn gate_up(&mut self, gate: Part<'a>, up: Part<'a>) -> Result<GateUp, WeightsError> {
        let format = gate.held.format;
        if format != up.held.format || matches!(format, Format::Plain(_)) {
            return Ok(GateUp::Apart(self.stacked(&[gate])?, self.stacked(&[up])?));
        }
        let matrix = Matrix::place(&mut self.store, format, 2 * gate.groups(), gate.k());
        self.fill(&matrix, &gate, 0, 2)?;
        self.fill(&matrix, &up, 1, 2)?;
        Ok(GateUp::Paired(Fused { sections: vec![matrix] }))
    }

    /// Writes a tensor's rows into every `step`th group from `group` on.
    fn fill(&mut self, matrix: &Matrix, part: &Part, group: usize, step: usize) -> Result<(), WeightsError> {
        let bytes = self.bytes(part.entry)?;
        let row_bytes = bytes.len() / part.rows().max(1);
        let mut turned = Turned::default();
        for row in 0..part.rows() {
            let from = if part.is_permuted { self.source_row(row) } else { row };
            let source = turned.row(part.entry.dtype, part.held.turn, &bytes[from * row_bytes..][..row_bytes]);
            matrix.fill(&mut self.store, group + row / LANES * step, row % LANES, source);
        }
        self.report(part.entry.dtype, part.held);
        Ok(())
    }

    /// Where the row that stands at `row` among neighbouring pairs is stored.
    fn source_row(&self, row: usize) -> usize {
        self.half_split.map_or(row, |width| half_split_row(row, width))
    }

    fn bytes(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, WeightsError> {
        let name = || entry.name.clone();
        let bytes = self.source.tensor(entry).map_err(|error| WeightsError::Source { name: name(), error })?;
        if bytes.len() as u64 != entry.length {
            return Err(WeightsError::Length { name: name(), got: bytes.len(), want: entry.length });
        }
        Ok(bytes)
    }

    fn report(&mut self, from: Dtype, held: Held) {
        let to = match held.format {
            Format::Packed(PackedFormat::Q8_0) => Dtype::Q8_0,
            Format::Packed(PackedFormat::Q4_0) => Dtype::Q4_0,
            Format::Packed(PackedFormat::Q4_1) => Dtype::Q4_1,
            Format::Plain(_) => from,
        };
        if held.turn == Turn::Keep {
            return;
        }
        match self.conversions.iter_mut().find(|c| c.from == from) {
            Some(known) => known.tensors += 1,
            None => {
                let is_lossy = held.turn != Turn::WidenExactly;
                self.conversions.push(Conversion { from, to, is_lossy, tensors: 1 });
            }
        }
    }
}

/// Where the row that stands at `row` among neighbouring pairs of heads of `width` is stored among half-split ones.
pub(crate) fn half_split_row(row: usize, width: usize) -> usize {
    let (head, at) = (row / width, row % width);
    head * width + at / 2 + if at.is_multiple_of(2) { 0 } else { width / 2 }
}

/// A row in the form that is held, and room to make it in.
#[derive(Default)]
struct Turned {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Turned {
    fn row<'r>(&'r mut self, dtype: Dtype, turn: Turn, source: &'r [u8]) -> &'r [u8] {
        self.bytes.clear();
        match turn {
            Turn::Keep => return source,
            Turn::WidenExactly => quant::widen_exactly(dtype, source, &mut self.bytes),
            Turn::RoundScales => quant::q4_k_to_q4_1(source, &mut self.bytes),
            Turn::Requantise => {
                self.values.clear();
                // `held` gives this turn only to types that can be read.
                let _ = quant::dequantise(dtype, source, &mut self.values);
                quant::quantise_q8_0(&self.values, &mut self.bytes);
            }
        }
        &self.bytes
    }
}
