//! Where revisions come from and what was made from them: base, fine-tune, adapter, quantised, dataset.
//!
//! Upwards a revision's own record says it: its parents in other repos, the origins that its publisher's node knew, and the names on its
//! card. Downwards DESCENDANTS has a row for each of those. All of it is what publishers state of their own revisions: anyone may say that
//! a model was made from a famous one, so each edge tells who says so.
//!
//! Invariant: DESCENDANTS has exactly the rows of the records that REVISIONS names; an answer is bounded in depth and number.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::ControlFlow,
};

use cairn_protocol::{
    id::{PublisherKey, RealmId, RecordId, RevisionId},
    name::{RepoId, RepoPath},
    record::{Body, CardFacts, Record, RecordKind, Revision},
};
use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use crate::{
    Registry,
    catalog::{CatalogError, keys, tables},
    listing, look, resolve,
};

/// How far an answer goes from where it begins.
pub const DEPTH_MAX: u32 = 16;
/// Revisions of one answer.
pub const NODES_MAX: usize = 512;
/// What was made of one thing, at most so many of which are looked at.
const CHILDREN_MAX: usize = 256;

/// Which way a lineage is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To what it was made from.
    Up,
    /// To what was made from it.
    Down,
}

/// That one thing was made from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// How many steps from where the answer begins: 1 is next to it.
    pub depth: u32,
    /// "finetune", "adapter", "merge", "quantized", "dataset", "import", or "parent" where only that is known.
    pub relation: String,
    /// What was made.
    pub child: Place,
    /// What it was made from.
    pub origin: Place,
}

/// A repo as people write it here, and the revision, as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `PUBLISHER/NAME`; of what is not known here, the name that the card gives.
    pub path: String,
    /// The publisher who states it; none of what is not known here.
    pub publisher: Option<PublisherKey>,
    /// Which revision, if that is said.
    pub revision: Option<RevisionId>,
}

/// What a revision was made from, and what was made from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Sorted by depth.
    pub edges: Vec<Edge>,
    /// Whether there is more than one answer holds.
    pub is_cut: bool,
}

impl Registry {
    /// Follows a revision's lineage one way, at most `depth` steps.
    pub async fn lineage(
        &self,
        repo: &RepoId,
        revision: RevisionId,
        direction: Direction,
        depth: u32,
    ) -> Result<Lineage, CatalogError> {
        let (realm, repo, depth) = (self.realm(), repo.clone(), depth.min(DEPTH_MAX));
        let followed = self.catalog().survey(move |transaction| {
            let mut walk = Walk { transaction, realm, direction, seen: BTreeSet::new(), lineage: Lineage::default() };
            walk.follow(repo, revision, depth)?;
            Ok(walk.lineage)
        });
        followed.await
    }
}

struct Walk<'a> {
    transaction: &'a ReadTransaction,
    realm: RealmId,
    direction: Direction,
    seen: BTreeSet<(RepoId, RevisionId)>,
    lineage: Lineage,
}

/// Where a step leads: the edge, and the revision to go on from if it is known here.
type Step = (Edge, Option<(RepoId, RevisionId)>);

