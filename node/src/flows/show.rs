//! The catalogue for people: resolve a name, list repos, show everything known of one.
//!
//! It changes nothing here (what peers answer about an unknown name is kept like any record). Invariant: a page is bounded, and
//! what could not be learnt is said in `warning`, not left out in silence.

use cairn_compute::{adapter::AdapterSpec, arch};
use cairn_protocol::{
    api,
    id::RevisionId,
    manifest::{Manifest, ManifestFile, Model},
    name::{Publisher, RepoKind, RepoPath},
    record::Revision,
    refusal::Refusal,
};
use cairn_registry::{PassedOver, RefState, RepoSummary, Resolved};

use super::{advisories, attest, bring::hold_refusal, card, holders, names};
use crate::shell::Node;

/// Repos of one page unless told otherwise, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;
/// Files of one answer; longer lists are read from the manifest.
const FILES_MAX: usize = 10_000;

/// Answers `Resolve`.
pub async fn resolve(node: &Node, request: api::ResolveRequest) -> Result<api::ResolveResponse, Refusal> {
    let resolved = names::resolve_anywhere(node, &names::parse(&request.repo)?).await?;
    Ok(api::ResolveResponse {
        repo: resolved.path,
        publisher: resolved.repo.publisher.to_string(),
        kind: resolved.repo.kind.to_string(),
        name: resolved.repo.name.to_string(),
        r#ref: resolved.ref_name.map(|name| name.to_string()).unwrap_or_default(),
        revision: resolved.revision.to_string(),
        epoch: resolved.epoch,
        number: resolved.number,
        warning: resolved.warning.unwrap_or_default(),
    })
}

/// Answers `List`.
pub async fn list(node: &Node, request: api::ListRequest) -> Result<api::ListResponse, Refusal> {
    let limit = if request.limit == 0 { PAGE } else { (request.limit as usize).min(PAGE_MAX) };
    let after = (!request.page_token.is_empty()).then_some(request.page_token);
    let (page, next) = node.registry.list(&request.prefix, after, limit).await.map_err(catalog)?;
    let mut repos = Vec::with_capacity(page.len());
    for summary in page {
        repos.push(repo(node, summary).await?);
    }
    Ok(api::ListResponse { repos, next_page_token: next.unwrap_or_default() })
}

