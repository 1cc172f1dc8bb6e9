//! Takes a bundle in: blobs one by one, each durable before it counts; then every record and pin in one transaction.
//!
//! What has arrived of an apply that broke off lies in the stage cache until the next one takes it over: collections spare it over restarts, nobody
//! counts it as a copy, and it makes way when stages need the room.
//!
//! Invariant: before the transaction nothing of the bundle is visible; in it, every blob of what is kept is here whole and durable.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use cairn_protocol::{
    id::{BlobHash, RealmId, RevisionId},
    record::Record,
};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use redb::WriteTransaction;
use tokio::io::AsyncRead;

use super::{
    BundleError, Totals,
    check::{Check, Contents, Held},
    reader::{Frame, Reader, Segment},
    show::prove,
};
use crate::{
    Registry,
    blobs::{BlobError, TempPin, guard::raw, other},
    catalog::{CatalogError, keys, tables},
    commit::keep,
    holding::{Keeper, adopt_heads},
    look,
    prepare::Progress,
    records::{InsertError, Inserted, Origin, insert},
};

/// Blobs that arrived are made durable together when they have so many bytes, or are so many.
const SYNC_BYTES: u64 = 64 << 20;
const SYNC_BLOBS: usize = 512;

/// What becomes of a bundle of which the catalogue refuses a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manner {
    /// All of it is refused.
    #[default]
    Whole,
    /// The rest is taken in.
    KeepGoing,
}

/// What an apply did.
#[derive(Debug, Default)]
pub struct Applied {
    /// What was in the bundle.
    pub totals: Totals,
    /// Records that were not here.
    pub new_records: u64,
    /// Blobs that were not here, beside manifests.
    pub new_blobs: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// The revisions that are kept since now or before.
    pub kept: Vec<RevisionId>,
    /// Records that were refused, with the reason; only if asked to keep going.
    pub refused: Vec<BundleError>,
}

impl Registry {
    /// Takes in a bundle that a person brings. `progress` hears of bytes of blobs.
    ///
    /// Applying it again does nothing; after it failed, or the future was dropped, it goes on with what is here.
    pub async fn apply_bundle(
        &self,
        source: impl AsyncRead + Unpin + Send,
        manner: Manner,
        progress: impl Fn(Progress) + Send,
    ) -> Result<Applied, BundleError> {
        let (mut reader, realm, totals) = Reader::open(source).await?;
        if realm != self.realm() {
            return Err(BundleError::Realm { expected: self.realm(), found: realm });
        }
        let mut check = Check::new(realm, totals);
        let mut intake = Intake::new(self).await?;
        let mut done = 0;
        let contents = loop {
            let at = reader.at();
            match reader.next().await? {
                Frame::Record(envelope) => check.record(at, &envelope)?,
                Frame::Manifest(bytes) => {
                    check.manifest(at, &bytes)?;
                    intake.manifest(bytes).await?;
                }
                Frame::Segment(segment) => {
                    check.segment(at, &segment)?;
                    match intake.has(&segment).await? {
                        true => reader.skip(&segment).await?,
                        false => intake.segment(&segment, reader.encoding(&segment).await?).await?,
                    }
                    done += segment.end() - segment.offset;
                    progress(Progress { done, total: totals.bytes });
                }
                Frame::End => break check.end(at)?,
            }
        };
        intake.finish(contents, manner).await
    }
}

/// What has arrived, pinned while this lives.
struct Intake<'a> {
    registry: &'a Registry,
    pins: Vec<TempPin>,
    /// Whole, and not yet known to be durable.
    fresh: Vec<BlobHash>,
    fresh_bytes: u64,
    /// What this put into the stage cache, and takes out when it is done.
    lent: BTreeSet<BlobHash>,
    /// What was in the stage cache for a stage's sake, or an earlier apply's.
    cached: BTreeSet<BlobHash>,
    under_way: Option<BlobHash>,
    new_blobs: u64,
    new_bytes: u64,
}

impl<'a> Intake<'a> {
    async fn new(registry: &'a Registry) -> Result<Self, BundleError> {
        let cached = registry.blobs().stage_blobs().await?.into_iter().map(|blob| blob.hash).collect();
        Ok(Self {
            registry,
            pins: Vec::new(),
            fresh: Vec::new(),
            fresh_bytes: 0,
            lent: BTreeSet::new(),
            cached,
            under_way: None,
            new_blobs: 0,
            new_bytes: 0,
        })
    }

    async fn manifest(&mut self, bytes: Bytes) -> Result<(), BundleError> {
        let pin = self.registry.blobs().add(bytes).await?;
        self.fresh.push(pin.hash());
        self.pins.push(pin);
        Ok(())
    }

    /// Whether this part of a blob is here.
    async fn has(&mut self, segment: &Segment) -> Result<bool, BundleError> {
        if segment.offset == 0 {
            self.pins.push(self.registry.blobs().temp_pin(segment.hash).await);
        }
        let wanted = segment.offset..segment.end();
        Ok(self.registry.blobs().missing(segment.hash, segment.size, &[wanted]).await?.is_empty())
    }

