//! The one task that owns the swarm: its loop, the commands it obeys, its clock.
//!
//! Invariant: nothing in the loop waits except the `select!` itself. What needs the catalogue leaves by `try_send`; a
//! full queue is answered at once.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard, atomic::AtomicU64},
    time::{Duration, Instant},
};

use cairn_protocol::{
    id::{NodeId, RevisionId},
    peer_pb::{Answer, Question},
    record::Keypair,
};
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{MessageAcceptance, MessageId, PublishError},
    kad::{self, store::RecordStore},
    multiaddr::Protocol,
    request_response::{InboundRequestId, OutboundRequestId, ResponseChannel},
    swarm::ConnectionId,
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    AskError, Inbox, NetConfig, NetError, NetHandle, PeerEvent, Severity, Shared, Verdict,
    behaviour::{Behaviour, Names, build_swarm, peer_of},
    bounds,
    conduct::{Conduct, Standing},
    identity,
    inbox::{GossipedRecord, InboundQuestion},
    peers::PeerTable,
    provided::Provided,
    rate::Rate,
    redial::{Redial, TargetId},
    remembered,
    statement::{Advertiser, Statement, next_incarnation},
};

/// What handles ask of the task.
#[derive(Debug)]
pub(super) enum Command {
    /// Ask a peer.
    Ask { node: NodeId, question: Question, reply: oneshot::Sender<Result<Answer, AskError>> },
    /// Answer a peer.
    Answer { channel: ResponseChannel<Answer>, answer: Answer },
    /// Tell the realm a record.
    Publish(Vec<u8>),
    /// Pass a gossiped record on, or not.
    Judge { from: NodeId, message: MessageId, source: PeerId, verdict: Verdict },
    /// A peer misbehaved.
    Report { node: NodeId, severity: Severity, why: &'static str },
    /// Announce a revision.
    Provide(RevisionId),
    /// Announce it no more.
    Withdraw(RevisionId),
    /// Look for providers; the sender is dropped when the search ends.
    Providers { revision: RevisionId, reply: mpsc::Sender<Vec<NodeId>> },
    /// Another address to keep coming back to.
    Bootstrap(Multiaddr),
}

/// Milliseconds since the network started, on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    /// Now.
    pub(super) fn now_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}

/// The state that the task owns.
pub(super) struct Owner {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) names: Names,
    pub(super) clock: Clock,
    pub(super) table: Arc<RwLock<PeerTable>>,
    pub(super) conduct: Conduct,
    pub(super) redial: Redial,
    pub(super) dials: HashMap<ConnectionId, TargetId>,
    /// The absent member that was considered last; the next ones come after it.
    pub(super) dial_turn: NodeId,
    pub(super) own: Advertiser,
    pub(super) statement: watch::Receiver<Statement>,
    pub(super) listening: watch::Sender<Vec<Multiaddr>>,
    pub(super) events: broadcast::Sender<PeerEvent>,
    pub(super) asks: HashMap<OutboundRequestId, Asked>,
    pub(super) asks_of: HashMap<PeerId, u32>,
    pub(super) answering: HashMap<InboundRequestId, PeerId>,
    pub(super) questions_of: HashMap<PeerId, u32>,
    pub(super) rates: HashMap<PeerId, Rates>,
    pub(super) searches: HashMap<kad::QueryId, mpsc::Sender<Vec<NodeId>>>,
    /// What others announced in the distributed table.
    pub(super) provided: Provided,
    pub(super) unsent: VecDeque<Vec<u8>>,
    pub(super) refresh_at_ms: u64,
    pub(super) questions: mpsc::Sender<InboundQuestion>,
    pub(super) records: mpsc::Sender<GossipedRecord>,
    pub(super) arrivals: mpsc::Sender<NodeId>,
    pub(super) commands: mpsc::WeakSender<Command>,
}

/// A question of ours that is under way.
pub(super) enum Asked {
    /// The exchange of adverts on connecting.
    Hello,
    /// A handle's.
    By(PeerId, oneshot::Sender<Result<Answer, AskError>>),
}

/// What one connected peer may still send.
pub(super) struct Rates {
    pub(super) questions: Rate,
    pub(super) gossip: Rate,
}

