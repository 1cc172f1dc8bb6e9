//! When a mirror tries what: a pure decider. Times and dice are arguments.
//!
//! A wanted revision waits for a moment of its own (so that a realm's mirrors don't all run at the publisher in the same
//! instant), is fetched, and after a failure waits twice as long each time. Invariant: only wanted revisions are ever begun, each at
//! most once at a time.

use std::collections::{BTreeMap, BTreeSet};

use cairn_protocol::id::{NodeId, RevisionId};

/// The first attempt begins within this time.
const JITTER_MS: u64 = 300;
/// The wait after the first failure; doubled with each further one…
const BACKOFF_MS: u64 = 1_000;
/// …up to this.
const BACKOFF_MAX_MS: u64 = 120_000;

/// How a wanted revision stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All of it is here.
    Held,
    /// Under way.
    Fetching,
    /// About to be fetched.
    Waiting,
    /// The last attempt failed; another follows.
    Failed,
    /// It is not here, and not to be fetched now.
    Left,
}

/// What is known of a revision that a policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The revision.
    pub revision: RevisionId,
    /// Its repo.
    pub path: String,
    /// The pattern of the policy that governs it.
    pub pattern: String,
    /// Why it is kept, fetched or left.
    pub why: String,
    /// Others that are known to hold it whole.
    pub copies_elsewhere: u32,
    /// Whether a copy here may go when enough others hold it.
    pub may_go: bool,
    /// What is to be done.
    pub call: Call,
}

/// What is to be done about a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Nothing: it is here.
    Hold,
    /// Fetch it.
    Fetch,
    /// Leave it.
    Leave,
}

/// One wanted revision, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The revision.
    pub revision: RevisionId,
    /// Its repo.
    pub path: String,
    /// The pattern of the policy that governs it.
    pub pattern: String,
    /// How it stands.
    pub state: State,
    /// Why it failed, if it did; else why it is kept or left.
    pub why: String,
    /// Others that are known to hold it whole.
    pub copies_elsewhere: u32,
    /// Who sent how much of it.
    pub bytes_from: BTreeMap<NodeId, u64>,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Watch {
    wants: BTreeMap<RevisionId, Want>,
}

#[derive(Debug)]
struct Want {
    named: Named,
    state: State,
    /// Of the last attempt.
    failure: String,
    failures: u32,
    due_ms: u64,
    bytes_from: BTreeMap<NodeId, u64>,
}

impl Watch {
    /// What policies name now. What they name no more is forgotten.
    pub fn want(&mut self, now_ms: u64, all: Vec<Named>, dice: u64) {
        let mut before = std::mem::take(&mut self.wants);
        for named in all {
            let (revision, call) = (named.revision, named.call);
            let mut want = match before.remove(&revision) {
                Some(known) => Want { named, ..known },
                None => Want {
                    named,
                    state: State::Left,
                    failure: String::new(),
                    failures: 0,
                    due_ms: 0,
                    bytes_from: BTreeMap::new(),
                },
            };
            match (call, want.state) {
                (_, State::Fetching) | (Call::Fetch, State::Waiting | State::Failed) => {}
                (Call::Hold, _) => want.hold(),
                (Call::Leave, _) => want.state = State::Left,
                // It was whole and is no longer: bytes were lost.
                (Call::Fetch, State::Held) => (want.state, want.due_ms) = (State::Waiting, now_ms),
                (Call::Fetch, State::Left) => (want.state, want.due_ms) = (State::Waiting, now_ms + dice % JITTER_MS),
            }
            self.wants.entry(revision).or_insert(want);
        }
        // A fetch that is wanted no more ends by itself; its result must find its place.
        self.wants.extend(before.into_iter().filter(|(_, want)| want.state == State::Fetching));
    }

