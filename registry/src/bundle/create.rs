//! Writes a bundle: records, then manifests, then blobs, every byte verified as it leaves.
//!
//! Invariant: a bundle that was written to its end can be applied by a node that has nothing, or what the given summary says.

use std::{collections::BTreeMap, io};

use cairn_protocol::{
    id::{BlobHash, RecordId, RevisionId},
    limits::MANIFEST_BYTES_MAX,
};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{
    Totals, Wish,
    check::{Held, RECORDS_BYTES_MAX},
    format::{self, Kind, SEGMENT_BYTES},
    wish::{Chosen, choose},
};
use crate::{
    HoldError, Registry,
    blobs::{BlobError, TempPin, guard::raw},
    catalog::CatalogError,
    prepare::Progress,
};

/// Why a bundle could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Where it goes takes no more.
    #[error("the bundle can't be written: {0}")]
    Write(io::Error),
    /// None of what was asked for is kept here.
    #[error("no whole revision of what was asked for is kept here")]
    NothingKept,
    /// The summary is of another realm.
    #[error("the summary is of another realm than this node")]
    Realm,
    /// More records than one bundle takes.
    #[error("the records have {0} bytes, a bundle takes {RECORDS_BYTES_MAX}")]
    TooManyRecords(u64),
    /// A manifest can't be read.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The blob store failed, or a blob is damaged.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What goes into a bundle, pinned while it is written.
struct Outgoing {
    envelopes: BTreeMap<(u8, RecordId), Vec<u8>>,
    manifests: Vec<RevisionId>,
    blobs: BTreeMap<BlobHash, u64>,
    _pins: Vec<TempPin>,
}

impl Registry {
    /// Writes what `wish` names. `progress` hears of bytes of blobs. What was written when it fails, or when the future is dropped, is no bundle.
    pub async fn create_bundle(
        &self,
        wish: Wish,
        out: &mut (impl AsyncWrite + Unpin + Send),
        progress: impl Fn(Progress) + Send,
    ) -> Result<Totals, CreateError> {
        let outgoing = self.outgoing(wish).await?;
        let totals = Totals {
            records: outgoing.envelopes.len() as u64,
            revisions: outgoing.manifests.len() as u64,
            blobs: outgoing.blobs.len() as u64,
            bytes: outgoing.blobs.values().sum(),
        };
        let mut writer = Writer { out, digest: blake3::Hasher::new() };
        writer.digested(&format::header(self.realm(), &totals)).await?;
        for envelope in outgoing.envelopes.values() {
            writer.frame(Kind::Record, envelope).await?;
        }
        for revision in &outgoing.manifests {
            let bytes = self.blobs().read_all(BlobHash::from(*revision.as_bytes()), MANIFEST_BYTES_MAX as u64).await?;
            writer.frame(Kind::Manifest, &bytes).await?;
        }
        let mut done = 0;
        for (hash, size) in &outgoing.blobs {
            for offset in (0..*size).step_by(SEGMENT_BYTES as usize) {
                let end = size.min(&(offset + SEGMENT_BYTES)).to_owned();
                self.segment(&mut writer, *hash, *size, offset..end).await?;
                done += end - offset;
                progress(Progress { done, total: totals.bytes });
            }
        }
        writer.end().await?;
        Ok(totals)
    }

