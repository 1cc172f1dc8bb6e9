//! Looks into a bundle and verifies every byte of it, without a store and without taking anything in.
//!
//! Invariant: what it calls good applies anywhere in the bundle's realm, as far as the bundle itself can tell: a difference needs what it was
//! made against.

use std::{collections::BTreeMap, io};

use bao_tree::{BaoTree, ChunkRanges, io::sync::DecodeResponseIter};
use bytes::Bytes;
use cairn_protocol::{
    id::{PublisherKey, RealmId, RevisionId},
    name::{Handle, Publisher, RepoPath},
    record::{Body, Record},
};
use iroh_blobs::{protocol::ChunkRangesExt, store::IROH_BLOCK_SIZE};
use tokio::io::AsyncRead;

use super::{
    BundleError, Totals,
    check::Check,
    reader::{Frame, Reader, Segment},
};
use crate::{blobs::guard::raw, prepare::Progress};

/// What is in a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The realm in which it was made.
    pub realm: RealmId,
    /// How much it holds.
    pub totals: Totals,
    /// The revisions whose bytes it brings.
    pub revisions: Vec<ShownRevision>,
}

/// A revision of which a bundle brings bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownRevision {
    /// Of which repo; its publisher as a profile in the bundle claims to be called, else the key.
    pub repo: RepoPath,
    /// Which.
    pub revision: RevisionId,
    /// Files.
    pub files: u64,
    /// Bytes of them all.
    pub bytes: u64,
    /// Bytes of different blobs of it that are in the bundle.
    pub bytes_inside: u64,
}

/// Reads a bundle to its end and verifies all of it. `progress` hears of bytes of blobs.
pub async fn show_bundle(
    source: impl AsyncRead + Unpin + Send,
    progress: impl Fn(Progress) + Send,
) -> Result<Shown, BundleError> {
    let (mut reader, realm, totals) = Reader::open(source).await?;
    let mut check = Check::new(realm, totals);
    let mut done = 0;
    loop {
        let at = reader.at();
        match reader.next().await? {
            Frame::Record(envelope) => check.record(at, &envelope)?,
            Frame::Manifest(bytes) => drop(check.manifest(at, &bytes)?),
            Frame::Segment(segment) => {
                check.segment(at, &segment)?;
                let encoding = reader.encoding(&segment).await?;
                let verified = tokio::task::spawn_blocking(move || prove(&segment, &encoding)).await;
                verified.map_err(|error| BundleError::Read(io::Error::other(error)))??;
                done += segment.end() - segment.offset;
                progress(Progress { done, total: totals.bytes });
            }
            Frame::End => return check.end(at).map(|contents| shown(realm, &contents)),
        }
    }
}

/// Holds a segment against its blob's hash. `encoding` begins with the blob's size.
pub(super) fn prove(segment: &Segment, encoding: &Bytes) -> Result<(), BundleError> {
    let corrupt = BundleError::Corrupt { hash: segment.hash, from: segment.offset };
    let ranges = ChunkRanges::bytes(segment.offset..segment.end());
    let mut rest = io::Cursor::new(&encoding[8..]);
    let tree = BaoTree::new(segment.size, IROH_BLOCK_SIZE);
    let is_proved =
        DecodeResponseIter::new(raw(segment.hash).into(), tree, &mut rest, &ranges).all(|item| item.is_ok());
    let is_whole = rest.position() == rest.get_ref().len() as u64;
    if is_proved && is_whole { Ok(()) } else { Err(corrupt) }
}

fn shown(realm: RealmId, contents: &super::check::Contents) -> Shown {
    let handles: BTreeMap<PublisherKey, Handle> = contents.records.iter().filter_map(claim).collect();
    let revisions = contents.revisions.iter().map(|held| {
        let files = held.blobs().into_iter().skip(1);
        let bytes_inside = files.filter(|(hash, _)| contents.blobs.contains(hash)).map(|(_, size)| size).sum();
        let manifest = &held.manifest;
        let mut repo = manifest.repo.path();
        if let Some(handle) = handles.get(&manifest.repo.publisher) {
            repo.publisher = Publisher::Handle(handle.clone());
        }
        let (files, bytes) = (manifest.files.len() as u64, manifest.bytes());
        ShownRevision { repo, revision: held.revision, files, bytes, bytes_inside }
    });
    Shown { realm, totals: contents.totals, revisions: revisions.collect() }
}

/// What a profile that its own key signed claims to be called.
fn claim(record: &Record) -> Option<(PublisherKey, Handle)> {
    match record.body() {
        Ok(Body::Profile(profile)) => Some((record.key(), profile.handle)),
        _ => None,
    }
}
