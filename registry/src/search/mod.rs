//! Finding repos: full text over names, cards and tags, filters, facets with counts, orders, pages.
//!
//! The index (a library's, in `HOME/search`) is derived from the catalogue: [`journal`] notes what changed in the transaction that
//! changed it, [`keeper`] carries that over, and what is shown of a repo is read from the catalogue itself. [`query`] is the language,
//! [`compile`] the ranking, [`collect`] the walk, [`index`] the files.
//!
//! Invariant: a search changes nothing, costs memory that its page and facets bound, and answers with one clear error or a page.

mod collect;
mod compile;
mod index;
pub(crate) mod journal;
mod keeper;
mod query;
mod schema;
mod words;

use std::{
    cmp::Reverse,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cairn_protocol::{
    id::{PublisherKey, RealmId},
    name::{Publisher, RepoId},
};
use redb::{ReadTransaction, ReadableTableMetadata};
use tokio::sync::{Semaphore, watch};

pub use self::{
    collect::Sort,
    query::{Field, QUERY_BYTES_MAX, QueryError},
};
use self::{
    collect::{Place, Walked, Wanted},
    compile::Filters,
    index::Opened,
    keeper::Keeper,
    query::{Part, Query},
};
use crate::{
    Registry, ResolveError,
    catalog::{Catalog, CatalogError, keys, tables},
    damage::guarded,
    listing::{self, RepoSummary},
    look, resolve,
};

/// Repos of one page at most.
pub const SEARCH_PAGE_MAX: usize = 200;

/// Values of one facet at most.
pub const FACET_VALUES_MAX: usize = 100;

/// Values that one filter may permit.
const FILTER_VALUES_MAX: usize = 64;

/// Searches that walk at once; others wait for a place.
const WALKS_MAX: usize = 4;

/// How long a search waits for an index that is being checked: a gigabyte takes seconds.
const CHECK_PATIENCE: Duration = Duration::from_secs(20);

/// The layout of a cursor.
const CURSOR_VERSION: u8 = 1;

/// What is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// In the query language; empty for everything that the filters leave.
    pub query: String,
    /// Of each field one of these values.
    pub filters: Vec<(Field, Vec<String>)>,
    /// Bounds on elements of all tensors, both included.
    pub parameters: Option<(u64, u64)>,
    /// Bounds on bytes of all files, both included.
    pub bytes: Option<(u64, u64)>,
    /// Fields whose values are counted.
    pub facets: Vec<Field>,
    /// Most values of each.
    pub facet_limit: usize,
    /// The order; without words the newest come first, with words the best.
    pub sort: Option<Sort>,
    /// Repos of the page.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

/// What is found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// One page.
    pub repos: Vec<RepoSummary>,
    /// Of all pages.
    pub total: u64,
    /// Each facet's most frequent values.
    pub facets: Vec<(Field, Vec<(String, u64)>)>,
    /// Where the next page begins, if there is one.
    pub next_cursor: Option<String>,
    /// Changed repos that are not in the index yet.
    pub pending: u64,
}

/// Why nothing can be looked for.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The query can't be read.
    #[error("the query can't be read {0}")]
    Query(#[from] QueryError),
    /// Too many values of one filter.
    #[error("the filter {} has more than {FILTER_VALUES_MAX} values", .0.name())]
    Filter(Field),
    /// The cursor is of no page of this search.
    #[error("the cursor is not one that this search gave")]
    Cursor,
    /// The index failed; it is being checked, and made anew if it is damaged.
    #[error("the search index failed: {0}")]
    Index(String),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What searches and the keeper share.
pub(crate) struct Shared {
    /// Guards which index is open, or why none is; held for a clone or a swap.
    opened: RwLock<Result<Arc<Opened>, String>>,
    /// Whether the whole catalogue has been gone through.
    is_whole: AtomicBool,
    /// Rises when the index has caught up a piece.
    settled: watch::Sender<u64>,
    /// Whether the index is to be checked before it is trusted further.
    doubts: watch::Sender<bool>,
    walks: Semaphore,
}

impl Shared {
    /// Opens the index; one that can't be is told to those who search, for the registry works without.
    pub(crate) async fn open(home: &Path, catalog: &Catalog, realm: RealmId) -> Arc<Self> {
        let opened = keeper::open(home.to_owned(), catalog, realm).await;
        if let Err(why) = &opened {
            tracing::warn!(%why, "the search index can't be opened");
        }
        let is_doubtful = opened.as_ref().is_ok_and(|opened| opened.was_in_use());
        let is_whole = opened.as_ref().is_ok_and(|opened| opened.progress().is_ok_and(|p| p.going_through.is_none()));
        Arc::new(Self {
            opened: RwLock::new(opened.map(Arc::new)),
            is_whole: AtomicBool::new(is_whole),
            settled: watch::Sender::new(0),
            doubts: watch::Sender::new(is_doubtful),
            walks: Semaphore::new(WALKS_MAX),
        })
    }

    /// The task that keeps the index up, until `closing`.
    pub(crate) fn keep(
        self: &Arc<Self>,
        catalog: Catalog,
        realm: RealmId,
        changes: watch::Receiver<u64>,
        closing: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        Keeper { catalog, realm, shared: self.clone(), changes, closing }.run()
    }

    fn opened(&self) -> Result<Arc<Opened>, String> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, opened: Opened) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Ok(Arc::new(opened));
        self.is_whole.store(false, Ordering::Relaxed);
    }
}

