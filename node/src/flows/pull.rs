//! Pulling: a person wants a revision here, perhaps in a folder of theirs; and reading verified bytes of one file.
//!
//! Names are [`super::names`]', sources [`super::holders`]', bytes [`super::bring`]'s; this puts them in order and reports.
//! Invariant: what was exported was whole and verified; a damaged copy on this disk is thrown away and fetched anew.

use std::{io::ErrorKind, ops::Range, path::PathBuf, sync::Arc, time::Instant};

use cairn_protocol::{
    api,
    id::{BlobHash, RevisionId},
    layers::LayerRange,
    limits::PIECE_BYTES_MAX,
    manifest::Manifest,
    name::{FilePath, RepoPath},
    refusal::{Reason, Refusal},
};
use cairn_registry::{BlobError, ExportError, ExportReport, HubName, PinClass, Resolved, Transfer, hub_commit};
use tokio::sync::mpsc::Sender;

use super::bring::{self, Selection, Wanted, bring, select, whole_files};
use super::{advisories, announce, names};
pub use super::{
    holders::{ensure_manifest, ensure_manifest_from, holders, manifest_of},
    names::resolve_anywhere,
};
use crate::{data::fetch::FetchReport, shell::Node};

/// Answers `Pull`.
pub async fn pull(node: Arc<Node>, request: api::PullRequest, events: Sender<api::PullEvent>) -> Result<(), Refusal> {
    pull_as(node, request, Layout::Folder, events).await
}

/// How files lie in the folder that they are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// As the revision names them.
    Folder,
    /// As the Hub's own clients lay out their cache.
    HubCache,
}

/// Fetches, verifies and writes to a folder if one is named.
pub(super) async fn pull_as(
    node: Arc<Node>,
    request: api::PullRequest,
    layout: Layout,
    events: Sender<api::PullEvent>,
) -> Result<(), Refusal> {
    let started = Instant::now();
    let name = names::parse(&request.repo)?;
    let wish = Wish { layout, ..Wish::new(&request)? };
    let resolved = names::resolve_newest(&node, &name).await?;
    let manifest = manifest_of(&node, &resolved).await.map_err(|refusal| about(&resolved, refusal))?;
    let notices = advisories::permit(&node, &resolved, &manifest, &request.despite).await?;
    let wanted = select(&manifest, &wish.selection)?;
    let pull = Pull { node: &node, resolved: &resolved, manifest: &manifest, wanted: &wanted, events: &events };
    let mut report = pull.fetch().await?;
    names::remember(&node, &name, &resolved).await;
    let exported = match &wish.to {
        Some(to) => Some(pull.export(&wish, to, &mut report).await?),
        None => None,
    };
    let files = whole_files(&manifest, &wish.selection)?.len() as u64;
    let mut done = pulled(&resolved, &manifest, files, report, exported, started);
    if layout == Layout::HubCache {
        done.commit = hub_commit(resolved.revision);
    }
    for notice in &notices {
        done.advisories.push(advisories::told(&node, notice).await?);
    }
    // A client that hung up has its bytes here all the same.
    let _ = events.send(api::PullEvent { event: Some(api::pull_event::Event::Done(done)) }).await;
    Ok(())
}

struct Wish {
    selection: Selection,
    to: Option<PathBuf>,
    transfer: Transfer,
    layout: Layout,
}

impl Wish {
    fn new(request: &api::PullRequest) -> Result<Wish, Refusal> {
        let layers = match (request.layers_from, request.layers_to) {
            (0, 0) => None,
            (from, to) => Some(LayerRange::new(from, to).filter(|range| !range.is_empty()).ok_or_else(|| {
                Refusal::new(Reason::BadInput, format!("layers {from}..{to}"), "the range is empty")
                    .try_this("--layers 0..10")
            })?),
        };
        let to = (!request.to.is_empty()).then(|| PathBuf::from(&request.to));
        if let Some(to) = to.as_ref().filter(|to| !to.is_absolute()) {
            let why = "the folder must be absolute, for the daemon has another working folder";
            return Err(Refusal::new(Reason::BadInput, to.display().to_string(), why).try_this("the whole path from /"));
        }
        if to.is_some() && layers.is_some() && request.include.is_empty() {
            let why = "layers are parts of files, and only whole files can be written to a folder";
            return Err(Refusal::new(Reason::BadInput, "--layers with --to", why).try_this("without --to"));
        }
        let transfer = if request.link { Transfer::HardLink } else { Transfer::Copy };
        Ok(Wish {
            selection: Selection { include: request.include.clone(), layers },
            to,
            transfer,
            layout: Layout::Folder,
        })
    }
}

