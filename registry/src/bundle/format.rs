//! A bundle, byte by byte. Numbers are little-endian. Not what the parts mean, and no reading or writing.
//!
//! ```text
//! header   "CairnBdl" ‖ version u32 ‖ realm (32) ‖ totals: records u64 ‖ manifests u64 ‖ blobs u64 ‖ bytes of blobs u64
//! frame*   kind u8 ‖ length u32 ‖ body (length)
//!            1 record     the envelope
//!            2 manifest   its bytes; their BLAKE3 is a revision of which a record came before
//!            3 segment    blob (32) ‖ size of the blob u64 ‖ offset u64 ‖ proof and data, as BLAKE3 streams interleave them (bao, 16 KiB groups)
//! end      4 ‖ 32 ‖ BLAKE3 of everything before, save the proof and data of segments, which prove themselves
//! ```
//!
//! Records come first, then manifests, then segments: whatever comes is known to be wanted. A blob of n bytes is ceil(n / 4 MiB) segments, in order;
//! a reader that has one skips it. An empty blob has none.
//!
//! Invariant: no length is larger than its kind's limit, so a frame is never more than that in memory.

use cairn_protocol::{
    id::RealmId,
    limits::{MANIFEST_BYTES_MAX, RECORD_BYTES_MAX},
};

/// The first bytes of every bundle.
pub(super) const MAGIC: &[u8; 8] = b"CairnBdl";

/// The version of the layout.
pub(super) const VERSION: u32 = 1;

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 8 + 4 + 32 + 4 * 8;

/// Bytes of kind and length.
pub(super) const FRAME_HEAD_BYTES: usize = 1 + 4;

/// Bytes of a blob in one segment; the last has the rest.
pub(super) const SEGMENT_BYTES: u64 = 4 << 20;

/// Blob, size and offset.
pub(super) const SEGMENT_HEAD_BYTES: usize = 32 + 8 + 8;

/// A pair of hashes for each group of 16 KiB and for each level above the segment; a tree has at most 64 levels.
const PROOF_BYTES_MAX: u64 = 64 * (SEGMENT_BYTES / (16 << 10) + 64);

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Record = 1,
    Manifest = 2,
    Segment = 3,
    End = 4,
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Record, Kind::Manifest, Kind::Segment, Kind::End].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whether a body of this kind may have so many bytes.
    pub(super) fn permits(self, length: u64) -> bool {
        match self {
            Kind::Record => length <= RECORD_BYTES_MAX as u64,
            Kind::Manifest => length <= MANIFEST_BYTES_MAX as u64,
            Kind::Segment => {
                length > SEGMENT_HEAD_BYTES as u64
                    && length <= SEGMENT_HEAD_BYTES as u64 + SEGMENT_BYTES + PROOF_BYTES_MAX
            }
            Kind::End => length == 32,
        }
    }
}

/// How much a bundle holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records.
    pub records: u64,
    /// Revisions with their bytes.
    pub revisions: u64,
    /// Blobs, beside manifests.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The header of a bundle.
pub(super) fn header(realm: RealmId, totals: &Totals) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), realm.as_bytes()].concat();
    for count in [totals.records, totals.revisions, totals.blobs, totals.bytes] {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    bytes
}

/// What a header says: (version, realm, totals). `None` when it is no header of a bundle.
pub(super) fn parse_header(bytes: &[u8; HEADER_BYTES]) -> Option<(u32, RealmId, Totals)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (realm, rest) = rest.split_first_chunk::<32>()?;
    let mut counts = rest.chunks_exact(8).map(|count| count.try_into().map(u64::from_le_bytes));
    let mut next = || counts.next()?.ok();
    let totals = Totals { records: next()?, revisions: next()?, blobs: next()?, bytes: next()? };
    Some((u32::from_le_bytes(*version), RealmId::from(*realm), totals))
}

/// Kind and length of a frame.
pub(super) fn frame_head(kind: Kind, length: usize) -> [u8; FRAME_HEAD_BYTES] {
    let mut head = [kind as u8; FRAME_HEAD_BYTES];
    // Every kind's limit is far below 4 GiB.
    head[1..].copy_from_slice(&(length as u32).to_le_bytes());
    head
}
