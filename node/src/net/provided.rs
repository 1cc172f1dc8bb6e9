//! Whose announcements in the distributed table this node remembers. A pure decider: time is an argument, the records
//! themselves lie in libp2p's store.
//!
//! The store by itself takes what comes until it is full, and full it refuses our own announcements too; and it drops what has
//! run out only when somebody asks for just that. Invariant: of one node at most [`PROVIDED_PER_PEER_MAX`] are remembered, of
//! one revision at most [`PROVIDERS_PER_REVISION_MAX`] nodes, in all at most [`PROVIDED_MAX`], so that the rest of the store is
//! left for our own.

use std::collections::BTreeMap;

use cairn_protocol::id::{NodeId, RevisionId};

use super::bounds::{PROVIDED_MAX, PROVIDED_MS, PROVIDED_PER_PEER_MAX, PROVIDERS_PER_REVISION_MAX};

/// Why an announcement is not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unremembered {
    /// That node has announced as much as one may.
    OfNode,
    /// Enough others have announced that revision.
    OfRevision,
    /// All have announced as much as all may.
    Full,
}

/// The announcements of others that have not run out.
#[derive(Debug, Default)]
pub struct Provided {
    /// When each runs out.
    by_node: BTreeMap<NodeId, BTreeMap<RevisionId, u64>>,
    nodes_of: BTreeMap<RevisionId, usize>,
    count: usize,
}

impl Provided {
    /// A node announces that it keeps a revision; known ones are renewed.
    pub fn announced(&mut self, now_ms: u64, node: NodeId, revision: RevisionId) -> Result<(), Unremembered> {
        let until_ms = now_ms + PROVIDED_MS;
        if let Some(known) = self.by_node.get_mut(&node).and_then(|of_node| of_node.get_mut(&revision)) {
            *known = until_ms;
            return Ok(());
        }
        if self.by_node.get(&node).is_some_and(|of_node| of_node.len() >= PROVIDED_PER_PEER_MAX) {
            return Err(Unremembered::OfNode);
        }
        if self.nodes_of.get(&revision).is_some_and(|nodes| *nodes >= PROVIDERS_PER_REVISION_MAX) {
            return Err(Unremembered::OfRevision);
        }
        if self.count >= PROVIDED_MAX {
            return Err(Unremembered::Full);
        }
        self.by_node.entry(node).or_default().insert(revision, until_ms);
        *self.nodes_of.entry(revision).or_default() += 1;
        self.count += 1;
        Ok(())
    }

    /// What has run out; it is remembered no more.
    pub fn wake(&mut self, now_ms: u64) -> Vec<(NodeId, RevisionId)> {
        let all = self.by_node.iter().flat_map(|(node, of_node)| of_node.iter().map(|row| (*node, row)));
        let over: Vec<_> = all
            .filter(|(_, (_, until_ms))| **until_ms <= now_ms)
            .map(|(node, (revision, _))| (node, *revision))
            .collect();
        for (node, revision) in &over {
            self.forget(*node, *revision);
        }
        over
    }

    /// That announcement is remembered no more.
    pub fn forget(&mut self, node: NodeId, revision: RevisionId) {
        let Some(of_node) = self.by_node.get_mut(&node) else { return };
        if of_node.remove(&revision).is_none() {
            return;
        }
        if of_node.is_empty() {
            self.by_node.remove(&node);
        }
        self.count -= 1;
        if let Some(nodes) = self.nodes_of.get_mut(&revision) {
            *nodes -= 1;
            if *nodes == 0 {
                self.nodes_of.remove(&revision);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        bytes
    }

    fn node(n: usize) -> NodeId {
        NodeId::from(bytes(n))
    }

    fn revision(n: usize) -> RevisionId {
        RevisionId::from(bytes(n))
    }

    #[test]
    fn a_flood_of_one_node_ends_at_its_share_and_others_are_still_heard() {
        let mut provided = Provided::default();
        let took = (0..PROVIDED_PER_PEER_MAX * 3).filter(|n| provided.announced(0, node(1), revision(*n)).is_ok());
        assert_eq!(took.count(), PROVIDED_PER_PEER_MAX);
        assert_eq!(provided.announced(0, node(1), revision(usize::MAX)), Err(Unremembered::OfNode));
        assert_eq!(provided.announced(0, node(2), revision(usize::MAX)), Ok(()));
        assert_eq!(provided.announced(9, node(1), revision(0)), Ok(()), "a known one is renewed");
    }

    #[test]
    fn one_revision_has_a_bounded_number_of_nodes() {
        let mut provided = Provided::default();
        let took = (0..100).filter(|n| provided.announced(0, node(*n), revision(1)).is_ok()).count();
        assert_eq!(took, PROVIDERS_PER_REVISION_MAX);
        provided.forget(node(0), revision(1));
        assert_eq!(provided.announced(0, node(99), revision(1)), Ok(()));
    }

    #[test]
    fn many_nodes_together_never_take_what_is_left_for_our_own() {
        let mut provided = Provided::default();
        for peer in 0..100 {
            for n in 0..PROVIDED_PER_PEER_MAX {
                let _ = provided.announced(0, node(peer), revision(peer * PROVIDED_PER_PEER_MAX + n));
            }
        }
        assert_eq!(provided.count, PROVIDED_MAX);
        assert_eq!(provided.announced(0, node(999), revision(usize::MAX)), Err(Unremembered::Full));
    }

    #[test]
    fn what_is_not_renewed_runs_out_and_leaves_nothing_behind() {
        let mut provided = Provided::default();
        provided.announced(0, node(1), revision(1)).unwrap();
        provided.announced(0, node(1), revision(2)).unwrap();
        provided.announced(5, node(1), revision(2)).unwrap();
        assert_eq!(provided.wake(PROVIDED_MS - 1), []);
        assert_eq!(provided.wake(PROVIDED_MS), [(node(1), revision(1))]);
        assert_eq!(provided.wake(PROVIDED_MS + 5), [(node(1), revision(2))]);
        assert_eq!((provided.count, provided.by_node.len(), provided.nodes_of.len()), (0, 0, 0));
    }
}
