//! What the catalogue holds, for people to look at: repos, their refs, one repo's summary, counts.
//!
//! Read-only. Lists come in pages ([`crate::paging`]); what a page costs is bounded by the page.
//!
//! Invariant: pages are in one order, and the last one says so.

use std::{collections::BTreeMap, ops::ControlFlow};

use cairn_protocol::{
    id::{RealmId, RecordId, RevisionId},
    name::{RefName, RepoId},
    record::{Body, RecordKind, Revision},
};
use redb::{ReadTransaction, ReadableTableMetadata};

use crate::{
    Registry,
    blobs::BlobError,
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    history::{HeadRow, PassedOver, stand},
    look, paging, publishers, resolve,
};

/// A repo at a glance: what its `main` (else its first ref that stands somewhere) says.
#[derive(Debug, Clone, PartialEq)]
pub struct RepoSummary {
    /// Whose.
    pub repo: RepoId,
    /// As people write it.
    pub path: String,
    /// The ref that is summarised.
    pub ref_name: Option<RefName>,
    /// Where it stands.
    pub head: Option<HeadRow>,
    /// What its revision's record says.
    pub revision: Option<Revision>,
    /// Whether this node keeps that revision.
    pub kept: bool,
}

/// A ref and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefState {
    /// The ref.
    pub name: RefName,
    /// The head in force.
    pub head: Option<HeadRow>,
    /// Heads that claim one number, and heads that wait for their revision's record.
    pub passed_over: Vec<PassedOver>,
    /// Every head that is known, oldest first.
    pub history: Vec<HeadRow>,
}

/// Counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Repos that are known, of every realm that this home has seen.
    pub repos: u64,
    /// Bytes of blobs that are here.
    pub bytes_stored: u64,
    /// Records, of every kind.
    pub records: u64,
    /// Whether garbage collection has stopped; a restart mends it.
    pub collection_is_overdue: bool,
}

impl Registry {
    /// Repos whose path begins with `prefix`, by publisher, kind and name; `after` is what came with the page before, if there are more. A
    /// page that is not the last may be short where few publishers fit the prefix.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<RepoSummary>, Option<String>), CatalogError> {
        let (realm, prefix) = (self.realm(), prefix.to_owned());
        let listed =
            self.catalog().survey(move |transaction| list(transaction, realm, &prefix, after.as_deref(), limit.max(1)));
        listed.await
    }

    /// One repo at a glance, if it is known.
    pub async fn summary(&self, repo: &RepoId) -> Result<Option<RepoSummary>, CatalogError> {
        let (realm, repo) = (self.realm(), repo.clone());
        let read = self.catalog().read(move |transaction| {
            let key = keys::repo(realm, &repo);
            let Some(name) = look::value_of(transaction, tables::REPOS, &key)? else { return Ok(None) };
            summary(transaction, realm, keys::parse_repo(&key, &name)?).map(Some)
        });
        read.await
    }

    /// The refs of a repo, by name.
    pub async fn refs(&self, repo: &RepoId) -> Result<Vec<RefState>, CatalogError> {
        let (realm, repo) = (self.realm(), repo.clone());
        self.catalog().read(move |transaction| refs(transaction, realm, &repo)).await
    }

    /// What the record of a revision says, and whose repo it is of; of several publishers', the first by key.
    pub async fn revision(&self, revision: RevisionId) -> Result<Option<(RepoId, Revision)>, CatalogError> {
        let realm = self.realm();
        let read = self.catalog().read(move |transaction| {
            let Some(repo) = repo_of(transaction, realm, revision)? else { return Ok(None) };
            Ok(revision_body(transaction, realm, &repo, revision)?.map(|body| (repo, body)))
        });
        read.await
    }

    /// The record of a repo's revision.
    pub async fn revision_in(&self, repo: &RepoId, revision: RevisionId) -> Result<Option<Revision>, CatalogError> {
        let (realm, repo) = (self.realm(), repo.clone());
        self.catalog().read(move |transaction| revision_body(transaction, realm, &repo, revision)).await
    }

    /// Whether a record is here by which the repo's publisher signed this revision.
    pub async fn is_signed(&self, repo: &RepoId, revision: RevisionId) -> Result<bool, CatalogError> {
        let (realm, repo) = (self.realm(), repo.clone());
        self.catalog().read(move |transaction| Ok(revision_body(transaction, realm, &repo, revision)?.is_some())).await
    }

    /// The repo as people write it, with a handle where one is known.
    pub async fn display_path(&self, repo: &RepoId) -> Result<String, CatalogError> {
        let (realm, repo) = (self.realm(), repo.clone());
        self.catalog().read(move |transaction| resolve::display_path(transaction, realm, &repo)).await
    }

    /// Counts of what is here. Looks at every blob.
    pub async fn stats(&self) -> Result<Stats, BlobError> {
        let counted = self.catalog().read::<_, CatalogError, _>(|transaction| {
            Ok((transaction.open_table(tables::REPOS)?.len()?, transaction.open_table(tables::RECORDS)?.len()?))
        });
        let (repos, records) = counted.await?;
        Ok(Stats {
            repos,
            records,
            bytes_stored: self.blobs().bytes_stored().await?,
            collection_is_overdue: self.blobs().collection_is_overdue(),
        })
    }
}

