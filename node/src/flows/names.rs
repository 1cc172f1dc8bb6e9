//! From a name to a revision, with the help of peers: what is not known here is asked for, and what peers answer is judged by the
//! catalogue like any other record.
//!
//! The order in which a handle resolves is the registry's. Invariant: a peer's answer is only ever signed records; no peer can make
//! a name mean anything that its publisher did not sign.

use std::{collections::BTreeMap, time::Duration};

use cairn_protocol::{
    id::PublisherKey,
    name::{NameError, Publisher, RefName, RefSpec, RepoPath, RepoRef},
    peer_pb::{Answer, Question, Resolve, answer::Say, question::Ask},
    record::{Record, RecordKind},
    refusal::{Reason, Refusal},
};
use cairn_registry::{Inserted, ResolveError, Resolved};
use futures::{StreamExt, stream};

use super::records::{count_unknown, verify_answer};
use crate::shell::Node;

/// Peers that are asked for one name.
const ASKED_MAX: usize = 16;
/// Time for their answers; they only look into their catalogues.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// A name as a person writes it: `PUBLISHER/NAME` or `PUBLISHER/NAME@REF`.
pub fn parse(repo: &str) -> Result<RepoRef, Refusal> {
    repo.parse().map_err(|error: NameError| {
        Refusal::new(Reason::BadInput, format!("{repo:?}"), error.to_string())
            .try_this("PUBLISHER/NAME or PUBLISHER/NAME@REF")
    })
}

/// Resolves with what is known here, else asks peers.
pub async fn resolve_anywhere(node: &Node, name: &RepoRef) -> Result<Resolved, Refusal> {
    let own = own_keys(node)?;
    match node.registry.resolve(name, &own).await {
        Ok(resolved) => return Ok(resolved),
        Err(error) if !others_may_know(&error) => return Err(refusal(name, &error)),
        Err(_) => {}
    }
    learn(node, &name.path, &reference(name)).await;
    node.registry.resolve(name, &own).await.map_err(|error| refusal(name, &error))
}

/// Asks peers first, so that the newest head counts that any of them knows.
pub async fn resolve_newest(node: &Node, name: &RepoRef) -> Result<Resolved, Refusal> {
    learn(node, &name.path, &reference(name)).await;
    resolve_anywhere(node, name).await
}

/// Remembers whose handle this is. Only for an explicit act of a person.
pub async fn remember(node: &Node, name: &RepoRef, resolved: &Resolved) {
    if let Publisher::Handle(handle) = &name.path.publisher
        && let Err(error) = node.registry.pin_handle(handle, resolved.repo.publisher).await
    {
        tracing::warn!(%error, %handle, "whose handle this is could not be remembered");
    }
}

/// The publisher keys that this node signs with.
pub fn own_keys(node: &Node) -> Result<Vec<PublisherKey>, Refusal> {
    Ok(node.home.publishers()?.into_iter().map(|(_, key)| key.public()).collect())
}

/// Asks connected peers for a ref of a repo and takes in what they say; answers with how many records were new.
pub async fn learn(node: &Node, path: &RepoPath, reference: &RefName) -> usize {
    let (publisher_key, publisher_handle) = match &path.publisher {
        Publisher::Key(key) => (key.to_vec(), String::new()),
        Publisher::Handle(handle) => (Vec::new(), handle.to_string()),
    };
    let question = Question {
        ask: Some(Ask::Resolve(Resolve {
            kind: path.kind.to_pb(),
            publisher_key,
            publisher_handle,
            name: path.name.to_string(),
            r#ref: reference.to_string(),
        })),
    };
    let peers = node.net.peers().into_iter().filter(|peer| peer.connected).take(ASKED_MAX);
    let asking = peers.map(|peer| {
        let question = question.clone();
        async move { (peer.node_id, node.net.ask(peer.node_id, question, ANSWER_DEADLINE).await) }
    });
    let mut answers = stream::iter(asking).buffer_unordered(ASKED_MAX);
    let mut records: BTreeMap<_, Record> = BTreeMap::new();
    while let Some((peer, answer)) = answers.next().await {
        let Ok(Answer { say: Some(Say::Records(answer)) }) = answer else { continue };
        let (good, _) = verify_answer(&node.net, peer, answer.records).await;
        // Profiles and revisions come before the heads that need them.
        records.extend(good.into_iter().map(|record| ((order(record.kind()), record.id()), record)));
    }
    take_in(node, records.into_values().collect()).await
}

async fn take_in(node: &Node, records: Vec<Record>) -> usize {
    if records.is_empty() {
        return 0;
    }
    match node.registry.insert_page(records).await {
        Ok(verdicts) => {
            node.net.note_unknown_records(count_unknown(&verdicts));
            verdicts.iter().filter(|verdict| matches!(verdict, Ok(Inserted::New))).count()
        }
        Err(error) => {
            tracing::warn!(%error, "peers' records were not kept");
            0
        }
    }
}

fn order(kind: RecordKind) -> u32 {
    kind.number()
}

/// The ref that peers are asked for; of a hash prefix they know the newest revision at least.
fn reference(name: &RepoRef) -> RefName {
    match &name.spec {
        Some(RefSpec::Ref(reference)) => reference.clone(),
        Some(RefSpec::Prefix(_)) | None => RefName::main(),
    }
}

fn others_may_know(error: &ResolveError) -> bool {
    matches!(
        error,
        ResolveError::UnknownHandle(_)
            | ResolveError::UnknownRepo(_)
            | ResolveError::UnknownRef { .. }
            | ResolveError::RevisionUnknown { .. }
            | ResolveError::UnknownPrefix { .. }
            | ResolveError::Contested { .. }
    )
}

fn refusal(name: &RepoRef, error: &ResolveError) -> Refusal {
    let (reason, advice) = match error {
        ResolveError::UnknownHandle(_) | ResolveError::UnknownRepo(_) => {
            (Reason::NotFound, "cairn ls, cairn peers".to_owned())
        }
        ResolveError::UnknownRef { path, .. } | ResolveError::UnknownPrefix { path, .. } => {
            (Reason::NotFound, format!("cairn show {path}"))
        }
        ResolveError::RevisionUnknown { .. } => (Reason::NotFound, "again in a moment".to_owned()),
        ResolveError::ClaimedBySeveral { claimants, .. } => {
            let keys: Vec<String> = claimants.iter().map(PublisherKey::to_string).collect();
            (Reason::Ambiguous, format!("a key in place of the handle: {}", keys.join(" or ")))
        }
        ResolveError::Contested { revisions, .. } => {
            let revisions: Vec<String> = revisions.iter().map(|id| format!("@{id}")).collect();
            (Reason::Ambiguous, format!("one of the revisions: {}", revisions.join(" or ")))
        }
        ResolveError::BeforeRotation { revision, .. } => (
            Reason::Untrusted,
            format!("again when its publisher has signed it anew, or @{revision} if that is the one you know"),
        ),
        ResolveError::AmbiguousPrefix { candidates, .. } => {
            let candidates: Vec<String> = candidates.iter().map(ToString::to_string).collect();
            (Reason::Ambiguous, format!("more digits: {}", candidates.join(" or ")))
        }
        ResolveError::Catalog(_) => (Reason::Internal, "the node's log".to_owned()),
    };
    let why = match error {
        ResolveError::UnknownRepo(_) => "neither this node nor a peer that it reaches knows it".to_owned(),
        error => error.to_string(),
    };
    Refusal::new(reason, name.to_string(), why).try_this(advice)
}
