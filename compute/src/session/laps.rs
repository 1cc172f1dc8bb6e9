//! How long a token's lap through the stages takes, as a p99 over the last laps.
//!
//! Not a statistic for people: it only says how much silence is still normal on this route. Prefill laps are left out; they are as long as the prompt.

/// Laps remembered; the p99 of fewer than a hundred is their maximum, and a slow spell is forgotten after as many tokens.
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
    use super::Laps;

    #[test]
    fn one_slow_lap_in_a_hundred_and_twenty_eight_counts_and_is_forgotten_later() {
        let mut laps = Laps::default();
        assert_eq!(laps.p99_ms(), 0);
        laps.add(500);
        assert_eq!(laps.p99_ms(), 500);
        for _ in 0..127 {
            laps.add(3);
        }
        assert_eq!(laps.p99_ms(), 500);
        laps.add(3);
        assert_eq!(laps.p99_ms(), 3);
    }
}
