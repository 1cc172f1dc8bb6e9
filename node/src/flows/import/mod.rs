//! Importing: what lies elsewhere becomes a signed revision here: a folder, a .gguf file, or a repo of the Hub or of anything that
//! speaks its API.
//!
//! Where a source is, [`source`] knows; the API, [`hub`]; bytes travel in [`download`] and wait in a [`stage`]; publishing is
//! [`super::publish`]'s. Here is the order: listing, what is here already, bytes, publication.
//!
//! Invariant: no byte is published that does not match the digest of the listing; what was downloaded outlives a killed daemon until it
//! is published, and then goes.

mod download;
mod hub;
mod source;
mod stage;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cairn_protocol::{
    api::{self, publish_event::Event},
    manifest::Manifest,
    name::{RefName, RepoPath, RepoRef},
    refusal::{Reason, Refusal},
};
use cairn_registry::{Resolved, Transfer};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc::Sender;

use self::{
    hub::{Hub, Listing, RemoteFile},
    source::HubSource,
    stage::Stage,
};
use super::{
    bring, disk, names,
    publish::{self, MadeFrom, Wish},
    scan::UnsafeFiles,
};
use crate::shell::Node;

/// Files that are downloaded at once; a Hub counts requests, and one stream rarely fills a line.
const FILES_AT_ONCE: usize = 4;

/// Answers `Import`.
pub async fn import(
    node: Arc<Node>,
    request: api::ImportRequest,
    events: Sender<api::PublishEvent>,
) -> Result<(), Refusal> {
    let done = match request.source.contains("://") {
        true => from_hub(&node, &request, &events).await?,
        false => from_disk(&node, &request, &events).await?,
    };
    // A client that hung up after the commit has still imported.
    let _ = events.send(api::PublishEvent { event: Some(Event::Done(done)) }).await;
    Ok(())
}

async fn from_disk(
    node: &Arc<Node>,
    request: &api::ImportRequest,
    events: &Sender<api::PublishEvent>,
) -> Result<api::Published, Refusal> {
    let source = publish::absolute(&request.source)?;
    let wish = wish(request, source, request.message.clone(), Transfer::Copy, MadeFrom::default())?;
    publish::publish_wish(node, wish, events).await
}

fn wish(
    request: &api::ImportRequest,
    source: std::path::PathBuf,
    message: String,
    transfer: Transfer,
    made_from: MadeFrom,
) -> Result<Wish, Refusal> {
    let (path, branch) = publish::place(&request.repo)?;
    let unsafe_files = UnsafeFiles::asked(request.allow_unsafe_files);
    Ok(Wish { source, path, branch, tag: None, message, transfer, made_from, unsafe_files })
}

async fn from_hub(
    node: &Arc<Node>,
    request: &api::ImportRequest,
    events: &Sender<api::PublishEvent>,
) -> Result<api::Published, Refusal> {
    let source: HubSource = request.source.parse()?;
    let (path, branch) = publish::place(&request.repo)?;
    let hub = Hub::new(&request.endpoint, &request.token)?;
    let mut listing = hub.listing(&source).await?;
    choose(&mut listing, request)?;
    let origin = source.at(&listing.commit);
    if let Some(same) = same_files(node, &path, &branch, &listing).await? {
        return Ok(api::Published { imported_from: origin, ..same });
    }
    let job = Job { node, hub: &hub, source: &source, listing: &listing, events, fetched: AtomicU64::new(0) };
    // Other patterns choose other files, and what lies in a stage is published.
    let key = format!("{}\n{origin}\n{:?}\n{:?}", hub.endpoint(), request.include, request.exclude);
    let stage = job.fill(&key).await?;
    let message = match request.message.as_str() {
        "" => format!("Import of {}", source.at(&listing.commit[..listing.commit.len().min(12)])),
        message => message.to_owned(),
    };
    let metadata = vec![("imported_from".to_owned(), origin.clone())];
    let made_from = MadeFrom { metadata, ..MadeFrom::default() };
    // The downloaded file is the only name of its bytes, so a link takes them in without copying.
    let wish = wish(request, stage.files().to_owned(), message, Transfer::HardLink, made_from)?;
    let done = publish::publish_wish(node, wish, events).await?;
    stage.remove();
    Ok(api::Published { imported_from: origin, bytes_fetched: job.fetched.load(Ordering::Relaxed), ..done })
}

/// Leaves the files that were asked for.
fn choose(listing: &mut Listing, request: &api::ImportRequest) -> Result<(), Refusal> {
    let (include, exclude) = (bring::globs(&request.include)?, bring::globs(&request.exclude)?);
    listing.files.retain(|file| {
        let path = file.path.as_str();
        include.as_ref().is_none_or(|globs| globs.is_match(path))
            && !exclude.as_ref().is_some_and(|globs| globs.is_match(path))
    });
    if listing.files.is_empty() {
        return Err(Refusal::new(Reason::NotFound, request.source.clone(), "no file of it is to be imported")
            .try_this("other patterns"));
    }
    Ok(())
}

