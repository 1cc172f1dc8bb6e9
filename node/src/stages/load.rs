//! Brings a stage's weights in: the manifest, exactly the byte ranges of its tensors, the engine's load.
//!
//! Not here: which tensors those are ([`cairn_compute::arch`]) and how bytes travel ([`crate::data`]). Invariant: bytes
//! reach the engine only through the blob store, which has verified them against the revision's hashes; memory is taken
//! before anything is fetched, and given back when the stage goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use cairn_compute::{
    KvFormat, LoadError, LoadOptions, Saves, SourceError, StageHandle, StepError, TensorSource, arch,
    engine::{ClientId, SetAdapterError},
    quantise::{Quantising, as_loaded},
};
use cairn_protocol::{
    id::{BlobHash, RevisionId},
    manifest::{Manifest, Model, TensorEntry},
    name::{Publisher, RefName, RepoPath},
    peer_pb::{self, stage_event::Event},
    refusal::{Reason, Refusal},
};
use cairn_registry::Blobs;
use tokio::sync::{mpsc, oneshot};

use super::{
    adapters,
    admission::Asker,
    bounds,
    packed::Packed,
    prefix,
    request::{Neighbour, StageRequest},
    rooms::{Promise, Rooms},
    warm::{Base, Key},
};
use crate::{
    data::fetch::Source,
    flows::{advisories, holders, names, plan},
    shell::Node,
};

/// How long the engine may take to notice that weights were dropped: one pass of another session.
const MEMORY_PATIENCE: Duration = Duration::from_secs(1);

/// A session on loaded weights, which stay warm for the next when it is dropped.
pub(super) struct Loaded {
    pub handle: StageHandle,
    pub report: peer_pb::StageReady,
    pub width: u32,
    /// Its place among those whose keys and values share the memory.
    _promise: Promise,
    /// Used by the session; kept from being dropped.
    _adapter: Option<Arc<adapters::Loaded>>,
    _base: Arc<Base>,
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
    let StageRequest { revision, part, context, planes, quantise, kv, .. } = *request;
    let key = Key { revision, part, planes, quantise };
    let (base, mut report) = match rooms.find_warm(&key, context) {
        Some(base) => (base.clone(), held(base.bytes_needed)),
        None => load_cold(node, rooms, request, key, events, asker).await?,
    };
    let adapter = adapters::load(node, rooms, request, events, asker, &mut report).await?;
    report.load_ms = started.elapsed().as_millis() as u64;
    report.level = node.engine.level().to_owned();
    report.quantised = quantise.map(|target| target.name().to_owned()).unwrap_or_default();
    let opened = open_session(request, asker, &base, adapter.as_ref())?;
    report.kv = if kv == KvFormat::F16 { String::new() } else { kv.name().to_owned() };
    let promise = rooms.promise(&base, &opened, request).await?;
    report.prefix_positions = adopt(&opened, request, asker).await?;
    let width = base.width;
    Ok(Loaded { handle: opened, report, width, _promise: promise, _adapter: adapter, _base: base })
}

/// A report of what was here.
pub(super) fn held(bytes_needed: u64) -> peer_pb::StageReady {
    peer_pb::StageReady { bytes_needed, bytes_local: bytes_needed, ..Default::default() }
}

/// A session on loaded weights, empty.
fn open_session(
    request: &StageRequest,
    asker: &Asker,
    base: &Base,
    adapter: Option<&Arc<adapters::Loaded>>,
) -> Result<StageHandle, Refusal> {
    let handle = base.handle.another_for(client(request, asker), request.context, request.kv);
    let handle = handle.map_err(|e| load_refusal(&e))?;
    let given = handle.set_adapter(adapter.map(|adapter| &adapter.handle));
    if given == Err(SetAdapterError::OtherWeights) {
        return Err(Refusal::internal("a stage", "its adapter was loaded for other weights"));
    }
    let is_set = match request.demands.needs_logits() {
        true => handle.hand_out_logits(),
        false => handle.set_sampling(request.demands.sampling) && handle.set_history(request.history.clone()),
    };
    if given.is_ok() && is_set { Ok(handle) } else { Err(engine_busy()) }
}

/// With whom the session shares passes fairly: nodes, and this node's own clients.
fn client(request: &StageRequest, asker: &Asker) -> ClientId {
    match asker.is_self {
        true => ClientId(request.client),
        false => ClientId(u64::from_le_bytes(asker.node.as_bytes()[..8].try_into().expect("eight bytes")) | 1 << 63),
    }
}

