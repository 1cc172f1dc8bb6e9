//! The second half of publishing: takes the signed records of a prepared revision and makes everything durable at once.
//!
//! Whoever has the key signs between the halves; nothing is signed here.
//!
//! Invariant: when `commit` answers, the revision's bytes, their proofs, the manifest and the records survive a killed process and
//! a lost power; before that, at worst unpinned blobs are left for garbage collection. A record is never on disk without its bytes.

use cairn_protocol::{
    id::{BlobHash, PublisherKey, RealmId, RecordId, RevisionId},
    manifest::{Manifest, ManifestError},
    name::{FilePath, RefName, RepoId},
    record::{Body, Head, Record, Revision},
};
use redb::{ReadableTable, WriteTransaction};

use crate::{
    Registry,
    blobs::{BlobError, TempPin},
    catalog::{CatalogError, keys, tables},
    folder::FolderError,
    history::next,
    holding::{Keeper, blob_of},
    import::ImportError,
    index::IndexError,
    look,
    prepare::Prepared,
    publishers,
    records::{InsertError, Inserted, Origin, insert},
    ring,
    search::journal,
};

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
    /// What the next head of this ref must say.
    pub async fn next_head(&self, repo: &RepoId, name: &RefName) -> Result<NextHead, CatalogError> {
        let (realm, repo, name) = (self.realm(), repo.clone(), name.clone());
        let read = self.catalog().read(move |transaction| {
            let heads = look::heads(transaction, realm, &repo, &name)?;
            let (epoch, number, previous) = next(
                &heads,
                publishers::epoch(transaction, realm, repo.publisher)?,
                look::adopted(transaction, realm, &repo, &name)?,
            );
            Ok(NextHead { epoch, number, previous })
        });
        read.await
    }

    /// Publishes: makes the bytes durable, then writes all records, the pin and the list of its blobs in one transaction, then
    /// answers. `records` are the revision's record, a head for every ref, and the publisher's profile if it is new. If a ref moved
    /// since `next_head`, nothing is written.
    ///
    /// Dropping the future before the write leaves nothing but unpinned bytes; from the write on it goes through, its blobs stay
    /// pinned until the catalogue keeps them, and those who watch hear of it.
    pub async fn commit(&self, prepared: Prepared, records: Vec<Record>) -> Result<Committed, PublishError> {
        check_records(&prepared, &records)?;
        let blobs: Vec<BlobHash> = prepared.pins.iter().map(TempPin::hash).collect();
        self.blobs().sync(&blobs).await?;
        self.blobs().require(&blobs_of(&prepared)).await?;
        let registry = self.clone();
        let written = self.see_through(async move { registry.write_commit(prepared, records).await });
        written.await.ok_or(CatalogError::Closed)?
    }

    async fn write_commit(&self, prepared: Prepared, records: Vec<Record>) -> Result<Committed, PublishError> {
        let realm = self.realm();
        let (manifest, revision, manifest_bytes) = (prepared.manifest, prepared.revision, prepared.manifest_bytes);
        let written = self.catalog().write(move |transaction| {
            let heads = write_records(transaction, realm, &records)?;
            for (name, head) in &heads {
                adopt(transaction, realm, &manifest.repo, name, *head)?;
            }
            keep(transaction, realm, revision, manifest_bytes, &manifest, &Keeper::Person)?;
            note_sha256(transaction, realm, &manifest)?;
            pin_own_handle(transaction, realm, manifest.repo.publisher)?;
            Ok::<_, PublishError>(heads)
        });
        let heads = written.await?;
        // Until here the temporary pins held the blobs; now the catalogue's do.
        drop(prepared.pins);
        self.note_change(true);
        Ok(Committed { revision, heads })
    }
}

/// What must be on disk before the revision is acknowledged.
fn blobs_of(prepared: &Prepared) -> Vec<(BlobHash, u64)> {
    let files = prepared.manifest.files.iter().map(|file| (file.blake3, file.size));
    files.chain([(blob_of(prepared.revision), prepared.manifest_bytes)]).collect()
}

