//! Records between nodes: what is gossiped here is judged and kept, newcomers are caught up with, and peers' questions
//! about the catalogue are answered.
//!
//! Three loops, one task each, in a set that [`run`] owns. Not here: publishing (`publish`) and asking others for a
//! name (`pull`). Invariant: a record goes on to others only after the catalogue took it; a peer that sends forged ones
//! pays; every exchange with one peer is bounded in pages, records and time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cairn_protocol::{
    id::{BlobHash, NodeId, PublisherKey},
    limits::{HEADS_PAGE_BYTES_MAX, HOLDING_RANGES_MAX, HOLDS_MAX},
    name::{Handle, RefName, RepoId, RepoKind, RepoName},
    peer_pb::{Answer, Heads, HeadsPage, Held, Holding, Holds, Question, Records, Resolve, answer::Say, question::Ask},
    record::{Record, RecordError},
    record_pb,
    refusal::Reason,
};
use cairn_registry::{InsertError, Inserted, Registry};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::net::{GossipedRecord, InboundQuestion, Inbox, NetHandle, Severity, Verdict, refused};

/// Questions answered at the same time: they only read, and the catalogue is one file.
const ANSWERING_MAX: usize = 8;
/// Gossiped records that are taken into the catalogue in one step.
const BATCH_MAX: usize = 64;
/// Peers caught up with at the same time.
const CATCHING_UP_MAX: usize = 3;
/// Pages taken of one peer in one go: 512 pages of up to 512 KiB, about a million records.
const PAGES_MAX: usize = 512;
/// Time for one page.
const PAGE_DEADLINE: Duration = Duration::from_secs(10);
/// Time for catching up with one peer.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(300);
/// Forged records of one peer after which catching up with it stops.
const FORGED_MAX: usize = 3;
/// A second look follows the first after this: what was published while both sides were still subscribing to gossip
/// reached neither by gossip nor by the first look.
const SECOND_LOOK: Duration = Duration::from_secs(4);
/// One connected peer is looked at again this often, in turn.
const ROUND: Duration = Duration::from_secs(60);
/// Publishers that share a handle and are told to an asker.
const CLAIMANTS_MAX: usize = 4;
/// Records told to a peer per page.
const PAGE_RECORDS_MAX: usize = 1024;

/// Runs until `stop`, or until the network has stopped. Dropping it stops it too; every record is either whole in the
/// catalogue or not there.
pub async fn run(registry: Registry, net: NetHandle, inbox: Inbox, stop: CancellationToken) {
    let Inbox { questions, records, arrivals } = inbox;
    let mut loops = JoinSet::new();
    loops.spawn(judge_gossip(registry.clone(), records));
    loops.spawn(answer_questions(registry.clone(), questions));
    loops.spawn(catch_up(registry, net, arrivals));
    tokio::select! {
        () = stop.cancelled() => {}
        _ = loops.join_next() => {}
    }
    loops.shutdown().await;
}

/// Takes what has come in by now, at most [`BATCH_MAX`] records, in one durable step: syncing the disk is what costs.
async fn judge_gossip(registry: Registry, mut records: mpsc::Receiver<GossipedRecord>) {
    let mut batch = Vec::new();
    while records.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (mut verified, mut waiting) = (Vec::new(), Vec::new());
        for gossiped in batch.drain(..) {
            match Record::verify(&gossiped.bytes) {
                Ok(record) => {
                    verified.push(record);
                    waiting.push(gossiped);
                }
                Err(error) => {
                    tracing::debug!(from = %gossiped.from.short(), %error, "a gossiped record can't be taken");
                    let verdict = if is_false(&error) { Verdict::Reject } else { Verdict::Ignore };
                    gossiped.judge(verdict).await;
                }
            }
        }
        let verdicts = take(&registry, verified).await;
        for (gossiped, verdict) in waiting.into_iter().zip(verdicts) {
            gossiped.judge(verdict).await;
        }
    }
}

