//! Real files of tiny models: what is read from them is what was written, and what is broken is refused.

use super::*;
use crate::{
    bench::{self, BenchError, BenchOptions},
    full_precision::{self, FullPrecisionError},
    tiny::{self, Tiny},
};
use cairn_protocol::{dtype::Dtype, manifest::Naming};
use std::{collections::BTreeMap, fs};
use tempfile::TempDir;

/// Writes a folder of safetensors with its `config.json`, the tensors over two files.
pub(crate) fn folder(tiny: &Tiny) -> TempDir {
    let dir = tempfile::tempdir().expect("folder");
    let m = &tiny.model;
    let config = serde_json::json!({
        "model_type": m.architecture, "hidden_size": m.width, "intermediate_size": m.feed_forward,
        "num_hidden_layers": m.layers, "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads,
        "head_dim": m.head_width, "vocab_size": m.vocabulary, "max_position_embeddings": m.context_max,
        "rms_norm_eps": m.norm_epsilon, "rope_theta": m.rope_base, "bos_token_id": m.bos_token, "eos_token_id": m.eos_tokens,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
    for (i, half) in tiny.tensors.chunks(tiny.tensors.len().div_ceil(2)).enumerate() {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for t in half {
            let from = data.len();
            data.extend(&tiny.bytes[&t.name]);
            let info =
                serde_json::json!({"dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [from, data.len()]});
            header.insert(t.name.clone(), info);
        }
        let header = serde_json::Value::Object(header).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        fs::write(dir.path().join(format!("model-{i}.safetensors")), bytes).expect("written");
    }
    dir
}

/// A GGUF file's bytes, from the format's description.
fn gguf_bytes(tiny: &Tiny) -> Vec<u8> {
    let m = &tiny.model;
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let key = |name: &str| text(&format!("{}.{name}", m.architecture));
    let number = |name: &str, n: u32| [key(name), 4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat();
    let real =
        |name: &str, x: f64| [key(name), 6u32.to_le_bytes().to_vec(), (x as f32).to_le_bytes().to_vec()].concat();
    let pieces: Vec<u8> = (0..m.vocabulary).flat_map(|i| text(&format!("piece {i}"))).collect();
    let metadata = [
        [text("general.architecture"), 8u32.to_le_bytes().to_vec(), text(&m.architecture)].concat(),
        [text("tokenizer.ggml.model"), 8u32.to_le_bytes().to_vec(), text("gpt2")].concat(),
        [text("tokenizer.ggml.pre"), 8u32.to_le_bytes().to_vec(), text("smollm")].concat(),
        [text("tokenizer.ggml.merges"), [9u32, 8, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect()].concat(),
        [
            text("tokenizer.ggml.tokens"),
            9u32.to_le_bytes().to_vec(),
            8u32.to_le_bytes().to_vec(),
            u64::from(m.vocabulary).to_le_bytes().to_vec(),
            pieces,
        ]
        .concat(),
        number("block_count", m.layers),
        number("embedding_length", m.width),
        number("feed_forward_length", m.feed_forward),
        number("attention.head_count", m.heads),
        number("attention.head_count_kv", m.kv_heads),
        number("context_length", m.context_max),
        real("attention.layer_norm_rms_epsilon", m.norm_epsilon),
        real("rope.freq_base", m.rope_base),
    ];
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tiny.tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    bytes.extend(metadata.concat());
    let mut data: Vec<u8> = Vec::new();
    for t in &tiny.tensors {
        bytes.extend(text(&t.name));
        bytes.extend((t.shape.len() as u32).to_le_bytes());
        t.shape.iter().rev().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend((t.dtype.number() - 1).to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(&tiny.bytes[&t.name]);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    [bytes, data].concat()
}

pub(crate) fn gguf_file(tiny: &Tiny) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    fs::write(&path, gguf_bytes(tiny)).expect("written");
    (dir, path)
}

pub(crate) fn named_llama() -> Model {
    Model { naming: Naming::Gguf, rope_half_split: false, ..tiny::llama() }
}

pub(crate) fn read(files: &ModelFiles) -> BTreeMap<String, Vec<u8>> {
    let mut source = files.source().expect("opens");
    files.tensors.iter().map(|t| (t.name.clone(), source.tensor(t).expect("reads"))).collect()
}

#[test]
fn a_folder_of_safetensors_gives_the_model_and_its_bytes() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let tiny = Tiny::new(tiny::llama(), 41, |_| dtype);
        let dir = folder(&tiny);
        let files = ModelFiles::open(dir.path()).expect("opens");
        assert_eq!(files.model, tiny.model);
        assert_eq!(read(&files), tiny.bytes);
    }
}

#[test]
fn a_gguf_file_gives_the_model_and_its_bytes() {
    for (model, dtype) in [(named_llama(), Dtype::Q4_1), (tiny::qwen2(), Dtype::Q5_0)] {
        let tiny = Tiny::new(model, 42, |_| dtype);
        let (_dir, path) = gguf_file(&tiny);
        let files = ModelFiles::open(&path).expect("opens");
        assert_eq!((files.model.layers, files.model.attention_bias), (3, tiny.model.attention_bias));
        assert_eq!(read(&files), tiny.bytes);
    }
}

#[test]
fn what_is_no_model_is_refused_with_its_path() {
    let dir = tempfile::tempdir().expect("folder");
    assert!(matches!(ModelFiles::open(dir.path()), Err(FilesError::NoModel(_))));
    assert!(matches!(ModelFiles::open(&dir.path().join("none")), Err(FilesError::Io { .. })));
    let path = dir.path().join("x.gguf");
    let whole = gguf_bytes(&Tiny::new(named_llama(), 42, |_| Dtype::Q4_1));
    for cut in [0, 3, 20, 100, 900] {
        fs::write(&path, &whole[..cut]).expect("written");
        assert!(matches!(ModelFiles::open(&path), Err(FilesError::Header { .. })), "cut at {cut}");
    }
    fs::write(&path, &whole[..whole.len() - 64]).expect("written");
    assert!(ModelFiles::open(&path).is_err(), "its last tensor is past the end");
}

/// A model's values as its files give them, for the slow reference.
pub(crate) fn tiny_of(files: &ModelFiles) -> Tiny {
    let bytes = read(files);
    let mut values = BTreeMap::new();
    for t in &files.tensors {
        let mut of = Vec::new();
        assert!(crate::quant::dequantise(t.dtype, &bytes[&t.name], &mut of));
        values.insert(t.name.clone(), of);
    }
    Tiny { model: files.model.clone(), tensors: files.tensors.clone(), bytes, values, kept: |x| x }
}

#[test]
fn a_model_in_full_precision_computes_what_the_quantised_one_does() {
    for (model, dtype) in [(named_llama(), Dtype::Q4_1), (tiny::qwen2(), Dtype::Q5_0)] {
        let (dir, path) = gguf_file(&Tiny::new(model, 45, |_| dtype));
        let folder = dir.path().join("full");
        full_precision::write(&path, &folder).expect("written");
        let (was, is) = (ModelFiles::open(&path).expect("opens"), ModelFiles::open(&folder).expect("opens"));
        assert!(is.tensors.iter().all(|t| t.dtype == Dtype::F16) && is.tensors.len() == was.tensors.len());
        let kept = Model { naming: Naming::Gguf, rope_half_split: was.model.rope_half_split, ..is.model.clone() };
        assert_eq!(kept, was.model);
        let (_, want) = tiny_of(&was).reference(&[3, 1, 4, 1, 5]);
        let (_, got) = tiny_of(&is).reference(&[3, 1, 4, 1, 5]);
        let worst = want.iter().zip(&got).map(|(w, g)| (w - g).abs()).fold(0.0, f64::max);
        assert!(want.len() == got.len() && worst < 0.02, "{dtype}: {worst}");
    }
}

#[test]
fn full_precision_is_not_made_of_what_is_no_gguf() {
    let dir = folder(&Tiny::new(tiny::llama(), 46, |_| Dtype::F32));
    let to = dir.path().join("full");
    assert!(matches!(full_precision::write(dir.path(), &to), Err(FullPrecisionError::Files(_))));
    assert!(!to.exists());
}

#[test]
fn a_benchmark_measures_what_it_is_asked() {
    let wide = Model { width: 256, head_width: 64, feed_forward: 256, ..named_llama() };
    let (_dir, path) = gguf_file(&Tiny::new(wide, 44, |_| Dtype::Q3_K));
    let options =
        BenchOptions { prompt_tokens: 140, decode_tokens: 3, users: 2, threads: 1, repeat: 2, ..Default::default() };
    let report = bench::run(&path, &options).expect("measures");
    assert!(report.prefill_min <= report.prefill_tokens_per_s && report.prefill_tokens_per_s <= report.prefill_max);
    assert!(0.0 < report.decode_min && report.decode_min <= report.decode_max);
    assert!(report.step_bytes <= report.weights_bytes && report.decode_bound_tokens_per_s > 0.0);
    assert_eq!((report.threads, report.users, report.planes), (1, 2, 2));
    assert_eq!(report.conversions, ["Q3_K as Q8_0 (22 tensors, rounded)"]);
    for bad in [
        BenchOptions { prompt_tokens: 0, ..options },
        BenchOptions { users: 0, ..options },
        BenchOptions { users: 129, ..options },
        BenchOptions { prompt_tokens: 512, ..options },
        BenchOptions { decode_tokens: usize::MAX, ..options },
        BenchOptions { repeat: 0, ..options },
    ] {
        assert!(matches!(bench::run(&path, &bad), Err(BenchError::Options(_))), "{bad:?}");
    }
}

#[test]
fn windows_are_foretold_as_the_slow_reference_foretells_them() {
    let tiny = Tiny::new(named_llama(), 47, |_| Dtype::Q5_1);
    let (_dir, path) = gguf_file(&tiny);
    // Longer than a pass, so that scores of two passes come together.
    let windows: Vec<Vec<u32>> = (0..2).map(|w| (0..140).map(|i| (i * 7 + w * 3) % 50).collect()).collect();
    let mut total = 0.0;
    for ids in &windows {
        for i in 70..139 {
            let (_, logits) = tiny.reference(&ids[..=i]);
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            total += sum.ln() - logits[ids[i + 1] as usize];
        }
    }
    let report = bench::of_windows(&path, &windows, &BenchOptions::default()).expect("measured");
    let want = (total / 138.0).exp();
    assert_eq!((report.scored, report.windows, report.window), (138, 2, 140));
    assert!((report.perplexity / want - 1.0).abs() < 2e-3, "{} and {want}", report.perplexity);
}

#[test]
fn a_text_without_a_whole_window_is_not_measured() {
    let (_dir, path) = gguf_file(&Tiny::new(named_llama(), 47, |_| Dtype::Q5_1));
    let refused = bench::perplexity(&path, "some text", 8, 1, &BenchOptions::default());
    assert!(matches!(refused, Err(BenchError::Options(why)) if why.contains("the text")));
    let short = bench::perplexity(&path, "some text", 3, 1, &BenchOptions::default());
    assert!(matches!(short, Err(BenchError::Options(why)) if why.contains("too short")));
}