    async fn segment(&mut self, segment: &Segment, encoding: Bytes) -> Result<(), BundleError> {
        let is_large = segment.end() < segment.size;
        let begins = is_large && self.under_way.replace(segment.hash) != Some(segment.hash);
        if begins {
            self.lend(&[segment.hash]).await?;
        }
        let ranges = ChunkRanges::bytes(segment.offset..segment.end());
        let store = self.registry.blobs().store();
        if let Err(error) = store.import_bao_bytes(raw(segment.hash), ranges, encoding.clone()).await {
            // The library does not say whose fault it was.
            prove(segment, &encoding)?;
            return Err(other(error).into());
        }
        if begins {
            // From here on the store finds again what it has of the blob, also after a kill.
            store.sync_db().await.map_err(other)?;
        }
        self.new_bytes += segment.end() - segment.offset;
        if self.registry.blobs().has(segment.hash).await? {
            self.new_blobs += 1;
            self.fresh_bytes += segment.size;
            self.fresh.push(segment.hash);
        }
        if self.fresh_bytes >= SYNC_BYTES || self.fresh.len() >= SYNC_BLOBS {
            self.make_durable().await?;
        }
        Ok(())
    }

    /// What is whole and durable needs not be read again, whatever happens from now on.
    async fn make_durable(&mut self) -> Result<(), BundleError> {
        let fresh = std::mem::take(&mut self.fresh);
        self.fresh_bytes = 0;
        self.registry.blobs().sync(&fresh).await?;
        self.lend(&fresh).await
    }

    async fn lend(&mut self, blobs: &[BlobHash]) -> Result<(), BundleError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        self.registry.blobs().protect_stage(blobs, now, u64::MAX).await?;
        self.lent.extend(blobs.iter().filter(|blob| !self.cached.contains(*blob)));
        Ok(())
    }

    /// Makes the rest durable, and takes in records and pins.
    async fn finish(mut self, contents: Contents, manner: Manner) -> Result<Applied, BundleError> {
        self.make_durable().await?;
        for held in &contents.revisions {
            self.require(held).await?;
        }
        let (registry, totals) = (self.registry.clone(), contents.totals);
        let (new_blobs, new_bytes, pins) = (self.new_blobs, self.new_bytes, self.pins);
        let lent = self.lent;
        let written = self.registry.see_through(async move {
            let realm = registry.realm();
            let write = move |transaction: &WriteTransaction| take_in(transaction, realm, &contents, &lent, manner);
            let written = registry.catalog().write(write).await;
            // Until here the temporary pins held the blobs; now the catalogue's do.
            drop(pins);
            registry.note_change(written.is_ok());
            written
        });
        let applied = written.await.ok_or(CatalogError::Closed)??;
        Ok(Applied { totals, new_blobs, new_bytes, ..applied })
    }

    /// Errs unless every blob of a revision is here whole; makes them durable.
    async fn require(&self, held: &Held) -> Result<(), BundleError> {
        let blobs = held.blobs();
        if blobs.iter().any(|(_, size)| *size == 0) {
            self.registry.blobs().add(Bytes::new()).await?;
        }
        let hashes: Vec<BlobHash> = blobs.iter().map(|(hash, _)| *hash).collect();
        self.registry.blobs().sync(&hashes).await?;
        self.registry.blobs().require(&blobs).await.map_err(|error| match error {
            BlobError::NotHeld { hash, .. } => BundleError::Missing { revision: held.revision, hash },
            error => error.into(),
        })
    }
}

/// Everything that becomes visible, at once.
fn take_in(
    transaction: &WriteTransaction,
    realm: RealmId,
    contents: &Contents,
    lent: &BTreeSet<BlobHash>,
    manner: Manner,
) -> Result<Applied, BundleError> {
    let mut applied = Applied::default();
    insert_all(transaction, realm, &contents.records, manner, &mut applied)?;
    for held in &contents.revisions {
        let (revision, manifest) = (held.revision, &held.manifest);
        keep(transaction, realm, revision, held.manifest_bytes, manifest, &Keeper::Person)?;
        adopt_heads(transaction, realm, revision, manifest)?;
        applied.kept.push(revision);
    }
    let mut cache = transaction.open_table(tables::STAGE_BLOBS).map_err(CatalogError::from)?;
    for blob in lent {
        cache.remove(keys::one(realm, blob.as_bytes()).as_slice()).map_err(CatalogError::from)?;
    }
    Ok(applied)
}

/// A record may need another that comes later (who signs for a publisher is in profiles, in no order), so what is refused is tried again for as
/// long as something else went in.
fn insert_all(
    transaction: &WriteTransaction,
    realm: RealmId,
    records: &[Record],
    manner: Manner,
    applied: &mut Applied,
) -> Result<(), BundleError> {
    let mut waiting: Vec<&Record> = records.iter().collect();
    loop {
        let mut refused = Vec::new();
        for record in &waiting {
            match insert(transaction, realm, record, Origin::Here) {
                Ok(Inserted::Known) => {}
                Ok(Inserted::New) => applied.new_records += 1,
                // A head behind others is kept for the history; a record that a newer one replaces is not.
                Ok(Inserted::Stale) => applied.new_records += u64::from(is_stored(transaction, realm, record)?),
                Err(InsertError::Catalog(error)) => return Err(error.into()),
                Err(error) => refused.push((*record, error)),
            }
        }
        if refused.is_empty() || refused.len() == waiting.len() {
            let mut errors = refused.into_iter().map(|(record, error)| BundleError::Refused { id: record.id(), error });
            return match (manner, errors.next()) {
                (Manner::Whole, Some(error)) => Err(error),
                (_, first) => {
                    applied.refused.extend(first.into_iter().chain(errors));
                    Ok(())
                }
            };
        }
        waiting = refused.into_iter().map(|(record, _)| record).collect();
    }
}

fn is_stored(transaction: &WriteTransaction, realm: RealmId, record: &Record) -> Result<bool, CatalogError> {
    let key = keys::record(realm, record.kind(), record.id());
    Ok(look::value_of(transaction, tables::RECORDS, &key)?.is_some())
}