/// Builds everything, starts the task and waits until every address is listened on.
pub(super) async fn start(
    identity: &Keypair,
    config: NetConfig,
    statement: Statement,
) -> Result<(NetHandle, Inbox), NetError> {
    let home = config.home.clone();
    let read = tokio::task::spawn_blocking(move || Ok((next_incarnation(&home)?, remembered::recall(&home))));
    let (incarnation, remembered) = read.await.map_err(NetError::setup)??;
    let names = Names::new(config.realm);
    let mut swarm = build_swarm(identity::libp2p_keypair(identity), &names, &config.agent, config.mdns)?;
    let wanted = config.listen.len();
    for address in &config.listen {
        let parsed = parse_address(address)?;
        refuse_taken_port(address, &parsed)?;
        swarm.listen_on(parsed).map_err(|e| NetError::Listen { address: address.clone(), why: e.to_string() })?;
    }
    let mut redial = Redial::default();
    for address in &config.bootstrap {
        let address = parse_address(address)?;
        let node = peer_of(&address).and_then(|peer| identity::node_id(&peer));
        redial.add_bootstrap(address, node);
    }
    for (node, addresses) in remembered {
        redial.add_peer(0, node, addresses);
    }
    let own = Advertiser::new(Keypair::from_seed(identity.seed()), config.realm, config.agent.clone(), incarnation);
    let (handle, inbox, owner, queue) = assemble(identity.node_id(), &config, swarm, names, redial, own, statement);
    let stop = handle.shared.stop.clone();
    handle.shared.tasks.spawn(owner.run(queue, stop));
    wait_for_listeners(&handle, wanted).await?;
    Ok((handle, inbox))
}

