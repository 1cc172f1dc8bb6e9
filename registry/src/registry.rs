//! The registry's handle: opens the catalogue and the blob store of one home for one realm, and closes them in order.
//!
//! What it can do is written in the files beside this one, each an `impl Registry`.
//!
//! Invariant: one home is open in one process once; the catalogue's lock sees to it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_protocol::id::RealmId;
use tokio::{
    sync::{Mutex, oneshot, watch},
    task::JoinSet,
};

use crate::{
    blobs::Blobs,
    catalog::{Catalog, CatalogError, migrate::MigrateError},
    search,
};

/// A handle to what this node remembers. Clones share it.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    realm: RealmId,
    catalog: Catalog,
    blobs: Blobs,
    changes: watch::Sender<u64>,
    search: Arc<search::Shared>,
    closing: watch::Sender<bool>,
    options: RegistryOptions,
    /// The supervising task and writes that must not stop half-way. Held across the await of their end by `close`, and
    /// otherwise for adding one.
    tasks: Mutex<JoinSet<()>>,
}

/// What a registry is told beside its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Bytes of records that are taken from peers of publishers that are known here.
    pub catalog_bytes_max: u64,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self { catalog_bytes_max: CATALOG_BYTES_DEFAULT }
    }
}

/// Room for 2.5 million repos with long cards: 6 KiB each.
pub const CATALOG_BYTES_DEFAULT: u64 = 16 << 30;

/// Why a home could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A file or folder of it can't be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It was written by a later version.
    #[error("{}: {error}", path.display())]
    Migrate {
        /// The catalogue.
        path: PathBuf,
        /// Why.
        error: MigrateError,
    },
}

impl Registry {
    /// Opens `HOME/catalog.redb`, `HOME/blobs` and `HOME/search`, making what is not there. Temporary files of killed imports are removed.
    pub async fn open(home: &Path, realm: RealmId) -> Result<Self, OpenError> {
        Self::open_with(home, realm, RegistryOptions::default()).await
    }

    /// The same with options.
    pub async fn open_with(home: &Path, realm: RealmId, options: RegistryOptions) -> Result<Self, OpenError> {
        let home = home.to_owned();
        let path = home.join("catalog.redb");
        let catalog = {
            let (home, file) = (home.clone(), path.clone());
            let opened = tokio::task::spawn_blocking(move || {
                std::fs::create_dir_all(&home).map_err(|error| OpenError::Io { path: home, error })?;
                Catalog::open(&file).map_err(|error| open_error(file, error))
            });
            opened.await.map_err(|error| OpenError::Io { path, error: io::Error::other(error) })??
        };
        let root = home.join("blobs");
        let opened = Blobs::open(&root, catalog.clone(), realm).await;
        let blobs = match opened {
            Ok(blobs) => blobs,
            Err(error) => {
                catalog.close().await;
                return Err(OpenError::Io { path: root, error });
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(blobs.clone().supervise());
        let (changes, closing) = (watch::Sender::new(0), watch::Sender::new(false));
        let search = search::Shared::open(&home, &catalog, realm).await;
        tasks.spawn(search.keep(catalog.clone(), realm, changes.subscribe(), closing.subscribe()));
        let tasks = Mutex::new(tasks);
        Ok(Self { inner: Arc::new(Inner { realm, catalog, blobs, changes, search, closing, options, tasks }) })
    }

    /// Closes the blob store with its last seconds on disk, then the catalogue. Every other call fails from then on.
    pub async fn close(&self) {
        self.inner.closing.send_replace(true);
        self.inner.blobs.close().await;
        let mut tasks = self.inner.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
        self.inner.catalog.close().await;
    }

    /// The blob store.
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// The realm of every record here.
    pub fn realm(&self) -> RealmId {
        self.inner.realm
    }

    /// A number that rises when records, pins or mirrors change; for those who then look again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    pub(crate) fn search_index(&self) -> &Arc<search::Shared> {
        &self.inner.search
    }

    pub(crate) fn options(&self) -> RegistryOptions {
        self.inner.options
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// Runs `work` to its end even if whoever asked has gone; `close` waits for it. `None` when it did not run.
    pub(crate) async fn see_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        {
            let mut tasks = self.inner.tasks.lock().await;
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                // The asker may have gone; the work was still done.
                let _ = reply.send(work.await);
            });
        }
        answer.await.ok()
    }

    /// Tells those who watch, if something changed.
    pub(crate) fn note_change(&self, is_change: bool) {
        if is_change {
            self.inner.changes.send_modify(|count| *count += 1);
        }
    }
}

fn open_error(path: PathBuf, error: MigrateError) -> OpenError {
    match error {
        MigrateError::Catalog(CatalogError::Database(inner)) if matches!(*inner, redb::Error::DatabaseAlreadyOpen) => {
            OpenError::InUse(path)
        }
        error => OpenError::Migrate { path, error },
    }
}
