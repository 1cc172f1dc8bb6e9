//! Imports under way, and the temporary files that broken ones leave behind.
//!
//! The blob library writes an import into `blobs/temp` and moves the files when it knows their hash. If the import fails or whoever asked
//! has gone, it leaves them there, says nothing of it and gives no handle to them. A file that it still means to move must not go: it
//! would take the blob for complete without it. So every import runs to its own end here, whoever has gone, and what lies in the
//! folder while none is under way is nobody's.
//!
//! Invariant: no temporary file goes while an import is under way; none of a broken import stays for longer than imports follow each other
//! without a gap.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, RwLock, oneshot},
    task::JoinSet,
};

use super::{BlobError, Blobs, blocking, remove_if_there};
use crate::catalog::CatalogError;

/// When the folder is looked at after an import broke: the library's own task ends a moment after ours. What it leaves even later goes
/// with the next collection.
const LOOKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// Shared by the handles of one blob store.
#[derive(Default)]
pub(crate) struct Intake {
    /// Shared by imports until the library has answered; alone for a sweep, which an import waits for: it removes a few files.
    under_way: Arc<RwLock<()>>,
    /// The imports. Held for adding one or taking all, never across an await.
    tasks: Mutex<JoinSet<()>>,
    broken: Notify,
}

/// Whether someone still waits for an import.
#[derive(Clone)]
pub(crate) struct Wanted(Weak<()>);

impl Wanted {
    /// Errs when nobody does, so that a long reading ends.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.strong_count() {
            0 => Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for the import any more")),
            _ => Ok(()),
        }
    }
}

impl Blobs {
    /// Runs an import to its end. Dropping the future lets it end early where it looks at [`Wanted`]; its files are removed then.
    pub(crate) async fn take_in<T, E, F>(&self, import: impl FnOnce(Wanted) -> F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<BlobError> + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let asker = Arc::new(());
        let (reply, answer) = oneshot::channel();
        let (blobs, work) = (self.clone(), import(Wanted(Arc::downgrade(&asker))));
        let under_way = self.intake.under_way.clone().read_owned().await;
        self.intake.begin(async move {
            let done = tokio::select! {
                biased;
                () = blobs.guard.closing() => Err(closed().into()),
                done = work => done,
            };
            drop(under_way);
            if done.is_err() {
                blobs.intake.broken.notify_one();
            }
            // The asker may have gone; then its pins go here.
            let _ = reply.send(done);
        });
        answer.await.unwrap_or_else(|_| Err(closed().into()))
    }

    /// Waits until an import has broken.
    pub(super) async fn import_broke(&self) {
        self.intake.broken.notified().await;
    }

    /// Removes what broken imports left, now and a little later; `false` once the store is closed.
    pub(super) async fn clear_after_break(&self) -> bool {
        for wait in LOOKS {
            if !self.guard.pause(wait).await {
                return false;
            }
            self.sweep_temporary().await;
        }
        true
    }

    /// Removes temporary files if no import is under way; otherwise another look follows.
    pub(super) async fn sweep_temporary(&self) {
        let Ok(_alone) = self.intake.under_way.try_write() else { return };
        let folder = temporary(&self.root);
        match blocking(move || remove_files(&folder)).await {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "temporary files of broken imports were removed"),
            Err(error) => tracing::warn!(%error, "temporary files of broken imports were not removed"),
        }
    }

    /// Waits for the imports, which end by themselves when the store closes.
    pub(super) async fn imports_ended(&self) {
        let mut tasks = std::mem::take(&mut *self.intake.tasks());
        while tasks.join_next().await.is_some() {}
    }
}

impl Intake {
    fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> BlobError {
    CatalogError::Closed.into()
}

/// Where the library keeps what it has not named yet.
pub(super) fn temporary(root: &Path) -> PathBuf {
    root.join("temp")
}

fn remove_files(folder: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder)? {
        remove_if_there(&entry?.path())?;
        removed += 1;
    }
    Ok(removed)
}
