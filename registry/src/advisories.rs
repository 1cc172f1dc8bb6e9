//! Advisories in the catalogue: what is said of a revision, by whom, and what the operator's policy makes of it.
//!
//! Anyone may sign an advisory, so most are hearsay: shown and nothing else. Those count that are signed by the publisher of what they
//! are about, by keys of this node, or by an adviser whom the operator named. What follows from one that counts is decided by
//! [`Policy::judge`], which is pure.
//!
//! Invariant: strangers' advisories, however many, change no decision and hide none that counts: those that count are looked up by
//! their signers' keys, hearsay up to a bound.

use std::{collections::BTreeSet, ops::ControlFlow};

use cairn_protocol::{
    id::{BlobHash, PublisherKey, RealmId, RecordId, RevisionId},
    name::RepoId,
    record::{Advisory, Body, Category, Record, RecordKind, Subject},
};
use redb::{ReadTransaction, WriteTransaction};

use crate::{
    Registry,
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    look, publishers,
    records::{InsertError, Inserted},
    ring,
    sync::tree,
};

/// Advisories of one signer on one subject that are looked at, and hearsay on a revision that is shown.
const SHOWN_MAX: usize = 64;

/// An advisory that is about something, and why it counts here or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Its record.
    pub id: RecordId,
    /// Who signed it.
    pub signer: PublisherKey,
    /// What it says.
    pub advisory: Advisory,
    /// Whose word it is here.
    pub weight: Weight,
}

/// Whose word an advisory is, for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// A key of this node.
    Own,
    /// Who published what it is about.
    Publisher,
    /// Someone whom the operator named as an adviser.
    Adviser,
    /// Anyone else: it is shown and changes nothing.
    Hearsay,
}

impl Weight {
    /// For people and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Publisher => "publisher",
            Self::Adviser => "adviser",
            Self::Hearsay => "hearsay",
        }
    }
}

/// What an operator does about advisories that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Revisions under these are not fetched, run or mirrored.
    pub refuse: BTreeSet<Category>,
    /// Of these a person is told.
    pub warn: BTreeSet<Category>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            refuse: [Category::Malware, Category::Legal, Category::Yanked].into(),
            warn: [Category::License, Category::Deprecated].into(),
        }
    }
}

/// What the policy makes of the advisories on a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// For these the revision is refused.
    pub refused: Vec<Notice>,
    /// Of these a person is told.
    pub warned: Vec<Notice>,
}

impl Policy {
    /// Judges what is said of a revision. `accepted` are names of advisories that a person knows of and wants it despite.
    pub fn judge(&self, notices: &[Notice], accepted: &[String]) -> Judgement {
        let mut judgement = Judgement::default();
        for notice in notices.iter().filter(|notice| notice.weight != Weight::Hearsay) {
            let category = notice.advisory.category;
            let is_accepted = accepted.contains(&notice.advisory.name);
            if self.refuse.contains(&category) && !is_accepted {
                judgement.refused.push(notice.clone());
            } else if self.warn.contains(&category) || self.refuse.contains(&category) {
                judgement.warned.push(notice.clone());
            }
        }
        judgement
    }
}

/// What an advisory may be about.
#[derive(Debug, Clone)]
pub struct About {
    /// The repo.
    pub repo: RepoId,
    /// Its revision.
    pub revision: RevisionId,
    /// The files that matter.
    pub blobs: Vec<BlobHash>,
}

impl Registry {
    /// What is said of a revision: first what counts here. `own` are the keys that this node signs with.
    pub async fn advisories(&self, about: About, own: &[PublisherKey]) -> Result<Vec<Notice>, CatalogError> {
        let (realm, own) = (self.realm(), own.to_vec());
        self.catalog().read(move |transaction| notices(transaction, realm, &about, &own)).await
    }

    /// The advisories that one key has signed and that hold, by name.
    pub async fn advisories_by(&self, signer: PublisherKey) -> Result<Vec<(RecordId, Advisory)>, CatalogError> {
        let realm = self.realm();
        let read = self.catalog().read(move |transaction| {
            let mut ids = Vec::new();
            let prefix = keys::one(realm, signer.as_bytes());
            look::visit(transaction, tables::ADVISORY_NAMES, &prefix, None, |_, value| {
                ids.push(RecordId::from(keys::last_id(value)?));
                Ok(ControlFlow::Continue(()))
            })?;
            let mut found = Vec::new();
            for id in ids {
                found.extend(advisory(transaction, realm, id)?.map(|(record, advisory)| (record.id(), advisory)));
            }
            Ok(found)
        });
        read.await
    }

