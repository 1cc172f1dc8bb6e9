//! Connections that have not said yet what they are for, by node: each has an eighth of the places at most, so that no key
//! can keep others out. Invariant: a node that has none is not remembered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cairn_protocol::id::NodeId;

use crate::stages::bounds;

/// Connections of one node that have not said yet what they are for.
const SILENT_PER_NODE_MAX: usize = bounds::STRANGERS_MAX / 8;

/// How many connections of each node have not said yet what they are for.
#[derive(Clone, Default)]
pub(super) struct Silent {
    /// Guards the counts; held for one step, never across an await.
    counts: Arc<Mutex<BTreeMap<NodeId, usize>>>,
}

/// One of a node's places among them; given back when dropped.
pub(super) struct SilentPlace {
    silent: Silent,
    node: NodeId,
}

impl Silent {
    /// A place for one more of them.
    pub(super) fn place(&self, node: NodeId) -> Option<SilentPlace> {
        let mut counts = self.counts();
        let count = counts.entry(node).or_default();
        if *count >= SILENT_PER_NODE_MAX {
            return None;
        }
        *count += 1;
        Some(SilentPlace { silent: self.clone(), node })
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<NodeId, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SilentPlace {
    fn drop(&mut self) {
        let mut counts = self.silent.counts();
        if let Some(count) = counts.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_connections_of_one_node_leave_places_for_others() {
        let silent = Silent::default();
        let (greedy, other) = (NodeId::from([1; 32]), NodeId::from([2; 32]));
        let mut places: Vec<_> = std::iter::from_fn(|| silent.place(greedy)).take(bounds::STRANGERS_MAX).collect();
        assert_eq!(places.len(), SILENT_PER_NODE_MAX);
        assert!(silent.place(other).is_some());
        places.pop();
        assert!(silent.place(greedy).is_some(), "a place that was given back is free");
        places.clear();
        assert!(silent.counts().is_empty(), "nobody is remembered who has no place");
    }
}
