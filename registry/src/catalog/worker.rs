//! A thread that owns blocking database work, with a bounded queue in front.
//!
//! It is not a pool: work runs one piece at a time, in order of arrival. A full queue makes callers wait (backpressure);
//! nothing is dropped.
//!
//! Invariant: after `close` has answered, the thread has let go of the database.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::{CatalogError, WHAT};
use crate::damage::guarded;

/// Pieces of work that may wait for one thread. Each is a closure of some hundred bytes; 256 of them ride out a page of
/// records arriving from several peers at once, and more would only hide that the disk is too slow.
const QUEUE_MAX: usize = 256;

type Work = Box<dyn FnOnce(&Database) + Send>;

/// A place in the queue.
pub(super) struct Place(mpsc::OwnedPermit<Work>);

impl Place {
    /// Queues `work`; the receiver gets what it returns or that the database is damaged, or an error if the thread ended first.
    pub(super) fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&Database) -> T + Send + 'static,
    ) -> oneshot::Receiver<Result<T, CatalogError>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Box::new(move |database| {
            // The asker may have gone; the work was still done.
            let _ = reply.send(guarded(WHAT, || work(database)).map_err(CatalogError::Damaged));
        }));
        answer
    }
}

pub(super) struct Worker {
    /// Guards the sender and the thread's handle against a second `close`; held for a clone or a take, never across an await.
    open: Mutex<Option<(mpsc::Sender<Work>, JoinHandle<()>)>>,
}

impl Worker {
    pub(super) fn start(name: &str, database: Arc<Database>) -> Result<Self, CatalogError> {
        let (sender, mut receiver) = mpsc::channel::<Work>(QUEUE_MAX);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(work) = receiver.blocking_recv() {
                    work(&database);
                }
            })
            .map_err(|error| CatalogError::Database(Box::new(redb::Error::Io(error))))?;
        Ok(Self { open: Mutex::new(Some((sender, thread))) })
    }

    /// Waits for a place in the queue. The place is taken before the work is built, so that a future that waits here holds
    /// nothing but the handle.
    pub(super) async fn place(&self) -> Result<Place, CatalogError> {
        let sender = self.sender().ok_or(CatalogError::Closed)?;
        sender.reserve_owned().await.map(Place).map_err(|_| CatalogError::Closed)
    }

    pub(super) async fn close(&self) {
        let taken = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((sender, thread)) = taken else { return };
        drop(sender);
        // Joining blocks until the queue is empty, so it happens on a blocking thread.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }

    fn sender(&self) -> Option<mpsc::Sender<Work>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(sender, _)| sender.clone())
    }
}
