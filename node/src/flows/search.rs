//! Finding repos: an API request becomes the registry's, what is found becomes the API's.
//!
//! It asks nobody else: a node finds what its own catalogue knows. Invariant: an answer is one page, bounded by the registry's limits.

use cairn_protocol::{
    api,
    id::RevisionId,
    refusal::{Reason, Refusal},
};
use cairn_registry::{Field, RepoSummary, Search, SearchError, Sort};

use super::show::{catalog, is_whole, repo_of};
use crate::shell::Node;

/// Repos of one page, and values of one facet, unless told otherwise.
const PAGE: usize = 20;
const FACET_VALUES: usize = 10;

/// Answers `Search`.
pub async fn search(node: &Node, request: api::SearchRequest) -> Result<api::SearchResponse, Refusal> {
    let found = node.registry.search(wanted(request)?).await.map_err(refusal)?;
    let mut repos = Vec::with_capacity(found.repos.len());
    for summary in found.repos {
        repos.push(repo(node, summary).await?);
    }
    let value = |(value, count)| api::FacetValue { value, count };
    let facet = |(field, values): (Field, Vec<(String, u64)>)| api::Facet {
        field: field.name().to_owned(),
        values: values.into_iter().map(value).collect(),
    };
    Ok(api::SearchResponse {
        repos,
        total: found.total,
        facets: found.facets.into_iter().map(facet).collect(),
        next_cursor: found.next_cursor.unwrap_or_default(),
        pending: found.pending,
    })
}

fn wanted(request: api::SearchRequest) -> Result<Search, Refusal> {
    let field = |text: &str| text.parse::<Field>().map_err(|why| bad(text, why));
    let filters = request.filters.into_iter().map(|filter| Ok((field(&filter.field)?, filter.values)));
    let sort = match request.sort.as_str() {
        "" => None,
        text => Some(text.parse::<Sort>().map_err(|why| bad(text, why))?),
    };
    let or = |number: u32, usual: usize| if number == 0 { usual } else { number as usize };
    Ok(Search {
        query: request.query,
        filters: filters.collect::<Result<_, Refusal>>()?,
        parameters: bounds(request.min_parameters, request.max_parameters, "parameters")?,
        bytes: bounds(request.min_bytes, request.max_bytes, "bytes")?,
        facets: request.facets.iter().map(|text| field(text)).collect::<Result<_, _>>()?,
        facet_limit: or(request.facet_limit, FACET_VALUES),
        sort,
        limit: or(request.limit, PAGE),
        cursor: Some(request.cursor).filter(|cursor| !cursor.is_empty()),
    })
}

fn bounds(min: u64, max: u64, what: &str) -> Result<Option<(u64, u64)>, Refusal> {
    match (min, max) {
        (0, 0) => Ok(None),
        (min, 0) => Ok(Some((min, u64::MAX))),
        (min, max) if min <= max => Ok(Some((min, max))),
        _ => Err(bad(what, format!("at least {min} and at most {max} is nothing"))),
    }
}

async fn repo(node: &Node, summary: RepoSummary) -> Result<api::FoundRepo, Refusal> {
    let revision = summary.head.as_ref().map_or(RevisionId::from([0; 32]), |head| head.revision);
    let held = summary.kept && is_whole(node, revision).await?;
    let shown = repo_of(&summary, summary.revision.as_ref(), revision);
    let (tags, card) = summary.revision.map(|revision| (revision.tags, *revision.card)).unwrap_or_default();
    Ok(api::FoundRepo {
        repo: shown.repo,
        kind: shown.kind,
        publisher: shown.publisher,
        handle: shown.handle,
        name: shown.name,
        revision: shown.revision,
        bytes: shown.bytes,
        files: shown.files,
        architecture: shown.architecture,
        parameters: shown.parameters,
        quantisation: shown.quantisation,
        license: shown.license,
        created_ms: shown.created_ms,
        held,
        task: card.task,
        library: card.library,
        languages: card.languages,
        base_models: card.base_models,
        tags,
    })
}

fn bad(what: &str, why: String) -> Refusal {
    Refusal::new(Reason::BadInput, what, why).try_this("cairn search --help")
}

fn refusal(error: SearchError) -> Refusal {
    match error {
        SearchError::Catalog(error) => catalog(error),
        SearchError::Index(why) => {
            Refusal::new(Reason::Internal, "the search", why).try_this("again in a minute; cairn ls goes on")
        }
        SearchError::Cursor => {
            bad("the cursor", SearchError::Cursor.to_string()).try_this("the search without a cursor")
        }
        error => bad("the search", error.to_string()),
    }
}
