//! How many bytes mirroring may bring a day, and how many it brought: counted in the catalogue, so that a restart forgets nothing.
//!
//! Bytes are noted as spent before they are fetched, and what did not come is given back: after a kill too much counts as spent, never
//! too little. Invariant: a day's count goes with its day.

use std::collections::BTreeSet;

use cairn_protocol::id::{RealmId, RevisionId};
use redb::{ReadableTable, Table, WriteTransaction};

use crate::{
    Registry,
    catalog::{CatalogError, keys, tables},
};

/// What is left of a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that may come a day.
    pub bytes_per_day: u64,
    /// Bytes of today.
    pub spent: u64,
    /// Revisions that are being fetched: theirs are spent already.
    pub begun: BTreeSet<RevisionId>,
}

impl Budget {
    /// Whether so many more may come today. What is more than a day's comes as the first of a day, else it never would.
    pub fn allows(&self, bytes: u64) -> bool {
        self.spent == 0 || self.spent.saturating_add(bytes) <= self.bytes_per_day
    }
}

impl Registry {
    /// Bytes that mirroring brought on a day (days since 1970, UTC), if that is the last day of which something is known.
    pub async fn mirrored_bytes(&self, day: u64) -> Result<u64, CatalogError> {
        let realm = self.realm();
        self.catalog().read(move |transaction| spent(&transaction.open_table(tables::META)?, realm, day)).await
    }

    /// Notes bytes of a day before they are fetched. `false` if the budget ([`Budget::allows`]) leaves no room for them; then nothing is
    /// noted.
    pub async fn spend_mirrored(&self, day: u64, bytes: u64, bytes_per_day: u64) -> Result<bool, CatalogError> {
        let realm = self.realm();
        let write = move |transaction: &WriteTransaction| {
            let mut table = transaction.open_table(tables::META)?;
            let spent = spent(&table, realm, day)?;
            let allowed = Budget { bytes_per_day, spent, begun: BTreeSet::new() }.allows(bytes);
            if allowed {
                note(&mut table, realm, day, spent.saturating_add(bytes))?;
            }
            Ok(allowed)
        };
        self.catalog().write(write).await
    }

    /// Says how many bytes came of those that were noted. Of a day that is over nothing is kept.
    pub async fn settle_mirrored(&self, day: u64, noted: u64, came: u64) -> Result<(), CatalogError> {
        let realm = self.realm();
        let write = move |transaction: &WriteTransaction| {
            let mut table = transaction.open_table(tables::META)?;
            let row = row(&table, realm)?.filter(|(of, _)| *of == day);
            row.map_or(Ok(()), |(_, spent)| {
                note(&mut table, realm, day, spent.saturating_sub(noted).saturating_add(came))
            })
        };
        self.catalog().write(write).await
    }
}

type Meta<'a> = Table<'a, &'static str, &'static [u8]>;

type Row = (u64, u64);

fn spent(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    realm: RealmId,
    day: u64,
) -> Result<u64, CatalogError> {
    Ok(row(table, realm)?.filter(|(of, _)| *of == day).map_or(0, |(_, spent)| spent))
}

/// The last day of which something is known, and its bytes.
fn row(table: &impl ReadableTable<&'static str, &'static [u8]>, realm: RealmId) -> Result<Option<Row>, CatalogError> {
    let Some(row) = table.get(meta_key(realm).as_str())? else { return Ok(None) };
    let (day, spent) = row.value().split_first_chunk().ok_or_else(|| keys::damaged("the bytes of a day"))?;
    let spent: [u8; 8] = spent.try_into().map_err(|_| keys::damaged("the bytes of a day"))?;
    Ok(Some((u64::from_le_bytes(*day), u64::from_le_bytes(spent))))
}

fn note(table: &mut Meta<'_>, realm: RealmId, day: u64, spent: u64) -> Result<(), CatalogError> {
    let row = [day.to_le_bytes(), spent.to_le_bytes()].concat();
    table.insert(meta_key(realm).as_str(), row.as_slice())?;
    Ok(())
}

fn meta_key(realm: RealmId) -> String {
    format!("{}{realm}", tables::MIRRORED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_days_count_outlives_a_restart_and_ends_with_its_day() {
        let home = tempfile::tempdir().unwrap();
        let registry = Registry::open(home.path(), RealmId::PUBLIC).await.unwrap();
        assert_eq!(registry.mirrored_bytes(7).await.unwrap(), 0);
        assert!(registry.spend_mirrored(7, 300, 150).await.unwrap(), "the first of a day may be larger");
        registry.settle_mirrored(7, 300, 100).await.unwrap();
        assert!(!registry.spend_mirrored(7, 60, 150).await.unwrap());
        assert!(registry.spend_mirrored(7, 20, 150).await.unwrap());
        registry.settle_mirrored(7, 50, 0).await.unwrap();
        registry.close().await;
        let registry = Registry::open(home.path(), RealmId::PUBLIC).await.unwrap();
        assert_eq!((registry.mirrored_bytes(7).await.unwrap(), registry.mirrored_bytes(8).await.unwrap()), (70, 0));
        assert!(registry.spend_mirrored(8, 5, 150).await.unwrap(), "a new day begins at nothing");
        registry.settle_mirrored(7, 70, 0).await.unwrap();
        assert_eq!(registry.mirrored_bytes(8).await.unwrap(), 5, "what ends after midnight leaves the new day alone");
        registry.settle_mirrored(8, 5, 9).await.unwrap();
        assert_eq!(registry.mirrored_bytes(8).await.unwrap(), 9, "what came twice counts twice");
        registry.close().await;
    }
}
