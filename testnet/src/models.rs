//! Models for tests: the built-in one, and real ones that `scripts/fetch-model` brings.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
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