impl Walk<'_> {
    /// Breadth first, so that what is cut is what is furthest.
    fn follow(&mut self, repo: RepoId, revision: RevisionId, depth_max: u32) -> Result<(), CatalogError> {
        self.seen.insert((repo.clone(), revision));
        let mut ahead = VecDeque::from([(repo, revision, 1)]);
        while let Some((repo, revision, depth)) = ahead.pop_front() {
            let steps = match self.direction {
                Direction::Up => self.up(&repo, revision, depth)?,
                Direction::Down => self.down(&repo, revision, depth)?,
            };
            for (edge, next) in steps {
                if self.lineage.edges.len() == NODES_MAX {
                    self.lineage.is_cut = true;
                    return Ok(());
                }
                self.lineage.edges.push(edge);
                let Some((repo, revision)) = next else { continue };
                if depth < depth_max && self.seen.insert((repo.clone(), revision)) {
                    ahead.push_back((repo, revision, depth + 1));
                }
            }
        }
        Ok(())
    }

    fn up(&self, repo: &RepoId, revision: RevisionId, depth: u32) -> Result<Vec<Step>, CatalogError> {
        let Some(body) = listing::revision_body(self.transaction, self.realm, repo, revision)? else {
            return Ok(Vec::new());
        };
        let child = self.place(repo, Some(revision))?;
        let mut origins: BTreeMap<Place, (String, Option<(RepoId, RevisionId)>)> = BTreeMap::new();
        for parent in &body.parents {
            let Some(other) = listing::repo_of(self.transaction, self.realm, *parent)?.filter(|at| at != repo) else {
                continue;
            };
            origins.insert(self.place(&other, Some(*parent))?, ("parent".to_owned(), Some((other, *parent))));
        }
        for origin in body.origins.iter().filter(|origin| origin.repo != *repo) {
            let next = self.revision_of(&origin.repo, origin.revision)?;
            origins.insert(self.place(&origin.repo, origin.revision)?, (origin.relation.clone(), next));
        }
        for (relation, name) in body.card.named() {
            let (place, next) = self.place_named(name, relation)?;
            let is_itself = next.as_ref().is_some_and(|(named, _)| named == repo);
            if !is_itself && !origins.keys().any(|known| known.path == place.path) {
                origins.insert(place, (relation.to_owned(), next));
            }
        }
        let step = |(origin, (relation, next))| (Edge { depth, relation, child: child.clone(), origin }, next);
        Ok(origins.into_iter().map(step).collect())
    }

    fn down(&mut self, repo: &RepoId, revision: RevisionId, depth: u32) -> Result<Vec<Step>, CatalogError> {
        let origin = self.place(repo, Some(revision))?;
        let by_key = RepoPath { publisher: cairn_protocol::Publisher::Key(repo.publisher), ..repo.path() }.to_string();
        let anchors = [
            Anchor::Revision(revision),
            Anchor::Repo(repo.clone()),
            Anchor::named(&origin.path),
            Anchor::named(&by_key),
        ];
        let mut children: BTreeMap<(RepoId, RevisionId), String> = BTreeMap::new();
        for anchor in anchors {
            for (id, relation) in self.rows(&anchor)? {
                let Some((child, body)) = self.revision_record(id)? else { continue };
                // What follows it in its own repo is its history.
                let is_of_another =
                    matches!(&anchor, Anchor::Revision(_) | Anchor::Name(_)) || !speaks_of_other(&body, repo, revision);
                if child != *repo && is_of_another {
                    children.entry((child, body.revision)).or_insert(relation);
                }
            }
        }
        let mut steps = Vec::new();
        for ((child, revision), relation) in children {
            let place = self.place(&child, Some(revision))?;
            steps.push((Edge { depth, relation, child: place, origin: origin.clone() }, Some((child, revision))));
        }
        Ok(steps)
    }

    fn rows(&mut self, anchor: &Anchor) -> Result<Vec<(RecordId, String)>, CatalogError> {
        let mut rows = Vec::new();
        let prefix = anchor.key(self.realm);
        look::visit(self.transaction, tables::DESCENDANTS, &prefix, None, |key, value| {
            if rows.len() == CHILDREN_MAX {
                self.lineage.is_cut = true;
                return Ok(ControlFlow::Break(()));
            }
            rows.push((RecordId::from(keys::last_id(key)?), String::from_utf8_lossy(value).into_owned()));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }

    fn revision_record(&self, id: RecordId) -> Result<Option<(RepoId, Revision)>, CatalogError> {
        let Some(record) = look::record(self.transaction, self.realm, RecordKind::Revision, id)? else {
            return Ok(None);
        };
        match record.body() {
            Ok(Body::Revision(body)) => Ok(Some((body.repo(record.key()), body))),
            _ => Err(keys::damaged("a revision's record")),
        }
    }

    fn place(&self, repo: &RepoId, revision: Option<RevisionId>) -> Result<Place, CatalogError> {
        let path = resolve::display_path(self.transaction, self.realm, repo)?;
        Ok(Place { path, publisher: Some(repo.publisher), revision })
    }

    /// The revision that is meant, or the one that `main` stands for.
    fn revision_of(
        &self,
        repo: &RepoId,
        revision: Option<RevisionId>,
    ) -> Result<Option<(RepoId, RevisionId)>, CatalogError> {
        let revision = match revision {
            Some(revision) => Some(revision),
            None => listing::summary(self.transaction, self.realm, repo.clone())?.head.map(|head| head.revision),
        };
        Ok(revision.map(|revision| (repo.clone(), revision)))
    }

    /// A repo as a card names it.
    fn place_named(&self, name: &str, relation: &str) -> Result<(Place, Option<(RepoId, RevisionId)>), CatalogError> {
        let unknown = Place { path: name.to_owned(), publisher: None, revision: None };
        let Some(path) = CardFacts::repo_named(relation, name) else { return Ok((unknown, None)) };
        let whose = resolve::whose(self.transaction, self.realm, &path.publisher, &[]);
        let publisher = match whose {
            Ok((publisher, _)) => publisher,
            Err(resolve::ResolveError::Catalog(error)) => return Err(error),
            Err(_) => return Ok((unknown, None)),
        };
        let repo = RepoId { publisher, kind: path.kind, name: path.name };
        if look::value_of(self.transaction, tables::REPOS, &keys::repo(self.realm, &repo))?.is_none() {
            return Ok((unknown, None));
        }
        let next = self.revision_of(&repo, None)?;
        Ok((self.place(&repo, None)?, next))
    }
}

/// Whether a record that names this repo names other revisions of it only.
fn speaks_of_other(body: &Revision, repo: &RepoId, revision: RevisionId) -> bool {
    let mut of_repo = body.origins.iter().filter(|origin| origin.repo == *repo).peekable();
    of_repo.peek().is_some() && of_repo.all(|origin| origin.revision.is_some_and(|said| said != revision))
}

/// What things are made from, as DESCENDANTS names it.
enum Anchor {
    Repo(RepoId),
    Revision(RevisionId),
    /// As a card writes it, without regard to case.
    Name(String),
}

impl Anchor {
    fn named(path: &str) -> Self {
        Self::Name(path.strip_prefix("datasets/").unwrap_or(path).to_lowercase())
    }

    fn key(&self, realm: RealmId) -> Vec<u8> {
        let (sort, id) = match self {
            Self::Repo(repo) => (1, *blake3::hash(&keys::repo(realm, repo)).as_bytes()),
            Self::Revision(revision) => (2, *revision.as_bytes()),
            Self::Name(name) => (3, *blake3::hash(name.as_bytes()).as_bytes()),
        };
        [realm.as_bytes().as_slice(), &[sort], &id].concat()
    }
}

/// Everything that a revision's record says it was made from.
fn anchors(body: &Revision) -> Vec<(Anchor, String)> {
    let parents = body.parents.iter().map(|parent| (Anchor::Revision(*parent), "parent".to_owned()));
    let repos = body.origins.iter().map(|origin| (Anchor::Repo(origin.repo.clone()), origin.relation.clone()));
    let revisions = body
        .origins
        .iter()
        .filter_map(|origin| origin.revision.map(|revision| (Anchor::Revision(revision), origin.relation.clone())));
    let names = body.card.named().map(|(relation, name)| (Anchor::named(name), relation.to_owned()));
    parents.chain(repos).chain(revisions).chain(names).collect()
}

/// A revision's record stands for its revision from now on.
pub(crate) fn note(transaction: &WriteTransaction, record: &Record, body: &Revision) -> Result<(), CatalogError> {
    let mut rows = transaction.open_table(tables::DESCENDANTS)?;
    for (anchor, relation) in anchors(body) {
        let key = [anchor.key(record.realm()).as_slice(), record.id().as_bytes()].concat();
        rows.insert(key.as_slice(), relation.as_bytes())?;
    }
    Ok(())
}

/// It does no more.
pub(crate) fn forget(transaction: &WriteTransaction, record: &Record, body: &Revision) -> Result<(), CatalogError> {
    let mut rows = transaction.open_table(tables::DESCENDANTS)?;
    for (anchor, _) in anchors(body) {
        rows.remove([anchor.key(record.realm()).as_slice(), record.id().as_bytes()].concat().as_slice())?;
    }
    Ok(())
}

/// Makes the rows of a catalogue that has none.
pub(crate) fn rebuild(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    let records = transaction.open_table(tables::RECORDS)?;
    for entry in transaction.open_table(tables::REVISIONS)?.iter()? {
        let (key, id) = entry?;
        let realm = key.value().get(..keys::ID).ok_or_else(|| keys::damaged("a record's realm"))?;
        let key = [realm, &[RecordKind::Revision as u8], id.value()].concat();
        let Some(envelope) = records.get(key.as_slice())? else { continue };
        // They were verified when they came.
        let Ok(record) = Record::verify(envelope.value()) else { continue };
        if let Ok(Body::Revision(body)) = record.body() {
            note(transaction, &record, &body)?;
        }
    }
    Ok(())
}
