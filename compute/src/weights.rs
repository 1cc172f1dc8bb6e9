//! From tensors in files to the weights of a stage.
//!
//! What each stored type becomes:
//!
//! | stored | held as | lost |
//! |---|---|---|
//! | F32, F16, BF16 | itself | nothing |
//! | Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q4_K, Q5_K, Q6_K | itself | nothing |
//! | Q8_1 | Q8_0 | nothing: the same scale and quants, without their sum |
//! | Q2_K, Q3_K | Q8_0 | values are quantised again: at most 1/254 of a block's largest value |
//!
//! A type that grows costs memory and decoding speed; the load report names every conversion. Query and key rows that
//! are stored for half-split rotary pairs are permuted to neighbouring pairs. Not here: names and dimensions (`arch`).

use crate::{
    arch::{self, Angles, LayerRole, Projection, Role, StageError, StagePart},
    cpu::{
        lines::Store,
        matrix::{Format, Fused, Matrix},
        model::{Activation, Block, Experts, FeedForward, GateUp, Head, Layer, Model, Shape},
        packed::{LANES, PackedFormat},
        plain::PlainFormat,
        rope::Rope,
    },
    quant,
    saved::{self, Saves},
};
use cairn_protocol::{
    dtype::Dtype,
    manifest::{self, TensorEntry},
};
use std::{collections::HashMap, rc::Rc};

/// Where a stage's tensors come from.
pub trait TensorSource: Send {
    /// The bytes of one tensor, all of them.
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError>;

    /// Where the weights of the part that is being loaded are saved in the form in which they are held, if anywhere.
    fn saves(&mut self) -> Option<&mut dyn Saves> {
        None
    }
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
        Dtype::Q8_1 => packed(PackedFormat::Q8_0, Turn::WidenExactly),
        Dtype::Q2_K | Dtype::Q3_K => packed(PackedFormat::Q8_0, Turn::Requantise),
        _ => PackedFormat::ALL
            .into_iter()
            .find(|format| format.dtype() == dtype)
            .and_then(|format| packed(format, Turn::Keep)),
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
    /// What the weights are to be saved under: they were packed, and there is where to save them.
    pub unsaved: Option<blake3::Hash>,
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
    let lines = arch::weight_lines(model, &shape, &wanted, part);
    let bytes = (lines * crate::cpu::lines::LINE_BYTES) as u64;
    let meaning = saved::fingerprint(model, part, &wanted);
    let (found, unsaved) = find(source, &meaning, lines);
    let is_filled = found.is_some();
    let store = found.or_else(|| Store::with_room(lines)).ok_or(WeightsError::Memory { bytes })?;
    let roles = wanted.iter().map(|wanted| (wanted.role, wanted.entry)).collect();
    let half_split = model.rope_half_split.then_some((shape.head_width, shape.rotary_width));
    let lacks_one = arch::norms_lack_one(model);
    let (kept, conversions) = (HashMap::new(), Vec::new());
    let mut loader = Loader { model, shape, roles, half_split, lacks_one, source, store, is_filled, kept, conversions };
    let embedding = loader.embedding()?;
    let kinds = arch::angle_kinds(model, part.layers.iter());
    let layers = part.layers.iter().map(|l| loader.layer(l, &kinds)).collect::<Result<_, _>>()?;
    let head = loader.head(embedding.filter(|_| model.tied_embeddings))?;
    let factors = loader.rope_factors()?;
    let ropes = kinds.iter().map(|kind| Rope::new(&arch::frequencies(model, &factors, *kind), context)).collect();
    let model = Model { shape, store: loader.store, embedding, layers, head, ropes };
    Ok(Loaded { model, conversions: loader.conversions, unsaved })
}

/// Saved weights, if there are any and they are right; else what to save them under, if there is where to.
fn find(source: &mut dyn TensorSource, meaning: &blake3::Hash, lines: usize) -> (Option<Store>, Option<blake3::Hash>) {
    let Some(saves) = source.saves() else { return (None, None) };
    let Some(file) = saves.find() else { return (None, Some(*meaning)) };
    let found = saved::read(&file, meaning, lines);
    if found.is_none() {
        saves.forget();
    }
    let unsaved = found.is_none().then_some(*meaning);
    (found, unsaved)
}

