//! Whose catalogue is read next, and from where: of newcomers at once and a moment later, of others when asked to.
//!
//! Pure: the time is an argument, nothing waits. Invariant: no peer is read twice at the same time, at most [`READING_MAX`] are
//! read at all, and no more than [`PLACES_MAX`] places are remembered.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cairn_protocol::id::NodeId;
use tokio::time::Instant;

/// Where to go on in a peer's catalogue, in the peer's own words; empty is the beginning.
pub type Place = Vec<u8>;

/// Peers that are read at the same time.
const READING_MAX: usize = 3;
/// Peers whose catalogues were not read to the end; more than can be connected at once.
const PLACES_MAX: usize = 1024;
/// A second look follows the first after this: what was published while both sides were still subscribing to gossip
/// reached neither by gossip nor by the first look.
const SECOND_LOOK: Duration = Duration::from_secs(4);

/// Who waits, who is being read, and how far the others were read.
#[derive(Debug, Default)]
pub struct Turns {
    due: BTreeMap<NodeId, Instant>,
    looked_at: BTreeSet<NodeId>,
    reading: BTreeSet<NodeId>,
    places: BTreeMap<NodeId, Place>,
}

impl Turns {
    /// A peer came: it is due at once, and once more soon.
    pub fn arrived(&mut self, now: Instant, node: NodeId) {
        self.looked_at.remove(&node);
        self.due.insert(node, now);
    }

    /// A peer is looked at again.
    pub fn look_again(&mut self, now: Instant, node: NodeId) {
        self.due.insert(node, now);
    }

    /// Begins with who has been due for longest, if anybody is and there is room; [`Turns::ended`] must follow.
    pub fn begin(&mut self, now: Instant) -> Option<(NodeId, Place)> {
        if self.reading.len() >= READING_MAX {
            return None;
        }
        let ready = self.due.iter().filter(|(node, at)| **at <= now && !self.reading.contains(*node));
        let node = *ready.min_by_key(|(_, at)| **at)?.0;
        self.due.remove(&node);
        if self.looked_at.insert(node) {
            self.due.insert(node, now + SECOND_LOOK);
        }
        self.reading.insert(node);
        Some((node, self.places.remove(&node).unwrap_or_default()))
    }

    /// Reading a peer has ended at that place; an empty one is the end of its catalogue.
    pub fn ended(&mut self, node: NodeId, place: Place) {
        self.reading.remove(&node);
        if place.is_empty() {
            return;
        }
        if self.places.len() >= PLACES_MAX {
            // Those who are here are worth more than those who left.
            self.places.retain(|node, _| self.looked_at.contains(node));
        }
        if self.places.len() < PLACES_MAX {
            self.places.insert(node, place);
        }
    }

    /// Forgets who waits and is here no more. Places stay: who comes back is read on.
    pub fn keep_connected(&mut self, connected: &[NodeId]) {
        let connected: BTreeSet<&NodeId> = connected.iter().collect();
        self.looked_at.retain(|node| connected.contains(node));
        self.due.retain(|node, _| connected.contains(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u16) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        NodeId::from(bytes)
    }

    #[test]
    fn a_newcomer_is_read_at_once_and_once_more_after_a_moment() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        turns.arrived(start, node(1));
        assert_eq!(turns.begin(start), Some((node(1), Place::new())));
        turns.ended(node(1), Place::new());
        assert_eq!(turns.begin(start), None);
        assert_eq!(turns.begin(start + SECOND_LOOK), Some((node(1), Place::new())));
        turns.ended(node(1), Place::new());
        assert_eq!(turns.begin(start + SECOND_LOOK * 9), None);
    }

    #[test]
    fn what_was_cut_short_goes_on_where_it_stopped_even_after_the_peer_was_away() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        turns.arrived(start, node(1));
        turns.begin(start);
        turns.ended(node(1), vec![7]);
        turns.keep_connected(&[]);
        assert_eq!(turns.begin(start + SECOND_LOOK), None, "it is not here");
        turns.arrived(start, node(1));
        assert_eq!(turns.begin(start), Some((node(1), vec![7])));
        turns.ended(node(1), Place::new());
        turns.look_again(start, node(1));
        assert_eq!(turns.begin(start), Some((node(1), Place::new())), "after the end comes the beginning");
    }

    #[test]
    fn nobody_is_read_twice_at_the_same_time_and_only_a_few_are_read_at_all() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        turns.arrived(start, node(1));
        turns.begin(start);
        turns.look_again(start, node(1));
        assert_eq!(turns.begin(start), None);
        for n in 2..9 {
            turns.arrived(start, node(n));
        }
        let begun = std::iter::from_fn(|| turns.begin(start)).count();
        assert_eq!(begun, READING_MAX - 1);
    }

    #[test]
    fn strangers_who_came_and_went_take_no_place_from_who_is_here() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        for n in 0..PLACES_MAX as u16 + 5 {
            turns.arrived(start, node(n));
            assert_eq!(turns.begin(start), Some((node(n), Place::new())));
            turns.ended(node(n), vec![1]);
            assert!(turns.places.len() <= PLACES_MAX);
            assert!(turns.places.contains_key(&node(n)), "{n}");
            turns.keep_connected(&[]);
        }
    }
}
