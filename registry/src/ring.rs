//! What publishers that are not known here have of the catalogue: a ring of bytes in which the oldest arrival makes way.
//!
//! Signing is free, so a key that nobody here has heard of may be one of a million of the same person's. Refusing strangers once
//! their bytes are used up would let whoever floods first keep every later newcomer out; so they share the bytes instead, and a flood
//! pushes out itself. A publisher is known as soon as a person here acts on it: trusts or pins its handle, keeps a revision of it,
//! names it in a mirror, publishes with its key. That it stays, for the act was meant.
//!
//! A newcomer's record is not lost for good by being pushed out: peers' pages bring it back. Lest two full nodes push each other's
//! records round for ever, a page may push out no more than its share; news may push out what it needs, since gossip has its own rates.
//!
//! Invariant: only records of publishers that are not known are ever taken out, oldest arrival first, and with a record go all rows
//! that point at it. What one insert costs is bounded by [`STEPS_MAX`].

use cairn_protocol::{
    id::{PublisherKey, RealmId},
    limits::CATALOG_BYTES_MAX,
    name::RepoId,
    record::{Body, Head, Record, Revision},
};
use redb::{ReadableTable, WriteTransaction};

use crate::{
    advisories, attestations,
    catalog::{CatalogError, keys, tables},
    lineage, look, publishers,
    search::journal,
    sync::tree,
};

/// Rows that one insert looks at. The largest record (32 KiB) needs the place of at most 238 of the smallest (138 bytes of envelope).
const STEPS_MAX: usize = 256;

/// Whether a person's act made this publisher known here.
pub(crate) fn is_known(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
) -> Result<bool, CatalogError> {
    let key = keys::one(realm, publisher.as_bytes());
    Ok(look::value_of(transaction, tables::KNOWN, &key)?.is_some())
}

/// From now on this publisher's records stay. Those that lie in the ring leave it when their turn comes.
pub(crate) fn note_known(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
) -> Result<(), CatalogError> {
    let key = keys::one(realm, publisher.as_bytes());
    transaction.open_table(tables::KNOWN)?.insert(key.as_slice(), [].as_slice())?;
    Ok(())
}

/// Bytes of the records that no stranger's arrival takes out.
pub(crate) fn known_bytes(transaction: &WriteTransaction) -> Result<u64, CatalogError> {
    count(transaction, tables::KNOWN_BYTES)
}

/// Counts a record that is not the ring's.
pub(crate) fn count_known(transaction: &WriteTransaction, bytes: u64) -> Result<(), CatalogError> {
    let total = known_bytes(transaction)?.saturating_add(bytes);
    set_count(transaction, tables::KNOWN_BYTES, total)
}

/// Gives a stranger's record of so many bytes a place, which takes as much from `may_push_out` as had to make way. `false` if there is
/// no room and that is used up.
pub(crate) fn enter(
    transaction: &WriteTransaction,
    publisher: PublisherKey,
    key: &[u8],
    bytes: u64,
    may_push_out: &mut u64,
) -> Result<bool, CatalogError> {
    if !make_room(transaction, bytes, may_push_out)? {
        return Ok(false);
    }
    let mut ring = transaction.open_table(tables::RING)?;
    let arrival = ring.last()?.map_or(0, |(last, _)| last.value().saturating_add(1));
    ring.insert(arrival, row(publisher, key).as_slice())?;
    let total = count(transaction, tables::RING_BYTES)?.saturating_add(bytes);
    set_count(transaction, tables::RING_BYTES, total)?;
    Ok(true)
}

/// What RING holds of a record.
pub(crate) fn row(publisher: PublisherKey, key: &[u8]) -> Vec<u8> {
    [publisher.as_bytes(), key].concat()
}

/// A ring that an earlier version left over its bound shrinks with every insert, since [`STEPS_MAX`] rows are more than one record.
fn make_room(transaction: &WriteTransaction, wanted: u64, may_push_out: &mut u64) -> Result<bool, CatalogError> {
    for _ in 0..STEPS_MAX {
        if count(transaction, tables::RING_BYTES)?.saturating_add(wanted) <= CATALOG_BYTES_MAX {
            return Ok(true);
        }
        let Some((arrival, publisher, key)) = oldest(transaction)? else {
            set_count(transaction, tables::RING_BYTES, 0)?;
            return Ok(true);
        };
        let realm = RealmId::try_from(&key[..keys::ID]).map_err(|_| keys::damaged("a record's realm"))?;
        let freed = match is_known(transaction, realm, publisher)? {
            true => release(transaction, &key)?,
            false if *may_push_out == 0 => return Ok(false),
            false => {
                let freed = take_out(transaction, &key)?;
                *may_push_out = may_push_out.saturating_sub(freed);
                freed
            }
        };
        transaction.open_table(tables::RING)?.remove(arrival)?;
        let left = count(transaction, tables::RING_BYTES)?.saturating_sub(freed);
        set_count(transaction, tables::RING_BYTES, left)?;
    }
    Ok(true)
}