/// Everything must be signed by the repo's publisher and speak of this revision.
fn check_records(prepared: &Prepared, records: &[Record]) -> Result<(), PublishError> {
    let repo = &prepared.manifest.repo;
    let mut revisions = 0;
    for record in records {
        let body = record.body().map_err(InsertError::from)?;
        if body.publisher(record.key()) != repo.publisher {
            return Err(PublishError::Records("a record is not the repo's publisher's"));
        }
        match body {
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
        let stated = self.statement_for(body.publisher, body.origins.clone());
        Revision { license: body.license.clone(), tags: body.tags.clone(), ..stated }
    }
}

/// Writes the records; heads must be the very next of their refs (compare and swap).
fn write_records(
    transaction: &WriteTransaction,
    realm: RealmId,
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

pub(crate) fn expect_next(
    transaction: &WriteTransaction,
    realm: RealmId,
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
pub(crate) fn adopt(
    transaction: &WriteTransaction,
    realm: RealmId,
    repo: &RepoId,
    name: &RefName,
    head: RecordId,
) -> Result<(), CatalogError> {
    let reference = keys::reference(realm, repo, name);
    let before = look::adopted(transaction, realm, repo, name)?;
    if before != Some(head) {
        transaction.open_table(tables::ADOPTED)?.insert(reference.as_slice(), head.as_bytes().as_slice())?;
        journal::note(transaction, realm, repo)?;
    }
    Ok(())
}

/// Pins a revision in the record class. Its publisher is known here from now on.
pub(crate) fn keep(
    transaction: &WriteTransaction,
    realm: RealmId,
    revision: RevisionId,
    manifest_bytes: u64,
    manifest: &Manifest,
    keeper: &Keeper,
) -> Result<(), CatalogError> {
    ring::note_known(transaction, realm, manifest.repo.publisher)?;
    note_keeper(transaction, &keys::one(realm, revision.as_bytes()), keeper)?;
    let mut table = transaction.open_table(tables::KEPT_BLOBS)?;
    let mut keepers = transaction.open_table(tables::BLOB_KEEPERS)?;
    let manifest_blob = (*revision.as_bytes(), manifest_bytes);
    let files = manifest.files.iter().map(|file| (*file.blake3.as_bytes(), file.size));
    for (blob, size) in std::iter::once(manifest_blob).chain(files) {
        table.insert(keys::two(realm, revision.as_bytes(), &blob).as_slice(), size.to_le_bytes().as_slice())?;
        keepers.insert(keys::two(realm, &blob, revision.as_bytes()).as_slice(), [].as_slice())?;
    }
    Ok(())
}

/// What a person wants stays a person's, whatever a mirror wants too.
fn note_keeper(transaction: &WriteTransaction, key: &[u8], keeper: &Keeper) -> Result<(), CatalogError> {
    let was_kept = transaction.open_table(tables::KEPT)?.insert(key, [].as_slice())?.is_some();
    let mut mirrored = transaction.open_table(tables::MIRRORED)?;
    match keeper {
        Keeper::Person => mirrored.remove(key)?,
        Keeper::Mirror(_) if was_kept => None,
        Keeper::Mirror(pattern) => mirrored.insert(key, pattern.to_string().as_bytes())?,
    };
    Ok(())
}

/// Publishing under a handle is a person's explicit act: from now on the handle means this key here, whoever else claims it, unless a
/// person decided otherwise before.
pub(crate) fn pin_own_handle(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
) -> Result<(), CatalogError> {
    let Some(profile) = look::profile(transaction, realm, publisher)? else { return Ok(()) };
    let key = keys::handle(realm, &profile.handle);
    let mut pins = transaction.open_table(tables::HANDLE_PINS)?;
    if pins.get(key.as_slice())?.is_none() {
        pins.insert(key.as_slice(), publisher.as_bytes().as_slice())?;
    }
    Ok(())
}

fn note_sha256(transaction: &WriteTransaction, realm: RealmId, manifest: &Manifest) -> Result<(), CatalogError> {
    let mut table = transaction.open_table(tables::SHA256)?;
    for file in &manifest.files {
        table.insert(keys::one(realm, &file.sha256).as_slice(), file.blake3.as_bytes().as_slice())?;
    }
    Ok(())
}
