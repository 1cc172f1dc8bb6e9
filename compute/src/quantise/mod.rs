//! A model made again with quantised matrices, as one GGUF file.
//!
//! A [`Recipe`] says what each tensor becomes before a byte is read: the file's header and size are known, and tensors are
//! turned piece by piece, so that memory does not grow with the model. The arithmetic of the blocks is candle's, which is
//! that of ggml's reference. From a GGUF file metadata is copied; from a folder with `config.json` it is made of the model's
//! description, without a tokenizer: that stays in files beside it.
//!
//! Not here: where bytes come from ([`TensorSource`]), and publishing.

mod container;
mod on_load;

pub use on_load::{Quantising, as_loaded};

use crate::{
    arch::{self, LayerRole, Role, StageError, StagePart},
    files::{self, FilesError, ModelFiles},
    quant,
    weights::{SourceError, TensorSource},
};
use cairn_protocol::{
    dtype::{Dtype, elements},
    gguf::{self, GgufHeader},
    manifest::{Model, Naming, RopeScaling, TensorEntry},
};
use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    thread,
};

/// Elements that are turned at once: 64 MB as F32.
const PIECE_ELEMENTS: u64 = 16 << 20;

/// What chooses experts stays exact: it is small, and a wrong choice is no rounding.
const ROUTERS: [&str; 2] = ["ffn_gate_inp.weight", "mlp.gate.weight"];

/// A type that matrices can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(Dtype);

/// A name of no such type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not made, only {names} are", names = Target::names())]
pub struct UnknownTarget(String);

impl Target {
    const ALL: [(&'static str, Dtype, GgmlDType); 8] = [
        ("q8_0", Dtype::Q8_0, GgmlDType::Q8_0),
        ("q6_k", Dtype::Q6_K, GgmlDType::Q6K),
        ("q5_k", Dtype::Q5_K, GgmlDType::Q5K),
        ("q5_1", Dtype::Q5_1, GgmlDType::Q5_1),
        ("q5_0", Dtype::Q5_0, GgmlDType::Q5_0),
        ("q4_k", Dtype::Q4_K, GgmlDType::Q4K),
        ("q4_1", Dtype::Q4_1, GgmlDType::Q4_1),
        ("q4_0", Dtype::Q4_0, GgmlDType::Q4_0),
    ];

    /// The names of all, the most exact first.
    pub fn names() -> String {
        Self::ALL.map(|(name, ..)| name).join(", ")
    }

    /// Its element type.
    pub fn dtype(self) -> Dtype {
        self.0
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, dtype, _)| *dtype == self.0).map_or("", |(name, ..)| name)
    }
}

/// What a request names: nothing is to leave the model as it is stored.
pub fn parse_wish(name: &str) -> Result<Option<Target>, UnknownTarget> {
    if name.is_empty() { Ok(None) } else { name.parse().map(Some) }
}

impl std::str::FromStr for Target {
    type Err = UnknownTarget;
    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        let found = Self::ALL.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
        found.map(|(_, dtype, _)| Self(*dtype)).ok_or_else(|| UnknownTarget(name.chars().take(32).collect()))
    }
}

/// What happens to matrices that are quantised already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Those that take no more bits than the target stay: quantising twice loses twice.
    Keep,
    /// All become the target, for benchmarks of one model in several formats.
    Convert,
}