/// The oldest arrival: its number, whose it is, and its key in RECORDS.
fn oldest(transaction: &WriteTransaction) -> Result<Option<(u64, PublisherKey, Vec<u8>)>, CatalogError> {
    let ring = transaction.open_table(tables::RING)?;
    let Some((arrival, value)) = ring.first()? else { return Ok(None) };
    let (publisher, key) = value.value().split_first_chunk().ok_or_else(|| keys::damaged("a row of the ring"))?;
    if key.len() < keys::ID {
        return Err(keys::damaged("a row of the ring"));
    }
    Ok(Some((arrival.value(), PublisherKey::from(*publisher), key.to_vec())))
}

/// Counts a record whose publisher has become known among the known's. Answers its bytes.
fn release(transaction: &WriteTransaction, key: &[u8]) -> Result<u64, CatalogError> {
    let bytes = look::value_of(transaction, tables::RECORDS, key)?.map_or(0, |envelope| envelope.len() as u64);
    count_known(transaction, bytes)?;
    Ok(bytes)
}

/// Takes a record out, with all rows that inserting it wrote. Answers its bytes.
fn take_out(transaction: &WriteTransaction, key: &[u8]) -> Result<u64, CatalogError> {
    let Some(envelope) = transaction.open_table(tables::RECORDS)?.remove(key)?.map(|row| row.value().to_vec()) else {
        return Ok(0);
    };
    let realm = RealmId::try_from(&key[..keys::ID]).map_err(|_| keys::damaged("a record's realm"))?;
    tree::remove(transaction, realm, keys::last_id(key)?.into())?;
    match Record::verify(&envelope).and_then(|record| Ok((record.body()?, record))) {
        Ok((Body::Profile(profile), record)) => publishers::forget(transaction, &record, &profile)?,
        Ok((Body::Revision(revision), record)) => forget_revision(transaction, &record, &revision)?,
        Ok((Body::Head(head), record)) => forget_head(transaction, &record, &head)?,
        Ok((Body::Advisory(advisory), record)) => advisories::forget(transaction, &record, &advisory)?,
        Ok((Body::Attestation(attestation), record)) => attestations::forget(transaction, &record, &attestation)?,
        // Whoever follows a row to it finds nothing, as for a record that has not arrived.
        Err(error) => tracing::warn!(%error, "a record that makes way does not read back"),
    }
    Ok(envelope.len() as u64)
}

fn forget_revision(transaction: &WriteTransaction, record: &Record, revision: &Revision) -> Result<(), CatalogError> {
    let (realm, repo) = (record.realm(), revision.repo(record.key()));
    let key = keys::revision(realm, &repo, revision.revision);
    // Another record may stand for the revision since.
    if look::id_of(transaction, tables::REVISIONS, &key)?.is_some_and(|id| id != *record.id().as_bytes()) {
        return Ok(());
    }
    transaction.open_table(tables::REVISIONS)?.remove(key.as_slice())?;
    lineage::forget(transaction, record, revision)?;
    let place = keys::two(realm, revision.revision.as_bytes(), repo.publisher.as_bytes());
    let here = keys::repo(realm, &repo);
    // A publisher may have signed one revision into two repos; the row tells of the one that was heard last.
    if look::value_of(transaction, tables::REVISION_REPOS, &place)?.is_some_and(|at| at == here[keys::ID..]) {
        transaction.open_table(tables::REVISION_REPOS)?.remove(place.as_slice())?;
    }
    forget_empty_repo(transaction, realm, &repo)
}

fn forget_head(transaction: &WriteTransaction, record: &Record, head: &Head) -> Result<(), CatalogError> {
    let (realm, repo) = (record.realm(), head.repo(record.key()));
    let key = keys::head(realm, &repo, &head.ref_name, head.epoch, head.number, record.id());
    transaction.open_table(tables::HEADS)?.remove(key.as_slice())?;
    forget_empty_repo(transaction, realm, &repo)
}

/// A repo is listed as long as one of its revisions or heads is here.
fn forget_empty_repo(transaction: &WriteTransaction, realm: RealmId, repo: &RepoId) -> Result<(), CatalogError> {
    journal::note(transaction, realm, repo)?;
    let key = keys::repo(realm, repo);
    for table in [tables::REVISIONS, tables::HEADS] {
        let rows = transaction.open_table(table)?;
        let next = rows.range(key.as_slice()..)?.next().transpose()?;
        if next.is_some_and(|(next, _)| next.value().starts_with(&key)) {
            return Ok(());
        }
    }
    transaction.open_table(tables::REPOS)?.remove(key.as_slice())?;
    Ok(())
}

fn count(transaction: &WriteTransaction, name: &str) -> Result<u64, CatalogError> {
    let table = transaction.open_table(tables::META)?;
    let Some(value) = table.get(name)? else { return Ok(0) };
    let bytes = value.value().try_into().map_err(|_| keys::damaged("the records' bytes"))?;
    Ok(u64::from_le_bytes(bytes))
}

fn set_count(transaction: &WriteTransaction, name: &str, bytes: u64) -> Result<(), CatalogError> {
    transaction.open_table(tables::META)?.insert(name, bytes.to_le_bytes().as_slice())?;
    Ok(())
}
