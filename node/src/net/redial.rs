//! Whom to dial, and when again. A pure decider: it knows addresses and times and opens nothing itself.
//!
//! Configured bootstrap addresses are tried for ever, with a pause that doubles up to half a minute; peers that were
//! only heard of are given up for some minutes after some failures, however often they are heard of meanwhile; one that belonged here
//! and says something new, though we don't reach it, is tried every half minute, as after a line was cut and mended. Who answers
//! and then turns out not to belong here has failed too. Pauses are spread by a hash, so that nodes that lost the same peer
//! don't come back all at once.
//!
//! Invariant: one target is never dialled twice at the same time, and there are at most `DIAL_TARGETS_MAX` of them.

use std::collections::BTreeMap;

use cairn_protocol::id::NodeId;
use libp2p::{Multiaddr, multiaddr::Protocol};

use super::{
    behaviour::peer_of,
    bounds::{
        ADDRESSES_PER_PEER_MAX, DIAL_TARGETS_MAX, GIVEN_UP_MS, REDIAL_ATTEMPTS_MAX, REDIAL_FIRST_MS, REDIAL_LAST_MS,
    },
};

/// Names a target of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetId(u32);

/// One dial to begin now.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Reported back with what came of it.
    pub target: TargetId,
    /// Who is expected there, if it is known.
    pub node: Option<NodeId>,
    /// Where.
    pub addresses: Vec<Multiaddr>,
}

/// All targets.
#[derive(Debug, Default)]
pub struct Redial {
    targets: BTreeMap<TargetId, Target>,
    next_id: u32,
}

#[derive(Debug)]
struct Target {
    addresses: Vec<Multiaddr>,
    node: Option<NodeId>,
    lasting: bool,
    /// It was here and belonged here.
    was_met: bool,
    dialling: bool,
    failures: u32,
    next_ms: u64,
}

impl Redial {
    /// Adds a configured address; whoever answers there is ours to keep in touch with.
    pub fn add_bootstrap(&mut self, address: Multiaddr, node: Option<NodeId>) {
        self.insert(Target {
            addresses: vec![address],
            node,
            lasting: true,
            was_met: false,
            dialling: false,
            failures: 0,
            next_ms: 0,
        });
    }

    /// Adds a peer that was heard of, or refreshes its addresses; when to try it again stays as it was.
    pub fn add_peer(&mut self, now_ms: u64, node: NodeId, mut addresses: Vec<Multiaddr>) {
        addresses.truncate(ADDRESSES_PER_PEER_MAX);
        if let Some(target) = self.targets.values_mut().find(|t| t.node == Some(node) && !t.lasting) {
            if !addresses.is_empty() {
                target.addresses = addresses;
            }
        } else if !addresses.is_empty() {
            let next_ms = now_ms;
            self.insert(Target {
                addresses,
                node: Some(node),
                lasting: false,
                was_met: false,
                dialling: false,
                failures: 0,
                next_ms,
            });
        }
    }

    /// What to dial now, at most `max` dials, the longest due first; `connected` says whom we needn't.
    pub fn due(&mut self, now_ms: u64, max: usize, connected: impl Fn(&NodeId) -> bool) -> Vec<Attempt> {
        let is_due = |target: &Target| {
            !target.dialling && target.next_ms <= now_ms && !target.node.as_ref().is_some_and(&connected)
        };
        let mut due: Vec<(TargetId, &mut Target)> =
            self.targets.iter_mut().filter(|(_, target)| is_due(target)).map(|(id, target)| (*id, target)).collect();
        due.sort_by_key(|(id, target)| (target.next_ms, *id));
        let attempts = due.into_iter().take(max).map(|(id, target)| {
            target.dialling = true;
            Attempt { target: id, node: target.node, addresses: target.addresses_now() }
        });
        attempts.collect()
    }

    /// That node is here and belongs here, whoever dialled: what failed before is forgiven.
    pub fn met(&mut self, now_ms: u64, node: NodeId) {
        for target in self.targets.values_mut().filter(|target| target.node == Some(node)) {
            target.failures = 0;
            target.was_met = true;
            target.next_ms = now_ms + REDIAL_FIRST_MS;
        }
    }

    /// That node said something new, so it lives; others passed it on. If it was here before, it need not wait as one that was given up.
    pub fn lives(&mut self, now_ms: u64, node: NodeId) {
        for target in self.targets.values_mut().filter(|target| target.node == Some(node) && target.was_met) {
            target.next_ms = target.next_ms.min(now_ms + REDIAL_LAST_MS);
        }
    }

