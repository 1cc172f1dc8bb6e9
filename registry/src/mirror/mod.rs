//! What this node keeps of others' repos by policy: policies as they are stored, and what their ends let go.
//!
//! What follows from them is [`crate::mirror::decide`]'s, a pure decision; what may come a day is counted by [`crate::mirror::budget`]; fetching, and hearing who holds what, are the node's.
//!
//! Invariant: what a person wanted is never let go by a policy, nor by its end.

pub mod budget;
pub mod decide;
pub mod policy;

use std::{collections::BTreeSet, fmt, ops::ControlFlow, str::FromStr};

use cairn_protocol::{
    api,
    id::{BlobHash, RealmId, RevisionId},
    name::{NameError, Publisher, RepoId, RepoPath},
};
use globset::{GlobBuilder, GlobMatcher};
use redb::WriteTransaction;

pub use budget::Budget;
pub use decide::{Action, Candidate, Decider, Decision, Here, Holder, Mesh, Moment, Patience, Why, is_last};
pub use policy::{Hours, Policy, Rules, RulesError};

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

/// Which repos a policy is about.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// `*`: every repo that is heard of.
    Everything,
    /// `PUBLISHER/*`: every repo of a publisher.
    Publisher(Publisher),
    /// One repo.
    Repo(RepoPath),
    /// `PUBLISHER/GLOB` or `*/GLOB`: repos of any kind by name, without regard to case.
    Names {
        /// Whose; `None` for anybody's.
        publisher: Option<Publisher>,
        /// Which names.
        names: GlobMatcher,
    },
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Pattern {}

/// Why words are no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Neither a repo nor a publisher.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A glob that can't be read.
    #[error("{0:?} is no glob of names")]
    Glob(String),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Everything);
        }
        let Some((publisher, names)) = text.split_once('/').filter(|_| text.contains(['*', '?', '['])) else {
            return Ok(Self::Repo(text.parse()?));
        };
        let publisher = (publisher != "*").then(|| publisher.parse()).transpose()?;
        match (publisher, names) {
            (Some(publisher), "*") => Ok(Self::Publisher(publisher)),
            (publisher, names) => Ok(Self::Names { publisher, names: names_glob(names)? }),
        }
    }
}

/// A repo's name is one part: a glob of several names nothing.
fn names_glob(text: &str) -> Result<GlobMatcher, PatternError> {
    let is_sound = !text.is_empty() && text.len() <= GLOB_BYTES_MAX && !text.contains(['/', '\0']);
    let glob = is_sound.then(|| GlobBuilder::new(text).case_insensitive(true).build().ok()).flatten();
    glob.map(|glob| glob.compile_matcher()).ok_or_else(|| PatternError::Glob(text.to_owned()))
}

