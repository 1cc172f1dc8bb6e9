//! Looks into the catalogue that several operations share: the heads of a ref, the profile of a publisher, a record by its id.
//!
//! Read-only, in either kind of transaction. It decides nothing.

use std::ops::ControlFlow;

use cairn_protocol::{
    id::{PublisherKey, RealmId, RecordId, RevisionId},
    name::{Handle, RefName, RepoId},
    record::{Record, RecordKind},
};
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use crate::{
    catalog::{
        CatalogError,
        keys::{self, damaged},
        tables::{self, Tables},
    },
    history::HeadRow,
    publishers,
};

/// A publisher's profile in force, as much as look-ups need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProfileRow {
    pub(crate) epoch: u64,
    pub(crate) id: RecordId,
    pub(crate) handle: Handle,
}

impl ProfileRow {
    pub(crate) fn to_value(&self) -> Vec<u8> {
        [&self.epoch.to_le_bytes()[..], self.id.as_bytes(), self.handle.as_str().as_bytes()].concat()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (epoch, rest) = value.split_first_chunk::<8>()?;
        let (id, handle) = rest.split_first_chunk::<32>()?;
        let handle = std::str::from_utf8(handle).ok()?.parse().ok()?;
        Some(Self { epoch: u64::from_le_bytes(*epoch), id: RecordId::from(*id), handle })
    }
}

/// What HEADS holds beside its key.
pub(crate) fn head_value(head: &HeadRow) -> Vec<u8> {
    let previous = head.previous.map_or([0; 32], |id| *id.as_bytes());
    [head.revision.as_bytes().as_slice(), &[u8::from(head.tag)], &previous].concat()
}

fn parse_head_value(value: &[u8]) -> Option<(RevisionId, bool, Option<RecordId>)> {
    let (revision, rest) = value.split_first_chunk::<32>()?;
    let (tag, previous) = rest.split_first()?;
    let previous: [u8; 32] = previous.try_into().ok()?;
    let previous = (previous != [0; 32]).then(|| RecordId::from(previous));
    Some((RevisionId::from(*revision), *tag != 0, previous))
}

/// Visits the entries whose key begins with `prefix`, after `after` if that is further on, until told to stop.
pub(crate) fn visit(
    transaction: &impl Tables,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    prefix: &[u8],
    after: Option<&[u8]>,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, CatalogError>,
) -> Result<(), CatalogError> {
    let table = transaction.table(table)?;
    let start = after.map_or(prefix, |after| after.max(prefix));
    for entry in table.range::<&[u8]>(start..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        if Some(key.value()) == after {
            continue;
        }
        if take(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

pub(crate) fn value_of(
    transaction: &impl Tables,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Option<Vec<u8>>, CatalogError> {
    Ok(transaction.table(table)?.get(key)?.map(|value| value.value().to_vec()))
}

pub(crate) fn id_of(
    transaction: &impl Tables,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Option<[u8; 32]>, CatalogError> {
    let Some(value) = value_of(transaction, table, key)? else { return Ok(None) };
    value.try_into().map(Some).map_err(|_| damaged("an id"))
}

/// A row of a table that names, for each key, the record of the highest number: (number, id).
pub(crate) fn numbered(
    transaction: &impl Tables,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Option<(u64, RecordId)>, CatalogError> {
    let Some(value) = value_of(transaction, table, key)? else { return Ok(None) };
    let (number, id) = value.split_first_chunk::<8>().ok_or_else(|| damaged("a record's number"))?;
    let id = RecordId::try_from(id).map_err(|_| damaged("a record's id"))?;
    Ok(Some((u64::from_le_bytes(*number), id)))
}

/// Writes such a row.
pub(crate) fn put_numbered(
    transaction: &WriteTransaction,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    key: &[u8],
    number: u64,
    id: RecordId,
) -> Result<(), CatalogError> {
    let value = [&number.to_le_bytes()[..], id.as_bytes()].concat();
    transaction.open_table(table)?.insert(key, value.as_slice())?;
    Ok(())
}

/// A record that was verified before it was stored.
pub(crate) fn record(
    transaction: &impl Tables,
    realm: RealmId,
    kind: RecordKind,
    id: RecordId,
) -> Result<Option<Record>, CatalogError> {
    let Some(bytes) = value_of(transaction, tables::RECORDS, &keys::record(realm, kind, id))? else { return Ok(None) };
    Record::verify(&bytes).map(Some).map_err(|error| CatalogError::Damaged(format!("record {id}: {error}")))
}

pub(crate) fn profile(
    transaction: &impl Tables,
    realm: RealmId,
    publisher: PublisherKey,
) -> Result<Option<ProfileRow>, CatalogError> {
    let key = keys::one(realm, publisher.as_bytes());
    let Some(value) = value_of(transaction, tables::PROFILES, &key)? else { return Ok(None) };
    ProfileRow::parse(&value).map(Some).ok_or_else(|| damaged("a profile"))
}

/// The heads of one ref, sorted by (epoch, number, id).
pub(crate) fn heads(
    transaction: &impl Tables,
    realm: RealmId,
    repo: &RepoId,
    name: &RefName,
) -> Result<Vec<HeadRow>, CatalogError> {
    let prefix = keys::reference(realm, repo, name);
    let repo_prefix = keys::repo(realm, repo);
    let mut heads = Vec::new();
    visit(transaction, tables::HEADS, &prefix, None, |key, value| {
        heads.push(head_row(key, value, &repo_prefix)?.1);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(heads)
}

/// One row of HEADS, with its ref.
pub(crate) fn head_row(key: &[u8], value: &[u8], repo_prefix: &[u8]) -> Result<(RefName, HeadRow), CatalogError> {
    let (name, epoch, number, id) = keys::parse_head(key, repo_prefix)?;
    let name = name.parse().map_err(|_| damaged("a ref"))?;
    let (revision, tag, previous) = parse_head_value(value).ok_or_else(|| damaged("a head"))?;
    Ok((name, HeadRow { id, epoch, number, revision, previous, tag }))
}

/// The head of this ref that this node has made its own.
pub(crate) fn adopted(
    transaction: &impl Tables,
    realm: RealmId,
    repo: &RepoId,
    name: &RefName,
) -> Result<Option<RecordId>, CatalogError> {
    Ok(id_of(transaction, tables::ADOPTED, &keys::reference(realm, repo, name))?.map(RecordId::from))
}

/// Whether this repo's publisher has signed a record of this revision.
pub(crate) fn knows_revision(
    transaction: &impl Tables,
    realm: RealmId,
    repo: &RepoId,
    revision: RevisionId,
) -> Result<bool, CatalogError> {
    Ok(transaction.table(tables::REVISIONS)?.get(keys::revision(realm, repo, revision).as_slice())?.is_some())
}

/// Where a ref stands.
pub(crate) fn standing(
    transaction: &impl Tables,
    realm: RealmId,
    repo: &RepoId,
    name: &RefName,
) -> Result<(Vec<HeadRow>, crate::history::Standing), CatalogError> {
    let heads = heads(transaction, realm, repo, name)?;
    let adopted = adopted(transaction, realm, repo, name)?;
    let epoch = publishers::epoch(transaction, realm, repo.publisher)?;
    let mut known = std::collections::BTreeSet::new();
    for head in &heads {
        if knows_revision(transaction, realm, repo, head.revision)? {
            known.insert(head.revision);
        }
    }
    let standing = crate::history::stand(&heads, epoch, adopted, |revision| known.contains(&revision));
    Ok((heads, standing))
}
