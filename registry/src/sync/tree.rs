//! Counts and sums of the live ids, kept in the catalogue: a radix tree over half bytes that is only as deep as ids lie dense.
//!
//! LIVE holds the ids, TREE a row for the root and for each child of a row that counts more than [`SPLIT`]. A row that counts fewer has no
//! children; what would be under them is summed up from its ids, which are few. So whatever somebody grinds ids to, a look costs at most
//! the rows of one level or [`SPLIT`] ids, and an insert a row a level.
//!
//! Invariant: every row is the count and sum of LIVE's ids under its prefix; rows exist exactly as said above.

use cairn_protocol::{
    id::{RealmId, RecordId},
    record::RecordKind,
};
use redb::{ReadTransaction, ReadableTable, Table, WriteTransaction};

use super::{
    machine::IdSet,
    prefix::{CHILDREN, Prefix, STEPS_MAX, Summary},
};
use crate::{
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    look,
};

/// A row that counts more has children.
const SPLIT: u64 = 32;

type Rows<'a> = Table<'a, &'static [u8], &'static [u8]>;

/// The set of one realm, for reading.
pub(crate) struct Stored<'a> {
    pub(crate) transaction: &'a ReadTransaction,
    pub(crate) realm: RealmId,
}

impl IdSet for Stored<'_> {
    type Error = CatalogError;

    fn children(&self, prefix: Prefix) -> Result<[Summary; CHILDREN], CatalogError> {
        let mut children = [Summary::default(); CHILDREN];
        // Below the last row of its ids, a prefix has none of its own.
        if row(self.transaction, self.realm, prefix)?.unwrap_or_default().count <= SPLIT {
            self.ids(prefix, SPLIT as usize)?.into_iter().for_each(|id| children[prefix.step_of(id)].add(id));
            return Ok(children);
        }
        for (step, child) in children.iter_mut().enumerate() {
            if let Some(at) = prefix.child(step) {
                *child = row(self.transaction, self.realm, at)?.unwrap_or_default();
            }
        }
        Ok(children)
    }

    fn ids(&self, prefix: Prefix, limit: usize) -> Result<Vec<RecordId>, CatalogError> {
        ids(self.transaction, self.realm, prefix, limit)
    }

    fn has(&self, id: RecordId) -> Result<bool, CatalogError> {
        Ok(look::value_of(self.transaction, tables::LIVE, &keys::one(self.realm, id.as_bytes()))?.is_some())
    }
}

/// Live records of a realm.
pub(crate) fn count(transaction: &impl Tables, realm: RealmId) -> Result<u64, CatalogError> {
    Ok(row(transaction, realm, Prefix::ALL)?.unwrap_or_default().count)
}

/// A record is live from now on. Nothing happens if it is.
pub(crate) fn insert(
    transaction: &WriteTransaction,
    realm: RealmId,
    kind: RecordKind,
    id: RecordId,
) -> Result<(), CatalogError> {
    let key = keys::one(realm, id.as_bytes());
    if transaction.open_table(tables::LIVE)?.insert(key.as_slice(), [kind as u8].as_slice())?.is_some() {
        return Ok(());
    }
    let mut tree = transaction.open_table(tables::TREE)?;
    let mut prefix = Prefix::ALL;
    loop {
        let mut summary = read(&tree, realm, prefix)?.unwrap_or_default();
        summary.add(id);
        write(&mut tree, realm, prefix, summary)?;
        if summary.count <= SPLIT || prefix.steps() == STEPS_MAX {
            return Ok(());
        }
        if summary.count == SPLIT + 1 {
            return split(transaction, &mut tree, realm, prefix);
        }
        prefix = Prefix::of(id, prefix.steps() + 1);
    }
}

/// A record is live no more. Nothing happens if it was not.
pub(crate) fn remove(transaction: &WriteTransaction, realm: RealmId, id: RecordId) -> Result<(), CatalogError> {
    let key = keys::one(realm, id.as_bytes());
    if transaction.open_table(tables::LIVE)?.remove(key.as_slice())?.is_none() {
        return Ok(());
    }
    let mut tree = transaction.open_table(tables::TREE)?;
    let mut prefix = Prefix::ALL;
    loop {
        let mut summary =
            read(&tree, realm, prefix)?.ok_or_else(|| keys::damaged("a row of the tree of live records"))?;
        let had_children = summary.count > SPLIT && prefix.steps() < STEPS_MAX;
        summary.remove(id);
        match summary.count {
            0 => drop(tree.remove(row_key(realm, prefix).as_slice())?),
            _ => write(&mut tree, realm, prefix, summary)?,
        }
        if !had_children {
            return Ok(());
        }
        if summary.count == SPLIT {
            return merge(&mut tree, realm, prefix);
        }
        prefix = Prefix::of(id, prefix.steps() + 1);
    }
}

