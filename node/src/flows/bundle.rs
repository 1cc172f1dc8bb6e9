//! Bundles: repos leave in one file, and come in from one, where no network leads.
//!
//! The file and its rules are the registry's; here are names, paths, and what peers are told. A file on this machine is written under another name
//! and put in place when it is whole and durable.
//!
//! Invariant: a file of the asked name is a whole bundle or what was there before.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use cairn_protocol::{
    api,
    id::RevisionId,
    limits::PIECE_BYTES_MAX,
    name::RepoRef,
    refusal::{Reason, Refusal},
};
use cairn_registry::{
    Applied, BundleError, CreateError, InsertError, Manner, Progress, Selection, Summary, Totals, Wish,
};
use futures::{Stream, StreamExt};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncWrite, BufReader, BufWriter},
    sync::mpsc::Sender,
};
use tokio_util::{
    io::StreamReader,
    sync::{PollSendError, PollSender},
};

use super::{advisories, announce, holders, names};
use crate::shell::Node;

/// Bytes of a bundle that are read or written at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Advisories that an answer tells of.
const ADVISORIES_MAX: usize = 100;

/// Answers `BundleCreate`.
pub async fn create(
    node: Arc<Node>,
    request: api::BundleCreateRequest,
    events: Sender<api::BundleCreateEvent>,
) -> Result<(), Refusal> {
    let started = Instant::now();
    let wish = Wish {
        selection: selection(&node, &request).await?,
        records_only: request.records_only,
        since: since(&request.since).await?,
    };
    let tell = events.clone();
    let progress = move |read: Progress| {
        let progress = api::BundleProgress { bytes_done: read.done, bytes_total: read.total };
        // A reader that lags sees fewer steps.
        let event = api::bundle_create_event::Event::Progress(progress);
        let _ = tell.try_send(api::BundleCreateEvent { event: Some(event) });
    };
    let (totals, file_bytes) = match request.path.as_str() {
        "" => write_pieces(&node, wish, &events, progress).await?,
        path => write_file(&node, wish, &absolute(path)?, progress).await?,
    };
    let done = api::Bundled { file_bytes, seconds: started.elapsed().as_secs_f64(), ..bundled(&totals) };
    let event = api::bundle_create_event::Event::Done(done);
    // A client that hung up has its file all the same.
    let _ = events.send(api::BundleCreateEvent { event: Some(event) }).await;
    Ok(())
}

async fn selection(node: &Node, request: &api::BundleCreateRequest) -> Result<Selection, Refusal> {
    if request.repos.is_empty() {
        return Ok(if request.catalogue { Selection::Catalogue } else { Selection::Kept });
    }
    let mut these = Vec::with_capacity(request.repos.len());
    for repo in &request.repos {
        let name: RepoRef = names::parse(repo)?;
        let resolved = names::resolve_anywhere(node, &name).await?;
        let only = name.spec.is_some().then_some(resolved.revision);
        if let Some(revision) = only
            && !node.registry.keeps_whole(revision).await
        {
            let why = "this revision is not kept here whole";
            return Err(Refusal::new(Reason::NotFound, repo, why).try_this(format!("cairn pull {repo}")));
        }
        these.push((resolved.repo, only));
    }
    Ok(Selection::These(these))
}

async fn since(path: &str) -> Result<Option<Summary>, Refusal> {
    if path.is_empty() {
        return Ok(None);
    }
    let what = path.to_owned();
    let read = tokio::fs::read(absolute(path)?).await.map_err(|error| unreadable(&what, &error))?;
    let parsed = Summary::parse(&read).map_err(|error| {
        Refusal::new(Reason::BadInput, what, error.to_string()).try_this("a file that cairn bundle summary wrote")
    });
    parsed.map(Some)
}

async fn write_file(
    node: &Node,
    wish: Wish,
    path: &Path,
    progress: impl Fn(Progress) + Send,
) -> Result<(Totals, u64), Refusal> {
    let what = path.display().to_string();
    let unwritable = |error: io::Error| create_refusal(&what, CreateError::Write(error));
    let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
    let made = tokio::task::spawn_blocking(move || tempfile::NamedTempFile::new_in(folder)).await;
    let made = made.map_err(|error| Refusal::internal(&what, error))?.map_err(unwritable)?;
    let file = File::from_std(made.as_file().try_clone().map_err(unwritable)?);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let created = node.registry.create_bundle(wish, &mut out, progress).await;
    let totals = created.map_err(|error| create_refusal(&what, error))?;
    let path = path.to_owned();
    let placed = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::PermissionsExt;
        let file = made.as_file();
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        made.persist(&path).map_err(|error| error.error)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        Ok(bytes)
    });
    let bytes = placed.await.map_err(|error| Refusal::internal(&what, error))?.map_err(unwritable)?;
    Ok((totals, bytes))
}

