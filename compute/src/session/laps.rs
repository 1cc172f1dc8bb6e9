//! How long a token's lap through the stages takes, as a p99 over the last laps.
//!
//! Not a statistic for people: it only says how much silence is still normal on this route. Prefill laps are left out;
//! they are as long as the prompt.

/// Laps remembered; the p99 of fewer than a hundred is their maximum, and a slow spell is forgotten after as many
/// tokens.
const LAPS_KEPT: usize = 128;

/// The last decode laps.
#[derive(Debug, Default)]
pub(super) struct Laps {
    kept_ms: Vec<u64>,
    next: usize,
}

impl Laps {
    pub(super) fn add(&mut self, lap_ms: u64) {
        if self.kept_ms.len() < LAPS_KEPT {
            self.kept_ms.push(lap_ms);
        } else {
            self.kept_ms[self.next] = lap_ms;
        }
        self.next = (self.next + 1) % LAPS_KEPT;
    }

    /// 0 before the first lap.
    pub(super) fn p99_ms(&self) -> u64 {
        let mut sorted = self.kept_ms.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{LAPS_KEPT, Laps};

    #[test]
    fn the_slowest_of_few_laps_counts_and_one_in_a_hundred_does_not() {
        let mut laps = Laps::default();
        assert_eq!(laps.p99_ms(), 0);
        laps.add(500);
        for _ in 0..98 {
            laps.add(3);
        }
        assert_eq!(laps.p99_ms(), 500);
        laps.add(3);
        assert_eq!(laps.p99_ms(), 3);
    }

    #[test]
    fn old_laps_are_forgotten() {
        let mut laps = Laps::default();
        (0..LAPS_KEPT).for_each(|_| laps.add(900));
        (0..LAPS_KEPT).for_each(|_| laps.add(4));
        assert_eq!(laps.p99_ms(), 4);
    }
}