struct Pull<'a> {
    node: &'a Arc<Node>,
    resolved: &'a Resolved,
    manifest: &'a Manifest,
    wanted: &'a [Wanted],
    events: &'a Sender<api::PullEvent>,
}

impl Pull<'_> {
    async fn fetch(&self) -> Result<FetchReport, Refusal> {
        let total = needed(self.wanted);
        let tell = |done: u64, item: &str| self.tell("fetch", done, total, item);
        let refused = |refusal| about(self.resolved, refusal);
        refuse_wrong_sizes(self.node, self.wanted).await.map_err(refused)?;
        let brought =
            bring(self.node, self.resolved.revision, self.wanted, PinClass::Record, tell).await.map_err(refused)?;
        // A blob that was not here tells its size only now.
        refuse_wrong_sizes(self.node, self.wanted).await.map_err(refused)?;
        Ok(brought)
    }

    /// Writes the whole files; a damaged one is thrown away and fetched once more.
    async fn export(
        &self,
        wish: &Wish,
        to: &std::path::Path,
        report: &mut FetchReport,
    ) -> Result<ExportReport, Refusal> {
        let files = whole_files(self.manifest, &wish.selection)?;
        let files: Vec<FilePath> = files.into_iter().map(|file| file.path.clone()).collect();
        match self.write(&files, to, wish).await {
            Err(ExportError::Corrupt { path, blob }) => {
                tracing::warn!(%path, %blob, "a file is damaged on this disk and is fetched anew");
                throw_away(self.node, self.resolved.revision, blob).await?;
                report.add(FetchReport { bytes_needed: 0, bytes_local: 0, ..self.fetch().await? });
                self.write(&files, to, wish).await.map_err(|error| self.export_refusal(to, error))
            }
            exported => exported.map_err(|error| self.export_refusal(to, error)),
        }
    }

    async fn write(&self, files: &[FilePath], to: &std::path::Path, wish: &Wish) -> Result<ExportReport, ExportError> {
        let item = to.display().to_string();
        let tell = |done: cairn_registry::Progress| self.tell("export", done.done, done.total, &item);
        let (registry, revision) = (&self.node.registry, self.resolved.revision);
        match wish.layout {
            Layout::Folder => registry.export(revision, files, to, wish.transfer, tell).await,
            Layout::HubCache => {
                registry.export_to_hub_cache(revision, files, to, &self.hub_name(), wish.transfer, tell).await
            }
        }
    }

    /// The publisher as people write it here, which stands for the Hub's organisation.
    fn hub_name(&self) -> HubName {
        let path: Option<RepoPath> = self.resolved.path.parse().ok();
        let publisher =
            path.map_or_else(|| self.resolved.repo.publisher.to_string(), |path| path.publisher.to_string());
        HubName {
            kind: self.resolved.repo.kind,
            publisher,
            name: self.resolved.repo.name.to_string(),
            reference: self.resolved.ref_name.clone(),
        }
    }

    fn export_refusal(&self, to: &std::path::Path, error: ExportError) -> Refusal {
        let why = error.to_string();
        let (reason, advice) = match &error {
            ExportError::Write { error, .. } if error.kind() == ErrorKind::StorageFull => {
                (Reason::DiskFull, "another disk, or making room")
            }
            ExportError::NoSuchFile { .. } | ExportError::NotHeld { .. } => (Reason::NotFound, "the same again"),
            ExportError::Corrupt { .. } => (Reason::Corrupt, "cairn verify, then the same again"),
            ExportError::WrongSize { .. } => (Reason::Corrupt, "another revision"),
            ExportError::LeadsOut(_) | ExportError::NotAFolder(_) | ExportError::Write { .. } => {
                (Reason::BadInput, "another folder")
            }
            ExportError::Hold(_) => (Reason::Internal, "the node's log"),
        };
        Refusal::new(reason, format!("{} to {}", self.resolved.path, to.display()), why).try_this(advice)
    }

    fn tell(&self, phase: &str, done: u64, total: u64, item: &str) {
        let progress = api::Progress {
            phase: phase.to_owned(),
            bytes_done: done,
            bytes_total: total,
            item: item.to_owned(),
            place: 0,
        };
        // A reader that lags sees fewer steps.
        let _ = self.events.try_send(api::PullEvent { event: Some(api::pull_event::Event::Progress(progress)) });
    }
}

