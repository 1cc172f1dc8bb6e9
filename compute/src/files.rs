//! A model on disk: a GGUF file, or a folder with `config.json` and safetensors. For benchmarks and tools; a node's
//! stages read from its blob store instead.

use crate::{
    arch::{self, DescribeError, Description},
    weights::{SourceError, TensorSource},
};
use cairn_protocol::{
    gguf::{self, HeaderError},
    manifest::{Model, TensorEntry},
    safetensors,
};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Bytes of a file read at first when looking for its header.
const HEADER_FIRST_BYTES: u64 = 1 << 20;
/// Most bytes of a `config.json`.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Why files are not a model.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file can't be read.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A header can't be read.
    #[error("{path}: {error}")]
    Header {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: HeaderError,
    },
    /// The description is broken.
    #[error(transparent)]
    Describe(#[from] DescribeError),
    /// A model that the engine does not compute.
    #[error("{path} holds a model that is not served: {why}")]
    Unserved {
        /// Which.
        path: PathBuf,
        /// What of it is not.
        why: String,
    },
    /// Nothing that the engine computes.
    #[error("{0} holds no language model: a GGUF file, or a folder with config.json and safetensors")]
    NoModel(PathBuf),
}

/// A described model and where its tensors are.
pub struct ModelFiles {
    /// Its shape.
    pub model: Model,
    /// Its tensors; `file` counts in the source.
    pub tensors: Vec<TensorEntry>,
    paths: Vec<PathBuf>,
}

impl ModelFiles {
    /// Reads headers and configuration.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        if path.is_dir() { Self::folder(path) } else { Self::gguf(path) }
    }

    fn gguf(path: &Path) -> Result<Self, FilesError> {
        let header = header(path, gguf::parse_header)?;
        let entries = |t: &gguf::HeaderTensor| entry(0, t);
        let tensors: Vec<TensorEntry> = header.tensors.iter().map(entries).collect();
        let model = served(path, arch::describe(None, None, Some(&header), &tensors)?)?;
        Ok(Self { model, tensors, paths: vec![path.to_path_buf()] })
    }

    fn folder(path: &Path) -> Result<Self, FilesError> {
        let failed = |error| FilesError::Io { path: path.to_path_buf(), error };
        let mut paths = Vec::new();
        for file in fs::read_dir(path).map_err(failed)? {
            let file = file.map_err(failed)?.path();
            if file.extension().is_some_and(|e| e == "safetensors") {
                paths.push(file);
            }
        }
        paths.sort();
        let mut tensors = Vec::new();
        for (i, file) in paths.iter().enumerate() {
            let header = header(file, safetensors::parse_header)?;
            tensors.extend(header.tensors.iter().map(|t| entry(i as u32, t)));
        }
        let config = small(&path.join("config.json"))?;
        let generation = small(&path.join("generation_config.json"))?;
        let model = served(path, arch::describe(config.as_deref(), generation.as_deref(), None, &tensors)?)?;
        Ok(Self { model, tensors, paths })
    }

    /// A reader of the tensors.
    pub fn source(&self) -> Result<Box<dyn TensorSource>, FilesError> {
        Ok(Box::new(FileSource::open(&self.paths)?))
    }
}

fn served(path: &Path, described: Description) -> Result<Model, FilesError> {
    match described {
        Description::Model(model) => Ok(*model),
        Description::Unserved(why) => Err(FilesError::Unserved { path: path.to_path_buf(), why }),
        Description::Nothing => Err(FilesError::NoModel(path.to_path_buf())),
    }
}

/// A header's tensor as an index has it.
pub(crate) fn entry(file: u32, t: &gguf::HeaderTensor) -> TensorEntry {
    let (name, shape) = (t.name.clone(), t.shape.clone());
    TensorEntry { name, file, offset: t.offset, length: t.length, dtype: t.dtype, shape }
}

/// Reads as much of a file as its header takes.
pub(crate) fn header<H>(path: &Path, parse: fn(&[u8], u64) -> Result<H, HeaderError>) -> Result<H, FilesError> {
    let failed = |error| FilesError::Io { path: path.to_path_buf(), error };
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let (mut bytes, mut want) = (Vec::new(), HEADER_FIRST_BYTES.min(size));
    loop {
        let more = want.saturating_sub(bytes.len() as u64);
        file.by_ref().take(more).read_to_end(&mut bytes).map_err(failed)?;
        match parse(&bytes, size) {
            Ok(header) => return Ok(header),
            Err(HeaderError::NeedMore(needed)) if needed > bytes.len() as u64 && needed <= size => want = needed,
            Err(error) => return Err(FilesError::Header { path: path.to_path_buf(), error }),
        }
    }
}

/// A small file, if it is there.
pub(crate) fn small(path: &Path) -> Result<Option<Vec<u8>>, FilesError> {
    let failed = |error| FilesError::Io { path: path.to_path_buf(), error };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// Tensors read from open files.
pub(crate) struct FileSource {
    files: Vec<File>,
}

impl FileSource {
    /// Of files that tensors count in this order.
    pub fn open<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self, FilesError> {
        let open = |path: &PathBuf| File::open(path).map_err(|error| FilesError::Io { path: path.clone(), error });
        Ok(Self { files: paths.into_iter().map(open).collect::<Result<_, _>>()? })
    }
}

impl TensorSource for FileSource {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        let failed = |error: io::Error| SourceError(error.to_string());
        let file = self.files.get_mut(entry.file as usize).ok_or_else(|| SourceError("no such file".to_string()))?;
        file.seek(SeekFrom::Start(entry.offset)).map_err(failed)?;
        // Lengths were held against dimensions and file size when the header was read.
        let mut bytes = vec![0; entry.length as usize];
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests;
