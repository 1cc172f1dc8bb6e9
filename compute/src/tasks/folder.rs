//! A model's folder on this disk, as a task reads it. For benchmarks and tools; a node reads its blob store instead.

use cairn_protocol::safetensors;
use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Files, SMALL_FILES, embed};
use crate::{
    TensorSource,
    files::{self, FileSource, FilesError},
};

/// Largest `tokenizer.json` that is read.
const TOKENIZER_BYTES_MAX: u64 = 64 << 20;

/// Reads small files, tokenizers and headers of weights, in the folder and in those that its `modules.json` names.
pub fn open_folder(folder: &Path) -> Result<(Files, Box<dyn TensorSource>), FilesError> {
    let mut files = Files::default();
    for path in SMALL_FILES {
        add(folder, &mut files, path)?;
    }
    let named = files.small("modules.json").map(embed::named_files).unwrap_or_default();
    for path in &named {
        add(folder, &mut files, path)?;
    }
    let mut inner: Vec<&str> = named.iter().filter_map(|path| Some(path.rsplit_once('/')?.0)).collect();
    inner.push("");
    inner.sort_unstable();
    inner.dedup();
    let mut paths = Vec::new();
    for inner in inner {
        list(folder, inner, &mut files, &mut paths)?;
    }
    Ok((files, Box::new(FileSource::open(&paths)?)))
}

fn add(folder: &Path, files: &mut Files, path: &str) -> Result<(), FilesError> {
    if let Some(bytes) = files::small(&folder.join(path))? {
        files.small.insert(path.to_owned(), bytes);
    }
    Ok(())
}

/// Adds the files of one folder; one that is not there has none.
fn list(folder: &Path, inner: &str, files: &mut Files, paths: &mut Vec<PathBuf>) -> Result<(), FilesError> {
    let Ok(entries) = fs::read_dir(folder.join(inner)) else { return Ok(()) };
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.is_file());
    found.sort();
    for path in found {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let failed = |error| FilesError::Io { path: path.clone(), error };
        let size = path.metadata().map_err(failed)?.len();
        if name.ends_with("tokenizer.json") && size <= TOKENIZER_BYTES_MAX {
            files.small.insert(name.clone(), fs::read(&path).map_err(failed)?);
        }
        if name.ends_with(".safetensors") {
            let header = files::header(&path, safetensors::parse_header)?;
            files.tensors.extend(header.tensors.iter().map(|t| files::entry(paths.len() as u32, t)));
        }
        files.listing.push((name, size));
        paths.push(path);
    }
    Ok(())
}