    /// Takes the revision that has been due the longest.
    pub fn begin(&mut self, now_ms: u64) -> Option<RevisionId> {
        let due = self.wants.iter_mut().filter(|(_, want)| want.waits() && want.due_ms <= now_ms);
        let (revision, want) = due.min_by_key(|(_, want)| want.due_ms)?;
        want.state = State::Fetching;
        Some(*revision)
    }

    /// All of it is here now.
    pub fn brought(&mut self, revision: RevisionId, from: BTreeMap<NodeId, u64>) {
        if let Some(want) = self.wants.get_mut(&revision) {
            want.hold();
            for (node, bytes) in from {
                *want.bytes_from.entry(node).or_default() += bytes;
            }
        }
    }

    /// An attempt failed.
    pub fn failed(&mut self, now_ms: u64, revision: RevisionId, why: String, dice: u64) {
        if let Some(want) = self.wants.get_mut(&revision) {
            want.fail(now_ms, why, dice);
        }
    }

    /// A fetch ended and nobody knows which: those under way are tried again.
    pub fn broke(&mut self, now_ms: u64, dice: u64) {
        for want in self.wants.values_mut().filter(|want| want.state == State::Fetching) {
            want.fail(now_ms, "an internal fault".to_owned(), dice);
        }
    }

    /// A peer has come: what failed may succeed now.
    pub fn hope(&mut self, now_ms: u64, dice: u64) {
        for want in self.wants.values_mut().filter(|want| want.state == State::Failed) {
            want.due_ms = want.due_ms.min(now_ms + dice % JITTER_MS);
        }
    }

    /// What is being fetched.
    pub fn fetching(&self) -> BTreeSet<RevisionId> {
        let fetching = self.wants.iter().filter(|(_, want)| want.state == State::Fetching);
        fetching.map(|(revision, _)| *revision).collect()
    }

    /// How long nothing becomes due; `None` if nothing waits.
    pub fn sleep_ms(&self, now_ms: u64) -> Option<u64> {
        // What is due already waits for a place, which frees with an event of its own; the pause only bounds a missed one.
        let waiting = self.wants.values().filter(|want| want.waits());
        waiting.map(|want| want.due_ms.saturating_sub(now_ms).max(50)).min()
    }

    /// Whether a copy of the revision stays here whatever others do; not known is no.
    pub fn stays(&self, revision: RevisionId) -> bool {
        self.wants.get(&revision).is_some_and(|want| !want.named.may_go)
    }

    /// Everything wanted, by repo.
    pub fn standings(&self) -> Vec<Standing> {
        let standing = |(revision, want): (&RevisionId, &Want)| Standing {
            revision: *revision,
            path: want.named.path.clone(),
            pattern: want.named.pattern.clone(),
            state: want.state,
            why: if want.state == State::Failed { want.failure.clone() } else { want.named.why.clone() },
            copies_elsewhere: want.named.copies_elsewhere,
            bytes_from: want.bytes_from.clone(),
        };
        let mut standings: Vec<Standing> = self.wants.iter().map(standing).collect();
        standings.sort_by(|a, b| (&a.path, a.revision).cmp(&(&b.path, b.revision)));
        standings
    }
}

impl Want {
    fn waits(&self) -> bool {
        matches!(self.state, State::Waiting | State::Failed)
    }

    fn hold(&mut self) {
        self.state = State::Held;
        self.failures = 0;
        self.failure.clear();
    }

