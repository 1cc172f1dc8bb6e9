//! What a node holds, as a small file: another node that is given it writes only what is lacking.
//!
//! ```text
//! "CairnSum" ‖ version u32 ‖ realm (32) ‖ records u64 ‖ blobs u64 ‖ id of a record (32)* ‖ blob (32)* ‖ BLAKE3 of everything before (32)
//! ```
//!
//! Numbers are little-endian; ids and blobs are sorted. It is a claim: a wrong one makes a bundle that lacks something, which whoever applies it is
//! told.
//!
//! Invariant: a blob in a node's own summary is of a kept revision and here whole.

use std::{collections::BTreeSet, ops::ControlFlow};

use cairn_protocol::id::{BlobHash, RealmId, RecordId};

use crate::{
    Registry,
    blobs::BlobError,
    catalog::{CatalogError, keys, tables},
    look,
};

const MAGIC: &[u8; 8] = b"CairnSum";
const VERSION: u32 = 1;

/// Bytes before the ids.
const HEAD_BYTES: usize = 8 + 4 + 32 + 8 + 8;

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Of which realm.
    pub realm: RealmId,
    /// Its records, as they are compared with peers'.
    pub records: BTreeSet<RecordId>,
    /// The blobs that it keeps.
    pub blobs: BTreeSet<BlobHash>,
}

/// Why bytes are no summary.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// They are something else.
    #[error("this is no summary of a node")]
    NotASummary,
    /// Of a later version.
    #[error("the summary is of version {0}, version {VERSION} is understood")]
    Version(u32),
    /// Its length or its digest is wrong.
    #[error("the summary is damaged or not whole")]
    Damaged,
}

impl Summary {
    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let ids = self.records.iter().map(RecordId::as_bytes).chain(self.blobs.iter().map(BlobHash::as_bytes));
        let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), self.realm.as_bytes()].concat();
        for count in [self.records.len(), self.blobs.len()] {
            bytes.extend_from_slice(&(count as u64).to_le_bytes());
        }
        for id in ids {
            bytes.extend_from_slice(id);
        }
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }

    /// From a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, SummaryError> {
        let head = bytes.get(..HEAD_BYTES).filter(|head| head.starts_with(MAGIC)).ok_or(SummaryError::NotASummary)?;
        let version = head[8..12].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
        if version != VERSION {
            return Err(SummaryError::Version(version));
        }
        let (signed, digest) = bytes.split_last_chunk::<32>().ok_or(SummaryError::Damaged)?;
        if blake3::hash(signed).as_bytes() != digest {
            return Err(SummaryError::Damaged);
        }
        let count = |at: usize| head[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (ids, rest) = signed.get(HEAD_BYTES..).ok_or(SummaryError::Damaged)?.as_chunks::<32>();
        if !rest.is_empty() || count(44).checked_add(count(52)) != Some(ids.len() as u64) {
            return Err(SummaryError::Damaged);
        }
        let (records, blobs) = ids.split_at(count(44) as usize);
        let realm = RealmId::try_from(&head[12..44]).map_err(|_| SummaryError::Damaged)?;
        Ok(Self {
            realm,
            records: records.iter().copied().map(RecordId::from).collect(),
            blobs: blobs.iter().copied().map(BlobHash::from).collect(),
        })
    }
}

impl Registry {
    /// What this node holds, for [`crate::Wish::since`] of another.
    pub async fn bundle_summary(&self) -> Result<Summary, BlobError> {
        let realm = self.realm();
        let read = self.catalog().survey::<_, CatalogError, _>(move |transaction| {
            let mut records = BTreeSet::new();
            look::visit(transaction, tables::LIVE, &keys::realm(realm), None, |key, _| {
                records.insert(RecordId::from(keys::last_id(key)?));
                Ok(ControlFlow::Continue(()))
            })?;
            let mut kept = BTreeSet::new();
            look::visit(transaction, tables::KEPT_BLOBS, &keys::realm(realm), None, |key, _| {
                kept.insert(keys::last_blob(key)?);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok((records, kept))
        });
        let (records, kept) = read.await?;
        let mut blobs = BTreeSet::new();
        for blob in kept {
            if self.blobs().has(blob).await? {
                blobs.insert(blob);
            }
        }
        Ok(Summary { realm, records, blobs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            realm: RealmId::PUBLIC,
            records: [[1; 32], [2; 32]].map(RecordId::from).into(),
            blobs: [[3; 32]].map(BlobHash::from).into(),
        }
    }

    #[test]
    fn a_summary_reads_back_as_it_was_written() {
        assert_eq!(Summary::parse(&summary().to_bytes()).unwrap(), summary());
    }

    #[test]
    fn a_summary_with_any_byte_changed_or_cut_off_is_refused() {
        let bytes = summary().to_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(Summary::parse(&changed).is_err(), "byte {at} was changed");
            assert!(Summary::parse(&bytes[..at]).is_err(), "{at} bytes were left");
        }
    }
}
