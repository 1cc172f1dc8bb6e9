//! Computes reference logits of small random models with candle-transformers, which shares no code with the engine's block.
//!
//!     cargo run --manifest-path scripts/reference-logits/Cargo.toml -- compute/src/references
//!
//! Writes one JSON file a family: its `config.json`, a prompt, and the logits after some of its prefixes. The weights are
//! not kept: `values` makes them from tensor names, and so does the engine's test. Not part of any build of Cairn.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, llama, mistral, phi3, qwen3, qwen3_moe, smol::smollm3};
use serde_json::{Value, json};
use std::collections::HashMap;

const WIDTH: usize = 64;
const FEED_FORWARD: usize = 96;
const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCABULARY: usize = 50;
const EXPERTS: usize = 8;
const EXPERT_WIDTH: usize = 32;
const CONTEXT: usize = 512;
const PREFIXES: [usize; 4] = [1, 20, 65, 96];

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).expect("usage: reference-logits FOLDER");
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let cases = [
        ("llama3", with(base("llama", 16), "rope_scaling", llama3)),
        ("qwen3", base("qwen3", 32)),
        ("mistral", with(base("mistral", 16), "sliding_window", json!(24))),
        ("gemma3", gemma3_base()),
        ("phi3", with(base("phi3", 16), "partial_rotary_factor", json!(0.75))),
        ("smollm3", with(base("smollm3", 16), "no_rope_layer_interval", json!(2))),
        ("qwen3moe", qwen3_moe_base()),
    ];
    for (name, config) in cases {
        let logits = PREFIXES.map(|n| logits(&config, &prompt()[..n]).expect("computes"));
        let by = "candle-transformers 0.11.1";
        let file = json!({"by": by, "config": config, "ids": prompt(), "prefixes": PREFIXES, "logits": logits});
        std::fs::write(format!("{folder}/{name}.json"), format!("{file}\n"))?;
    }
    Ok(())
}

fn base(kind: &str, head_width: usize) -> Value {
    json!({"model_type": kind, "hidden_size": WIDTH, "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": head_width, "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"})
}

/// Its configuration has other names for two attributes, and a head that is the embedding.
fn gemma3_base() -> Value {
    let mut config = base("gemma3_text", 32);
    config.as_object_mut().expect("an object").remove("hidden_act");
    for (name, value) in [
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("sliding_window", json!(24)),
        ("sliding_window_pattern", json!(3)),
        ("rope_theta", json!(100000.0)),
        ("rope_local_base_freq", json!(1000.0)),
        ("query_pre_attn_scalar", json!(32)),
        ("tie_word_embeddings", json!(true)),
    ] {
        config[name] = value;
    }
    config
}

fn qwen3_moe_base() -> Value {
    let mut config = base("qwen3_moe", 32);
    for (name, value) in [
        ("moe_intermediate_size", json!(EXPERT_WIDTH)),
        ("num_experts", json!(EXPERTS)),
        ("num_experts_per_tok", json!(3)),
        ("norm_topk_prob", json!(true)),
        ("decoder_sparse_step", json!(1)),
        ("mlp_only_layers", json!([])),
    ] {
        config[name] = value;
    }
    config
}

fn with(mut config: Value, name: &str, value: Value) -> Value {
    config[name] = value;
    config
}

fn prompt() -> Vec<u32> {
    (0..*PREFIXES.last().expect("some") as u32).map(|i| (i * 7 + i * i * 3) % VOCABULARY as u32).collect()
}

/// Logits after the last of `ids`.
fn logits(config: &Value, ids: &[u32]) -> Result<Vec<f32>> {
    let (device, kind) = (Device::Cpu, config["model_type"].as_str().expect("a kind"));
    let weights = VarBuilder::from_tensors(weights(config, kind)?, DType::F32, &device);
    let input = Tensor::new(ids, &device)?.unsqueeze(0)?;
    let logits = match kind {
        "llama" => {
            let config: llama::LlamaConfig = serde_json::from_value(config.clone()).expect("a config");
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &device)?;
            llama::Llama::load(weights, &config)?.forward(&input, 0, &mut cache)?
        }
        "qwen3" => qwen3::ModelForCausalLM::new(&qwen3_config(config), weights)?.forward(&input, 0)?,
        "qwen3_moe" => qwen3_moe::ModelForCausalLM::new(&qwen3_moe_config(config), weights)?.forward(&input, 0)?,
        // Token by token, since candle 0.11.1 takes prompts only where there is one key and value head.
        "gemma3_text" => {
            let mut model = gemma3::Model::new(false, &gemma3_config(config), weights)?;
            let step = |i: usize| model.forward(&input.narrow(1, i, 1)?, i);
            (0..ids.len()).map(step).last().expect("a token")?
        }
        "phi3" => {
            let config: phi3::Config = serde_json::from_value(config.clone()).expect("a config");
            phi3::Model::new(&config, weights)?.forward(&input, 0)?
        }
        "smollm3" => {
            let config = with(config.clone(), "tie_word_embeddings", json!(false));
            let config: smollm3::Config = serde_json::from_value(config).expect("a config");
            smollm3::ModelForCausalLM::new(&config, weights)?.forward(&input, 0)?
        }
        _ => mistral::Model::new(&mistral_config(config), weights)?.forward(&input, 0)?,
    };
    logits.flatten_all()?.to_vec1()
}

fn number(config: &Value, name: &str) -> usize {
    config[name].as_u64().expect("a number") as usize
}

