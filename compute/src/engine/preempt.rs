//! Who gives way when keys and values fill the memory. Pure.
//!
//! Whoever came first goes on: a session never takes from one that came before it, and takes from the last come first. So
//! the oldest is never evicted and ends some day, and who was evicted comes back as the youngest: nobody waits for ever as
//! long as sessions end. (Preemption by recomputing as in PagedAttention, Kwon et al. 2023.)

use super::threads::SessionId;

/// A session that holds pages which no other does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// Numbers rise in the order in which sessions came.
    pub session: SessionId,
    pub bytes: u64,
}

/// Who gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// One that came later than the needy.
    Other(SessionId),
    /// The needy is the last come.
    Itself,
    /// It has all there is, and it is not enough.
    Nobody,
}

/// Who gives way to `needy`.
pub(super) fn victim(holders: &[Holder], needy: SessionId) -> Victim {
    let others = holders.iter().filter(|holder| holder.session != needy && holder.bytes > 0);
    match others.map(|holder| holder.session).max() {
        Some(last) if last > needy => Victim::Other(last),
        Some(_) => Victim::Itself,
        None => Victim::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_come_gives_way_and_the_needy_itself_when_it_is_that() {
        let [first, second, third] = [SessionId::fresh(), SessionId::fresh(), SessionId::fresh()];
        let holds = |session| Holder { session, bytes: 1 };
        let all = [holds(first), holds(second), holds(third)];
        assert_eq!(victim(&all, first), Victim::Other(third));
        assert_eq!(victim(&all, second), Victim::Other(third));
        assert_eq!(victim(&all, third), Victim::Itself);
        assert_eq!(victim(&all[..2], third), Victim::Itself, "a newcomer that holds nothing yet");
        assert_eq!(victim(&all[..1], first), Victim::Nobody);
        assert_eq!(victim(&[], first), Victim::Nobody);
    }

    /// A session in the simulation: how many pages it needs and holds.
    #[derive(Debug)]
    struct Run {
        session: SessionId,
        needs: u64,
        held: u64,
    }

    impl Run {
        fn is_done(&self) -> bool {
            self.held == self.needs
        }
    }

    fn holders(runs: &[Run]) -> Vec<Holder> {
        let alive = runs.iter().filter(|run| !run.is_done());
        alive.map(|run| Holder { session: run.session, bytes: run.held }).collect()
    }

    proptest! {
        #[test]
        fn all_that_fit_alone_end_and_the_oldest_never_gives_way(
            needs in prop::collection::vec(1u64..20, 1..12),
            pages in 20u64..40,
            turns in prop::collection::vec(any::<usize>(), 4000),
        ) {
            let mut runs: Vec<Run> =
                needs.iter().map(|needs| Run { session: SessionId::fresh(), needs: *needs, held: 0 }).collect();
            for turn in turns {
                let alive: Vec<usize> = (0..runs.len()).filter(|i| !runs[*i].is_done()).collect();
                let Some(at) = alive.get(turn % alive.len().max(1)).copied() else { return Ok(()) };
                while holders(&runs).iter().map(|holder| holder.bytes).sum::<u64>() == pages {
                    let oldest = alive.iter().map(|i| runs[*i].session).min();
                    let gone = match victim(&holders(&runs), runs[at].session) {
                        Victim::Other(gone) => gone,
                        Victim::Itself => runs[at].session,
                        Victim::Nobody => return Err(TestCaseError::fail("it fits alone")),
                    };
                    prop_assert!(Some(gone) != oldest);
                    let index = runs.iter().position(|run| run.session == gone).expect("one of them");
                    // It comes back as a new session.
                    (runs[index].session, runs[index].held) = (SessionId::fresh(), 0);
                    if index == at {
                        break;
                    }
                }
                if holders(&runs).iter().map(|holder| holder.bytes).sum::<u64>() < pages {
                    runs[at].held += 1;
                }
            }
            prop_assert!(runs.iter().all(Run::is_done), "{runs:?}");
        }
    }
}
