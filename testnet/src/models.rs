//! Models for tests: the built-in one, and real ones that `scripts/fetch-model` brings.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Writes the built-in model into `folder` and returns where it is.
pub fn tiny_model(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("tiny");
    cairn_node::builtin::write(&path).context("write the built-in model")?;
    Ok(path)
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