/// Begins with what an earlier session of the asker computed; says how many positions that is.
async fn adopt(handle: &StageHandle, request: &StageRequest, asker: &Asker) -> Result<u64, Refusal> {
    let Some(keys) = prefix::of_asker(&request.prefix, asker.node).filter(|keys| !keys.is_empty()) else {
        return Ok(0);
    };
    let (done, held) = oneshot::channel();
    handle.adopt(keys, Box::new(move |result| drop(done.send(result))));
    match held.await {
        Ok(Ok(held)) => Ok(held),
        Ok(Err(StepError::Busy)) => Err(engine_busy()),
        Ok(Err(error)) => Err(Refusal::internal("a stage", error)),
        Err(_) => Err(load_refusal(&LoadError::Stopped)),
    }
}

fn engine_busy() -> Refusal {
    Refusal::new(Reason::Busy, "a stage", "the engine's queue is full").try_this("again in a moment")
}

fn load_refusal(error: &LoadError) -> Refusal {
    let (reason, attempt) = match error {
        LoadError::Memory { .. } => (Reason::NoMemory, "more stages, or a shorter context"),
        LoadError::Busy => (Reason::Busy, "again in a moment"),
        LoadError::Stopped => (Reason::Unavailable, "another node"),
        LoadError::Panicked(_) => (Reason::Internal, "the node's log"),
        LoadError::Gpu(_) | LoadError::KvFormat(_) => (Reason::Unsupported, "another node"),
        LoadError::Adapter(_) => (Reason::Unsupported, "another adapter"),
        LoadError::Stage(_) | LoadError::Weights(_) | LoadError::Context { .. } => {
            (Reason::Unsupported, "another model")
        }
    };
    Refusal::new(reason, "loading a stage", error.to_string()).try_this(attempt)
}

async fn load_cold(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    request: &StageRequest,
    key: Key,
    events: &mpsc::Sender<peer_pb::StageEvent>,
    asker: &Asker,
) -> Result<(Arc<Base>, peer_pb::StageReady), Refusal> {
    let sources = sources(node, request.revision, &request.sources).await;
    let manifest = holders::ensure_manifest_from(node, request.revision, &sources).await?;
    advisories::permit_revision(node, &manifest.repo, request.revision, Some(&manifest), &[]).await?;
    let model = plan::served_model(&request.revision.short(), &manifest)?.clone();
    check(request, &manifest, &model)?;
    let tensors = arch::stage_tensors(&model, &manifest.tensors, &request.part).map_err(|e| corrupt(&e))?;
    let tensors: Vec<TensorEntry> = tensors.into_iter().cloned().collect();
    let all = as_loaded(&manifest.tensors, request.quantise);
    let context = context_loaded(request.context, &model);
    let memory = arch::stage_memory(&model, &all, &request.part, context).map_err(|e| corrupt(&e))?;
    let pages_bytes = arch::pages_bytes(&model, &request.part, request.context, request.kv).map_err(|e| corrupt(&e))?;
    prove_publisher(node, request.revision, &manifest, asker).await?;
    let _turn = rooms.turn(asker.node).await;
    // Another session of this peer may have loaded it in its turn.
    if let Some(base) = rooms.find_warm(&key, request.context) {
        return Ok((base.clone(), held(base.bytes_needed)));
    }
    let reservation = rooms.reserve(memory.total() - memory.cache + pages_bytes)?;
    let report = fetch(node, request.revision, &manifest, &tensors, &sources, events).await?;
    let source = BlobTensors::new(node, &manifest).saved(node, request);
    let handle = load_engine(node, request, context, &model, &tensors, &source).await?;
    let (width, bytes_needed) = (model.width, report.bytes_needed);
    let base = Arc::new(Base { handle, reservation, width, bytes_needed, pages_bytes });
    rooms.keep_warm(key, base.clone());
    Ok((base, report))
}

/// Positions that weights are loaded for: their angles cost little, and sessions of other lengths can use them, too.
fn context_loaded(asked: u32, model: &Model) -> u32 {
    asked.max(bounds::CONTEXT_LOADED.min(model.context_max))
}