fn qwen3_config(config: &Value) -> qwen3::Config {
    qwen3::Config {
        vocab_size: VOCABULARY,
        hidden_size: WIDTH,
        intermediate_size: FEED_FORWARD,
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        head_dim: number(config, "head_dim"),
        attention_bias: false,
        num_key_value_heads: KV_HEADS,
        max_position_embeddings: CONTEXT,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: 10000.0,
        rms_norm_eps: 1e-5,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    }
}

fn qwen3_moe_config(config: &Value) -> qwen3_moe::Config {
    qwen3_moe::Config {
        vocab_size: VOCABULARY,
        hidden_size: WIDTH,
        intermediate_size: FEED_FORWARD,
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        head_dim: number(config, "head_dim"),
        attention_bias: false,
        num_key_value_heads: KV_HEADS,
        max_position_embeddings: CONTEXT,
        sliding_window: None,
        max_window_layers: 0,
        tie_word_embeddings: false,
        rope_theta: 10000.0,
        rms_norm_eps: 1e-5,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
        decoder_sparse_step: 1,
        moe_intermediate_size: EXPERT_WIDTH,
        num_experts_per_tok: number(config, "num_experts_per_tok"),
        num_experts: EXPERTS,
        norm_topk_prob: true,
    }
}

fn gemma3_config(config: &Value) -> gemma3::Config {
    gemma3::Config {
        attention_bias: false,
        head_dim: number(config, "head_dim"),
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: WIDTH,
        intermediate_size: FEED_FORWARD,
        num_attention_heads: HEADS,
        num_hidden_layers: LAYERS,
        num_key_value_heads: KV_HEADS,
        rms_norm_eps: 1e-5,
        rope_theta: 100000.0,
        rope_local_base_freq: 1000.0,
        vocab_size: VOCABULARY,
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: number(config, "query_pre_attn_scalar"),
        // The length of its cache, which is what a token sees when it comes alone.
        sliding_window: number(config, "sliding_window"),
        sliding_window_pattern: number(config, "sliding_window_pattern"),
        max_position_embeddings: CONTEXT,
    }
}

fn mistral_config(config: &Value) -> mistral::Config {
    mistral::Config {
        vocab_size: VOCABULARY,
        hidden_size: WIDTH,
        intermediate_size: FEED_FORWARD,
        num_hidden_layers: LAYERS,
        num_attention_heads: HEADS,
        head_dim: Some(number(config, "head_dim")),
        num_key_value_heads: KV_HEADS,
        hidden_act: Activation::Silu,
        max_position_embeddings: CONTEXT,
        rms_norm_eps: 1e-5,
        rope_theta: 10000.0,
        // candle lets a position see this many before it; a window is that and the position itself.
        sliding_window: Some(number(config, "sliding_window") - 1),
        use_flash_attn: false,
    }
}

/// Every tensor, in the Hub's names.
fn weights(config: &Value, kind: &str) -> Result<HashMap<String, Tensor>> {
    let d = number(config, "head_dim");
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![VOCABULARY, WIDTH]),
        ("model.norm.weight".into(), vec![WIDTH]),
        ("lm_head.weight".into(), vec![VOCABULARY, WIDTH]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.into()));
        };
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
        add("self_attn.o_proj", &[WIDTH, HEADS * d]);
        if kind == "phi3" {
            add("self_attn.qkv_proj", &[(HEADS + 2 * KV_HEADS) * d, WIDTH]);
            add("mlp.gate_up_proj", &[2 * FEED_FORWARD, WIDTH]);
        } else {
            add("self_attn.q_proj", &[HEADS * d, WIDTH]);
            add("self_attn.k_proj", &[KV_HEADS * d, WIDTH]);
            add("self_attn.v_proj", &[KV_HEADS * d, WIDTH]);
            add("mlp.gate_proj", &[FEED_FORWARD, WIDTH]);
            add("mlp.up_proj", &[FEED_FORWARD, WIDTH]);
        }
        add("mlp.down_proj", &[WIDTH, FEED_FORWARD]);
        if ["qwen3", "qwen3_moe", "gemma3_text"].contains(&kind) {
            add("self_attn.q_norm", &[d]);
            add("self_attn.k_norm", &[d]);
        }
        if kind == "gemma3_text" {
            add("pre_feedforward_layernorm", &[WIDTH]);
            add("post_feedforward_layernorm", &[WIDTH]);
        }
        if kind == "qwen3_moe" {
            add("mlp.gate", &[EXPERTS, WIDTH]);
            for expert in 0..EXPERTS {
                add(&format!("mlp.experts.{expert}.gate_proj"), &[EXPERT_WIDTH, WIDTH]);
                add(&format!("mlp.experts.{expert}.up_proj"), &[EXPERT_WIDTH, WIDTH]);
                add(&format!("mlp.experts.{expert}.down_proj"), &[WIDTH, EXPERT_WIDTH]);
            }
        }
    }
    shapes
        .into_iter()
        .map(|(name, shape)| Ok((name.clone(), Tensor::from_vec(values(&name, &shape), shape, &Device::Cpu)?)))
        .collect()
}

/// Values of a tensor from its name: FNV-1a, then splitmix64 of that plus the index; sixteen bits, so that every
/// language makes the same floats.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let (centre, spread) = match (shape.len(), name) {
        (1, _) => (1.0, 0.5),
        (_, "model.embed_tokens.weight") => (0.0, 1.0),
        _ => (0.0, 0.25),
    };
    let unit = |i: usize| (splitmix64(seed.wrapping_add(i as u64)) >> 48) as f32 / 32768.0 - 1.0;
    (0..shape.iter().product()).map(|i| centre + spread * unit(i)).collect()
}

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