    /// Takes this publisher's advisories for its own word from now on, or no longer. Answers whether that is news.
    pub async fn heed(&self, publisher: PublisherKey, is_adviser: bool) -> Result<bool, CatalogError> {
        let realm = self.realm();
        let written = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            let key = keys::one(realm, publisher.as_bytes());
            let mut advisers = transaction.open_table(tables::ADVISERS)?;
            if !is_adviser {
                return Ok(advisers.remove(key.as_slice())?.is_some());
            }
            ring::note_known(transaction, realm, publisher)?;
            Ok(advisers.insert(key.as_slice(), [].as_slice())?.is_none())
        });
        let is_news = written.await?;
        self.note_change(is_news);
        Ok(is_news)
    }

    /// The publishers whose advisories count here.
    pub async fn advisers(&self) -> Result<Vec<PublisherKey>, CatalogError> {
        let realm = self.realm();
        self.catalog().read(move |transaction| advisers(transaction, realm)).await
    }
}

/// Takes in an advisory; `store` keeps the record.
pub(crate) fn insert(
    transaction: &WriteTransaction,
    record: &Record,
    advisory: &Advisory,
    store: impl FnOnce() -> Result<(), InsertError>,
) -> Result<Inserted, InsertError> {
    let realm = record.realm();
    let key = keys::advisory_name(realm, record.key(), &advisory.name);
    let old = look::numbered(transaction, tables::ADVISORY_NAMES, &key)?;
    if old.is_some_and(|old| old > (advisory.number, record.id())) {
        return Ok(Inserted::Stale);
    }
    store()?;
    if let Some((_, id)) = old {
        forget_subjects(transaction, realm, record.key(), id)?;
        tree::remove(transaction, realm, id)?;
    }
    look::put_numbered(transaction, tables::ADVISORY_NAMES, &key, advisory.number, record.id())?;
    for subject in &advisory.subjects {
        let key = keys::advisory(realm, subject, record.key(), record.id());
        transaction
            .open_table(tables::ADVISORIES)
            .map_err(CatalogError::from)?
            .insert(key.as_slice(), [].as_slice())
            .map_err(CatalogError::from)?;
    }
    tree::insert(transaction, realm, RecordKind::Advisory, record.id())?;
    Ok(Inserted::New)
}

/// An advisory made way for others.
pub(crate) fn forget(transaction: &WriteTransaction, record: &Record, advisory: &Advisory) -> Result<(), CatalogError> {
    let realm = record.realm();
    let key = keys::advisory_name(realm, record.key(), &advisory.name);
    if look::numbered(transaction, tables::ADVISORY_NAMES, &key)?.is_some_and(|(_, id)| id == record.id()) {
        transaction.open_table(tables::ADVISORY_NAMES)?.remove(key.as_slice())?;
    }
    remove_subjects(transaction, record, advisory)
}

fn forget_subjects(
    transaction: &WriteTransaction,
    realm: RealmId,
    signer: PublisherKey,
    id: RecordId,
) -> Result<(), CatalogError> {
    match advisory(transaction, realm, id)? {
        Some((record, advisory)) if record.key() == signer => remove_subjects(transaction, &record, &advisory),
        _ => Ok(()),
    }
}

fn remove_subjects(transaction: &WriteTransaction, record: &Record, advisory: &Advisory) -> Result<(), CatalogError> {
    let mut table = transaction.open_table(tables::ADVISORIES)?;
    for subject in &advisory.subjects {
        table.remove(keys::advisory(record.realm(), subject, record.key(), record.id()).as_slice())?;
    }
    Ok(())
}

fn advisory(
    transaction: &impl Tables,
    realm: RealmId,
    id: RecordId,
) -> Result<Option<(Record, Advisory)>, CatalogError> {
    let Some(record) = look::record(transaction, realm, RecordKind::Advisory, id)? else { return Ok(None) };
    match record.body() {
        Ok(Body::Advisory(advisory)) => Ok(Some((record, advisory))),
        _ => Err(keys::damaged("an advisory's record")),
    }
}