    /// A dial succeeded; `node` answered. Whether it belongs here, [`Redial::met`] or [`Redial::turned_away`] will say.
    pub fn reached(&mut self, now_ms: u64, id: TargetId, node: NodeId) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.node = Some(node);
            target.dialling = false;
            target.next_ms = now_ms + REDIAL_FIRST_MS;
        }
    }

    /// That node is gone again and never showed that it belongs here, e.g. because it is of another realm.
    pub fn turned_away(&mut self, now_ms: u64, node: NodeId) {
        for (id, target) in self.targets.iter_mut().filter(|(_, target)| target.node == Some(node)) {
            target.was_met = false;
            target.fail(now_ms, *id);
        }
    }

    /// A dial failed.
    pub fn failed(&mut self, now_ms: u64, id: TargetId) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        target.dialling = false;
        target.fail(now_ms, id);
    }

    /// Another node answered than was expected. Of a configured address that names none, whoever is there now will do.
    pub fn answered_by_another(&mut self, now_ms: u64, id: TargetId) {
        self.failed(now_ms, id);
        let names_nobody = |target: &Target| target.addresses.iter().all(|address| peer_of(address).is_none());
        if let Some(target) = self.targets.get_mut(&id).filter(|target| target.lasting && names_nobody(target)) {
            target.node = None;
        }
    }

    /// That target makes no sense, e.g. it is this node itself.
    pub fn forget(&mut self, id: TargetId) {
        self.targets.remove(&id);
    }

    /// Forgets a peer that was only heard of, e.g. because it is banned.
    pub fn forget_peer(&mut self, node: NodeId) {
        self.targets.retain(|_, target| target.lasting || target.node != Some(node));
    }

    fn insert(&mut self, target: Target) {
        if self.targets.len() >= DIAL_TARGETS_MAX {
            let worst = self.targets.iter().filter(|(_, t)| !t.lasting && !t.dialling).max_by_key(|(_, t)| t.failures);
            let Some((id, _)) = worst else { return };
            let id = *id;
            self.targets.remove(&id);
        }
        self.targets.insert(TargetId(self.next_id), target);
        self.next_id = self.next_id.wrapping_add(1);
    }
}

impl Target {
    fn fail(&mut self, now_ms: u64, id: TargetId) {
        self.failures += 1;
        // A target that is given up stays, so that hearing of it again does not begin it anew.
        let is_given_up = !self.lasting && self.failures >= REDIAL_ATTEMPTS_MAX;
        self.next_ms = now_ms + if is_given_up { GIVEN_UP_MS } else { pause_ms(id, self.failures) };
    }

    /// TCP alone at every other attempt, if there is any: it tells of a peer's death at once, which QUIC does not.
    fn addresses_now(&self) -> Vec<Multiaddr> {
        let is_tcp = |address: &&Multiaddr| address.iter().any(|part| matches!(part, Protocol::Tcp(_)));
        let tcp: Vec<Multiaddr> = self.addresses.iter().filter(is_tcp).cloned().collect();
        if self.failures % 2 == 1 || tcp.is_empty() { self.addresses.clone() } else { tcp }
    }
}

