//! Quantising: a model that some node has becomes a revision of one's own repo, smaller, with where it came from.
//!
//! What becomes of each tensor is [`cairn_compute::quantise`]'s, signing and committing [`super::publish`]'s. Here is the order:
//! name, manifest, the bytes of the model's tensors, the new file in the home's working folder, publication.
//!
//! Invariant: the working folder is gone when the job ends, however it ends; what a killed daemon left goes at the next start.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    ops::{ControlFlow, Range},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use cairn_compute::{
    arch::{self, StagePart},
    quantise::{Existing, QuantiseError, Recipe, Target},
};
use cairn_protocol::{
    api, gguf,
    manifest::{Manifest, ManifestFile, Model, Naming, TensorEntry},
    refusal::{Reason, Refusal},
};
use cairn_registry::{PinClass, Resolved, Transfer};
use tempfile::TempDir;
use tokio::sync::mpsc::Sender;

use super::{
    advisories,
    bring::{self, Wanted},
    disk, holders, names, plan,
    publish::{self, MadeFrom, Wish},
    scan::UnsafeFiles,
};
use crate::{panics, shell::Node, stages::BlobTensors};

/// Files beside the weights that a model is used with; what else there is, is about the weights as they were.
const BESIDE: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
];
/// Largest of them that is taken along.
const BESIDE_BYTES_MAX: u64 = 64 << 20;

/// Answers `Quantise`.
pub async fn quantise(
    node: Arc<Node>,
    request: api::QuantiseRequest,
    events: Sender<api::PublishEvent>,
) -> Result<(), Refusal> {
    let target: Target = request.r#type.parse().map_err(|error| publish::bad(&request.r#type, &error))?;
    let (path, branch) = publish::place(&request.repo)?;
    let tag = publish::tag(&request.tag)?;
    let job = Job::new(&node, &request.source, target, &events).await?;
    let folder = job.folder(&path).await?;
    let made_from = job.made_from();
    let message = if request.message.is_empty() { job.message() } else { request.message };
    // The new file is the only name of its bytes, so a link takes them in without copying.
    let (source, transfer) = (folder.path().to_path_buf(), Transfer::HardLink);
    let unsafe_files = UnsafeFiles::Refuse;
    let wish = Wish { source, path, branch, tag, message, transfer, made_from, unsafe_files };
    publish::bring_in(&node, wish, events.clone()).await
}

/// A model to quantise, with all that is read of it here.
struct Job<'a> {
    node: &'a Arc<Node>,
    resolved: Resolved,
    manifest: Manifest,
    model: Model,
    target: Target,
    events: &'a Sender<api::PublishEvent>,
}

impl<'a> Job<'a> {
    async fn new(
        node: &'a Arc<Node>,
        source: &str,
        target: Target,
        events: &'a Sender<api::PublishEvent>,
    ) -> Result<Self, Refusal> {
        let name = names::parse(source)?;
        let resolved = names::resolve_newest(node, &name).await?;
        let manifest = holders::manifest_of(node, &resolved).await?;
        advisories::permit(node, &resolved, &manifest, &[]).await?;
        let model = plan::served_model(source, &manifest)?.clone();
        names::remember(node, &name, &resolved).await;
        Ok(Self { node, resolved, manifest, model, target, events })
    }

    /// Fetches, quantises, and leaves a folder to publish.
    async fn folder(&self, path: &cairn_protocol::name::RepoPath) -> Result<TempDir, Refusal> {
        let tensors = self.tensors()?;
        let beside = self.beside();
        let wanted = wanted(&self.manifest, &tensors, &beside);
        let total = wanted.iter().flat_map(|w| &w.ranges).map(|r| r.end - r.start).sum();
        let blobs = self.node.registry.blobs();
        let mut pins = Vec::with_capacity(wanted.len());
        for want in &wanted {
            pins.push(blobs.temp_pin(want.hash).await);
        }
        let class = PinClass::StageCache { now_ms: now_ms(), bytes_max: self.node.config.stage_disk_bytes };
        bring::bring(self.node, self.resolved.revision, &wanted, class, |done, item| {
            self.tell("fetch", done, total, item);
        })
        .await?;
        let folder = self.node.home.working("quantise-")?;
        for file in &beside {
            let bytes = blobs.read_all(file.blake3, BESIDE_BYTES_MAX).await;
            let bytes = bytes.map_err(|error| Refusal::internal(self.what(), error))?;
            write(folder.path(), file.path.as_str(), &bytes)?;
        }
        let recipe = self.recipe(&tensors).await?;
        disk::refuse_full(self.node, recipe.bytes())?;
        let name = format!("{}.{}.gguf", path.name, self.target.dtype().name());
        self.write(recipe, folder.path().join(name)).await?;
        drop(pins);
        Ok(folder)
    }

    /// All tensors of a GGUF file; of other files, those that the model is computed with.
    fn tensors(&self) -> Result<Vec<TensorEntry>, Refusal> {
        if self.model.naming == Naming::Gguf {
            return Ok(self.manifest.tensors.clone());
        }
        let part = StagePart::whole(self.model.layers);
        let tensors = arch::stage_tensors(&self.model, &self.manifest.tensors, &part);
        let tensors = tensors.map_err(|error| unsupported(&self.what(), error.to_string()))?;
        Ok(tensors.into_iter().cloned().collect())
    }

    fn beside(&self) -> Vec<&ManifestFile> {
        let is_taken = |f: &&ManifestFile| BESIDE.contains(&f.path.as_str()) && f.size <= BESIDE_BYTES_MAX;
        self.manifest.files.iter().filter(is_taken).collect()
    }

