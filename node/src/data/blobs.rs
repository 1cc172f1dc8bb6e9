//! The serving end of blobs: who may have which, and how much at once.
//!
//! The transfer itself is the library's; this is the gate before it. Only plain reads of single blobs pass: no pushes, no
//! collections, no observing. Which bytes are here, and which realm's they are, is the registry's business.
//!
//! Invariant: no request is served to a peer that [`BlobDoor::may_serve`] refuses, and one peer never takes more than its
//! bounded part of connections, requests and request rate; a request whose peer does nothing for it gives its place back.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use cairn_protocol::id::{BlobHash, NodeId, RealmId};
use cairn_registry::Blobs;
use futures::FutureExt;
use iroh::{
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler},
};
use iroh_blobs::{
    api::Store,
    protocol::GetRequest,
    provider::{
        self, StreamPair,
        events::{
            AbortReason, ClientConnected, ConnectMode, EventMask, EventSender, HasErrorCode, ObserveMode,
            ProviderMessage, RequestMode, RequestUpdate, ThrottleMode,
        },
    },
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    patient::Patient,
    rate::{Flow, Limits, Paced, Way},
};

/// Connections that fetch blobs here, of all peers: each costs a few windows of memory.
const CONNECTIONS_MAX: usize = 256;
/// Connections of one peer; a puller needs one, and each restart leaves another behind for half a minute.
const CONNECTIONS_PER_PEER_MAX: usize = 16;
/// A peer that asks for nothing for so long gives its connections back.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// Requests served at the same time; they share one disk.
const REQUESTS_MAX: usize = 512;
/// Requests of one peer at the same time: some blobs of some pieces each, and an eighth of all.
const REQUESTS_PER_PEER_MAX: usize = 64;
/// A request whose peer takes nothing for so long is broken off. A puller has gone elsewhere much sooner.
const STILL_MAX: Duration = Duration::from_secs(20);
/// Requests a second of one peer, and how many may come at once after a pause.
const REQUESTS_PER_S: f64 = 500.0;
const REQUESTS_BURST: f64 = 2_000.0;
/// Messages of the library that wait for this gate; it then waits itself.
const MESSAGES_MAX: usize = 64;
/// Application code of a connection that is turned away.
const TOO_MANY: u32 = 2;
/// Application code of a connection that nobody used.
const IDLE: u32 = 0;

/// What the gate needs to know of the rest of the node, once that exists.
pub struct Surroundings {
    /// Whether a node is a member of our realm (it showed a valid advert).
    pub is_member: Box<dyn Fn(NodeId) -> bool + Send + Sync>,
    /// Hears of payload bytes that were sent.
    pub served: Box<dyn Fn(u64) + Send + Sync>,
}

/// The handler to register under the blobs protocol. It does not close the store; the registry does, last.
#[derive(Clone)]
pub struct BlobDoor {
    store: Store,
    events: EventSender,
    gate: Arc<Gate>,
    still_max: Duration,
    limits: Limits,
}

struct Gate {
    blobs: Blobs,
    realm: RealmId,
    surroundings: OnceLock<Surroundings>,
    /// Guards the counts; held for a look-up, never across an await.
    guests: Mutex<Guests>,
}

/// Who is here now.
#[derive(Default)]
struct Guests {
    peers: BTreeMap<NodeId, Guest>,
    /// Peers by the library's number of their connection.
    connections: BTreeMap<u64, NodeId>,
    requests: usize,
}

#[derive(Default)]
struct Guest {
    connections: usize,
    requests: usize,
    allowance: Option<(f64, Instant)>,
    /// What all its streams send.
    flow: Arc<Flow>,
}

impl fmt::Debug for BlobDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobDoor")
    }
}

impl BlobDoor {
    /// The door, and the task that answers the library's questions for it; whoever owns the endpoint runs that.
    pub fn new(blobs: &Blobs, realm: RealmId, limits: Limits) -> (BlobDoor, impl Future<Output = ()> + Send + use<>) {
        BlobDoor::with_patience(blobs, realm, limits, STILL_MAX)
    }

    fn with_patience(
        blobs: &Blobs,
        realm: RealmId,
        limits: Limits,
        still_max: Duration,
    ) -> (BlobDoor, impl Future<Output = ()> + Send + use<>) {
        let (events, messages) = EventSender::channel(MESSAGES_MAX, mask());
        let (surroundings, guests) = (OnceLock::new(), Mutex::default());
        let gate = Arc::new(Gate { blobs: blobs.clone(), realm, surroundings, guests });
        let store: &Store = blobs.store();
        let door = BlobDoor { store: store.clone(), events, gate: gate.clone(), still_max, limits };
        (door, answer(gate, messages))
    }

