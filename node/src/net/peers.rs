//! What this node knows of others: connections, round trips, adverts, addresses. A pure decider: every time is an
//! argument, in milliseconds of the receiver's own monotonic clock, so neither wrong clocks nor replays matter.
//!
//! Invariant: an advert is only replaced by one with a higher (incarnation, sequence); hearing the same or an older
//! one renews nothing. At most `PEERS_MAX` nodes are kept; connected ones are never evicted.

use std::{collections::BTreeMap, net::IpAddr, ops::Bound, time::Duration};

use cairn_protocol::{advert::Advert, id::NodeId};
use libp2p::{Multiaddr, multiaddr::Protocol, swarm::ConnectionId};

use super::{
    bounds::{ADDRESSES_PER_PEER_MAX, ADVERT_TTL_MAX_MS, ADVERTS_BURST, ADVERTS_PER_S, FORGET_MS, PEERS_MAX, PROOF_MS},
    identity,
    rate::Rate,
};

/// One peer as this node sees it.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its public key.
    pub node_id: NodeId,
    /// The same in libp2p's spelling.
    pub peer_id: String,
    /// Where libp2p reaches it, newest knowledge first.
    pub addresses: Vec<String>,
    /// Milliseconds since it was last heard from.
    pub last_seen_ms: u64,
    /// At least one connection is open.
    pub connected: bool,
    /// Round trip of the last ping.
    pub rtt: Option<Duration>,
    /// What it says of itself, while that holds.
    pub advert: Option<Advert>,
    /// It runs on this machine: every connection comes from a loopback address, and none is relayed.
    pub same_host: bool,
}

/// What came of an advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Newer than what was known: pass it on.
    Newer,
    /// Known already, or older.
    Older,
    /// Too many from that node.
    TooMany,
    /// Our own, or the table is full of connected peers.
    Unwanted,
}

/// All that is known of other nodes.
#[derive(Debug)]
pub struct PeerTable {
    own: NodeId,
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Debug)]
struct Peer {
    addresses: Vec<Multiaddr>,
    connections: BTreeMap<ConnectionId, Connection>,
    connected_at_ms: u64,
    last_seen_ms: u64,
    rtt: Option<Duration>,
    /// It showed a valid advert of our realm over a connection or through gossip.
    is_member: bool,
    /// It did so over the present connection.
    is_proven: bool,
    advert: Option<Advert>,
    advert_until_ms: u64,
    newest: (u64, u64),
    adverts: Rate,
}

#[derive(Debug)]
struct Connection {
    remote: Option<IpAddr>,
    is_relayed: bool,
}

impl PeerTable {
    /// An empty table of the node `own`.
    pub fn new(own: NodeId) -> PeerTable {
        PeerTable { own, peers: BTreeMap::new() }
    }

    /// A connection is open. True if it is the first with that peer.
    pub fn connected(&mut self, now_ms: u64, node: NodeId, id: ConnectionId, remote: &Multiaddr) -> bool {
        let Some(peer) = self.entry(now_ms, node) else { return false };
        let is_first = peer.connections.is_empty();
        if is_first {
            peer.connected_at_ms = now_ms;
            peer.is_proven = false;
        }
        let is_relayed = remote.iter().any(|part| matches!(part, Protocol::P2pCircuit));
        peer.connections.insert(id, Connection { remote: ip(remote), is_relayed });
        peer.last_seen_ms = now_ms;
        is_first
    }

