//! How many connections one address may have that have not shown who they are: half-open ones, and open ones without an
//! advert of our realm.
//!
//! The places for half-open connections are few and are held for seconds; without this, one machine that says nothing
//! could take them all, and honest peers would wait outside. Not here: the bounds on all addresses together
//! (`connection_limits`), and who has shown an advert (the swarm's task says so).
//!
//! Invariant: at most [`STRANGERS_PER_ADDRESS_MAX`] incoming connections of one address are unproven at any time.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, ListenFailure, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
    },
};
use thiserror::Error;

use super::{bounds::STRANGERS_PER_ADDRESS_MAX, peers};

/// The ledger of unproven incoming connections.
#[derive(Debug, Default)]
pub(super) struct Behaviour {
    /// Where each unproven one comes from, and whose it is once that is known. At most as many as there are connections.
    strangers: HashMap<ConnectionId, (Option<IpAddr>, Option<PeerId>)>,
    /// Connected peers that have shown their advert: their further connections need no place.
    proven: HashSet<PeerId>,
}

/// Why a connection was not taken.
#[derive(Debug, Error)]
#[error("{STRANGERS_PER_ADDRESS_MAX} connections of that address have not shown an advert yet, the most it may have")]
struct TooMany;

impl Behaviour {
    /// That peer has shown an advert of our realm; its connections give their places back.
    pub(super) fn prove(&mut self, peer: PeerId) {
        self.proven.insert(peer);
        self.strangers.retain(|_, (_, owner)| *owner != Some(peer));
    }

    fn admit(&mut self, connection: ConnectionId, from: Option<IpAddr>) -> Result<(), ConnectionDenied> {
        let of_address = self.strangers.values().filter(|(address, _)| *address == from).count();
        if of_address >= STRANGERS_PER_ADDRESS_MAX {
            return Err(ConnectionDenied::new(TooMany));
        }
        self.strangers.insert(connection, (from, None));
        Ok(())
    }

    fn established(&mut self, connection: ConnectionId, peer: PeerId) {
        if self.proven.contains(&peer) {
            self.strangers.remove(&connection);
        } else if let Some((_, owner)) = self.strangers.get_mut(&connection) {
            *owner = Some(peer);
        }
    }
}

/// The part of an address that one subscriber has: all of IPv4, the first half of IPv6.
fn subscriber(address: &Multiaddr) -> Option<IpAddr> {
    match peers::ip(address)?.to_canonical() {
        IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into()),
        ip => Some(ip),
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(connection, subscriber(remote))
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.established(connection, peer);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, remaining_established, .. }) => {
                self.strangers.remove(&connection_id);
                if remaining_established == 0 {
                    self.proven.remove(&peer_id);
                }
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.strangers.remove(&connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Option<IpAddr> {
        subscriber(&text.parse().unwrap())
    }

    fn connection(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    #[test]
    fn one_address_takes_only_its_own_places_and_proof_gives_them_back() {
        let (mut ledger, here, there) =
            (Behaviour::default(), from("/ip4/192.0.2.1/tcp/1"), from("/ip4/192.0.2.2/tcp/1"));
        for n in 0..STRANGERS_PER_ADDRESS_MAX {
            ledger.admit(connection(n), here).unwrap();
        }
        assert!(ledger.admit(connection(100), here).is_err(), "its places are taken");
        ledger.admit(connection(101), there).unwrap();
        let peer = PeerId::random();
        ledger.established(connection(0), peer);
        assert!(ledger.admit(connection(102), here).is_err(), "an open connection without proof keeps its place");
        ledger.prove(peer);
        ledger.admit(connection(103), here).unwrap();
    }

    #[test]
    fn the_addresses_of_one_ipv6_subscriber_count_as_one() {
        assert_eq!(from("/ip6/2001:db8::1/tcp/1"), from("/ip6/2001:db8::ffff:2/udp/1"));
        assert_ne!(from("/ip6/2001:db8::1/tcp/1"), from("/ip6/2001:db8:0:1::1/tcp/1"));
        assert_eq!(from("/ip6/::ffff:192.0.2.1/tcp/1"), from("/ip4/192.0.2.1/tcp/1"));
    }
}
