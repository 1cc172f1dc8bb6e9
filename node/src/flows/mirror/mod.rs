//! Mirroring: this node keeps the newest revisions of the repos that its operator named.
//!
//! Which revisions those are is [`cairn_registry::mirror`]'s pure decision, when to try which is [`watch`]'s; here the catalogue is
//! looked at when it changes, peers' comings are heard, and bytes are brought.
//!
//! Invariant: at most [`FETCHES_MAX`] revisions are fetched at once, and a revision that can't be had is tried again, ever more
//! rarely, for as long as it is wanted.

mod watch;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cairn_protocol::{
    api,
    id::RevisionId,
    name::{NameError, RepoPath},
    refusal::{Reason, Refusal},
};
use cairn_registry::{
    CatalogError, PinClass,
    mirror::{Candidate, Pattern, plan},
};
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinSet,
};

use super::{
    announce,
    bring::{Selection, bring, select},
    holders,
};
use crate::{data::fetch::FetchReport, net::PeerEvent, shell::Node};
use watch::{Standing, State, Watch};

/// Revisions fetched at the same time; each uses several sources and pieces.
const FETCHES_MAX: usize = 2;
/// Repos of one page while looking for candidates.
const PAGE: usize = 500;
/// The longest sleep: a look at everything now and then costs little and mends what an event missed.
const LOOK_AT_LEAST: Duration = Duration::from_secs(60);
/// Changes of the catalogue are gathered for so long, so that a catch-up of thousands is one look.
const GATHER: Duration = Duration::from_millis(100);

/// How mirroring stands, for those who ask. The loop of [`run`] alone writes it.
#[derive(Default)]
pub struct Board {
    /// Guards the machine; held for one step, never across an await.
    watch: Mutex<Watch>,
    again: Notify,
    begun: std::sync::OnceLock<Instant>,
}

impl Board {
    /// Something happened to what is kept: look at everything again.
    pub fn look_again(&self) {
        self.again.notify_one();
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.begun.get_or_init(Instant::now).elapsed().as_millis() as u64
    }
}

/// Answers `MirrorAdd`.
pub async fn add(node: &Node, request: api::MirrorAddRequest) -> Result<api::MirrorAddResponse, Refusal> {
    node.registry.add_mirror(&pattern(&request.pattern)?).await.map_err(catalog)?;
    node.mirror.look_again();
    Ok(api::MirrorAddResponse {})
}

/// Answers `MirrorRemove`: what only this pattern kept is unpinned and no longer told of, and its bytes go.
pub async fn remove(node: &Arc<Node>, request: api::MirrorRemoveRequest) -> Result<api::MirrorRemoveResponse, Refusal> {
    let removed = node.registry.remove_mirror(&pattern(&request.pattern)?).await;
    let removed = removed.map_err(|error| Refusal::internal("what was mirrored", error).try_this("the node's log"))?;
    node.mirror.look_again();
    let Some(let_go) = removed else { return Ok(api::MirrorRemoveResponse::default()) };
    for revision in &let_go.revisions {
        announce::lost(node, *revision).await;
    }
    if let_go.bytes > 0 {
        node.tasks.spawn(collect(node.clone()));
    }
    Ok(api::MirrorRemoveResponse { removed: true, revisions: let_go.revisions.len() as u64, bytes_freed: let_go.bytes })
}

/// Deletes what nothing pins. May take as long as deleting does; whoever asked need not wait.
async fn collect(node: Arc<Node>) {
    tokio::select! {
        () = node.shutdown.cancelled() => {}
        collected = node.registry.blobs().collect() => if let Err(error) = collected {
            tracing::warn!(%error, "what is no longer mirrored stays on disk for now");
        }
    }
}

/// Answers `MirrorList`.
pub async fn list(node: &Node, _request: api::MirrorListRequest) -> Result<api::MirrorListResponse, Refusal> {
    let patterns = node.registry.mirrors().await.map_err(catalog)?;
    let standings: Vec<Standing> = node.mirror.watch().standings();
    let mut repos = Vec::with_capacity(standings.len());
    for standing in standings {
        let held = node.registry.held(standing.revision).await.unwrap_or_default();
        let record = node.registry.revision(standing.revision).await.map_err(catalog)?;
        let bytes_total = held.bytes_total.or(record.map(|(_, body)| body.bytes)).unwrap_or(0);
        repos.push(mirrored(standing, bytes_total, held.bytes_held));
    }
    Ok(api::MirrorListResponse { patterns: patterns.iter().map(ToString::to_string).collect(), repos })
}

fn mirrored(standing: Standing, bytes_total: u64, bytes_held: u64) -> api::MirroredRepo {
    let bytes_from =
        standing.bytes_from.iter().map(|(node, bytes)| api::BytesFrom { node: node.to_string(), bytes: *bytes });
    api::MirroredRepo {
        repo: standing.path,
        revision: standing.revision.to_string(),
        state: standing.state.word().to_owned(),
        why: standing.why,
        bytes_total,
        bytes_held,
        bytes_from: bytes_from.collect(),
    }
}

