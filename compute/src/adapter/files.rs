//! An adapter on disk: a PEFT folder. For benchmarks, tools and references; a node's stages read from its blob store.

use super::{AdapterError, AdapterSpec, describe};
use crate::{
    files::{self, FileSource, FilesError, entry},
    weights::TensorSource,
};
use cairn_protocol::{manifest::TensorEntry, safetensors};
use std::{fs, path::Path};

/// Why a folder is no adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterFilesError {
    /// A file can't be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// It says something that is not served.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

/// A described adapter and where its tensors are.
pub struct AdapterFiles {
    /// What it says of itself.
    pub spec: AdapterSpec,
    /// Its tensors.
    pub tensors: Vec<TensorEntry>,
    path: std::path::PathBuf,
}

impl AdapterFiles {
    /// Reads `adapter_config.json` and the header of `adapter_model.safetensors`.
    pub fn open(folder: &Path) -> Result<Self, AdapterFilesError> {
        let config = folder.join("adapter_config.json");
        let failed = |error| FilesError::Io { path: config.clone(), error };
        let config = fs::read(&config).map_err(failed)?;
        let path = folder.join("adapter_model.safetensors");
        let header = files::header(&path, safetensors::parse_header)?;
        let tensors: Vec<TensorEntry> = header.tensors.iter().map(|tensor| entry(0, tensor)).collect();
        let spec = AdapterSpec::from_metadata(&describe(&config, &tensors)?)?;
        Ok(Self { spec, tensors, path })
    }

    /// A reader of the tensors.
    pub fn source(&self) -> Result<Box<dyn TensorSource>, FilesError> {
        Ok(Box::new(FileSource::open([&self.path])?))
    }
}
