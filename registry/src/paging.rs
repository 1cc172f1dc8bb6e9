//! Listing repos page by page, at a cost that the page bounds and not the catalogue.
//!
//! Repos come by publisher: first those who have a handle here, by handle without regard to case, then those who are written by their
//! key; each publisher's by kind and name. Both orders are those of tables, so a page begins with a seek and looks at no repo of the pages
//! before it. What a prefix rules out is passed over by publishers, at most [`PUBLISHERS_MAX`] a page: such a page may be short or
//! empty and still not be the last.
//!
//! Invariant: going on with each page's token meets every repo once, as long as nothing changes.

use std::ops::{Bound, ControlFlow};

use cairn_protocol::{
    id::{PublisherKey, RealmId},
    name::{Publisher, RepoId, RepoKind, RepoPath},
};
use redb::ReadTransaction;

use crate::{
    catalog::{CatalogError, keys, tables},
    look, resolve,
};

/// Publishers that one page looks at.
const PUBLISHERS_MAX: usize = 10_000;

/// What one page has, and where the next one begins.
pub(crate) struct Page {
    pub(crate) repos: Vec<RepoId>,
    pub(crate) next: Option<String>,
}

/// A page of the repos whose path begins with `prefix`, after the token of the page before. A token of nobody's making lists nothing.
pub(crate) fn page(
    transaction: &ReadTransaction,
    realm: RealmId,
    prefix: &str,
    token: Option<&str>,
    limit: usize,
) -> Result<Page, CatalogError> {
    let at = match token.map(Place::parse) {
        None => None,
        Some(Some(place)) => Some(place),
        Some(None) => return Ok(Page { repos: Vec::new(), next: None }),
    };
    let mut walk = Walk { transaction, realm, prefix, limit, repos: Vec::new(), publishers: 0, last: None };
    let wanted = Wanted::of(prefix);
    let is_among_keys = at.as_ref().is_some_and(|place| place.handle.is_none());
    let has_more = (!is_among_keys && walk.handles(&wanted, at.as_ref())?.is_break())
        || walk.keys(&wanted, at.as_ref().filter(|_| is_among_keys))?.is_break();
    let next = walk.last.filter(|_| has_more).map(|place| place.to_text());
    Ok(Page { repos: walk.repos, next })
}

/// Behind which repo a page goes on: of whom, and behind which kind and folded name; before the publisher's first if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Folded; none among those who are written by their key.
    handle: Option<String>,
    publisher: PublisherKey,
    repo: Option<(RepoKind, String)>,
}

impl Place {
    fn to_text(&self) -> String {
        let handle = self.handle.as_deref().unwrap_or_default();
        let (kind, name) =
            self.repo.as_ref().map_or((String::new(), ""), |(kind, name)| (kind.to_string(), name.as_str()));
        format!("{handle}:{}:{kind}:{name}", self.publisher)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':');
        let handle = parts.next()?;
        let publisher = parts.next()?.parse().ok()?;
        let (kind, name) = (parts.next()?, parts.next()?);
        let repo = if kind.is_empty() { None } else { Some((kind.parse().ok()?, name.to_owned())) };
        Some(Self { handle: (!handle.is_empty()).then(|| handle.to_owned()), publisher, repo })
    }
}

/// What a prefix leaves of the publishers.
struct Wanted {
    /// What the folded handle begins with, and whether it is all of it.
    handle: (String, bool),
    /// The same of a key's digits; none if no key begins so.
    key: Option<String>,
}

impl Wanted {
    fn of(prefix: &str) -> Self {
        let folders = RepoKind::ALL.map(|kind| format!("{}/", kind.folder()));
        // It may still become a kind: then it says nothing of the publisher.
        if folders.iter().any(|folder| folder.starts_with(prefix)) {
            return Self { handle: (String::new(), false), key: Some(String::new()) };
        }
        let rest = folders.iter().find_map(|folder| prefix.strip_prefix(folder.as_str())).unwrap_or(prefix);
        let (publisher, is_whole) = rest.split_once('/').map_or((rest, false), |(publisher, _)| (publisher, true));
        let is_hex = publisher.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        Self {
            handle: (publisher.to_ascii_lowercase(), is_whole),
            key: (is_hex && (!is_whole || publisher.len() == 2 * keys::ID)).then(|| publisher.to_owned()),
        }
    }
}

struct Walk<'a> {
    transaction: &'a ReadTransaction,
    realm: RealmId,
    prefix: &'a str,
    limit: usize,
    repos: Vec<RepoId>,
    publishers: usize,
    /// Where the next page goes on.
    last: Option<Place>,
}

