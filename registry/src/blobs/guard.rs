//! What garbage collection must not take: temporary pins, and the hand-over between them and the catalogue's pins.
//!
//! The blob store collects by itself (mark, then sweep) and asks here before each run. Between that question and the sweep, a blob
//! may change hands: a temporary pin is dropped because the record that needs the blob was just committed. So a dropped
//! pin still counts in the next run, and a pin taken while a sweep is under way waits for its end if the sweep does not know it.
//! (Dropping the store's own temporary tags at the wrong moment is a known race; they are kept here until a run has seen them.)
//!
//! The library's loop ends for ever at its first error and tells nobody. It holds our question while it lives, so it has ended when
//! fewer hold the question than when it was last asked. Nothing else means death: a sweep may delete terabytes from a slow disk, and
//! whoever took it for dead would hand out a pin of a blob that it is about to delete.
//!
//! Invariant: a blob that is pinned without a gap, by whichever class, survives every run.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use cairn_protocol::id::BlobHash;
use iroh_blobs::{
    Hash,
    api::TempTag,
    store::{GcConfig, ProtectCb, ProtectOutcome},
};
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use crate::catalog::{Catalog, WeakCatalog};

/// Time between collections. Garbage is an aborted import or an unpinned revision: rare, and harmless for some minutes.
pub(super) const COLLECT_EVERY: Duration = Duration::from_secs(300);

/// A run is overdue when none is under way and none has begun for this long. A sweep that takes longer is worth a line in the log.
pub(super) const COLLECT_OVERDUE: Duration = Duration::from_secs(3 * 300);

/// How often those who wait for a run look whether the library's loop still lives.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The library sleeps this long before each question; the real waiting happens in the answer, where it can be cut short.
const LIBRARY_PAUSE: Duration = Duration::from_millis(10);

