//! What this node keeps of others' repos by policy: patterns that are stored, and the decision what to fetch next.
//!
//! The decision is pure; fetching, jitter and several mirrors agreeing among themselves are the node's.
//!
//! Invariant: a plan never names a revision that is held whole already; what a person wanted is never let go by a pattern's end.

use std::{collections::BTreeSet, fmt, ops::ControlFlow, str::FromStr};

use cairn_protocol::{
    id::{BlobHash, RealmId, RevisionId},
    name::{NameError, Publisher, RepoId, RepoPath},
};
use redb::WriteTransaction;

use crate::{
    Registry,
    blobs::BlobError,
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    holding::let_go,
    look,
    resolve::{self, ResolveError},
    ring,
};

/// Which repos a mirror keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// `*`: every repo that is heard of.
    Everything,
    /// `PUBLISHER/*`: every repo of a publisher.
    Publisher(Publisher),
    /// One repo.
    Repo(RepoPath),
}

impl FromStr for Pattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            return Ok(Self::Everything);
        }
        match text.strip_suffix("/*") {
            Some(publisher) => publisher.parse().map(Self::Publisher),
            None => text.parse().map(Self::Repo),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*"),
            Self::Publisher(publisher) => write!(f, "{publisher}/*"),
            Self::Repo(path) => path.fmt(f),
        }
    }
}

impl Pattern {
    /// Whom it names; everything names nobody.
    fn publisher(&self) -> Option<&Publisher> {
        match self {
            Self::Everything => None,
            Self::Publisher(publisher) => Some(publisher),
            Self::Repo(path) => Some(&path.publisher),
        }
    }

    /// Whether the pattern names this repo. `path` is the repo as people write it here, with a handle where one is known.
    pub fn matches(&self, repo: &RepoId, path: &RepoPath) -> bool {
        let is_publisher = |wanted: &Publisher| match wanted {
            Publisher::Key(key) => *key == repo.publisher,
            Publisher::Handle(_) => *wanted == path.publisher,
        };
        match self {
            Self::Everything => true,
            Self::Publisher(publisher) => is_publisher(publisher),
            Self::Repo(wanted) => {
                wanted.kind == repo.kind && wanted.name == repo.name && is_publisher(&wanted.publisher)
            }
        }
    }
}

/// A ref of a repo, as the decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Whose.
    pub repo: RepoId,
    /// As people write it here.
    pub path: RepoPath,
    /// What the ref stands for.
    pub revision: RevisionId,
    /// Whether all of it is here and kept.
    pub whole: bool,
}

/// The revisions to fetch, in the order of the candidates and each once.
pub fn plan(patterns: &[Pattern], candidates: &[Candidate]) -> Vec<RevisionId> {
    let mut wanted = Vec::new();
    for candidate in candidates {
        let named = patterns.iter().any(|pattern| pattern.matches(&candidate.repo, &candidate.path));
        if named && !candidate.whole && !wanted.contains(&candidate.revision) {
            wanted.push(candidate.revision);
        }
    }
    wanted
}

/// What the end of a pattern lets go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LetGo {
    /// Revisions that nothing else keeps.
    pub revisions: Vec<RevisionId>,
    /// Bytes of theirs that no other revision and no stage needs; they go with the next collection.
    pub bytes: u64,
}

impl Registry {
    /// Adds a pattern. `false` if it was there. A publisher that it names is known here from now on.
    pub async fn add_mirror(&self, pattern: &Pattern) -> Result<bool, CatalogError> {
        let realm = self.realm();
        let (key, named) = (keys::text(realm, &pattern.to_string()), pattern.publisher().cloned());
        let added = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            if let Some(named) = named {
                note_named(transaction, realm, &named)?;
            }
            Ok(transaction.open_table(tables::MIRRORS)?.insert(key.as_slice(), [].as_slice())?.is_none())
        });
        let added = added.await?;
        self.note_change(added);
        Ok(added)
    }

    /// Removes a pattern, and unpins what it alone kept: not what a person published or pulled, nor what another pattern names. `None`
    /// if it was not there.
    pub async fn remove_mirror(&self, pattern: &Pattern) -> Result<Option<LetGo>, BlobError> {
        let (realm, pattern) = (self.realm(), pattern.to_string());
        let removed = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            let key = keys::text(realm, &pattern);
            if transaction.open_table(tables::MIRRORS)?.remove(key.as_slice())?.is_none() {
                return Ok(None);
            }
            end_pattern(transaction, realm, &pattern).map(Some)
        });
        let Some((revisions, blobs)) = removed.await? else { return Ok(None) };
        self.note_change(!revisions.is_empty());
        let mut bytes = 0;
        for blob in blobs {
            bytes += self.blobs().bytes_held(blob).await?;
        }
        Ok(Some(LetGo { revisions, bytes }))
    }

    /// The patterns, in order.
    pub async fn mirrors(&self) -> Result<Vec<Pattern>, CatalogError> {
        let realm = self.realm();
        self.catalog().read(move |transaction| patterns(transaction, realm)).await
    }
}