impl Walk<'_> {
    /// Those who have a handle here.
    fn handles(&mut self, wanted: &Wanted, at: Option<&Place>) -> Result<ControlFlow<()>, CatalogError> {
        let (handle, is_whole) = &wanted.handle;
        let mut range = keys::text(self.realm, handle);
        range.extend(is_whole.then_some(0));
        let start = match at {
            Some(Place { handle: Some(handle), publisher, .. }) => {
                [&keys::text(self.realm, handle)[..], &[0], publisher.as_bytes()].concat()
            }
            _ => range.clone(),
        };
        for claim in self.transaction.open_table(tables::CLAIMS)?.range(start.max(range.clone()).as_slice()..)? {
            let claim = claim?.0;
            if !claim.value().starts_with(&range) {
                break;
            }
            let publisher = PublisherKey::from(keys::last_id(claim.value())?);
            let shown = resolve::display_publisher(self.transaction, self.realm, publisher)?;
            let Publisher::Handle(handle) = &shown else { continue };
            let behind = at.filter(|place| place.publisher == publisher).and_then(|place| place.repo.as_ref());
            if self.publisher(Some(handle.folded()), publisher, &shown, behind)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Those who are written by their key.
    fn keys(&mut self, wanted: &Wanted, at: Option<&Place>) -> Result<ControlFlow<()>, CatalogError> {
        let Some(digits) = &wanted.key else { return Ok(ControlFlow::Continue(())) };
        let realm = keys::realm(self.realm);
        let whole = hex::decode(&digits[..digits.len() / 2 * 2]).unwrap_or_default();
        let range = [realm.as_slice(), &whole].concat();
        let mut start = Bound::Included(match at {
            Some(place) => keys::one(self.realm, place.publisher.as_bytes()),
            None => range.clone(),
        });
        let table = self.transaction.open_table(tables::REPOS)?;
        loop {
            let bound = start.as_ref().map(Vec::as_slice);
            let Some(found) = table.range::<&[u8]>((bound, Bound::Unbounded))?.next().transpose()? else { break };
            let key = found.0.value();
            if !key.starts_with(&range) {
                break;
            }
            let publisher = key.get(keys::ID..2 * keys::ID).ok_or_else(|| keys::damaged("a repo's key"))?;
            let publisher = PublisherKey::try_from(publisher).map_err(|_| keys::damaged("a repo's publisher"))?;
            let shown = resolve::display_publisher(self.transaction, self.realm, publisher)?;
            let behind = at.filter(|place| place.publisher == publisher).and_then(|place| place.repo.as_ref());
            let flow = match &shown {
                Publisher::Key(_) => self.publisher(None, publisher, &shown, behind)?,
                Publisher::Handle(_) => self.passed_over(None, publisher),
            };
            if flow.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let Some(next) = keys::after(&keys::one(self.realm, publisher.as_bytes())) else { break };
            start = Bound::Included(next);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// One publisher's repos, by kind and name.
    fn publisher(
        &mut self,
        handle: Option<String>,
        publisher: PublisherKey,
        shown: &Publisher,
        behind: Option<&(RepoKind, String)>,
    ) -> Result<ControlFlow<()>, CatalogError> {
        if self.passed_over(handle.clone(), publisher).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let all = keys::one(self.realm, publisher.as_bytes());
        let behind = behind.map(|(kind, name)| [&all[..], &[*kind as u8], name.as_bytes(), &[0]].concat());
        let mut flow = ControlFlow::Continue(());
        look::visit(self.transaction, tables::REPOS, &all, behind.as_deref(), |key, name| {
            let repo = keys::parse_repo(key, name)?;
            let path = RepoPath { kind: repo.kind, publisher: shown.clone(), name: repo.name.clone() };
            if path.to_string().starts_with(self.prefix) {
                if self.repos.len() == self.limit {
                    flow = ControlFlow::Break(());
                    return Ok(flow);
                }
                let place = Some((repo.kind, repo.name.folded()));
                self.last = Some(Place { handle: handle.clone(), publisher, repo: place });
                self.repos.push(repo);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(flow)
    }

    /// Counts a publisher; one too many is the next page's first.
    fn passed_over(&mut self, handle: Option<String>, publisher: PublisherKey) -> ControlFlow<()> {
        self.publishers += 1;
        if self.publishers <= PUBLISHERS_MAX {
            return ControlFlow::Continue(());
        }
        self.last = Some(Place { handle, publisher, repo: None });
        ControlFlow::Break(())
    }
}
