//! Brings a stage's weights in: the manifest, exactly the byte ranges of its tensors, the engine's load.
//!
//! Not here: which tensors those are ([`cairn_compute::arch`]) and how bytes travel ([`crate::data`]). Invariant: bytes
//! reach the engine only through the blob store, which has verified them against the revision's hashes; memory is taken
//! before anything is fetched, and given back when the stage goes.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Instant};

use cairn_compute::{
    SourceError, StageHandle, TensorSource, arch,
    engine::{LoadOptions, StageHandle as _},
};
use cairn_protocol::{
    id::BlobHash,
    manifest::{Manifest, Model, TensorEntry},
    peer_pb::{self, stage_event::Event},
    refusal::{Reason, Refusal},
};
use cairn_registry::Blobs;
use tokio::sync::{mpsc, oneshot};

use super::{
    admission::Asker,
    request::StageRequest,
    rooms::{Reservation, Rooms},
    warm::{Key, WarmStage},
};
use crate::{
    data::fetch::Source,
    flows::{plan, pull},
    shell::Node,
};

/// A stage that is loaded for one session. When dropped, its weights stay warm for the next.
pub(super) struct Loaded {
    pub handle: StageHandle,
    pub report: peer_pb::StageReady,
    pub width: u32,
    key: Key,
    reservation: Option<Reservation>,
    rooms: Arc<Rooms>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.handle.truncate(0);
        if let Some(reservation) = self.reservation.take() {
            let (handle, width, bytes_needed) = (self.handle.clone(), self.width, self.report.bytes_needed);
            self.rooms.keep_warm(self.key.clone(), WarmStage { handle, reservation, width, bytes_needed });
        }
    }
}

/// Finds the stage warm, or fetches and loads it. Dropping the future stops the fetch; a load that the engine has begun
/// ends by itself and is freed.
pub(super) async fn load(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    request: &StageRequest,
    events: &mpsc::Sender<peer_pb::StageEvent>,
    asker: &Asker,
) -> Result<Loaded, Refusal> {
    let started = Instant::now();
    let (part, context, planes) = (request.part.clone(), request.context, request.planes);
    let key = Key { revision: request.revision, part, context, planes };
    let mut loaded = match rooms.take_warm(&key) {
        Some(warm) => reuse(rooms, key, warm),
        None => load_cold(node, rooms, request, key, events, asker).await?,
    };
    loaded.handle.set_sampling(request.sampling, request.history.clone());
    loaded.report.load_ms = started.elapsed().as_millis() as u64;
    loaded.report.level = node.engine.level().to_owned();
    Ok(loaded)
}

fn reuse(rooms: &Arc<Rooms>, key: Key, warm: WarmStage) -> Loaded {
    let bytes_needed = warm.bytes_needed;
    let report = peer_pb::StageReady { bytes_needed, bytes_local: bytes_needed, ..Default::default() };
    let (handle, width) = (warm.handle, warm.width);
    Loaded { handle, report, width, key, reservation: Some(warm.reservation), rooms: rooms.clone() }
}

async fn load_cold(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    request: &StageRequest,
    key: Key,
    events: &mpsc::Sender<peer_pb::StageEvent>,
    asker: &Asker,
) -> Result<Loaded, Refusal> {
    let sources: Vec<Source> = sources(node, request);
    let manifest = pull::ensure_manifest_from(node, request.revision, &sources).await?;
    let model = plan::served_model(&request.revision.short(), &manifest)?.clone();
    check(request, &manifest, &model)?;
    let tensors = arch::stage_tensors(&model, &manifest.tensors, &request.part).map_err(|e| corrupt(&e))?;
    let tensors: Vec<TensorEntry> = tensors.into_iter().cloned().collect();
    let memory = arch::stage_memory(&model, &manifest.tensors, &request.part, request.context);
    let _turn = rooms.turn(asker.node).await;
    let reservation = rooms.reserve(memory)?;
    let report = fetch(node, &manifest, &tensors, &sources, events).await?;
    let files = manifest.files.iter().map(|f| f.blake3).collect();
    let source = BlobTensors { blobs: node.registry.blobs().clone(), files, runtime: tokio::runtime::Handle::current() };
    let width = model.width;
    let handle = load_engine(node, request, model, tensors, source).await?;
    Ok(Loaded { handle, report, width, key, reservation: Some(reservation), rooms: rooms.clone() })
}

/// Holders as the coordinator names them, then those this node knows itself.
fn sources(node: &Node, request: &StageRequest) -> Vec<Source> {
    let own = node.identity.node_id();
    let mut sources: Vec<Source> = Vec::new();
    let named = request.sources.iter().map(|s| Source { node: s.node, addresses: s.addresses.clone() });
    for source in named.chain(pull::holders(node, request.revision)) {
        if source.node != own && !sources.iter().any(|s| s.node == source.node) {
            sources.push(source);
        }
    }
    sources
}