/// A blob of another size than the manifest states is right by its hash; it is the manifest that can't be trusted.
async fn refuse_wrong_sizes(node: &Node, wanted: &[Wanted]) -> Result<(), Refusal> {
    for want in wanted {
        let actual = node.registry.blobs().size(want.hash).await.map_err(|error| read_refusal(want.hash, &error))?;
        if let Some(actual) = actual.filter(|actual| *actual != want.size) {
            let why = format!("the manifest states {} bytes, and the blob that it names has {actual}", want.size);
            return Err(Refusal::new(Reason::Corrupt, want.path.clone(), why).try_this("another revision"));
        }
    }
    Ok(())
}

/// Throws a damaged blob away; no kept revision that contains it is a whole copy until it was fetched anew.
pub(crate) async fn throw_away(node: &Node, revision: RevisionId, blob: BlobHash) -> Result<(), Refusal> {
    announce::lost(node, revision).await;
    announce::lost_blob(node, blob).await;
    let thrown = node.registry.blobs().quarantine(blob).await;
    thrown.map_err(|error| {
        Refusal::new(
            Reason::Corrupt,
            format!("blob {}", blob.short()),
            format!("it is damaged on this disk, and {error}"),
        )
        .try_this("restarting the daemon, then the same again")
    })
}

fn needed(wanted: &[Wanted]) -> u64 {
    wanted.iter().flat_map(|want| &want.ranges).map(|range| range.end - range.start).sum()
}

fn pulled(
    resolved: &Resolved,
    manifest: &Manifest,
    files: u64,
    report: FetchReport,
    exported: Option<ExportReport>,
    started: Instant,
) -> api::Pulled {
    let bytes_from = report.from.iter().map(|(node, bytes)| api::BytesFrom { node: node.to_string(), bytes: *bytes });
    api::Pulled {
        repo: resolved.path.clone(),
        revision: resolved.revision.to_string(),
        bytes_total: manifest.bytes(),
        bytes_needed: report.bytes_needed,
        bytes_local: report.bytes_local,
        bytes_fetched: report.bytes_fetched,
        bytes_overhead: report.bytes_overhead,
        bytes_from: bytes_from.collect(),
        seconds: started.elapsed().as_secs_f64(),
        files_shared: exported.as_ref().map_or(0, |exported| exported.shared),
        path: exported.map(|exported| exported.path.display().to_string()).unwrap_or_default(),
        commit: String::new(),
        files,
        advisories: Vec::new(),
    }
}

/// Answers `ReadBlob`: what is not here of a file is fetched first; a bare hash must be here.
pub async fn read_blob(
    node: Arc<Node>,
    request: api::ReadBlobRequest,
    events: Sender<api::ReadBlobResponse>,
) -> Result<(), Refusal> {
    let (hash, total, source) = match request.what {
        Some(api::read_blob_request::What::Hash(hash)) => by_hash(&node, &hash).await?,
        Some(api::read_blob_request::What::File(file)) => by_file(&node, &file).await?,
        None => return Err(Refusal::new(Reason::BadInput, "reading", "neither a hash nor a file was named")),
    };
    let range = slice(request.offset, request.length, total)?;
    let blobs = node.registry.blobs();
    let _pin = blobs.temp_pin(hash).await;
    if let Some((revision, path)) = source {
        let ranges = std::iter::once(range.clone()).collect();
        let wanted = [Wanted { path, hash, size: total, ranges }];
        refuse_wrong_sizes(&node, &wanted).await?;
        bring::fetch_all(&node, revision, &wanted, |_, _| {}).await?;
        refuse_wrong_sizes(&node, &wanted).await?;
    }
    let mut offset = range.start;
    loop {
        let end = range.end.min(offset + PIECE_BYTES_MAX as u64);
        let data = blobs.read(hash, offset..end).await.map_err(|error| read_refusal(hash, &error))?;
        if events.send(api::ReadBlobResponse { data: data.into(), offset, total }).await.is_err() || end == range.end {
            return Ok(());
        }
        offset = end;
    }
}

