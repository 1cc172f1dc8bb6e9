//! A model loaded for its task: found warm, or fetched, read and kept warm under the memory that stages and tasks share.
//!
//! Invariant: bytes reach the model only through the blob store, which has verified them; memory is taken before anything
//! is fetched, and given back when the model goes. What a stranger's tokenizer takes part in runs on a blocking thread,
//! where a panic is a refusal.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cairn_compute::{
    LoadError as EngineError,
    engine::Share,
    tasks::embed::{Embedder, Encoded},
};
use cairn_protocol::{
    manifest::{Manifest, ManifestFile},
    peer_pb,
    refusal::{Reason, Refusal},
};
use tokio::time::Instant;

use super::{
    known::{self, Known},
    request::TaskRequest,
};
use crate::{
    data::fetch::Source,
    flows::{advisories, holders},
    panics,
    shell::Node,
    stages::{self, Asker, BlobTensors, Reservation},
};

/// How long memory that was just given back may take to be free: one pass of a stage.
const MEMORY_PATIENCE: Duration = Duration::from_secs(1);

/// A loaded model, shared by the tasks that use it.
pub(crate) struct TaskModel {
    /// It.
    pub embedder: Arc<Embedder>,
    /// Its memory.
    pub reservation: Reservation,
}

/// How far the fetch is, for signs of life.
#[derive(Default)]
pub(super) struct Fetched {
    done: AtomicU64,
    needed: AtomicU64,
}

impl Fetched {
    /// As a sign of life.
    pub fn beat(&self) -> peer_pb::TaskBeat {
        let (bytes_done, bytes_needed) = (self.done.load(Ordering::Relaxed), self.needed.load(Ordering::Relaxed));
        peer_pb::TaskBeat { bytes_done, bytes_needed }
    }
}

/// Finds the model warm, or loads it. Dropping the future stops a fetch; a load that has begun ends by itself and is freed.
pub(super) async fn load(
    node: &Arc<Node>,
    request: &TaskRequest,
    asker: &Asker,
    fetched: &Fetched,
) -> Result<Arc<TaskModel>, Refusal> {
    let (rooms, revision) = (node.stages.rooms(), request.revision);
    let sources = sources(node, request).await;
    let manifest = holders::ensure_manifest_from(node, revision, &sources).await?;
    advisories::permit_revision(node, &manifest.repo, revision, Some(&manifest), &[]).await?;
    if manifest.repo.publisher != request.publisher || manifest.realm != request.realm {
        let why = "the revision is of another publisher or realm than it says";
        return Err(Refusal::new(Reason::BadInput, "a task", why).try_this("cairn show"));
    }
    stages::prove_publisher(node, revision, &manifest, asker).await?;
    let _turn = rooms.task_turn(revision).await;
    if let Some(model) = rooms.find_warm_task(revision) {
        return Ok(model);
    }
    let known = known::known(node, &revision.short(), revision, &manifest, &sources).await?;
    let reservation = rooms.reserve(known.recipe.memory())?;
    let tokenizer = fetch(node, request, &manifest, &known, &sources, fetched).await?;
    let share = engine_share(node, known.recipe.memory()).await?;
    let model = Arc::new(read(node, &manifest, &known, tokenizer, share, reservation).await?);
    rooms.keep_warm_task(revision, model.clone());
    Ok(model)
}

/// Holders as the asking node names them, then those this node knows itself.
async fn sources(node: &Node, request: &TaskRequest) -> Vec<Source> {
    let own = node.identity.node_id();
    let named = request.sources.iter().map(|s| Source { node: s.node, addresses: s.addresses.clone() });
    let mut sources: Vec<Source> = Vec::new();
    for source in named.chain(holders::holders(node, request.revision)) {
        if source.node != own && !sources.iter().any(|s| s.node == source.node) {
            sources.push(source);
        }
    }
    sources
}