impl Registry {
    /// Finds repos among all that are known here.
    pub async fn search(&self, search: Search) -> Result<Found, SearchError> {
        let query = query::parse(&search.query)?;
        let has_words = !query.name.is_empty();
        let sort = search.sort.unwrap_or(if has_words { Sort::Relevance } else { Sort::Newest });
        if let Some((field, _)) = search.filters.iter().find(|(_, values)| values.len() > FILTER_VALUES_MAX) {
            return Err(SearchError::Filter(*field));
        }
        let asked = fingerprint(&search, sort);
        let after = search.cursor.as_deref().map(|cursor| place_of(cursor, asked)).transpose()?;
        let (query, filters) = self.with_keys(query, &search).await?;
        let wanted = Wanted {
            sort,
            limit: search.limit.clamp(1, SEARCH_PAGE_MAX),
            after,
            facets: search.facets.clone(),
            facet_limit: search.facet_limit.clamp(1, FACET_VALUES_MAX),
        };
        let limit = wanted.limit;
        let mut walked = self.walk(query, filters, wanted).await?;
        let has_more = walked.places.len() > limit;
        walked.places.truncate(limit);
        let next_cursor = walked.places.last().filter(|_| has_more).map(|place| cursor(place, asked));
        let (realm, is_whole) = (self.realm(), self.search_index().is_whole.load(Ordering::Relaxed));
        let indexed = self.search_index().opened().map_or(0, |opened| opened.repos());
        let read = self.catalog().read(move |transaction| {
            let repos = summaries(transaction, realm, &walked)?;
            let facets = search.facets.iter().copied().zip(walked.facets);
            let facets = facets.map(|(field, values)| Ok((field, named(transaction, realm, field, values)?)));
            let facets = facets.collect::<Result<_, CatalogError>>()?;
            let pending = pending(transaction, realm, is_whole, indexed)?;
            Ok::<_, SearchError>(Found { repos, total: walked.total, facets, next_cursor, pending })
        });
        read.await
    }

    /// Waits until the index says what the catalogue says.
    pub async fn indexed(&self) -> Result<(), CatalogError> {
        let (realm, mut settled) = (self.realm(), self.search_index().settled.subscribe());
        loop {
            settled.mark_unchanged();
            // One that is doubted may yet be made anew; it is known to be whole only after that.
            let is_sound = !*self.search_index().doubts.borrow();
            let is_whole = is_sound && self.search_index().is_whole.load(Ordering::Relaxed);
            let waiting = self.catalog().read(move |transaction| journal::length(transaction, realm)).await?;
            if is_whole && waiting == 0 {
                return Ok(());
            }
            settled.changed().await.map_err(|_| CatalogError::Closed)?;
        }
    }