fn list(
    transaction: &ReadTransaction,
    realm: RealmId,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<RepoSummary>, Option<String>), CatalogError> {
    let page = paging::page(transaction, realm, prefix, after, limit)?;
    let summaries = page.repos.into_iter().map(|repo| summary(transaction, realm, repo)).collect::<Result<_, _>>()?;
    Ok((summaries, page.next))
}

pub(crate) fn summary(
    transaction: &ReadTransaction,
    realm: RealmId,
    repo: RepoId,
) -> Result<RepoSummary, CatalogError> {
    let mut refs = refs(transaction, realm, &repo)?;
    refs.sort_by_key(|state| state.name != RefName::main());
    let shown = refs.into_iter().find_map(|state| state.head.map(|head| (state.name, head)));
    let (ref_name, head) = shown.unzip();
    let revision = match &head {
        Some(head) => revision_body(transaction, realm, &repo, head.revision)?,
        None => None,
    };
    let kept = match &head {
        Some(head) => is_kept(transaction, realm, head.revision)?,
        None => false,
    };
    Ok(RepoSummary { path: resolve::display_path(transaction, realm, &repo)?, repo, ref_name, head, revision, kept })
}

pub(crate) fn refs(transaction: &impl Tables, realm: RealmId, repo: &RepoId) -> Result<Vec<RefState>, CatalogError> {
    let prefix = keys::repo(realm, repo);
    let mut histories: BTreeMap<RefName, Vec<HeadRow>> = BTreeMap::new();
    look::visit(transaction, tables::HEADS, &prefix, None, |key, value| {
        let (name, head) = look::head_row(key, value, &prefix)?;
        histories.entry(name).or_default().push(head);
        Ok(ControlFlow::Continue(()))
    })?;
    let epoch = publishers::epoch(transaction, realm, repo.publisher)?;
    let mut refs = Vec::new();
    for (name, history) in histories {
        let adopted = look::adopted(transaction, realm, repo, &name)?;
        let mut known = std::collections::BTreeSet::new();
        for head in &history {
            if look::knows_revision(transaction, realm, repo, head.revision)? {
                known.insert(head.revision);
            }
        }
        let standing = stand(&history, epoch, adopted, |revision| known.contains(&revision));
        refs.push(RefState { name, head: standing.head, passed_over: standing.passed_over, history });
    }
    Ok(refs)
}

pub(crate) fn revision_body(
    transaction: &ReadTransaction,
    realm: RealmId,
    repo: &RepoId,
    revision: RevisionId,
) -> Result<Option<Revision>, CatalogError> {
    let key = keys::revision(realm, repo, revision);
    let Some(id) = look::id_of(transaction, tables::REVISIONS, &key)? else { return Ok(None) };
    let Some(record) = look::record(transaction, realm, RecordKind::Revision, RecordId::from(id))? else {
        return Ok(None);
    };
    match record.body() {
        Ok(Body::Revision(revision)) => Ok(Some(revision)),
        _ => Err(keys::damaged("a revision's record")),
    }
}

/// Where a revision belongs, by its hash alone.
pub(crate) fn repo_of(
    transaction: &ReadTransaction,
    realm: RealmId,
    revision: RevisionId,
) -> Result<Option<RepoId>, CatalogError> {
    let mut found = None;
    look::visit(transaction, tables::REVISION_REPOS, &keys::one(realm, revision.as_bytes()), None, |_, value| {
        found = Some(value.to_vec());
        Ok(ControlFlow::Break(()))
    })?;
    let Some(place) = found else { return Ok(None) };
    let key = [keys::realm(realm), place].concat();
    let name = look::value_of(transaction, tables::REPOS, &key)?.ok_or_else(|| keys::damaged("a revision's repo"))?;
    keys::parse_repo(&key, &name).map(Some)
}

fn is_kept(transaction: &ReadTransaction, realm: RealmId, revision: RevisionId) -> Result<bool, CatalogError> {
    Ok(look::value_of(transaction, tables::KEPT, &keys::one(realm, revision.as_bytes()))?.is_some())
}