/// Saves packed weights.
pub(crate) fn save(model: &Model, meaning: &blake3::Hash, source: &mut dyn TensorSource) {
    if let Some(saves) = source.saves() {
        saves.keep(saved::bytes(model.store.lines()), &mut |file| saved::write(&model.store, meaning, file));
    }
}

struct Loader<'a> {
    model: &'a manifest::Model,
    shape: Shape,
    roles: HashMap<Role, &'a TensorEntry>,
    /// Widths of heads whose query and key rows have to be permuted, and of what is rotated of them.
    half_split: Option<(usize, usize)>,
    /// Norms lack the one that is added to them.
    lacks_one: bool,
    source: &'a mut dyn TensorSource,
    store: Store,
    /// The store came with its lines: only vectors are read.
    is_filled: bool,
    /// Tensors of the layer that hold several matrices, by where they begin.
    kept: HashMap<(u32, u64), Rc<Vec<u8>>>,
    conversions: Vec<Conversion>,
}

/// One matrix of a fused one: some rows of a tensor.
#[derive(Clone, Copy)]
struct Part<'a> {
    entry: &'a TensorEntry,
    first_row: usize,
    rows: usize,
    held: Held,
    is_permuted: bool,
}

impl Part<'_> {
    fn k(&self) -> usize {
        self.entry.shape.last().copied().unwrap_or(0) as usize
    }
    fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }
    fn is_whole(&self) -> bool {
        self.rows == rows(self.entry)
    }
}

/// Rows of all matrices of a tensor.
fn rows(entry: &TensorEntry) -> usize {
    entry.shape[..entry.shape.len() - 1].iter().product::<u64>() as usize
}

impl<'a> Loader<'a> {
    fn embedding(&mut self) -> Result<Option<Matrix>, WeightsError> {
        if self.find(Role::Embedding).is_none() {
            return Ok(None);
        }
        let parts = self.parts(Role::Embedding, &[false])?;
        Ok(self.stacked(&parts)?.sections.first().copied())
    }

    fn head(&mut self, tied: Option<Matrix>) -> Result<Option<Head>, WeightsError> {
        let (Some(norm), Some(_)) = (self.find(Role::Norm), self.find(Role::Head)) else { return Ok(None) };
        let norm = self.norm(norm, false)?;
        let matrix = match tied {
            Some(matrix) => Fused { sections: vec![matrix] },
            None => {
                let parts = self.parts(Role::Head, &[false])?;
                self.stacked(&parts)?
            }
        };
        Ok(Some(Head { norm, matrix }))
    }

    fn layer(&mut self, layer: u32, kinds: &[Angles]) -> Result<Layer, WeightsError> {
        use LayerRole::*;
        let attention_norm = self.layer_norm(layer, AttentionNorm)?;
        let qkv = self.qkv(layer)?;
        let (bias, head_norms) = (self.bias(layer)?, self.head_norms(layer)?);
        let out = self.matrix(layer, Out)?;
        let feed_forward_norm = self.layer_norm(layer, FeedForwardNorm)?;
        let post_norms = match self.find(Role::Layer(layer, PostAttentionNorm)) {
            Some(_) => Some([self.layer_norm(layer, PostAttentionNorm)?, self.layer_norm(layer, PostFeedForwardNorm)?]),
            None => None,
        };
        let feed_forward = self.feed_forward(layer)?;
        self.kept.clear();
        let window = arch::window(self.model, layer).map_or(usize::MAX, |window| window.get() as usize);
        let rope = kinds.iter().position(|kind| *kind == arch::angles(self.model, layer)).unwrap_or(0);
        Ok(Layer {
            attention_norm,
            feed_forward_norm,
            post_norms,
            window,
            rope,
            qkv,
            bias,
            head_norms,
            out,
            feed_forward,
        })
    }

    fn qkv(&mut self, layer: u32) -> Result<Fused, WeightsError> {
        use LayerRole::*;
        if self.find(Role::Layer(layer, QueryKeyValue)).is_some() {
            let parts = self.parts(Role::Layer(layer, QueryKeyValue), &[true, true, false])?;
            return self.stacked(&parts);
        }
        let mut all = Vec::new();
        for (role, is_permuted) in [(Query, true), (Key, true), (Value, false)] {
            all.extend(self.parts(Role::Layer(layer, role), &[is_permuted])?);
        }
        self.stacked(&all)
    }

