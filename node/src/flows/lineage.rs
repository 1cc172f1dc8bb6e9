//! Lineage for people: what a revision was made from, and what was made from it.
//!
//! Following it is the catalogue's. Invariant: an edge is what a publisher stated of its own revision, and is told as that.

use cairn_protocol::{api, refusal::Refusal};
use cairn_registry::lineage::{Direction, Edge, Place};

use super::{names, show::catalog};
use crate::shell::Node;

/// Steps in each direction unless told otherwise.
const DEPTH: u32 = 8;

/// Answers `Lineage`.
pub async fn lineage(node: &Node, request: api::LineageRequest) -> Result<api::LineageResponse, Refusal> {
    let resolved = names::resolve_anywhere(node, &names::parse(&request.repo)?).await?;
    let depth = if request.depth == 0 { DEPTH } else { request.depth };
    let follow = |direction| node.registry.lineage(&resolved.repo, resolved.revision, direction, depth);
    let up = follow(Direction::Up).await.map_err(catalog)?;
    let down = follow(Direction::Down).await.map_err(catalog)?;
    Ok(api::LineageResponse {
        repo: resolved.path,
        revision: resolved.revision.to_string(),
        cut: up.is_cut || down.is_cut,
        origins: up.edges.into_iter().map(edge).collect(),
        descendants: down.edges.into_iter().map(edge).collect(),
    })
}

fn edge(edge: Edge) -> api::LineageEdge {
    api::LineageEdge {
        depth: edge.depth,
        relation: edge.relation,
        child: Some(place(edge.child)),
        origin: Some(place(edge.origin)),
    }
}

fn place(place: Place) -> api::LineagePlace {
    api::LineagePlace {
        known: place.publisher.is_some(),
        repo: place.path,
        revision: place.revision.map(|revision| revision.to_string()).unwrap_or_default(),
    }
}
