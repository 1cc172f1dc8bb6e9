//! Mirroring: this node keeps the newest revisions of the repos that its operator named.
//!
//! What is to be kept, fetched and let go is [`cairn_registry::mirror::decide`]'s pure decision, when to try which is [`watch`]'s, who else
//! holds what is heard by [`copies`]; here the catalogue is looked at when it changes, peers' comings are heard, and bytes are brought.
//!
//! Invariant: at most [`FETCHES_MAX`] revisions are fetched at once, and a revision that can't be had is tried again, ever more
//! rarely, for as long as it is wanted; none is let go before enough others showed, at that moment, that they keep it.

pub(super) mod copies;
mod watch;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use cairn_protocol::{
    api,
    id::{NodeId, RevisionId},
    name::{RepoId, RepoPath},
    refusal::{Reason, Refusal},
};
use cairn_registry::{
    CatalogError, PinClass,
    mirror::{
        Action, Budget, Candidate, Decider, Decision, Here, Holder, Mesh, Moment, Patience, Pattern, PatternError,
        Policy, Rules, RulesError, is_last,
    },
};
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinSet,
};

use super::{
    advisories, announce,
    bring::{Selection, Wanted, bring, bytes_missing, select},
    holders,
};
use crate::{data::fetch::FetchReport, net::PeerEvent, shell::Node};
use copies::Copies;
use watch::{Call, Named, Standing, State, Watch};

/// Revisions fetched at the same time; each uses several sources and pieces.
const FETCHES_MAX: usize = 2;
/// Repos of one page while looking for candidates.
const PAGE: usize = 500;
/// The longest sleep: a look at everything now and then costs little and mends what an event missed.
const LOOK_AT_LEAST: Duration = Duration::from_secs(60);
/// Peers are not asked more often for what they keep.
const ASK_AT_MOST: Duration = Duration::from_millis(250);
/// Changes of the catalogue are gathered for so long, so that a catch-up of thousands is one look.
const GATHER: Duration = Duration::from_millis(100);

/// How mirroring stands, for those who ask. The loop of [`run`] alone writes it.
#[derive(Default)]
pub struct Board {
    /// Guards the machine; held for one step, never across an await.
    watch: Mutex<Watch>,
    /// Guards what decides and what is known of others' copies; held for one step, never across an await.
    minds: Mutex<(Decider, Copies)>,
    again: Notify,
    begun: std::sync::OnceLock<Instant>,
}

impl Board {
    /// Something happened to what is kept: look at everything again.
    pub fn look_again(&self) {
        self.again.notify_one();
    }

    /// Whether this node keeps a copy of the revision whatever others do, by the last look.
    pub(super) fn stays(&self, revision: RevisionId) -> bool {
        self.watch().stays(revision)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn minds(&self) -> MutexGuard<'_, (Decider, Copies)> {
        self.minds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.begun.get_or_init(Instant::now).elapsed().as_millis() as u64
    }
}

/// Answers `MirrorAdd`.
pub async fn add(node: &Node, request: api::MirrorAddRequest) -> Result<api::MirrorAddResponse, Refusal> {
    let rules =
        Rules::try_from(request.rules.unwrap_or_default()).map_err(|error| bad_rules(&request.pattern, &error))?;
    let policy = Policy { pattern: pattern(&request.pattern)?, rules };
    node.registry.add_mirror(&policy).await.map_err(catalog)?;
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
    let policies = node.registry.mirrors().await.map_err(catalog)?;
    let standings: Vec<Standing> = node.mirror.watch().standings();
    let mut repos = Vec::with_capacity(standings.len());
    for standing in standings {
        let held = node.registry.held(standing.revision).await.unwrap_or_default();
        let record = node.registry.revision(standing.revision).await.map_err(catalog)?;
        let bytes_total = held.bytes_total.or(record.map(|(_, body)| body.bytes)).unwrap_or(0);
        repos.push(mirrored(standing, bytes_total, held.bytes_held));
    }
    Ok(api::MirrorListResponse {
        patterns: policies.iter().map(|policy| policy.pattern.to_string()).collect(),
        repos,
        policies: policies.iter().map(told).collect(),
        bytes_per_day: node.config.mirror_bytes_per_day,
        bytes_today: node.registry.mirrored_bytes(today()).await.map_err(catalog)?,
    })
}

fn told(policy: &Policy) -> api::MirrorPolicy {
    api::MirrorPolicy { pattern: policy.pattern.to_string(), rules: Some((&policy.rules).into()) }
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
        pattern: standing.pattern,
        copies_elsewhere: standing.copies_elsewhere,
    }
}