    fn feed_forward(&mut self, layer: u32) -> Result<FeedForward, WeightsError> {
        let Some(routing) = self.shape.routing else {
            let [gate, up, down] = self.block_parts(layer)?;
            return Ok(FeedForward::Block(self.block(gate, up, down)?));
        };
        let router = self.matrix(layer, LayerRole::Router)?;
        let mut blocks = Vec::with_capacity(routing.experts);
        for expert in 0..routing.experts {
            let [gate, up, down] = self.expert_parts(layer, expert)?;
            blocks.push(self.block(gate, up, down)?);
        }
        Ok(FeedForward::Experts(Experts { router, blocks }))
    }

    /// Gate, up and down of a layer's one block.
    fn block_parts(&self, layer: u32) -> Result<[Part<'a>; 3], WeightsError> {
        use LayerRole::*;
        let one = |role| Ok::<_, WeightsError>(self.parts(Role::Layer(layer, role), &[false])?[0]);
        if self.find(Role::Layer(layer, GateUp)).is_some() {
            let both = self.parts(Role::Layer(layer, GateUp), &[false])?;
            return Ok([both[0], both[1], one(Down)?]);
        }
        Ok([one(Gate)?, one(Up)?, one(Down)?])
    }

    /// Gate, up and down of an expert: tensors of its own, or parts of those that stack all.
    fn expert_parts(&self, layer: u32, expert: usize) -> Result<[Part<'a>; 3], WeightsError> {
        let find = |projection| {
            let own = Role::Layer(layer, LayerRole::Expert(expert as u32, projection));
            match self.find(own) {
                Some(_) => Ok::<_, WeightsError>(self.parts(own, &[false])?[0]),
                None => self.section(Role::Layer(layer, LayerRole::Experts(projection)), expert, false),
            }
        };
        Ok([find(Projection::Gate)?, find(Projection::Up)?, find(Projection::Down)?])
    }

    fn block(&mut self, gate: Part<'a>, up: Part<'a>, down: Part<'a>) -> Result<Block, WeightsError> {
        Ok(Block { gate_up: self.gate_up(gate, up)?, down: self.stacked(&[down])? })
    }

    /// Divisors of rotary frequencies; none where the model has none.
    fn rope_factors(&mut self) -> Result<Vec<f32>, WeightsError> {
        let Some(entry) = self.find(Role::RopeFactors) else { return Ok(Vec::new()) };
        let mut factors = self.vector(entry, false)?;
        factors.truncate(entry.shape[0] as usize);
        if arch::are_factors(&factors) { Ok(factors) } else { Err(StageError::RopeFactors.into()) }
    }

