//! What is told of a revision's card: its problems from the file where that is on this node, its facts from the signed record.
//!
//! It fetches nothing: a card is a small file, and still another node's to send. Invariant: what is shown of a card never keeps the
//! rest of a repo from being shown.

use cairn_protocol::{api, manifest::Manifest, record::Revision};
use cairn_registry::{CARD_BYTES_MAX, Card, CardProblem};

use crate::{panics::catch, shell::Node};

/// The card of a revision, if it has one or its record speaks of one.
pub(super) async fn of(node: &Node, manifest: Option<&Manifest>, record: Option<&Revision>) -> Option<api::Card> {
    if let Some(card) = read(node, manifest).await {
        return Some(card);
    }
    record.map(from_record).filter(|card| *card != api::Card::default())
}

/// The card's file, if it is here.
async fn read(node: &Node, manifest: Option<&Manifest>) -> Option<api::Card> {
    let file = manifest?.file("README.md").or_else(|| manifest?.file("readme.md"))?;
    let bytes = node.registry.blobs().read(file.blake3, 0..file.size.min(CARD_BYTES_MAX)).await.ok()?;
    let read = tokio::task::spawn_blocking(move || catch("a card", || Card::parse(&bytes)).ok());
    read.await.ok().flatten().map(from_file)
}

fn from_file(card: Card) -> api::Card {
    let problems = card.problems.iter().map(problem).collect();
    let facts = card.facts;
    api::Card {
        task: facts.task,
        library: facts.library,
        license: card.license,
        languages: facts.languages,
        base_models: facts.base_models,
        base_model_relation: facts.base_model_relation,
        datasets: facts.datasets,
        tags: card.tags,
        text: facts.text,
        problems,
    }
}

fn from_record(record: &Revision) -> api::Card {
    let (license, tags, facts) = (record.license.clone(), record.tags.clone(), (*record.card).clone());
    from_file(Card { license, tags, facts, problems: Vec::new() })
}

/// Something wrong with a card, as the API says it.
pub(super) fn problem(problem: &CardProblem) -> api::CardProblem {
    api::CardProblem {
        line: u32::try_from(problem.line).unwrap_or(u32::MAX),
        field: problem.field.clone(),
        what: problem.what.clone(),
        error: problem.is_error,
    }
}