/// Mirrors until the node stops. Dropping it stops the fetches; what had arrived stays.
pub async fn run(node: Arc<Node>) {
    announce::everything(&node).await;
    let mut changes = node.registry.changes();
    let mut peers = node.net.peer_events();
    let mut fetches: JoinSet<(RevisionId, Result<FetchReport, Refusal>)> = JoinSet::new();
    loop {
        let look_again = look(&node).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the catalogue could not be looked at for mirroring");
            LOOK_AT_LEAST
        });
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
            () = tokio::time::sleep(sleep.min(look_again)) => {}
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
    advisories::permit_revision(node, &manifest.repo, revision, Some(&manifest), &[]).await?;
    let wanted = select(&manifest, &Selection::default())?;
    match node.config.mirror_bytes_per_day {
        0 => bring(node, revision, &wanted, PinClass::Mirrored, |_, _| {}).await,
        bytes_per_day => fetch_within(node, revision, &wanted, bytes_per_day).await,
    }
}

/// Fetches if today's bytes allow it. If what came can't be told, all counts as spent.
async fn fetch_within(
    node: &Node,
    revision: RevisionId,
    wanted: &[Wanted],
    bytes_per_day: u64,
) -> Result<FetchReport, Refusal> {
    let (day, missing) = (today(), bytes_missing(node, wanted).await?);
    if !node.registry.spend_mirrored(day, missing, bytes_per_day).await.map_err(catalog)? {
        let what = format!("revision {}", revision.short());
        return Err(Refusal::new(Reason::Limit, what, "today's bytes are spent").try_this("cairn mirror status"));
    }
    let brought = bring(node, revision, wanted, PinClass::Mirrored, |_, _| {}).await;
    let came = match &brought {
        Ok(report) => report.bytes_fetched,
        Err(_) => bytes_missing(node, wanted).await.map_or(missing, |left| missing.saturating_sub(left)),
    };
    if let Err(error) = node.registry.settle_mirrored(day, missing, came).await {
        tracing::warn!(%error, "a fetch counts whole for today's bytes");
    }
    brought
}

/// What mirroring may still bring today; `None` is anything.
async fn budget(node: &Node) -> Result<Option<Budget>, CatalogError> {
    let bytes_per_day = node.config.mirror_bytes_per_day;
    if bytes_per_day == 0 {
        return Ok(None);
    }
    let begun = node.mirror.watch().fetching();
    Ok(Some(Budget { bytes_per_day, spent: node.registry.mirrored_bytes(today()).await?, begun }))
}

/// Decides about everything that policies name, tells the machine, and lets go what is to go. Answers when to look again at the latest.
async fn look(node: &Arc<Node>) -> Result<Duration, CatalogError> {
    let policies = node.registry.mirrors().await?;
    tell_that_mirrors(node, !policies.is_empty());
    let candidates = if policies.is_empty() { Vec::new() } else { candidates(node, &policies).await? };
    let needs_copies = policies.iter().any(|policy| policy.rules.needs_copies());
    let every = if needs_copies { ask_every(node) } else { LOOK_AT_LEAST };
    let revisions: BTreeSet<RevisionId> = candidates.iter().map(|candidate| candidate.revision).collect();
    if needs_copies {
        let due = node.mirror.minds().1.due(node.mirror.now_ms(), every.as_millis() as u64, &revisions);
        hear(node, &due).await;
    }
    let budget = budget(node).await?;
    let (decisions, named) = decide(node, &policies, &candidates, &revisions, budget);
    node.mirror.watch().want(node.mirror.now_ms(), named, rand::random());
    let_go(node, &decisions).await?;
    Ok(every)
}

/// Often enough that no lease of a holder who is there runs out, and that nobody steps in for a mirror that has fetched.
fn ask_every(node: &Node) -> Duration {
    let config = &node.config;
    let wish_ms = config.mirror_lease_s.saturating_mul(250).min(config.mirror_standby_s.saturating_mul(500));
    let wish = Duration::from_millis(wish_ms);
    wish.clamp(ASK_AT_MOST, LOOK_AT_LEAST)
}

fn tell_that_mirrors(node: &Node, mirrors: bool) {
    if node.net.statement().mirrors != mirrors {
        node.net.state(|statement| statement.mirrors = mirrors);
    }
}

async fn hear(node: &Node, revisions: &[RevisionId]) -> Vec<(NodeId, RevisionId, u8)> {
    let heard = copies::ask(node, revisions).await;
    let now_ms = node.mirror.now_ms();
    let (_, copies) = &mut *node.mirror.minds();
    for (peer, revision, state) in &heard {
        copies.hear(now_ms, *peer, *revision, *state);
    }
    heard
}

