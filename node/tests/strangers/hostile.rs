//! A peer that speaks our protocol honestly up to the lie that a test gives it: real libp2p for talk, real iroh for
//! bytes, an advert of its own, and answers and gossip that are not checked by anyone before they are sent.
//!
//! Not a node: it has no catalogue and judges nothing. Invariant: all it does is done when a [`Stranger`] is dropped.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use cairn_node::data::link;
use cairn_protocol::{
    Keypair, RealmId, RevisionId,
    advert::{Advert, Capacity, Grant, Grants, Load, SignedAdvert},
    peer_pb::{self, Answer, HeadsPage, Held, Hello, Holding, Kept, Question, Records, answer::Say, question::Ask},
    record_pb::Envelope,
};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use iroh::{
    Endpoint, SecretKey,
    endpoint::{Builder, Connection, presets},
    protocol::{AcceptError, ProtocolHandler, Router},
};
use iroh_blobs::{BlobsProtocol, store::mem::MemStore};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    gossipsub::{self, IdentTopic},
    identify, identity, noise, request_response,
    swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What it answers, signed or not.
#[derive(Debug, Clone, Default)]
pub struct Lies {
    /// To whoever pages through its catalogue.
    pub heads: Vec<Envelope>,
    /// To whoever asks for a name.
    pub resolve: Vec<Envelope>,
    /// Revisions that its advert says it has loaded for a task, on a machine faster than any.
    pub warm: Vec<RevisionId>,
    /// To whoever asks it for a task: these bytes, and then nothing more while `is_silent`.
    pub task: Vec<u8>,
    /// The stream of a task stays open and says nothing.
    pub is_silent: bool,
}

/// What has happened to it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The dial failed.
    pub is_shut_out: bool,
    /// Connected now.
    pub is_connected: bool,
    /// The other listens to records.
    pub is_listened_to: bool,
    /// How often its catalogue and its names were asked for.
    pub asked_heads: usize,
    pub asked_resolve: usize,
    /// Records that the other passed on, as they came.
    pub heard: Vec<Vec<u8>>,
}

/// The hostile peer, running.
pub struct Stranger {
    /// Its key, on both stacks.
    pub key: Keypair,
    pub realm: RealmId,
    lies: Arc<Mutex<Lies>>,
    orders: mpsc::Sender<Order>,
    seen: watch::Receiver<Seen>,
    blobs: MemStore,
    router: Router,
    _running: JoinSet<()>,
}

enum Order {
    Gossip(Vec<u8>),
    Ask(Question, oneshot::Sender<Result<Answer, String>>),
}

impl Stranger {
    /// Connects to `address`, a whole multiaddress, and shows its advert.
    pub async fn meet(seed: u8, realm: &str, address: &str, lies: Lies) -> Result<Stranger> {
        let key = Keypair::from_seed([seed; 32]);
        let realm: RealmId = realm.parse().ok().context("a realm")?;
        let blobs = MemStore::new();
        let endpoint = endpoint(&key).await?;
        let data_addresses = endpoint.bound_sockets();
        let warm = lies.warm.clone();
        let lies = Arc::new(Mutex::new(lies));
        let router = Router::builder(endpoint)
            .accept(iroh_blobs::ALPN, BlobsProtocol::new(&blobs, None))
            .accept(link::TASK_ALPN, TaskLiar(lies.clone()))
            .spawn();
        let compute = if warm.is_empty() { Grant::default() } else { Grant::Anyone };
        let (orders, queue) = mpsc::channel(64);
        let (told, seen) = watch::channel(Seen::default());
        let mut swarm = swarm(&key, realm)?;
        swarm.dial(DialOpts::from(address.parse::<Multiaddr>()?))?;
        let advert = Advert {
            realm,
            node: key.node_id(),
            incarnation: 1,
            sequence: 0,
            ttl_ms: 60_000,
            talk_addresses: Vec::new(),
            data_addresses,
            relay_urls: Vec::new(),
            capacity: Capacity { macs_per_s: u64::MAX, ..Capacity::default() },
            grants: Grants { compute, ..Grants::default() },
            load: Load::default(),
            agent: "stranger/1".into(),
            holds: Vec::new(),
            tasks: warm.iter().map(|_| "embed".to_owned()).take(1).collect(),
            warm,
            mirrors: false,
        };
        let actor =
            Actor { swarm, key: key.clone(), advert, lies: lies.clone(), seen: told, asks: Vec::new(), peer: None };
        let mut running = JoinSet::new();
        running.spawn(actor.run(queue));
        let stranger = Stranger { key, realm, lies, orders, seen, blobs, router, _running: running };
        let is_settled = |seen: &Seen| seen.is_shut_out || (seen.is_connected && seen.is_listened_to);
        stranger.until("they are connected and listened to", is_settled).await?;
        match stranger.seen().is_shut_out {
            true => bail!("no connection"),
            false => Ok(stranger),
        }
    }

