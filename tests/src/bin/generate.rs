//! Writes the generated code into the checkout; run it after changing a `.proto` file. With `--release VERSION` it also keeps
//! the shapes of that release. Not part of any build.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use prost::Message;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate lies in the workspace")?;
    for (path, contents) in cairn_tests::generate(root)? {
        write(root.join(path), &contents)?;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => Ok(()),
        [flag, version] if flag == "--release" => {
            write(root.join(format!("protocol/released/{version}.bin")), &cairn_tests::shapes(root)?.encode_to_vec())
        }
        _ => bail!("usage: generate [--release VERSION]"),
    }
}

fn write(path: PathBuf, contents: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