fn decide(
    node: &Node,
    policies: &[Policy],
    candidates: &[Candidate],
    revisions: &BTreeSet<RevisionId>,
    budget: Option<Budget>,
) -> (Vec<Decision>, Vec<Named>) {
    let (config, now_ms) = (&node.config, node.mirror.now_ms());
    let peers = node.net.peers();
    let mirrors = peers.iter().filter(|peer| peer.advert.as_ref().is_some_and(|advert| advert.mirrors));
    let mirrors: Vec<NodeId> = mirrors.map(|peer| peer.node_id).collect();
    let ms = |seconds: u64| seconds.saturating_mul(1000);
    let patience = Patience { deficit_ms: ms(config.mirror_standby_s), surplus_ms: ms(config.mirror_surplus_s) };
    let (decider, copies) = &mut *node.mirror.minds();
    let holders = copies.holders(now_ms, ms(config.mirror_lease_s), revisions);
    let mesh = Mesh { me: node.identity.node_id(), mirrors: &mirrors, holders: &holders };
    let moment = Moment { now_ms, minute: minute_of_day(), patience, budget };
    let decisions = decider.decide(moment, policies, candidates, mesh);
    let named = decisions.iter().map(|decision| Named {
        revision: decision.revision,
        path: decision.path.to_string(),
        pattern: decision.pattern.clone(),
        why: decision.why.to_string(),
        copies_elsewhere: holders.get(&decision.revision).map_or(0, Vec::len) as u32,
        may_go: decision.may_go,
        call: match decision.action {
            Action::Keep | Action::LetGo => Call::Hold,
            Action::Fetch => Call::Fetch,
            Action::Wait => Call::Leave,
        },
    });
    let named = named.collect();
    (decisions, named)
}

/// Of the day, UTC, by this machine's clock.
fn minute_of_day() -> u16 {
    (seconds_since_1970() / 60 % (24 * 60)) as u16
}

/// Days since 1970, UTC, by this machine's clock.
fn today() -> u64 {
    seconds_since_1970() / (24 * 60 * 60)
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Unpins what is to go, if enough others say now that they keep it, and show a piece of it, and if by what they say it is still
/// this node's turn.
async fn let_go(node: &Arc<Node>, decisions: &[Decision]) -> Result<(), CatalogError> {
    let going = decisions.iter().filter(|decision| decision.action == Action::LetGo);
    let going: Vec<(RevisionId, usize)> = going.map(|decision| (decision.revision, decision.copies_needed)).collect();
    if going.is_empty() {
        return Ok(());
    }
    let heard = hear(node, &going.iter().map(|(revision, _)| *revision).collect::<Vec<_>>()).await;
    let mut sure = Vec::new();
    for (revision, needed) in going {
        let answers = heard.iter().filter(|(_, of, _)| *of == revision);
        let keepers: Vec<Holder> = answers.filter_map(|(peer, _, state)| copies::holder(*peer, *state)).collect();
        let may_go = keepers.len() >= needed && is_last(revision, node.identity.node_id(), &keepers);
        if may_go && copies::proven(node, revision, &keepers).await >= needed {
            sure.push(revision);
        }
    }
    let gone = node.registry.let_go_mirrored(sure).await?;
    for revision in &gone {
        tracing::info!(revision = %revision.short(), "a mirrored copy is let go");
        announce::lost(node, *revision).await;
    }
    if !gone.is_empty() {
        node.tasks.spawn(collect(node.clone()));
    }
    Ok(())
}

/// Every ref that stands somewhere, of every repo that a policy's pattern names.
async fn candidates(node: &Node, policies: &[Policy]) -> Result<Vec<Candidate>, CatalogError> {
    let mut candidates = Vec::new();
    let mut after = None;
    loop {
        let (page, next) = node.registry.list("", after, PAGE).await?;
        for summary in page {
            let Ok(path) = summary.path.parse::<RepoPath>() else { continue };
            if !policies.iter().any(|policy| policy.pattern.matches(&summary.repo, &path)) {
                continue;
            }
            for head in node.registry.refs(&summary.repo).await?.into_iter().filter_map(|state| state.head) {
                candidates.extend(candidate(node, &summary.repo, &path, head.revision).await?);
            }
        }
        after = next;
        if after.is_none() {
            return Ok(candidates);
        }
    }
}

/// `None` while the revision's record has not been heard.
async fn candidate(
    node: &Node,
    repo: &RepoId,
    path: &RepoPath,
    revision: RevisionId,
) -> Result<Option<Candidate>, CatalogError> {
    let Some((_, record)) = node.registry.revision(revision).await? else { return Ok(None) };
    let mirrored = node.registry.mirrored(vec![revision]).await?;
    let here = match node.registry.keeps_whole(revision).await {
        false => Here::Lacking,
        true if mirrored.contains(&revision) => Here::Mirrored,
        true => Here::Wanted,
    };
    let (repo, path) = (repo.clone(), path.clone());
    Ok(Some(Candidate {
        repo,
        path,
        revision,
        license: record.license,
        task: record.card.task,
        tags: record.tags,
        bytes: record.bytes,
        here,
    }))
}

fn bad_rules(pattern: &str, error: &RulesError) -> Refusal {
    Refusal::new(Reason::BadInput, pattern, error.to_string()).try_this("cairn mirror add --help")
}

fn pattern(text: &str) -> Result<Pattern, Refusal> {
    text.parse().map_err(|error: PatternError| {
        Refusal::new(Reason::BadInput, text, error.to_string())
            .try_this("a repo, PUBLISHER/*, PUBLISHER/GLOB, */GLOB or *")
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
            State::Left => "left",
        }
    }
}
