//! What this node has of a revision, and the pins by which it keeps it.
//!
//! It fetches nothing. A pinned revision may be held in part (`pull --include`): then its bytes stay, and it does not count as a
//! copy.
//!
//! Invariant: a revision in the record class was durable, as far as it was here, before the pin was.

use std::ops::ControlFlow;

use cairn_protocol::{
    id::{BlobHash, RealmId, RecordId, RevisionId},
    limits::MANIFEST_BYTES_MAX,
    manifest::{Manifest, ManifestError},
    name::RefName,
};
use redb::WriteTransaction;

use crate::{
    Registry,
    blobs::BlobError,
    catalog::{CatalogError, keys, tables},
    commit::{adopt, keep},
    listing, look,
    mirror::{self, Pattern},
};

/// Why a revision is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinClass {
    /// A person wants it here: it was published or pulled. Announced, and counted as a copy when it is whole.
    Record,
    /// The record class too, for as long as one of the mirror's patterns names it; a person's pin takes it over.
    Mirrored,
    /// A stage needed parts of it at `now_ms`; the longest unused parts go when all stages' parts pass `bytes_max`.
    StageCache {
        /// Now, by this node's clock.
        now_ms: u64,
        /// The ceiling.
        bytes_max: u64,
    },
}

/// Whose wish keeps a revision in the record class.
pub(crate) enum Keeper {
    /// A person's act.
    Person,
    /// This pattern alone.
    Mirror(Pattern),
}

/// How much of a revision is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    /// Whether the manifest and every byte of every file is here, by the store's book-keeping. A blob of another size than the
    /// manifest states makes no whole copy of what was published.
    pub whole: bool,
    /// Whether it is pinned in the record class.
    pub kept: bool,
    /// Bytes of its files that are here, every blob counted once.
    pub bytes_held: u64,
    /// Bytes of its files; `None` while the manifest is not here.
    pub bytes_total: Option<u64>,
}

