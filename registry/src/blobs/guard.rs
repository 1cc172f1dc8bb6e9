//! What garbage collection must not take: temporary pins, and the hand-over between them and the catalogue's pins.
//!
//! The blob store collects by itself (mark, then sweep) and asks here before each run. Between that question and the sweep, a blob
//! may change hands: a temporary pin is dropped because the record that needs the blob was just committed. So a dropped
//! pin still counts in the next run, and a pin taken while a sweep is under way waits for its end if the sweep does not know it.
//! (Dropping the store's own temporary tags at the wrong moment is a known race; they are kept here until a run has seen them.)
//!
//! Invariant: a blob that is pinned without a gap, by whichever class, survives every run.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cairn_protocol::id::BlobHash;
use iroh_blobs::{
    Hash,
    api::TempTag,
    store::{GcConfig, ProtectOutcome},
};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::catalog::{Catalog, WeakCatalog};

/// Time between collections. Garbage is an aborted import or an unpinned revision: rare, and harmless for some minutes.
const COLLECT_EVERY: Duration = Duration::from_secs(300);

/// A run is overdue when none has begun for this long: the library's loop ends for ever at its first error.
const COLLECT_OVERDUE: Duration = Duration::from_secs(3 * 300);

/// The library sleeps this long before each question; the real waiting happens in the answer, where it can be cut short.
const LIBRARY_PAUSE: Duration = Duration::from_millis(10);

/// Shared between the blob store's handle, its pins and the library's collector.
pub(crate) struct Guard {
    /// Guards the sets below; held for set operations and the removal of one link, never across an await.
    state: Mutex<State>,
    /// Number of runs that have ended; `None` once closed.
    ended: watch::Sender<u64>,
    wanted: Notify,
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    pinned: BTreeMap<BlobHash, usize>,
    /// Pins dropped since the last mark.
    released: BTreeSet<BlobHash>,
    /// The store's own tags of finished imports, until a mark has seen their blobs in `pinned`, `released` or the catalogue.
    tags: Vec<TempTag>,
    /// Blobs to be swept although they are pinned, since their bytes are wrong.
    condemned: BTreeSet<BlobHash>,
    /// What the run under way will spare.
    sweeping: Option<HashSet<Hash>>,
    begun: u64,
    begun_at: Option<Instant>,
}

/// Keeps one blob from garbage collection while it lives.
pub struct TempPin {
    hash: BlobHash,
    guard: Arc<Guard>,
}

impl TempPin {
    /// The blob that is kept.
    pub fn hash(&self) -> BlobHash {
        self.hash
    }
}

impl std::fmt::Debug for TempPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TempPin").field(&self.hash).finish()
    }
}

impl Drop for TempPin {
    fn drop(&mut self) {
        let mut state = self.guard.state();
        let Some(count) = state.pinned.get_mut(&self.hash) else { return };
        *count -= 1;
        if *count == 0 {
            state.pinned.remove(&self.hash);
            state.released.insert(self.hash);
        }
    }
}

