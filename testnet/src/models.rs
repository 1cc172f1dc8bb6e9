//! Models for tests: the built-in one, and real ones that `scripts/fetch-model` brings.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// SHA-256 of the F16 weights that SmolLM2's Q4_1 file stands for, as an independent dequantiser (`gguf` and numpy) wrote
/// them.
const SMOLLM2_F16: &str = "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904";

/// Writes the built-in model into `folder` and returns where it is.
pub fn tiny_model(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("tiny");
    cairn_node::builtin::write(&path).context("write the built-in model")?;
    Ok(path)
}

/// Writes a PEFT folder beside `model` (a folder of the Hub): random values of that rank for every matrix of every layer. The
/// same seed writes the same bytes.
pub fn random_adapter(model: &Path, folder: &Path, rank: u64, seed: u64) -> Result<PathBuf> {
    let config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json"))?)?;
    let number = |name: &str| config[name].as_u64().with_context(|| format!("{name} of config.json"));
    let (width, hidden, heads) = (number("hidden_size")?, number("intermediate_size")?, number("num_attention_heads")?);
    let head = config["head_dim"].as_u64().unwrap_or(width / heads);
    let (queries, keys) = (heads * head, number("num_key_value_heads")? * head);
    let matrices = [
        ("self_attn.q_proj", queries, width),
        ("self_attn.k_proj", keys, width),
        ("self_attn.v_proj", keys, width),
        ("self_attn.o_proj", width, queries),
        ("mlp.gate_proj", hidden, width),
        ("mlp.up_proj", hidden, width),
        ("mlp.down_proj", width, hidden),
    ];
    let (mut header, mut data, mut state) = (Map::new(), Vec::new(), seed | 1);
    for layer in 0..number("num_hidden_layers")? {
        for (matrix, rows, columns) in matrices {
            for (half, shape) in [("A", [rank, columns]), ("B", [rows, rank])] {
                let begin = data.len();
                for _ in 0..shape[0] * shape[1] {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let uniform = (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
                    data.extend_from_slice(&(uniform / (shape[1] as f32).sqrt()).to_le_bytes());
                }
                let name = format!("base_model.model.model.layers.{layer}.{matrix}.lora_{half}.weight");
                header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
            }
        }
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    let path = folder.join(format!("adapter-{rank}-{seed}"));
    std::fs::create_dir_all(&path)?;
    std::fs::write(path.join("adapter_model.safetensors"), bytes)?;
    let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "test/model", "r": rank,
        "lora_alpha": rank, "bias": "none", "target_modules": matrices.map(|(name, ..)| name)});
    std::fs::write(path.join("adapter_config.json"), config.to_string())?;
    Ok(path)
}

/// SmolLM2-135M-Instruct in full precision, written into `folder` from the Q4_1 file if that was fetched: 269 MB, held
/// against the hash of the reference. Missing files are treated as [`real_model`] does.
pub fn full_precision_model(folder: &Path) -> Result<Option<PathBuf>> {
    let Some(quantised) = real_model("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")? else { return Ok(None) };
    let path = folder.join("smollm2-f16");
    cairn_compute::full_precision::write(&quantised, &path).context("write the model in full precision")?;
    let weights = std::fs::read(path.join("model.safetensors"))?;
    let hash: String = Sha256::digest(&weights).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(hash == SMOLLM2_F16, "the weights are not those of the reference: {hash}");
    Ok(Some(path))
}

/// The folder of all-MiniLM-L6-v2, if it was fetched. Missing files are treated as [`real_model`] does.
pub fn minilm_model() -> Result<Option<PathBuf>> {
    let weights = real_model("minilm", "model.safetensors")?;
    Ok(weights.and_then(|file| file.parent().map(Path::to_path_buf)))
}

/// The file of a real model, if it was fetched. Says loudly when it was not, and fails where
/// `CAIRN_REQUIRE_MODELS` is set, as in CI.
pub fn real_model(name: &str, file: &str) -> Result<Option<PathBuf>> {
    let path = cache().join(name).join(file);
    if path.is_file() {
        return Ok(Some(path));
    }
    if std::env::var_os("CAIRN_REQUIRE_MODELS").is_some() {
        bail!("{} is missing: run scripts/fetch-model {name}", path.display());
    }
    eprintln!("NOT TESTED: {} is missing; run scripts/fetch-model {name} and test again", path.display());
    Ok(None)
}

fn cache() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("CAIRN_TEST_MODELS").unwrap_or_else(|| {
        let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
        cache.unwrap_or_default().join("cairn-test-models")
    })
}
