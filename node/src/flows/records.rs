//! Records between nodes: what is gossiped here is judged and kept, and peers' questions about the catalogue are answered.
//!
//! Three loops, one task each, in a set that [`run`] owns; the third is `catch_up`. Not here: publishing (`publish`) and
//! asking others for a name (`names`). Invariant: a record goes on to others only after the catalogue took it; a peer that
//! sends forged ones pays; one that sends what only a later version knows does not, it is counted; no signature is checked
//! on an async worker.

use std::{ops::Range, sync::Arc};

use cairn_protocol::{
    id::{BlobHash, NodeId, PublisherKey, RecordId, RevisionId},
    limits::{HEADS_PAGE_BYTES_MAX, HOLDING_RANGES_MAX, HOLDS_MAX, KEEPS_MAX},
    name::{Handle, RefName, RepoId, RepoKind, RepoName},
    peer_pb::{
        Fetch, Heads, HeadsPage, Held, Holding, Holds, Keeps, Kept, Question, Reconcile, Reconciled, Records, Resolve,
        answer::Say, question::Ask,
    },
    record::{Record, RecordError},
    record_pb,
    refusal::Reason,
};
use cairn_registry::{InsertError, Inserted, Registry, sync::SyncError};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    catch_up::catch_up,
    mirror::{Board, copies},
};
use crate::net::{GossipedRecord, InboundQuestion, Inbox, NetHandle, Severity, Verdict, refused};

/// Questions answered at the same time: they only read, and the catalogue is one file.
const ANSWERING_MAX: usize = 8;
/// Gossiped records that are taken into the catalogue in one step.
const BATCH_MAX: usize = 64;
/// Forged records of one answer that its sender pays for; so many breaches are a ban already.
pub(super) const FORGED_MAX: usize = 3;
/// Publishers that share a handle and are told to an asker.
const CLAIMANTS_MAX: usize = 4;
/// Records told to a peer per page.
pub(super) const PAGE_RECORDS_MAX: usize = 1024;

/// Runs until `stop`, or until the network has stopped. Dropping it stops it too; every record is either whole in the
/// catalogue or not there.
pub async fn run(registry: Registry, net: NetHandle, mirror: Arc<Board>, inbox: Inbox, stop: CancellationToken) {
    let Inbox { questions, records, arrivals } = inbox;
    let mut loops = JoinSet::new();
    loops.spawn(judge_gossip(registry.clone(), net.clone(), records));
    loops.spawn(answer_questions(registry.clone(), net.clone(), mirror, questions));
    loops.spawn(catch_up(registry, net, arrivals));
    tokio::select! {
        () = stop.cancelled() => {}
        _ = loops.join_next() => {}
    }
    loops.shutdown().await;
}

/// Takes what has come in by now, at most [`BATCH_MAX`] records, in one durable step: syncing the disk is what costs.
async fn judge_gossip(registry: Registry, net: NetHandle, mut records: mpsc::Receiver<GossipedRecord>) {
    let mut batch = Vec::new();
    while records.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let came = std::mem::take(&mut batch);
        let verified = tokio::task::spawn_blocking(move || verify_gossip(came)).await;
        let Ok(checked) = verified.inspect_err(|error| tracing::warn!(%error, "verifying stopped")) else { continue };
        let (mut verified, mut waiting) = (Vec::new(), Vec::new());
        for (gossiped, record) in checked {
            match record {
                Ok(record) => {
                    verified.push(record);
                    waiting.push(gossiped);
                }
                Err(error) => {
                    tracing::debug!(from = %gossiped.from.short(), %error, "a gossiped record can't be taken");
                    let verdict = if is_false(&error) { Verdict::Reject } else { Verdict::Ignore };
                    net.note_unknown_records(u64::from(!is_false(&error)));
                    gossiped.judge(verdict).await;
                }
            }
        }
        let verdicts = take(&registry, &net, verified).await;
        for (gossiped, verdict) in waiting.into_iter().zip(verdicts) {
            gossiped.judge(verdict).await;
        }
    }
}

