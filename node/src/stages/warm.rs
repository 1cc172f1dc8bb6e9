//! Loaded weights, shared by the sessions and tasks that need them and kept for the next of the same model and part.
//!
//! Not here: memory accounting ([`super::rooms`]). Invariant: weights that a session uses are never dropped; idle ones are
//! at most [`bounds::IDLE_STAGES_MAX`], and the one that was used longest ago goes first.

use std::{collections::VecDeque, sync::Arc};

use cairn_compute::{StageHandle, arch::StagePart, quantise::Target};
use cairn_protocol::id::RevisionId;

use super::{bounds, rooms::Reservation};
use crate::flows::tasks::TaskModel;

/// What loaded weights are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub revision: RevisionId,
    pub part: StagePart,
    pub planes: u32,
    /// What matrices of more bits are held as.
    pub quantise: Option<Target>,
}

/// Loaded weights, with a session on them that holds nothing: others are opened from it.
pub(crate) struct Base {
    pub handle: StageHandle,
    pub reservation: Reservation,
    pub width: u32,
    pub bytes_needed: u64,
    /// Part of the reservation: keys and values of one session as long as the longest so far had to be let in for.
    pub pages_bytes: u64,
}

impl Base {
    /// Whether sessions of so many positions can be opened on it.
    fn reaches(&self, context: u32) -> bool {
        self.handle.context() >= context as usize
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

    /// The weights of this model and part for sessions of so many positions, if they are here.
    pub fn find(&mut self, key: &Key, context: u32) -> Option<Arc<Base>> {
        match self.touch(|kept| matches!(kept, Kept::Stage(k, base) if k == key && base.reaches(context)))? {
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
}
