//! Loaded weights, shared by the sessions and tasks that need them and kept for the next of the same model and part.
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
use crate::flows::tasks::TaskModel;

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

/// Something loaded.
pub(crate) enum Kept {
    /// A part of a model whose layers may be on several nodes.
    Stage(Key, Arc<Base>),
    /// A model that is whole here, for its task.
    Task(RevisionId, Arc<TaskModel>),
}

impl Kept {
    fn is_idle(&self) -> bool {
        match self {
            Kept::Stage(_, base) => Arc::strong_count(base) == 1,
            Kept::Task(_, model) => Arc::strong_count(model) == 1,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Kept::Stage(_, base) => base.reservation.bytes(),
            Kept::Task(_, model) => model.reservation.bytes(),
        }
    }
}

/// All loaded weights, the last used at the end.
#[derive(Default)]
pub(crate) struct Warm {
    kept: VecDeque<Kept>,
}

impl Warm {
    /// Memory of those that nobody uses.
    pub fn idle_bytes(&self) -> u64 {
        self.kept.iter().filter(|kept| kept.is_idle()).map(Kept::bytes).sum()
    }

    /// The weights of this model and part, if they are here.
    pub fn find(&mut self, key: &Key) -> Option<Arc<Base>> {
        match self.touch(|kept| matches!(kept, Kept::Stage(k, _) if k == key))? {
            Kept::Stage(_, base) => Some(base.clone()),
            Kept::Task(..) => None,
        }
    }

    /// The model of this revision, if it is loaded for its task.
    pub fn find_task(&mut self, revision: RevisionId) -> Option<Arc<TaskModel>> {
        match self.touch(|kept| matches!(kept, Kept::Task(r, _) if *r == revision))? {
            Kept::Task(_, model) => Some(model.clone()),
            Kept::Stage(..) => None,
        }
    }

    /// Revisions that are loaded for their task, the last used first.
    pub fn tasks(&self) -> Vec<RevisionId> {
        let revision = |kept: &Kept| match kept {
            Kept::Task(revision, _) => Some(*revision),
            Kept::Stage(..) => None,
        };
        self.kept.iter().rev().filter_map(revision).collect()
    }

    /// Puts what was found last, as it is used now.
    fn touch(&mut self, is_sought: impl Fn(&Kept) -> bool) -> Option<&Kept> {
        let at = self.kept.iter().position(is_sought)?;
        let found = self.kept.remove(at)?;
        self.kept.push_back(found);
        self.kept.back()
    }

    /// Keeps something; hands back an idle one that is too many.
    pub fn put(&mut self, kept: Kept) -> Option<Kept> {
        self.kept.push_back(kept);
        let idle = self.kept.iter().filter(|kept| kept.is_idle()).count();
        if idle > bounds::IDLE_STAGES_MAX { self.pop_idle() } else { None }
    }

    /// The idle one that was used longest ago.
    pub fn pop_idle(&mut self) -> Option<Kept> {
        let at = self.kept.iter().position(Kept::is_idle)?;
        self.kept.remove(at)
    }

    /// Forgets weights whose session broke.
    pub fn forget(&mut self, base: &Arc<Base>) -> Option<Kept> {
        let at = self.kept.iter().position(|kept| matches!(kept, Kept::Stage(_, b) if Arc::ptr_eq(b, base)))?;
        self.kept.remove(at)
    }
}
