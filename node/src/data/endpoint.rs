//! The iroh endpoint: one UDP socket, the protocols that it answers, and connections to peers.
//!
//! It has the node's own key, no relay and no look-up service: whoever wants a connection says the peer's addresses.
//! Which bytes travel is decided in [`super::fetch`] and [`super::link`].
//!
//! Invariant: there is at most one blob connection to a peer at a time, and after [`DataHandle::shutdown`] there is none.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cairn_protocol::{
    id::{NodeId, RealmId},
    record::Keypair,
    refusal::{Reason, Refusal},
};
use cairn_registry::{Blobs, Registry};
use iroh::{
    Endpoint, EndpointAddr, EndpointId, SecretKey, Watcher,
    endpoint::{Builder, Connection, presets},
    protocol::{DynProtocolHandler, Router},
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    blobs::{BlobDoor, Surroundings},
    connections::Connections,
    link,
    rate::{Flow, Limits, Pace, Rates, Way, is_near},
    stage_door::StageDoor,
    task_door::TaskDoor,
};
use crate::{
    config::Config,
    net::{NetHandle, PeerEvent},
    shell::Node,
    stages::StageHost,
    telemetry::Counters,
};

/// How long a peer may take to answer the first packets, over all of its addresses.
pub const DIAL: Duration = Duration::from_secs(5);
/// Idle connections to so many peers are kept; beyond, those unused for a minute go.
const POOLED_MAX: usize = 32;
const POOLED_IDLE: Duration = Duration::from_secs(60);

/// A protocol beside blobs: its ALPN and who answers it.
pub type Protocol = (Vec<u8>, Box<dyn DynProtocolHandler>);

/// Why the endpoint did not start, or a peer was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The address can't be had.
    #[error("can't listen on udp {address}: {why}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        why: String,
    },
    /// No connection.
    #[error("{} can't be reached: {why}", node.short())]
    Unreachable {
        /// Who.
        node: NodeId,
        /// What was tried.
        why: String,
    },
}

impl From<DataError> for Refusal {
    fn from(error: DataError) -> Refusal {
        match &error {
            DataError::Listen { .. } => {
                Refusal::new(Reason::Conflict, "the data port", error.to_string()).try_this("--data-listen 0.0.0.0:0")
            }
            DataError::Unreachable { .. } => {
                Refusal::new(Reason::Unreachable, "a peer", error.to_string()).try_this("cairn peers")
            }
        }
    }
}

/// A handle to the endpoint; clones share it.
#[derive(Clone)]
pub struct DataHandle {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    router: Router,
    door: BlobDoor,
    connections: Connections,
    limits: Limits,
    /// Guards the map for look-ups; never held across an await. Each place has a lock of its own for dialling.
    pool: Mutex<BTreeMap<NodeId, Arc<Place>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The blob connection to one peer.
#[derive(Default)]
struct Place {
    /// Held while dialling, so that several wants make one connection.
    connection: tokio::sync::Mutex<Option<Connection>>,
    /// When it was last asked for.
    used: Mutex<Option<Instant>>,
    /// What all requests to it brought.
    flow: Arc<Flow>,
}

impl fmt::Debug for DataHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataHandle({})", self.address())
    }
}

/// Binds the node's endpoint and answers for blobs and stages.
pub async fn start(
    config: &Config,
    identity: &Keypair,
    registry: &Registry,
    stages: StageHost,
) -> Result<DataHandle, Refusal> {
    let task_door: Box<dyn DynProtocolHandler> = Box::new(TaskDoor::new(stages.clone()));
    let stage_door: Box<dyn DynProtocolHandler> = Box::new(StageDoor::new(stages));
    let protocols = vec![(link::STAGE_ALPN.to_vec(), stage_door), (link::TASK_ALPN.to_vec(), task_door)];
    let (listen, realm, rates) = (config.data_listen, config.realm, config.rates.clone());
    Ok(DataHandle::bind(listen, realm, identity, registry.blobs(), rates, protocols).await?)
}

impl DataHandle {
    /// Binds to `listen` (port 0 takes a free one) and answers for the blobs of that realm.
    pub async fn bind(
        listen: SocketAddr,
        realm: RealmId,
        identity: &Keypair,
        blobs: &Blobs,
        rates: Rates,
        protocols: Vec<Protocol>,
    ) -> Result<DataHandle, DataError> {
        let failed = |why: String| DataError::Listen { address: listen, why };
        let connections = Connections::default();
        let endpoint = Builder::new(presets::Minimal)
            .hooks(connections.clone())
            .secret_key(SecretKey::from_bytes(&identity.seed()))
            .transport_config(link::transport())
            .clear_ip_transports()
            .bind_addr(listen)
            .map_err(|error| failed(error.to_string()))?
            .bind()
            .await
            .map_err(|error| failed(format!("{error:#}")))?;
        let limits = Limits::new(rates);
        let (door, answering) = BlobDoor::new(blobs, realm, limits.clone());
        let mut router = Router::builder(endpoint.clone()).accept(iroh_blobs::ALPN, door.clone());
        for (alpn, handler) in protocols {
            router = router.accept(alpn, handler);
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(stop.clone().run_until_cancelled_owned(answering));
        let (router, pool) = (router.spawn(), Mutex::default());
        let inner = Inner { endpoint, router, door, connections, limits, pool, stop, tasks };
        Ok(DataHandle { inner: Arc::new(inner) })
    }

    /// Tells the endpoint of the rest of its node: members of the realm are served, and the advert follows the machine's
    /// addresses.
    pub fn attach(&self, node: &Arc<Node>) {
        let (net, weak) = (node.net.clone(), Arc::downgrade(node));
        self.attach_to(Surroundings {
            is_member: Box::new(move |peer| net.peer(peer).is_some_and(|peer| peer.advert.is_some())),
            served: Box::new(move |bytes| {
                if let Some(node) = weak.upgrade() {
                    Counters::add(&node.counters.blob_bytes_out, bytes);
                }
            }),
        });
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(stop.run_until_cancelled_owned(follow(self.clone(), node.net.clone())));
    }

    /// Tells the blob door of its surroundings; only the first telling counts.
    pub(crate) fn attach_to(&self, surroundings: Surroundings) {
        self.inner.door.attach(surroundings);
    }

    /// The endpoint, for streams of other protocols.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        let unbound = SocketAddr::from(([0, 0, 0, 0], 0));
        self.inner.endpoint.bound_sockets().into_iter().next().unwrap_or(unbound)
    }

