//! The first half of publishing: takes a file or folder into the store and makes the manifest that a publisher will sign.
//!
//! It writes no record and pins nothing for good; that is `commit`. It holds no keys.
//!
//! Invariant: a [`Prepared`] revision's manifest describes the very bytes that the store holds, and those stay while it lives.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cairn_protocol::{
    gguf::GgufHeader,
    id::{BlobHash, PublisherKey, RevisionId},
    limits::MESSAGE_BYTES_MAX,
    manifest::{Manifest, ManifestError, ManifestFile, Model, TensorEntry},
    name::{FilePath, RefName, RepoId},
    record::{Head, Origin, Revision},
};

use crate::{
    Registry,
    blobs::{BlobError, TempPin},
    card::{CARD_BYTES_MAX, Card},
    commit::{NextHead, PublishError},
    folder::{self, SourceFile},
    import::{ImportError, Imported, Transfer, import},
    index::{Header, Seen, TensorIndex, read_header},
};

/// Bytes of a `config.json` that are read; the largest known ones have some hundred kilobytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// What is known of a model's files when its shape is to be told.
#[derive(Debug)]
pub struct ModelSources<'a> {
    /// `config.json` of the outermost folder.
    pub config_json: Option<&'a [u8]>,
    /// `generation_config.json` of the outermost folder.
    pub generation_config: Option<&'a [u8]>,
    /// `adapter_config.json` of the outermost folder.
    pub adapter_config: Option<&'a [u8]>,
    /// The header of the GGUF file whose tensors are indexed.
    pub gguf: Option<&'a GgufHeader>,
    /// The tensors that are indexed.
    pub tensors: &'a [TensorEntry],
}

/// What is told of a revision from its files.
#[derive(Debug, Default)]
pub struct Description {
    /// The shape of a model that is known.
    pub model: Option<Model>,
    /// Further metadata.
    pub metadata: Vec<(String, String)>,
}

/// Tells what a revision's files hold: nothing when there is nothing that it knows.
pub type Describe = Box<dyn Fn(&ModelSources<'_>) -> Result<Description, String> + Send + Sync>;

/// What a publisher says beside the files.
pub struct PrepareOptions {
    /// For people.
    pub message: String,
    /// Whether hard links were asked for.
    pub transfer: Transfer,
    /// What it was made from, beside nothing.
    pub parents: Vec<RevisionId>,
    /// The publisher's clock.
    pub created_ms: i64,
    /// Free key-value pairs.
    pub metadata: Vec<(String, String)>,
    /// Tells what the files hold.
    pub describe: Describe,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            message: String::new(),
            transfer: Transfer::Copy,
            parents: Vec::new(),
            created_ms: 0,
            metadata: Vec::new(),
            describe: Box::new(|_| Ok(Description::default())),
        }
    }
}

/// How far long work has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A revision whose bytes are in the store, pinned while this lives, and which nobody has signed yet.
#[derive(Debug)]
pub struct Prepared {
    /// Its manifest.
    pub manifest: Manifest,
    /// The manifest's hash.
    pub revision: RevisionId,
    /// The manifest's size.
    pub manifest_bytes: u64,
    /// Files with tensors that are not indexed, since another file has tensors of those names.
    pub left_out: Vec<FilePath>,
    /// What its `README.md` says, if it has one.
    pub card: Option<Card>,
    pub(crate) pins: Vec<TempPin>,
}

impl Prepared {
    /// The revision's record, to be signed by the repo's publisher.
    pub fn statement(&self) -> Revision {
        self.statement_for(None, Vec::new())
    }