/// The revision that the branch stands for, if it holds the very files of the listing.
async fn same_files(
    node: &Arc<Node>,
    path: &RepoPath,
    branch: &RefName,
    listing: &Listing,
) -> Result<Option<api::Published>, Refusal> {
    let spec = Some(cairn_protocol::name::RefSpec::Ref(branch.clone()));
    let name = RepoRef { path: path.clone(), spec };
    let own = names::own_keys(node)?;
    let Ok(resolved) = node.registry.resolve(&name, &own).await else { return Ok(None) };
    let manifest = node.registry.manifest(resolved.revision).await;
    let Some(manifest) = manifest.map_err(|error| bring::hold_refusal(resolved.revision, error))? else {
        return Ok(None);
    };
    let is_same = manifest.files.len() == listing.files.len()
        && listing.files.iter().all(|file| manifest.file(file.path.as_str()).is_some_and(|kept| file.is(kept)));
    let is_here = is_same && node.registry.keeps_whole(resolved.revision).await;
    Ok(is_here.then(|| unchanged(path, branch, &resolved, &manifest)))
}

fn unchanged(path: &RepoPath, branch: &RefName, resolved: &Resolved, manifest: &Manifest) -> api::Published {
    api::Published {
        repo: path.to_string(),
        revision: resolved.revision.to_string(),
        r#ref: branch.to_string(),
        epoch: resolved.epoch,
        number: resolved.number,
        files: manifest.files.len() as u64,
        bytes: manifest.bytes(),
        publisher: resolved.repo.publisher.to_string(),
        unchanged: true,
        ..api::Published::default()
    }
}

/// One import from a Hub.
struct Job<'a> {
    node: &'a Arc<Node>,
    hub: &'a Hub,
    source: &'a HubSource,
    listing: &'a Listing,
    events: &'a Sender<api::PublishEvent>,
    /// Bytes that came over the network.
    fetched: AtomicU64,
}

impl Job<'_> {
    /// A stage with all files of the listing, each checked.
    async fn fill(&self, key: &str) -> Result<Stage, Refusal> {
        let stage = Stage::open(&self.node.home, key)?;
        let missing = stage.bytes_missing(&self.listing.files);
        disk::refuse_full(self.node, missing)?;
        let total = self.listing.files.iter().map(|file| file.size).sum();
        let done = AtomicU64::new(0);
        let advance = |file: &RemoteFile, bytes: u64| {
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            self.tell(done, total, file);
        };
        let mut files = Vec::with_capacity(self.listing.files.len());
        for file in &self.listing.files {
            files.push(self.bring(&stage, file, &advance).boxed());
        }
        stream::iter(files).buffer_unordered(FILES_AT_ONCE).try_collect::<()>().await?;
        Ok(stage)
    }

    async fn bring(
        &self,
        stage: &Stage,
        file: &RemoteFile,
        advance: &(dyn Fn(&RemoteFile, u64) + Sync),
    ) -> Result<(), Refusal> {
        if stage.has(file) || self.take_from_store(stage, file).await? {
            advance(file, file.size);
            return Ok(());
        }
        let url = self.hub.url_of(self.source, &self.listing.commit, &file.path)?;
        let fetched = download::download(self.hub, url, file, stage, |bytes| advance(file, bytes)).await?;
        self.fetched.fetch_add(fetched, Ordering::Relaxed);
        Ok(())
    }

    /// A file whose bytes are in the store comes from there: of a new commit, often all but the smallest.
    async fn take_from_store(&self, stage: &Stage, file: &RemoteFile) -> Result<bool, Refusal> {
        let Some(sha256) = file.sha256() else { return Ok(false) };
        let known = self.node.registry.blob_with_sha256(sha256).await;
        let Some(blob) = known.map_err(|error| Refusal::internal("the catalogue", error))? else { return Ok(false) };
        let _pin = self.node.registry.blobs().temp_pin(blob).await;
        let size = self.node.registry.blobs().size(blob).await;
        if !matches!(size, Ok(Some(size)) if size == file.size) {
            return Ok(false);
        }
        match self.node.registry.blobs().path(blob).await {
            Some(path) => stage.link(&path, file).map_err(|error| stage::unwritten(&file.path, &error)),
            None => Ok(false),
        }
    }

    /// A reader that lags sees fewer steps.
    fn tell(&self, bytes_done: u64, bytes_total: u64, file: &RemoteFile) {
        let item = file.path.to_string();
        let progress = api::Progress { phase: "download".to_owned(), bytes_done, bytes_total, item, place: 0 };
        let _ = self.events.try_send(api::PublishEvent { event: Some(Event::Progress(progress)) });
    }
}
