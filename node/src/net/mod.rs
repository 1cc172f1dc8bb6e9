//! Talk between nodes over libp2p: who is there, who has what, small questions, gossip.
//!
//! One task owns the swarm; its handlers are synchronous. Others hold a [`NetHandle`], a clone around a bounded queue.
//! What peers ask of the catalogue and what they gossip leaves through [`Inbox`], two bounded queues that
//! `flows::records` empties; when one is full, a question is answered `busy` and a record is dropped.
//!
//! Nothing outside this module names libp2p: addresses are strings, nodes are `NodeId`. Bytes of models never pass here.
//!
//! | file | idea |
//! |---|---|
//! | `behaviour` `codec` | which protocols, with which limits |
//! | `strangers` | how many unproven connections one address may have |
//! | `swarm` `hear` `links` | the task: its loop, what it hears, its connections |
//! | `peers` `conduct` `redial` `rate` `provided` | pure deciders |
//! | `statement` `remembered` | our own advert; peers that outlive a restart |
//! | `identity` | `NodeId` and `PeerId` |

mod behaviour;
pub mod bounds;
mod codec;
pub mod conduct;
mod hear;
pub mod identity;
mod inbox;
mod links;
pub mod peers;
mod provided;
mod rate;
mod redial;
mod remembered;
mod statement;
mod strangers;
mod swarm;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cairn_protocol::{
    id::{NodeId, RealmId, RevisionId},
    peer_pb::{Answer, Question},
    record::{Keypair, Record},
    refusal::{Reason, Refusal},
};
use libp2p::Multiaddr;
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use conduct::Severity;
pub(crate) use inbox::refused;
pub use inbox::{GossipedRecord, InboundQuestion, Inbox, Reply, Verdict};
pub use peers::PeerInfo;
pub use statement::Statement;

use peers::PeerTable;
use swarm::{Clock, Command};

/// Where a node listens unless it is told otherwise.
pub const DEFAULT_LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/4177", "/ip4/0.0.0.0/udp/4177/quic-v1"];

/// What the talk of one node needs to know.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The one realm of this swarm.
    pub realm: RealmId,
    /// Multiaddresses to listen on; port 0 takes any free one.
    pub listen: Vec<String>,
    /// Multiaddresses to connect to, and to come back to for ever.
    pub bootstrap: Vec<String>,
    /// Whether to find neighbours on the local network by mDNS.
    pub mdns: bool,
    /// Name and version that peers see, e.g. `cairn/0.1.0`.
    pub agent: String,
    /// Where the incarnation and the addresses of known peers are kept.
    pub home: PathBuf,
}

/// Why the network could not start.
#[derive(Debug, Error)]
pub enum NetError {
    /// An address in the configuration isn't one.
    #[error("`{address}` is not a multiaddress: {why}")]
    Address {
        /// As written.
        address: String,
        /// What the parser says.
        why: String,
    },
    /// An address can't be listened on.
    #[error("can't listen on {address}: {why}")]
    Listen {
        /// As written.
        address: String,
        /// What the system says.
        why: String,
    },
    /// The home's incarnation file can't be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Home {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A protocol can't be set up, e.g. mDNS without a network interface.
    #[error("libp2p: {0}")]
    Setup(String),
}

impl NetError {
    fn setup(error: impl ToString) -> NetError {
        NetError::Setup(error.to_string())
    }
}