/// Why a holding could not be told or changed.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Its manifest is not here.
    #[error("the manifest of revision {0} is not here")]
    NoManifest(RevisionId),
    /// The manifest's bytes are what the id names, and still not a manifest, or one of another realm.
    #[error("revision {revision} has no valid manifest: {error}")]
    Manifest {
        /// The revision.
        revision: RevisionId,
        /// What is wrong.
        error: ManifestError,
    },
    /// It was to be kept for a mirror, and none of its patterns names it any more.
    #[error("no mirror names revision {0} any more")]
    NotMirrored(RevisionId),
    /// The blob store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Registry {
    /// The manifest, if its blob is here; its bytes are verified against the id.
    pub async fn manifest(&self, revision: RevisionId) -> Result<Option<Manifest>, HoldError> {
        match self.blobs().read_all(blob_of(revision), MANIFEST_BYTES_MAX as u64).await {
            Ok(bytes) => {
                let manifest = Manifest::parse(&bytes).map_err(|error| HoldError::Manifest { revision, error })?;
                Ok(Some(manifest))
            }
            Err(BlobError::NotHeld { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How much of a revision is here.
    pub async fn held(&self, revision: RevisionId) -> Result<Holding, HoldError> {
        let kept = self.is_kept(revision).await?;
        let Some(manifest) = self.manifest(revision).await? else { return Ok(Holding { kept, ..Holding::default() }) };
        let mut files: Vec<(BlobHash, u64)> = manifest.files.iter().map(|file| (file.blake3, file.size)).collect();
        files.sort_unstable();
        files.dedup();
        let (mut bytes_held, mut bytes_total, mut sizes_fit) = (0, 0, true);
        for (blob, size) in files {
            bytes_total += size;
            let held = match self.blobs().size(blob).await? {
                Some(actual) => {
                    sizes_fit &= actual == size;
                    actual
                }
                None => self.blobs().bytes_held(blob).await?,
            };
            bytes_held += held.min(size);
        }
        Ok(Holding { whole: sizes_fit && bytes_held == bytes_total, kept, bytes_held, bytes_total: Some(bytes_total) })
    }

    /// Whether all of a revision is here and kept. What can't be told counts as no.
    pub async fn keeps_whole(&self, revision: RevisionId) -> bool {
        self.is_kept(revision).await.is_ok_and(|kept| kept) && self.held(revision).await.is_ok_and(|held| held.whole)
    }

    /// Pins a revision whose manifest is here. In the record class, what is here of it is made durable first.
    pub async fn pin(&self, revision: RevisionId, class: PinClass) -> Result<(), HoldError> {
        let manifest = self.manifest(revision).await?.ok_or(HoldError::NoManifest(revision))?;
        let mut blobs = vec![blob_of(revision)];
        blobs.extend(manifest.files.iter().map(|file| file.blake3));
        blobs.sort_unstable();
        blobs.dedup();
        match class {
            PinClass::Record | PinClass::Mirrored => self.pin_record(revision, class, manifest, blobs).await,
            PinClass::StageCache { now_ms, bytes_max } => {
                let mut here = Vec::new();
                for blob in blobs {
                    if self.blobs().bytes_held(blob).await? > 0 {
                        here.push(blob);
                    }
                }
                self.blobs().protect_stage(&here, now_ms, bytes_max).await?;
                Ok(())
            }
        }
    }

    /// Takes a revision out of the record class; its bytes go with the next collection if nothing else pins them. `false` if it
    /// was not kept.
    pub async fn unpin(&self, revision: RevisionId) -> Result<bool, HoldError> {
        let realm = self.realm();
        let removed = self
            .catalog()
            .write(move |transaction| Ok::<_, CatalogError>(let_go(transaction, realm, revision)?.is_some()));
        let removed = removed.await?;
        self.note_change(removed);
        Ok(removed)
    }

    /// The revisions of the record class, by id.
    pub async fn kept(&self) -> Result<Vec<RevisionId>, CatalogError> {
        let prefix = keys::realm(self.realm());
        let read = self.catalog().read(move |transaction| {
            let mut kept = Vec::new();
            look::visit(transaction, tables::KEPT, &prefix, None, |key, _| {
                kept.push(RevisionId::from(keys::last_id(key)?));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(kept)
        });
        read.await
    }

    /// The kept revisions that contain this blob, whoever published them.
    pub async fn kept_with(&self, blob: BlobHash) -> Result<Vec<RevisionId>, CatalogError> {
        let prefix = keys::realm(self.realm());
        let read = self.catalog().read(move |transaction| {
            let mut kept = Vec::new();
            look::visit(transaction, tables::KEPT_BLOBS, &prefix, None, |key, _| {
                if keys::last_blob(key)? == blob {
                    kept.push(RevisionId::from(keys::last_id(&key[..key.len() - keys::ID])?));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(kept)
        });
        read.await
    }

    /// Whether a revision is in the record class.
    pub async fn is_kept(&self, revision: RevisionId) -> Result<bool, CatalogError> {
        let key = keys::one(self.realm(), revision.as_bytes());
        self.catalog().read(move |transaction| Ok(look::value_of(transaction, tables::KEPT, &key)?.is_some())).await
    }

    /// The blob that has this SHA-256, if bytes with it were ever hashed here.
    pub async fn blob_with_sha256(&self, sha256: [u8; 32]) -> Result<Option<BlobHash>, CatalogError> {
        let key = keys::one(self.realm(), &sha256);
        let read = self.catalog().read(move |transaction| look::id_of(transaction, tables::SHA256, &key));
        Ok(read.await?.map(BlobHash::from))
    }

    async fn pin_record(
        &self,
        revision: RevisionId,
        class: PinClass,
        manifest: Manifest,
        blobs: Vec<BlobHash>,
    ) -> Result<(), HoldError> {
        self.blobs().sync(&blobs).await?;
        let manifest_bytes = self.blobs().size(blob_of(revision)).await?.unwrap_or(0);
        let realm = self.realm();
        let written = self.catalog().write::<_, HoldError, _>(move |transaction| {
            let keeper = match class {
                PinClass::Mirrored => Keeper::Mirror(
                    mirror::naming(transaction, realm, revision)?.ok_or(HoldError::NotMirrored(revision))?,
                ),
                PinClass::Record | PinClass::StageCache { .. } => Keeper::Person,
            };
            keep(transaction, realm, revision, manifest_bytes, &manifest, &keeper)?;
            Ok(adopt_heads(transaction, realm, revision, &manifest)?)
        });
        written.await?;
        self.note_change(true);
        Ok(())
    }
}

/// A revision's manifest is the blob of the same hash.
pub(crate) fn blob_of(revision: RevisionId) -> BlobHash {
    BlobHash::from(*revision.as_bytes())
}

/// Takes a revision out of the record class, whoever wanted it. Answers its blobs, if it was kept.
pub(crate) fn let_go(
    transaction: &WriteTransaction,
    realm: RealmId,
    revision: RevisionId,
) -> Result<Option<Vec<BlobHash>>, CatalogError> {
    let key = keys::one(realm, revision.as_bytes());
    let was_kept = transaction.open_table(tables::KEPT)?.remove(key.as_slice())?.is_some();
    transaction.open_table(tables::MIRRORED)?.remove(key.as_slice())?;
    let mut kept = transaction.open_table(tables::KEPT_BLOBS)?;
    let mut keepers = transaction.open_table(tables::BLOB_KEEPERS)?;
    let end = keys::after(&key).unwrap_or_default();
    let mut rows = Vec::new();
    kept.retain_in::<&[u8], _>(key.as_slice()..end.as_slice(), |key, _| {
        rows.push(key.to_vec());
        false
    })?;
    let mut blobs = Vec::with_capacity(rows.len());
    for row in rows {
        keepers.remove(keys::swapped(&row)?.as_slice())?;
        blobs.push(keys::last_blob(&row)?);
    }
    Ok(was_kept.then_some(blobs))
}

/// A node that keeps a revision stays with the heads that stand for it now, should second heads of their numbers turn up.
pub(crate) fn adopt_heads(
    transaction: &WriteTransaction,
    realm: RealmId,
    revision: RevisionId,
    manifest: &Manifest,
) -> Result<(), CatalogError> {
    let mut standing: Vec<(RefName, RecordId)> = Vec::new();
    for state in listing::refs(transaction, realm, &manifest.repo)? {
        standing.extend(state.head.filter(|head| head.revision == revision).map(|head| (state.name, head.id)));
    }
    for (name, head) in standing {
        adopt(transaction, realm, &manifest.repo, &name, head)?;
    }
    Ok(())
}
