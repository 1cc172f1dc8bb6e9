//! What may follow what in a bundle, and what of it is wanted. Pure: it is told of frames and answers what to do.
//!
//! Invariant: a manifest is taken only if a verified record names it, a segment only if a taken manifest needs that blob, of that size, and it is the
//! next in order; so nothing can be put onto a disk that no publisher signed for.

use std::collections::{BTreeMap, BTreeSet};

use cairn_protocol::{
    id::{BlobHash, RealmId, RecordId, RevisionId},
    manifest::Manifest,
    name::RepoId,
    record::{Body, Record},
};

use super::{
    BundleError, Totals,
    format::{Kind, SEGMENT_BYTES},
    reader::Segment,
};

/// Bytes of records that are held until they are taken in at once: some millions.
pub(super) const RECORDS_BYTES_MAX: u64 = 2 << 30;

/// A manifest of the bundle.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) revision: RevisionId,
    pub(super) manifest_bytes: u64,
    pub(super) manifest: Manifest,
}

/// What came until now.
#[derive(Debug)]
pub(super) struct Check {
    realm: RealmId,
    expected: Totals,
    part: Kind,
    records: Vec<Record>,
    ids: BTreeSet<RecordId>,
    record_bytes: u64,
    signed: BTreeMap<RevisionId, Vec<RepoId>>,
    revisions: Vec<Held>,
    wanted: BTreeMap<BlobHash, u64>,
    seen: BTreeSet<BlobHash>,
    /// The blob under way, and where its next segment begins.
    under_way: Option<(BlobHash, u64)>,
    bytes: u64,
}

impl Check {
    pub(super) fn new(realm: RealmId, expected: Totals) -> Self {
        Self {
            realm,
            expected,
            part: Kind::Record,
            records: Vec::new(),
            ids: BTreeSet::new(),
            record_bytes: 0,
            signed: BTreeMap::new(),
            revisions: Vec::new(),
            wanted: BTreeMap::new(),
            seen: BTreeSet::new(),
            under_way: None,
            bytes: 0,
        }
    }

    /// Takes in an envelope that was read at `at`.
    pub(super) fn record(&mut self, at: u64, envelope: &[u8]) -> Result<(), BundleError> {
        self.enter(at, Kind::Record)?;
        let invalid = |error| BundleError::Record { at, error };
        let record = Record::verify(envelope).map_err(invalid)?;
        if record.realm() != self.realm {
            return Err(BundleError::Realm { expected: self.realm, found: record.realm() });
        }
        self.record_bytes += envelope.len() as u64;
        if self.record_bytes > RECORDS_BYTES_MAX {
            return Err(BundleError::Frame { at, reason: "more bytes of records than are taken in at once" });
        }
        if let Body::Revision(revision) = record.body().map_err(invalid)? {
            self.signed.entry(revision.revision).or_default().push(revision.repo(record.key()));
        }
        if !self.ids.insert(record.id()) {
            return Err(BundleError::Frame { at, reason: "a record that came before" });
        }
        self.records.push(record);
        Ok(())
    }

    /// Takes in a manifest.
    pub(super) fn manifest(&mut self, at: u64, bytes: &[u8]) -> Result<RevisionId, BundleError> {
        self.enter(at, Kind::Manifest)?;
        let revision = RevisionId::from(*blake3::hash(bytes).as_bytes());
        // Taken out, so that a second one of the revision is refused too.
        let repos = self.signed.remove(&revision);
        let repos = repos.ok_or(BundleError::Frame { at, reason: "a manifest that no record before names" })?;
        let invalid = |error| BundleError::Manifest { revision, error };
        let manifest = Manifest::parse(bytes).map_err(invalid)?;
        if manifest.realm != self.realm {
            return Err(BundleError::Realm { expected: self.realm, found: manifest.realm });
        }
        if !repos.contains(&manifest.repo) {
            return Err(BundleError::Frame { at, reason: "a manifest of another repo than its record's" });
        }
        for file in &manifest.files {
            if *self.wanted.entry(file.blake3).or_insert(file.size) != file.size {
                return Err(BundleError::Frame { at, reason: "two sizes for one blob" });
            }
        }
        self.revisions.push(Held { revision, manifest_bytes: bytes.len() as u64, manifest });
        Ok(revision)
    }

    /// Whether this segment may come now.
    pub(super) fn segment(&mut self, at: u64, segment: &Segment) -> Result<(), BundleError> {
        self.enter(at, Kind::Segment)?;
        let damaged = |reason| Err(BundleError::Frame { at, reason });
        if self.wanted.get(&segment.hash) != Some(&segment.size) {
            return damaged("bytes that no manifest before needs");
        }
        let expected = self.under_way.unwrap_or((segment.hash, 0));
        if (segment.hash, segment.offset) != expected || segment.offset >= segment.size {
            return damaged("a segment out of order");
        }
        if self.under_way.is_none() && !self.seen.insert(segment.hash) {
            return damaged("a blob that came before");
        }
        let end = segment.end();
        self.bytes += end - segment.offset;
        self.under_way = (end < segment.size).then_some((segment.hash, end));
        Ok(())
    }

    /// Whether the bundle may end now; what came in it.
    pub(super) fn end(mut self, at: u64) -> Result<Contents, BundleError> {
        self.enter(at, Kind::End)?;
        let totals = Totals {
            records: self.records.len() as u64,
            revisions: self.revisions.len() as u64,
            blobs: self.seen.len() as u64,
            bytes: self.bytes,
        };
        if totals != self.expected {
            return Err(BundleError::Frame { at, reason: "more or less than the header says" });
        }
        Ok(Contents { records: self.records, revisions: self.revisions, totals, blobs: self.seen })
    }

    fn enter(&mut self, at: u64, part: Kind) -> Result<(), BundleError> {
        if part < self.part {
            return Err(BundleError::Frame { at, reason: "records, manifests and segments are not in this order" });
        }
        if self.under_way.is_some() && part != Kind::Segment {
            return Err(BundleError::Frame { at, reason: "a blob breaks off" });
        }
        self.part = part;
        Ok(())
    }
}

/// A whole bundle but the bytes of its blobs.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) records: Vec<Record>,
    pub(super) revisions: Vec<Held>,
    pub(super) totals: Totals,
    pub(super) blobs: BTreeSet<BlobHash>,
}

impl Held {
    /// Every blob of the revision with its size, each once, the manifest's first.
    pub(super) fn blobs(&self) -> Vec<(BlobHash, u64)> {
        let files: BTreeSet<_> = self.manifest.files.iter().map(|file| (file.blake3, file.size)).collect();
        let manifest = (BlobHash::from(*self.revision.as_bytes()), self.manifest_bytes);
        std::iter::once(manifest).chain(files).collect()
    }
}

impl Segment {
    /// Where its bytes end in the blob.
    pub(super) fn end(&self) -> u64 {
        self.size.min(self.offset.saturating_add(SEGMENT_BYTES))
    }
}
