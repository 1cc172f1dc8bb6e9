//! Which candidates may carry a stage at all, and for the others the typed reason.
//!
//! Not a choice among the admitted, and blind to instruction-set levels: which level a plan has is known only when it
//! is chosen.

use super::{Candidate, FAST_ENOUGH_NS, PlanInput, RejectReason, Rejection, SLOWER_THAN_FASTEST_MAX, STAGE_RTT_US_MAX};
use cairn_protocol::id::NodeId;
use cairn_protocol::layers::LayerRange;
use std::collections::BTreeSet;

/// The admitted in the order of their ids, and everyone else with a reason.
pub(super) fn admit<'a>(input: &'a PlanInput, dead: &BTreeSet<NodeId>) -> (Vec<&'a Candidate>, Vec<Rejection>) {
    let mut sorted: Vec<&Candidate> = input.candidates.iter().collect();
    sorted.sort_by_key(|c| c.node);
    sorted.dedup_by_key(|c| c.node);
    let (mut admitted, mut rejected) = (Vec::new(), Vec::new());
    for candidate in sorted {
        match obstacle(input, dead, candidate) {
            None => admitted.push(candidate),
            Some((reason, why)) => rejected.push(Rejection { node: candidate.node, reason, why }),
        }
    }
    drop_the_far_too_slow(input, &mut admitted, &mut rejected);
    (admitted, rejected)
}

fn obstacle(input: &PlanInput, dead: &BTreeSet<NodeId>, c: &Candidate) -> Option<(RejectReason, String)> {
    if dead.contains(&c.node) || input.excluded.contains(&c.node) {
        return Some((RejectReason::Unreachable, "lost or refused in this session".into()));
    }
    if !c.reachable {
        return Some((RejectReason::Unreachable, "not connected".into()));
    }
    if !input.privacy.allows(c.standing) {
        return Some((
            RejectReason::Privacy,
            format!("{:?} requests may not go to a node that is {}", input.privacy, standing(c)).to_lowercase(),
        ));
    }
    if !c.granted {
        return Some((RejectReason::NoGrant, "its compute grant does not cover this node".into()));
    }
    if c.sessions_max > 0 && c.sessions >= c.sessions_max && !input.may_wait {
        return Some((RejectReason::Busy, format!("{} of {} sessions run there", c.sessions, c.sessions_max)));
    }
    let needed = input.cost.smallest_stage_memory(input.context);
    let is_in_use = input.in_use.iter().flatten().any(|(node, _)| *node == c.node);
    if c.memory_free_bytes < needed && !is_in_use {
        return Some((
            RejectReason::NoMemory,
            format!("one layer needs {needed} bytes, it offers {}", c.memory_free_bytes),
        ));
    }
    match c.rtt_us {
        Some(rtt) if rtt > STAGE_RTT_US_MAX => {
            Some((RejectReason::TooSlow, format!("{} ms away, at most {} serve", rtt / 1000, STAGE_RTT_US_MAX / 1000)))
        }
        _ => None,
    }
}

fn standing(c: &Candidate) -> &'static str {
    use super::Standing::*;
    match c.standing {
        Own => "this one",
        SameHost => "on this host",
        Listed => "listed",
        Realm => "only a member of the realm",
        Stranger => "a stranger",
    }
}

/// A pipeline runs at the pace of its slowest stage; one hopeless node is worse than one node fewer.
fn drop_the_far_too_slow(input: &PlanInput, admitted: &mut Vec<&Candidate>, rejected: &mut Vec<Rejection>) {
    let whole = LayerRange { start: 0, end: input.cost.layer_count() as u32 };
    let Some(fastest) = admitted.iter().map(|c| input.cost.decode_ns(whole, c)).min() else { return };
    let limit = fastest.saturating_mul(SLOWER_THAN_FASTEST_MAX).max(FAST_ENOUGH_NS);
    admitted.retain(|c| {
        let own = input.cost.decode_ns(whole, c);
        if own > limit {
            let why = format!(
                "all layers would take {} ms a token there, {} on the fastest",
                own / 1_000_000,
                fastest / 1_000_000
            );
            rejected.push(Rejection { node: c.node, reason: RejectReason::TooSlow, why });
        }
        own <= limit
    });
}
