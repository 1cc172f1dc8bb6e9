//! Attestations in the catalogue: what people found out about a revision.
//!
//! Nothing is decided by them here; whose word it is, is told with each. Invariant: of one signer's attestations of one revision, type and
//! tool the highest number is listed; strangers' are listed after all others and up to a bound, so that none hides what counts.

use std::{collections::BTreeSet, ops::ControlFlow};

use cairn_protocol::{
    id::{PublisherKey, RealmId, RecordId, RevisionId},
    record::{Attestation, Body, Record, RecordKind},
};
use redb::{ReadTransaction, WriteTransaction};

use crate::{
    Registry,
    advisories::{Weight, signers},
    catalog::{CatalogError, keys, tables},
    look,
    records::{InsertError, Inserted},
    sync::tree,
};

/// Attestations of one signer, and strangers' of one revision, that are shown.
const SHOWN_MAX: usize = 64;

/// An attestation, and whose word it is here.
#[derive(Debug, Clone, PartialEq)]
pub struct Attested {
    /// Its record.
    pub id: RecordId,
    /// Who signed it.
    pub signer: PublisherKey,
    /// What it says.
    pub attestation: Attestation,
    /// Whose word it is here.
    pub weight: Weight,
}

impl Registry {
    /// What is attested of a revision of this publisher: first by those whose word counts. `own` are the keys that this node signs with.
    pub async fn attestations(
        &self,
        publisher: PublisherKey,
        revision: RevisionId,
        own: &[PublisherKey],
    ) -> Result<Vec<Attested>, CatalogError> {
        let (realm, own) = (self.realm(), own.to_vec());
        self.catalog().read(move |transaction| attested(transaction, realm, publisher, revision, &own)).await
    }

    /// The number that this signer's next attestation of a revision, type and tool has.
    pub async fn next_attestation(
        &self,
        signer: PublisherKey,
        revision: RevisionId,
        r#type: &str,
        tool: &str,
    ) -> Result<u64, CatalogError> {
        let key = keys::attestation(self.realm(), revision, signer, r#type, tool);
        let read = self.catalog().read(move |transaction| look::numbered(transaction, tables::ATTESTATIONS, &key));
        Ok(read.await?.map_or(1, |(number, _)| number.saturating_add(1)))
    }
}

/// Takes in an attestation; `store` keeps the record.
pub(crate) fn insert(
    transaction: &WriteTransaction,
    record: &Record,
    attestation: &Attestation,
    store: impl FnOnce() -> Result<(), InsertError>,
) -> Result<Inserted, InsertError> {
    let realm = record.realm();
    let key = key_of(record, attestation);
    let old = look::numbered(transaction, tables::ATTESTATIONS, &key)?;
    if old.is_some_and(|old| old > (attestation.number, record.id())) {
        return Ok(Inserted::Stale);
    }
    store()?;
    if let Some((_, id)) = old {
        tree::remove(transaction, realm, id)?;
    }
    look::put_numbered(transaction, tables::ATTESTATIONS, &key, attestation.number, record.id())?;
    tree::insert(transaction, realm, RecordKind::Attestation, record.id())?;
    Ok(Inserted::New)
}

/// An attestation made way for others.
pub(crate) fn forget(
    transaction: &WriteTransaction,
    record: &Record,
    attestation: &Attestation,
) -> Result<(), CatalogError> {
    let key = key_of(record, attestation);
    if look::numbered(transaction, tables::ATTESTATIONS, &key)?.is_some_and(|(_, id)| id == record.id()) {
        transaction.open_table(tables::ATTESTATIONS)?.remove(key.as_slice())?;
    }
    Ok(())
}

fn key_of(record: &Record, attestation: &Attestation) -> Vec<u8> {
    keys::attestation(record.realm(), attestation.revision, record.key(), &attestation.r#type, &attestation.tool)
}

fn attested(
    transaction: &ReadTransaction,
    realm: RealmId,
    publisher: PublisherKey,
    revision: RevisionId,
    own: &[PublisherKey],
) -> Result<Vec<Attested>, CatalogError> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for (signer, weight) in signers(transaction, realm, publisher, own)? {
        let prefix = keys::two(realm, revision.as_bytes(), signer.as_bytes());
        for id in ids_under(transaction, &prefix)? {
            found.extend(read(transaction, realm, id, weight, &mut seen)?);
        }
    }
    for id in ids_under(transaction, &keys::one(realm, revision.as_bytes()))? {
        found.extend(read(transaction, realm, id, Weight::Hearsay, &mut seen)?);
    }
    Ok(found)
}

fn ids_under(transaction: &ReadTransaction, prefix: &[u8]) -> Result<Vec<RecordId>, CatalogError> {
    let mut ids = Vec::new();
    look::visit(transaction, tables::ATTESTATIONS, prefix, None, |_, value| {
        ids.push(RecordId::from(keys::last_id(value)?));
        Ok(if ids.len() == SHOWN_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(ids)
}

fn read(
    transaction: &ReadTransaction,
    realm: RealmId,
    id: RecordId,
    weight: Weight,
    seen: &mut BTreeSet<RecordId>,
) -> Result<Option<Attested>, CatalogError> {
    if !seen.insert(id) {
        return Ok(None);
    }
    let Some(record) = look::record(transaction, realm, RecordKind::Attestation, id)? else { return Ok(None) };
    match record.body() {
        Ok(Body::Attestation(attestation)) if !attestation.is_withdrawn => {
            Ok(Some(Attested { id, signer: record.key(), attestation, weight }))
        }
        Ok(Body::Attestation(_)) => Ok(None),
        _ => Err(keys::damaged("an attestation's record")),
    }
}
