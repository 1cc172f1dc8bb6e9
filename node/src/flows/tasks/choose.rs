//! Which nodes are asked for a task, in which order, and why the others are not. Pure.
//!
//! Who keeps the model's files goes before who would fetch them; of those, who has it loaded; then by free compute, the
//! measured rate over what already runs, where less than a factor of two is no difference; then the nearest. Equal inputs
//! give equal orders. Invariant: no node is asked that its owner's rules or the request's privacy class keep out.

use std::{cmp::Reverse, collections::BTreeMap};

use cairn_compute::plan::{Privacy, RTT_UNKNOWN_US, Standing};
use cairn_protocol::{
    id::NodeId,
    refusal::{Reason, Refusal},
};

/// A node that might do it, as its advert and this node's peer table say.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub node: NodeId,
    pub standing: Standing,
    pub is_reachable: bool,
    /// Its compute grant covers this node.
    pub is_granted: bool,
    /// It computes the task at all.
    pub serves: bool,
    /// It keeps the whole revision.
    pub holds: bool,
    /// It has the model loaded.
    pub is_warm: bool,
    pub memory_free_bytes: u64,
    pub macs_per_s: u64,
    pub rtt_us: Option<u64>,
    pub tasks: u32,
    pub tasks_max: u32,
    /// Generations' stages that run there too.
    pub sessions: u32,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub memory_bytes: u64,
    pub privacy: Privacy,
}

/// The nodes to ask, the best first, and everyone else with a reason.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub order: Vec<Candidate>,
    pub rejected: Vec<Rejection>,
}

/// A node that is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    pub node: NodeId,
    pub reason: Reason,
    pub why: String,
}

/// Orders the candidates; `failed` are those that were asked in vain.
pub(super) fn choose(wish: &Wish, candidates: Vec<Candidate>, failed: &BTreeMap<NodeId, Refusal>) -> Choice {
    let mut choice = Choice::default();
    for candidate in candidates {
        match obstacle(wish, &candidate, failed) {
            None => choice.order.push(candidate),
            Some((reason, why)) => choice.rejected.push(Rejection { node: candidate.node, reason, why }),
        }
    }
    choice.order.sort_by_key(rank);
    choice.rejected.sort_by_key(|rejection| rejection.node);
    choice
}

fn obstacle(wish: &Wish, c: &Candidate, failed: &BTreeMap<NodeId, Refusal>) -> Option<(Reason, String)> {
    if let Some(refusal) = failed.get(&c.node) {
        return Some((refusal.reason, refusal.why.clone()));
    }
    if !c.is_reachable {
        return Some((Reason::Unreachable, "it is not connected".to_owned()));
    }
    if !wish.privacy.allows(c.standing) {
        return Some((Reason::Privacy, "the request's privacy class keeps it from there".to_owned()));
    }
    if !c.is_granted {
        return Some((Reason::NoGrant, "its compute grant does not cover this node".to_owned()));
    }
    if !c.serves {
        return Some((Reason::Unsupported, "it does not compute this task".to_owned()));
    }
    if c.tasks_max > 0 && c.tasks >= c.tasks_max {
        return Some((Reason::Busy, format!("{} of {} tasks run there", c.tasks, c.tasks_max)));
    }
    if !c.is_warm && c.memory_free_bytes < wish.memory_bytes {
        let why = format!("the model needs {} bytes of memory, it offers {}", wish.memory_bytes, c.memory_free_bytes);
        return Some((Reason::NoMemory, why));
    }
    None
}

/// Sorts the best first.
fn rank(c: &Candidate) -> impl Ord + use<> {
    let free = c.macs_per_s / (1 + u64::from(c.tasks) + u64::from(c.sessions));
    let distance = if c.standing == Standing::Own { 0 } else { c.rtt_us.unwrap_or(RTT_UNKNOWN_US).max(1) };
    (!(c.holds || c.is_warm), !c.is_warm, Reverse(free.checked_ilog2()), distance, c.node)
}

/// Why a node stands where it does, for people.
pub(super) fn why(c: &Candidate) -> String {
    let files = match (c.is_warm, c.holds) {
        (true, _) => "has it loaded",
        (false, true) => "keeps the files",
        (false, false) => "would fetch the files",
    };
    let place = if c.standing == Standing::Own { "this node" } else { "a peer" };
    format!("{place}: {files}, {} tasks and {} stages run there", c.tasks, c.sessions)
}

