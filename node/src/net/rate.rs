//! A token bucket with time as an argument: so many at once, so many a second after that.
//!
//! Invariant: over any span of `t` seconds at most `burst + t * per_s` are allowed.

/// How much of its allowance one source has left.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    burst: u32,
    per_s: u32,
    /// Thousandths of a token.
    level: u64,
    at_ms: u64,
}

impl Rate {
    /// A full bucket.
    pub fn new(burst: u32, per_s: u32, now_ms: u64) -> Rate {
        Rate { burst, per_s, level: u64::from(burst) * 1000, at_ms: now_ms }
    }

    /// Takes one if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let gained = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(self.per_s));
        self.level = self.level.saturating_add(gained).min(u64::from(self.burst) * 1000);
        self.at_ms = self.at_ms.max(now_ms);
        if self.level < 1000 {
            return false;
        }
        self.level -= 1000;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_the_steady_rate() {
        let mut rate = Rate::new(3, 2, 0);
        assert_eq!((0..5).filter(|_| rate.take(0)).count(), 3);
        assert_eq!((0..5).filter(|_| rate.take(1000)).count(), 2);
        assert!(!rate.take(1499));
        assert!(rate.take(1500));
    }

    #[test]
    fn a_clock_that_steps_back_gains_nothing() {
        let mut rate = Rate::new(1, 1, 10_000);
        assert!(rate.take(10_000));
        assert!(!rate.take(0));
        assert!(!rate.take(10_000));
        assert!(rate.take(11_000));
    }
}