    fn fail(&mut self, now_ms: u64, why: String, dice: u64) {
        let backoff_ms = (BACKOFF_MS << self.failures.min(16)).min(BACKOFF_MAX_MS);
        self.state = State::Failed;
        self.failure = why;
        self.failures += 1;
        // Between the backoff and half as much more.
        self.due_ms = now_ms + backoff_ms + dice % (backoff_ms / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> RevisionId {
        RevisionId::from([n; 32])
    }

    fn named(n: u8, call: Call) -> Named {
        let (path, pattern, why) = (format!("acme/{n}"), "acme/*".to_owned(), "asked for".to_owned());
        Named { revision: id(n), path, pattern, why, copies_elsewhere: 0, may_go: true, call }
    }

    fn wanted(ids: &[(u8, bool)]) -> Vec<Named> {
        ids.iter().map(|(n, whole)| named(*n, if *whole { Call::Hold } else { Call::Fetch })).collect()
    }

    #[test]
    fn what_is_wanted_is_begun_once_and_what_is_held_never() {
        let mut watch = Watch::default();
        watch.want(0, wanted(&[(1, false), (2, true)]), 5);
        assert_eq!(watch.begin(4), None);
        assert_eq!(watch.begin(5), Some(id(1)));
        assert_eq!(watch.begin(5), None);
        watch.want(6, wanted(&[(1, false), (2, true)]), 0);
        assert_eq!(watch.begin(100_000), None, "a look does not begin a running fetch again");
        watch.brought(id(1), BTreeMap::new());
        watch.want(7, wanted(&[(1, true), (2, true)]), 0);
        assert_eq!(watch.begin(1_000_000), None);
        assert!(watch.standings().iter().all(|standing| standing.state == State::Held));
    }

    #[test]
    fn failures_wait_ever_longer_up_to_a_bound() {
        let mut watch = Watch::default();
        watch.want(0, wanted(&[(1, false)]), 0);
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..12 {
            assert_eq!(watch.begin(now), Some(id(1)));
            watch.failed(now, id(1), "no holder".into(), 0);
            let wait = watch.sleep_ms(now).unwrap();
            assert_eq!(watch.begin(now + wait - 1), None);
            now += wait;
            waits.push(wait);
        }
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
        assert_eq!((waits[0], waits[11]), (BACKOFF_MS, BACKOFF_MAX_MS));
    }

    #[test]
    fn a_peer_that_comes_brings_hope_to_what_failed() {
        let mut watch = Watch::default();
        watch.want(0, wanted(&[(1, false)]), 0);
        for now in [0, 5_000, 20_000] {
            watch.begin(now).unwrap();
            watch.failed(now, id(1), "no holder".into(), 0);
        }
        watch.hope(20_010, 7);
        assert_eq!(watch.begin(20_017), Some(id(1)));
    }

    #[test]
    fn what_is_wanted_no_more_is_not_begun() {
        let mut watch = Watch::default();
        watch.want(0, wanted(&[(1, false), (2, false)]), 0);
        assert_eq!(watch.begin(0), Some(id(1)));
        watch.want(1, wanted(&[]), 0);
        assert_eq!(watch.begin(100_000), None);
        watch.brought(id(1), BTreeMap::new());
        watch.want(2, wanted(&[]), 0);
        assert!(watch.standings().is_empty());
    }

    #[test]
    fn what_is_to_be_left_is_not_begun_until_it_is_to_be_fetched() {
        let mut watch = Watch::default();
        watch.want(0, vec![named(1, Call::Leave)], 0);
        assert_eq!((watch.begin(100_000), watch.sleep_ms(0)), (None, None));
        assert_eq!((watch.standings()[0].state, &*watch.standings()[0].why), (State::Left, "asked for"));
        watch.want(10, vec![named(1, Call::Fetch)], 5);
        assert_eq!((watch.begin(14), watch.begin(15)), (None, Some(id(1))));
        watch.failed(20, id(1), "no holder".into(), 0);
        assert_eq!(watch.standings()[0].why, "no holder");
        watch.want(30, vec![named(1, Call::Leave)], 0);
        assert_eq!(watch.begin(1_000_000), None);
    }

    #[test]
    fn lost_bytes_are_fetched_anew() {
        let mut watch = Watch::default();
        watch.want(0, wanted(&[(1, true)]), 0);
        watch.want(10, wanted(&[(1, false)]), 0);
        assert_eq!(watch.begin(10), Some(id(1)));
    }
}
