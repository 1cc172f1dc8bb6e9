//! Who else keeps which revisions whole, as a mirror knows it: connected peers are asked, and what they answered counts for a lease.
//! Before a copy is let go, others have to show theirs.
//!
//! [`Copies`] is pure; asking stands below. Invariant: a node counts as a holder only if it said so itself, not longer ago than
//! the lease, and not if it has said otherwise since.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cairn_protocol::{
    id::{BlobHash, NodeId, RevisionId},
    limits::KEEPS_MAX,
    peer_pb::{Answer, Keeps, Question, answer::Say, question::Ask},
};
use cairn_registry::mirror::Holder;
use futures::{FutureExt, StreamExt, stream};

use crate::{data::fetch::Source, shell::Node};

/// In an answer: not (all) here.
pub(in crate::flows) const NOT_KEPT: u8 = 0;
/// In an answer: kept, and may be let go when others keep enough copies.
pub(in crate::flows) const KEPT_FOR_NOW: u8 = 1;
/// In an answer: kept whatever others do.
pub(in crate::flows) const KEPT_ANYWAY: u8 = 2;

/// Peers that are asked in one round.
const ASKED_MAX: usize = 32;
/// Time for one answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// What was heard.
#[derive(Debug, Default)]
pub(super) struct Copies {
    heard: BTreeMap<RevisionId, BTreeMap<NodeId, Heard>>,
    asked: BTreeMap<RevisionId, u64>,
}

#[derive(Debug)]
struct Heard {
    at_ms: u64,
    may_go: bool,
}

impl Copies {
    /// Those of `revisions` about which nobody was asked for so long. They count as asked now; all others are forgotten.
    pub(super) fn due(&mut self, now_ms: u64, every_ms: u64, revisions: &BTreeSet<RevisionId>) -> Vec<RevisionId> {
        self.asked.retain(|revision, _| revisions.contains(revision));
        let is_due = |revision: &&RevisionId| {
            self.asked.get(revision).is_none_or(|asked_ms| now_ms >= asked_ms.saturating_add(every_ms))
        };
        let due: Vec<RevisionId> = revisions.iter().filter(is_due).copied().collect();
        self.asked.extend(due.iter().map(|revision| (*revision, now_ms)));
        due
    }

    /// One node's answer about one revision.
    pub(super) fn hear(&mut self, now_ms: u64, node: NodeId, revision: RevisionId, state: u8) {
        match holder(node, state) {
            Some(Holder { may_go, .. }) => {
                self.heard.entry(revision).or_default().insert(node, Heard { at_ms: now_ms, may_go });
            }
            None => {
                if let Some(nodes) = self.heard.get_mut(&revision) {
                    nodes.remove(&node);
                }
            }
        }
    }

    /// Whoever counts now. What has run out, or is of no `wanted` revision, is forgotten.
    pub(super) fn holders(
        &mut self,
        now_ms: u64,
        lease_ms: u64,
        wanted: &BTreeSet<RevisionId>,
    ) -> BTreeMap<RevisionId, Vec<Holder>> {
        self.heard.retain(|revision, nodes| {
            nodes.retain(|_, heard| now_ms < heard.at_ms.saturating_add(lease_ms));
            wanted.contains(revision) && !nodes.is_empty()
        });
        let holders = |nodes: &BTreeMap<NodeId, Heard>| {
            nodes.iter().map(|(node, heard)| Holder { node: *node, may_go: heard.may_go }).collect()
        };
        self.heard.iter().map(|(revision, nodes)| (*revision, holders(nodes))).collect()
    }
}

/// What a node's answer about a revision makes of it.
pub(super) fn holder(node: NodeId, state: u8) -> Option<Holder> {
    matches!(state, KEPT_FOR_NOW | KEPT_ANYWAY).then_some(Holder { node, may_go: state == KEPT_FOR_NOW })
}

/// Asks connected peers what they keep of these: who said what about which. A peer that does not answer has said nothing.
pub(super) async fn ask(node: &Node, revisions: &[RevisionId]) -> Vec<(NodeId, RevisionId, u8)> {
    if revisions.is_empty() {
        return Vec::new();
    }
    let peers = node.net.peers().into_iter().filter(|peer| peer.connected && peer.advert.is_some()).take(ASKED_MAX);
    let mut asking = Vec::new();
    for peer in peers {
        asking.extend(revisions.chunks(KEEPS_MAX).map(|chunk| ask_one(node, peer.node_id, chunk).boxed()));
    }
    stream::iter(asking).buffer_unordered(ASKED_MAX).concat().await
}