    fn find(&self, role: Role) -> Option<&'a TensorEntry> {
        self.roles.get(&role).copied()
    }

    fn need(&self, role: Role) -> Result<&'a TensorEntry, WeightsError> {
        Ok(self.find(role).ok_or_else(|| StageError::Missing(format!("{role:?}")))?)
    }

    fn matrix(&mut self, layer: u32, role: LayerRole) -> Result<Fused, WeightsError> {
        let parts = self.parts(Role::Layer(layer, role), &[false])?;
        self.stacked(&parts)
    }

    /// The matrices of a tensor; of those that `are_permuted` says nothing of, it says what it says of the last.
    fn parts(&self, role: Role, are_permuted: &[bool]) -> Result<Vec<Part<'a>>, WeightsError> {
        let is_permuted = |i: usize| are_permuted.get(i).or(are_permuted.last()).copied().unwrap_or(false);
        let sections = arch::sections(&self.shape, role).len();
        (0..sections).map(|i| self.section(role, i, is_permuted(i))).collect()
    }

    fn section(&self, role: Role, section: usize, is_permuted: bool) -> Result<Part<'a>, WeightsError> {
        let entry = self.need(role)?;
        let unread = || StageError::Type { name: entry.name.clone(), dtype: entry.dtype };
        let held = held(entry.dtype).ok_or_else(unread)?;
        let sections = arch::sections(&self.shape, role);
        let first_row = sections[..section].iter().sum();
        Ok(Part { entry, first_row, rows: sections[section], held, is_permuted })
    }

    fn layer_norm(&mut self, layer: u32, role: LayerRole) -> Result<Vec<f32>, WeightsError> {
        let entry = self.need(Role::Layer(layer, role))?;
        self.norm(entry, false)
    }

    /// The weights of a norm, whole.
    fn norm(&mut self, entry: &TensorEntry, is_permuted: bool) -> Result<Vec<f32>, WeightsError> {
        let mut weights = self.vector(entry, is_permuted)?;
        if self.lacks_one {
            weights[..entry.shape[0] as usize].iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(weights)
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
            let entry = self.need(Role::Layer(layer, role))?;
            all.extend(self.vector(entry, is_permuted)?);
        }
        Ok(Some(all))
    }

    /// Norms of heads of queries and keys, in the order of their rotary pairs.
    fn head_norms(&mut self, layer: u32) -> Result<Option<[Vec<f32>; 2]>, WeightsError> {
        let norms = [LayerRole::QueryNorm, LayerRole::KeyNorm].map(|role| self.find(Role::Layer(layer, role)));
        let [Some(query), Some(key)] = norms else { return Ok(None) };
        Ok(Some([self.norm(query, true)?, self.norm(key, true)?]))
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

    /// Groups in turn where both are packed in one format and gates are passed through silu; else one after the other.
    fn gate_up(&mut self, gate: Part<'a>, up: Part<'a>) -> Result<GateUp, WeightsError> {
        let format = gate.held.format;
        let is_silu = self.shape.activation == Activation::Silu;
        if format != up.held.format || matches!(format, Format::Plain(_)) || !is_silu {
            return Ok(GateUp::Apart(self.stacked(&[gate])?, self.stacked(&[up])?));
        }
        let matrix = Matrix::place(&mut self.store, format, 2 * gate.groups(), gate.k());
        self.fill(&matrix, &gate, 0, 2)?;
        self.fill(&matrix, &up, 1, 2)?;
        Ok(GateUp::Paired(Fused { sections: vec![matrix] }))
    }

    /// Writes a tensor's rows into every `step`th group from `group` on.
    fn fill(&mut self, matrix: &Matrix, part: &Part<'a>, group: usize, step: usize) -> Result<(), WeightsError> {
        if part.first_row == 0 {
            self.report(part.entry.dtype, part.held);
        }
        if self.is_filled {
            return Ok(());
        }
        let bytes = self.bytes_of(part)?;
        let row_bytes = bytes.len() / rows(part.entry).max(1);
        let mut turned = Turned::default();
        for row in 0..part.rows {
            let from = part.first_row + if part.is_permuted { self.source_row(row) } else { row };
            let source = turned.row(part.entry.dtype, part.held.turn, &bytes[from * row_bytes..][..row_bytes]);
            matrix.fill(&mut self.store, group + row / LANES * step, row % LANES, source);
        }
        Ok(())
    }

    /// Where the row that stands at `row` among neighbouring pairs is stored. What is not rotated stays.
    fn source_row(&self, row: usize) -> usize {
        self.half_split.map_or(row, |widths| half_split_row(row, widths))
    }

    /// The bytes of a part's tensor, which are kept for the layer's other parts of it.
    fn bytes_of(&mut self, part: &Part) -> Result<Rc<Vec<u8>>, WeightsError> {
        let place = (part.entry.file, part.entry.offset);
        if let Some(bytes) = self.kept.get(&place) {
            return Ok(bytes.clone());
        }
        let bytes = Rc::new(self.bytes(part.entry)?);
        if !part.is_whole() {
            self.kept.insert(place, bytes.clone());
        }
        Ok(bytes)
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
            Format::Packed(format) => format.dtype(),
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

/// Where the row that stands at `row` among neighbouring pairs is stored among half-split ones, in heads of `width` of which
/// the first `rotated` are rotated.
pub(crate) fn half_split_row(row: usize, (width, rotated): (usize, usize)) -> usize {
    let (head, at) = (row / width, row % width);
    if at >= rotated {
        return row;
    }
    head * width + at / 2 + if at.is_multiple_of(2) { 0 } else { rotated / 2 }
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