    /// Tells the door of the rest of the node; only the first telling counts.
    pub fn attach(&self, surroundings: Surroundings) {
        let _ = self.gate.surroundings.set(surroundings);
    }

    /// Whether this peer may have this blob: in the public realm everybody, in another its members; and only what a pin of
    /// that realm keeps, for one home may hold the bytes of several.
    pub async fn may_serve(&self, peer: NodeId, realm: RealmId, hash: BlobHash) -> bool {
        self.gate.may_serve(peer, realm, hash).await
    }

    /// As the library serves a connection, but with patience for a while only. Dropped, it breaks off what is under way.
    async fn serve(&self, connection: &Connection) {
        let connection_id = connection.stable_id() as u64;
        let connected = || ClientConnected { connection_id, endpoint_id: Some(connection.remote_id()) };
        if let Err(cause) = self.events.client_connected(connected).await {
            return connection.close(cause.code(), cause.reason());
        }
        let mut streams = JoinSet::new();
        loop {
            let (writer, reader) = tokio::select! {
                opened = connection.accept_bi() => match opened {
                    Ok(opened) => opened,
                    Err(_) => break,
                },
                Some(_) = streams.join_next() => continue,
            };
            let pace = self.limits.pace(Way::Up, self.gate.flow(connection_id));
            let writer = Paced::new(Patient::new(writer, self.still_max), pace);
            let reader = Patient::new(reader, self.still_max);
            let pair = StreamPair::new(connection_id, reader, writer, self.events.clone());
            // What went wrong in it, the library has logged.
            streams.spawn(provider::handle_stream(pair, self.store.clone()).map(drop));
        }
        // The connection is closed, so they end at once; what they sent is counted.
        while streams.join_next().await.is_some() {}
    }
}

impl ProtocolHandler for BlobDoor {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let peer = NodeId::from(*connection.remote_id().as_bytes());
        let Some(_seat) = Seat::take(&self.gate, peer, connection.stable_id() as u64) else {
            connection.close(TOO_MANY.into(), b"too many connections");
            return Ok(());
        };
        tokio::select! {
            () = self.serve(&connection) => {}
            () = self.gate.idle(peer) => connection.close(IDLE.into(), b"idle"),
        }
        Ok(())
    }
}

impl Gate {
    async fn may_serve(&self, peer: NodeId, realm: RealmId, hash: BlobHash) -> bool {
        realm == self.realm
            && (realm == RealmId::PUBLIC || self.surroundings.get().is_some_and(|around| (around.is_member)(peer)))
            && self.is_of_realm(hash).await
    }

    async fn is_of_realm(&self, hash: BlobHash) -> bool {
        match self.blobs.pinned(vec![hash]).await {
            Ok(pinned) => pinned.contains(&hash),
            Err(error) => {
                tracing::warn!(%error, "a blob is refused: the pins could not be read");
                false
            }
        }
    }

    fn served(&self, bytes: u64) {
        if let Some(around) = self.surroundings.get() {
            (around.served)(bytes);
        }
    }

    /// Resolves when this peer has asked for nothing for [`IDLE_MAX`].
    async fn idle(&self, peer: NodeId) {
        let mut active = Instant::now();
        loop {
            tokio::time::sleep(IDLE_MAX / 3).await;
            match self.guests().peers.get(&peer) {
                Some(guest) if guest.requests > 0 => active = Instant::now(),
                Some(guest) => active = guest.allowance.map_or(active, |(_, asked)| active.max(asked)),
                None => return,
            }
            if active.elapsed() > IDLE_MAX {
                return;
            }
        }
    }