fn verify_gossip(batch: Vec<GossipedRecord>) -> Vec<(GossipedRecord, Result<Record, RecordError>)> {
    batch
        .into_iter()
        .map(|gossiped| {
            let record = Record::verify(&gossiped.bytes);
            (gossiped, record)
        })
        .collect()
}

/// Hands verified records to the catalogue and says of each whether others should hear of it.
async fn take(registry: &Registry, net: &NetHandle, records: Vec<Record>) -> Vec<Verdict> {
    let count = records.len();
    if count == 0 {
        return Vec::new();
    }
    match registry.insert_page(records).await {
        Ok(inserted) => {
            net.note_unknown_records(count_unknown(&inserted));
            inserted.iter().map(verdict_on).collect()
        }
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

/// How many of them are well signed, and of a kind whose payload this version doesn't read.
pub(super) fn count_unknown(inserted: &[Result<Inserted, InsertError>]) -> u64 {
    let is_unknown = |inserted: &&Result<Inserted, InsertError>| matches!(inserted, Err(InsertError::Payload(error)) if !is_false(error));
    inserted.iter().filter(is_unknown).count() as u64
}

/// Verifies what one peer answered with, off the async workers. It pays for forgeries; what this version doesn't know is
/// counted and costs it nothing. The good ones, and how many were forged.
pub(super) async fn verify_answer(
    net: &NetHandle,
    peer: NodeId,
    envelopes: Vec<record_pb::Envelope>,
) -> (Vec<Record>, usize) {
    let verified = tokio::task::spawn_blocking(move || verify_all(envelopes)).await;
    let checked = verified.inspect_err(|error| tracing::warn!(%error, "verifying stopped")).unwrap_or_default();
    net.note_unknown_records(checked.unknown as u64);
    for _ in 0..checked.forged.min(FORGED_MAX) {
        net.report(peer, Severity::Breach, "it answered with a forged record").await;
    }
    (checked.good, checked.forged)
}

/// What came of an answer's records.
#[derive(Default)]
struct Checked {
    good: Vec<Record>,
    forged: usize,
    unknown: usize,
}

fn verify_all(envelopes: Vec<record_pb::Envelope>) -> Checked {
    let mut checked = Checked::default();
    for envelope in envelopes {
        match Record::from_envelope(envelope) {
            Ok(record) => checked.good.push(record),
            Err(error) if is_false(&error) => checked.forged += 1,
            Err(_) => checked.unknown += 1,
        }
    }
    checked
}

/// Whether no honest node passes such a record on.
pub(super) fn is_forged(error: &InsertError) -> bool {
    match error {
        InsertError::Realm { .. } => true,
        InsertError::Payload(error) => is_false(error),
        _ => false,
    }
}

/// Whether such bytes are false, and not only of a version or kind that this node doesn't know.
fn is_false(error: &RecordError) -> bool {
    !matches!(error, RecordError::UnknownKind(_) | RecordError::UnknownVersion(_))
}

async fn answer_questions(
    registry: Registry,
    net: NetHandle,
    mirror: Arc<Board>,
    mut questions: mpsc::Receiver<InboundQuestion>,
) {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            question = questions.recv(), if answering.len() < ANSWERING_MAX => {
                let Some(question) = question else { return };
                answering.spawn(answer_one(registry.clone(), net.clone(), mirror.clone(), question));
            }
            Some(_) = answering.join_next() => {}
        }
    }
}

/// Whoever compares sets in words that make no sense pays; other questions may be of a later version.
async fn answer_one(registry: Registry, net: NetHandle, mirror: Arc<Board>, asked: InboundQuestion) {
    let InboundQuestion { from, question, reply } = asked;
    let is_comparison = matches!(question.ask, Some(Ask::Reconcile(_)));
    let said = answer(&registry, &mirror, question).await;
    let is_senseless = matches!(&said, Say::Refused(refused) if refused.reason == Reason::BadInput.code());
    if is_comparison && is_senseless {
        net.report(from, Severity::Fault, "it compares what it has in words that make no sense").await;
    }
    reply.send(said).await;
}

