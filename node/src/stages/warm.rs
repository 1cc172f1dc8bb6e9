//! Loaded weights, shared by the sessions that need them and kept for the next one of the same model and part.
//!
//! Not here: memory accounting ([`super::rooms`]). Invariant: weights that a session uses are never dropped; idle ones are
//! at most [`bounds::IDLE_STAGES_MAX`], and the one that was used longest ago goes first.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cairn_compute::{StageHandle, arch::StagePart, quantise::Target};
use cairn_protocol::id::RevisionId;

use super::{bounds, rooms::Reservation};

/// What loaded weights are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub revision: RevisionId,
    pub part: StagePart,
    pub context: u32,
    pub planes: u32,
    /// What matrices of more bits are held as.
    pub quantise: Option<Target>,
}

/// Loaded weights with the session that came with them, which is lent to one user at a time.
pub(crate) struct Base {
    pub handle: StageHandle,
    pub reservation: Reservation,
    pub width: u32,
    pub bytes_needed: u64,
    is_lent: AtomicBool,
}

impl Base {
    /// Just loaded.
    pub fn new(handle: StageHandle, reservation: Reservation, width: u32, bytes_needed: u64) -> Arc<Base> {
        Arc::new(Base { handle, reservation, width, bytes_needed, is_lent: AtomicBool::new(false) })
    }

    /// Its own session, if nobody has it.
    pub fn lend(&self) -> Option<StageHandle> {
        (!self.is_lent.swap(true, Ordering::AcqRel)).then(|| self.handle.clone())
    }

    /// Takes its own session back, emptied; false when it cannot be used again.
    pub fn take_back(&self) -> bool {
        let is_empty = self.handle.truncate(0);
        self.is_lent.store(!is_empty, Ordering::Release);
        is_empty
    }
}

/// All loaded weights, the last used at the end.
#[derive(Default)]
pub(crate) struct Warm {
    bases: VecDeque<(Key, Arc<Base>)>,
}

fn is_idle(base: &Arc<Base>) -> bool {
    Arc::strong_count(base) == 1
}

impl Warm {
    /// Memory of those that no session uses.
    pub fn idle_bytes(&self) -> u64 {
        self.bases.iter().filter(|(_, base)| is_idle(base)).map(|(_, base)| base.reservation.bytes()).sum()
    }

    /// The weights of this model and part, if they are here.
    pub fn find(&mut self, key: &Key) -> Option<Arc<Base>> {
        let at = self.bases.iter().position(|(k, _)| k == key)?;
        let entry = self.bases.remove(at)?;
        let base = entry.1.clone();
        self.bases.push_back(entry);
        Some(base)
    }

    /// Keeps weights; hands back an idle one that is too many.
    pub fn put(&mut self, key: Key, base: Arc<Base>) -> Option<Arc<Base>> {
        self.bases.push_back((key, base));
        let idle = self.bases.iter().filter(|(_, base)| is_idle(base)).count();
        if idle > bounds::IDLE_STAGES_MAX { self.pop_idle() } else { None }
    }

    /// The idle one that was used longest ago.
    pub fn pop_idle(&mut self) -> Option<Arc<Base>> {
        let at = self.bases.iter().position(|(_, base)| is_idle(base))?;
        self.bases.remove(at).map(|(_, base)| base)
    }

    /// Forgets weights whose session broke.
    pub fn forget(&mut self, base: &Arc<Base>) -> Option<Arc<Base>> {
        let at = self.bases.iter().position(|(_, b)| Arc::ptr_eq(b, base))?;
        self.bases.remove(at).map(|(_, base)| base)
    }
}
