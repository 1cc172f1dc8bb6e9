//! What a repo was and is: the history of its refs, what differs between two revisions, and refs that are made to stand for one.
//!
//! Which head counts is the catalogue's knowledge. Invariant: a ref is only ever moved by a signed successor, also backwards; tags never.

use std::collections::BTreeMap;

use cairn_protocol::{
    api,
    id::RevisionId,
    name::{RefName, RefSpec, RepoId, RepoRef},
    record::Head,
    refusal::{Reason, Refusal},
};
use cairn_registry::{HeadRow, PassedOver, RefState};

use super::{
    names, publish,
    publishers::{now_ms, signer_for},
    show::{catalog, is_whole},
};
use crate::shell::Node;

/// Revisions of one page unless told otherwise, and at most.
const PAGE: usize = 50;
const PAGE_MAX: usize = 500;

/// Answers `History`.
pub async fn history(node: &Node, request: api::HistoryRequest) -> Result<api::HistoryResponse, Refusal> {
    let name = names::parse(&request.repo)?;
    let resolved = names::resolve_anywhere(node, &RepoRef { spec: None, ..name.clone() }).await;
    let (repo, path, warning) = match resolved {
        Ok(resolved) => (resolved.repo, resolved.path, resolved.warning),
        // A repo without main has a history of the ref that is asked for.
        Err(_) => {
            let resolved = names::resolve_anywhere(node, &name).await?;
            (resolved.repo, resolved.path, resolved.warning)
        }
    };
    let reference = match name.spec {
        Some(RefSpec::Ref(reference)) => reference,
        _ => RefName::main(),
    };
    let refs = node.registry.refs(&repo).await.map_err(catalog)?;
    let state = refs.iter().find(|state| state.name == reference).ok_or_else(|| {
        let names: Vec<String> = refs.iter().map(|state| state.name.to_string()).collect();
        Refusal::new(Reason::NotFound, format!("{path}@{reference}"), "the repo has no such ref that is known here")
            .try_this(format!("one of its refs: {}", names.join(" ")))
    })?;
    let from: usize = match request.page_token.is_empty() {
        true => 0,
        false => request.page_token.parse().map_err(|_| publish::bad(&request.page_token, &"not a page token"))?,
    };
    let limit = if request.limit == 0 { PAGE } else { (request.limit as usize).min(PAGE_MAX) };
    let naming = refs_by_revision(&refs);
    let mut revisions = Vec::new();
    for head in state.history.iter().rev().skip(from).take(limit) {
        revisions.push(past(node, &repo, state, head, &naming).await?);
    }
    let next = from + revisions.len();
    Ok(api::HistoryResponse {
        repo: path,
        r#ref: reference.to_string(),
        next_page_token: if next < state.history.len() { next.to_string() } else { String::new() },
        revisions,
        warning: warning.unwrap_or_default(),
    })
}

fn refs_by_revision(refs: &[RefState]) -> BTreeMap<RevisionId, Vec<String>> {
    let mut naming: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for state in refs {
        if let Some(head) = &state.head {
            naming.entry(head.revision).or_default().push(state.name.to_string());
        }
    }
    naming
}

async fn past(
    node: &Node,
    repo: &RepoId,
    state: &RefState,
    head: &HeadRow,
    naming: &BTreeMap<RevisionId, Vec<String>>,
) -> Result<api::PastRevision, Refusal> {
    let record = node.registry.record(cairn_protocol::RecordKind::Head, head.id).await.map_err(catalog)?;
    let signer = record.map(|record| record.key().to_string()).unwrap_or_default();
    let shown = api::PastRevision {
        revision: head.revision.to_string(),
        epoch: head.epoch,
        number: head.number,
        state: standing(state, head).to_owned(),
        signer,
        refs: naming.get(&head.revision).cloned().unwrap_or_default(),
        held: is_whole(node, head.revision).await?,
        ..api::PastRevision::default()
    };
    let body = node.registry.revision_in(repo, head.revision).await.map_err(catalog)?;
    let Some(body) = body else { return Ok(api::PastRevision { state: "unknown".to_owned(), ..shown }) };
    Ok(api::PastRevision {
        message: body.message,
        created_ms: body.created_ms,
        files: body.files,
        bytes: body.bytes,
        parents: body.parents.iter().map(RevisionId::to_string).collect(),
        ..shown
    })
}

fn standing(state: &RefState, head: &HeadRow) -> &'static str {
    if state.head.as_ref().is_some_and(|current| current.id == head.id) {
        return "current";
    }
    for passed in &state.passed_over {
        match passed {
            PassedOver::Contested { heads, .. } if heads.iter().any(|rival| rival.id == head.id) => {
                return if heads.len() == 1 { "not continued" } else { "contested" };
            }
            PassedOver::BeforeRotation(newest) if newest.id == head.id => return "before rotation",
            _ => {}
        }
    }
    "past"
}

/// Answers `SetRef`.
pub async fn set_ref(node: &Node, request: api::SetRefRequest) -> Result<api::SetRefResponse, Refusal> {
    let resolved = names::resolve_newest(node, &names::parse(&request.repo)?).await?;
    let name: RefName = request.r#ref.parse().map_err(|error| publish::bad(&request.r#ref, &error))?;
    if request.tag {
        publish::tag(&request.r#ref)?;
    }
    names::learn(node, &resolved.repo.path(), &name).await;
    let signer = signer_for(node, &cairn_protocol::Publisher::Key(resolved.repo.publisher)).await?;
    let next = node.registry.next_head(&resolved.repo, &name).await.map_err(catalog)?;
    let head = Head {
        kind: resolved.repo.kind,
        name: resolved.repo.name.clone(),
        ref_name: name.clone(),
        epoch: next.epoch,
        number: next.number,
        revision: resolved.revision,
        previous: next.previous,
        created_ms: now_ms(),
        tag: request.tag,
        publisher: signer.named(),
    };
    let record = head.sign(node.registry.realm(), &signer.key);
    let record = record.map_err(|error| Refusal::internal(&resolved.path, error))?;
    let pointed = node.registry.point(record.clone()).await;
    pointed.map_err(|error| publish::publish_refusal(node, &format!("{}@{name}", resolved.path), error))?;
    node.net.publish_record(record).await;
    Ok(api::SetRefResponse {
        repo: resolved.path,
        r#ref: name.to_string(),
        revision: resolved.revision.to_string(),
        epoch: next.epoch,
        number: next.number,
    })
}