fn check(request: &StageRequest, manifest: &Manifest, model: &Model) -> Result<(), Refusal> {
    let wrong = |why: String| Err(Refusal::new(Reason::BadInput, "a stage request", why, "cairn plan"));
    if manifest.repo.publisher != request.publisher || manifest.realm != request.realm {
        return wrong("the revision is of another publisher or realm than it says".to_owned());
    }
    let layers = request.part.layers;
    if layers.end > model.layers || request.part.head != (layers.end == model.layers) {
        return wrong(format!("layers {layers} of a model of {}", model.layers));
    }
    if request.part.embedding != (layers.start == 0) {
        return wrong("exactly the first stage has the embedding".to_owned());
    }
    if request.context > model.context_max {
        return wrong(format!("a context of {}, the model holds {}", request.context, model.context_max));
    }
    Ok(())
}

/// The byte ranges of some tensors by file.
fn ranges(tensors: &[TensorEntry]) -> BTreeMap<u32, Vec<Range<u64>>> {
    let mut files: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
    for tensor in tensors {
        files.entry(tensor.file).or_default().push(tensor.offset..tensor.offset + tensor.length);
    }
    for ranges in files.values_mut() {
        ranges.sort_by_key(|range| (range.start, range.end));
        ranges.dedup();
    }
    files
}

/// Fetches what of the tensors is not here, file by file, and keeps it in the stage cache.
async fn fetch(
    node: &Arc<Node>,
    manifest: &Manifest,
    tensors: &[TensorEntry],
    sources: &[Source],
    events: &mpsc::Sender<peer_pb::StageEvent>,
) -> Result<peer_pb::StageReady, Refusal> {
    let wanted = ranges(tensors);
    let bytes_needed: u64 = wanted.values().flatten().map(|r| r.end - r.start).sum();
    let mut report = peer_pb::StageReady { bytes_needed, ..Default::default() };
    let blobs = node.registry.blobs();
    let mut pins = Vec::new();
    let mut hashes = Vec::new();
    for (index, ranges) in wanted {
        let file = manifest.files.get(index as usize).ok_or_else(|| corrupt(&"a tensor of no file"))?;
        pins.push(blobs.temp_pin(file.blake3).await);
        hashes.push(file.blake3);
        let before = report.bytes_local + report.bytes_fetched;
        let events = events.clone();
        let progress = move |bytes: u64| {
            let progress = peer_pb::StageProgress { bytes_needed, bytes_done: before + bytes };
            let _ = events.try_send(peer_pb::StageEvent { event: Some(Event::Progress(progress)) });
        };
        let fetched = node.data.fetch_ranges(node, file.blake3, file.size, &ranges, sources, progress).await?;
        report.bytes_local += fetched.bytes_local;
        report.bytes_fetched += fetched.bytes_fetched;
        report.bytes_overhead += fetched.bytes_overhead;
    }
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    blobs
        .protect_stage(&hashes, now_ms, node.config.stage_disk_bytes)
        .await
        .map_err(|e| Refusal::new(Reason::Internal, "the stage cache", e.to_string(), "the node's log"))?;
    drop(pins);
    Ok(report)
}

async fn load_engine(
    node: &Node,
    request: &StageRequest,
    model: Model,
    tensors: Vec<TensorEntry>,
    source: BlobTensors,
) -> Result<StageHandle, Refusal> {
    let (done, loaded) = oneshot::channel();
    let options = LoadOptions { context: request.context, planes: request.planes };
    let done = Box::new(move |result| {
        let _ = done.send(result);
    });
    node.engine.load(model, tensors, request.part.clone(), options, Box::new(source), done);
    match loaded.await {
        Ok(Ok(handle)) => Ok(handle),
        Ok(Err(error)) => Err(Refusal::new(Reason::Unsupported, "loading a stage", error.to_string(), "another model")),
        Err(_) => Err(Refusal::new(Reason::Internal, "loading a stage", "the engine stopped", "the node's log")),
    }
}

/// The engine's view of the blob store. Called on engine threads, which are not the runtime's.
struct BlobTensors {
    blobs: Blobs,
    files: Vec<BlobHash>,
    runtime: tokio::runtime::Handle,
}

impl TensorSource for BlobTensors {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        let hash = *self.files.get(entry.file as usize).ok_or_else(|| SourceError::new("a tensor of no file"))?;
        let bytes = self.runtime.block_on(self.blobs.read(hash, entry.offset..entry.offset + entry.length));
        bytes.map(Vec::from).map_err(|error| SourceError::new(error.to_string()))
    }
}

fn corrupt(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Corrupt, "the revision", error.to_string(), "its publisher, to publish it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_that_serves_two_purposes_is_fetched_once() {
        let entry = |file, offset| TensorEntry {
            name: String::new(),
            file,
            offset,
            length: 10,
            dtype: cairn_protocol::dtype::Dtype::F32,
            shape: vec![],
        };
        let files = ranges(&[entry(1, 20), entry(0, 5), entry(1, 20), entry(1, 0)]);
        assert_eq!(files[&0], vec![5..15]);
        assert_eq!(files[&1], vec![0..10, 20..30]);
    }
}