    async fn recipe(&self, tensors: &[TensorEntry]) -> Result<Recipe, Refusal> {
        let refused = |error| refusal(&self.what(), &error);
        if self.model.naming == Naming::HuggingFace {
            return Recipe::of_folder(&self.model, tensors, self.target).map_err(refused);
        }
        let index = tensors.first().map_or(0, |t| t.file);
        if tensors.iter().any(|t| t.file != index) {
            return Err(unsupported(&self.what(), "its tensors lie in several GGUF files".to_owned()));
        }
        let corrupt = |why: String| Refusal::new(Reason::Corrupt, self.what(), why).try_this("cairn verify");
        let file = self.manifest.files.get(index as usize).ok_or_else(|| corrupt("a tensor of no file".to_owned()))?;
        let opening = self.node.registry.blobs().read(file.blake3, 0..file.header_bytes).await;
        let opening = opening.map_err(|error| corrupt(error.to_string()))?;
        let header = gguf::parse_header(&opening, file.size).map_err(|error| corrupt(error.to_string()))?;
        Recipe::of_gguf(&opening, &header, tensors, self.target, Existing::Keep).map_err(refused)
    }

    /// Writes the new file on a blocking thread, which stops when nobody listens any more.
    async fn write(&self, recipe: Recipe, to: std::path::PathBuf) -> Result<(), Refusal> {
        let (events, total, what) = (self.events.clone(), recipe.bytes(), self.what());
        let mut source = BlobTensors::new(self.node, &self.manifest);
        let work = move || {
            let mut out = BufWriter::new(File::create(&to).map_err(QuantiseError::Write)?);
            recipe.write(&mut source, &mut out, &mut |done| {
                tell(&events, "quantise", done, total, &what);
                if events.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            out.flush().map_err(QuantiseError::Write)
        };
        let worked = tokio::task::spawn_blocking(move || panics::catch("quantising", work)).await;
        let worked = worked.map_err(|error| Refusal::internal(self.what(), error))?;
        worked.map_err(|why| Refusal::internal(self.what(), why))?.map_err(|error| refusal(&self.what(), &error))
    }

    fn made_from(&self) -> MadeFrom {
        let base = format!("{}@{}", self.resolved.path, self.resolved.revision);
        // The first two are what the Hub calls them in a model's card.
        let metadata = [
            ("base_model", base),
            ("base_model_relation", "quantized".to_owned()),
            ("quantised_to", self.target.name().to_owned()),
        ];
        MadeFrom {
            revisions: vec![self.resolved.revision],
            relation: "quantized",
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
        }
    }

    fn message(&self) -> String {
        format!("{} of {}@{}", self.target.name(), self.resolved.path, self.resolved.revision.short())
    }

    fn what(&self) -> String {
        self.resolved.path.to_string()
    }

    fn tell(&self, phase: &str, done: u64, total: u64, item: &str) {
        tell(self.events, phase, done, total, item);
    }
}

/// A reader that lags sees fewer steps.
fn tell(events: &Sender<api::PublishEvent>, phase: &str, bytes_done: u64, bytes_total: u64, item: &str) {
    let progress = api::Progress { phase: phase.to_owned(), bytes_done, bytes_total, item: item.to_owned(), place: 0 };
    let _ = events.try_send(api::PublishEvent { event: Some(api::publish_event::Event::Progress(progress)) });
}

/// Tensors with the headers of their files, and whole files.
fn wanted(manifest: &Manifest, tensors: &[TensorEntry], beside: &[&ManifestFile]) -> Vec<Wanted> {
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut want = |file: &ManifestFile, range: Range<u64>| {
        match wanted.iter_mut().find(|w| w.hash == file.blake3) {
            Some(known) => known.ranges.push(range),
            None => wanted.push(Wanted {
                path: file.path.to_string(),
                hash: file.blake3,
                size: file.size,
                ranges: vec![range],
            }),
        };
    };
    beside.iter().for_each(|file| want(file, 0..file.size));
    for tensor in tensors {
        let Some(file) = manifest.files.get(tensor.file as usize) else { continue };
        want(file, 0..file.header_bytes);
        want(file, tensor.offset..tensor.offset.saturating_add(tensor.length));
    }
    for want in &mut wanted {
        want.ranges.sort_unstable_by_key(|range| (range.start, range.end));
        want.ranges.dedup();
    }
    wanted
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
    fs::write(folder.join(name), bytes).map_err(|error| unwritten(name, &error))
}

fn unwritten(what: &str, error: &io::Error) -> Refusal {
    let is_full = error.kind() == io::ErrorKind::StorageFull;
    let (reason, attempt) = match is_full {
        true => (Reason::DiskFull, "making room on the disk of the daemon's home"),
        false => (Reason::Internal, "the node's log"),
    };
    Refusal::new(reason, what, error.to_string()).try_this(attempt)
}

fn unsupported(what: &str, why: String) -> Refusal {
    Refusal::new(Reason::Unsupported, what, why).try_this("another model")
}

fn refusal(what: &str, error: &QuantiseError) -> Refusal {
    let why = error.to_string();
    match error {
        QuantiseError::Write(error) => unwritten(what, error),
        QuantiseError::Nothing(_) => {
            Refusal::new(Reason::BadInput, what, why).try_this("a type of fewer bits, or a model in full precision")
        }
        QuantiseError::NotFinite(_) | QuantiseError::Source { .. } => {
            Refusal::new(Reason::Corrupt, what, why).try_this("cairn verify")
        }
        QuantiseError::Cancelled => Refusal::new(Reason::Cancelled, what, why).try_this("the same again"),
        QuantiseError::Library { .. } => Refusal::internal(what, why),
        QuantiseError::Files(_)
        | QuantiseError::Stage(_)
        | QuantiseError::NoContainer(_)
        | QuantiseError::Type { .. } => unsupported(what, why),
    }
}

fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}
