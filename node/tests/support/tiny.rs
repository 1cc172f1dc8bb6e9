//! A tiny Llama with random weights, written as a folder that can be published: config, tokenizer, safetensors.
//!
//! Not a model that says anything; only that the same ids come out wherever its layers are. Invariant: the same seed
//! writes the same bytes.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

/// Layers of the tiny model.
pub const LAYERS: u32 = 6;
const WIDTH: usize = 64;
const FEED_FORWARD: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCABULARY: usize = 256;
const CONTEXT: usize = 1024;

/// Writes the model into `folder`.
pub fn write(folder: &Path, seed: u64) {
    fs::write(folder.join("config.json"), config().to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(folder.join("model.safetensors"), weights(seed)).unwrap();
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": WIDTH, "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": true, "attention_bias": false, "torch_dtype": "float32",
    })
}

/// One token a byte, as GPT-2 spells bytes.
fn tokenizer() -> Value {
    let mut vocabulary = Map::new();
    let mut unprintable = 256u32;
    for byte in 0..=255u32 {
        let is_printable = (33..=126).contains(&byte) || (161..=172).contains(&byte) || byte >= 174;
        let spelled = if is_printable { byte } else { unprintable };
        unprintable += u32::from(!is_printable);
        vocabulary.insert(char::from_u32(spelled).unwrap().to_string(), json!(byte));
    }
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

fn weights(seed: u64) -> Vec<u8> {
    let mut header = Map::new();
    let mut data: Vec<u8> = Vec::new();
    let mut state = seed | 1;
    let mut tensor = |name: String, shape: &[usize], scale: f32, shift: f32| {
        let begin = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let uniform = (state >> 40) as f32 / (1u32 << 24) as f32 * 2.0 - 1.0;
            data.extend_from_slice(&(uniform * scale + shift).to_le_bytes());
        }
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] }));
    };
    let kv_width = WIDTH / HEADS * KV_HEADS;
    tensor("model.embed_tokens.weight".into(), &[VOCABULARY, WIDTH], 1.0, 0.0);
    for layer in 0..LAYERS {
        let mut part = |name: &str, shape: &[usize], scale: f32, shift: f32| {
            tensor(format!("model.layers.{layer}.{name}.weight"), shape, scale, shift);
        };
        part("input_layernorm", &[WIDTH], 0.1, 1.0);
        part("self_attn.q_proj", &[WIDTH, WIDTH], 0.3, 0.0);
        part("self_attn.k_proj", &[kv_width, WIDTH], 0.3, 0.0);
        part("self_attn.v_proj", &[kv_width, WIDTH], 0.3, 0.0);
        part("self_attn.o_proj", &[WIDTH, WIDTH], 0.3, 0.0);
        part("post_attention_layernorm", &[WIDTH], 0.1, 1.0);
        part("mlp.gate_proj", &[FEED_FORWARD, WIDTH], 0.3, 0.0);
        part("mlp.up_proj", &[FEED_FORWARD, WIDTH], 0.3, 0.0);
        part("mlp.down_proj", &[WIDTH, FEED_FORWARD], 0.3, 0.0);
    }
    tensor("model.norm.weight".into(), &[WIDTH], 0.1, 1.0);
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}
