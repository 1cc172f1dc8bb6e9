//! A quantised GGUF file made again in full precision: a folder of F16 safetensors as Hugging Face tools read it.
//!
//! Every value is what its block says, rounded to a half; what quantising lost stays lost. Query and key rows that GGUF
//! stores for neighbouring rotary pairs go back to half-split ones. Invariant: one file always gives the same bytes
//! (tensors stand in the order of their names). Not here: tokenizers, whose files `text` writes, and other formats.

use crate::{
    arch::{self, LayerRole, Role, StageError, StagePart},
    files::{self, FilesError, ModelFiles},
    quant,
    text::{Tokenizer, TokenizerError},
    weights::SourceError,
};
use cairn_protocol::{
    dtype::Dtype,
    gguf,
    manifest::{Model, Naming, RopeScaling, TensorEntry},
};
use half::f16;
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// The header of a safetensors file is filled up with spaces to whole words of so many bytes.
const HEADER_ALIGNMENT: usize = 8;

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum FullPrecisionError {
    /// The source is no GGUF file of a model that is served.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its tensors are not those of its model.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// Its tokenizer has no such files.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Divisors of rotary frequencies in a tensor, which the Hub's files have no word for.
    #[error("the model's rotary frequencies are scaled by rope_freqs.weight, which config.json can't say")]
    RopeFactors,
    /// A family whose files of the Hub are laid out in another way.
    #[error("a {0} model can't be made again in full precision: only llama, qwen2 and qwen3 models can")]
    Family(String),
    /// A tensor could not be read.
    #[error("tensor {name} could not be read: {error}")]
    Source {
        /// Which.
        name: String,
        /// Why.
        error: SourceError,
    },
    /// A file could not be written.
    #[error("{path}: {error}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Writes the model of a GGUF file into `folder`, which is made: `model.safetensors`, `config.json` and the tokenizer's
/// files.
pub fn write(gguf: &Path, folder: &Path) -> Result<(), FullPrecisionError> {
    let header = files::header(gguf, gguf::parse_header)?;
    let from = ModelFiles::open(gguf)?;
    if !["llama", "qwen2", "qwen3"].contains(&arch::hub_names(&from.model).1) {
        return Err(FullPrecisionError::Family(from.model.architecture));
    }
    let hub = Model { naming: Naming::HuggingFace, rope_half_split: true, ..from.model.clone() };
    if hub.rope_scaling == Some(RopeScaling::Tensor) {
        return Err(FullPrecisionError::RopeFactors);
    }
    fs::create_dir_all(folder).map_err(|error| FullPrecisionError::Write { path: folder.to_path_buf(), error })?;
    let mut small = Tokenizer::hub_files(&header)?;
    small.push(("config.json", config(&hub)));
    for (name, text) in small {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| FullPrecisionError::Write { path, error })?;
    }
    weights(&from, &hub, &folder.join("model.safetensors"))
}

fn config(model: &Model) -> String {
    let (class, kind) = arch::hub_names(model);
    let scaling = model.rope_scaling.and_then(|scaling| match scaling {
        RopeScaling::Linear { factor } => Some(json!({"rope_type": "linear", "type": "linear", "factor": factor})),
        // GGUF metadata has no other numbers.
        _ => None,
    });
    let config = json!({
        "architectures": [class], "model_type": kind, "hidden_act": "silu", "torch_dtype": "float16",
        "hidden_size": model.width, "intermediate_size": model.feed_forward, "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads, "head_dim": model.head_width,
        "vocab_size": model.vocabulary, "max_position_embeddings": model.context_max,
        "rms_norm_eps": model.norm_epsilon, "rope_theta": model.rope_base, "rope_scaling": scaling,
        "tie_word_embeddings": model.tied_embeddings, "attention_bias": model.attention_bias,
        "bos_token_id": model.bos_token, "eos_token_id": model.eos_tokens,
    });
    config.to_string()
}

/// A tensor on its way from one file to the other.
struct Moved<'a> {
    name: String,
    entry: &'a TensorEntry,
    /// The width of heads whose rows change places.
    unpaired: Option<usize>,
}

fn weights(from: &ModelFiles, hub: &Model, path: &Path) -> Result<(), FullPrecisionError> {
    let moved = moved(from, hub)?;
    let failed = |error| FullPrecisionError::Write { path: path.to_path_buf(), error };
    let mut source = from.source()?;
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    out.write_all(&header(&moved)).map_err(failed)?;
    let mut values = Vec::new();
    for Moved { name, entry, unpaired } in &moved {
        let bytes = source.tensor(entry).map_err(|error| FullPrecisionError::Source { name: name.clone(), error })?;
        values.clear();
        if !quant::dequantise(entry.dtype, &bytes, &mut values) {
            return Err(StageError::Type { name: entry.name.clone(), dtype: entry.dtype }.into());
        }
        let rows = entry.shape[0] as usize;
        let width = values.len() / rows;
        for row in 0..rows {
            let row = unpaired.map_or(row, |head| paired_row(row, head));
            let halves = values[row * width..][..width].iter().map(|v| f16::from_f32(*v).to_le_bytes());
            out.write_all(halves.collect::<Vec<_>>().as_flattened()).map_err(failed)?;
        }
    }
    out.flush().map_err(failed)
}

/// Every tensor under its new name, in the order of the new names.
fn moved<'a>(from: &'a ModelFiles, hub: &Model) -> Result<Vec<Moved<'a>>, FullPrecisionError> {
    let whole = StagePart::whole(from.model.layers);
    let mut moved = Vec::new();
    for wanted in arch::wanted(&from.model, &from.tensors, &whole)? {
        use LayerRole::{Key, KeyBias, Query, QueryBias};
        if wanted.role == Role::Head && hub.tied_embeddings {
            continue;
        }
        let rotates = matches!(wanted.role, Role::Layer(_, Query | Key | QueryBias | KeyBias));
        let unpaired = (rotates && !from.model.rope_half_split).then_some(hub.head_width as usize);
        moved.push(Moved { name: arch::tensor_name(hub, wanted.role), entry: wanted.entry, unpaired });
    }
    moved.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(moved)
}

/// Where the row that stands at `row` among half-split pairs is stored among neighbouring ones.
fn paired_row(row: usize, head: usize) -> usize {
    let at = row % head;
    row - at + at % (head / 2) * 2 + at / (head / 2)
}

fn header(moved: &[Moved]) -> Vec<u8> {
    let mut fields = Map::new();
    fields.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut end = 0;
    for Moved { name, entry, .. } in moved {
        let start = end;
        end += entry.shape.iter().product::<u64>() * Dtype::F16.block_bytes();
        let field = json!({"dtype": Dtype::F16.name(), "shape": entry.shape, "data_offsets": [start, end]});
        fields.insert(name.clone(), field);
    }
    let mut text = Value::Object(fields).to_string();
    let padding = text.len().next_multiple_of(HEADER_ALIGNMENT) - text.len();
    text.push_str(&" ".repeat(padding));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