/// Why a question was not answered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AskError {
    /// No connection with the peer, and none could be made.
    #[error("{} can't be reached: {why}", node.short())]
    Unreachable {
        /// Who was asked.
        node: NodeId,
        /// What the transport says.
        why: String,
    },
    /// No answer in time.
    #[error("{} didn't answer within {deadline:?}", node.short())]
    Deadline {
        /// Who was asked.
        node: NodeId,
        /// How long it had.
        deadline: Duration,
    },
    /// The peer refuses.
    #[error("{} refuses: {why} ({reason})", node.short())]
    Refused {
        /// Who was asked.
        node: NodeId,
        /// A code of the refusal table.
        reason: String,
        /// In words.
        why: String,
    },
    /// The answer can't be read or isn't one to the question.
    #[error("{} gave an answer that can't be read: {why}", node.short())]
    Garbled {
        /// Who was asked.
        node: NodeId,
        /// What is wrong with it.
        why: String,
    },
    /// Too many of our own questions are under way.
    #[error("too many questions are under way")]
    Busy,
    /// This node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Refusal {
        let reason = match &error {
            AskError::Unreachable { .. } => Reason::Unreachable,
            AskError::Deadline { .. } => Reason::Deadline,
            AskError::Refused { reason, .. } => Reason::from_code(reason).unwrap_or(Reason::HostRefused),
            AskError::Garbled { .. } => Reason::Corrupt,
            AskError::Busy => Reason::Busy,
            AskError::Stopping => Reason::Cancelled,
        };
        Refusal::new(reason, "a peer could not be asked", error.to_string()).try_this("cairn peers")
    }
}

/// A peer came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Connected, and showed a valid advert of our realm.
    Connected(NodeId),
    /// Its last connection is closed.
    Gone(NodeId),
}

/// Whether a person's text is a multiaddress.
pub fn check_address(address: &str) -> Result<(), NetError> {
    swarm::parse_address(address).map(drop)
}

/// A handle on the network: cheap to clone, all clones speak to one task.
#[derive(Clone, Debug)]
pub struct NetHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
struct Shared {
    node: NodeId,
    realm: RealmId,
    home: PathBuf,
    clock: Clock,
    /// Written by the swarm's task alone, in short synchronous steps; never held across an await.
    table: Arc<RwLock<PeerTable>>,
    statement: watch::Sender<Statement>,
    listening: watch::Receiver<Vec<Multiaddr>>,
    events: broadcast::Sender<PeerEvent>,
    /// Records of kinds or versions that this node doesn't know.
    unknown_records: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Starts the network; returns when every address is being listened on.
///
/// Dropped before it returns, it leaves nothing running. Runs until [`NetHandle::shutdown`].
pub async fn start(
    identity: &Keypair,
    config: NetConfig,
    statement: Statement,
) -> Result<(NetHandle, Inbox), NetError> {
    install_crypto_provider();
    swarm::start(identity, config, statement).await
}

/// Ring for everyone in this process who names no provider. Each stack names its own; see decision 9.
pub fn install_crypto_provider() {
    // An error says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl NetHandle {
    /// Counts records of kinds or versions that this node doesn't know; nobody is blamed for them.
    pub fn note_unknown_records(&self, count: u64) {
        self.shared.unknown_records.fetch_add(count, Ordering::Relaxed);
    }

    /// How many of them came in since the start.
    pub fn unknown_records(&self) -> u64 {
        self.shared.unknown_records.load(Ordering::Relaxed)
    }

    /// Asks a peer and waits for its answer, at most `deadline` (30 s at the longest). Connects if need be. An answer
    /// `Refused` is an error. Dropping the future forgets the question.
    pub async fn ask(&self, node: NodeId, question: Question, deadline: Duration) -> Result<Answer, AskError> {
        let deadline = deadline.min(bounds::QUESTION_DEADLINE);
        let (reply, answer) = oneshot::channel();
        let asking = async {
            let command = Command::Ask { node, question, reply };
            self.commands.send(command).await.map_err(|_| AskError::Stopping)?;
            answer.await.map_err(|_| AskError::Stopping)?
        };
        tokio::time::timeout(deadline, asking).await.map_err(|_| AskError::Deadline { node, deadline })?
    }

    /// Tells the realm a record of ours. Waits only for a place in the queue; if nobody is there to hear it now, it is
    /// told to the next who comes, as long as it is among the last few hundred.
    pub async fn publish_record(&self, record: Record) {
        self.command(Command::Publish(record.to_bytes())).await;
    }

    /// All members that are or were here, as of now.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.table().list(self.shared.clock.now_ms())
    }

    /// Members with an open connection.
    pub fn connected(&self) -> Vec<NodeId> {
        self.table().connected_members()
    }

    /// One member.
    pub fn peer(&self, node: NodeId) -> Option<PeerInfo> {
        self.table().get(self.shared.clock.now_ms(), &node)
    }