/// Brings what is missing of the weights and the tokenizer, keeps it in the stage cache, and returns the tokenizer.
async fn fetch(
    node: &Arc<Node>,
    request: &TaskRequest,
    manifest: &Manifest,
    known: &Known,
    sources: &[Source],
    fetched: &Fetched,
) -> Result<(String, Vec<u8>), Refusal> {
    let path = known.recipe.tokenizer_file();
    let tokenizer = known::file_of(manifest, &path);
    let weights = known.recipe.weights_files(&known.files);
    let weights: Vec<&ManifestFile> = weights.iter().filter_map(|at| manifest.files.get(*at as usize)).collect();
    let files: Vec<&ManifestFile> = weights.iter().copied().chain(tokenizer).collect();
    check_disk(node, &files).await?;
    fetched.needed.store(files.iter().map(|file| file.size).sum(), Ordering::Relaxed);
    let (blobs, mut pins, mut hashes) = (node.registry.blobs(), Vec::new(), vec![request.revision.blob()]);
    let mut before = 0;
    for file in &files {
        pins.push(blobs.temp_pin(file.blake3).await);
        hashes.push(file.blake3);
        let (whole, progress) = (0..file.size, |bytes| fetched.done.store(before + bytes, Ordering::Relaxed));
        let wanted = std::slice::from_ref(&whole);
        node.data.fetch_ranges(node, file.blake3, file.size, wanted, sources, progress).await?;
        before += file.size;
    }
    stages::keep(node, &hashes).await?;
    let bytes = match tokenizer {
        Some(file) => known::read(node, file, sources).await?.to_vec(),
        None => Vec::new(),
    };
    Ok((path, bytes))
}

/// Whether what is missing fits the disk that stages and tasks may take.
async fn check_disk(node: &Node, files: &[&ManifestFile]) -> Result<(), Refusal> {
    let (mut missing, most) = (0, node.config.stage_disk_bytes);
    for file in files {
        let whole = 0..file.size;
        let ranges = node.registry.blobs().missing(file.blake3, file.size, std::slice::from_ref(&whole)).await;
        let ranges = ranges.map_err(|error| Refusal::internal("the blob store", error))?;
        missing += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    }
    if missing <= most {
        return Ok(());
    }
    let why = format!("{missing} bytes of the model are missing here, and it may take {most} of the disk");
    Err(Refusal::new(Reason::Limit, "a task", why).try_this("a node that holds it, or a higher stage_disk_bytes"))
}

/// The engine's share of memory. What was just given up comes back within a pass.
async fn engine_share(node: &Node, bytes: u64) -> Result<Share, Refusal> {
    let deadline = Instant::now() + MEMORY_PATIENCE;
    loop {
        match node.engine.reserve(bytes) {
            Ok(share) => return Ok(share),
            Err(EngineError::Memory { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(MEMORY_PATIENCE / 50).await;
            }
            Err(error) => {
                return Err(Refusal::new(Reason::NoMemory, "the model", error.to_string()).try_this("another node"));
            }
        }
    }
}

async fn read(
    node: &Node,
    manifest: &Manifest,
    known: &Known,
    tokenizer: (String, Vec<u8>),
    share: Share,
    reservation: Reservation,
) -> Result<TaskModel, Refusal> {
    let mut files = known.files.clone();
    if !tokenizer.1.is_empty() {
        files.small.insert(tokenizer.0, tokenizer.1);
    }
    let mut source = BlobTensors::new(node, manifest);
    guarded("loading a model for a task", move || {
        let embedder = Embedder::load(&files, &mut source, Some(share));
        let embedder = embedder.map_err(|error| known::unserved("the model", &error))?;
        Ok(TaskModel { embedder: Arc::new(embedder), reservation })
    })
    .await
}

/// The ids of texts.
pub(super) async fn encode(model: &Arc<TaskModel>, request: &TaskRequest) -> Result<Encoded, Refusal> {
    let (embedder, texts, prompt) = (model.embedder.clone(), request.texts.clone(), request.prompt.clone());
    guarded("encoding texts", move || {
        let encoded = embedder.encode(&texts, prompt.as_deref());
        encoded.map_err(|error| Refusal::new(Reason::BadInput, "the texts", error.to_string()).try_this("other texts"))
    })
    .await
}

/// Does what a stranger's files take part in, away from the async workers and with panics caught. It goes on to its end if
/// this future is dropped.
async fn guarded<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(move || panics::catch(what, work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(why)) => {
            Err(Refusal::new(Reason::Unsupported, "the model", format!("{what} failed: {why}"))
                .try_this("another model"))
        }
        Err(error) => Err(Refusal::internal(what, error)),
    }
}