/// Doubles from the first pause to the last, less up to a quarter that depends on the target and the attempt.
fn pause_ms(id: TargetId, failures: u32) -> u64 {
    let whole = (REDIAL_FIRST_MS << failures.saturating_sub(1).min(16)).min(REDIAL_LAST_MS);
    let hash = blake3::hash(&[id.0.to_be_bytes(), failures.to_be_bytes()].concat());
    whole - whole * u64::from(hash.as_bytes()[0]) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("a valid address")
    }

    fn node(n: u8) -> NodeId {
        NodeId::from([n; 32])
    }

    #[test]
    fn a_bootstrap_address_is_dialled_again_with_growing_pauses_for_ever() {
        let mut redial = Redial::default();
        redial.add_bootstrap(address(1), None);
        let (mut now_ms, mut dials) = (0, Vec::new());
        while dials.len() < 40 {
            for attempt in redial.due(now_ms, 8, |_| false) {
                dials.push(now_ms);
                redial.failed(now_ms, attempt.target);
            }
            now_ms += 10;
        }
        assert!(dials[1] - dials[0] <= REDIAL_FIRST_MS + 10);
        assert!(dials[39] - dials[38] > REDIAL_LAST_MS / 2);
        assert!(dials[39] - dials[38] <= REDIAL_LAST_MS + 10);
    }

    #[test]
    fn a_target_under_way_is_not_dialled_twice() {
        let mut redial = Redial::default();
        redial.add_bootstrap(address(1), None);
        assert_eq!(redial.due(0, 8, |_| false).len(), 1);
        assert_eq!(redial.due(60_000, 8, |_| false).len(), 0);
    }

    #[test]
    fn a_connected_peer_is_left_alone_and_dialled_again_when_it_is_gone() {
        let mut redial = Redial::default();
        redial.add_bootstrap(address(1), None);
        let attempt = redial.due(0, 8, |_| false).remove(0);
        redial.reached(0, attempt.target, node(7));
        assert_eq!(redial.due(5_000, 8, |n| *n == node(7)), vec![]);
        assert_eq!(redial.due(5_000, 8, |_| false).len(), 1);
    }

    #[test]
    fn a_peer_that_was_only_heard_of_is_given_up() {
        let mut redial = Redial::default();
        redial.add_peer(0, node(1), vec![address(1)]);
        let mut now_ms = 0;
        for _ in 0..REDIAL_ATTEMPTS_MAX {
            now_ms += REDIAL_LAST_MS;
            let attempt = redial.due(now_ms, 8, |_| false).remove(0);
            redial.failed(now_ms, attempt.target);
        }
        assert_eq!(redial.due(now_ms + REDIAL_LAST_MS, 8, |_| false), vec![]);
    }

    #[test]
    fn a_peer_that_was_given_up_is_not_begun_anew_by_hearing_of_it() {
        let mut redial = Redial::default();
        let (mut now_ms, mut dials) = (0, 0);
        while now_ms < GIVEN_UP_MS / 2 {
            redial.add_peer(now_ms, node(1), vec![address(1)]);
            for attempt in redial.due(now_ms, 8, |_| false) {
                redial.failed(now_ms, attempt.target);
                dials += 1;
            }
            now_ms += 200;
        }
        assert_eq!(dials, REDIAL_ATTEMPTS_MAX);
        redial.met(now_ms, node(1));
        assert_eq!(redial.due(now_ms + REDIAL_FIRST_MS, 8, |_| false).len(), 1, "it was here in between");
    }

    #[test]
    fn a_peer_that_was_here_and_is_heard_to_live_is_tried_every_half_minute() {
        let dials = |was_here: bool| {
            let (mut redial, mut dials) = (Redial::default(), Vec::new());
            redial.add_peer(0, node(1), vec![address(1)]);
            if was_here {
                redial.met(0, node(1));
            }
            for now_ms in (0..GIVEN_UP_MS).step_by(1_000) {
                if now_ms >= GIVEN_UP_MS / 2 && now_ms % 10_000 == 0 {
                    redial.lives(now_ms, node(1));
                }
                for attempt in redial.due(now_ms, 8, |_| false) {
                    redial.failed(now_ms, attempt.target);
                    dials.push(now_ms);
                }
            }
            dials
        };
        assert_eq!(dials(false).len(), REDIAL_ATTEMPTS_MAX as usize);
        let after: Vec<u64> = dials(true).split_off(REDIAL_ATTEMPTS_MAX as usize);
        assert_eq!(after.first(), Some(&(GIVEN_UP_MS / 2 + REDIAL_LAST_MS)));
        assert!(after.windows(2).all(|pair| pair[1] - pair[0] >= REDIAL_LAST_MS), "{after:?}");
        assert!((6..=10).contains(&after.len()), "{after:?}");
    }

    /// Dials begun in ten minutes when somebody answers each and is found not to belong here.
    fn dials_to_a_stranger(mut redial: Redial) -> u32 {
        let mut dials = 0;
        for now_ms in (0..600_000).step_by(200) {
            for attempt in redial.due(now_ms, 8, |_| false) {
                redial.reached(now_ms, attempt.target, node(7));
                redial.turned_away(now_ms, node(7));
                dials += 1;
            }
        }
        dials
    }

    #[test]
    fn who_answers_and_does_not_belong_here_is_dialled_ever_less_often() {
        let (mut heard_of, mut configured) = (Redial::default(), Redial::default());
        heard_of.add_peer(0, node(7), vec![address(1)]);
        configured.add_bootstrap(address(1), None);
        assert_eq!(dials_to_a_stranger(heard_of), REDIAL_ATTEMPTS_MAX);
        let dials = dials_to_a_stranger(configured);
        assert!((20..40).contains(&dials), "{dials}: one in half a minute");
    }

    #[test]
    fn a_bootstrap_address_without_a_name_takes_whoever_is_there_now() {
        let mut redial = Redial::default();
        redial.add_bootstrap(address(1), None);
        let attempt = redial.due(0, 8, |_| false).remove(0);
        redial.reached(0, attempt.target, node(7));
        let again = redial.due(REDIAL_LAST_MS, 8, |_| false).remove(0);
        assert_eq!(again.node, Some(node(7)));
        redial.answered_by_another(REDIAL_LAST_MS, again.target);
        assert_eq!(redial.due(REDIAL_LAST_MS * 3, 8, |_| false).remove(0).node, None);
    }

    #[test]
    fn hearing_of_a_peer_without_addresses_keeps_those_that_are_known() {
        let mut redial = Redial::default();
        redial.add_peer(0, node(1), vec![address(1)]);
        redial.add_peer(0, node(1), vec![]);
        assert_eq!(redial.due(0, 8, |_| false).remove(0).addresses, [address(1)]);
    }

    #[test]
    fn who_has_waited_longest_is_dialled_first() {
        let mut redial = Redial::default();
        for n in 1..=20 {
            redial.add_peer(u64::from(n == 1), node(n), vec![address(u16::from(n))]);
        }
        let first: Vec<Option<NodeId>> = redial.due(1, 19, |_| false).into_iter().map(|attempt| attempt.node).collect();
        assert!(!first.contains(&Some(node(1))), "it was heard of last");
    }

    #[test]
    fn the_targets_are_bounded_and_bootstrap_addresses_stay() {
        let mut redial = Redial::default();
        redial.add_bootstrap(address(1), None);
        for n in 0..2 * DIAL_TARGETS_MAX {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            redial.add_peer(0, NodeId::from(bytes), vec![address(2)]);
        }
        assert_eq!(redial.targets.len(), DIAL_TARGETS_MAX);
        assert!(redial.targets.values().any(|t| t.lasting));
    }
}