/// A stranger's request may be let in because its publisher is trusted, and a manifest says whose it is without being
/// signed: so the publisher's own record of the revision has to be here, or be known to a peer.
pub(crate) async fn prove_publisher(
    node: &Node,
    revision: RevisionId,
    manifest: &Manifest,
    asker: &Asker,
) -> Result<(), Refusal> {
    let is_kept = node.registry.is_kept(revision).await;
    if asker.is_trusted() || matches!(is_kept, Ok(true)) || is_signed(node, manifest, revision).await? {
        return Ok(());
    }
    let path = RepoPath {
        publisher: Publisher::Key(manifest.repo.publisher),
        kind: manifest.repo.kind,
        name: manifest.repo.name.clone(),
    };
    names::learn(node, &path, &RefName::main()).await;
    if is_signed(node, manifest, revision).await? {
        return Ok(());
    }
    let why = format!("no record is known by which {} signed the revision", manifest.repo.publisher.short());
    Err(Refusal::new(Reason::Untrusted, "a stage", why).try_this("a revision that its publisher signed"))
}

async fn is_signed(node: &Node, manifest: &Manifest, revision: RevisionId) -> Result<bool, Refusal> {
    let signed = node.registry.is_signed(&manifest.repo, revision).await;
    signed.map_err(|error| Refusal::internal("the catalogue", error))
}

/// Holders as the coordinator names them, then those this node knows itself; where there are none, peers are asked.
pub(super) async fn sources(node: &Node, revision: RevisionId, named: &[Neighbour]) -> Vec<Source> {
    let own = node.identity.node_id();
    let mut sources: Vec<Source> = Vec::new();
    let named = named.iter().map(|s| Source { node: s.node, addresses: s.addresses.clone() });
    for source in named.chain(holders::holders(node, revision)) {
        if source.node != own && !sources.iter().any(|s| s.node == source.node) {
            sources.push(source);
        }
    }
    if sources.is_empty() { holders::find(node, revision).await } else { sources }
}

fn check(request: &StageRequest, manifest: &Manifest, model: &Model) -> Result<(), Refusal> {
    let wrong = |why: String| Err(Refusal::new(Reason::BadInput, "a stage request", why).try_this("cairn plan"));
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
pub(super) async fn fetch(
    node: &Arc<Node>,
    revision: RevisionId,
    manifest: &Manifest,
    tensors: &[TensorEntry],
    sources: &[Source],
    events: &mpsc::Sender<peer_pb::StageEvent>,
) -> Result<peer_pb::StageReady, Refusal> {
    let wanted = ranges(tensors);
    let bytes_needed: u64 = wanted.values().flatten().map(|r| r.end - r.start).sum();
    let mut report = peer_pb::StageReady { bytes_needed, ..Default::default() };
    let blobs = node.registry.blobs();
    check_disk(node, manifest, &wanted).await?;
    let mut pins = Vec::new();
    let mut hashes = vec![revision.blob()];
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
    keep(node, &hashes).await?;
    drop(pins);
    Ok(report)
}

/// Whether what is missing fits the disk that stages may take, beside what they keep of the same files: other files make room,
/// these are in use.
async fn check_disk(node: &Node, manifest: &Manifest, wanted: &BTreeMap<u32, Vec<Range<u64>>>) -> Result<(), Refusal> {
    let blobs = node.registry.blobs();
    let failed = |error| Refusal::internal("the blob store", error);
    let (mut bytes_missing, mut files) = (0, BTreeSet::new());
    for (index, ranges) in wanted {
        let file = manifest.files.get(*index as usize).ok_or_else(|| corrupt(&"a tensor of no file"))?;
        let missing = blobs.missing(file.blake3, file.size, ranges).await.map_err(failed)?;
        bytes_missing += missing.iter().map(|r| r.end - r.start).sum::<u64>();
        files.insert(file.blake3);
    }
    let cached = blobs.stage_blobs().await.map_err(failed)?;
    let bytes_kept = cached.iter().filter(|blob| files.contains(&blob.hash)).map(|blob| blob.bytes).sum();
    refuse_beyond(bytes_missing, bytes_kept, node.config.stage_disk_bytes)
}

fn refuse_beyond(bytes_missing: u64, bytes_kept: u64, bytes_max: u64) -> Result<(), Refusal> {
    if bytes_missing == 0 || bytes_missing.saturating_add(bytes_kept) <= bytes_max {
        return Ok(());
    }
    let why = format!(
        "{bytes_missing} bytes are missing here, stages keep {bytes_kept} of the same files, and may take {bytes_max} of the disk"
    );
    Err(Refusal::new(Reason::Limit, "a stage", why).try_this("more stages, or a higher stage_disk_bytes"))
}

/// Keeps blobs in the stage cache, where those that were used longest ago make room.
pub(crate) async fn keep(node: &Node, hashes: &[BlobHash]) -> Result<(), Refusal> {
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    let kept = node.registry.blobs().protect_stage(hashes, now_ms, node.config.stage_disk_bytes).await;
    kept.map(drop).map_err(|error| Refusal::internal("the stage cache", error))
}

async fn load_engine(
    node: &Node,
    request: &StageRequest,
    context: u32,
    model: &Model,
    tensors: &[TensorEntry],
    source: &BlobTensors,
) -> Result<StageHandle, Refusal> {
    let options = LoadOptions { context, planes: request.planes };
    let held = as_loaded(tensors, request.quantise);
    let load = patiently(|done| {
        let source: Box<dyn TensorSource> = match request.quantise {
            Some(_) => Box::new(Quantising::new(source.clone(), tensors.to_vec())),
            None => Box::new(source.clone()),
        };
        node.engine.load(model.clone(), held.to_vec(), request.part, options, source, done);
    });
    load.await
}

/// Loads. Memory of weights that were just dropped comes back when the engine's thread gets to it, so its refusal for
/// want of memory is taken only when it lasts.
pub(super) async fn patiently<T: Send + 'static>(
    load: impl Fn(Box<dyn FnOnce(Result<T, LoadError>) + Send>),
) -> Result<T, Refusal> {
    let deadline = Instant::now() + MEMORY_PATIENCE;
    loop {
        let (done, loaded) = oneshot::channel();
        load(Box::new(move |result| drop(done.send(result))));
        match loaded.await {
            Ok(Ok(loaded)) => return Ok(loaded),
            Ok(Err(LoadError::Memory { .. })) if Instant::now() < deadline => {
                tokio::time::sleep(MEMORY_PATIENCE / 50).await;
            }
            Ok(Err(error)) => return Err(load_refusal(&error)),
            Err(_) => return Err(load_refusal(&LoadError::Stopped)),
        }
    }
}

