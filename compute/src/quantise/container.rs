//! The opening of a GGUF file: magic, metadata and the table of tensors. Written here, read in `cairn_protocol::gguf`.

use super::Target;
use cairn_protocol::{
    dtype::Dtype,
    manifest::{Model, Naming, RopeScaling},
};

/// Where tensors begin and end, unless metadata says otherwise.
pub(super) const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;
/// The version of ggml's block layouts.
const QUANTISATION_VERSION: u32 = 2;
const FILE_TYPE: &str = "general.file_type";

/// llama.cpp's number for files that are mostly of one type.
fn file_type(target: Target) -> u32 {
    match target.dtype() {
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q5_0 => 8,
        Dtype::Q5_1 => 9,
        Dtype::Q4_K => 14,
        Dtype::Q5_K => 16,
        Dtype::Q6_K => 18,
        _ => 7,
    }
}

/// The model under the names of GGUF files, or why it has none.
pub(super) fn gguf_model(model: &Model) -> Result<Model, String> {
    let family = model.architecture.split('+').next().unwrap_or_default();
    let (name, is_half_split) = match family {
        "llama" => ("llama", false),
        "mistral" if model.window.is_none() => ("llama", false),
        "qwen2" => ("qwen2", true),
        "qwen3" => ("qwen3", true),
        "mistral" => return Err("it has no place for Mistral's window".to_string()),
        other => return Err(format!("what becomes of {other} there is not known here")),
    };
    let is_served = matches!(model.rope_scaling, None | Some(RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. }));
    if !is_served {
        return Err("its rope scaling has no name there".to_string());
    }
    let (naming, architecture) = (Naming::Gguf, name.to_string());
    Ok(Model { naming, architecture, rope_half_split: is_half_split, ..model.clone() })
}

/// Entries of metadata as bytes, and how many.
#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    count: u64,
}

impl Entries {
    fn open(&mut self, key: &str, kind: u32) {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.open(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f64) {
        self.open(key, 6);
        self.bytes.extend((value as f32).to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.open(key, 8);
        put_text(&mut self.bytes, value);
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Metadata of a model that had none: its shape, and which ids end a text.
pub(super) fn made(model: &Model, target: Target) -> Vec<u8> {
    let mut entries = Entries::default();
    let architecture = model.architecture.as_str();
    let key = |name: &str| format!("{architecture}.{name}");
    entries.text("general.architecture", architecture);
    entries.u32("general.quantization_version", QUANTISATION_VERSION);
    entries.u32(FILE_TYPE, file_type(target));
    entries.u32(&key("block_count"), model.layers);
    entries.u32(&key("context_length"), model.context_max);
    entries.u32(&key("embedding_length"), model.width);
    entries.u32(&key("feed_forward_length"), model.feed_forward);
    entries.u32(&key("attention.head_count"), model.heads);
    entries.u32(&key("attention.head_count_kv"), model.kv_heads);
    entries.u32(&key("attention.key_length"), model.head_width);
    entries.u32(&key("attention.value_length"), model.head_width);
    entries.f32(&key("attention.layer_norm_rms_epsilon"), model.norm_epsilon);
    entries.u32(&key("rope.dimension_count"), model.head_width);
    entries.f32(&key("rope.freq_base"), model.rope_base);
    entries.u32(&key("vocab_size"), model.vocabulary);
    if let Some(RopeScaling::Linear { factor }) = model.rope_scaling {
        entries.text(&key("rope.scaling.type"), "linear");
        entries.f32(&key("rope.scaling.factor"), factor);
    }
    let ends = [
        ("bos", model.bos_token),
        ("eos", model.eos_tokens.first().copied()),
        ("eot", model.eos_tokens.get(1).copied()),
    ];
    for (name, id) in ends {
        if let Some(id) = id {
            entries.u32(&format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    opening(entries.count, &entries.bytes)
}

/// Magic, version, a place for the number of tensors, the number of entries, the entries.
fn opening(count: u64, entries: &[u8]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(entries);
    out
}

/// The metadata of another file byte by byte, but for its statement of what type it mostly is.
pub(super) fn copied(bytes: &[u8], target: Target) -> Option<Vec<u8>> {
    let mut at = Cursor { bytes, at: 16 };
    let entries = at.number(8)?;
    let mut stated = None;
    for _ in 0..entries {
        let length = at.number(8)?;
        let key = at.at;
        at.skip(length)?;
        let is_file_type = bytes.get(key..at.at)? == FILE_TYPE.as_bytes();
        let kind = at.number(4)?;
        if is_file_type && kind == 4 {
            stated = Some(at.at);
        }
        at.skip_value(kind)?;
    }
    let mut out = bytes.get(..at.at)?.to_vec();
    if let Some(place) = stated {
        out.get_mut(place..place + 4)?.copy_from_slice(&file_type(target).to_le_bytes());
    }
    Some(out)
}

/// A whole opening: `metadata` as [`made`] or [`copied`], then the table of tensors, then zeros up to the first of them.
/// A tensor is its name, its dimensions (outermost first), its type and its bytes.
pub(super) fn header<'a>(
    mut metadata: Vec<u8>,
    tensors: impl Iterator<Item = (&'a str, &'a [u64], Dtype, u64)>,
    alignment: u64,
) -> Vec<u8> {
    let (mut offset, mut count) = (0u64, 0u64);
    for (name, shape, dtype, bytes) in tensors {
        put_text(&mut metadata, name);
        metadata.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|n| metadata.extend(n.to_le_bytes()));
        metadata.extend((dtype.number() - 1).to_le_bytes());
        metadata.extend(offset.to_le_bytes());
        offset += bytes.next_multiple_of(alignment);
        count += 1;
    }
    metadata[8..16].copy_from_slice(&count.to_le_bytes());
    metadata.resize(metadata.len().next_multiple_of(alignment as usize), 0);
    metadata
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
