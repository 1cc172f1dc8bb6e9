//! What a publication was made from, as far as this node knows the repos that its card and its job name.
//!
//! Names on a card are only names; those that resolve here become origins that every node finds again, whatever it calls their publishers.
//! Invariant: an origin names a repo whose records were here when it was signed.

use std::collections::BTreeMap;

use cairn_protocol::{
    id::RevisionId,
    limits::ORIGINS_MAX,
    name::RepoId,
    record::{CardFacts, Origin},
    refusal::Refusal,
};
use cairn_registry::{Card, ResolveError};

use super::{names, publish::MadeFrom, show::catalog};
use crate::shell::Node;

/// The origins of a publication: what a job made it from, then what its card names.
pub(super) async fn of(node: &Node, made_from: &MadeFrom, card: Option<&Card>) -> Result<Vec<Origin>, Refusal> {
    let mut origins: BTreeMap<RepoId, Origin> = BTreeMap::new();
    for revision in &made_from.revisions {
        if let Some((repo, _)) = node.registry.revision(*revision).await.map_err(catalog)? {
            add(&mut origins, made_from.relation, repo, Some(*revision));
        }
    }
    for (relation, name) in card.iter().flat_map(|card| card.facts.named()) {
        if let Some(repo) = known(node, relation, name).await? {
            add(&mut origins, relation, repo, None);
        }
    }
    Ok(origins.into_values().take(ORIGINS_MAX).collect())
}

fn add(origins: &mut BTreeMap<RepoId, Origin>, relation: &str, repo: RepoId, revision: Option<RevisionId>) {
    origins.entry(repo.clone()).or_insert(Origin { relation: relation.to_owned(), repo, revision });
}

/// The repo that a card names, if it is known here.
async fn known(node: &Node, relation: &str, name: &str) -> Result<Option<RepoId>, Refusal> {
    let Some(path) = CardFacts::repo_named(relation, name) else { return Ok(None) };
    let publisher = match node.registry.resolve_publisher(&path.publisher, &names::own_keys(node)?).await {
        Ok((publisher, _)) => publisher,
        Err(ResolveError::Catalog(error)) => return Err(catalog(error)),
        Err(_) => return Ok(None),
    };
    let repo = RepoId { publisher, kind: path.kind, name: path.name };
    Ok(node.registry.summary(&repo).await.map_err(catalog)?.map(|_| repo))
}