/// Mirrors until the node stops. Dropping it stops the fetches; what had arrived stays.
pub async fn run(node: Arc<Node>) {
    announce::everything(&node).await;
    let mut changes = node.registry.changes();
    let mut peers = node.net.peer_events();
    let mut fetches: JoinSet<(RevisionId, Result<FetchReport, Refusal>)> = JoinSet::new();
    loop {
        if let Err(error) = look(&node).await {
            tracing::warn!(%error, "the catalogue could not be looked at for mirroring");
        }
        begin(&node, &mut fetches);
        let sleep = node.mirror.watch().sleep_ms(node.mirror.now_ms()).map_or(LOOK_AT_LEAST, Duration::from_millis);
        tokio::select! {
            () = node.shutdown.cancelled() => return fetches.shutdown().await,
            changed = changes.changed() => match changed {
                Ok(()) => tokio::time::sleep(GATHER).await,
                Err(_) => return fetches.shutdown().await,
            },
            () = node.mirror.again.notified() => {}
            event = peers.recv() => match event {
                Ok(PeerEvent::Connected(_)) | Err(RecvError::Lagged(_)) => {
                    node.mirror.watch().hope(node.mirror.now_ms(), rand::random());
                }
                Ok(PeerEvent::Gone(_)) => {}
                Err(RecvError::Closed) => return fetches.shutdown().await,
            },
            Some(ended) = fetches.join_next() => note(&node, ended),
            () = tokio::time::sleep(sleep.min(LOOK_AT_LEAST)) => {}
        }
    }
}

fn begin(node: &Arc<Node>, fetches: &mut JoinSet<(RevisionId, Result<FetchReport, Refusal>)>) {
    while fetches.len() < FETCHES_MAX {
        let Some(revision) = node.mirror.watch().begin(node.mirror.now_ms()) else { return };
        let node = node.clone();
        fetches.spawn(async move { (revision, fetch(&node, revision).await) });
    }
}

fn note(node: &Node, ended: Result<(RevisionId, Result<FetchReport, Refusal>), tokio::task::JoinError>) {
    let now_ms = node.mirror.now_ms();
    match ended {
        Ok((revision, Ok(report))) => {
            tracing::info!(revision = %revision.short(), bytes = report.bytes_fetched, "mirrored");
            node.mirror.watch().brought(revision, report.from);
        }
        Ok((revision, Err(refusal))) => {
            tracing::info!(revision = %revision.short(), %refusal, "mirroring failed and is tried again");
            node.mirror.watch().failed(now_ms, revision, refusal.to_string(), rand::random());
        }
        Err(error) => {
            tracing::error!(%error, "a mirror's fetch broke");
            node.mirror.watch().broke(now_ms, rand::random());
        }
    }
}

async fn fetch(node: &Node, revision: RevisionId) -> Result<FetchReport, Refusal> {
    let manifest = holders::ensure_manifest(node, revision).await?;
    let wanted = select(&manifest, &Selection::default())?;
    bring(node, revision, &wanted, PinClass::Mirrored, |_, _| {}).await
}

/// Tells the machine what is wanted now.
async fn look(node: &Node) -> Result<(), CatalogError> {
    let patterns = node.registry.mirrors().await?;
    let named = if patterns.is_empty() { Vec::new() } else { candidates(node, &patterns).await? };
    let missing: BTreeSet<RevisionId> = plan(&patterns, &named).into_iter().collect();
    let wanted = named.iter().map(|candidate| {
        let path = candidate.path.to_string();
        (candidate.revision, path, !missing.contains(&candidate.revision))
    });
    node.mirror.watch().want(node.mirror.now_ms(), wanted.collect(), rand::random());
    Ok(())
}

/// Every ref that stands somewhere, of every repo that a pattern names.
async fn candidates(node: &Node, patterns: &[Pattern]) -> Result<Vec<Candidate>, CatalogError> {
    let mut candidates = Vec::new();
    let mut after = None;
    loop {
        let (page, next) = node.registry.list("", after, PAGE).await?;
        for summary in page {
            let Ok(path) = summary.path.parse::<RepoPath>() else { continue };
            if !patterns.iter().any(|pattern| pattern.matches(&summary.repo, &path)) {
                continue;
            }
            for head in node.registry.refs(&summary.repo).await?.into_iter().filter_map(|state| state.head) {
                let (repo, path) = (summary.repo.clone(), path.clone());
                let whole = is_whole(node, head.revision).await;
                candidates.push(Candidate { repo, path, revision: head.revision, whole });
            }
        }
        after = next;
        if after.is_none() {
            return Ok(candidates);
        }
    }
}

async fn is_whole(node: &Node, revision: RevisionId) -> bool {
    node.registry.held(revision).await.is_ok_and(|held| held.whole && held.kept)
}

fn pattern(text: &str) -> Result<Pattern, Refusal> {
    text.parse().map_err(|error: NameError| {
        Refusal::new(Reason::BadInput, text, error.to_string()).try_this("a repo, PUBLISHER/* or *")
    })
}

fn catalog(error: CatalogError) -> Refusal {
    Refusal::internal("the catalogue", error).try_this("the node's log")
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Held => "held",
            State::Fetching => "fetching",
            State::Waiting => "waiting",
            State::Failed => "failed",
        }
    }
}
