//! Which repos changed and are not yet in the index, written in the transaction that changed them.
//!
//! It is not the index and does not know it. A row names a repo, or a publisher (its handle changed: all its repos). Rows carry a
//! rising number; a row that changed again while it was being worked on has another one and stays.
//!
//! Invariant: whatever changes what the index says of a repo notes it here in the same transaction, so a crash loses nothing.

use std::ops::ControlFlow;

use cairn_protocol::{
    id::{PublisherKey, RealmId},
    name::RepoId,
};
use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};

use crate::{
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    look,
};

/// A row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: Vec<u8>,
    pub(super) number: u64,
    /// Of a publisher's row: the repo after which its work goes on.
    pub(super) after: Vec<u8>,
}

/// The repo is to be indexed anew.
pub(crate) fn note(transaction: &WriteTransaction, realm: RealmId, repo: &RepoId) -> Result<(), CatalogError> {
    put(transaction, &keys::repo(realm, repo))
}

/// All repos of the publisher are.
pub(crate) fn note_publisher(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
) -> Result<(), CatalogError> {
    put(transaction, &keys::one(realm, publisher.as_bytes()))
}

fn put(transaction: &WriteTransaction, key: &[u8]) -> Result<(), CatalogError> {
    let number = next(transaction)?;
    transaction.open_table(tables::META)?.insert(tables::JOURNAL_NEXT, (number + 1).to_le_bytes().as_slice())?;
    transaction.open_table(tables::JOURNAL)?.insert(key, number.to_le_bytes().as_slice())?;
    Ok(())
}

fn next(transaction: &WriteTransaction) -> Result<u64, CatalogError> {
    let meta = transaction.open_table(tables::META)?;
    let value = meta.get(tables::JOURNAL_NEXT)?.map(|value| value.value().to_vec());
    number_of(value, 1)
}

/// The number that the next row will have, and up to which rows of this realm were taken out.
pub(super) fn numbers(transaction: &redb::ReadTransaction, realm: RealmId) -> Result<(u64, u64), CatalogError> {
    let meta = transaction.open_table(tables::META)?;
    let read = |key: &str, first| number_of(meta.get(key)?.map(|value| value.value().to_vec()), first);
    Ok((read(tables::JOURNAL_NEXT, 1)?, read(&done_key(realm), 0)?))
}

fn number_of(value: Option<Vec<u8>>, first: u64) -> Result<u64, CatalogError> {
    let Some(value) = value else { return Ok(first) };
    value.try_into().map(u64::from_le_bytes).map_err(|_| keys::damaged("a number of the journal"))
}

fn done_key(realm: RealmId) -> String {
    format!("{}{realm}", tables::JOURNAL_DONE)
}

/// The first rows of a realm, after this key.
pub(super) fn rows(
    transaction: &impl Tables,
    realm: RealmId,
    after: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<Row>, CatalogError> {
    let mut rows = Vec::new();
    look::visit(transaction, tables::JOURNAL, &keys::realm(realm), after, |key, value| {
        let (number, after) = value.split_first_chunk().ok_or_else(|| keys::damaged("a row of the journal"))?;
        rows.push(Row { key: key.to_vec(), number: u64::from_le_bytes(*number), after: after.to_vec() });
        Ok(if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(rows)
}

/// How many rows there are: none if none is of this realm, else about as many as wait, for all realms' are counted.
pub(super) fn length(transaction: &redb::ReadTransaction, realm: RealmId) -> Result<u64, CatalogError> {
    match rows(transaction, realm, None, 1)?.is_empty() {
        true => Ok(0),
        false => Ok(transaction.open_table(tables::JOURNAL)?.len()?),
    }
}

/// Takes out the rows whose work is durable in the index, if they are still the same; `goes_on` of them have come as far as that.
pub(super) fn settle(
    transaction: &WriteTransaction,
    realm: RealmId,
    rows: &[Row],
    goes_on: Option<(&Row, &[u8])>,
) -> Result<(), CatalogError> {
    let mut journal = transaction.open_table(tables::JOURNAL)?;
    let is_same = |journal: &redb::Table<'_, &[u8], &[u8]>, row: &Row| -> Result<bool, CatalogError> {
        let found = journal.get(row.key.as_slice())?;
        Ok(found.is_some_and(|found| found.value().starts_with(&row.number.to_le_bytes())))
    };
    for row in rows {
        if is_same(&journal, row)? {
            journal.remove(row.key.as_slice())?;
        }
    }
    if let Some((row, after)) = goes_on
        && is_same(&journal, row)?
    {
        journal.insert(row.key.as_slice(), [&row.number.to_le_bytes()[..], after].concat().as_slice())?;
    }
    drop(journal);
    let done = rows.iter().map(|row| row.number).max().unwrap_or(0);
    let mut meta = transaction.open_table(tables::META)?;
    let key = done_key(realm);
    let before = number_of(meta.get(key.as_str())?.map(|value| value.value().to_vec()), 0)?;
    meta.insert(key.as_str(), done.max(before).to_le_bytes().as_slice())?;
    Ok(())
}