/// Hands verified records to the catalogue and says of each whether others should hear of it.
async fn take(registry: &Registry, records: Vec<Record>) -> Vec<Verdict> {
    let count = records.len();
    match registry.insert_page(records).await {
        Ok(inserted) => inserted.iter().map(verdict_on).collect(),
        Err(error) => {
            tracing::warn!(%error, count, "gossiped records were not kept");
            vec![Verdict::Ignore; count]
        }
    }
}

fn verdict_on(inserted: &Result<Inserted, InsertError>) -> Verdict {
    match inserted {
        Ok(Inserted::New | Inserted::Known) => Verdict::Accept,
        Ok(Inserted::Stale) => Verdict::Ignore,
        Err(error) => {
            tracing::debug!(%error, "a gossiped record is not kept");
            if is_forged(error) { Verdict::Reject } else { Verdict::Ignore }
        }
    }
}

/// Whether no honest node passes such a record on.
fn is_forged(error: &InsertError) -> bool {
    match error {
        InsertError::Realm { .. } => true,
        InsertError::Payload(error) => is_false(error),
        _ => false,
    }
}

/// Whether such bytes are false, and not only of a version or kind that this node doesn't know.
fn is_false(error: &RecordError) -> bool {
    !matches!(error, RecordError::UnknownKind(_) | RecordError::UnknownVersion(_) | RecordError::Reserved(_))
}

async fn answer_questions(registry: Registry, mut questions: mpsc::Receiver<InboundQuestion>) {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            question = questions.recv(), if answering.len() < ANSWERING_MAX => {
                let Some(InboundQuestion { question, reply, .. }) = question else { return };
                let registry = registry.clone();
                answering.spawn(async move { reply.send(answer(&registry, question).await).await });
            }
            Some(_) = answering.join_next() => {}
        }
    }
}

/// Answers from the catalogue and the blob store; anything that fails is a refusal.
async fn answer(registry: &Registry, question: Question) -> Say {
    let answered = match question.ask {
        Some(Ask::Resolve(resolve)) => answer_resolve(registry, resolve).await,
        Some(Ask::Heads(heads)) => answer_heads(registry, heads).await,
        Some(Ask::Holds(holds)) => answer_holds(registry, holds).await,
        Some(Ask::Hello(_)) | None => Err((Reason::Unsupported, "not a question for the catalogue".to_owned())),
    };
    answered.unwrap_or_else(|(reason, why)| refused(reason, why))
}

type Answered = Result<Say, (Reason, String)>;

/// The records that name a ref: of the key that was asked for, or of those that claim the handle.
async fn answer_resolve(registry: &Registry, resolve: Resolve) -> Answered {
    let bad = |why: String| (Reason::BadInput, why);
    let kind = RepoKind::from_pb(resolve.kind).ok_or_else(|| bad("a repo of an unknown kind".to_owned()))?;
    let name: RepoName = resolve.name.parse().map_err(|e| bad(format!("{e}")))?;
    let ref_name = if resolve.r#ref.is_empty() {
        RefName::main()
    } else {
        resolve.r#ref.parse().map_err(|e| bad(format!("{e}")))?
    };
    let publishers = publishers(registry, &resolve).await?;
    let mut records = Vec::new();
    let mut bytes = 0;
    for publisher in publishers {
        let repo = RepoId { publisher, kind, name: name.clone() };
        for record in registry.records_for(&repo, &ref_name).await.map_err(internal)? {
            bytes += record.to_bytes().len();
            if bytes <= HEADS_PAGE_BYTES_MAX {
                records.push(record.envelope().clone());
            }
        }
    }
    Ok(Say::Records(Records { records }))
}

