//! Which libp2p protocols a node speaks, and with which limits. Limits come first: a connection that they refuse
//! costs nothing more.
//!
//! Not a place for decisions. Invariant: every protocol name and topic holds the realm, so that nodes of different
//! realms find no protocol in common.

use cairn_protocol::id::RealmId;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    allow_block_list::{self, BlockedPeers},
    connection_limits::{self, ConnectionLimits},
    gossipsub::{self, IdentTopic, IdentityTransform, WhitelistSubscriptionFilter},
    identify, identity, kad, mdns, memory_connection_limits as memory_limits, noise, ping, request_response,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};

use super::{NetError, bounds, codec::QuestionCodec, strangers};

/// Everything that runs over a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) strangers: strangers::Behaviour,
    limits: connection_limits::Behaviour,
    memory: memory_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) kad: kad::Behaviour<kad::store::MemoryStore>,
    pub(super) gossip: Gossip,
    pub(super) questions: request_response::Behaviour<QuestionCodec>,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// Gossip on our two topics and no others.
pub(super) type Gossip = gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

/// Names of one realm's protocols and topics.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
    /// Where signed records are told.
    pub(super) records: IdentTopic,
    /// Where nodes tell of themselves.
    pub(super) adverts: IdentTopic,
}

impl Names {
    /// The names of that realm.
    pub(super) fn new(realm: RealmId) -> Names {
        let prefix = format!("/cairn/1/{realm}");
        let topic = |what: &str| IdentTopic::new(format!("{prefix}/{what}"));
        Names { records: topic("records"), adverts: topic("adverts"), prefix }
    }

    /// What identify calls the family of protocols.
    pub(super) fn family(&self) -> &str {
        &self.prefix
    }

    fn protocol(&self, what: &str) -> StreamProtocol {
        StreamProtocol::try_from_owned(format!("{}/{what}", self.prefix)).expect("the name begins with a slash")
    }
}

/// A swarm that listens nowhere yet.
pub(super) fn build_swarm(
    keypair: identity::Keypair,
    names: &Names,
    agent: &str,
    with_mdns: bool,
) -> Result<Swarm<Behaviour>, NetError> {
    let behaviour = behaviour(&keypair, names, agent, with_mdns)?;
    let builder = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux_config)
        .map_err(NetError::setup)?
        .with_quic_config(|mut quic| {
            quic.handshake_timeout = bounds::HANDSHAKE;
            quic.max_idle_timeout = 6_000;
            quic.keep_alive_interval = std::time::Duration::from_secs(2);
            quic.max_connection_data = 4 << 20;
            quic.max_stream_data = 2 << 20;
            quic
        })
        .with_dns()
        .map_err(NetError::setup)?;
    let swarm = builder
        .with_behaviour(|_| behaviour)
        .map_err(NetError::setup)?
        .with_swarm_config(|config| {
            config.with_idle_connection_timeout(bounds::IDLE_CONNECTION).with_max_negotiating_inbound_streams(32)
        })
        .with_connection_timeout(bounds::HANDSHAKE)
        .build();
    Ok(swarm)
}

/// The peer that a multiaddress ends in.
pub(super) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last()? {
        libp2p::multiaddr::Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(256);
    config
}

fn behaviour(keypair: &identity::Keypair, names: &Names, agent: &str, with_mdns: bool) -> Result<Behaviour, NetError> {
    let peer = keypair.public().to_peer_id();
    let mdns = if with_mdns { mdns_behaviour(peer) } else { None };
    let identify = identify::Config::new(names.family().to_owned(), keypair.public())
        .with_agent_version(agent.to_owned())
        .with_push_listen_addr_updates(true);
    let ping = ping::Config::new().with_interval(bounds::PING_INTERVAL).with_timeout(bounds::PING_DEADLINE);
    Ok(Behaviour {
        blocked: allow_block_list::Behaviour::default(),
        strangers: strangers::Behaviour::default(),
        limits: connection_limits::Behaviour::new(connection_limits()),
        memory: memory_limits::Behaviour::with_max_percentage(bounds::MEMORY_PART_MAX),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(ping),
        kad: kademlia(peer, names),
        gossip: gossip(names)?,
        questions: questions(names),
        mdns: mdns.into(),
    })
}

/// A machine without multicast still has a node on it, which then finds others by its bootstrap list alone.
fn mdns_behaviour(peer: PeerId) -> Option<mdns::tokio::Behaviour> {
    mdns::tokio::Behaviour::new(mdns::Config::default(), peer)
        .inspect_err(|error| tracing::warn!(%error, "mDNS can't be used here"))
        .ok()
}

fn connection_limits() -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(bounds::PENDING_INCOMING_MAX))
        .with_max_pending_outgoing(Some(bounds::PENDING_OUTGOING_MAX))
        .with_max_established_incoming(Some(bounds::INCOMING_MAX))
        .with_max_established(Some(bounds::CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(bounds::CONNECTIONS_PER_PEER_MAX))
}

/// Kademlia finds providers and peers; values are never stored in it. What others announce is stored only after `provided`
/// said so, and never takes the place of our own.
fn kademlia(peer: PeerId, names: &Names) -> kad::Behaviour<kad::store::MemoryStore> {
    let store = kad::store::MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 1,
        max_provided_keys: bounds::PROVIDED_OWN_MAX + bounds::PROVIDED_MAX,
        max_providers_per_key: bounds::PROVIDERS_PER_REVISION_MAX + 1,
    };
    let mut config = kad::Config::new(names.protocol("kad"));
    config.set_query_timeout(bounds::QUESTION_DEADLINE).set_max_packet_size(16 * 1024);
    config.set_record_filtering(kad::StoreInserts::FilterBoth);
    config.set_provider_record_ttl(Some(std::time::Duration::from_millis(bounds::PROVIDED_MS)));
    // The swarm's task refreshes the table itself, when there is anybody to ask.
    config.set_periodic_bootstrap_interval(None);
    let store = kad::store::MemoryStore::with_config(peer, store);
    let mut kad = kad::Behaviour::with_config(peer, store, config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// Messages carry no author or number of gossipsub's own (records and adverts are signed by themselves), are known by
/// their content, and go on only after we said so.
fn gossip(names: &Names) -> Result<Gossip, NetError> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("{}/gossip", names.family()))
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .validate_messages()
        .max_transmit_size(bounds::GOSSIP_BYTES_MAX)
        .message_id_fn(|message| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(message.topic.as_str().as_bytes()).update(&[0]).update(&message.data);
            gossipsub::MessageId::new(&hasher.finalize().as_bytes()[..20])
        })
        .build()
        .map_err(NetError::setup)?;
    let topics = [names.records.hash(), names.adverts.hash()].into_iter().collect();
    let mut gossip = Gossip::new_with_subscription_filter(
        gossipsub::MessageAuthenticity::Anonymous,
        config,
        WhitelistSubscriptionFilter(topics),
    )
    .map_err(NetError::setup)?;
    gossip.subscribe(&names.records).map_err(NetError::setup)?;
    gossip.subscribe(&names.adverts).map_err(NetError::setup)?;
    Ok(gossip)
}

fn questions(names: &Names) -> request_response::Behaviour<QuestionCodec> {
    let config = request_response::Config::default()
        .with_request_timeout(bounds::QUESTION_DEADLINE)
        .with_max_concurrent_streams(bounds::STREAMS_PER_CONNECTION_MAX);
    let protocols = [(names.protocol("ask"), request_response::ProtocolSupport::Full)];
    request_response::Behaviour::with_codec(QuestionCodec, protocols, config)
}
