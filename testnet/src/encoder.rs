//! A small BERT with random weights, as a folder that the sentence-transformers library would read. Not a model whose
//! vectors mean anything; only that they are the same wherever they are made. Invariant: the same layers write the same bytes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Map, Value, json};

/// Values of its vectors.
pub const ENCODER_WIDTH: usize = 128;
const FEED_FORWARD: usize = 512;
const HEADS: usize = 4;
const POSITIONS: usize = 64;
const SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Writes the model into `folder` and returns where it is.
pub fn encoder_model(folder: &Path, layers: usize) -> Result<PathBuf> {
    let path = folder.join("encoder");
    fs::create_dir_all(path.join("1_Pooling"))?;
    let modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")];
    let module = |(path, kind)| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let vocabulary = vocabulary();
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": ENCODER_WIDTH,
        "num_attention_heads": HEADS, "num_hidden_layers": layers, "intermediate_size": FEED_FORWARD,
        "vocab_size": vocabulary.len(), "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-12,
    });
    for (name, value) in [
        ("modules.json", Value::Array(modules.map(module).to_vec())),
        ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true})),
        ("sentence_bert_config.json", json!({"max_seq_length": POSITIONS})),
        ("config.json", config),
        ("tokenizer.json", tokenizer(vocabulary)),
    ] {
        fs::write(path.join(name), value.to_string())?;
    }
    let vocabulary = SPECIALS.len() + 2 * 26;
    fs::write(path.join("model.safetensors"), weights(layers, vocabulary))?;
    Ok(path)
}

/// Special tokens, letters, and letters inside words.
fn vocabulary() -> Map<String, Value> {
    let letters = ('a'..='z').map(String::from).chain(('a'..='z').map(|letter| format!("##{letter}")));
    SPECIALS.map(String::from).into_iter().chain(letters).zip(0..).map(|(token, id)| (token, json!(id))).collect()
}

fn tokenizer(vocabulary: Map<String, Value>) -> Value {
    let special = |id: usize| {
        json!({"id": id, "content": SPECIALS[id], "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": (0..SPECIALS.len()).map(special).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
}

/// Uniform numbers around zero, norms around one.
struct Tensors {
    header: Map<String, Value>,
    data: Vec<u8>,
    state: u64,
}

impl Tensors {
    fn add(&mut self, name: &str, shape: &[usize]) {
        let begin = self.data.len();
        let shift = if name.contains("LayerNorm.weight") { 1.0 } else { 0.0 };
        for _ in 0..shape.iter().product::<usize>() {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let uniform = (self.state >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            self.data.extend_from_slice(&(uniform * 0.15 + shift).to_le_bytes());
        }
        let offsets = [begin, self.data.len()];
        self.header.insert(name.into(), json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    }

    fn linear(&mut self, name: &str, rows: usize, k: usize) {
        self.add(&format!("{name}.weight"), &[rows, k]);
        self.add(&format!("{name}.bias"), &[rows]);
    }

    fn norm(&mut self, name: &str) {
        self.add(&format!("{name}.LayerNorm.weight"), &[ENCODER_WIDTH]);
        self.add(&format!("{name}.LayerNorm.bias"), &[ENCODER_WIDTH]);
    }
}

fn weights(layers: usize, vocabulary: usize) -> Vec<u8> {
    let mut tensors = Tensors { header: Map::new(), data: Vec::new(), state: 0x1234_5678_9abc_def1 };
    for (table, rows) in [("word", vocabulary), ("position", POSITIONS), ("token_type", 2)] {
        tensors.add(&format!("embeddings.{table}_embeddings.weight"), &[rows, ENCODER_WIDTH]);
    }
    tensors.norm("embeddings");
    for layer in 0..layers {
        let part = |name: &str| format!("encoder.layer.{layer}.{name}");
        for name in ["query", "key", "value"] {
            tensors.linear(&part(&format!("attention.self.{name}")), ENCODER_WIDTH, ENCODER_WIDTH);
        }
        tensors.linear(&part("attention.output.dense"), ENCODER_WIDTH, ENCODER_WIDTH);
        tensors.norm(&part("attention.output"));
        tensors.linear(&part("intermediate.dense"), FEED_FORWARD, ENCODER_WIDTH);
        tensors.linear(&part("output.dense"), ENCODER_WIDTH, FEED_FORWARD);
        tensors.norm(&part("output"));
    }
    let header = Value::Object(tensors.header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&tensors.data);
    file
}
