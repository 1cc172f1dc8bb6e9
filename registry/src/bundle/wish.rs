//! What is to go into a bundle: the records that a repo's reader needs, and the kept revisions whose bytes go along.
//!
//! The records of a repo always go whole: its heads and revisions, what is said of them, and the profiles of everyone who signed.
//! Then the receiver stands where it would stand had it compared catalogues with this node.
//!
//! Invariant: a revision's bytes go only if the record that names it goes too, whatever the other side is said to have.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use cairn_protocol::{
    id::{BlobHash, PublisherKey, RealmId, RecordId, RevisionId},
    name::RepoId,
    record::{RecordKind, Subject},
};
use redb::{ReadTransaction, TableDefinition};

use super::Summary;
use crate::{
    catalog::{CatalogError, keys, tables},
    listing, look,
};

/// What a bundle is to hold.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Which repos.
    pub selection: Selection,
    /// Records only, without a byte of any file.
    pub records_only: bool,
    /// What the other side has already.
    pub since: Option<Summary>,
}

/// Which repos.
#[derive(Debug, Clone)]
pub enum Selection {
    /// The whole catalogue, and every revision that is kept here.
    Catalogue,
    /// Every one of which a revision is kept here.
    Kept,
    /// These; of each either every revision that is kept here, or this one.
    These(Vec<(RepoId, Option<RevisionId>)>),
}

/// What goes in, by the catalogue.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Envelopes, in the order of kinds: profiles come first.
    pub(super) envelopes: BTreeMap<(u8, RecordId), Vec<u8>>,
    /// Revisions whose bytes go in.
    pub(super) revisions: BTreeSet<RevisionId>,
}

/// Reads from the catalogue what the wish names. What the other side has is left out later.
pub(super) fn choose(
    transaction: &ReadTransaction,
    realm: RealmId,
    selection: Selection,
) -> Result<Chosen, CatalogError> {
    let mut choice = Choice { transaction, realm, chosen: Chosen::default(), signers: BTreeSet::new() };
    let these = match selection {
        Selection::Catalogue => {
            choice.everything()?;
            return Ok(choice.chosen);
        }
        Selection::These(these) => these,
        Selection::Kept => kept_repos(transaction, realm)?,
    };
    for (repo, revision) in these {
        choice.repo(&repo, revision)?;
    }
    choice.profiles()?;
    Ok(choice.chosen)
}

fn kept_repos(
    transaction: &ReadTransaction,
    realm: RealmId,
) -> Result<Vec<(RepoId, Option<RevisionId>)>, CatalogError> {
    let mut repos = BTreeSet::new();
    for revision in ids_under(transaction, tables::KEPT, &keys::realm(realm))? {
        repos.extend(listing::repo_of(transaction, realm, RevisionId::from(revision))?);
    }
    Ok(repos.into_iter().map(|repo| (repo, None)).collect())
}

struct Choice<'a> {
    transaction: &'a ReadTransaction,
    realm: RealmId,
    chosen: Chosen,
    signers: BTreeSet<PublisherKey>,
}

