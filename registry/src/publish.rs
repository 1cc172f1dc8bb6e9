//! Publishing in two steps, so that whoever has the key can sign in between: `prepare` takes files in and makes the manifest, `commit`
//! takes the signed records and makes everything durable at once.
//!
//! It holds no keys and signs nothing.
//!
//! Invariant: when `commit` answers, the revision's bytes, their proofs, the manifest and the records survive a killed process and
//! a lost power; before that, at worst unpinned blobs are left for garbage collection. A record is never on disk without its bytes.

use std::path::PathBuf;

use bytes::Bytes;
use cairn_protocol::{
    gguf::GgufHeader,
    id::{BlobHash, RecordId, RevisionId},
    manifest::{Manifest, ManifestError, ManifestFile, Model, TensorEntry},
    name::{FilePath, RefName, RepoId},
    record::{Body, Head, Record, Revision},
};
use redb::WriteTransaction;

use crate::{
    Registry,
    blobs::{BlobError, TempPin},
    catalog::{CatalogError, keys, tables},
    folder::{self, FolderError, SourceFile},
    history::next,
    import::{ImportError, Imported, Transfer, import},
    index::{Header, IndexError, Seen, TensorIndex, read_header},
    look,
    records::{InsertError, Inserted, Origin, insert},
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
    /// The header of the GGUF file whose tensors are indexed.
    pub gguf: Option<&'a GgufHeader>,
    /// The tensors that are indexed.
    pub tensors: &'a [TensorEntry],
}

/// Tells a model's shape from its files: `Ok(None)` when there is no model that it knows.
pub type Describe = Box<dyn Fn(&ModelSources<'_>) -> Result<Option<Model>, String> + Send + Sync>;

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
    /// Tells the model's shape.
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
            describe: Box::new(|_| Ok(None)),
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
    pins: Vec<TempPin>,
}

impl Prepared {
    /// The revision's record, to be signed.
    pub fn statement(&self) -> Revision {
        let manifest = &self.manifest;
        Revision {
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
            license: String::new(),
            quantisation: quantisation(&manifest.tensors),
            tags: Vec::new(),
        }
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
        }
    }
}

/// What the next head of a ref must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHead {
    /// Its epoch.
    pub epoch: u64,
    /// Its number.
    pub number: u64,
    /// The head that it follows.
    pub previous: Option<RecordId>,
}

/// A revision that is published here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The revision.
    pub revision: RevisionId,
    /// Its heads, by ref.
    pub heads: Vec<(RefName, RecordId)>,
}

