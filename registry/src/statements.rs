//! Takes in what a person here signs beside revisions: refs, profiles, advisories, attestations. All records of one act, or none.
//!
//! Nothing is signed here. Invariant: when a call answers, its records are durable; if one of them does not fit, nothing was written.

use std::ops::ControlFlow;

use cairn_protocol::{
    id::{PublisherKey, RealmId},
    name::{Handle, RepoId},
    record::{Body, Record},
};

use crate::{
    Registry,
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    commit::{PublishError, adopt, expect_next, pin_own_handle},
    listing::{self, RefState},
    look,
    records::{InsertError, Inserted, Origin, insert},
    ring,
};

/// A handle that someone here decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Without regard to case.
    pub handle: String,
    /// The key that it means here.
    pub publisher: PublisherKey,
    /// By the operator's word rather than by a pull or run.
    pub is_trusted: bool,
}

impl Registry {
    /// Takes in what a person here states. The publisher is known here from now on, and its handle means it.
    pub async fn state(&self, publisher: PublisherKey, records: Vec<Record>) -> Result<(), InsertError> {
        let realm = self.realm();
        let written = self.catalog().write(move |transaction| {
            ring::note_known(transaction, realm, publisher)?;
            for record in &records {
                insert(transaction, realm, record, Origin::Here)?;
            }
            pin_own_handle(transaction, realm, publisher)?;
            Ok::<_, InsertError>(())
        });
        written.await?;
        self.note_change(true);
        Ok(())
    }

    /// Takes in a head that makes a ref stand for a revision that is known here; it must be the very next of its ref.
    pub async fn point(&self, record: Record) -> Result<(), PublishError> {
        let realm = self.realm();
        let written = self.catalog().write(move |transaction| {
            let Body::Head(head) = record.body().map_err(InsertError::from)? else {
                return Err(PublishError::Records("it is not a head"));
            };
            let repo = head.repo(record.key());
            if !look::knows_revision(transaction, realm, &repo, head.revision)? {
                return Err(PublishError::Records("no record of the revision is here"));
            }
            expect_next(transaction, realm, &repo, &head)?;
            if insert(transaction, realm, &record, Origin::Here)? == Inserted::Stale {
                return Err(PublishError::Records("a newer head of the ref is known"));
            }
            adopt(transaction, realm, &repo, &head.ref_name, record.id())?;
            Ok(())
        });
        written.await?;
        self.note_change(true);
        Ok(())
    }

    /// Every ref of every repo of a publisher.
    pub async fn refs_of(&self, publisher: PublisherKey) -> Result<Vec<(RepoId, RefState)>, CatalogError> {
        let realm = self.realm();
        let read = self.catalog().survey(move |transaction| {
            let mut repos = Vec::new();
            let prefix = keys::one(realm, publisher.as_bytes());
            look::visit(transaction, tables::REPOS, &prefix, None, |key, name| {
                repos.push(keys::parse_repo(key, name)?);
                Ok(ControlFlow::Continue(()))
            })?;
            let mut refs = Vec::new();
            for repo in repos {
                let states = listing::refs(transaction, realm, &repo)?;
                refs.extend(states.into_iter().map(|state| (repo.clone(), state)));
            }
            Ok(refs)
        });
        read.await
    }

    /// The handles that someone here decided on: those that the operator trusts, and those that a pull or run pinned.
    pub async fn decided_handles(&self) -> Result<Vec<Decided>, CatalogError> {
        let realm = self.realm();
        let read = self.catalog().read(move |transaction| {
            let mut decided = handles(transaction, realm, tables::TRUSTED, true)?;
            decided.extend(handles(transaction, realm, tables::HANDLE_PINS, false)?);
            Ok(decided)
        });
        read.await
    }

    /// Forgets that a pull or run pinned a handle. Answers whether it was.
    pub async fn unpin_handle(&self, handle: &Handle) -> Result<bool, CatalogError> {
        let key = keys::handle(self.realm(), handle);
        let written = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            Ok(transaction.open_table(tables::HANDLE_PINS)?.remove(key.as_slice())?.is_some())
        });
        written.await
    }
}

fn handles(
    transaction: &impl Tables,
    realm: RealmId,
    table: redb::TableDefinition<'static, &'static [u8], &'static [u8]>,
    is_trusted: bool,
) -> Result<Vec<Decided>, CatalogError> {
    let mut decided = Vec::new();
    look::visit(transaction, table, &keys::realm(realm), None, |key, publisher| {
        let handle = std::str::from_utf8(&key[keys::ID..]).map_err(|_| keys::damaged("a handle"))?.to_owned();
        let publisher = PublisherKey::try_from(publisher).map_err(|_| keys::damaged("a handle's key"))?;
        decided.push(Decided { handle, publisher, is_trusted });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(decided)
}
