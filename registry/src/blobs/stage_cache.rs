//! Blobs that a stage needed: kept while there is room, the longest unused first to go. Not announced, not counted as a copy.
//!
//! Invariant: what is forgotten here is only unpinned; garbage collection removes the bytes if nothing else pins them.

use cairn_protocol::id::BlobHash;
use redb::ReadableTable;

use super::{BlobError, Blobs};
use crate::catalog::{
    CatalogError,
    keys::{self, damaged},
    tables,
};

/// One blob of the stage cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageBlob {
    /// The blob.
    pub hash: BlobHash,
    /// When a stage last asked for it, by this node's clock.
    pub used_ms: u64,
    /// Bytes of it that are here.
    pub bytes: u64,
}

impl Blobs {
    /// Notes that a stage uses these blobs at `now_ms`, and unpins the longest unused ones until the cache fits
    /// `bytes_max` (the blobs just named stay in any case). Returns what was unpinned.
    pub async fn protect_stage(
        &self,
        hashes: &[BlobHash],
        now_ms: u64,
        bytes_max: u64,
    ) -> Result<Vec<BlobHash>, BlobError> {
        let mut used = Vec::with_capacity(hashes.len());
        for hash in hashes {
            used.push(StageBlob { hash: *hash, used_ms: now_ms, bytes: self.bytes_held(*hash).await? });
        }
        let realm = self.realm;
        let evicted = self.catalog.write::<_, CatalogError, _>(move |transaction| {
            let mut table = transaction.open_table(tables::STAGE_BLOBS)?;
            for blob in &used {
                let value = [blob.used_ms.to_le_bytes(), blob.bytes.to_le_bytes()].concat();
                table.insert(keys::one(realm, blob.hash.as_bytes()).as_slice(), value.as_slice())?;
            }
            let held = read_cache(&table, &keys::realm(realm))?;
            let evicted = to_evict(held, &used, bytes_max);
            for hash in &evicted {
                table.remove(keys::one(realm, hash.as_bytes()).as_slice())?;
            }
            Ok(evicted)
        });
        Ok(evicted.await?)
    }

    /// What the stage cache holds.
    pub async fn stage_blobs(&self) -> Result<Vec<StageBlob>, BlobError> {
        let realm = self.realm;
        let held = self.catalog.read::<_, CatalogError, _>(move |transaction| {
            read_cache(&transaction.open_table(tables::STAGE_BLOBS)?, &keys::realm(realm))
        });
        Ok(held.await?)
    }
}

fn read_cache(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
) -> Result<Vec<StageBlob>, CatalogError> {
    let mut held = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        let (used, bytes) = value.value().split_first_chunk::<8>().ok_or_else(|| damaged("a stage blob"))?;
        let bytes = bytes.try_into().map_err(|_| damaged("a stage blob"))?;
        held.push(StageBlob {
            hash: keys::last_blob(key.value())?,
            used_ms: u64::from_le_bytes(*used),
            bytes: u64::from_le_bytes(bytes),
        });
    }
    Ok(held)
}

/// Pure: the longest unused blobs, until the rest fits. What is used right now stays.
fn to_evict(mut held: Vec<StageBlob>, used: &[StageBlob], bytes_max: u64) -> Vec<BlobHash> {
    let mut bytes: u64 = held.iter().map(|blob| blob.bytes).sum();
    held.retain(|blob| !used.iter().any(|used| used.hash == blob.hash));
    held.sort_by_key(|blob| (blob.used_ms, blob.hash));
    let mut evicted = Vec::new();
    for blob in held {
        if bytes <= bytes_max {
            break;
        }
        bytes -= blob.bytes;
        evicted.push(blob.hash);
    }
    evicted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(id: u8, used_ms: u64, bytes: u64) -> StageBlob {
        StageBlob { hash: BlobHash::from([id; 32]), used_ms, bytes }
    }

    #[test]
    fn the_longest_unused_blob_goes_first_and_only_as_many_as_needed() {
        let held = vec![blob(1, 30, 10), blob(2, 10, 10), blob(3, 20, 10)];
        assert_eq!(to_evict(held.clone(), &[], 30), []);
        assert_eq!(to_evict(held.clone(), &[], 25), [BlobHash::from([2; 32])]);
        assert_eq!(to_evict(held, &[], 10), [BlobHash::from([2; 32]), BlobHash::from([3; 32])]);
    }

    #[test]
    fn a_blob_in_use_stays_even_when_it_alone_is_too_big() {
        let held = vec![blob(1, 30, 100), blob(2, 10, 10)];
        assert_eq!(to_evict(held, &[blob(1, 30, 100)], 50), [BlobHash::from([2; 32])]);
    }
}