async fn write_pieces(
    node: &Node,
    wish: Wish,
    events: &Sender<api::BundleCreateEvent>,
    progress: impl Fn(Progress) + Send,
) -> Result<(Totals, u64), Refusal> {
    let mut out = Pieces { sender: PollSender::new(events.clone()), bytes: 0 };
    let created = node.registry.create_bundle(wish, &mut out, progress).await;
    Ok((created.map_err(|error| create_refusal("the bundle", error))?, out.bytes))
}

/// Writes into a stream of events.
struct Pieces {
    sender: PollSender<api::BundleCreateEvent>,
    bytes: u64,
}

impl AsyncWrite for Pieces {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_: PollSendError<_>| io::Error::from(io::ErrorKind::BrokenPipe);
        std::task::ready!(self.sender.poll_reserve(context)).map_err(gone)?;
        let piece = &bytes[..bytes.len().min(PIECE_BYTES_MAX)];
        let event = api::bundle_create_event::Event::Piece(piece.to_vec());
        self.sender.send_item(api::BundleCreateEvent { event: Some(event) }).map_err(gone)?;
        self.bytes += piece.len() as u64;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Answers `BundleApply`; `requests` are what the client says.
pub async fn apply(
    node: Arc<Node>,
    mut requests: impl Stream<Item = Result<api::BundleApplyRequest, Refusal>> + Send + Unpin,
    events: Sender<api::BundleApplyEvent>,
) -> Result<(), Refusal> {
    let nothing =
        || Refusal::new(Reason::BadInput, "the bundle", "nothing was sent").try_this("cairn bundle apply FILE");
    let first = requests.next().await.ok_or_else(nothing)??;
    let manner = if first.keep_going { Manner::KeepGoing } else { Manner::Whole };
    if first.path.is_empty() {
        let begun = futures::stream::once(futures::future::ready(Ok(first)));
        let pieces = begun.chain(requests).map(|request: Result<api::BundleApplyRequest, Refusal>| {
            request.map(|request| Bytes::from(request.piece)).map_err(|refusal| io::Error::other(refusal.to_string()))
        });
        return take_in(&node, "the bundle", StreamReader::new(pieces), manner, &events).await;
    }
    let path = absolute(&first.path)?;
    let file = File::open(&path).await.map_err(|error| unreadable(&first.path, &error))?;
    take_in(&node, &first.path, BufReader::with_capacity(BUFFER_BYTES, file), manner, &events).await
}

async fn take_in(
    node: &Arc<Node>,
    what: &str,
    source: impl AsyncRead + Unpin + Send,
    manner: Manner,
    events: &Sender<api::BundleApplyEvent>,
) -> Result<(), Refusal> {
    let started = Instant::now();
    let tell = |read: Progress| {
        let progress = api::BundleProgress { bytes_done: read.done, bytes_total: read.total };
        let event = api::bundle_apply_event::Event::Progress(progress);
        let _ = events.try_send(api::BundleApplyEvent { event: Some(event) });
    };
    let applied = node.registry.apply_bundle(source, manner, tell).await;
    let applied = applied.map_err(|error| apply_refusal(what, error))?;
    for revision in &applied.kept {
        announce::keeps(node, *revision).await;
    }
    let advisories = said_of(node, &applied.kept).await?;
    let Applied { totals, new_records, new_blobs, new_bytes, refused, .. } = applied;
    tracing::info!(new_records, new_blobs, new_bytes, "a bundle was applied");
    let done = api::Bundled {
        new_records,
        new_blobs,
        new_bytes,
        refused: refused.iter().map(ToString::to_string).collect(),
        advisories,
        seconds: started.elapsed().as_secs_f64(),
        ..bundled(&totals)
    };
    let event = api::bundle_apply_event::Event::Done(done);
    let _ = events.send(api::BundleApplyEvent { event: Some(event) }).await;
    Ok(())
}

/// What a person should know of revisions that came by hand: what is refused stays, and nothing here uses it.
async fn said_of(node: &Node, revisions: &[RevisionId]) -> Result<Vec<api::Advisory>, Refusal> {
    let mut said: Vec<api::Advisory> = Vec::new();
    for revision in revisions {
        let Some(manifest) = holders::local_manifest(node, *revision).await? else { continue };
        for notice in advisories::on(node, &manifest.repo, *revision, Some(&manifest)).await? {
            let told = advisories::told(node, &notice).await?;
            let is_known = said.iter().any(|known| (&known.name, &known.signer) == (&told.name, &told.signer));
            if told.action != "ignore" && !is_known && said.len() < ADVISORIES_MAX {
                said.push(told);
            }
        }
    }
    Ok(said)
}

/// Answers `BundleSummary`.
pub async fn summary(
    node: Arc<Node>,
    _: api::BundleSummaryRequest,
    events: Sender<api::BundleSummaryPiece>,
) -> Result<(), Refusal> {
    let summary = node.registry.bundle_summary().await;
    let summary = summary.map_err(|error| Refusal::internal("what this node holds", error))?;
    let (records, blobs) = (summary.records.len() as u64, summary.blobs.len() as u64);
    for piece in summary.to_bytes().chunks(PIECE_BYTES_MAX) {
        if events.send(api::BundleSummaryPiece { piece: piece.to_vec(), records, blobs }).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn bundled(totals: &Totals) -> api::Bundled {
    let Totals { records, revisions, blobs, bytes } = *totals;
    api::Bundled { records, revisions, blobs, bytes, ..api::Bundled::default() }
}

fn absolute(path: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    let why = "the path must be absolute, for the daemon has another working folder";
    Err(Refusal::new(Reason::BadInput, path.display().to_string(), why).try_this("the whole path from /"))
}

fn unreadable(what: &str, error: &io::Error) -> Refusal {
    let reason = if error.kind() == io::ErrorKind::NotFound { Reason::NotFound } else { Reason::BadInput };
    Refusal::new(reason, what, error.to_string()).try_this("a file that the daemon's user can read")
}

fn create_refusal(what: &str, error: CreateError) -> Refusal {
    let why = error.to_string();
    let (reason, advice) = match &error {
        CreateError::Write(error) if error.kind() == io::ErrorKind::StorageFull => {
            (Reason::DiskFull, "another disk, or making room")
        }
        CreateError::Write(_) => (Reason::BadInput, "a folder that the daemon's user can write to"),
        CreateError::NothingKept => (Reason::NotFound, "cairn pull REPO, then the same again"),
        CreateError::Realm => (Reason::BadInput, "the summary of a node of this realm"),
        CreateError::TooManyRecords(_) => {
            (Reason::Limit, "--since a summary of the other side, or several bundles, each of some repos")
        }
        CreateError::Blobs(cairn_registry::BlobError::Corrupt { .. }) => (Reason::Corrupt, "cairn verify REPO"),
        CreateError::Hold(_) | CreateError::Blobs(_) | CreateError::Catalog(_) => (Reason::Internal, "the node's log"),
    };
    Refusal::new(reason, what, why).try_this(advice)
}

/// What a bundle is refused for, in words. Used where a bundle is looked at without a daemon too.
pub(crate) fn apply_refusal(what: &str, error: BundleError) -> Refusal {
    let why = error.to_string();
    let is_full = why.contains("No space left") || why.contains("os error 28");
    let (reason, advice) = match &error {
        _ if is_full => (Reason::DiskFull, "making room on the disk of the daemon's home, then the same again"),
        BundleError::Read(_) => (Reason::BadInput, "the same again, or another copy of the bundle"),
        BundleError::Truncated { .. } | BundleError::Corrupt { .. } | BundleError::Frame { .. } => {
            (Reason::Corrupt, "another copy of the bundle; what arrived is not fetched again")
        }
        BundleError::NotABundle => (Reason::BadInput, "a file that cairn bundle create wrote"),
        BundleError::Version(_) => (Reason::Unsupported, "a later version of Cairn"),
        BundleError::Realm { .. } => (Reason::Policy, "a node of that realm (cairn node --realm)"),
        BundleError::Record { .. } => (Reason::Corrupt, "a bundle from another source"),
        BundleError::Refused { error: InsertError::Catalog(_), .. } => (Reason::Internal, "the node's log"),
        BundleError::Refused { .. } => (Reason::Policy, "--keep-going, which takes in the rest"),
        BundleError::Manifest { .. } => (Reason::Corrupt, "a bundle from another source"),
        BundleError::Missing { .. } => {
            (Reason::NotFound, "a bundle made without --since, or with this node's own summary")
        }
        BundleError::Blobs(_) | BundleError::Catalog(_) => (Reason::Internal, "the node's log"),
    };
    Refusal::new(reason, what, why).try_this(advice)
}