/// The engine's view of the blob store. Called on the loader thread, which is not the runtime's.
#[derive(Clone)]
pub(crate) struct BlobTensors {
    blobs: Blobs,
    files: Vec<BlobHash>,
    runtime: tokio::runtime::Handle,
    saves: Option<Packed>,
}

impl BlobTensors {
    /// Reads a revision's tensors, from a thread that is not the runtime's.
    pub fn new(node: &Node, manifest: &Manifest) -> Self {
        let files = manifest.files.iter().map(|file| file.blake3).collect();
        let (blobs, runtime) = (node.registry.blobs().clone(), tokio::runtime::Handle::current());
        Self { blobs, files, runtime, saves: None }
    }

    /// With a place for the weights of one part in the engine's form.
    fn saved(self, node: &Node, request: &StageRequest) -> Self {
        Self { saves: Packed::of(node, request), ..self }
    }
}

impl TensorSource for BlobTensors {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        let hash = *self.files.get(entry.file as usize).ok_or_else(|| SourceError("a tensor of no file".to_owned()))?;
        let bytes = self.runtime.block_on(self.blobs.read(hash, entry.offset..entry.offset + entry.length));
        bytes.map(Vec::from).map_err(|error| SourceError(error.to_string()))
    }

    fn saves(&mut self) -> Option<&mut dyn Saves> {
        self.saves.as_mut().map(|saves| saves as &mut dyn Saves)
    }
}

fn corrupt(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Corrupt, "the revision", error.to_string()).try_this("its publisher, to publish it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_takes_no_more_disk_bit_by_bit_than_at_once() {
        assert!(refuse_beyond(60, 0, 100).is_ok());
        assert!(refuse_beyond(60, 40, 100).is_ok());
        assert!(refuse_beyond(60, 41, 100).is_err());
        assert!(refuse_beyond(0, 500, 100).is_ok(), "what is here is used");
        assert!(refuse_beyond(u64::MAX, 1, u64::MAX - 1).is_err());
    }

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
