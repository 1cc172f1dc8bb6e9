//! A set of ids in a file of its own, for measuring what it costs to agree: the tables and the talk are the catalogue's, the records are left
//! out. Not for anything else.

use std::path::Path;

use cairn_protocol::{
    id::{RealmId, RecordId},
    peer_pb::RangeItem,
    record::RecordKind,
};
use redb::{Database, ReadableDatabase};

use super::{
    SyncError,
    machine::{Answered, Reconciler, respond},
    tree::{self, Stored},
};
use crate::catalog::{CatalogError, tables};

/// The set.
pub struct IdStore {
    database: Database,
    realm: RealmId,
}

impl IdStore {
    /// An empty one in a new file. Blocks, as everything here does.
    pub fn create(path: &Path) -> Result<Self, CatalogError> {
        let database = Database::create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(tables::LIVE)?;
        transaction.open_table(tables::TREE)?;
        transaction.commit()?;
        Ok(Self { database, realm: RealmId::PUBLIC })
    }

    /// Adds ids in one durable step.
    pub fn insert(&self, ids: impl IntoIterator<Item = RecordId>) -> Result<(), CatalogError> {
        let transaction = self.database.begin_write()?;
        for id in ids {
            tree::insert(&transaction, self.realm, RecordKind::Head, id)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// See [`Reconciler::question`].
    pub fn question(&self, machine: &mut Reconciler) -> Result<Option<Vec<RangeItem>>, CatalogError> {
        let transaction = self.database.begin_read()?;
        machine.question(&Stored { transaction: &transaction, realm: self.realm })
    }

    /// See [`Reconciler::answer`].
    pub fn take(&self, machine: &mut Reconciler, answer: Answered) -> Result<(), SyncError> {
        let transaction = self.database.begin_read().map_err(CatalogError::from)?;
        machine.answer(&Stored { transaction: &transaction, realm: self.realm }, answer)
    }

    /// See [`respond`].
    pub fn answer(&self, items: &[RangeItem]) -> Result<Answered, SyncError> {
        let transaction = self.database.begin_read().map_err(CatalogError::from)?;
        respond(&Stored { transaction: &transaction, realm: self.realm }, items)
    }
}