async fn publishers(registry: &Registry, resolve: &Resolve) -> Result<Vec<PublisherKey>, (Reason, String)> {
    if !resolve.publisher_key.is_empty() {
        let key = PublisherKey::try_from(resolve.publisher_key.as_slice());
        return key.map(|key| vec![key]).map_err(|e| (Reason::BadInput, e.to_string()));
    }
    let handle: Handle = resolve.publisher_handle.parse().map_err(|e| (Reason::BadInput, format!("{e}")))?;
    let mut claimants = registry.claimants(&handle).await.map_err(internal)?;
    claimants.truncate(CLAIMANTS_MAX);
    Ok(claimants)
}

async fn answer_heads(registry: &Registry, heads: Heads) -> Answered {
    let limit = (heads.limit as usize).clamp(1, PAGE_RECORDS_MAX);
    let (records, next) = registry.heads_page(heads.after, limit).await.map_err(internal)?;
    let records = records.iter().map(|record| record.envelope().clone()).collect();
    Ok(Say::Heads(HeadsPage { records, next }))
}

async fn answer_holds(registry: &Registry, holds: Holds) -> Answered {
    if holds.hashes.len() > HOLDS_MAX {
        return Err((Reason::Limit, format!("at most {HOLDS_MAX} hashes in one question")));
    }
    let hashes: Result<Vec<BlobHash>, _> =
        holds.hashes.iter().map(|hash| BlobHash::try_from(hash.as_slice())).collect();
    let hashes = hashes.map_err(|e| (Reason::BadInput, e.to_string()))?;
    // What another realm keeps in the same home is not here, as far as this realm can tell.
    let mut holdings = Vec::new();
    for hash in registry.blobs().pinned(hashes).await.map_err(internal)? {
        if let Some(holding) = holding(registry, hash).await? {
            holdings.push(holding);
        }
    }
    Ok(Say::Held(Held { holdings }))
}

/// What is here of a blob; `None` if nothing is. Of many pieces, the first are told.
async fn holding(registry: &Registry, hash: BlobHash) -> Result<Option<Holding>, (Reason, String)> {
    if registry.blobs().has(hash).await.map_err(internal)? {
        return Ok(Some(Holding { hash: hash.to_vec(), complete: true, ranges: Vec::new() }));
    }
    let held = registry.blobs().local_ranges(hash).await.map_err(internal)?;
    if held.is_empty() {
        return Ok(None);
    }
    let ranges = held.iter().flat_map(|range| [range.start, range.end]).take(HOLDING_RANGES_MAX).collect();
    Ok(Some(Holding { hash: hash.to_vec(), complete: false, ranges }))
}

fn internal(error: impl std::fmt::Display) -> (Reason, String) {
    tracing::warn!(%error, "a peer's question could not be answered");
    (Reason::Internal, "this node's catalogue could not be read".to_owned())
}

/// Pages through the catalogues of newcomers at once, a moment later, and of everyone in turn.
async fn catch_up(registry: Registry, net: NetHandle, mut arrivals: mpsc::Receiver<NodeId>) {
    let mut due: BTreeMap<NodeId, Instant> = BTreeMap::new();
    let mut looked_at: BTreeSet<NodeId> = BTreeSet::new();
    let mut looking = JoinSet::new();
    let mut round = tokio::time::interval(ROUND);
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    loop {
        tokio::select! {
            arrival = arrivals.recv() => {
                let Some(node) = arrival else { return };
                due.insert(node, Instant::now());
                looked_at.remove(&node);
                begin_due(&mut due, &mut looked_at, &mut looking, &registry, &net);
            }
            _ = tick.tick() => begin_due(&mut due, &mut looked_at, &mut looking, &registry, &net),
            _ = round.tick() => {
                due.extend(next_in_turn(&net).map(|node| (node, Instant::now())));
                net.remember_peers().await;
            }
            Some(_) = looking.join_next() => {}
        }
    }
}