    /// The revision's record, to be signed: by the repo's publisher itself, or for `publisher` by another key; `origins` is what it was
    /// made from, as far as that is known.
    pub fn statement_for(&self, publisher: Option<PublisherKey>, origins: Vec<Origin>) -> Revision {
        let manifest = &self.manifest;
        let card = self.card.clone().unwrap_or_default();
        let statement = Revision {
            revision: self.revision,
            manifest_bytes: self.manifest_bytes,
            kind: manifest.repo.kind,
            name: manifest.repo.name.clone(),
            parents: manifest.parents.clone(),
            files: manifest.files.len() as u64,
            bytes: manifest.bytes(),
            message: manifest.message.clone(),
            created_ms: manifest.created_ms,
            architecture: manifest.model.as_ref().map_or_else(String::new, |model| model.architecture.clone()),
            parameters: parameters(&manifest.tensors),
            license: card.license,
            quantisation: quantisation(&manifest.tensors),
            tags: card.tags,
            card: Box::new(card.facts),
            publisher,
            origins,
        };
        statement.cut_to_fit()
    }

    /// The head that would make `name` stand for this revision, to be signed; `next` is what [`Registry::next_head`] said.
    pub fn head(&self, name: RefName, next: NextHead, is_tag: bool) -> Head {
        Head {
            kind: self.manifest.repo.kind,
            name: self.manifest.repo.name.clone(),
            ref_name: name,
            epoch: next.epoch,
            number: next.number,
            revision: self.revision,
            previous: next.previous,
            created_ms: self.manifest.created_ms,
            tag: is_tag,
            publisher: None,
        }
    }
}

impl Registry {
    /// Takes the files of `source` (a file or a folder) into the store and makes the manifest. `progress` hears of bytes read.
    ///
    /// Dropping the future or the [`Prepared`] leaves unpinned blobs for garbage collection.
    pub async fn prepare(
        &self,
        source: PathBuf,
        repo: RepoId,
        options: PrepareOptions,
        progress: impl Fn(Progress) + Send + Sync + Clone + 'static,
    ) -> Result<Prepared, PublishError> {
        // Said before terabytes are read.
        if options.message.len() > MESSAGE_BYTES_MAX {
            return Err(ManifestError::MessageTooLong(options.message.len()).into());
        }
        let (files, headers) = survey(source).await?;
        let seen: Vec<_> = headers.iter().map(|(_, header)| header.as_ref().map(|header| header.seen)).collect();
        let (index, header_bytes) = TensorIndex::build(headers);
        let imported = self.import_all(&files, options.transfer, progress).await?;
        self.check_headers(&files, &imported, &seen).await?;
        let Description { model, metadata } = self.describe(&files, &imported, &index, &options.describe).await?;
        let card = self.card(&files, &imported).await?;
        let manifest = Manifest {
            realm: self.realm(),
            repo,
            parents: options.parents,
            files: files.into_iter().zip(&imported).zip(header_bytes).map(manifest_file).collect(),
            tensors: index.tensors,
            model,
            message: options.message,
            created_ms: options.created_ms,
            metadata: options.metadata.into_iter().chain(metadata).collect(),
        };
        let (revision, bytes) = manifest.seal()?;
        let manifest_bytes = bytes.len() as u64;
        let mut pins: Vec<TempPin> = imported.into_iter().map(|imported| imported.pin).collect();
        pins.push(self.blobs().add(Bytes::from(bytes)).await?);
        Ok(Prepared { manifest, revision, manifest_bytes, left_out: index.left_out, card, pins })
    }

    async fn import_all(
        &self,
        files: &[SourceFile],
        intake: Transfer,
        progress: impl Fn(Progress) + Send + Sync + Clone + 'static,
    ) -> Result<Vec<Imported>, ImportError> {
        let total = files.iter().map(|file| file.size).sum();
        let mut before = 0;
        let mut imported = Vec::with_capacity(files.len());
        for file in files {
            let (progress, read) = (progress.clone(), Arc::new(AtomicU64::new(before)));
            let advance = move |bytes| {
                let done = read.fetch_add(bytes, Ordering::Relaxed) + bytes;
                progress(Progress { done, total });
            };
            imported.push(import(self.blobs(), &file.source, file.size, intake, advance).await?);
            before += file.size;
        }
        Ok(imported)
    }