    /// Where the bytes of this connection's peer are counted.
    fn flow(&self, connection: u64) -> Arc<Flow> {
        let guests = self.guests();
        let guest = guests.connections.get(&connection).and_then(|peer| guests.peers.get(peer));
        guest.map(|guest| guest.flow.clone()).unwrap_or_default()
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request until its [`Service`] is dropped, or says that there is no room for it.
    fn admit(self: &Arc<Self>, connection: u64) -> Result<Service, AbortReason> {
        let mut guests = self.guests();
        let peer = guests.connections.get(&connection).copied().ok_or(AbortReason::Permission)?;
        if guests.requests >= REQUESTS_MAX {
            return Err(AbortReason::RateLimited);
        }
        guests.peers.entry(peer).or_default().admit(Instant::now())?;
        guests.requests += 1;
        Ok(Service { gate: self.clone(), peer })
    }
}

impl Guest {
    fn admit(&mut self, now: Instant) -> Result<(), AbortReason> {
        let (left, since) = self.allowance.unwrap_or((REQUESTS_BURST, now));
        let left = (left + REQUESTS_PER_S * (now - since).as_secs_f64()).min(REQUESTS_BURST);
        if left < 1.0 || self.requests >= REQUESTS_PER_PEER_MAX {
            self.allowance = Some((left, now));
            return Err(AbortReason::RateLimited);
        }
        self.allowance = Some((left - 1.0, now));
        self.requests += 1;
        Ok(())
    }
}

/// A connection's place; given back when dropped.
struct Seat {
    gate: Arc<Gate>,
    peer: NodeId,
    connection: u64,
}

impl Seat {
    fn take(gate: &Arc<Gate>, peer: NodeId, connection: u64) -> Option<Seat> {
        let mut guests = gate.guests();
        let all: usize = guests.peers.values().map(|guest| guest.connections).sum();
        let of_peer = guests.peers.get(&peer).map_or(0, |guest| guest.connections);
        if all >= CONNECTIONS_MAX || of_peer >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        guests.peers.entry(peer).or_default().connections += 1;
        guests.connections.insert(connection, peer);
        Some(Seat { gate: gate.clone(), peer, connection })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut guests = self.gate.guests();
        if let Some(guest) = guests.peers.get_mut(&self.peer) {
            guest.connections -= 1;
        }
        guests.connections.remove(&self.connection);
        guests.forget(self.peer);
    }
}

/// A request that is being served; given back when dropped.
struct Service {
    gate: Arc<Gate>,
    peer: NodeId,
}

impl Service {
    /// Whether the peer may have what it asks for.
    async fn permit(&self, request: &GetRequest) -> Result<(), AbortReason> {
        let hash = BlobHash::from(*request.hash.as_bytes());
        if request.ranges.is_blob() && self.gate.may_serve(self.peer, self.gate.realm, hash).await {
            return Ok(());
        }
        tracing::debug!(peer = %self.peer.short(), blob = %hash.short(), "a blob is refused");
        Err(AbortReason::Permission)
    }

