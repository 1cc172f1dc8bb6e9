//! The catalogue's database: one redb file, three threads of its own, typed doors for the rest of the crate.
//!
//! It is not the rules (those are in `records`, `resolve`, `publish`): here are only tables, keys, migrations and the way to
//! run a transaction without blocking an async worker.
//!
//! Invariant: a write that answered `Ok` is on disk (redb `Durability::Immediate`), and nothing outside this folder opens the
//! file.

pub(crate) mod keys;
pub(crate) mod migrate;
pub(crate) mod tables;
mod worker;

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Weak},
};

use cairn_protocol::id::BlobHash;
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};

use self::worker::Worker;
use crate::damage::guarded;

/// What a panic of the database's library is about.
const WHAT: &str = "the catalogue's database";

/// Pages of the file that are held in memory; the system's own cache holds more of them.
const CACHE_BYTES: usize = 256 << 20;

/// What can go wrong with the catalogue itself, whatever was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The database refused or failed an operation.
    #[error("the catalogue's database failed: {0}")]
    Database(Box<redb::Error>),
    /// A stored value does not read back as what was stored.
    #[error("the catalogue holds a value that does not read back: {0}")]
    Damaged(String),
    /// The registry is closing or closed.
    #[error("the catalogue is closed")]
    Closed,
}

impl CatalogError {
    /// Whether the disk is full, which people can mend.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Database(error) => {
                matches!(&**error, redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull)
            }
            Self::Damaged(_) | Self::Closed => false,
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for CatalogError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// A handle to the catalogue's threads. Clones share them; the database closes when the last is dropped or at `close`.
#[derive(Clone)]
pub(crate) struct Catalog {
    workers: Arc<Workers>,
}

struct Workers {
    writer: Worker,
    reader: Worker,
    surveyor: Worker,
}

impl Catalog {
    /// Opens or makes the file and migrates it to the present schema. Blocks: call it from a blocking thread.
    pub(crate) fn open(path: &Path) -> Result<Self, migrate::MigrateError> {
        let database = guarded(WHAT, || {
            let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(CatalogError::from)?;
            migrate::migrate(&database)?;
            Ok::<_, migrate::MigrateError>(database)
        })
        .map_err(CatalogError::Damaged)??;
        let database = Arc::new(database);
        let workers = Workers {
            writer: Worker::start("catalog-writer", database.clone())?,
            reader: Worker::start("catalog-reader", database.clone())?,
            surveyor: Worker::start("catalog-surveyor", database)?,
        };
        Ok(Self { workers: Arc::new(workers) })
    }

    /// Runs `work` in a read transaction on the reader thread. Dropping the future abandons the answer, not the work.
    pub(crate) async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<CatalogError> + Send + 'static,
        F: FnOnce(&ReadTransaction) -> Result<T, E> + Send + 'static,
    {
        read_on(&self.workers.reader, work).await
    }

    /// As [`Catalog::read`], for work that looks at much: it runs beside the short reads.
    pub(crate) async fn survey<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<CatalogError> + Send + 'static,
        F: FnOnce(&ReadTransaction) -> Result<T, E> + Send + 'static,
    {
        read_on(&self.workers.surveyor, work).await
    }

    /// Runs `work` in a write transaction on the writer thread and commits it durably if it answers `Ok`; an `Err` leaves
    /// the database as it was. Dropping the future abandons the answer, not the work.
    pub(crate) async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<CatalogError> + Send + 'static,
        F: FnOnce(&WriteTransaction) -> Result<T, E> + Send + 'static,
    {
        let place = self.workers.writer.place().await?;
        let answer = place.run(move |database| write_durably(database, work));
        answer.await.map_err(|_| CatalogError::Closed)??
    }

    /// Every blob that a pin of the catalogue protects, in whatever realm. Its future is `Sync`, as the garbage collector demands.
    pub(crate) async fn protected(&self) -> Result<HashSet<BlobHash>, CatalogError> {
        let place = self.workers.reader.place().await?;
        let answer = place.run(protected);
        answer.await.map_err(|_| CatalogError::Closed)??
    }

    /// The catalogue without keeping it open: for those who must not outlive it.
    pub(crate) fn downgrade(&self) -> WeakCatalog {
        WeakCatalog(Arc::downgrade(&self.workers))
    }

    /// Ends all threads after the work that is queued, and closes the file.
    pub(crate) async fn close(&self) {
        self.workers.writer.close().await;
        self.workers.reader.close().await;
        self.workers.surveyor.close().await;
    }
}

/// A catalogue that may have gone.
pub(crate) struct WeakCatalog(Weak<Workers>);

impl WeakCatalog {
    pub(crate) fn upgrade(&self) -> Option<Catalog> {
        self.0.upgrade().map(|workers| Catalog { workers })
    }
}

async fn read_on<T, E, F>(worker: &Worker, work: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<CatalogError> + Send + 'static,
    F: FnOnce(&ReadTransaction) -> Result<T, E> + Send + 'static,
{
    let place = worker.place().await?;
    let answer = place.run(move |database| {
        let transaction = database.begin_read().map_err(CatalogError::from)?;
        work(&transaction)
    });
    answer.await.map_err(|_| CatalogError::Closed)??
}

fn protected(database: &Database) -> Result<HashSet<BlobHash>, CatalogError> {
    let transaction = database.begin_read()?;
    let mut blobs = HashSet::new();
    for table in [tables::KEPT_BLOBS, tables::STAGE_BLOBS] {
        for entry in transaction.open_table(table)?.iter()? {
            blobs.insert(keys::last_blob(entry?.0.value())?);
        }
    }
    Ok(blobs)
}

fn write_durably<T, E: From<CatalogError>>(
    database: &Database,
    work: impl FnOnce(&WriteTransaction) -> Result<T, E>,
) -> Result<T, E> {
    let mut transaction = database.begin_write().map_err(CatalogError::from)?;
    transaction.set_durability(Durability::Immediate).map_err(CatalogError::from)?;
    let value = work(&transaction)?;
    transaction.commit().map_err(CatalogError::from)?;
    Ok(value)
}