/// That nobody is left to ask, with everyone's reason.
pub(super) fn nobody(repo: &str, rejected: &[Rejection]) -> Refusal {
    let mut reasons = rejected.iter().map(|rejection| rejection.reason);
    let first = reasons.next();
    let reason = first.filter(|first| reasons.all(|reason| reason == *first)).unwrap_or(Reason::TooFewNodes);
    let each: Vec<String> = rejected
        .iter()
        .map(|rejection| format!("{} {} ({})", rejection.node.short(), rejection.reason.code(), rejection.why))
        .collect();
    let why = format!("no node computes it: {}", each.join("; "));
    Refusal::new(reason, repo, why).try_this("cairn peers, or --privacy")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node: u8) -> Candidate {
        Candidate {
            node: NodeId::from([node; 32]),
            standing: Standing::SameHost,
            is_reachable: true,
            is_granted: true,
            serves: true,
            holds: true,
            is_warm: false,
            memory_free_bytes: 1000,
            macs_per_s: 1 << 30,
            rtt_us: Some(100),
            tasks: 0,
            tasks_max: 4,
            sessions: 0,
        }
    }

    const WISH: Wish = Wish { memory_bytes: 1000, privacy: Privacy::Trusted };

    fn order(candidates: Vec<Candidate>) -> Vec<u8> {
        let choice = choose(&WISH, candidates, &BTreeMap::new());
        choice.order.iter().map(|c| c.node.as_bytes()[0]).collect()
    }

    #[test]
    fn who_keeps_the_files_goes_first_then_who_is_warm_then_who_is_free_then_who_is_near() {
        let own = Candidate { standing: Standing::Own, ..candidate(1) };
        let far = Candidate { rtt_us: Some(9000), ..candidate(2) };
        let busy = Candidate { tasks: 3, ..candidate(3) };
        let strong = Candidate { macs_per_s: 1 << 32, ..candidate(4) };
        let little_stronger = Candidate { macs_per_s: (1 << 30) + (1 << 29), rtt_us: Some(9001), ..candidate(5) };
        let warm_and_slow = Candidate { is_warm: true, macs_per_s: 1 << 20, ..candidate(6) };
        let cold_and_strong = Candidate { holds: false, macs_per_s: 1 << 40, ..candidate(7) };
        let warm_from_its_cache = Candidate { holds: false, is_warm: true, macs_per_s: 1 << 21, ..candidate(8) };
        let all = vec![own, far, busy, strong, little_stronger, warm_and_slow, cold_and_strong, warm_from_its_cache];
        let expected = [8, 6, 4, 1, 2, 5, 3, 7];
        assert_eq!(order(all.clone()), expected);
        assert_eq!(order(all.into_iter().rev().collect()), expected);
    }

    #[test]
    fn every_obstacle_has_its_reason_and_keeps_a_node_out() {
        let failed = BTreeMap::from([(NodeId::from([9; 32]), Refusal::new(Reason::Unavailable, "", "it died"))]);
        for (reason, wrong) in [
            (Reason::Unreachable, Candidate { is_reachable: false, ..candidate(1) }),
            (Reason::Privacy, Candidate { standing: Standing::Stranger, ..candidate(1) }),
            (Reason::NoGrant, Candidate { is_granted: false, ..candidate(1) }),
            (Reason::Unsupported, Candidate { serves: false, ..candidate(1) }),
            (Reason::Busy, Candidate { tasks: 4, ..candidate(1) }),
            (Reason::NoMemory, Candidate { memory_free_bytes: 999, ..candidate(1) }),
            (Reason::Unavailable, candidate(9)),
        ] {
            let choice = choose(&WISH, vec![wrong], &failed);
            assert!(choice.order.is_empty());
            assert_eq!(choice.rejected[0].reason, reason);
            let refusal = nobody("acme/embed", &choice.rejected);
            assert_eq!(refusal.reason, reason);
            assert!(refusal.why.contains(&choice.rejected[0].why), "{refusal}");
        }
        let warm = Candidate { is_warm: true, memory_free_bytes: 0, ..candidate(1) };
        assert_eq!(order(vec![warm]), [1], "a loaded model needs no memory");
        assert_eq!(nobody("acme/embed", &[]).reason, Reason::TooFewNodes);
    }

    #[test]
    fn an_open_request_may_go_to_strangers_and_a_local_one_not_even_to_listed_nodes() {
        let stranger = Candidate { standing: Standing::Stranger, ..candidate(1) };
        let listed = Candidate { standing: Standing::Listed, ..candidate(2) };
        let asked =
            |privacy| choose(&Wish { privacy, ..WISH }, vec![stranger.clone(), listed.clone()], &BTreeMap::new());
        assert_eq!(asked(Privacy::Open).order.len(), 2);
        assert_eq!(asked(Privacy::Trusted).order.len(), 1);
        assert_eq!(asked(Privacy::Local).order.len(), 0);
    }
}