    /// A connection is closed. True if it was the last with that peer.
    pub fn disconnected(&mut self, now_ms: u64, node: NodeId, id: ConnectionId) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let was_open = peer.connections.remove(&id).is_some();
        let is_last = was_open && peer.connections.is_empty();
        if is_last {
            peer.is_proven = false;
            peer.rtt = None;
            peer.last_seen_ms = now_ms;
        }
        is_last
    }

    /// Something came from that peer.
    pub fn seen(&mut self, now_ms: u64, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.last_seen_ms = now_ms;
        }
    }

    /// A ping came back.
    pub fn pinged(&mut self, now_ms: u64, node: NodeId, rtt: Duration) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.rtt = Some(rtt);
            peer.last_seen_ms = now_ms;
        }
    }

    /// The peer was found at or names these addresses; the newest knowledge comes first, the rest is forgotten.
    pub fn add_addresses(&mut self, node: NodeId, addresses: impl IntoIterator<Item = Multiaddr>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let mut kept: Vec<Multiaddr> = Vec::new();
        for address in addresses.into_iter().chain(std::mem::take(&mut peer.addresses)) {
            if kept.len() < ADDRESSES_PER_PEER_MAX && !kept.contains(&address) {
                kept.push(address);
            }
        }
        peer.addresses = kept;
    }

    /// Weighs an advert whose signature and realm were checked.
    pub fn heard(&mut self, now_ms: u64, advert: Advert) -> Heard {
        if advert.node == self.own {
            return Heard::Unwanted;
        }
        let node = advert.node;
        let Some(peer) = self.entry(now_ms, node) else { return Heard::Unwanted };
        let order = (advert.incarnation, advert.sequence);
        if order <= peer.newest {
            return Heard::Older;
        }
        if !peer.adverts.take(now_ms) {
            return Heard::TooMany;
        }
        peer.newest = order;
        peer.is_member = true;
        peer.last_seen_ms = now_ms;
        peer.advert_until_ms = now_ms + u64::from(advert.ttl_ms.min(ADVERT_TTL_MAX_MS));
        let addresses: Vec<Multiaddr> = advert.talk_addresses.iter().filter_map(|text| text.parse().ok()).collect();
        peer.advert = Some(advert);
        self.add_addresses(node, addresses);
        Heard::Newer
    }

    /// The peer showed a valid advert over its connection. True the first time on this connection.
    pub fn prove(&mut self, node: NodeId) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let is_news = !peer.is_proven && !peer.connections.is_empty();
        peer.is_member = true;
        peer.is_proven |= is_news;
        is_news
    }

    /// Whether the peer is connected and has shown that it belongs here.
    pub fn is_proven(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.is_proven)
    }

    /// Whether a connection with the peer is open.
    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| !peer.connections.is_empty())
    }

    /// Members with an open connection.
    pub fn connected_members(&self) -> Vec<NodeId> {
        let is_here = |peer: &Peer| peer.is_member && !peer.connections.is_empty();
        self.peers.iter().filter(|(_, peer)| is_here(peer)).map(|(node, _)| *node).collect()
    }

    /// Whether an advert of that node holds at present.
    pub fn has_advert(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.advert.is_some())
    }

    /// How many nodes are remembered.
    pub fn count(&self) -> usize {
        self.peers.len()
    }

    /// How many peers are connected.
    pub fn connected_count(&self) -> usize {
        self.peers.values().filter(|peer| !peer.connections.is_empty()).count()
    }

    /// Members that aren't connected, with their addresses: first those after that node, then the others, so that whoever goes
    /// on where it stopped passes over nobody.
    pub fn absent_members(&self, last: NodeId) -> impl Iterator<Item = (NodeId, &[Multiaddr])> {
        let after = self.peers.range((Bound::Excluded(last), Bound::Unbounded));
        after.chain(self.peers.range(..=last)).filter_map(|(node, peer)| {
            let is_absent = peer.advert.is_some() && peer.connections.is_empty() && !peer.addresses.is_empty();
            is_absent.then_some((*node, peer.addresses.as_slice()))
        })
    }

    /// Where a peer may be dialled.
    pub fn addresses(&self, node: &NodeId) -> Vec<Multiaddr> {
        self.peers.get(node).map(|peer| peer.addresses.clone()).unwrap_or_default()
    }

    /// Ends what has run out; names the connected peers that still haven't shown that they belong here.
    pub fn wake(&mut self, now_ms: u64) -> Vec<NodeId> {
        self.peers.retain(|_, peer| {
            !peer.connections.is_empty() || now_ms < peer.last_seen_ms.max(peer.advert_until_ms) + FORGET_MS
        });
        let mut unproven = Vec::new();
        for (node, peer) in &mut self.peers {
            if peer.advert.is_some() && peer.advert_until_ms <= now_ms {
                peer.advert = None;
            }
            if !peer.connections.is_empty() && !peer.is_proven && peer.connected_at_ms + PROOF_MS <= now_ms {
                unproven.push(*node);
            }
        }
        unproven
    }

    /// All members that are or were here.
    pub fn list(&self, now_ms: u64) -> Vec<PeerInfo> {
        self.peers.iter().filter(|(_, p)| p.is_member).map(|(node, peer)| self.info(now_ms, *node, peer)).collect()
    }

    /// One member.
    pub fn get(&self, now_ms: u64, node: &NodeId) -> Option<PeerInfo> {
        self.peers.get(node).filter(|peer| peer.is_member).map(|peer| self.info(now_ms, *node, peer))
    }

    /// Members whose advert says that they keep that revision.
    pub fn holders(&self, revision: &cairn_protocol::id::RevisionId) -> Vec<NodeId> {
        let keeps = |peer: &Peer| peer.advert.as_ref().is_some_and(|advert| advert.holds.contains(revision));
        self.peers.iter().filter(|(_, peer)| keeps(peer)).map(|(node, _)| *node).collect()
    }

    fn info(&self, now_ms: u64, node: NodeId, peer: &Peer) -> PeerInfo {
        // Loopback alone, as the stage door has it: another machine may have an address that this one has too.
        let is_here = |c: &Connection| !c.is_relayed && c.remote.is_some_and(|ip| ip.to_canonical().is_loopback());
        PeerInfo {
            node_id: node,
            peer_id: identity::peer_id(node).map(|peer| peer.to_string()).unwrap_or_default(),
            addresses: peer.addresses.iter().map(ToString::to_string).collect(),
            last_seen_ms: now_ms.saturating_sub(peer.last_seen_ms),
            connected: !peer.connections.is_empty(),
            rtt: peer.rtt,
            advert: peer.advert.clone(),
            same_host: !peer.connections.is_empty() && peer.connections.values().all(is_here),
        }
    }

    /// The peer's entry, made if there is room: the longest-silent disconnected peer gives way.
    fn entry(&mut self, now_ms: u64, node: NodeId) -> Option<&mut Peer> {
        if !self.peers.contains_key(&node) && self.peers.len() >= PEERS_MAX {
            let idle = self.peers.iter().filter(|(_, peer)| peer.connections.is_empty());
            let oldest = idle.min_by_key(|(_, peer)| peer.last_seen_ms).map(|(node, _)| *node)?;
            self.peers.remove(&oldest);
        }
        Some(self.peers.entry(node).or_insert_with(|| Peer {
            addresses: Vec::new(),
            connections: BTreeMap::new(),
            connected_at_ms: now_ms,
            last_seen_ms: now_ms,
            rtt: None,
            is_member: false,
            is_proven: false,
            advert: None,
            advert_until_ms: 0,
            newest: (0, 0),
            adverts: Rate::new(ADVERTS_BURST, ADVERTS_PER_S, now_ms),
        }))
    }
}