    /// Decides what goes in, and pins it.
    async fn outgoing(&self, wish: Wish) -> Result<Outgoing, CreateError> {
        let Wish { selection, records_only, since } = wish;
        if since.as_ref().is_some_and(|since| since.realm != self.realm()) {
            return Err(CreateError::Realm);
        }
        let realm = self.realm();
        let chosen = self.catalog().survey(move |transaction| choose(transaction, realm, selection)).await?;
        let Chosen { mut envelopes, revisions } = chosen;
        let has_record = |id: &RecordId| since.as_ref().is_some_and(|since| since.records.contains(id));
        let has_blob = |hash: &BlobHash| since.as_ref().is_some_and(|since| since.blobs.contains(hash));
        let (mut manifests, mut blobs, mut pins, mut named) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
        let mut whole = 0;
        for revision in revisions.into_iter().filter(|_| !records_only) {
            let Some(held) = self.whole(revision, &mut pins).await? else { continue };
            whole += 1;
            let all = held.blobs();
            if all.iter().all(|(hash, _)| has_blob(hash)) {
                continue;
            }
            // The manifest has a frame of its own, and an empty blob needs none.
            blobs.extend(all.into_iter().skip(1).filter(|(hash, size)| *size > 0 && !has_blob(hash)));
            named.extend(self.revision_ids(&held).await?);
            manifests.push(revision);
        }
        envelopes.retain(|(_, id), _| named.contains(id) || !has_record(id));
        match (envelopes.values().map(|envelope| envelope.len() as u64).sum(), whole) {
            (bytes, _) if bytes > RECORDS_BYTES_MAX => Err(CreateError::TooManyRecords(bytes)),
            (_, 0) if !records_only => Err(CreateError::NothingKept),
            _ => Ok(Outgoing { envelopes, manifests, blobs, _pins: pins }),
        }
    }

    /// A kept revision, if every byte of it is here; pinned from now on.
    async fn whole(&self, revision: RevisionId, pins: &mut Vec<TempPin>) -> Result<Option<Held>, CreateError> {
        let blob = BlobHash::from(*revision.as_bytes());
        pins.push(self.blobs().temp_pin(blob).await);
        let Some(manifest) = self.manifest(revision).await? else { return Ok(None) };
        let manifest_bytes = self.blobs().size(blob).await?.unwrap_or(0);
        let held = Held { revision, manifest_bytes, manifest };
        for (hash, size) in held.blobs() {
            pins.push(self.blobs().temp_pin(hash).await);
            if size > 0 && self.blobs().size(hash).await? != Some(size) {
                return Ok(None);
            }
        }
        Ok(Some(held))
    }

    /// The record by which a manifest is known to be wanted.
    async fn revision_ids(&self, held: &Held) -> Result<Option<RecordId>, CatalogError> {
        let (realm, repo, revision) = (self.realm(), held.manifest.repo.clone(), held.revision);
        let read = self.catalog().read(move |transaction| {
            let key = crate::catalog::keys::revision(realm, &repo, revision);
            crate::look::id_of(transaction, crate::catalog::tables::REVISIONS, &key)
        });
        Ok(read.await?.map(RecordId::from))
    }

    async fn segment<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut Writer<'_, W>,
        hash: BlobHash,
        size: u64,
        range: std::ops::Range<u64>,
    ) -> Result<(), CreateError> {
        let export = self.blobs().store().export_bao(raw(hash), ChunkRanges::bytes(range.clone()));
        let encoding = export.bao_to_vec().await;
        let damaged = |detail: String| BlobError::Corrupt { hash, detail };
        let encoding = encoding.map_err(|error| damaged(error.to_string()))?;
        let encoding = encoding.strip_prefix(&size.to_le_bytes()).ok_or_else(|| damaged("its size".to_owned()))?;
        let head = [&hash.as_bytes()[..], &size.to_le_bytes(), &range.start.to_le_bytes()].concat();
        writer.digested(&format::frame_head(Kind::Segment, head.len() + encoding.len())).await?;
        writer.digested(&head).await?;
        writer.plain(encoding).await
    }
}

struct Writer<'a, W> {
    out: &'a mut W,
    digest: blake3::Hasher,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    async fn frame(&mut self, kind: Kind, body: &[u8]) -> Result<(), CreateError> {
        self.digested(&format::frame_head(kind, body.len())).await?;
        self.digested(body).await
    }

    async fn digested(&mut self, bytes: &[u8]) -> Result<(), CreateError> {
        self.digest.update(bytes);
        self.plain(bytes).await
    }

    async fn plain(&mut self, bytes: &[u8]) -> Result<(), CreateError> {
        self.out.write_all(bytes).await.map_err(CreateError::Write)
    }

    async fn end(&mut self) -> Result<(), CreateError> {
        let digest = self.digest.finalize();
        self.frame(Kind::End, digest.as_bytes()).await?;
        self.out.flush().await.map_err(CreateError::Write)
    }
}