/// Answers from the catalogue and the blob store; anything that fails is a refusal.
async fn answer(registry: &Registry, mirror: &Board, question: Question) -> Say {
    let answered = match question.ask {
        Some(Ask::Resolve(resolve)) => answer_resolve(registry, resolve).await,
        Some(Ask::Heads(heads)) => answer_heads(registry, heads).await,
        Some(Ask::Holds(holds)) => answer_holds(registry, holds).await,
        Some(Ask::Reconcile(set)) => answer_reconcile(registry, set).await,
        Some(Ask::Fetch(fetch)) => answer_fetch(registry, fetch).await,
        Some(Ask::Keeps(keeps)) => answer_keeps(registry, mirror, keeps).await,
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

async fn answer_reconcile(registry: &Registry, set: Reconcile) -> Answered {
    match registry.answer_ranges(set.items).await {
        Ok(answer) => Ok(Say::Reconciled(Reconciled { items: answer.items, handled: answer.handled as u32 })),
        Err(SyncError::Garbled(garbled)) => Err((Reason::BadInput, garbled.to_string())),
        Err(SyncError::Catalog(error)) => Err(internal(error)),
    }
}

/// Of the records asked for, those that are live here, as many as fit.
async fn answer_fetch(registry: &Registry, fetch: Fetch) -> Answered {
    let ids: Result<Vec<RecordId>, _> = fetch.ids.iter().map(|id| RecordId::try_from(id.as_slice())).collect();
    let ids = ids.map_err(|e| (Reason::BadInput, e.to_string()))?;
    let records = registry.live(ids).await.map_err(internal)?;
    Ok(Say::Records(Records { records: records.iter().map(|record| record.envelope().clone()).collect() }))
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

/// What this node keeps whole of these, and whether it may let it go when others keep enough.
async fn answer_keeps(registry: &Registry, mirror: &Board, keeps: Keeps) -> Answered {
    if keeps.revisions.len() > KEEPS_MAX {
        return Err((Reason::Limit, format!("at most {KEEPS_MAX} revisions in one question")));
    }
    let revisions: Result<Vec<RevisionId>, _> =
        keeps.revisions.iter().map(|revision| RevisionId::try_from(revision.as_slice())).collect();
    let revisions = revisions.map_err(|e| (Reason::BadInput, e.to_string()))?;
    let mirrored = registry.mirrored(revisions.clone()).await.map_err(internal)?;
    let mut states = Vec::with_capacity(revisions.len());
    for revision in revisions {
        states.push(match registry.keeps_whole(revision).await {
            false => copies::NOT_KEPT,
            true if mirrored.contains(&revision) && !mirror.stays(revision) => copies::KEPT_FOR_NOW,
            true => copies::KEPT_ANYWAY,
        });
    }
    Ok(Say::Kept(Kept { states }))
}

/// What is here of a blob and what comes; `None` if nothing does. Of many pieces, the first are told.
async fn holding(registry: &Registry, hash: BlobHash) -> Result<Option<Holding>, (Reason, String)> {
    if registry.blobs().has(hash).await.map_err(internal)? {
        return Ok(Some(Holding { hash: hash.to_vec(), complete: true, ..Holding::default() }));
    }
    let held = registry.blobs().local_ranges(hash).await.map_err(internal)?;
    let coming = registry.blobs().coming(hash);
    if held.is_empty() && coming.is_empty() {
        return Ok(None);
    }
    let flat = |ranges: Vec<Range<u64>>| {
        ranges.iter().flat_map(|range| [range.start, range.end]).take(HOLDING_RANGES_MAX).collect()
    };
    Ok(Some(Holding { hash: hash.to_vec(), complete: false, ranges: flat(held), coming: flat(coming) }))
}

fn internal(error: impl std::fmt::Display) -> (Reason, String) {
    tracing::warn!(%error, "a peer's question could not be answered");
    (Reason::Internal, "this node's catalogue could not be read".to_owned())
}

#[cfg(test)]
mod tests;