/// Makes the rows under one that has just become too many.
fn split(
    transaction: &WriteTransaction,
    tree: &mut Rows<'_>,
    realm: RealmId,
    prefix: Prefix,
) -> Result<(), CatalogError> {
    let mut ids = ids(transaction, realm, prefix, SPLIT as usize + 1)?;
    let mut prefix = prefix;
    while ids.len() as u64 > SPLIT && prefix.steps() < STEPS_MAX {
        let mut children = [Summary::default(); CHILDREN];
        ids.iter().for_each(|id| children[prefix.step_of(*id)].add(*id));
        for (step, child) in children.iter().enumerate().filter(|(_, child)| child.count > 0) {
            if let Some(at) = prefix.child(step) {
                write(tree, realm, at, *child)?;
            }
        }
        // All of them may be under one child; then it has children, too.
        prefix = Prefix::of(ids[0], prefix.steps() + 1);
        ids.retain(|id| prefix.holds(*id));
    }
    Ok(())
}

/// Takes away the rows under one that has just become few.
fn merge(tree: &mut Rows<'_>, realm: RealmId, prefix: Prefix) -> Result<(), CatalogError> {
    let mut level = vec![prefix];
    while let Some(parent) = level.pop() {
        for child in (0..CHILDREN).filter_map(|step| parent.child(step)) {
            if tree.remove(row_key(realm, child).as_slice())?.is_some() {
                level.push(child);
            }
        }
    }
    Ok(())
}

fn ids(transaction: &impl Tables, realm: RealmId, prefix: Prefix, limit: usize) -> Result<Vec<RecordId>, CatalogError> {
    let mut ids = Vec::new();
    let from = keys::one(realm, &prefix.first_id());
    let table = transaction.table(tables::LIVE)?;
    for entry in table.range(from.as_slice()..)? {
        let key = entry?.0;
        let id = key.value().strip_prefix(realm.as_bytes().as_slice()).and_then(|id| RecordId::try_from(id).ok());
        match id {
            Some(id) if prefix.holds(id) && ids.len() < limit => ids.push(id),
            _ => break,
        }
    }
    Ok(ids)
}

fn row(transaction: &impl Tables, realm: RealmId, prefix: Prefix) -> Result<Option<Summary>, CatalogError> {
    read(&transaction.table(tables::TREE)?, realm, prefix)
}

fn read(
    tree: &impl ReadableTable<&'static [u8], &'static [u8]>,
    realm: RealmId,
    prefix: Prefix,
) -> Result<Option<Summary>, CatalogError> {
    let Some(row) = tree.get(row_key(realm, prefix).as_slice())? else { return Ok(None) };
    let summary = Summary::parse(row.value()).ok_or_else(|| keys::damaged("a row of the tree of live records"))?;
    Ok(Some(summary))
}

fn write(tree: &mut Rows<'_>, realm: RealmId, prefix: Prefix, summary: Summary) -> Result<(), CatalogError> {
    tree.insert(row_key(realm, prefix).as_slice(), summary.to_bytes().as_slice())?;
    Ok(())
}

/// Realm ‖ steps ‖ the prefix's bytes: children lie side by side.
fn row_key(realm: RealmId, prefix: Prefix) -> Vec<u8> {
    [realm.as_bytes().as_slice(), &[prefix.steps()], &prefix.to_bytes()].concat()
}

/// Makes both tables from the rows of a catalogue that has none.
pub(crate) fn rebuild(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    transaction.delete_table(tables::LIVE)?;
    transaction.delete_table(tables::TREE)?;
    transaction.open_table(tables::LIVE)?;
    transaction.open_table(tables::TREE)?;
    let sources = [
        (tables::PROFILES, RecordKind::Profile),
        (tables::REVISIONS, RecordKind::Revision),
        (tables::HEADS, RecordKind::Head),
    ];
    for (table, kind) in sources {
        let table = transaction.open_table(table)?;
        for entry in table.iter()? {
            let (key, value) = entry?;
            let realm = key.value().get(..keys::ID).and_then(|realm| RealmId::try_from(realm).ok());
            let realm = realm.ok_or_else(|| keys::damaged("a record's realm"))?;
            let id = match kind {
                RecordKind::Profile => value.value().get(8..8 + keys::ID).and_then(|id| RecordId::try_from(id).ok()),
                RecordKind::Revision => RecordId::try_from(value.value()).ok(),
                _ => keys::last_id(key.value()).ok().map(RecordId::from),
            };
            insert(transaction, realm, kind, id.ok_or_else(|| keys::damaged("a record's id"))?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
