//! The swarm's connections: opened, closed, dialled, dialled again, and the addresses it listens on.
//!
//! Not a place for what is said over them (`hear`). Invariant: what is kept for a connected peer goes with its last
//! connection.

use cairn_protocol::id::{NodeId, RealmId};
use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{PeerEvent, behaviour::BehaviourEvent, bounds, identity, redial::Attempt, swarm::Owner};

impl Owner {
    /// Events of connections and listeners.
    pub(super) fn on_link(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => self.on_closed(peer_id, connection_id),
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_failed(connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "an incoming connection failed");
            }
            SwarmEvent::NewListenAddr { address, .. } => self.on_listening(address),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening.send_modify(|addresses| addresses.retain(|known| *known != address));
                self.own.change();
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener reports an error"),
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => tracing::warn!(%error, "a listener has closed"),
            _ => {}
        }
    }

    /// Dials what is due: configured addresses, lost peers, and members that were heard of while company is scarce.
    pub(super) fn dial_due(&mut self, now_ms: u64) {
        let absent: Vec<(NodeId, Vec<Multiaddr>)> = {
            let table = self.table();
            if table.connected_count() >= bounds::PEERS_WANTED {
                Vec::new()
            } else {
                let some = table.absent_members(self.dial_turn).take(bounds::PEERS_WANTED);
                some.map(|(node, addresses)| (node, addresses.to_vec())).collect()
            }
        };
        for (node, addresses) in absent {
            self.dial_turn = node;
            self.redial.add_peer(now_ms, node, addresses);
        }
        let attempts = {
            let table = self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            self.redial.due(now_ms, bounds::DIALS_PER_TICK_MAX, |node| table.is_connected(node))
        };
        for attempt in attempts {
            self.dial(now_ms, attempt);
        }
    }

    /// Closes every connection with a peer that didn't do wrong but doesn't belong here.
    pub(super) fn disconnect(&mut self, node: NodeId, why: &str) {
        tracing::info!(node = %node.short(), why, "disconnecting a peer");
        if let Some(peer) = identity::peer_id(node) {
            // An error only says that there is no connection.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// The realm of this swarm.
    pub(super) fn realm(&self) -> RealmId {
        self.own.realm()
    }

    fn dial(&mut self, now_ms: u64, attempt: Attempt) {
        let options = match attempt.node.and_then(identity::peer_id) {
            Some(peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(attempt.addresses)
                .build(),
            None => {
                let Some(address) = attempt.addresses.into_iter().next() else { return };
                DialOpts::unknown_peer_id().address(address).build()
            }
        };
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(connection, attempt.target);
            }
            Err(error) => {
                tracing::debug!(%error, "a dial could not begin");
                self.redial.failed(now_ms, attempt.target);
            }
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let now_ms = self.clock.now_ms();
        let Some(node) = identity::node_id(&peer) else {
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        };
        if let Some(target) = self.dials.remove(&connection) {
            self.redial.reached(now_ms, target, node);
        }
        let remote = endpoint.get_remote_address();
        let is_first = {
            let mut table = self.table();
            let is_first = table.connected(now_ms, node, connection, remote);
            if endpoint.is_dialer() {
                table.add_addresses(node, [without_peer(remote)]);
            }
            is_first
        };
        if is_first {
            tracing::info!(node = %node.short(), %remote, "connected");
            self.say_hello(peer);
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let now_ms = self.clock.now_ms();
        let Some(node) = identity::node_id(&peer) else { return };
        let was_proven = self.table().is_proven(&node);
        let is_last = self.table().disconnected(now_ms, node, connection);
        if !is_last {
            return;
        }
        tracing::info!(node = %node.short(), "gone");
        self.rates.remove(&peer);
        let addresses = self.table().addresses(&node);
        if was_proven {
            self.redial.add_peer(now_ms, node, addresses);
            // Nobody listening is fine.
            let _ = self.events.send(PeerEvent::Gone(node));
        } else {
            self.redial.turned_away(now_ms, node);
        }
    }

    fn on_dial_failed(&mut self, connection: ConnectionId, error: &DialError) {
        let Some(target) = self.dials.remove(&connection) else { return };
        tracing::debug!(%error, "a dial failed");
        match error {
            DialError::LocalPeerId { .. } => self.redial.forget(target),
            DialError::WrongPeerId { .. } => self.redial.answered_by_another(self.clock.now_ms(), target),
            _ => self.redial.failed(self.clock.now_ms(), target),
        }
    }

    fn on_listening(&mut self, address: Multiaddr) {
        tracing::info!(%address, "listening");
        self.listening.send_modify(|addresses| {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        });
        self.own.change();
    }
}

/// The address without `/p2p/…` at its end.
fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, libp2p::multiaddr::Protocol::P2p(_))).collect()
}
