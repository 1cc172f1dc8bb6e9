//! Stages whose session has ended, kept loaded for the next session of the same model and part.
//!
//! Not here: memory accounting ([`super::rooms`]). Invariant: a warm stage holds no positions of its last session, and
//! there are never more than [`bounds::IDLE_STAGES_MAX`]; the one that was used longest ago goes first.

use std::collections::VecDeque;

use cairn_compute::{StageHandle, StagePart};
use cairn_protocol::id::RevisionId;

use super::{bounds, rooms::Reservation};

/// What a loaded stage is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub revision: RevisionId,
    pub part: StagePart,
    pub context: u32,
    pub planes: u32,
}

/// A loaded stage without a session.
pub(super) struct WarmStage {
    pub handle: StageHandle,
    pub reservation: Reservation,
    pub width: u32,
    pub bytes_needed: u64,
}

/// The warm stages, oldest first.
#[derive(Default)]
pub(super) struct Warm {
    stages: VecDeque<(Key, WarmStage)>,
}

impl Warm {
    /// Memory they hold.
    pub fn bytes(&self) -> u64 {
        self.stages.iter().map(|(_, stage)| stage.reservation.bytes()).sum()
    }

    /// Takes the one that was used last.
    pub fn take(&mut self, key: &Key) -> Option<WarmStage> {
        let at = self.stages.iter().rposition(|(k, _)| k == key)?;
        self.stages.remove(at).map(|(_, stage)| stage)
    }

    /// Keeps one; hands back the one that is too many.
    pub fn put(&mut self, key: Key, stage: WarmStage) -> Option<WarmStage> {
        self.stages.push_back((key, stage));
        if self.stages.len() > bounds::IDLE_STAGES_MAX { self.pop_oldest() } else { None }
    }

    /// The one that was used longest ago.
    pub fn pop_oldest(&mut self) -> Option<WarmStage> {
        self.stages.pop_front().map(|(_, stage)| stage)
    }
}