    /// Tells another lie from now on.
    pub fn lie(&self, lies: Lies) {
        *self.lies.lock().unwrap() = lies;
    }

    /// Gossips these bytes as a record.
    pub async fn gossip(&self, bytes: Vec<u8>) -> Result<()> {
        Ok(self.orders.send(Order::Gossip(bytes)).await?)
    }

    /// Asks the other.
    pub async fn ask(&self, ask: Ask) -> Result<Say> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Ask(Question { ask: Some(ask) }, reply)).await?;
        let answer = tokio::time::timeout(PATIENCE, answer).await??;
        answer.map_err(anyhow::Error::msg)?.say.context("an empty answer")
    }

    /// Every record of the other's catalogue (of its first page, which is enough for tests).
    pub async fn catalogue(&self) -> Result<Vec<Envelope>> {
        match self.ask(Ask::Heads(peer_pb::Heads { after: Vec::new(), limit: 1000 })).await? {
            Say::Heads(page) => Ok(page.records),
            other => bail!("no page: {other:?}"),
        }
    }

    /// Keeps bytes for whoever fetches them; says their BLAKE3.
    pub async fn serve(&self, bytes: impl Into<bytes::Bytes>) -> Result<[u8; 32]> {
        Ok(*self.blobs.add_bytes(bytes).await?.hash.as_bytes())
    }

    /// What has happened to it so far.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until that has happened.
    pub async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) -> Result<()> {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| holds(seen))).await;
        waited.with_context(|| format!("waiting in vain until {what}"))?.context("the stranger has ended")?;
        Ok(())
    }

    /// Its byte stack, to open streams of its own.
    pub fn endpoint(&self) -> &Endpoint {
        self.router.endpoint()
    }
}

/// Answers tasks with whatever the lie is.
#[derive(Debug, Clone)]
struct TaskLiar(Arc<Mutex<Lies>>);

impl ProtocolHandler for TaskLiar {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let (mut send, mut receive) = connection.accept_bi().await?;
        let mut length = [0; 4];
        receive.read_exact(&mut length).await.map_err(AcceptError::from_err)?;
        let Lies { task, is_silent, .. } = self.0.lock().unwrap().clone();
        send.write_all(&task).await.map_err(AcceptError::from_err)?;
        if is_silent {
            connection.closed().await;
        }
        let _ = send.finish();
        let _ = tokio::time::timeout(PATIENCE, send.stopped()).await;
        Ok(())
    }
}

/// An iroh endpoint on loopback.
pub async fn endpoint(key: &Keypair) -> Result<Endpoint> {
    endpoint_on(key, "127.0.0.1:0").await
}

/// An iroh endpoint on an address of this machine.
pub async fn endpoint_on(key: &Keypair, address: &str) -> Result<Endpoint> {
    let builder = Builder::new(presets::Minimal).secret_key(SecretKey::from_bytes(&key.seed()));
    Ok(builder.clear_ip_transports().bind_addr(address)?.bind().await?)
}

/// A peer that finishes every handshake and then says nothing; it comes back when it is cut off.
pub async fn stay_silent(address: Multiaddr) -> Result<()> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_| libp2p::swarm::dummy::Behaviour)?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
        .build();
    swarm.dial(DialOpts::from(address.clone()))?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionClosed { .. } | SwarmEvent::OutgoingConnectionError { .. } => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                swarm.dial(DialOpts::from(address.clone()))?;
            }
            _ => {}
        }
    }
}

#[derive(NetworkBehaviour)]
struct Mouth {
    identify: identify::Behaviour,
    gossip: gossipsub::Behaviour,
    questions: request_response::Behaviour<Bytes>,
}

fn swarm(key: &Keypair, realm: RealmId) -> Result<Swarm<Mouth>> {
    let family = format!("/cairn/1/{realm}");
    let keypair = identity::Keypair::ed25519_from_bytes(key.seed())?;
    let gossip = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("{family}/gossip"))
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        // Anonymous messages have no number: their content tells them apart.
        .message_id_fn(|message| gossipsub::MessageId::new(blake3::hash(&message.data).as_bytes()))
        .build()?;
    let mut gossip =
        gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, gossip).map_err(anyhow::Error::msg)?;
    for topic in ["records", "adverts"] {
        gossip.subscribe(&IdentTopic::new(format!("{family}/{topic}")))?;
    }
    let ask = StreamProtocol::try_from_owned(format!("{family}/ask"))?;
    let mouth = Mouth {
        identify: identify::Behaviour::new(identify::Config::new(family, keypair.public())),
        gossip,
        questions: request_response::Behaviour::new(
            [(ask, request_response::ProtocolSupport::Full)],
            request_response::Config::default(),
        ),
    };
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_| mouth)?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
        .build();
    Ok(swarm)
}