/// Why there is no quantised model.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// The source is not a model on disk.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The model's tensors are not what its description says.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// Written into a GGUF file, the model would lose something.
    #[error("a GGUF file can't be made of it: {0}")]
    NoContainer(String),
    /// Nothing would change.
    #[error("no matrix would change: the model takes no more bits than {0} already")]
    Nothing(&'static str),
    /// A tensor that can't be read as numbers.
    #[error("tensor {name} is of type {dtype}, which can't be read")]
    Type {
        /// Which.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Infinities or NaNs.
    #[error("tensor {0} holds values that are not finite")]
    NotFinite(String),
    /// A tensor could not be had.
    #[error("tensor {name} could not be read: {error}")]
    Source {
        /// Which.
        name: String,
        /// Why.
        error: SourceError,
    },
    /// Writing failed.
    #[error("the quantised file could not be written: {0}")]
    Write(io::Error),
    /// The library that quantises failed.
    #[error("tensor {name} could not be quantised: {why}")]
    Library {
        /// Which.
        name: String,
        /// What it said.
        why: String,
    },
    /// Whoever asked is gone.
    #[error("it was given up")]
    Cancelled,
}

/// What a quantised model is made of, and how.
#[derive(Debug)]
pub struct Recipe {
    /// The file's opening, up to where tensors begin.
    header: Vec<u8>,
    items: Vec<Item>,
    alignment: u64,
}

/// A tensor to be.
#[derive(Debug)]
struct Item {
    name: String,
    /// Outermost dimension first.
    shape: Vec<u64>,
    to: Dtype,
    from: Origin,
}

#[derive(Debug)]
enum Origin {
    Entry {
        entry: TensorEntry,
        /// Width of heads whose rows go from half-split rotary pairs to neighbouring ones.
        paired: Option<u64>,
    },
    /// Made here.
    Bytes(Vec<u8>),
}

impl Item {
    fn bytes(&self) -> u64 {
        match &self.from {
            Origin::Entry { entry, .. } if entry.dtype == self.to => entry.length,
            Origin::Bytes(bytes) => bytes.len() as u64,
            _ => elements(&self.shape).and_then(|n| self.to.bytes_for(n)).unwrap_or(0),
        }
    }

    fn is_changed(&self) -> bool {
        matches!(&self.from, Origin::Entry { entry, .. } if entry.dtype != self.to && self.to.block_elements() > 1)
    }
}

impl Recipe {
    /// Of a GGUF file, whose `opening` was parsed as `header`; `tensors` as a manifest or a file lists them.
    pub fn of_gguf(
        opening: &[u8],
        header: &GgufHeader,
        tensors: &[TensorEntry],
        target: Target,
        existing: Existing,
    ) -> Result<Self, QuantiseError> {
        if header.u64("split.count").unwrap_or(0) > 1 {
            return Err(QuantiseError::NoContainer("it is split into several files".to_string()));
        }
        let item = |t: &TensorEntry| Item {
            name: t.name.clone(),
            shape: t.shape.clone(),
            to: becomes(&t.name, t, target, existing),
            from: Origin::Entry { entry: t.clone(), paired: None },
        };
        let items = tensors.iter().map(item).collect();
        let metadata = container::copied(opening, target).ok_or_else(|| {
            QuantiseError::NoContainer("its metadata is not what its header was when it was parsed".to_string())
        })?;
        Self::with(metadata, items, header.u64("general.alignment"), target)
    }

    /// Of a model in files of the Hugging Face kind.
    pub fn of_folder(model: &Model, tensors: &[TensorEntry], target: Target) -> Result<Self, QuantiseError> {
        let renamed = container::gguf_model(model).map_err(QuantiseError::NoContainer)?;
        let mut items = Vec::new();
        for wanted in arch::wanted(model, tensors, &StagePart::whole(model.layers))? {
            let is_rotated = matches!(
                wanted.role,
                Role::Layer(_, LayerRole::Query | LayerRole::Key | LayerRole::QueryBias | LayerRole::KeyBias)
            );
            let is_paired = is_rotated && model.rope_half_split && !renamed.rope_half_split;
            let name = arch::tensor_name(&renamed, wanted.role);
            if model.tied_embeddings && wanted.role == Role::Head {
                continue;
            }
            items.push(Item {
                to: becomes(&name, wanted.entry, target, Existing::Keep),
                name,
                shape: wanted.entry.shape.clone(),
                from: Origin::Entry {
                    entry: wanted.entry.clone(),
                    paired: is_paired.then_some(u64::from(model.head_width)),
                },
            });
        }
        if let Some(RopeScaling::Llama3 { .. }) = model.rope_scaling {
            items.push(divisors(model));
        }
        Self::with(container::made(&renamed, target), items, None, target)
    }

    fn with(
        metadata: Vec<u8>,
        items: Vec<Item>,
        alignment: Option<u64>,
        target: Target,
    ) -> Result<Self, QuantiseError> {
        if !items.iter().any(Item::is_changed) {
            return Err(QuantiseError::Nothing(target.name()));
        }
        let alignment = alignment.unwrap_or(container::ALIGNMENT).max(1);
        let table = items.iter().map(|i| (i.name.as_str(), i.shape.as_slice(), i.to, i.bytes()));
        Ok(Self { header: container::header(metadata, table, alignment), items, alignment })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        let tensors: u64 = self.items.iter().map(|item| item.bytes().next_multiple_of(self.alignment)).sum();
        self.header.len() as u64 + tensors
    }

    /// How many tensors get another type.
    pub fn changed(&self) -> usize {
        self.items.iter().filter(|item| item.is_changed()).count()
    }

    /// Writes the file. `progress` hears how many bytes are written, and may end it.
    pub fn write(
        &self,
        source: &mut dyn TensorSource,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), QuantiseError> {
        let mut written = self.header.len() as u64;
        out.write_all(&self.header).map_err(QuantiseError::Write)?;
        for item in &self.items {
            item.write(source, &mut |bytes| {
                out.write_all(&bytes).map_err(QuantiseError::Write)?;
                written += bytes.len() as u64;
                if progress(written).is_break() { Err(QuantiseError::Cancelled) } else { Ok(()) }
            })?;
            let gap = item.bytes().next_multiple_of(self.alignment) - item.bytes();
            out.write_all(&vec![0; gap as usize]).map_err(QuantiseError::Write)?;
            written += gap;
        }
        Ok(())
    }
}

type Put<'a> = &'a mut dyn FnMut(Vec<u8>) -> Result<(), QuantiseError>;

impl Item {
    /// Turns the tensor piece by piece.
    fn write(&self, source: &mut dyn TensorSource, put: Put) -> Result<(), QuantiseError> {
        let (entry, paired) = match &self.from {
            Origin::Bytes(bytes) => return put(bytes.clone()),
            Origin::Entry { entry, paired } => (entry, *paired),
        };
        for piece in pieces(entry, paired.unwrap_or(1)) {
            let read = source.tensor(&piece);
            let bytes = read.map_err(|error| QuantiseError::Source { name: entry.name.clone(), error })?;
            let rows = piece.shape.first().copied().unwrap_or(1).max(1) as usize;
            let bytes = match paired {
                Some(width) => paired_rows(&bytes, rows, width as usize),
                None => bytes,
            };
            put(if entry.dtype == self.to { bytes } else { turned(&entry.name, entry.dtype, self.to, rows, &bytes)? })?;
        }
        Ok(())
    }
}

/// What a tensor becomes.
fn becomes(name: &str, entry: &TensorEntry, target: Target, existing: Existing) -> Dtype {
    let (is_plain, k) = (entry.dtype.block_elements() == 1, entry.shape.last().copied().unwrap_or(0));
    if entry.shape.len() < 2
        || !name.ends_with(".weight")
        || ROUTERS.iter().any(|router| name.ends_with(router))
        || name.contains("norm")
    {
        let is_float = [Dtype::F16, Dtype::BF16].contains(&entry.dtype);
        return if is_float && entry.shape.len() < 2 { Dtype::F32 } else { entry.dtype };
    }
    let to = fitting(if is_end(name) { at_the_ends(target.0) } else { target.0 }, k);
    match existing {
        _ if !k.is_multiple_of(to.block_elements()) => entry.dtype,
        Existing::Keep if !is_plain && bits(entry.dtype) <= bits(to) => entry.dtype,
        Existing::Convert if is_plain => entry.dtype,
        Existing::Convert => fitting(target.0, k),
        Existing::Keep => to,
    }
}

fn is_end(name: &str) -> bool {
    ["token_embd.weight", "output.weight", "model.embed_tokens.weight", "lm_head.weight"].contains(&name)
}

/// The embedding and the head keep more: they are a few tensors, and each error in them reaches every token.
fn at_the_ends(target: Dtype) -> Dtype {
    match target {
        Dtype::Q4_K | Dtype::Q5_K | Dtype::Q6_K => Dtype::Q6_K,
        _ => Dtype::Q8_0,
    }
}

/// Blocks lie within rows, so rows that are no super-blocks get the plain type of as many bits.
fn fitting(dtype: Dtype, k: u64) -> Dtype {
    match dtype {
        _ if k.is_multiple_of(dtype.block_elements()) => dtype,
        Dtype::Q4_K => Dtype::Q5_0,
        Dtype::Q5_K => Dtype::Q5_1,
        Dtype::Q6_K => Dtype::Q8_0,
        other => other,
    }
}

/// Bits an element, times 256.
fn bits(dtype: Dtype) -> u64 {
    dtype.block_bytes() * 8 * 256 / dtype.block_elements()
}

/// A tensor cut along its outermost dimension; every piece holds whole groups of `group` rows.
fn pieces(entry: &TensorEntry, group: u64) -> Vec<TensorEntry> {
    let rows = entry.shape.first().copied().unwrap_or(1).max(1);
    let row_elements = elements(&entry.shape).unwrap_or(0) / rows;
    let row_bytes = entry.length / rows;
    let step = (PIECE_ELEMENTS / row_elements.max(1)).max(1).next_multiple_of(group.max(1));
    let piece = |first: u64| {
        let count = step.min(rows - first);
        let mut shape = entry.shape.clone();
        if let Some(outermost) = shape.first_mut() {
            *outermost = count;
        }
        let (offset, length) = (entry.offset + first * row_bytes, count * row_bytes);
        TensorEntry { name: entry.name.clone(), file: entry.file, offset, length, dtype: entry.dtype, shape }
    };
    (0..rows).step_by(step as usize).map(piece).collect()
}

/// Rows of heads of `width`, from half-split order to neighbouring pairs.
fn paired_rows(bytes: &[u8], rows: usize, width: usize) -> Vec<u8> {
    let row = bytes.len() / rows;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row * width) {
        for i in 0..width {
            let from = i % 2 * (width / 2) + i / 2;
            out.extend_from_slice(&head[from * row..][..row]);
        }
    }
    out
}

