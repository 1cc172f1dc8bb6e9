//! Brings a stage's adapter in: its manifest, the byte ranges of the tensors of the stage's layers, the engine's load; and
//! keeps it for the next session.
//!
//! Not here: which adapter a request means (its coordinator resolved that to a revision) and weights of models
//! ([`super::load`], whose rules of trust, disk and memory hold here, too). Invariant: an adapter that a session uses is
//! never dropped; idle ones are at most [`bounds::IDLE_ADAPTERS_MAX`], and the one used longest ago goes first.

use std::{collections::VecDeque, sync::Arc};

use cairn_compute::{AdapterHandle, StagePart, WantedAdapter, adapter};
use cairn_protocol::{
    id::RevisionId,
    manifest::{Manifest, TensorEntry},
    name::RepoKind,
    peer_pb,
    refusal::{Reason, Refusal},
};
use tokio::sync::mpsc;

use super::{
    admission::Asker,
    bounds, load,
    request::{AdapterRequest, StageRequest},
    rooms::{Reservation, Rooms},
};
use crate::{
    flows::{adapters, holders, plan},
    shell::Node,
};

/// What a loaded adapter is of, and for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub adapter: RevisionId,
    pub model: RevisionId,
    pub part: StagePart,
}

/// A loaded adapter.
pub(crate) struct Loaded {
    pub handle: AdapterHandle,
    pub bytes_needed: u64,
    reservation: Reservation,
}

/// All loaded adapters, the last used at the end.
#[derive(Default)]
pub(crate) struct Warm {
    adapters: VecDeque<(Key, Arc<Loaded>)>,
}

fn is_idle(adapter: &Arc<Loaded>) -> bool {
    Arc::strong_count(adapter) == 1
}

impl Warm {
    /// Memory of those that no session uses.
    pub fn idle_bytes(&self) -> u64 {
        self.adapters.iter().filter(|(_, a)| is_idle(a)).map(|(_, a)| a.reservation.bytes()).sum()
    }

    /// The adapter, if it is here.
    pub fn find(&mut self, key: &Key) -> Option<Arc<Loaded>> {
        let at = self.adapters.iter().position(|(k, _)| k == key)?;
        let entry = self.adapters.remove(at)?;
        let adapter = entry.1.clone();
        self.adapters.push_back(entry);
        Some(adapter)
    }

    /// Keeps an adapter; hands back an idle one that is too many.
    pub fn put(&mut self, key: Key, adapter: Arc<Loaded>) -> Option<Arc<Loaded>> {
        self.adapters.push_back((key, adapter));
        let idle = self.adapters.iter().filter(|(_, adapter)| is_idle(adapter)).count();
        if idle > bounds::IDLE_ADAPTERS_MAX { self.pop_idle() } else { None }
    }

    /// The idle one that was used longest ago.
    pub fn pop_idle(&mut self) -> Option<Arc<Loaded>> {
        let at = self.adapters.iter().position(|(_, adapter)| is_idle(adapter))?;
        self.adapters.remove(at).map(|(_, adapter)| adapter)
    }
}

/// Finds a request's adapter warm, or fetches and loads it; what that took is added to the report.
pub(super) async fn load(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    request: &StageRequest,
    events: &mpsc::Sender<peer_pb::StageEvent>,
    asker: &Asker,
    report: &mut peer_pb::StageReady,
) -> Result<Option<Arc<Loaded>>, Refusal> {
    let Some(wanted) = &request.adapter else { return Ok(None) };
    let key = Key { adapter: wanted.revision, model: request.revision, part: request.part };
    let (adapter, took) = match rooms.find_adapter(&key) {
        Some(adapter) => held(adapter),
        None => {
            let _turn = rooms.turn(asker.node).await;
            // Another session of this peer may have loaded it in its turn.
            match rooms.find_adapter(&key) {
                Some(adapter) => held(adapter),
                None => load_cold(node, rooms, (request, wanted), key, events, asker).await?,
            }
        }
    };
    report.bytes_needed += took.bytes_needed;
    report.bytes_local += took.bytes_local;
    report.bytes_fetched += took.bytes_fetched;
    report.bytes_overhead += took.bytes_overhead;
    report.adapter = wanted.revision.to_vec();
    Ok(Some(adapter))
}

fn held(adapter: Arc<Loaded>) -> (Arc<Loaded>, peer_pb::StageReady) {
    let report = load::held(adapter.bytes_needed);
    (adapter, report)
}

async fn load_cold(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    (request, wanted): (&StageRequest, &AdapterRequest),
    key: Key,
    events: &mpsc::Sender<peer_pb::StageEvent>,
    asker: &Asker,
) -> Result<(Arc<Loaded>, peer_pb::StageReady), Refusal> {
    let what = format!("adapter {}", wanted.revision.short());
    let base = load::sources(node, request.revision, &request.sources).await;
    let base = holders::ensure_manifest_from(node, request.revision, &base).await?;
    let model = plan::served_model(&request.revision.short(), &base)?.clone();
    let sources = load::sources(node, wanted.revision, &wanted.sources).await;
    let manifest = holders::ensure_manifest_from(node, wanted.revision, &sources).await?;
    check(&what, request, wanted, &manifest)?;
    let spec = adapters::spec(&what, &manifest)?;
    let (tensors, bytes) = {
        let fitted = adapter::fit(&model, &spec, &manifest.tensors, &request.part);
        let fitted = fitted.map_err(|error| adapters::misfit(&what, &spec, &error))?;
        let tensors: Vec<TensorEntry> = fitted.tensors().into_iter().cloned().collect();
        (tensors, fitted.memory())
    };
    load::prove_publisher(node, wanted.revision, &manifest, asker).await?;
    let reservation = rooms.reserve(bytes)?;
    let report = load::fetch(node, wanted.revision, &manifest, &tensors, &sources, events).await?;
    let source = load::BlobTensors::new(node, &manifest);
    let engine =
        WantedAdapter { model, spec, revision: wanted.revision, tensors: manifest.tensors, part: request.part };
    let handle = load::patiently(|done| {
        node.engine.load_adapter(engine.clone(), Box::new(source.clone()), done);
    });
    let loaded = Arc::new(Loaded { handle: handle.await?, bytes_needed: report.bytes_needed, reservation });
    rooms.keep_adapter(key, loaded.clone());
    Ok((loaded, report))
}

fn check(what: &str, request: &StageRequest, wanted: &AdapterRequest, manifest: &Manifest) -> Result<(), Refusal> {
    let is_so = manifest.repo.publisher == wanted.publisher
        && manifest.realm == request.realm
        && manifest.repo.kind == RepoKind::Adapter;
    if is_so {
        return Ok(());
    }
    let why = "the revision is of another publisher, realm or kind than it says";
    Err(Refusal::new(Reason::BadInput, what, why).try_this("cairn show"))
}
