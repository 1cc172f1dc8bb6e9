//! What serves stages on this node, and what reaches the stages of others.
//!
//! ```text
//! coordinator: flows::generate ─ Links ──control──▶ StageDoor ─ serve ─ Run ─ engine thread
//!                                                                       │
//!                                       next StageDoor ◀──data (frames)─┘
//! ```
//!
//! A stage is asked for ([`request`]), held against the owner's rules ([`admission`]), given a place ([`rooms`]) or a place in line ([`queue`]), its bytes
//! are fetched and its weights loaded ([`load`]) or found warm ([`warm`]), its adapter likewise ([`adapters`]), what was computed before is found ([`prefix`]), and then it runs ([`serve`], [`run`]) until its
//! coordinator closes it or is silent for the lease. Not here: which node gets which layers, and what happens when one
//! dies; those are decided by [`cairn_compute::plan`] and [`cairn_compute::session`]. Invariant: network tasks beat, engine
//! threads compute, and neither waits for the other.

mod adapters;
mod admission;
mod advertise;
pub(crate) mod bounds;
pub(crate) mod choosing;
pub(crate) mod links;
mod load;
mod packed;
mod placements;
pub(crate) mod prefix;
mod queue;
mod request;
mod rooms;
mod run;
mod serve;
mod warm;

use std::sync::{Arc, OnceLock, Weak};

use cairn_compute::Engine;
use cairn_protocol::peer_pb;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

pub(crate) use admission::Asker;
pub use advertise::advertise;
pub(crate) use load::{BlobTensors, keep, prove_publisher};
pub(crate) use placements::{Placements, Use};
pub(crate) use request::{Neighbour, id, neighbour};
pub use request::{parse_privacy, privacy_word};
pub use rooms::{Occupancy, Waits};
pub(crate) use rooms::{Reservation, Rooms};
pub(crate) use run::{Run, Step};
pub(crate) use serve::Control;

use crate::{config::Config, flows::generate::TextCache, shell::Node};

/// Serves stages. A cheap handle; every clone is the same host.
#[derive(Clone)]
pub struct StageHost {
    inner: Arc<Inner>,
}

struct Inner {
    rooms: Arc<Rooms>,
    /// Set once the node is whole; until then connections are refused.
    node: OnceLock<Weak<Node>>,
    strangers: Arc<Semaphore>,
    texts: TextCache,
    placements: Arc<Placements>,
}

impl StageHost {
    /// By the rules of this configuration.
    pub fn new(config: &Config, engine: &Engine) -> StageHost {
        let house = admission::House {
            grant: config.grants.compute,
            realm: config.realm,
            level: engine.level().to_owned(),
            sessions_per_peer: config.sessions_per_peer as usize,
            sessions_max: bounds::SESSIONS_MAX,
            waiting_per_client: config.waiting_per_peer as usize,
            trusted: config.trusted.clone(),
        };
        let rooms = Rooms::new(house, config.stage_memory_bytes, engine.clone());
        let strangers = Arc::new(Semaphore::new(bounds::STRANGERS_MAX));
        StageHost {
            inner: Arc::new(Inner {
                rooms,
                node: OnceLock::new(),
                strangers,
                texts: TextCache::default(),
                placements: Arc::default(),
            }),
        }
    }

    /// Opens the door: from now on stages use this node's registry, data and engine.
    pub fn attach(&self, node: &Arc<Node>) {
        let _ = self.inner.node.set(Arc::downgrade(node));
    }

    /// What stages take here now.
    pub fn occupancy(&self) -> Occupancy {
        self.inner.rooms.occupancy()
    }

    /// Woken when [`StageHost::occupancy`] may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.rooms.changes()
    }

    /// Ends every session; warm stages are forgotten.
    pub fn close(&self) {
        self.inner.rooms.close();
    }

    pub(crate) fn node(&self) -> Option<Arc<Node>> {
        self.inner.node.get()?.upgrade()
    }

    pub(crate) fn rooms(&self) -> &Arc<Rooms> {
        &self.inner.rooms
    }

    /// Where models that this node coordinates are loaded.
    pub(crate) fn placements(&self) -> &Arc<Placements> {
        &self.inner.placements
    }

    /// Tokenizers of the models that this node coordinates.
    pub(crate) fn texts(&self) -> &TextCache {
        &self.inner.texts
    }

    /// A place for a connection that has not said what it is for.
    pub(crate) fn stranger(&self) -> Option<OwnedSemaphorePermit> {
        self.inner.strangers.clone().try_acquire_owned().ok()
    }

    pub(crate) async fn serve(&self, node: &Arc<Node>, asker: Asker, open: peer_pb::OpenStage, control: Control) {
        serve::serve(node, &self.inner.rooms, asker, open, control).await;
    }

    /// A stage for a session whose coordinator is this node.
    pub(crate) async fn serve_local(
        &self,
        node: &Arc<Node>,
        open: peer_pb::OpenStage,
        commands: mpsc::Receiver<peer_pb::StageCommand>,
        events: mpsc::Sender<peer_pb::StageEvent>,
    ) {
        let own = Asker { node: node.identity.node_id(), is_self: true, is_same_host: true, is_listed: true };
        self.serve(node, own, open, Control { commands, events }).await;
    }
}