/// Rows of one type as rows of another, on all cores.
fn turned(name: &str, from: Dtype, to: Dtype, rows: usize, bytes: &[u8]) -> Result<Vec<u8>, QuantiseError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = rows.div_ceil(cores).max(1) * (bytes.len() / rows);
    let parts = thread::scope(|scope| {
        let part = |chunk| scope.spawn(move || turn(name, from, to, chunk));
        let workers: Vec<_> = bytes.chunks(share.max(1)).map(part).collect();
        let lost = |_| QuantiseError::Library { name: name.to_string(), why: "it panicked".to_string() };
        workers.into_iter().map(|worker| worker.join().map_err(lost)?).collect::<Result<Vec<_>, _>>()
    })?;
    Ok(parts.concat())
}

fn turn(name: &str, from: Dtype, to: Dtype, bytes: &[u8]) -> Result<Vec<u8>, QuantiseError> {
    let mut values = Vec::new();
    if !quant::dequantise(from, bytes, &mut values) {
        return Err(QuantiseError::Type { name: name.to_string(), dtype: from });
    }
    if !values.iter().all(|v| v.is_finite()) {
        return Err(QuantiseError::NotFinite(name.to_string()));
    }
    if to == Dtype::F32 {
        return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    blocks(values, to).map_err(|why| QuantiseError::Library { name: name.to_string(), why })
}

/// Values as blocks of a type that is made here. Whole blocks.
pub(crate) fn blocks(values: Vec<f32>, to: Dtype) -> Result<Vec<u8>, String> {
    let known = Target::ALL.iter().find(|(_, dtype, _)| *dtype == to).map(|(.., ggml)| *ggml);
    let ggml = known.ok_or_else(|| format!("{to} is not made"))?;
    let quantised = Tensor::new(values, &Device::Cpu).and_then(|tensor| QTensor::quantize(&tensor, ggml));
    let data = quantised.and_then(|quantised| quantised.data().map(|data| data.into_owned()));
    data.map_err(|error| error.to_string())
}

/// Llama 3's scaling as GGUF files have it: what divides each pair's frequency.
fn divisors(model: &Model) -> Item {
    let plain = Model { rope_scaling: None, ..model.clone() };
    let frequencies = |model| arch::frequencies(model, &[], arch::Angles::Model);
    let pairs = frequencies(&plain).into_iter().zip(frequencies(model));
    let bytes: Vec<u8> = pairs.flat_map(|(plain, scaled)| ((plain / scaled) as f32).to_le_bytes()).collect();
    let shape = vec![bytes.len() as u64 / 4];
    Item { name: arch::ROPE_FACTORS.to_string(), shape, to: Dtype::F32, from: Origin::Bytes(bytes) }
}

/// Writes `to`, the model of `from` (a GGUF file or a folder) with its matrices as `target`.
pub fn quantise_file(from: &Path, to: &Path, target: Target, existing: Existing) -> Result<(), QuantiseError> {
    let model = ModelFiles::open(from)?;
    let recipe = match model.model.naming {
        Naming::HuggingFace => Recipe::of_folder(&model.model, &model.tensors, target)?,
        Naming::Gguf => {
            let header = files::header(from, gguf::parse_header)?;
            let failed = |error| FilesError::Io { path: PathBuf::from(from), error };
            let mut opening = Vec::new();
            let file = File::open(from).map_err(failed)?;
            file.take(header.header_bytes).read_to_end(&mut opening).map_err(failed)?;
            Recipe::of_gguf(&opening, &header, &model.tensors, target, existing)?
        }
    };
    let mut out = BufWriter::new(File::create(to).map_err(QuantiseError::Write)?);
    recipe.write(&mut *model.source()?, &mut out, &mut |_| ControlFlow::Continue(()))?;
    out.flush().map_err(QuantiseError::Write)
}

#[cfg(test)]
mod tests;