/// libp2p shares a TCP port between processes, which would then take each other's connections; two nodes on one port are
/// a mistake, as they are on any other port. Who binds without sharing sees that it is taken.
pub(super) fn refuse_taken_port(address: &str, parsed: &Multiaddr) -> Result<(), NetError> {
    let mut parts = parsed.iter();
    let ip: std::net::IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    let Some(Protocol::Tcp(port)) = parts.next().filter(|part| *part != Protocol::Tcp(0)) else { return Ok(()) };
    match std::net::TcpListener::bind((ip, port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(NetError::Listen { address: address.to_owned(), why: error.to_string() }),
    }
}

/// Parses a multiaddress of a person.
pub(super) fn parse_address(address: &str) -> Result<Multiaddr, NetError> {
    address
        .parse()
        .map_err(|e: libp2p::multiaddr::Error| NetError::Address { address: address.to_owned(), why: e.to_string() })
}

type Parts = (NetHandle, Inbox, Owner, mpsc::Receiver<Command>);

fn assemble(
    node: NodeId,
    config: &NetConfig,
    swarm: Swarm<Behaviour>,
    names: Names,
    redial: Redial,
    own: Advertiser,
    statement: Statement,
) -> Parts {
    let clock = Clock(Instant::now());
    let table = Arc::new(RwLock::new(PeerTable::new(node)));
    let (commands, queue) = mpsc::channel(bounds::COMMANDS_MAX);
    let (questions, inbound_questions) = mpsc::channel(bounds::QUESTIONS_MAX);
    let (records, inbound_records) = mpsc::channel(bounds::RECORDS_MAX);
    let (arrivals, inbound_arrivals) = mpsc::channel(bounds::ARRIVALS_MAX);
    let (statement, statement_heard) = watch::channel(statement);
    let (listening, listening_heard) = watch::channel(Vec::new());
    let (events, _) = broadcast::channel(bounds::PEER_EVENTS_MAX);
    let owner = Owner {
        swarm,
        names,
        clock,
        table: table.clone(),
        conduct: Conduct::default(),
        redial,
        dials: HashMap::new(),
        dial_turn: node,
        own,
        statement: statement_heard,
        listening,
        events: events.clone(),
        asks: HashMap::new(),
        asks_of: HashMap::new(),
        answering: HashMap::new(),
        questions_of: HashMap::new(),
        rates: HashMap::new(),
        searches: HashMap::new(),
        provided: Provided::default(),
        unsent: VecDeque::new(),
        refresh_at_ms: bounds::TABLE_REFRESH_MS,
        questions,
        records,
        arrivals,
        commands: commands.downgrade(),
    };
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let shared = Shared {
        node,
        realm: config.realm,
        home: config.home.clone(),
        clock,
        table,
        statement,
        listening: listening_heard,
        events,
        unknown_records: AtomicU64::new(0),
        stop,
        tasks,
    };
    let inbox = Inbox { questions: inbound_questions, records: inbound_records, arrivals: inbound_arrivals };
    (NetHandle { shared: Arc::new(shared), commands }, inbox, owner, queue)
}

/// Every listener reports at least one address; one on all interfaces reports several, a moment apart.
async fn wait_for_listeners(handle: &NetHandle, wanted: usize) -> Result<(), NetError> {
    let mut listening = handle.shared.listening.clone();
    let all = listening.wait_for(|addresses| addresses.len() >= wanted);
    match tokio::time::timeout(Duration::from_secs(5), all).await {
        Ok(Ok(_)) => Ok(()),
        _ => {
            handle.shared.stop.cancel();
            Err(NetError::Setup("the listeners reported no address within 5 s".to_owned()))
        }
    }
}

impl Owner {
    /// Runs until `stop`, then says goodbye.
    async fn run(mut self, mut queue: mpsc::Receiver<Command>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(bounds::TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut handles_are_gone = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event),
                command = queue.recv(), if !handles_are_gone => match command {
                    Some(command) => self.on_command(command),
                    None => handles_are_gone = true,
                },
                _ = ticks.tick() => self.on_tick(),
            }
            if handles_are_gone {
                break;
            }
        }
        drop(queue);
        self.say_goodbye().await;
    }

    /// Closes connections in order, so that peers needn't wait for a time-out. Not part of the loop.
    async fn say_goodbye(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error only says that the connection has closed already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closing = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(bounds::GOODBYE, closing).await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Ask { node, question, reply } => self.ask(node, question, reply),
            Command::Answer { channel, answer } => self.answer(channel, answer),
            Command::Publish(bytes) => self.publish_record(bytes),
            Command::Judge { from, message, source, verdict } => self.judge(from, &message, &source, verdict),
            Command::Report { node, severity, why } => self.penalise(node, severity, why),
            Command::Provide(revision) => self.provide(revision),
            Command::Withdraw(revision) => {
                self.swarm.behaviour_mut().kad.stop_providing(&kad::RecordKey::new(revision.as_bytes()));
            }
            Command::Providers { reply, .. } if self.searches.len() >= bounds::SEARCHES_MAX => drop(reply),
            Command::Providers { revision, reply } => {
                let key = kad::RecordKey::new(revision.as_bytes());
                let query = self.swarm.behaviour_mut().kad.get_providers(key);
                self.searches.insert(query, reply);
            }
            Command::Bootstrap(address) => {
                let node = peer_of(&address).and_then(|peer| identity::node_id(&peer));
                self.redial.add_bootstrap(address, node);
            }
        }
    }

    fn on_tick(&mut self) {
        let now_ms = self.clock.now_ms();
        let unproven = self.table().wake(now_ms);
        for node in unproven {
            self.disconnect(node, "it never showed an advert of this realm");
        }
        for node in self.conduct.wake(now_ms) {
            if let Some(peer) = identity::peer_id(node) {
                self.swarm.behaviour_mut().blocked.unblock_peer(peer);
            }
        }
        if self.statement.has_changed().unwrap_or(false) {
            self.own.change();
        }
        if self.own.is_due(now_ms) {
            self.advertise(now_ms);
        }
        self.searches.retain(|_, reply| !reply.is_closed());
        if now_ms >= self.refresh_at_ms {
            self.refresh_at_ms = now_ms + bounds::TABLE_REFRESH_MS;
            // An error says that nobody is known yet; newcomers trigger a refresh of their own.
            let _ = self.swarm.behaviour_mut().kad.bootstrap();
            self.forget_announcements(now_ms);
        }
        self.dial_due(now_ms);
    }

    fn ask(&mut self, node: NodeId, question: Question, reply: oneshot::Sender<Result<Answer, AskError>>) {
        let peer = match self.may_ask(node) {
            Ok(peer) => peer,
            Err(error) => {
                // The asker may be gone: then there is nobody to tell.
                let _ = reply.send(Err(error));
                return;
            }
        };
        let addresses = self.table().addresses(&node);
        let id = self.swarm.behaviour_mut().questions.send_request_with_addresses(&peer, Ok(question), addresses);
        *self.asks_of.entry(peer).or_default() += 1;
        self.asks.insert(id, Asked::By(peer, reply));
    }

    fn may_ask(&self, node: NodeId) -> Result<PeerId, AskError> {
        let unreachable = |why: &str| AskError::Unreachable { node, why: why.to_owned() };
        let peer = identity::peer_id(node).ok_or_else(|| unreachable("its id is not a key"))?;
        if let Standing::Banned { .. } = self.conduct.standing(self.clock.now_ms(), node) {
            return Err(unreachable("it is banned for what it did"));
        }
        let of_peer = self.asks_of.get(&peer).copied().unwrap_or(0);
        if self.asks.len() >= bounds::ASKS_MAX || of_peer >= bounds::ASKS_PER_PEER_MAX {
            return Err(AskError::Busy);
        }
        Ok(peer)
    }

    /// Takes a question of ours off the list, whatever came of it.
    pub(super) fn ask_is_over(&mut self, id: &OutboundRequestId) -> Option<Asked> {
        let asked = self.asks.remove(id)?;
        if let Asked::By(peer, _) = &asked
            && let Some(count) = self.asks_of.get_mut(peer)
        {
            *count -= 1;
            if *count == 0 {
                self.asks_of.remove(peer);
            }
        }
        Some(asked)
    }

    /// The asker may be gone: then there is nobody to tell.
    pub(super) fn answer(&mut self, channel: ResponseChannel<Answer>, answer: Answer) {
        let _ = self.swarm.behaviour_mut().questions.send_response(channel, answer);
    }

    /// Tells a record, or keeps it for when there is somebody.
    pub(super) fn publish_record(&mut self, bytes: Vec<u8>) {
        let topic = self.names.records.clone();
        match self.swarm.behaviour_mut().gossip.publish(topic, bytes.clone()) {
            Ok(_) | Err(PublishError::Duplicate) => {}
            Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => {
                if self.unsent.len() == bounds::UNSENT_MAX {
                    self.unsent.pop_front();
                }
                self.unsent.push_back(bytes);
            }
            Err(error) => tracing::warn!(%error, "a record can't be gossiped"),
        }
    }

    fn judge(&mut self, from: NodeId, message: &MessageId, source: &PeerId, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(message, source, acceptance);
        if verdict == Verdict::Reject {
            self.penalise(from, Severity::Breach, "it passed on a record that is no record");
        }
    }

    fn provide(&mut self, revision: RevisionId) {
        let key = kad::RecordKey::new(revision.as_bytes());
        if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(key) {
            tracing::warn!(revision = %revision.short(), ?error, "a revision can't be announced");
        }
    }

    /// The library drops those that have run out only when somebody asks for just them.
    fn forget_announcements(&mut self, now_ms: u64) {
        for (node, revision) in self.provided.wake(now_ms) {
            if let Some(peer) = identity::peer_id(node) {
                let store = self.swarm.behaviour_mut().kad.store_mut();
                store.remove_provider(&kad::RecordKey::new(revision.as_bytes()), &peer);
            }
        }
    }

    /// Signs the next advert and tells it.
    fn advertise(&mut self, now_ms: u64) {
        let (statement, talk) = self.said_of_self();
        let Some(signed) = self.own.tell(now_ms, &statement, talk) else { return };
        let bytes = signed.to_bytes();
        let topic = self.names.adverts.clone();
        if let Err(error) = self.swarm.behaviour_mut().gossip.publish(topic, bytes) {
            // Nobody there: whoever comes gets it with Hello.
            tracing::trace!(%error, "the advert was not gossiped");
        }
    }

    /// The newest statement and the addresses that are listened on.
    pub(super) fn said_of_self(&mut self) -> (Statement, Vec<String>) {
        if self.statement.has_changed().unwrap_or(false) {
            self.own.change();
        }
        let talk = self.listening.borrow().iter().map(ToString::to_string).collect();
        (self.statement.borrow_and_update().clone(), talk)
    }

    /// Puts a misdeed on the peer's account; a ban closes its connections.
    pub(super) fn penalise(&mut self, node: NodeId, severity: Severity, why: &str) {
        let now_ms = self.clock.now_ms();
        let before = self.conduct.standing(now_ms, node);
        let after = self.conduct.report(now_ms, node, severity);
        tracing::debug!(node = %node.short(), ?severity, ?after, why, "a peer misbehaved");
        if let (Standing::Tolerated(_), Standing::Banned { until_ms }) = (before, after) {
            tracing::warn!(node = %node.short(), why, seconds = (until_ms - now_ms) / 1000, "a peer is banned");
            self.redial.forget_peer(node);
            if let Some(peer) = identity::peer_id(node) {
                self.swarm.behaviour_mut().blocked.block_peer(peer);
            }
        }
    }

    /// The table, to write to.
    pub(super) fn table(&self) -> RwLockWriteGuard<'_, PeerTable> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}