impl Guard {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { begun_at: Some(Instant::now()), ..State::default() }),
            ended: watch::Sender::new(0),
            wanted: Notify::new(),
            closed: watch::Sender::new(false),
        })
    }

    /// The library's collector, asking us.
    pub(crate) fn collector(self: &Arc<Self>, catalog: &Catalog) -> GcConfig {
        let guard = self.clone();
        let catalog = Arc::new(catalog.downgrade());
        GcConfig {
            interval: LIBRARY_PAUSE,
            add_protected: Some(Arc::new(move |live| {
                let (guard, catalog) = (guard.clone(), catalog.clone());
                Box::pin(async move { guard.mark(&catalog, live).await })
            })),
        }
    }

    /// Pins a blob whose hash is known. Waits for the end of a sweep that does not spare it.
    pub(crate) async fn pin(self: &Arc<Self>, hash: BlobHash) -> TempPin {
        let mut ended = self.ended.subscribe();
        let (pin, run) = self.pin_now(hash);
        if let Some(run) = run {
            // Errs only if the guard is gone, and we hold it.
            let _ = ended.wait_for(|ended| *ended >= run).await;
        }
        pin
    }

    /// Pins a blob that an import has just finished, and takes over the store's tag.
    pub(crate) fn adopt(self: &Arc<Self>, tag: TempTag) -> TempPin {
        let (pin, _) = self.pin_now(BlobHash::from(*tag.hash().as_bytes()));
        self.state().tags.push(tag);
        pin
    }

    /// Runs one collection that begins after this call, and waits for its end. `Err` when the collector does not answer.
    pub(crate) async fn collect(&self, patience: Duration) -> Result<(), Stalled> {
        let mut ended = self.ended.subscribe();
        let run = self.state().begun + 1;
        self.wanted.notify_one();
        let waited = tokio::time::timeout(patience, ended.wait_for(|ended| *ended >= run)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Stalled),
        }
    }

    /// From now on collections take this blob even if it is pinned, until `pardon`.
    pub(crate) fn condemn(&self, hash: BlobHash) {
        self.state().condemned.insert(hash);
    }

    pub(crate) fn pardon(&self, hash: BlobHash) {
        self.state().condemned.remove(&hash);
    }

    /// Runs `remove` unless the blob is pinned or was until just now; nobody pins it meanwhile, so `remove` must be short.
    pub(crate) fn unless_pinned(&self, hash: BlobHash, remove: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let state = self.state();
        if state.pinned.contains_key(&hash) || state.released.contains(&hash) {
            return Ok(());
        }
        remove()
    }

    /// Whether the collector has stopped answering.
    pub(crate) fn is_overdue(&self) -> bool {
        let state = self.state();
        state.begun_at.is_some_and(|begun| begun.elapsed() > COLLECT_OVERDUE)
    }

    /// Waits for the time of one collection; `false` once closed.
    pub(crate) async fn tick(&self) -> bool {
        let mut closed = self.closed.subscribe();
        tokio::time::timeout(COLLECT_EVERY, closed.wait_for(|closed| *closed)).await.is_err()
    }

    /// Parks the collector for good. The store is shut down right after.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    fn pin_now(self: &Arc<Self>, hash: BlobHash) -> (TempPin, Option<u64>) {
        let mut state = self.state();
        *state.pinned.entry(hash).or_default() += 1;
        let endangered = state.sweeping.as_ref().is_some_and(|spared| !spared.contains(&raw(hash)));
        let run = endangered.then_some(state.begun);
        (TempPin { hash, guard: self.clone() }, run)
    }

    /// The library's question: says which blobs live. It is also how the end of the run before is known.
    async fn mark(&self, catalog: &WeakCatalog, live: &mut HashSet<Hash>) -> ProtectOutcome {
        self.end_run();
        self.wait_for_a_reason().await;
        if *self.closed.borrow() {
            return std::future::pending().await;
        }
        // The catalogue first: a pin that moves there while we read is still among the released.
        let Some(catalog) = catalog.upgrade() else { return std::future::pending().await };
        match catalog.protected().await {
            Ok(protected) => live.extend(protected.into_iter().map(raw)),
            Err(error) => {
                warn!(%error, "garbage collection skipped: the pins could not be read");
                return ProtectOutcome::Abort;
            }
        }
        self.begin_run(live);
        ProtectOutcome::Continue
    }

    async fn wait_for_a_reason(&self) {
        let mut closed = self.closed.subscribe();
        if *closed.borrow_and_update() {
            return;
        }
        tokio::select! {
            biased;
            _ = closed.changed() => {}
            () = self.wanted.notified() => {}
            () = tokio::time::sleep(COLLECT_EVERY) => {}
        }
    }

    fn begin_run(&self, live: &mut HashSet<Hash>) {
        let mut state = self.state();
        live.extend(state.pinned.keys().copied().map(raw));
        live.extend(std::mem::take(&mut state.released).into_iter().map(raw));
        for tag in std::mem::take(&mut state.tags) {
            live.insert(tag.hash());
        }
        for hash in &state.condemned {
            live.remove(&raw(*hash));
        }
        info!(live = live.len(), "garbage collection begins");
        state.sweeping = Some(live.clone());
        state.begun += 1;
        state.begun_at = Some(Instant::now());
    }

    fn end_run(&self) {
        let begun = {
            let mut state = self.state();
            state.sweeping = None;
            state.begun
        };
        self.ended.send_replace(begun);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The collector did not run in time.
#[derive(Debug, thiserror::Error)]
#[error("the blob store's garbage collection does not run")]
pub struct Stalled;

/// The same hash in the library's type.
pub(crate) fn raw(hash: BlobHash) -> Hash {
    Hash::from_bytes(*hash.as_bytes())
}