    async fn walk(&self, query: Query, filters: Filters, wanted: Wanted) -> Result<Walked, SearchError> {
        let shared = self.search_index().clone();
        let mut doubts = shared.doubts.subscribe();
        let checked = tokio::time::timeout(CHECK_PATIENCE, doubts.wait_for(|doubts| !doubts)).await;
        checked
            .map_err(|_| SearchError::Index("it is being checked after a stop out of order".to_owned()))?
            .map_err(|_| CatalogError::Closed)?;
        let _place = shared.walks.acquire().await.map_err(|_| CatalogError::Closed)?;
        let opened = shared.opened().map_err(SearchError::Index)?;
        let walk = tokio::task::spawn_blocking(move || {
            let walk = || opened.walk(compile::compile(&opened.columns, &query, &filters).as_ref(), &wanted);
            guarded(index::WHAT, walk).unwrap_or_else(|why| Err(index::IndexFailure::Damaged(why)))
        });
        let walked = match walk.await {
            Ok(Ok(walked)) => return Ok(walked),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        shared.doubts.send_replace(true);
        Err(SearchError::Index(walked))
    }

    /// Handles stand for the keys that they mean here.
    async fn with_keys(&self, mut query: Query, search: &Search) -> Result<(Query, Filters), CatalogError> {
        for part in query.must.iter_mut().chain(&mut query.must_not) {
            if let Part::Is(Field::Publisher, name) = part {
                *part = Part::OneOf(Field::Publisher, self.keys_of(name).await?);
            }
        }
        let mut any_of = Vec::new();
        for (field, values) in &search.filters {
            let mut folded = Vec::new();
            for value in values {
                match field {
                    Field::Publisher => folded.extend(self.keys_of(value).await?),
                    _ => folded.push(words::folded_value(value)),
                }
            }
            any_of.push((*field, folded));
        }
        Ok((query, Filters { any_of, parameters: search.parameters, bytes: search.bytes }))
    }

    /// The publisher that a name means here; several that claim it, if nothing here decides between them.
    async fn keys_of(&self, name: &str) -> Result<Vec<String>, CatalogError> {
        let Ok(publisher) = name.parse::<Publisher>() else { return Ok(Vec::new()) };
        let keys = match self.resolve_publisher(&publisher, &[]).await {
            Ok((key, _)) => vec![key],
            Err(ResolveError::ClaimedBySeveral { claimants, .. }) => claimants,
            Err(ResolveError::Catalog(error)) => return Err(error),
            Err(_) => Vec::new(),
        };
        Ok(keys.iter().map(ToString::to_string).collect())
    }
}

/// The page's repos as the catalogue has them now; one that has gone in between is left out.
fn summaries(transaction: &ReadTransaction, realm: RealmId, walked: &Walked) -> Result<Vec<RepoSummary>, CatalogError> {
    let mut summaries = Vec::with_capacity(walked.places.len());
    for place in &walked.places {
        let Some(repo) = schema::repo_of(&place.key) else { return Err(keys::damaged("a key of the search index")) };
        let key = keys::repo(realm, &repo);
        if let Some(name) = look::value_of(transaction, tables::REPOS, &key)? {
            let repo: RepoId = keys::parse_repo(&key, &name)?;
            summaries.push(listing::summary(transaction, realm, repo)?);
        }
    }
    Ok(summaries)
}

/// Publishers by the handles that they have here.
fn named(
    transaction: &ReadTransaction,
    realm: RealmId,
    field: Field,
    values: Vec<(String, u64)>,
) -> Result<Vec<(String, u64)>, CatalogError> {
    if field != Field::Publisher {
        return Ok(values);
    }
    let named = values.into_iter().map(|(value, count)| match value.parse::<PublisherKey>() {
        Ok(key) => Ok((resolve::display_publisher(transaction, realm, key)?.to_string(), count)),
        Err(_) => Ok((value, count)),
    });
    named.collect()
}

fn pending(transaction: &ReadTransaction, realm: RealmId, is_whole: bool, indexed: u64) -> Result<u64, CatalogError> {
    let waiting = journal::length(transaction, realm)?;
    if is_whole {
        return Ok(waiting);
    }
    let repos = transaction.open_table(tables::REPOS)?.len()?;
    Ok(waiting.max(repos.saturating_sub(indexed)).max(1))
}

/// What a cursor belongs to: all of a search but its page.
fn fingerprint(search: &Search, sort: Sort) -> [u8; 8] {
    let Search { query, filters, parameters, bytes, .. } = search;
    let asked = format!("{query:?} {filters:?} {parameters:?} {bytes:?} {sort:?}");
    *blake3::hash(asked.as_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

fn cursor(place: &Place, asked: [u8; 8]) -> String {
    hex::encode([&[CURSOR_VERSION], &asked[..], &place.value.0.to_be_bytes(), &place.key].concat())
}

fn place_of(cursor: &str, asked: [u8; 8]) -> Result<Place, SearchError> {
    let bytes = hex::decode(cursor).map_err(|_| SearchError::Cursor)?;
    let rest = bytes.strip_prefix(&[CURSOR_VERSION]).and_then(|rest| rest.strip_prefix(&asked));
    let (value, key) = rest.and_then(|rest| rest.split_first_chunk()).ok_or(SearchError::Cursor)?;
    Ok(Place { value: Reverse(u64::from_be_bytes(*value)), key: key.to_vec() })
}
