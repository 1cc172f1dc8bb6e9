//! Publishers in the catalogue: their profiles, and which keys sign for them.
//!
//! The rules are [`crate::authority`]'s; here they meet the tables. A statement by a key that does not sign for its publisher is refused
//! when it comes, and comes again with a later comparison; one whose key loses a contest for its epoch is taken out then.
//!
//! Invariant: every row of HEADS is signed by a key that signs in the head's epoch; PROFILES and CLAIMS say what the profile in force says.

use std::ops::ControlFlow;

use cairn_protocol::{
    id::{PublisherKey, RealmId, RecordId},
    limits::PROFILES_MAX,
    record::{Body, Profile, Record, RecordKind},
};
use redb::WriteTransaction;

use crate::{
    Registry,
    authority::{Authority, Stated, settle},
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    look::{self, ProfileRow},
    records::{InsertError, Inserted},
    search::journal,
    sync::tree,
};

/// What is known of a publisher.
#[derive(Debug, Clone, PartialEq)]
pub struct PublisherState {
    /// Its first key, which names it.
    pub publisher: PublisherKey,
    /// The profile in force.
    pub profile: Option<Profile>,
    /// Who signs for it.
    pub authority: Authority,
    /// Whether a person's act made it known here.
    pub is_known: bool,
}

impl Registry {
    /// What is known of a publisher; one that was never heard of signs with its own key.
    pub async fn publisher(&self, publisher: PublisherKey) -> Result<PublisherState, CatalogError> {
        let realm = self.realm();
        let read = self.catalog().read(move |transaction| {
            let authority = authority(transaction, realm, publisher)?;
            let profile = match authority.now().1.profile {
                Some(id) => body(transaction, realm, id)?,
                None => None,
            };
            let known = keys::one(realm, publisher.as_bytes());
            let is_known = look::value_of(transaction, tables::KNOWN, &known)?.is_some();
            Ok(PublisherState { publisher, profile, authority, is_known })
        });
        read.await
    }
}

/// Who signs for a publisher.
pub(crate) fn authority(
    transaction: &impl Tables,
    realm: RealmId,
    publisher: PublisherKey,
) -> Result<Authority, CatalogError> {
    Ok(settle(publisher, &stated(transaction, realm, publisher)?))
}

/// The epoch that counts for a publisher now.
pub(crate) fn epoch(transaction: &impl Tables, realm: RealmId, publisher: PublisherKey) -> Result<u64, CatalogError> {
    Ok(look::profile(transaction, realm, publisher)?.map_or(0, |profile| profile.epoch))
}

/// Whether this key may state this for its publisher.
pub(crate) fn check(
    transaction: &impl Tables,
    realm: RealmId,
    signer: PublisherKey,
    body: &Body,
) -> Result<(), InsertError> {
    let publisher = body.publisher(signer);
    let may = match body {
        Body::Profile(_) | Body::Advisory(_) | Body::Attestation(_) => true,
        Body::Revision(_) => signer == publisher || authority(transaction, realm, publisher)?.signs(signer),
        Body::Head(head) if head.epoch == 0 && signer == publisher => true,
        Body::Head(head) => authority(transaction, realm, publisher)?.signs_in(head.epoch, signer),
    };
    if may { Ok(()) } else { Err(InsertError::NotAuthorised { publisher, signer }) }
}

/// Takes in a profile; `store` keeps the record.
pub(crate) fn insert(
    transaction: &WriteTransaction,
    record: &Record,
    profile: &Profile,
    store: impl FnOnce() -> Result<(), InsertError>,
) -> Result<Inserted, InsertError> {
    let (realm, publisher) = (record.realm(), profile.publisher.unwrap_or(record.key()));
    let mut known = stated(transaction, realm, publisher)?;
    let before = settle(publisher, &known);
    let arrival = known.iter().map(|stated| stated.arrival + 1).max().unwrap_or(0);
    let mut new = Stated::of(record, profile, arrival);
    if !before.admits(publisher, &new) {
        return Err(InsertError::NotAuthorised { publisher, signer: record.key() });
    }
    if known.iter().any(|old| old.supersedes(&new)) {
        return Ok(Inserted::Stale);
    }
    if known.len() >= PROFILES_MAX {
        return Err(InsertError::TooManyProfiles(publisher));
    }
    store()?;
    // What replaces a beginning stands where it stood.
    let superseded: Vec<Stated> = known.extract_if(.., |old| new.supersedes(old)).collect();
    for old in superseded {
        new.arrival = new.arrival.min(old.arrival);
        remove_row(transaction, realm, publisher, &old)?;
    }
    put_row(transaction, realm, publisher, &new)?;
    known.push(new);
    tree::insert(transaction, realm, RecordKind::Profile, record.id())?;
    let after = settle(publisher, &known);
    put_in_force(transaction, realm, publisher, &after)?;
    if !before.is_kept_by(&after) {
        take_out_unauthorised(transaction, realm, publisher, &after)?;
    }
    Ok(if before == after { Inserted::Stale } else { Inserted::New })
}