/// Shared between the blob store's handle, its pins and the library's collector.
pub(crate) struct Guard {
    /// Guards the sets below; held for set operations and the removal of one link, never across an await.
    state: Mutex<State>,
    /// Number of runs that have ended; `None` once closed.
    ended: watch::Sender<u64>,
    /// Number of runs that were given up before they began.
    aborted: watch::Sender<u64>,
    wanted: Notify,
    closed: watch::Sender<bool>,
    /// Counts who holds the library's question; set with it.
    holders: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
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
    /// How many held the library's question when it was last asked.
    holders: usize,
    /// Whether the log has been told.
    is_told: bool,
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
            aborted: watch::Sender::new(0),
            wanted: Notify::new(),
            closed: watch::Sender::new(false),
            holders: OnceLock::new(),
        })
    }

    /// The library's collector, asking us.
    pub(crate) fn collector(self: &Arc<Self>, catalog: &Catalog) -> GcConfig {
        let guard = self.clone();
        let catalog = Arc::new(catalog.downgrade());
        let question: ProtectCb = Arc::new(move |live| {
            let (guard, catalog) = (guard.clone(), catalog.clone());
            Box::pin(async move { guard.mark(&catalog, live).await })
        });
        let held = Arc::downgrade(&question);
        self.count_holders(move || held.strong_count());
        GcConfig { interval: LIBRARY_PAUSE, add_protected: Some(question) }
    }

    fn count_holders(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        // There is one collector of a store.
        let _ = self.holders.set(Box::new(count));
    }

    /// Pins a blob whose hash is known. Waits for the end of a sweep that does not spare it, for as long as the collector lives; one
    /// that has died takes nothing any more.
    pub(crate) async fn pin(self: &Arc<Self>, hash: BlobHash) -> TempPin {
        let (pin, run) = self.pin_now(hash);
        if let Some(run) = run
            && self.run_ended(run).await.is_err()
        {
            self.tell_of_death();
        }
        pin
    }

    /// Pins a blob that an import has just finished, and takes over the store's tag.
    pub(crate) fn adopt(self: &Arc<Self>, tag: TempTag) -> TempPin {
        let (pin, _) = self.pin_now(BlobHash::from(*tag.hash().as_bytes()));
        self.state().tags.push(tag);
        pin
    }

    /// Runs one collection that begins after this call, and waits for its end, however long that takes. `Err` when the collector has
    /// died, can't begin, or is closed.
    pub(crate) async fn collect(&self) -> Result<(), Stalled> {
        let mut aborted = self.aborted.subscribe();
        let run = self.state().begun + 1;
        self.wanted.notify_one();
        tokio::select! {
            ended = self.run_ended(run) => ended,
            _ = aborted.changed() => Err(Stalled),
        }
    }

    /// Waits until this run has ended, for as long as the library's loop lives.
    async fn run_ended(&self, run: u64) -> Result<(), Stalled> {
        let mut ended = self.ended.subscribe();
        while !self.is_dead() {
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended >= run) => return Ok(()),
                () = self.closing() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        Err(Stalled)
    }

    /// Whether the library's loop has ended.
    fn is_dead(&self) -> bool {
        self.holders.get().is_some_and(|holders| holders() < self.state().holders)
    }

    /// Whether a temporary pin holds this blob, or did since the last mark (the catalogue may just be taking it over).
    pub(crate) fn is_pinned(&self, hash: BlobHash) -> bool {
        let state = self.state();
        state.pinned.contains_key(&hash) || state.released.contains(&hash)
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

    /// Tells the log, once, that there will be no more collections.
    pub(crate) fn tell_of_death(&self) {
        if !*self.closed.borrow() && !std::mem::replace(&mut self.state().is_told, true) {
            error!("garbage collection has stopped: unneeded blobs stay on disk until a restart");
        }
    }

    /// Whether the collector has ended, or has not begun anything for long and does nothing.
    pub(crate) fn is_overdue(&self) -> bool {
        if self.is_dead() {
            return true;
        }
        let state = self.state();
        state.sweeping.is_none() && state.begun_at.is_some_and(|begun| begun.elapsed() > COLLECT_OVERDUE)
    }

    /// How long the sweep under way has taken.
    pub(crate) fn sweeping_for(&self) -> Option<Duration> {
        let state = self.state();
        state.begun_at.filter(|_| state.sweeping.is_some()).map(|begun| begun.elapsed())
    }

    /// Waits for so long; `false` once closed.
    pub(crate) async fn pause(&self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.closing()).await.is_err()
    }

    /// Waits until the store is to be closed.
    pub(crate) async fn closing(&self) {
        let mut closed = self.closed.subscribe();
        // The sender is ours, so it lives.
        let _ = closed.wait_for(|closed| *closed).await;
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
                self.aborted.send_modify(|count| *count += 1);
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
        state.holders = self.holders.get().map_or(0, |holders| holders());
        info!(live = live.len(), "garbage collection begins");
        state.sweeping = Some(live.clone());
        state.begun += 1;
        state.begun_at = Some(Instant::now());
    }

    fn end_run(&self) {
        let begun = {
            let mut state = self.state();
            (state.sweeping, state.is_told) = (None, false);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;

    use super::*;

    const BLOB: [u8; 32] = [7; 32];

    /// A guard whose question so many hold.
    fn guard_with(holders: usize) -> (Arc<Guard>, Arc<AtomicUsize>) {
        let guard = Guard::new();
        let count = Arc::new(AtomicUsize::new(holders));
        let counted = count.clone();
        guard.count_holders(move || counted.load(Ordering::Relaxed));
        (guard, count)
    }

    /// The library's loop ends at its first error: the sweep has begun, and nobody says that it ended.
    #[tokio::test]
    async fn a_sweep_whose_collector_died_holds_up_no_pin_for_ever_and_later_ones_not_at_all() {
        let (guard, holders) = guard_with(2);
        guard.begin_run(&mut HashSet::new());
        assert!(!guard.is_overdue(), "the collector counts as dead");
        let dies = async { holders.store(1, Ordering::Relaxed) };
        let pinning = tokio::time::timeout(Duration::from_secs(30), guard.pin(BLOB.into()));
        let (pin, ()) = tokio::join!(pinning, dies);
        assert_eq!(pin.unwrap().hash(), BLOB.into());
        assert!(guard.is_overdue(), "the collector counts as alive");
        assert!(guard.state().is_told, "the log was not told");
        assert!(guard.pin([8; 32].into()).now_or_never().is_some(), "a dead collector is waited for by a pin");
        assert!(matches!(guard.collect().now_or_never(), Some(Err(Stalled))), "a dead collector is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_of_hours_is_waited_for_by_whoever_pins_what_it_may_take() {
        let (guard, _holders) = guard_with(2);
        guard.begin_run(&mut HashSet::new());
        let pinning = tokio::time::timeout(Duration::from_secs(4 * 3600), guard.pin(BLOB.into()));
        assert!(pinning.await.is_err(), "a blob was pinned that the sweep under way deletes");
        assert!(!guard.is_overdue(), "a sweep that lives counts as stopped");
        let waiting = async { (guard.pin(BLOB.into()).await, guard.collect().await) };
        let sweeping = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            guard.end_run();
            tokio::time::sleep(Duration::from_secs(3600)).await;
            guard.begin_run(&mut HashSet::new());
            guard.end_run();
        };
        let ((pin, collected), ()) = tokio::join!(waiting, sweeping);
        assert_eq!(pin.hash(), BLOB.into());
        assert!(collected.is_ok());
    }

    #[tokio::test]
    async fn a_link_is_swept_only_when_nothing_pins_its_blob() {
        let guard = Guard::new();
        let removed = || {
            let mut removed = false;
            guard
                .unless_pinned(BLOB.into(), || {
                    removed = true;
                    Ok(())
                })
                .unwrap();
            removed
        };
        assert!(removed());
        let pin = guard.pin(BLOB.into()).await;
        assert!(!removed());
        drop(pin);
        assert!(!removed(), "the catalogue may have it by now");
        guard.begin_run(&mut HashSet::new());
        assert!(removed());
    }
}