/// A name has at most 96 bytes; a glob of it a few more.
const GLOB_BYTES_MAX: usize = 256;

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*"),
            Self::Publisher(publisher) => write!(f, "{publisher}/*"),
            Self::Repo(path) => path.fmt(f),
            Self::Names { publisher: Some(publisher), names } => write!(f, "{publisher}/{}", names.glob()),
            Self::Names { publisher: None, names } => write!(f, "*/{}", names.glob()),
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
            Self::Names { publisher, .. } => publisher.as_ref(),
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
            Self::Names { publisher, names } => {
                publisher.as_ref().is_none_or(is_publisher) && names.is_match(repo.name.as_str())
            }
        }
    }
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
    /// Adds a policy, or changes its rules. `false` if it was there as it is. A publisher that it names is known here from now on.
    pub async fn add_mirror(&self, policy: &Policy) -> Result<bool, CatalogError> {
        let realm = self.realm();
        let (key, named) = (keys::text(realm, &policy.pattern.to_string()), policy.pattern.publisher().cloned());
        let rules = api::MirrorRules::from(&policy.rules).to_bytes();
        let added = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            if let Some(named) = named {
                note_named(transaction, realm, &named)?;
            }
            let mut table = transaction.open_table(tables::MIRRORS)?;
            let before = table.insert(key.as_slice(), rules.as_slice())?;
            Ok(before.is_none_or(|before| before.value() != rules))
        });
        let added = added.await?;
        self.note_change(added);
        Ok(added)
    }

    /// Unpins revisions that policies alone keep; what a person wanted stays. Answers those that it let go.
    pub async fn let_go_mirrored(&self, revisions: Vec<RevisionId>) -> Result<Vec<RevisionId>, CatalogError> {
        let realm = self.realm();
        let gone = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            let mut gone = Vec::new();
            for revision in revisions {
                let key = keys::one(realm, revision.as_bytes());
                if look::value_of(transaction, tables::MIRRORED, &key)?.is_some() {
                    let_go(transaction, realm, revision)?;
                    gone.push(revision);
                }
            }
            Ok(gone)
        });
        let gone = gone.await?;
        self.note_change(!gone.is_empty());
        Ok(gone)
    }

    /// Which of these a policy alone keeps.
    pub async fn mirrored(&self, revisions: Vec<RevisionId>) -> Result<BTreeSet<RevisionId>, CatalogError> {
        let realm = self.realm();
        let read = self.catalog().read(move |transaction| {
            let mut mirrored = BTreeSet::new();
            for revision in revisions {
                let key = keys::one(realm, revision.as_bytes());
                if look::value_of(transaction, tables::MIRRORED, &key)?.is_some() {
                    mirrored.insert(revision);
                }
            }
            Ok(mirrored)
        });
        read.await
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

    /// The policies, in order of their patterns.
    pub async fn mirrors(&self) -> Result<Vec<Policy>, CatalogError> {
        let realm = self.realm();
        self.catalog().read(move |transaction| policies(transaction, realm)).await
    }
}

fn policies(transaction: &impl Tables, realm: RealmId) -> Result<Vec<Policy>, CatalogError> {
    let mut policies = Vec::new();
    look::visit(transaction, tables::MIRRORS, &keys::realm(realm), None, |key, rules| {
        let pattern = std::str::from_utf8(&key[keys::ID..]).ok().and_then(|text| text.parse().ok());
        let rules = api::MirrorRules::from_bytes(rules).and_then(|rules| rules.try_into().ok());
        let policy = pattern.zip(rules).map(|(pattern, rules)| Policy { pattern, rules });
        policies.push(policy.ok_or_else(|| keys::damaged("a mirror's policy"))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(policies)
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
    let policies = policies(transaction, realm)?;
    for key in repos {
        let name = look::value_of(transaction, tables::REPOS, &key)?.ok_or_else(|| keys::damaged("a mirrored repo"))?;
        let repo = keys::parse_repo(&key, &name)?;
        let path = claimed_path(transaction, realm, &repo)?;
        if let Some(policy) = policies.iter().find(|policy| policy.pattern.matches(&repo, &path)) {
            return Ok(Some(policy.pattern.clone()));
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

    #[test]
    fn a_pattern_names_one_repo_one_publisher_some_names_or_everything() {
        let check = |pattern: &str, expected: [bool; 3]| {
            let pattern: Pattern = pattern.parse().unwrap();
            let named = [("acme/tiny", 1), ("datasets/acme/poems", 1), ("zoo/tiny", 2)].map(|(path, key)| {
                let path: RepoPath = path.parse().unwrap();
                let repo =
                    RepoId { publisher: PublisherKey::from([key; 32]), kind: path.kind, name: path.name.clone() };
                pattern.matches(&repo, &path)
            });
            assert_eq!(named, expected, "{pattern}");
        };
        check("*", [true, true, true]);
        check("acme/*", [true, true, false]);
        check("ACME/*", [true, true, false]);
        check("acme/tiny", [true, false, false]);
        check("acme/Tiny", [true, false, false]);
        check("acme/poems", [false, false, false]);
        check("datasets/acme/poems", [false, true, false]);
        check("acme/t*", [true, false, false]);
        check("*/T?ny", [true, false, true]);
        check("*/[op]*", [false, true, false]);
        check(&format!("{}/*", PublisherKey::from([2; 32])), [false, false, true]);
    }

    #[test]
    fn patterns_read_back_as_they_were_written() {
        for text in ["*", "acme/*", "acme/tiny", "datasets/acme/poems", "acme/tiny-*", "*/llama-?b"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        for text in ["acme/x/*", "*/", "acme/[", "ac*me/x", ""] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
