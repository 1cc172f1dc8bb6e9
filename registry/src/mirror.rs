//! What this node keeps of others' repos by policy: patterns that are stored, and the decision what to fetch next.
//!
//! The decision is pure; fetching, jitter and several mirrors agreeing among themselves are the node's.
//!
//! Invariant: a plan never names a revision that is held whole already.

use std::{fmt, ops::ControlFlow, str::FromStr};

use cairn_protocol::{
    id::{RealmId, RevisionId},
    name::{NameError, Publisher, RepoId, RepoPath},
};
use redb::WriteTransaction;

use crate::{
    Registry,
    catalog::{CatalogError, keys, tables},
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

    /// Removes a pattern; what was mirrored stays until it is unpinned. `false` if it was not there.
    pub async fn remove_mirror(&self, pattern: &Pattern) -> Result<bool, CatalogError> {
        let key = keys::text(self.realm(), &pattern.to_string());
        let removed = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            Ok(transaction.open_table(tables::MIRRORS)?.remove(key.as_slice())?.is_some())
        });
        removed.await
    }

    /// The patterns, in order.
    pub async fn mirrors(&self) -> Result<Vec<Pattern>, CatalogError> {
        let prefix = keys::realm(self.realm());
        let read = self.catalog().read(move |transaction| {
            let mut patterns = Vec::new();
            look::visit(transaction, tables::MIRRORS, &prefix, None, |key, _| {
                let text = std::str::from_utf8(&key[keys::ID..]).ok().and_then(|text| text.parse().ok());
                patterns.push(text.ok_or_else(|| keys::damaged("a mirror's pattern"))?);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(patterns)
        });
        read.await
    }
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