/// The IP address that a multiaddress begins with.
pub(super) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cairn_protocol::{
        advert::{Capacity, Grants, Load},
        id::{RealmId, RevisionId},
        key::Keypair,
    };

    use super::*;

    fn node(n: u8) -> NodeId {
        Keypair::from_seed([n; 32]).node_id()
    }

    fn link(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    fn address(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddress")
    }

    fn advert(node: NodeId, incarnation: u64, sequence: u64, ttl_ms: u32) -> Advert {
        Advert {
            realm: RealmId::PUBLIC,
            node,
            incarnation,
            sequence,
            ttl_ms,
            talk_addresses: vec!["/ip4/10.0.0.9/tcp/4177".to_owned()],
            data_addresses: vec![],
            relay_urls: vec![],
            capacity: Capacity::default(),
            grants: Grants::default(),
            load: Load::default(),
            agent: "test".to_owned(),
            holds: vec![RevisionId::from([7; 32])],
            tasks: vec![],
            warm: vec![],
            mirrors: false,
        }
    }

    #[test]
    fn a_replayed_advert_renews_nothing() {
        let mut table = PeerTable::new(node(0));
        assert_eq!(table.heard(0, advert(node(1), 1, 5, 1000)), Heard::Newer);
        assert_eq!(table.heard(900, advert(node(1), 1, 5, 1000)), Heard::Older);
        assert_eq!(table.heard(900, advert(node(1), 1, 4, 1000)), Heard::Older);
        assert!(table.get(900, &node(1)).is_some_and(|peer| peer.advert.is_some()));
        table.wake(1000);
        assert!(table.get(1000, &node(1)).is_some_and(|peer| peer.advert.is_none()));
        assert_eq!(table.heard(1001, advert(node(1), 1, 5, 1000)), Heard::Older);
        assert!(table.get(1001, &node(1)).is_some_and(|peer| peer.advert.is_none()));
    }

    #[test]
    fn a_restarted_node_is_believed_though_its_sequence_begins_again() {
        let mut table = PeerTable::new(node(0));
        table.heard(0, advert(node(1), 1, 50, 1000));
        assert_eq!(table.heard(0, advert(node(1), 2, 1, 1000)), Heard::Newer);
    }

    #[test]
    fn an_advert_never_holds_longer_than_the_receiver_allows() {
        let mut table = PeerTable::new(node(0));
        table.heard(0, advert(node(1), 1, 1, u32::MAX));
        table.wake(u64::from(ADVERT_TTL_MAX_MS));
        assert!(table.get(0, &node(1)).is_some_and(|peer| peer.advert.is_none()));
    }

    #[test]
    fn one_nodes_newer_adverts_are_rate_limited() {
        let mut table = PeerTable::new(node(0));
        let heard: Vec<Heard> = (1..100).map(|n| table.heard(0, advert(node(1), 1, n, 1000))).collect();
        assert_eq!(heard.iter().filter(|h| **h == Heard::Newer).count(), ADVERTS_BURST as usize);
        assert_eq!(heard.last(), Some(&Heard::TooMany));
    }

    #[test]
    fn everybody_absent_has_a_turn() {
        let mut table = PeerTable::new(node(0));
        for n in 1..=40 {
            table.heard(0, advert(node(n), 1, 1, 1000));
            table.add_addresses(node(n), [address("/ip4/10.0.0.9/tcp/1")]);
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut turn = node(0);
        for _ in 0..4 {
            for (node, _) in table.absent_members(turn).take(10).collect::<Vec<_>>() {
                seen.insert(node);
                turn = node;
            }
        }
        assert_eq!(seen.len(), 40);
    }

    #[test]
    fn a_peer_is_on_this_host_only_if_every_connection_says_so() {
        let mut table = PeerTable::new(node(0));
        table.heard(0, advert(node(1), 1, 1, 1000));
        let same_host = |table: &PeerTable| table.get(0, &node(1)).expect("known").same_host;
        assert!(!same_host(&table), "without a connection");
        table.connected(0, node(1), link(1), &address("/ip4/127.0.0.1/tcp/1"));
        table.connected(0, node(1), link(2), &address("/ip6/::1/tcp/1"));
        assert!(same_host(&table));
        table.connected(0, node(1), link(3), &address("/ip4/10.0.0.6/tcp/1"));
        assert!(!same_host(&table), "one from elsewhere");
        table.disconnected(0, node(1), link(3));
        assert!(same_host(&table));
        let relayed = format!("/ip4/127.0.0.1/tcp/1/p2p/{}/p2p-circuit", identity::peer_id(node(2)).expect("a key"));
        table.connected(0, node(1), link(4), &address(&relayed));
        assert!(!same_host(&table), "one is relayed");
    }

    #[test]
    fn first_and_last_connection_are_told_apart_from_those_between() {
        let mut table = PeerTable::new(node(0));
        let here = address("/ip4/127.0.0.1/tcp/1");
        assert!(table.connected(0, node(1), link(1), &here));
        assert!(!table.connected(0, node(1), link(2), &here));
        assert!(!table.disconnected(0, node(1), link(1)));
        assert!(!table.disconnected(0, node(1), link(1)), "closed already");
        assert!(table.disconnected(0, node(1), link(2)));
    }

    #[test]
    fn whoever_shows_no_advert_over_its_connection_is_named_after_a_while() {
        let mut table = PeerTable::new(node(0));
        let here = address("/ip4/127.0.0.1/tcp/1");
        table.connected(0, node(1), link(1), &here);
        table.connected(0, node(2), link(2), &here);
        assert!(table.prove(node(2)));
        assert!(!table.prove(node(2)), "only once");
        assert_eq!(table.wake(PROOF_MS - 1), vec![]);
        assert_eq!(table.wake(PROOF_MS), vec![node(1)]);
        assert!(table.list(PROOF_MS).iter().all(|peer| peer.node_id == node(2)), "strangers aren't listed");
    }

    #[test]
    fn the_table_is_bounded_and_connected_peers_stay() {
        let mut table = PeerTable::new(node(0));
        let id = |n: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            NodeId::from(bytes)
        };
        table.connected(0, id(0), link(1), &address("/ip4/127.0.0.1/tcp/1"));
        for n in 1..PEERS_MAX as u32 + 100 {
            table.heard(u64::from(n), advert(id(n), 1, 1, 1000));
        }
        assert_eq!(table.peers.len(), PEERS_MAX);
        assert!(table.is_connected(&id(0)));
        assert!(table.get(0, &id(PEERS_MAX as u32 + 99)).is_some(), "the newest is there");
        assert!(table.get(0, &id(1)).is_none(), "the longest silent gave way");
    }

    #[test]
    fn addresses_are_few_and_the_newest_come_first() {
        let mut table = PeerTable::new(node(0));
        table.heard(0, advert(node(1), 1, 1, 1000));
        table.add_addresses(node(1), (1..40).map(|n| address(&format!("/ip4/10.0.0.1/tcp/{n}"))));
        let known = table.addresses(&node(1));
        assert_eq!(known.len(), ADDRESSES_PER_PEER_MAX);
        assert_eq!(known[0], address("/ip4/10.0.0.1/tcp/1"));
    }

    #[test]
    fn holders_are_those_whose_advert_says_so_while_it_holds() {
        let mut table = PeerTable::new(node(0));
        table.heard(0, advert(node(1), 1, 1, 1000));
        assert_eq!(table.holders(&RevisionId::from([7; 32])), vec![node(1)]);
        assert_eq!(table.holders(&RevisionId::from([8; 32])), vec![]);
        table.wake(1000);
        assert_eq!(table.holders(&RevisionId::from([7; 32])), vec![]);
    }
}
