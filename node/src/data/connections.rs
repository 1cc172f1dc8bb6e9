//! Which connections are open with which peer, so that those of a process that is gone can be closed at once.
//!
//! A killed process says nothing to its peers: QUIC thinks its connections alive until they have been idle for seconds,
//! and while one of them lives iroh sends all packets for that node to the address of that one. A node that comes back
//! on another port would be dialled in vain. So when a peer shows a new incarnation, connections to addresses that it no
//! longer names are closed.
//!
//! Invariant: only weak handles are kept, so nothing lives longer for being listed here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cairn_protocol::{advert::Advert, id::NodeId};
use iroh::{
    TransportAddr,
    endpoint::{AfterHandshakeOutcome, Connection, EndpointHooks, WeakConnectionHandle},
};

use super::link;

/// All open connections of an endpoint; clones share the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections {
    /// Guards the list for look-ups; never held across an await.
    peers: Arc<Mutex<BTreeMap<NodeId, Peer>>>,
}

/// One peer's connections. It is forgotten when it is not there and none is open.
#[derive(Debug, Default)]
struct Peer {
    /// It is connected over libp2p too.
    is_there: bool,
    /// What its last advert showed.
    incarnation: Option<u64>,
    open: Vec<WeakConnectionHandle>,
}

impl EndpointHooks for Connections {
    async fn after_handshake(&self, connection: &Connection) -> AfterHandshakeOutcome {
        self.add(link::remote_node(connection), connection.weak_handle());
        AfterHandshakeOutcome::accept()
    }
}

impl Connections {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, node: NodeId, connection: WeakConnectionHandle) {
        let mut peers = self.peers();
        forget_absent(&mut peers);
        peers.entry(node).or_default().open.push(connection);
    }

    /// The peer's last libp2p connection is closed, which is no more than a hint.
    pub fn gone(&self, node: NodeId) {
        let mut peers = self.peers();
        if let Some(peer) = peers.get_mut(&node) {
            peer.is_there = false;
        }
        forget_absent(&mut peers);
    }

    /// A peer is there and shows this advert: when it has been restarted, connections to its former addresses are closed.
    /// Returns how many.
    pub fn came(&self, advert: &Advert) -> usize {
        let mut peers = self.peers();
        let peer = peers.entry(advert.node).or_default();
        peer.is_there = true;
        let is_restarted = peer.incarnation.is_some_and(|known| known != advert.incarnation);
        peer.incarnation = Some(advert.incarnation);
        if !is_restarted {
            return 0;
        }
        let live = peer.open.iter().filter_map(WeakConnectionHandle::upgrade);
        let former = live.filter(|connection| !goes_to_any(connection, &advert.data_addresses));
        former.map(|connection| connection.close(0u32.into(), b"the node was restarted")).count()
    }
}

fn forget_absent(peers: &mut BTreeMap<NodeId, Peer>) {
    peers.retain(|_, peer| {
        peer.open.retain(is_open);
        peer.is_there || !peer.open.is_empty()
    });
}

fn is_open(connection: &WeakConnectionHandle) -> bool {
    connection.upgrade().is_some_and(|connection| connection.close_reason().is_none())
}

fn goes_to_any(connection: &Connection, addresses: &[SocketAddr]) -> bool {
    connection.paths().iter().any(|path| match path.remote_addr() {
        TransportAddr::Ip(address) => addresses.contains(address),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use cairn_protocol::{
        advert::{Capacity, Grants, Load},
        id::RealmId,
    };
    use iroh::{
        Endpoint, EndpointAddr,
        endpoint::{Builder, presets},
    };

    use super::*;

    const ALPN: &[u8] = b"cairn/test";

    async fn endpoint(connections: &Connections) -> Endpoint {
        let builder = Builder::new(presets::Minimal).alpns(vec![ALPN.to_vec()]).hooks(connections.clone());
        let builder = builder.clear_ip_transports().bind_addr(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        builder.bind().await.unwrap()
    }

    fn advert(node: NodeId, incarnation: u64, address: SocketAddr) -> Advert {
        Advert {
            realm: RealmId::PUBLIC,
            node,
            incarnation,
            sequence: 1,
            ttl_ms: 1000,
            talk_addresses: vec![],
            data_addresses: vec![address],
            relay_urls: vec![],
            capacity: Capacity::default(),
            grants: Grants::default(),
            load: Load::default(),
            agent: "test".to_owned(),
            holds: vec![],
            tasks: vec![],
            warm: vec![],
            mirrors: false,
        }
    }

    #[tokio::test]
    async fn only_a_restarted_peers_connections_to_former_addresses_are_closed() {
        let (ours, theirs) = (Connections::default(), Connections::default());
        let (here, there) = (endpoint(&ours).await, endpoint(&theirs).await);
        let address = there.bound_sockets()[0];
        let connecting = here.connect(EndpointAddr::new(there.id()).with_ip_addr(address), ALPN);
        let accepting = async { there.accept().await.unwrap().await.unwrap() };
        let (connection, _accepted) = tokio::join!(connecting, accepting);
        let (connection, node) = (connection.unwrap(), NodeId::from(*there.id().as_bytes()));
        let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        assert_eq!(ours.came(&advert(node, 1, address)), 0, "first seen");
        assert_eq!(ours.came(&advert(node, 1, elsewhere)), 0, "not restarted");
        assert_eq!(ours.came(&advert(node, 2, address)), 0, "restarted on its old address");
        assert!(connection.close_reason().is_none());
        assert_eq!(ours.came(&advert(node, 3, elsewhere)), 1, "restarted elsewhere");
        assert!(connection.close_reason().is_some());
        ours.gone(node);
        assert!(ours.peers().is_empty(), "forgotten when it is not there and nothing is open");
        here.close().await;
        there.close().await;
    }
}