/// Answers `Show`.
pub async fn show(node: &Node, request: api::ShowRequest) -> Result<api::ShowResponse, Refusal> {
    let resolved = names::resolve_anywhere(node, &names::parse(&request.repo)?).await?;
    let summary = node.registry.summary(&resolved.repo).await.map_err(catalog)?;
    let summary =
        summary.ok_or_else(|| Refusal::internal(&resolved.path, "a repo that resolves is not in the catalogue"))?;
    let refs = node.registry.refs(&resolved.repo).await.map_err(catalog)?;
    let mut warnings: Vec<String> = resolved.warning.iter().cloned().collect();
    let manifest = match holders::manifest_of(node, &resolved).await {
        Ok(manifest) => Some(manifest),
        Err(refusal) => {
            warnings.push(format!("its files can't be listed: {}", refusal.why));
            None
        }
    };
    let record = node.registry.revision(resolved.revision).await.map_err(catalog)?.map(|(_, record)| record);
    let shown = shown(node, summary, &resolved, manifest.as_ref(), record.as_ref()).await?;
    let notices = advisories::on(node, &resolved.repo, resolved.revision, manifest.as_ref()).await?;
    let mut said = Vec::with_capacity(notices.len());
    for notice in &notices {
        said.push(advisories::told(node, notice).await?);
    }
    let attestations = attest::on(node, &resolved.repo, resolved.revision).await?;
    let manifest = manifest.as_ref();
    let card = card::of(node, manifest, record.as_ref()).await;
    Ok(api::ShowResponse {
        holders: holder_ids(node, &resolved, shown.held).await,
        repo: Some(shown),
        refs: refs.iter().filter_map(reference).collect(),
        files: manifest.map(|m| m.files.iter().take(FILES_MAX).map(file).collect()).unwrap_or_default(),
        model: manifest.and_then(|manifest| manifest.model.as_ref()).map(model),
        message: manifest.map(|manifest| manifest.message.clone()).unwrap_or_default(),
        parents: manifest.map(|m| m.parents.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        warning: warnings.join("; "),
        tensors: manifest.map_or(0, |manifest| manifest.tensors.len() as u64),
        metadata: manifest.map(|m| m.metadata.iter().map(entry).collect()).unwrap_or_default(),
        adapter: manifest.and_then(adapter),
        card,
        advisories: said,
        attestations,
    })
}

/// The summary, of the revision that was asked for.
async fn shown(
    node: &Node,
    summary: RepoSummary,
    resolved: &Resolved,
    manifest: Option<&Manifest>,
    record: Option<&Revision>,
) -> Result<api::Repo, Refusal> {
    let mut shown = repo_of(&summary, record, resolved.revision);
    if let Some(manifest) = manifest {
        (shown.files, shown.bytes) = (manifest.files.len() as u64, manifest.bytes());
    }
    shown.held = is_whole(node, resolved.revision).await?;
    Ok(shown)
}

async fn repo(node: &Node, summary: RepoSummary) -> Result<api::Repo, Refusal> {
    let Some(revision) = summary.head.as_ref().map(|head| head.revision) else {
        return Ok(repo_of(&summary, None, RevisionId::from([0; 32])));
    };
    let mut repo = repo_of(&summary, summary.revision.as_ref(), revision);
    repo.held = summary.kept && is_whole(node, revision).await?;
    Ok(repo)
}

pub(super) fn repo_of(summary: &RepoSummary, body: Option<&Revision>, revision: RevisionId) -> api::Repo {
    let handle = summary.path.parse::<RepoPath>().ok().and_then(|path| match path.publisher {
        Publisher::Handle(handle) => Some(handle.to_string()),
        Publisher::Key(_) => None,
    });
    let mut repo = api::Repo {
        repo: summary.path.clone(),
        kind: summary.repo.kind.to_string(),
        publisher: summary.repo.publisher.to_string(),
        handle: handle.unwrap_or_default(),
        name: summary.repo.name.to_string(),
        ..api::Repo::default()
    };
    if let Some(body) = body {
        repo.revision = revision.to_string();
        (repo.bytes, repo.files, repo.parameters) = (body.bytes, body.files, body.parameters);
        (repo.architecture, repo.quantisation) = (body.architecture.clone(), body.quantisation.clone());
        (repo.license, repo.created_ms) = (body.license.clone(), body.created_ms);
    }
    repo
}

pub(super) async fn is_whole(node: &Node, revision: RevisionId) -> Result<bool, Refusal> {
    let held = node.registry.held(revision).await.map_err(|error| hold_refusal(revision, error))?;
    Ok(held.whole && held.kept)
}

async fn holder_ids(node: &Node, resolved: &Resolved, is_held: bool) -> Vec<String> {
    let own = is_held.then(|| node.identity.node_id().to_string());
    let others = holders::find(node, resolved.revision).await;
    own.into_iter().chain(others.iter().map(|source| source.node.to_string())).collect()
}

fn reference(state: &RefState) -> Option<api::Ref> {
    let ambiguous = state.passed_over.iter().any(|passed| matches!(passed, PassedOver::Contested { .. }));
    let head = state.head.as_ref().or(state.history.last())?;
    Some(api::Ref {
        name: state.name.to_string(),
        revision: head.revision.to_string(),
        epoch: head.epoch,
        number: head.number,
        tag: head.tag,
        ambiguous,
    })
}

fn entry((key, value): &(String, String)) -> api::Entry {
    api::Entry { key: key.clone(), value: value.clone() }
}

fn file(file: &ManifestFile) -> api::File {
    let digest = |algorithm: &str, hex: String| api::Digest { algorithm: algorithm.to_owned(), hex };
    api::File {
        path: file.path.to_string(),
        size: file.size,
        digests: vec![
            digest("blake3", file.blake3.to_string()),
            digest("sha256", hex::encode(file.sha256)),
            digest("git-sha1", hex::encode(file.git_sha1)),
        ],
    }
}

/// What an adapter says of itself; one of a format that is not known here is there and not served.
fn adapter(manifest: &Manifest) -> Option<api::Adapter> {
    if manifest.repo.kind != RepoKind::Adapter || !AdapterSpec::is_in(&manifest.metadata) {
        return None;
    }
    let Ok(spec) = AdapterSpec::from_metadata(&manifest.metadata) else { return Some(api::Adapter::default()) };
    Some(api::Adapter {
        base_model: spec.base_model,
        rank: spec.rank,
        alpha: spec.alpha,
        rank_stabilised: spec.is_rank_stabilised,
        modules: spec.modules,
        served: true,
    })
}

fn model(model: &Model) -> api::Model {
    api::Model {
        architecture: model.architecture.clone(),
        layers: model.layers,
        width: model.width,
        heads: model.heads,
        kv_heads: model.kv_heads,
        vocabulary: model.vocabulary,
        context_max: model.context_max,
        served: arch::is_served(model),
    }
}

pub(super) fn catalog(error: cairn_registry::CatalogError) -> Refusal {
    Refusal::internal("the catalogue", error).try_this("the node's log")
}