    /// Where peers may find it: the machine's addresses, loopback too (for nodes of the same host) unless it is bound to
    /// one address only.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let bound = self.address();
        if !bound.ip().is_unspecified() {
            return vec![bound];
        }
        let mut addresses: Vec<SocketAddr> = self.inner.endpoint.addr().ip_addrs().copied().collect();
        let loopback: IpAddr = if bound.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        addresses.push(SocketAddr::new(loopback, bound.port()));
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// A new connection to a peer for one protocol. Dropping the future gives up.
    pub async fn connect(&self, node: NodeId, addresses: &[SocketAddr], alpn: &[u8]) -> Result<Connection, DataError> {
        let unreachable = |why: String| DataError::Unreachable { node, why };
        if addresses.is_empty() {
            return Err(unreachable("no address of it is known".to_owned()));
        }
        let id = EndpointId::from_bytes(node.as_bytes()).map_err(|error| unreachable(error.to_string()))?;
        let address = addresses.iter().fold(EndpointAddr::new(id), |all, one| all.with_ip_addr(*one));
        let connecting = self.inner.endpoint.connect(address, alpn);
        let connected = tokio::time::timeout(DIAL, connecting).await;
        connected
            .map_err(|_| unreachable(format!("no answer within {DIAL:?}")))?
            .map_err(|e| unreachable(e.to_string()))
    }

    /// The connection for blobs to this peer: the one that is open, else a new one.
    pub(crate) async fn blob_connection(
        &self,
        node: NodeId,
        addresses: &[SocketAddr],
    ) -> Result<Connection, DataError> {
        let place = self.place(node);
        let mut connection = place.connection.lock().await;
        if let Some(open) = connection.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok(open.clone());
        }
        let new = self.connect(node, addresses, iroh_blobs::ALPN).await?;
        *connection = Some(new.clone());
        Ok(new)
    }

    /// Whether a source with these addresses is left alone while near ones suffice.
    pub(crate) fn spares(&self, addresses: &[SocketAddr]) -> bool {
        !self.inner.limits.far_always() && !is_near(addresses, &self.addresses())
    }

    /// How fast a request to this peer may be read.
    pub(crate) fn pace_from(&self, node: NodeId) -> Pace {
        self.inner.limits.pace(Way::Down, self.place(node).flow.clone())
    }

    /// Makes the next want dial anew: the peer may be gone although the connection does not say so yet. Requests under way
    /// keep the old connection.
    pub(crate) fn forget(&self, node: NodeId) {
        self.inner.pool.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    fn place(&self, node: NodeId) -> Arc<Place> {
        let mut pool = self.inner.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() > POOLED_MAX {
            pool.retain(|_, place| !place.is_idle());
        }
        let place = pool.entry(node).or_default().clone();
        *place.used.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        place
    }

    /// Closes every connection in order and ends the endpoint's tasks. The blob store stays open.
    pub async fn shutdown(&self) {
        self.inner.pool.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(error) = self.inner.router.shutdown().await {
            tracing::warn!(%error, "the data endpoint's router broke");
        }
        self.inner.endpoint.close().await;
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// Tells peers of this machine's new addresses, and ends connections of processes that have gone.
async fn follow(data: DataHandle, net: NetHandle) {
    let mut addresses = data.inner.endpoint.watch_addr();
    let mut peers = net.peer_events();
    loop {
        tokio::select! {
            updated = addresses.updated() => match updated {
                Ok(_) => net.state(|statement| statement.data_addresses = data.addresses()),
                Err(_) => return,
            },
            event = peers.recv() => match event {
                Ok(PeerEvent::Gone(node)) => {
                    data.forget(node);
                    data.inner.connections.gone(node);
                }
                Ok(PeerEvent::Connected(node)) => {
                    let advert = net.peer(node).and_then(|peer| peer.advert);
                    let closed = advert.map_or(0, |advert| data.inner.connections.came(&advert));
                    tracing::debug!(node = %node.short(), closed, "connections to former addresses");
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
    }
}

impl Place {
    fn is_idle(&self) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.is_none_or(|used| used.elapsed() > POOLED_IDLE)
    }
}