    /// Counts the bytes of a request that has ended.
    fn note(&self, update: &RequestUpdate) {
        match update {
            RequestUpdate::Completed(end) => self.gate.served(end.stats.payload_bytes_sent),
            RequestUpdate::Aborted(end) => self.gate.served(end.stats.payload_bytes_sent),
            RequestUpdate::Started(_) | RequestUpdate::Progress(_) => {}
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let mut guests = self.gate.guests();
        guests.requests -= 1;
        if let Some(guest) = guests.peers.get_mut(&self.peer) {
            guest.requests -= 1;
        }
        guests.forget(self.peer);
    }
}

impl Guests {
    /// Nobody is remembered who neither is here nor used up an allowance lately.
    fn forget(&mut self, peer: NodeId) {
        let is_spent =
            |(left, since): (f64, Instant)| left + REQUESTS_PER_S * since.elapsed().as_secs_f64() < REQUESTS_BURST;
        let done = |guest: &Guest| guest.connections == 0 && guest.requests == 0;
        if self.peers.get(&peer).is_some_and(|guest| done(guest) && !guest.allowance.is_some_and(is_spent)) {
            self.peers.remove(&peer);
        }
        if self.peers.len() > 4 * CONNECTIONS_MAX {
            self.peers.retain(|_, guest| !done(guest));
        }
    }
}

fn mask() -> EventMask {
    EventMask {
        connected: ConnectMode::Intercept,
        get: RequestMode::InterceptLog,
        get_many: RequestMode::Disabled,
        push: RequestMode::Disabled,
        observe: ObserveMode::Intercept,
        throttle: ThrottleMode::None,
    }
}

/// Answers until the endpoint's last handle to the door is gone.
async fn answer(gate: Arc<Gate>, mut messages: mpsc::Receiver<ProviderMessage>) {
    let mut serving = JoinSet::new();
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            Some(_) = serving.join_next() => continue,
        };
        match message {
            None => return,
            Some(ProviderMessage::ClientConnected(message)) => {
                let peer = message.inner.endpoint_id.map(|id| NodeId::from(*id.as_bytes()));
                let seated = gate.guests().connections.get(&message.inner.connection_id).copied();
                let verdict = peer.filter(|peer| seated == Some(*peer)).map(drop).ok_or(AbortReason::Permission);
                message.tx.send(verdict).await.ok();
            }
            Some(ProviderMessage::GetRequestReceived(message)) => match gate.admit(message.inner.connection_id) {
                Ok(service) => {
                    let (request, reply, mut updates) = (message.inner.request, message.tx, message.rx);
                    serving.spawn(async move {
                        let verdict = service.permit(&request).await;
                        let is_permitted = verdict.is_ok();
                        reply.send(verdict).await.ok();
                        while is_permitted && let Ok(Some(update)) = updates.recv().await {
                            service.note(&update);
                        }
                    });
                }
                Err(reason) => {
                    message.tx.send(Err(reason)).await.ok();
                }
            },
            Some(ProviderMessage::ObserveRequestReceived(message)) => {
                message.tx.send(Err(AbortReason::Permission)).await.ok();
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_asks_too_often_is_told_to_wait_and_may_come_back() {
        let mut guest = Guest::default();
        let start = Instant::now();
        for _ in 0..REQUESTS_BURST as usize {
            guest.admit(start).unwrap();
            guest.requests -= 1;
        }
        assert!(guest.admit(start).is_err());
        assert!(guest.admit(start + Duration::from_millis(10)).is_ok());
    }

    #[test]
    fn a_peer_has_a_bounded_number_of_requests_at_once() {
        let mut guest = Guest::default();
        let start = Instant::now();
        for _ in 0..REQUESTS_PER_PEER_MAX {
            guest.admit(start).unwrap();
        }
        assert!(guest.admit(start).is_err());
        guest.requests -= 1;
        assert!(guest.admit(start).is_ok());
    }

    async fn bound(seed: u8) -> iroh::Endpoint {
        let builder = iroh::endpoint::Builder::new(iroh::endpoint::presets::Minimal);
        let builder = builder.secret_key(iroh::SecretKey::from_bytes(&[seed; 32])).clear_ip_transports();
        builder.bind_addr("127.0.0.1:0").unwrap().bind().await.unwrap()
    }

    /// A door with half a second of patience, and a peer's connection to it.
    struct Visit {
        registry: cairn_registry::Registry,
        gate: Arc<Gate>,
        router: iroh::protocol::Router,
        tasks: JoinSet<()>,
        guest: iroh::Endpoint,
        connection: Connection,
        _folder: tempfile::TempDir,
    }

    impl Visit {
        async fn begin(seed: u8) -> Visit {
            let folder = tempfile::tempdir().unwrap();
            let registry = cairn_registry::Registry::open(folder.path(), RealmId::PUBLIC).await.unwrap();
            let patience = Duration::from_millis(500);
            let (door, answering) =
                BlobDoor::with_patience(registry.blobs(), RealmId::PUBLIC, Limits::default(), patience);
            let gate = door.gate.clone();
            let (host, guest) = (bound(seed).await, bound(seed + 1).await);
            let address = iroh::EndpointAddr::new(host.id()).with_ip_addr(host.bound_sockets()[0]);
            let router = iroh::protocol::Router::builder(host).accept(iroh_blobs::ALPN, door).spawn();
            let mut tasks = JoinSet::new();
            tasks.spawn(answering);
            let connection = guest.connect(address, iroh_blobs::ALPN).await.unwrap();
            Visit { registry, gate, router, tasks, guest, connection, _folder: folder }
        }

        async fn until_requests_are(&self, requests: usize) {
            let start = Instant::now();
            while self.gate.guests().requests != requests {
                assert!(start.elapsed() < Duration::from_secs(20), "there are never {requests} requests");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }

        async fn end(mut self) {
            self.router.shutdown().await.unwrap();
            self.guest.close().await;
            self.tasks.shutdown().await;
            self.registry.close().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_peer_that_never_reads_its_answer_gives_its_place_back() {
        let visit = Visit::begin(31).await;
        let pin = visit.registry.blobs().add(vec![7; 32 << 20]).await.unwrap();
        let request = GetRequest::blob(iroh_blobs::Hash::from_bytes(*pin.hash().as_bytes()));
        let started = iroh_blobs::get::fsm::start(visit.connection.clone(), request, Default::default());
        let _unread = started.next().await.unwrap().next().await.unwrap();
        visit.until_requests_are(1).await;
        visit.until_requests_are(0).await;
        assert!(visit.connection.close_reason().is_none(), "only the request is broken off");
        drop(pin);
        visit.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_remembered_of_who_is_turned_away_or_whose_connection_is_dropped() {
        let visit = Visit::begin(35).await;
        let start = Instant::now();
        while visit.gate.guests().connections.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(20), "the guest never came");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let remembered = || {
            let guests = visit.gate.guests();
            (guests.connections.len(), guests.peers.len())
        };
        let seats: Vec<_> = (0..CONNECTIONS_MAX as u64 + 9)
            .map(|n| Seat::take(&visit.gate, NodeId::from(*blake3::hash(&n.to_le_bytes()).as_bytes()), u64::MAX - n))
            .collect();
        assert_eq!(remembered(), (CONNECTIONS_MAX, CONNECTIONS_MAX));
        drop(seats);
        assert_eq!(remembered(), (1, 1));
        visit.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_question_that_is_never_ended_is_broken_off() {
        let visit = Visit::begin(33).await;
        let (mut asking, _answer) = visit.connection.open_bi().await.unwrap();
        asking.write_all(&[0]).await.unwrap();
        let broken_off = tokio::time::timeout(Duration::from_secs(20), asking.stopped()).await;
        broken_off.expect("in time").expect("the connection is there");
        visit.end().await;
    }
}