async fn ask_one(node: &Node, peer: NodeId, revisions: &[RevisionId]) -> Vec<(NodeId, RevisionId, u8)> {
    let keeps = Keeps { revisions: revisions.iter().map(RevisionId::to_vec).collect() };
    match node.net.ask(peer, Question { ask: Some(Ask::Keeps(keeps)) }, DEADLINE).await {
        Ok(Answer { say: Some(Say::Kept(kept)) }) if kept.states.len() == revisions.len() => {
            revisions.iter().zip(kept.states).map(|(revision, state)| (peer, *revision, state)).collect()
        }
        _ => Vec::new(),
    }
}

/// How many of these nodes deliver a piece of the revision that was drawn by lot, so that a word alone is no copy. Empty
/// revisions need no proof.
pub(super) async fn proven(node: &Node, revision: RevisionId, keepers: &[Holder]) -> usize {
    let Ok(Some(manifest)) = node.registry.manifest(revision).await else { return 0 };
    let bytes: u64 = manifest.files.iter().map(|file| file.size).sum();
    let mut proving = Vec::new();
    for keeper in keepers {
        let mut offset = if bytes > 0 { rand::random_range(0..bytes) } else { 0 };
        let drawn = manifest.files.iter().find(|file| {
            let is_here = offset < file.size;
            offset -= if is_here { 0 } else { file.size };
            is_here
        });
        proving.push(delivers(node, keeper.node, drawn.map(|file| file.blake3), offset).boxed());
    }
    stream::iter(proving).buffer_unordered(ASKED_MAX).filter(|proven| std::future::ready(*proven)).count().await
}

async fn delivers(node: &Node, peer: NodeId, blob: Option<BlobHash>, offset: u64) -> bool {
    let Some(blob) = blob else { return true };
    let Some(advert) = node.net.peer(peer).and_then(|peer| peer.advert) else { return false };
    let source = Source { node: peer, addresses: advert.data_addresses };
    node.data.delivers(&source, blob, offset).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_counts_until_its_lease_ends_or_its_holder_says_otherwise() {
        let (node, other) = (NodeId::from([1; 32]), NodeId::from([2; 32]));
        let revision = RevisionId::from([7; 32]);
        let mut copies = Copies::default();
        copies.hear(0, node, revision, KEPT_FOR_NOW);
        copies.hear(50, other, revision, KEPT_ANYWAY);
        let count =
            |copies: &mut Copies, now_ms| copies.holders(now_ms, 100, &[revision].into()).values().map(Vec::len).sum();
        let before: usize = count(&mut copies, 99);
        assert_eq!((before, count(&mut copies, 100)), (2, 1));
        copies.hear(101, other, revision, NOT_KEPT);
        assert_eq!(count(&mut copies, 101), 0);
    }

    #[test]
    fn a_new_revision_is_asked_about_at_once_and_a_known_one_now_and_then() {
        let mut copies = Copies::default();
        let revisions: BTreeSet<_> = [1, 2].map(|n| RevisionId::from([n; 32])).into();
        let first: BTreeSet<_> = revisions.iter().take(1).copied().collect();
        assert_eq!(copies.due(0, 100, &first).len(), 1);
        assert_eq!(copies.due(50, 100, &revisions), [RevisionId::from([2; 32])]);
        assert_eq!(copies.due(100, 100, &revisions), [RevisionId::from([1; 32])]);
        assert_eq!(copies.due(110, 100, &BTreeSet::new()), []);
        assert_eq!(copies.due(111, 100, &revisions).len(), 2, "what was forgotten is new");
    }

    #[test]
    fn whether_a_copy_may_go_is_told() {
        let mut copies = Copies::default();
        let revision = RevisionId::from([7; 32]);
        copies.hear(0, NodeId::from([1; 32]), revision, KEPT_FOR_NOW);
        copies.hear(0, NodeId::from([2; 32]), revision, KEPT_ANYWAY);
        let holders = copies.holders(0, 1, &[revision].into()).remove(&revision).unwrap();
        assert_eq!(holders.iter().map(|holder| holder.may_go).collect::<Vec<_>>(), [true, false]);
        assert!(copies.holders(0, 1, &BTreeSet::new()).is_empty(), "nobody wants it");
    }
}