fn patterns(transaction: &impl Tables, realm: RealmId) -> Result<Vec<Pattern>, CatalogError> {
    let mut patterns = Vec::new();
    look::visit(transaction, tables::MIRRORS, &keys::realm(realm), None, |key, _| {
        let text = std::str::from_utf8(&key[keys::ID..]).ok().and_then(|text| text.parse().ok());
        patterns.push(text.ok_or_else(|| keys::damaged("a mirror's pattern"))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(patterns)
}

/// Hands what the pattern kept to another one that names it, else lets it go. Answers the revisions, and the blobs that nothing in the
/// catalogue needs any more.
fn end_pattern(
    transaction: &WriteTransaction,
    realm: RealmId,
    pattern: &str,
) -> Result<(Vec<RevisionId>, BTreeSet<BlobHash>), CatalogError> {
    let mut kept = Vec::new();
    look::visit(transaction, tables::MIRRORED, &keys::realm(realm), None, |key, keeper| {
        if keeper == pattern.as_bytes() {
            kept.push(RevisionId::from(keys::last_id(key)?));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let (mut gone, mut blobs) = (Vec::new(), BTreeSet::new());
    for revision in kept {
        match naming(transaction, realm, revision)? {
            Some(other) => {
                let key = keys::one(realm, revision.as_bytes());
                transaction.open_table(tables::MIRRORED)?.insert(key.as_slice(), other.to_string().as_bytes())?;
            }
            None => {
                blobs.extend(let_go(transaction, realm, revision)?.unwrap_or_default());
                gone.push(revision);
            }
        }
    }
    let mut unneeded = BTreeSet::new();
    for blob in blobs {
        if !is_needed(transaction, realm, blob)? {
            unneeded.insert(blob);
        }
    }
    Ok((gone, unneeded))
}

fn is_needed(transaction: &WriteTransaction, realm: RealmId, blob: BlobHash) -> Result<bool, CatalogError> {
    let key = keys::one(realm, blob.as_bytes());
    let mut is_needed = look::value_of(transaction, tables::STAGE_BLOBS, &key)?.is_some();
    look::visit(transaction, tables::BLOB_KEEPERS, &key, None, |_, _| {
        is_needed = true;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(is_needed)
}

/// The first pattern that names a repo of this revision. A handle counts here for everyone who claims it: what is kept under a handle
/// must not go because a stranger claims it too.
pub(crate) fn naming(
    transaction: &impl Tables,
    realm: RealmId,
    revision: RevisionId,
) -> Result<Option<Pattern>, CatalogError> {
    let mut repos = Vec::new();
    look::visit(transaction, tables::REVISION_REPOS, &keys::one(realm, revision.as_bytes()), None, |_, place| {
        repos.push([keys::realm(realm), place.to_vec()].concat());
        Ok(ControlFlow::Continue(()))
    })?;
    let patterns = patterns(transaction, realm)?;
    for key in repos {
        let name = look::value_of(transaction, tables::REPOS, &key)?.ok_or_else(|| keys::damaged("a mirrored repo"))?;
        let repo = keys::parse_repo(&key, &name)?;
        let path = claimed_path(transaction, realm, &repo)?;
        if let Some(pattern) = patterns.iter().find(|pattern| pattern.matches(&repo, &path)) {
            return Ok(Some(pattern.clone()));
        }
    }
    Ok(None)
}

/// The repo under the handle that its publisher claims, whoever else does.
fn claimed_path(transaction: &impl Tables, realm: RealmId, repo: &RepoId) -> Result<RepoPath, CatalogError> {
    let profile = look::profile(transaction, realm, repo.publisher)?;
    let publisher = profile.map_or(Publisher::Key(repo.publisher), |profile| Publisher::Handle(profile.handle));
    Ok(RepoPath { kind: repo.kind, publisher, name: repo.name.clone() })
}

/// A handle that means nobody here yet becomes known when the first revision is kept.
fn note_named(transaction: &WriteTransaction, realm: RealmId, publisher: &Publisher) -> Result<(), CatalogError> {
    match resolve::whose(transaction, realm, publisher, &[]) {
        Ok((key, _)) => ring::note_known(transaction, realm, key),
        Err(ResolveError::Catalog(error)) => Err(error),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use cairn_protocol::id::PublisherKey;

    use super::*;

    fn candidate(path: &str, key: u8, revision: u8) -> Candidate {
        let path: RepoPath = path.parse().unwrap();
        let repo = RepoId { publisher: PublisherKey::from([key; 32]), kind: path.kind, name: path.name.clone() };
        Candidate { repo, path, revision: RevisionId::from([revision; 32]), whole: false }
    }

    fn check(patterns: &[&str], expected: &[u8]) {
        let candidates =
            [candidate("acme/tiny", 1, 1), candidate("datasets/acme/poems", 1, 2), candidate("zoo/tiny", 2, 3)];
        let patterns: Vec<Pattern> = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let expected: Vec<_> = expected.iter().map(|id| RevisionId::from([*id; 32])).collect();
        assert_eq!(plan(&patterns, &candidates), expected);
    }

    #[test]
    fn a_pattern_names_one_repo_one_publisher_or_everything() {
        check(&[], &[]);
        check(&["*"], &[1, 2, 3]);
        check(&["acme/*"], &[1, 2]);
        check(&["ACME/*"], &[1, 2]);
        check(&["acme/tiny"], &[1]);
        check(&["acme/Tiny"], &[1]);
        check(&["acme/poems"], &[]);
        check(&["datasets/acme/poems", "zoo/tiny"], &[2, 3]);
        check(&[&format!("{}/*", PublisherKey::from([2; 32]))], &[3]);
    }

    #[test]
    fn what_is_whole_is_not_fetched_and_what_is_named_twice_is_fetched_once() {
        let held = Candidate { whole: true, ..candidate("acme/tiny", 1, 1) };
        let patterns = [Pattern::Everything, Pattern::Everything];
        let twice = [held, candidate("acme/a", 1, 2), candidate("acme/b", 1, 2)];
        assert_eq!(plan(&patterns, &twice), [RevisionId::from([2; 32])]);
    }

    #[test]
    fn patterns_read_back_as_they_were_written() {
        for text in ["*", "acme/*", "acme/tiny", "datasets/acme/poems"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        assert!("acme/x/*".parse::<Pattern>().is_err());
        assert!("*/x".parse::<Pattern>().is_err());
    }
}