struct Actor {
    swarm: Swarm<Mouth>,
    key: Keypair,
    advert: Advert,
    lies: Arc<Mutex<Lies>>,
    seen: watch::Sender<Seen>,
    asks: Vec<(request_response::OutboundRequestId, oneshot::Sender<Result<Answer, String>>)>,
    peer: Option<PeerId>,
}

impl Actor {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut renewals = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                order = orders.recv() => match order {
                    Some(Order::Gossip(bytes)) => self.gossip("records", bytes),
                    Some(Order::Ask(question, reply)) => self.ask(&question, reply),
                    None => return,
                },
                _ = renewals.tick() => {
                    let advert = self.advert();
                    self.gossip("adverts", advert.to_bytes());
                }
            }
        }
    }

    fn gossip(&mut self, topic: &str, bytes: Vec<u8>) {
        let topic = IdentTopic::new(format!("/cairn/1/{}/{topic}", self.advert.realm));
        // Nobody listening is fine: a test waits for what it needs to be heard.
        let _ = self.swarm.behaviour_mut().gossip.publish(topic, bytes);
    }

    fn ask(&mut self, question: &Question, reply: oneshot::Sender<Result<Answer, String>>) {
        let Some(peer) = self.peer else { return drop(reply.send(Err("not connected".into()))) };
        let id = self.swarm.behaviour_mut().questions.send_request(&peer, question.encode_to_vec());
        self.asks.push((id, reply));
    }

    fn advert(&mut self) -> SignedAdvert {
        self.advert.sequence += 1;
        SignedAdvert::sign(&self.advert, &self.key).unwrap()
    }

    fn on_event(&mut self, event: SwarmEvent<MouthEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                self.peer = Some(peer_id);
                self.seen.send_modify(|seen| seen.is_connected = true);
            }
            SwarmEvent::OutgoingConnectionError { .. } => self.seen.send_modify(|seen| seen.is_shut_out = true),
            SwarmEvent::ConnectionClosed { num_established: 0, .. } => {
                self.peer = None;
                self.seen.send_modify(|seen| (seen.is_connected, seen.is_listened_to) = (false, false));
            }
            SwarmEvent::Behaviour(MouthEvent::Gossip(gossipsub::Event::Subscribed { topic, .. }))
                if topic.as_str().ends_with("/records") =>
            {
                self.seen.send_modify(|seen| seen.is_listened_to = true);
            }
            SwarmEvent::Behaviour(MouthEvent::Gossip(gossipsub::Event::Message { message, .. }))
                if message.topic.as_str().ends_with("/records") =>
            {
                self.seen.send_modify(|seen| seen.heard.push(message.data));
            }
            SwarmEvent::Behaviour(MouthEvent::Questions(event)) => self.on_talk(event),
            _ => {}
        }
    }

    fn on_talk(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { message: Message::Request { request, channel, .. }, .. } => {
                let Some(say) = Question::decode(&request[..]).ok().and_then(|question| question.ask) else { return };
                let answer = Answer { say: Some(self.answer(say)) };
                let _ = self.swarm.behaviour_mut().questions.send_response(channel, answer.encode_to_vec());
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.asked(request_id, Answer::decode(&response[..]).map_err(|error| error.to_string()));
            }
            Event::OutboundFailure { request_id, error, .. } => self.asked(request_id, Err(error.to_string())),
            _ => {}
        }
    }

    fn asked(&mut self, id: request_response::OutboundRequestId, answer: Result<Answer, String>) {
        if let Some(place) = self.asks.iter().position(|(asked, _)| *asked == id) {
            let _ = self.asks.swap_remove(place).1.send(answer);
        }
    }

    fn answer(&mut self, ask: Ask) -> Say {
        let lies = self.lies.lock().unwrap().clone();
        match ask {
            Ask::Hello(_) => Say::Hello(Hello { advert: Some(self.advert().to_pb()) }),
            Ask::Heads(_) => {
                self.seen.send_modify(|seen| seen.asked_heads += 1);
                Say::Heads(HeadsPage { records: lies.heads, next: Vec::new() })
            }
            Ask::Resolve(_) => {
                self.seen.send_modify(|seen| seen.asked_resolve += 1);
                Say::Records(Records { records: lies.resolve })
            }
            // It has everything.
            Ask::Holds(holds) => {
                let all = holds.hashes.into_iter().map(|hash| Holding { hash, complete: true, ..Holding::default() });
                Say::Held(Held { holdings: all.collect() })
            }
            // Of a version that can't compare: its catalogue is read page by page.
            Ask::Reconcile(_) | Ask::Fetch(_) => {
                Say::Refused(peer_pb::Refused { reason: "unsupported".into(), why: "not known".into() })
            }
            // And says that persons there wanted all of it.
            Ask::Keeps(keeps) => Say::Kept(Kept { states: vec![2; keeps.revisions.len()] }),
        }
    }
}

/// Writes what it is given, whatever it is.
#[derive(Clone, Default)]
struct Bytes;

impl request_response::Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(2 << 20).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