/// Begins what is due as far as there is room; after a first look the second one becomes due.
fn begin_due(
    due: &mut BTreeMap<NodeId, Instant>,
    looked_at: &mut BTreeSet<NodeId>,
    looking: &mut JoinSet<()>,
    registry: &Registry,
    net: &NetHandle,
) {
    let now = Instant::now();
    let ready: Vec<NodeId> = due.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
    for node in ready.into_iter().take(CATCHING_UP_MAX.saturating_sub(looking.len())) {
        due.remove(&node);
        if looked_at.insert(node) {
            due.insert(node, now + SECOND_LOOK);
        }
        let (registry, net) = (registry.clone(), net.clone());
        looking.spawn(async move {
            if tokio::time::timeout(CATCH_UP_DEADLINE, catch_up_with(&registry, &net, node)).await.is_err() {
                tracing::debug!(node = %node.short(), "catching up took too long; the rest follows another time");
            }
        });
    }
    let connected: BTreeSet<NodeId> = net.connected().into_iter().collect();
    looked_at.retain(|node| connected.contains(node));
    due.retain(|node, _| connected.contains(node));
}

/// A connected peer; which one changes from minute to minute.
fn next_in_turn(net: &NetHandle) -> Option<NodeId> {
    let connected = net.connected();
    let turn = rand::random_range(0..connected.len().max(1));
    connected.get(turn).copied()
}

/// Takes page after page of one peer's records, within bounds.
async fn catch_up_with(registry: &Registry, net: &NetHandle, node: NodeId) {
    let mut after = Vec::new();
    let (mut new, mut forged) = (0, 0);
    for _ in 0..PAGES_MAX {
        let heads = Heads { after: after.clone(), limit: PAGE_RECORDS_MAX as u32 };
        let question = Question { ask: Some(Ask::Heads(heads)) };
        let page = match net.ask(node, question, PAGE_DEADLINE).await {
            Ok(Answer { say: Some(Say::Heads(page)) }) => page,
            Ok(_) => {
                return net.report(node, Severity::Fault, "it was asked for a page and answered something else").await;
            }
            Err(error) => return tracing::debug!(node = %node.short(), %error, "catching up stopped"),
        };
        let Some(took) = take_page(registry, page.records).await else { return };
        new += took.new;
        forged += took.forged;
        for _ in 0..took.forged.min(FORGED_MAX) {
            net.report(node, Severity::Breach, "a forged record was in its catalogue").await;
        }
        if forged >= FORGED_MAX || page.next.is_empty() || page.next == after {
            break;
        }
        after = page.next;
    }
    if new > 0 {
        tracing::info!(node = %node.short(), new, "caught up with a peer");
    }
}

/// What came of a page.
#[derive(Default)]
struct Took {
    new: usize,
    forged: usize,
}

/// Verifies a page off the async workers and hands it to the catalogue in one step; `None` if the catalogue fails.
async fn take_page(registry: &Registry, envelopes: Vec<record_pb::Envelope>) -> Option<Took> {
    let verified = tokio::task::spawn_blocking(move || verify_page(envelopes)).await;
    let (records, mut took) = verified.inspect_err(|error| tracing::warn!(%error, "verifying stopped")).ok()?;
    let verdicts = registry.insert_page(records).await;
    let verdicts = verdicts.inspect_err(|error| tracing::warn!(%error, "a page of records was not kept")).ok()?;
    for verdict in verdicts {
        match verdict {
            Ok(Inserted::New) => took.new += 1,
            Err(error) if is_forged(&error) => took.forged += 1,
            Ok(_) | Err(_) => {}
        }
    }
    Some(took)
}

fn verify_page(envelopes: Vec<record_pb::Envelope>) -> (Vec<Record>, Took) {
    let (mut records, mut took) = (Vec::new(), Took::default());
    for envelope in envelopes {
        match Record::from_envelope(envelope) {
            Ok(record) => records.push(record),
            Err(error) if is_false(&error) => took.forged += 1,
            Err(_) => {}
        }
    }
    (records, took)
}

#[cfg(test)]
mod tests;