/// Why something can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file could not be taken in.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A safetensors or GGUF file is not what its name says.
    #[error("{path}: {error}")]
    Index {
        /// The file.
        path: FilePath,
        /// What is wrong with it.
        error: IndexError,
    },
    /// Its files contradict each other about the model.
    #[error("the model can't be described: {0}")]
    Describe(String),
    /// The manifest breaks a rule that every receiver checks.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The blob store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// A record is not of this publication.
    #[error("the signed records are not of this publication: {0}")]
    Records(&'static str),
    /// A record breaks a rule.
    #[error(transparent)]
    Insert(#[from] InsertError),
    /// Someone else published in between; nothing was written.
    #[error("{reference} has moved to number {number} meanwhile")]
    Moved {
        /// The ref.
        reference: RefName,
        /// The newest number.
        number: u64,
    },
    /// The tag is taken; nothing was written.
    #[error("the tag {0} exists already; tags never move")]
    TagExists(RefName),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
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
        let (files, headers) = survey(source).await?;
        let seen: Vec<_> = headers.iter().map(|(_, header)| header.as_ref().map(|header| header.seen)).collect();
        let (index, header_bytes) = TensorIndex::build(headers);
        let imported = self.import_all(&files, options.transfer, progress).await?;
        self.check_headers(&files, &imported, &seen).await?;
        let model = self.describe(&files, &imported, &index, &options.describe).await?;
        let manifest = Manifest {
            realm: self.realm(),
            repo,
            parents: options.parents,
            files: files.into_iter().zip(&imported).zip(header_bytes).map(manifest_file).collect(),
            tensors: index.tensors,
            model,
            message: options.message,
            created_ms: options.created_ms,
            metadata: options.metadata,
        };
        let (revision, bytes) = manifest.seal()?;
        let manifest_bytes = bytes.len() as u64;
        let mut pins: Vec<TempPin> = imported.into_iter().map(|imported| imported.pin).collect();
        pins.push(self.blobs().add(Bytes::from(bytes)).await?);
        Ok(Prepared { manifest, revision, manifest_bytes, left_out: index.left_out, pins })
    }

    /// What the next head of this ref must say.
    pub async fn next_head(&self, repo: &RepoId, name: &RefName) -> Result<NextHead, CatalogError> {
        let (realm, repo, name) = (self.realm(), repo.clone(), name.clone());
        let read = self.catalog().read(move |transaction| {
            let heads = look::heads(transaction, realm, &repo, &name)?;
            let (epoch, number, previous) = next(&heads, look::adopted(transaction, realm, &repo, &name)?);
            Ok(NextHead { epoch, number, previous })
        });
        read.await
    }

    /// Publishes: makes the bytes durable, then writes all records, the pin and the list of its blobs in one transaction, then
    /// answers. `records` are the revision's record, a head for every ref, and the publisher's profile if it is new. If a ref moved
    /// since `next_head`, nothing is written.
    pub async fn commit(&self, prepared: Prepared, records: Vec<Record>) -> Result<Committed, PublishError> {
        check_records(&prepared, &records)?;
        let blobs: Vec<BlobHash> = prepared.pins.iter().map(TempPin::hash).collect();
        self.blobs().sync(&blobs).await?;
        let realm = self.realm();
        let (manifest, revision, manifest_bytes) = (prepared.manifest, prepared.revision, prepared.manifest_bytes);
        let written = self.catalog().write(move |transaction| {
            let heads = write_records(transaction, realm, &records)?;
            for (name, head) in &heads {
                adopt(transaction, &keys::reference(realm, &manifest.repo, name), *head)?;
            }
            keep(transaction, realm, revision, manifest_bytes, &manifest)?;
            note_sha256(transaction, realm, &manifest)?;
            Ok::<_, PublishError>(heads)
        });
        let heads = written.await?;
        // Until here the temporary pins held the blobs; now the catalogue's do.
        drop(prepared.pins);
        self.note_change(true);
        Ok(Committed { revision, heads })
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
            let (progress, read) = (progress.clone(), std::sync::Arc::new(std::sync::atomic::AtomicU64::new(before)));
            let advance = move |bytes| {
                let done = read.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
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
    ) -> Result<Option<Model>, PublishError> {
        let config_json = self.small_file(files, imported, "config.json").await?;
        let generation_config = self.small_file(files, imported, "generation_config.json").await?;
        let sources = ModelSources {
            config_json: config_json.as_deref(),
            generation_config: generation_config.as_deref(),
            gguf: index.gguf.as_ref(),
            tensors: &index.tensors,
        };
        describe(&sources).map_err(PublishError::Describe)
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

/// Everything must be signed by the repo's publisher and speak of this revision.
fn check_records(prepared: &Prepared, records: &[Record]) -> Result<(), PublishError> {
    let repo = &prepared.manifest.repo;
    let mut revisions = 0;
    for record in records {
        if record.key() != repo.publisher {
            return Err(PublishError::Records("a record is signed by another key than the repo's publisher"));
        }
        match record.body().map_err(InsertError::from)? {
            Body::Profile(_) => {}
            Body::Revision(body) if body == prepared.statement_like(&body) => revisions += 1,
            Body::Head(head) if head.revision == prepared.revision && head.repo(record.key()) == *repo => {}
            _ => return Err(PublishError::Records("a record speaks of another revision or repo")),
        }
    }
    if revisions == 1 { Ok(()) } else { Err(PublishError::Records("there must be one revision record")) }
}

impl Prepared {
    /// The statement with those words that a publisher may choose freely.
    fn statement_like(&self, body: &Revision) -> Revision {
        Revision { license: body.license.clone(), tags: body.tags.clone(), ..self.statement() }
    }
}

/// Writes the records; heads must be the very next of their refs (compare and swap).
fn write_records(
    transaction: &WriteTransaction,
    realm: cairn_protocol::id::RealmId,
    records: &[Record],
) -> Result<Vec<(RefName, RecordId)>, PublishError> {
    let mut heads = Vec::new();
    for record in records {
        if let Body::Head(head) = record.body().map_err(InsertError::from)? {
            expect_next(transaction, realm, &head.repo(record.key()), &head)?;
            heads.push((head.ref_name, record.id()));
        }
        match insert(transaction, realm, record, Origin::Here)? {
            Inserted::New | Inserted::Known => {}
            Inserted::Stale => return Err(PublishError::Records("a newer profile of this publisher is known")),
        }
    }
    Ok(heads)
}

fn expect_next(
    transaction: &WriteTransaction,
    realm: cairn_protocol::id::RealmId,
    repo: &RepoId,
    head: &Head,
) -> Result<(), PublishError> {
    let heads = look::heads(transaction, realm, repo, &head.ref_name)?;
    if heads.iter().any(|known| known.tag) || (head.tag && !heads.is_empty()) {
        return Err(PublishError::TagExists(head.ref_name.clone()));
    }
    let newest = heads.last().map_or((0, 0), |newest| newest.place());
    let follows_top = head.previous.is_none_or(|id| heads.iter().any(|top| top.id == id && top.place() == newest));
    let is_next = match heads.is_empty() {
        true => head.number == 1 && head.previous.is_none(),
        false => (head.epoch, head.number) > newest && head.previous.is_some() && follows_top,
    };
    if is_next { Ok(()) } else { Err(PublishError::Moved { reference: head.ref_name.clone(), number: newest.1 }) }
}

/// Remembers that this node uses the head, so that a second head of its number does not take it away here.
pub(crate) fn adopt(transaction: &WriteTransaction, reference: &[u8], head: RecordId) -> Result<(), CatalogError> {
    transaction.open_table(tables::ADOPTED)?.insert(reference, head.as_bytes().as_slice())?;
    Ok(())
}

/// Pins a revision in the record class.
pub(crate) fn keep(
    transaction: &WriteTransaction,
    realm: cairn_protocol::id::RealmId,
    revision: RevisionId,
    manifest_bytes: u64,
    manifest: &Manifest,
) -> Result<(), CatalogError> {
    transaction.open_table(tables::KEPT)?.insert(keys::one(realm, revision.as_bytes()).as_slice(), [].as_slice())?;
    let mut table = transaction.open_table(tables::KEPT_BLOBS)?;
    let manifest_blob = (*revision.as_bytes(), manifest_bytes);
    let files = manifest.files.iter().map(|file| (*file.blake3.as_bytes(), file.size));
    for (blob, size) in std::iter::once(manifest_blob).chain(files) {
        table.insert(keys::two(realm, revision.as_bytes(), &blob).as_slice(), size.to_le_bytes().as_slice())?;
    }
    Ok(())
}

fn note_sha256(
    transaction: &WriteTransaction,
    realm: cairn_protocol::id::RealmId,
    manifest: &Manifest,
) -> Result<(), CatalogError> {
    let mut table = transaction.open_table(tables::SHA256)?;
    for file in &manifest.files {
        table.insert(keys::one(realm, &file.sha256).as_slice(), file.blake3.as_bytes().as_slice())?;
    }
    Ok(())
}