    /// Headers were read before the files were taken in; one that differs now belongs to a file that changed in between.
    async fn check_headers(
        &self,
        files: &[SourceFile],
        imported: &[Imported],
        seen: &[Option<Seen>],
    ) -> Result<(), PublishError> {
        for ((file, imported), seen) in files.iter().zip(imported).zip(seen) {
            let Some(seen) = seen else { continue };
            let header = self.blobs().read(imported.pin.hash(), 0..seen.bytes).await?;
            if BlobHash::of(&header) != seen.hash {
                return Err(ImportError::Changed(file.source.clone()).into());
            }
        }
        Ok(())
    }

    async fn describe(
        &self,
        files: &[SourceFile],
        imported: &[Imported],
        index: &TensorIndex,
        describe: &Describe,
    ) -> Result<Description, PublishError> {
        let config_json = self.small_file(files, imported, "config.json").await?;
        let generation_config = self.small_file(files, imported, "generation_config.json").await?;
        let adapter_config = self.small_file(files, imported, "adapter_config.json").await?;
        let sources = ModelSources {
            config_json: config_json.as_deref(),
            generation_config: generation_config.as_deref(),
            adapter_config: adapter_config.as_deref(),
            gguf: index.gguf.as_ref(),
            tensors: &index.tensors,
        };
        describe(&sources).map_err(PublishError::Describe)
    }

    /// Of a card that is larger than any, its beginning is read.
    async fn card(&self, files: &[SourceFile], imported: &[Imported]) -> Result<Option<Card>, BlobError> {
        let is_card = |name: &str| files.iter().position(|file| file.path.as_str() == name);
        let Some(at) = is_card("README.md").or_else(|| is_card("readme.md")) else { return Ok(None) };
        let bytes = self.blobs().read(imported[at].pin.hash(), 0..imported[at].size.min(CARD_BYTES_MAX)).await?;
        let read = tokio::task::spawn_blocking(move || Card::parse(&bytes));
        read.await.map(Some).map_err(|error| BlobError::Io(std::io::Error::other(error)))
    }

    async fn small_file(
        &self,
        files: &[SourceFile],
        imported: &[Imported],
        path: &str,
    ) -> Result<Option<Bytes>, BlobError> {
        let found =
            files.iter().zip(imported).find(|(file, _)| file.path.as_str() == path && file.size <= CONFIG_BYTES_MAX);
        match found {
            Some((file, imported)) => self.blobs().read(imported.pin.hash(), 0..file.size).await.map(Some),
            None => Ok(None),
        }
    }
}

type Surveyed = (Vec<SourceFile>, Vec<(FilePath, Option<Header>)>);

/// Lists the files and reads the headers before anything is taken in, so that a hostile or broken file costs nothing.
async fn survey(source: PathBuf) -> Result<Surveyed, PublishError> {
    let surveyed = tokio::task::spawn_blocking(move || {
        let files = folder::list(&source)?;
        let mut headers = Vec::with_capacity(files.len());
        for file in &files {
            let header = read_header(&file.path, &file.source, file.size)
                .map_err(|error| PublishError::Index { path: file.path.clone(), error })?;
            headers.push((file.path.clone(), header));
        }
        Ok((files, headers))
    });
    surveyed.await.map_err(|error| BlobError::Io(std::io::Error::other(error)))?
}

fn manifest_file(((file, imported), header_bytes): ((SourceFile, &Imported), u64)) -> ManifestFile {
    ManifestFile {
        path: file.path,
        size: imported.size,
        blake3: imported.pin.hash(),
        sha256: imported.sums.sha256,
        git_sha1: imported.sums.git_sha1,
        header_bytes,
    }
}

fn parameters(tensors: &[TensorEntry]) -> u64 {
    tensors
        .iter()
        .map(|tensor| tensor.shape.iter().fold(1, |product: u64, n| product.saturating_mul(*n)))
        .fold(0, u64::saturating_add)
}

/// The element type that most bytes of the tensors have.
fn quantisation(tensors: &[TensorEntry]) -> String {
    let mut bytes = std::collections::BTreeMap::new();
    for tensor in tensors {
        *bytes.entry(tensor.dtype.name()).or_insert(0u64) += tensor.length;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(name, _)| name.to_owned())
}