    /// Announces that this node keeps the whole of that revision, until [`NetHandle::withdraw`].
    pub async fn provide(&self, revision: RevisionId) {
        self.command(Command::Provide(revision)).await;
    }

    /// Announces that revision no more; what others remember runs out by itself.
    pub async fn withdraw(&self, revision: RevisionId) {
        self.command(Command::Withdraw(revision)).await;
    }

    /// Who says that it keeps that revision: from adverts, and from the distributed table within `deadline`.
    pub async fn providers(&self, revision: RevisionId, deadline: Duration) -> Vec<NodeId> {
        let mut found = self.table().holders(&revision);
        let (reply, mut answers) = mpsc::channel(16);
        self.command(Command::Providers { revision, reply }).await;
        let collecting = async {
            while let Some(nodes) = answers.recv().await {
                found.extend(nodes);
            }
        };
        // Running out of time isn't an error: what was found until then is the answer.
        let _ = tokio::time::timeout(deadline, collecting).await;
        found.sort_unstable();
        found.dedup();
        found.retain(|node| *node != self.shared.node);
        found
    }

    /// Whole multiaddresses of this node, ending in `/p2p/…`, fit for another node's bootstrap list.
    pub fn listen_addresses(&self) -> Vec<String> {
        let peer = self.peer_id();
        self.shared.listening.borrow().iter().map(|address| format!("{address}/p2p/{peer}")).collect()
    }

    /// This node in libp2p's spelling.
    pub fn peer_id(&self) -> String {
        identity::peer_id(self.shared.node).map(|peer| peer.to_string()).unwrap_or_default()
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.shared.node
    }

    /// The realm of this swarm.
    pub fn realm(&self) -> RealmId {
        self.shared.realm
    }

    /// Changes what this node says of itself; peers hear of it within about half a second.
    pub fn state(&self, change: impl FnOnce(&mut Statement)) {
        self.shared.statement.send_modify(change);
    }

    /// Changes the load that this node tells.
    pub fn set_load(&self, load: cairn_protocol::advert::Load) {
        self.state(|statement| statement.load = load);
    }

    /// Changes the list of whole revisions that this node tells; the first 32 are told.
    pub fn set_holds(&self, holds: Vec<RevisionId>) {
        self.state(|statement| statement.holds = holds);
    }

    /// What this node says of itself now.
    pub fn statement(&self) -> Statement {
        self.shared.statement.borrow().clone()
    }

    /// Peers coming and going from now on. A listener that lags behind by more than 256 loses the oldest.
    pub fn peer_events(&self) -> broadcast::Receiver<PeerEvent> {
        self.shared.events.subscribe()
    }

    /// A peer did something wrong in a part of the node that isn't this one; `why` is for the log.
    pub async fn report(&self, node: NodeId, severity: Severity, why: &'static str) {
        self.command(Command::Report { node, severity, why }).await;
    }

    /// Connects to a whole multiaddress, and keeps coming back to it.
    pub async fn add_bootstrap(&self, address: &str) -> Result<(), NetError> {
        let address = swarm::parse_address(address)?;
        self.command(Command::Bootstrap(address)).await;
        Ok(())
    }

    /// Writes connected peers to the home, for the next run. Dropped, it leaves the old list or the new one.
    pub async fn remember_peers(&self) {
        let connected = self.peers().into_iter().filter(|peer| peer.connected);
        let peers: BTreeMap<NodeId, Vec<String>> = connected.map(|peer| (peer.node_id, peer.addresses)).collect();
        if peers.is_empty() {
            return;
        }
        let home = self.shared.home.clone();
        match tokio::task::spawn_blocking(move || remembered::keep(&home, &peers)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "peers can't be kept for the next run"),
            Err(error) => tracing::warn!(%error, "keeping peers for the next run stopped"),
        }
    }

    /// Keeps the list of peers, closes connections in order and ends the task; returns when it has ended.
    pub async fn shutdown(&self) {
        self.remember_peers().await;
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// A stopped network is told nothing more: that isn't an error of the teller.
    async fn command(&self, command: Command) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!("the network has stopped; a command was dropped");
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, PeerTable> {
        self.shared.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}