/// A profile made way for others.
pub(crate) fn forget(transaction: &WriteTransaction, record: &Record, profile: &Profile) -> Result<(), CatalogError> {
    let (realm, publisher) = (record.realm(), profile.publisher.unwrap_or(record.key()));
    let key = keys::stated(realm, publisher, profile.epoch, profile.number, record.id());
    transaction.open_table(tables::STATED)?.remove(key.as_slice())?;
    let left = settle(publisher, &stated(transaction, realm, publisher)?);
    put_in_force(transaction, realm, publisher, &left)
}

fn stated(transaction: &impl Tables, realm: RealmId, publisher: PublisherKey) -> Result<Vec<Stated>, CatalogError> {
    let mut rows = Vec::new();
    look::visit(transaction, tables::STATED, &keys::one(realm, publisher.as_bytes()), None, |key, value| {
        let arrival = value.try_into().map(u64::from_le_bytes).map_err(|_| keys::damaged("a profile's arrival"))?;
        rows.push((RecordId::from(keys::last_id(key)?), arrival));
        Ok(ControlFlow::Continue(()))
    })?;
    let mut known = Vec::with_capacity(rows.len());
    for (id, arrival) in rows {
        let Some(record) = look::record(transaction, realm, RecordKind::Profile, id)? else { continue };
        if let Ok(Body::Profile(profile)) = record.body() {
            known.push(Stated::of(&record, &profile, arrival));
        }
    }
    Ok(known)
}

fn body(transaction: &impl Tables, realm: RealmId, id: RecordId) -> Result<Option<Profile>, CatalogError> {
    let record = look::record(transaction, realm, RecordKind::Profile, id)?;
    Ok(record.and_then(|record| match record.body() {
        Ok(Body::Profile(profile)) => Some(profile),
        _ => None,
    }))
}

fn put_row(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
    stated: &Stated,
) -> Result<(), CatalogError> {
    let key = keys::stated(realm, publisher, stated.epoch, stated.number, stated.id);
    transaction.open_table(tables::STATED)?.insert(key.as_slice(), stated.arrival.to_le_bytes().as_slice())?;
    Ok(())
}

fn remove_row(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
    stated: &Stated,
) -> Result<(), CatalogError> {
    let key = keys::stated(realm, publisher, stated.epoch, stated.number, stated.id);
    transaction.open_table(tables::STATED)?.remove(key.as_slice())?;
    tree::remove(transaction, realm, stated.id)
}

/// Writes what the profile in force says where look-ups find it.
fn put_in_force(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
    authority: &Authority,
) -> Result<(), CatalogError> {
    let key = keys::one(realm, publisher.as_bytes());
    let old = look::profile(transaction, realm, publisher)?;
    let (epoch, now) = authority.now();
    let new = match now.profile {
        Some(id) => body(transaction, realm, id)?.map(|profile| ProfileRow { epoch, id, handle: profile.handle }),
        None => None,
    };
    if old == new {
        return Ok(());
    }
    if let Some(old) = old {
        let claim = keys::claim(realm, &old.handle, publisher);
        transaction.open_table(tables::CLAIMS)?.remove(claim.as_slice())?;
        transaction.open_table(tables::PROFILES)?.remove(key.as_slice())?;
    }
    if let Some(new) = new {
        let claim = keys::claim(realm, &new.handle, publisher);
        transaction.open_table(tables::CLAIMS)?.insert(claim.as_slice(), [].as_slice())?;
        transaction.open_table(tables::PROFILES)?.insert(key.as_slice(), new.to_value().as_slice())?;
    }
    journal::note_publisher(transaction, realm, publisher)
}

/// A contest for an epoch was decided otherwise than before: heads by keys that lost it go.
fn take_out_unauthorised(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
    authority: &Authority,
) -> Result<(), CatalogError> {
    let mut heads = Vec::new();
    look::visit(transaction, tables::HEADS, &keys::one(realm, publisher.as_bytes()), None, |key, _| {
        heads.push((key.to_vec(), RecordId::from(keys::last_id(key)?)));
        Ok(ControlFlow::Continue(()))
    })?;
    for (key, id) in heads {
        let Some(record) = look::record(transaction, realm, RecordKind::Head, id)? else { continue };
        let Ok(Body::Head(head)) = record.body() else { continue };
        if !authority.signs_in(head.epoch, record.key()) {
            tracing::warn!(%publisher, signer = %record.key(), epoch = head.epoch, "a head goes: its key lost the epoch");
            transaction.open_table(tables::HEADS)?.remove(key.as_slice())?;
            tree::remove(transaction, realm, id)?;
            journal::note(transaction, realm, &head.repo(record.key()))?;
        }
    }
    Ok(())
}
