//! Who of an epoch's stages has been silent too long.
//!
//! Not a detector of slowness: beats come from a network task, so a stage that computes for seconds still beats.
//! Invariant: a stage is never suspect while its silence is within the limit of its phase, and a coordinator that
//! overslept blames nobody.

use super::{FIRST_SIGN_MS, LATE_GRACE_MS, LATE_WAKE_MS, SUSPECT_LAP_MS_MAX, SUSPECT_LOADING_MS, SUSPECT_MS};

/// What is known of each stage of one epoch.
#[derive(Debug)]
pub(super) struct Liveness {
    stages: Vec<Sign>,
}

#[derive(Debug, Clone, Copy)]
struct Sign {
    /// The last sign of life, or the opening.
    heard_ms: u64,
    /// No judgement before this.
    spared_until_ms: u64,
    spoke: bool,
    ready: bool,
}

impl Liveness {
    pub(super) fn new(now_ms: u64, stages: usize) -> Liveness {
        let silent = Sign { heard_ms: now_ms, spared_until_ms: now_ms, spoke: false, ready: false };
        Liveness { stages: vec![silent; stages] }
    }

    pub(super) fn heard(&mut self, now_ms: u64, index: usize) {
        if let Some(sign) = self.stages.get_mut(index) {
            sign.heard_ms = sign.heard_ms.max(now_ms);
            sign.spoke = true;
        }
    }

    pub(super) fn ready(&mut self, now_ms: u64, index: usize) {
        self.heard(now_ms, index);
        if let Some(sign) = self.stages.get_mut(index) {
            sign.ready = true;
        }
    }

    pub(super) fn all_ready(&self) -> bool {
        self.stages.iter().all(|s| s.ready)
    }

    pub(super) fn heard_ms(&self, index: usize) -> Option<u64> {
        self.stages.get(index).map(|s| s.heard_ms)
    }

    /// When the first stage becomes suspect unless it is heard.
    pub(super) fn due_ms(&self, lap_p99_ms: u64) -> Option<u64> {
        self.stages.iter().map(|s| limit_ms(s, lap_p99_ms)).min()
    }

    /// The stages that are suspect now. A wake-up that comes too late only grants them time.
    pub(super) fn suspects(&mut self, now_ms: u64, lap_p99_ms: u64) -> Vec<usize> {
        let overdue = |s: &Sign| now_ms >= limit_ms(s, lap_p99_ms);
        if self.due_ms(lap_p99_ms).is_some_and(|due| now_ms >= due.saturating_add(LATE_WAKE_MS)) {
            for sign in self.stages.iter_mut().filter(|s| overdue(s)) {
                sign.spared_until_ms = now_ms + LATE_GRACE_MS;
            }
            return Vec::new();
        }
        (0..self.stages.len()).filter(|i| overdue(&self.stages[*i])).collect()
    }
}

fn limit_ms(sign: &Sign, lap_p99_ms: u64) -> u64 {
    let silence = match (sign.spoke, sign.ready) {
        (false, _) => FIRST_SIGN_MS,
        (true, false) => SUSPECT_LOADING_MS,
        (true, true) => SUSPECT_MS + lap_p99_ms.min(SUSPECT_LAP_MS_MAX),
    };
    sign.heard_ms.saturating_add(silence).max(sign.spared_until_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_stage_is_suspect_after_its_limit_and_not_a_moment_before() {
        let mut live = Liveness::new(0, 2);
        live.ready(1_000, 0);
        live.ready(1_100, 1);
        assert_eq!(live.due_ms(20), Some(1_420));
        assert_eq!(live.suspects(1_419, 20), Vec::<usize>::new());
        assert_eq!(live.suspects(1_420, 20), vec![0]);
    }

    #[test]
    fn a_loading_stage_that_beats_is_never_suspect() {
        let mut live = Liveness::new(0, 1);
        for now in (100..60_000).step_by(100) {
            live.heard(now, 0);
            assert!(live.suspects(now + 99, 0).is_empty());
        }
    }

    #[test]
    fn a_coordinator_that_overslept_grants_time_once_and_then_judges() {
        let mut live = Liveness::new(0, 1);
        live.ready(0, 0);
        assert!(live.suspects(9_000, 0).is_empty());
        assert_eq!(live.due_ms(0), Some(9_000 + LATE_GRACE_MS));
        assert_eq!(live.suspects(9_000 + LATE_GRACE_MS, 0), vec![0]);
    }

    #[test]
    fn slow_laps_add_no_more_than_their_ceiling() {
        let mut live = Liveness::new(0, 1);
        live.ready(0, 0);
        assert_eq!(live.due_ms(60_000), Some(SUSPECT_MS + SUSPECT_LAP_MS_MAX));
    }
}