impl Choice<'_> {
    fn everything(&mut self) -> Result<(), CatalogError> {
        let (transaction, realm) = (self.transaction, self.realm);
        let envelopes = &mut self.chosen.envelopes;
        look::visit(transaction, tables::LIVE, &keys::realm(realm), None, |key, kind| {
            let id = RecordId::from(keys::last_id(key)?);
            let kind = kind.first().and_then(|kind| RecordKind::from_number((*kind).into()));
            let kind = kind.ok_or_else(|| keys::damaged("a live record's kind"))?;
            if let Some(envelope) = look::value_of(transaction, tables::RECORDS, &keys::record(realm, kind, id))? {
                envelopes.insert((kind as u8, id), envelope);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let kept = ids_under(transaction, tables::KEPT, &keys::realm(realm))?;
        self.chosen.revisions.extend(kept.into_iter().map(RevisionId::from));
        Ok(())
    }

    fn repo(&mut self, repo: &RepoId, only: Option<RevisionId>) -> Result<(), CatalogError> {
        let (transaction, realm) = (self.transaction, self.realm);
        self.signers.insert(repo.publisher);
        let prefix = keys::repo(realm, repo);
        let revisions = ids_under(transaction, tables::REVISIONS, &prefix)?;
        for record in values_under(transaction, tables::REVISIONS, &prefix)? {
            self.take(RecordKind::Revision, record)?;
        }
        for head in ids_under(transaction, tables::HEADS, &prefix)? {
            self.take(RecordKind::Head, head)?;
        }
        self.said_of(&Subject::Publisher(repo.publisher))?;
        self.said_of(&Subject::Repo(repo.clone()))?;
        for revision in revisions.into_iter().map(RevisionId::from) {
            self.revision(revision, only.is_none_or(|only| only == revision))?;
        }
        Ok(())
    }

    fn revision(&mut self, revision: RevisionId, is_wanted: bool) -> Result<(), CatalogError> {
        let (transaction, realm) = (self.transaction, self.realm);
        self.said_of(&Subject::Revision(revision))?;
        let key = keys::one(realm, revision.as_bytes());
        for attestation in values_under(transaction, tables::ATTESTATIONS, &key)? {
            self.take(RecordKind::Attestation, attestation)?;
        }
        for blob in ids_under(transaction, tables::KEPT_BLOBS, &key)? {
            self.said_of(&Subject::Blob(BlobHash::from(blob)))?;
        }
        if is_wanted && look::value_of(transaction, tables::KEPT, &key)?.is_some() {
            self.chosen.revisions.insert(revision);
        }
        Ok(())
    }

    fn said_of(&mut self, subject: &Subject) -> Result<(), CatalogError> {
        for advisory in ids_under(self.transaction, tables::ADVISORIES, &keys::subject(self.realm, subject))? {
            self.take(RecordKind::Advisory, advisory)?;
        }
        Ok(())
    }

    /// The profiles of everyone who signed something of it, and of everyone for whom they sign.
    fn profiles(&mut self) -> Result<(), CatalogError> {
        for signer in std::mem::take(&mut self.signers) {
            let prefix = keys::one(self.realm, signer.as_bytes());
            for profile in ids_under(self.transaction, tables::STATED, &prefix)? {
                self.take(RecordKind::Profile, profile)?;
            }
        }
        Ok(())
    }

    /// Takes a record, if it is here and compared with peers: one that made way for another says nothing.
    fn take(&mut self, kind: RecordKind, id: [u8; 32]) -> Result<(), CatalogError> {
        let (realm, id) = (self.realm, RecordId::from(id));
        if look::value_of(self.transaction, tables::LIVE, &keys::one(realm, id.as_bytes()))?.is_none() {
            return Ok(());
        }
        let key = keys::record(realm, kind, id);
        let Some(envelope) = look::value_of(self.transaction, tables::RECORDS, &key)? else { return Ok(()) };
        if kind != RecordKind::Profile {
            let record = look::record(self.transaction, realm, kind, id)?;
            self.signers.extend(record.map(|record| record.key()));
        }
        self.chosen.envelopes.insert((kind as u8, id), envelope);
        Ok(())
    }
}

/// The ids that end the keys under a prefix.
fn ids_under(
    transaction: &ReadTransaction,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    prefix: &[u8],
) -> Result<Vec<[u8; 32]>, CatalogError> {
    let mut ids = Vec::new();
    look::visit(transaction, table, prefix, None, |key, _| {
        ids.push(keys::last_id(key)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ids)
}

/// The ids that end the values under a prefix.
fn values_under(
    transaction: &ReadTransaction,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    prefix: &[u8],
) -> Result<Vec<[u8; 32]>, CatalogError> {
    let mut ids = Vec::new();
    look::visit(transaction, table, prefix, None, |_, value| {
        ids.push(keys::last_id(value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ids)
}