fn advisers(transaction: &impl Tables, realm: RealmId) -> Result<Vec<PublisherKey>, CatalogError> {
    let mut advisers = Vec::new();
    look::visit(transaction, tables::ADVISERS, &keys::realm(realm), None, |key, _| {
        advisers.push(PublisherKey::from(keys::last_id(key)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(advisers)
}

/// The keys whose word counts, each with whose it is.
pub(crate) fn signers(
    transaction: &ReadTransaction,
    realm: RealmId,
    publisher: PublisherKey,
    own: &[PublisherKey],
) -> Result<Vec<(PublisherKey, Weight)>, CatalogError> {
    let mut signers: Vec<_> = own.iter().map(|key| (*key, Weight::Own)).collect();
    let advisers = advisers(transaction, realm)?.into_iter().map(|adviser| (adviser, Weight::Adviser));
    for (publisher, weight) in std::iter::once((publisher, Weight::Publisher)).chain(advisers) {
        let authority = publishers::authority(transaction, realm, publisher)?;
        let now = authority.now().1;
        signers.push((now.signing_key, weight));
        signers.extend(now.members.iter().map(|member| (*member, weight)));
    }
    let mut seen = BTreeSet::new();
    signers.retain(|(key, _)| seen.insert(*key));
    Ok(signers)
}

fn notices(
    transaction: &ReadTransaction,
    realm: RealmId,
    about: &About,
    own: &[PublisherKey],
) -> Result<Vec<Notice>, CatalogError> {
    let signers = signers(transaction, realm, about.repo.publisher, own)?;
    let named = [
        Subject::Publisher(about.repo.publisher),
        Subject::Repo(about.repo.clone()),
        Subject::Revision(about.revision),
    ];
    let files = about.blobs.iter().map(|blob| Subject::Blob(*blob));
    let mut ids = BTreeSet::new();
    let mut notices = Vec::new();
    for subject in named.iter().cloned().chain(files) {
        if !is_spoken_of(transaction, realm, &subject)? {
            continue;
        }
        for (signer, weight) in &signers {
            let prefix = keys::advisories_by(realm, &subject, *signer);
            for id in ids_under(transaction, &prefix)? {
                notices.extend(notice(transaction, realm, id, *weight, &mut ids)?);
            }
        }
        for id in ids_under(transaction, &keys::subject(realm, &subject))? {
            notices.extend(notice(transaction, realm, id, Weight::Hearsay, &mut ids)?);
        }
    }
    notices.sort_by(|a, b| (a.weight, &a.advisory.name, a.id).cmp(&(b.weight, &b.advisory.name, b.id)));
    let counting = notices.iter().filter(|notice| notice.weight != Weight::Hearsay).count();
    notices.truncate(counting + SHOWN_MAX);
    Ok(notices)
}

fn is_spoken_of(transaction: &ReadTransaction, realm: RealmId, subject: &Subject) -> Result<bool, CatalogError> {
    let mut is_any = false;
    look::visit(transaction, tables::ADVISORIES, &keys::subject(realm, subject), None, |_, _| {
        is_any = true;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(is_any)
}

fn ids_under(transaction: &ReadTransaction, prefix: &[u8]) -> Result<Vec<RecordId>, CatalogError> {
    let mut ids = Vec::new();
    look::visit(transaction, tables::ADVISORIES, prefix, None, |key, _| {
        ids.push(RecordId::from(keys::last_id(key)?));
        Ok(if ids.len() == SHOWN_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(ids)
}

fn notice(
    transaction: &ReadTransaction,
    realm: RealmId,
    id: RecordId,
    weight: Weight,
    seen: &mut BTreeSet<RecordId>,
) -> Result<Option<Notice>, CatalogError> {
    if !seen.insert(id) {
        return Ok(None);
    }
    let found = advisory(transaction, realm, id)?.filter(|(_, advisory)| !advisory.is_withdrawn);
    Ok(found.map(|(record, advisory)| Notice { id, signer: record.key(), advisory, weight }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(category: Category, weight: Weight) -> Notice {
        let advisory = Advisory {
            name: format!("{category}-1"),
            number: 1,
            category,
            is_withdrawn: false,
            subjects: vec![Subject::Revision(RevisionId::from([1; 32]))],
            text: String::new(),
            url: String::new(),
            instead: String::new(),
            created_ms: 0,
        };
        Notice { id: RecordId::from([2; 32]), signer: PublisherKey::from([3; 32]), advisory, weight }
    }

    #[test]
    fn hearsay_changes_nothing_and_what_counts_is_refused_or_told() {
        let said = [
            notice(Category::Malware, Weight::Hearsay),
            notice(Category::Malware, Weight::Adviser),
            notice(Category::Deprecated, Weight::Publisher),
        ];
        let judgement = Policy::default().judge(&said, &[]);
        assert_eq!(judgement.refused, [said[1].clone()]);
        assert_eq!(judgement.warned, [said[2].clone()]);
    }

    #[test]
    fn what_a_person_accepts_by_name_is_told_and_not_refused() {
        let said = [notice(Category::Yanked, Weight::Publisher)];
        let judgement = Policy::default().judge(&said, &["yanked-1".to_owned()]);
        assert_eq!((judgement.refused.len(), judgement.warned.len()), (0, 1));
    }

    #[test]
    fn a_category_that_the_policy_does_not_name_is_ignored() {
        let policy = Policy { refuse: BTreeSet::new(), warn: BTreeSet::new() };
        assert_eq!(policy.judge(&[notice(Category::Malware, Weight::Own)], &[]), Judgement::default());
    }
}