type Found = (BlobHash, u64, Option<(RevisionId, String)>);

async fn by_hash(node: &Node, hash: &str) -> Result<Found, Refusal> {
    let parsed: BlobHash = hash.parse().map_err(|_| {
        Refusal::new(Reason::BadInput, hash, "a blob's hash is 64 hex digits").try_this("cairn show REPO")
    })?;
    let size = node.registry.blobs().size(parsed).await.map_err(|error| read_refusal(parsed, &error))?;
    let size = size.ok_or_else(|| {
        Refusal::new(Reason::NotFound, hash, "this blob is not here as a whole").try_this("naming a repo's file")
    })?;
    Ok((parsed, size, None))
}

async fn by_file(node: &Node, file: &api::FileOf) -> Result<Found, Refusal> {
    let resolved = resolve_anywhere(node, &names::parse(&file.repo)?).await?;
    let manifest = manifest_of(node, &resolved).await.map_err(|refusal| about(&resolved, refusal))?;
    let found = manifest.file(&file.path).ok_or_else(|| {
        Refusal::new(Reason::NotFound, format!("{} {}", resolved.path, file.path), "the revision has no such file")
            .try_this(format!("cairn show {}", resolved.path))
    })?;
    Ok((found.blake3, found.size, Some((resolved.revision, file.path.clone()))))
}

fn slice(offset: u64, length: u64, total: u64) -> Result<Range<u64>, Refusal> {
    if offset > total {
        let why = format!("it begins at {offset}, the file has {total} bytes");
        return Err(Refusal::new(Reason::BadInput, "the range", why));
    }
    let end = if length == 0 { total } else { offset.saturating_add(length).min(total) };
    Ok(offset..end)
}

fn read_refusal(hash: BlobHash, error: &BlobError) -> Refusal {
    let reason = match error {
        BlobError::NotHeld { .. } => Reason::NotFound,
        BlobError::Corrupt { .. } => Reason::Corrupt,
        _ => Reason::Internal,
    };
    Refusal::new(reason, format!("blob {hash}"), error.to_string()).try_this("cairn verify")
}

/// The refusal, naming the repo as people know it.
fn about(resolved: &Resolved, refusal: Refusal) -> Refusal {
    let what = match refusal.what.is_empty() || refusal.what.contains(&resolved.revision.to_string()) {
        true => resolved.path.clone(),
        false => format!("{} {}", resolved.path, refusal.what),
    };
    Refusal { what, ..refusal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_ends_with_the_file_and_does_not_begin_after_it() {
        assert_eq!(slice(0, 0, 10).unwrap(), 0..10);
        assert_eq!(slice(4, 3, 10).unwrap(), 4..7);
        assert_eq!(slice(4, u64::MAX, 10).unwrap(), 4..10);
        assert_eq!(slice(10, 0, 10).unwrap(), 10..10);
        assert!(slice(11, 1, 10).is_err());
    }

    #[test]
    fn layers_are_not_exported_as_if_they_were_files() {
        let request = api::PullRequest { to: "/srv/x".into(), layers_to: 3, ..Default::default() };
        assert!(Wish::new(&request).is_err());
        assert!(Wish::new(&api::PullRequest { to: "x".into(), ..Default::default() }).is_err());
        assert!(Wish::new(&api::PullRequest { layers_from: 3, layers_to: 3, ..Default::default() }).is_err());
    }
}
