//! Takes verified records into the catalogue, and hands them out in pages.
//!
//! Signatures are checked before a [`Record`] exists; here is what a record must be by itself: its realm is ours, and a head's number,
//! link and tag don't contradict each other. How heads fit one another is decided when a ref is resolved, by [`crate::history`], so that
//! it does not matter which was heard first. A head may arrive before its revision record or before the head that it follows.
//!
//! Invariant: whatever the order in which a set of heads and revisions arrives, the same ones end up in the catalogue, as long as they
//! all fit; no record is ever taken out because of what a later one says. Records of publishers that are not known here make way by age
//! alone, when what strangers may have is full ([`crate::ring`]); those of known publishers never.

use std::ops::ControlFlow;

use cairn_protocol::{
    id::{PublisherKey, RealmId, RecordId},
    limits::{CATALOG_BYTES_MAX, CATALOG_PAGE_DISPLACES_MAX, HEADS_PAGE_BYTES_MAX},
    name::{RefName, RepoId},
    record::{Body, Head, Record, RecordError, RecordKind, Revision},
};
use redb::WriteTransaction;

use crate::{
    Registry, advisories, attestations,
    catalog::{CatalogError, keys, tables},
    history::{HeadRow, PassedOver},
    lineage, look, publishers, ring,
    search::journal,
    sync::tree,
};

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It was not here and now is.
    New,
    /// It was here already.
    Known,
    /// A newer one of its sort is in force. A head is kept for the history; an older profile is not.
    Stale,
}

/// Why a record was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// It belongs to another realm.
    #[error("the record is of realm {found}, this node is in {expected}")]
    Realm {
        /// This node's realm.
        expected: RealmId,
        /// The record's.
        found: RealmId,
    },
    /// Its payload breaks a rule of its kind.
    #[error("the record's payload is not valid: {0}")]
    Payload(#[from] RecordError),
    /// A head's number, link and tag contradict each other.
    #[error("head {number} of {reference} does not fit: {reason}")]
    Link {
        /// The ref.
        reference: RefName,
        /// The head's number.
        number: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// A head that calls itself a tag's is not the first and only one of its ref.
    #[error("{0} is a tag; tags never move")]
    TagMoves(RefName),
    /// A head calls `main` a tag, which would leave the repo without the ref that moves.
    #[error("a head calls main a tag; main moves, and tags never do")]
    TagOnMain,
    /// Its key does not sign for the publisher that it names, as far as is known here.
    #[error("the key {signer} does not sign for the publisher {publisher}, as far as its profiles are known here")]
    NotAuthorised {
        /// The publisher.
        publisher: PublisherKey,
        /// Who signed.
        signer: PublisherKey,
    },
    /// A publisher has more profiles than anyone needs.
    #[error("the publisher {0} has more profiles that begin an epoch than are kept")]
    TooManyProfiles(PublisherKey),
    /// The catalogue takes no more of the publishers that are known here; what is published here still goes in.
    #[error("the catalogue holds {0} bytes of records of the publishers that are known here, the most it takes")]
    Full(u64),
    /// Strangers' bytes are full, and the page that brought this record has pushed out its share.
    #[error("strangers' records fill {CATALOG_BYTES_MAX} bytes, and this page has pushed out its share of them")]
    PageShare,
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Where a record comes from.
pub(crate) enum Origin<'a> {
    /// A peer: bounded, since signing is free. With the bytes of strangers' records that what it tells may still push out, and the bytes
    /// of known publishers' that the catalogue takes.
    Peer(&'a mut u64, u64),
    /// A person here.
    Here,
}

/// Where a record goes.
enum Place<'a> {
    /// Among those that stay.
    Lasting,
    /// Among the strangers', which may push out so many bytes of others.
    Ring(&'a mut u64),
}

impl Registry {
    /// Takes in a record from a peer.
    pub async fn insert(&self, record: Record) -> Result<Inserted, InsertError> {
        let (realm, bytes_max) = (self.realm(), self.options().catalog_bytes_max);
        let written = self.catalog().write(move |transaction| {
            let mut may_push_out = u64::MAX;
            insert(transaction, realm, &record, Origin::Peer(&mut may_push_out, bytes_max))
        });
        let inserted = written.await?;
        self.note_change(inserted != Inserted::Known);
        Ok(inserted)
    }

    /// Takes in news from peers, or their answers, in one durable step. Each record has its own verdict; a refused one does not
    /// spoil the others.
    pub async fn insert_page(&self, records: Vec<Record>) -> Result<Vec<Result<Inserted, InsertError>>, CatalogError> {
        self.insert_all(records, u64::MAX).await
    }

    /// Takes in a page of a peer's catalogue, as [`Registry::insert_page`] does, save that its strangers push out no more than the
    /// page's share of those that are here.
    pub async fn insert_peers_page(
        &self,
        records: Vec<Record>,
    ) -> Result<Vec<Result<Inserted, InsertError>>, CatalogError> {
        self.insert_all(records, CATALOG_PAGE_DISPLACES_MAX).await
    }

    /// Takes in records that a person here brings; they are as lasting as what is published here.
    pub async fn insert_here(&self, records: Vec<Record>) -> Result<Vec<Result<Inserted, InsertError>>, CatalogError> {
        let realm = self.realm();
        let verdicts = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            Ok(records.iter().map(|record| insert(transaction, realm, record, Origin::Here)).collect::<Vec<_>>())
        });
        let verdicts = verdicts.await?;
        self.note_change(verdicts.iter().any(|verdict| matches!(verdict, Ok(Inserted::New | Inserted::Stale))));
        Ok(verdicts)
    }

    async fn insert_all(
        &self,
        records: Vec<Record>,
        mut may_push_out: u64,
    ) -> Result<Vec<Result<Inserted, InsertError>>, CatalogError> {
        let (realm, bytes_max) = (self.realm(), self.options().catalog_bytes_max);
        let verdicts = self.catalog().write::<_, CatalogError, _>(move |transaction| {
            let insert = |record| insert(transaction, realm, record, Origin::Peer(&mut may_push_out, bytes_max));
            Ok(records.iter().map(insert).collect::<Vec<_>>())
        });
        let verdicts = verdicts.await?;
        self.note_change(verdicts.iter().any(|verdict| matches!(verdict, Ok(Inserted::New | Inserted::Stale))));
        Ok(verdicts)
    }

    /// The next page of all records, in a stable order (profiles, revisions, heads; each by id), for a node that joins late.
    /// `after` is empty for the first page, else what the page before returned; the returned one is empty after the last page.
    /// At most `limit` records and 512 KiB.
    pub async fn heads_page(&self, after: Vec<u8>, limit: usize) -> Result<(Vec<Record>, Vec<u8>), CatalogError> {
        let realm = self.realm();
        let read = self.catalog().read(move |transaction| page(transaction, realm, &after, limit.max(1)));
        let (envelopes, next) = read.await?;
        // Hundreds of signatures: neither on the catalogue's thread nor on an async worker.
        let verified = tokio::task::spawn_blocking(move || envelopes.iter().map(|bytes| verified(bytes)).collect());
        let records: Result<Vec<Record>, CatalogError> = verified.await.map_err(|_| CatalogError::Closed)?;
        Ok((records?, next))
    }

    /// What a peer needs to resolve this ref: the publisher's profile, the head in force and every newer head that does not count,
    /// and the records of their revisions.
    pub async fn records_for(&self, repo: &RepoId, name: &RefName) -> Result<Vec<Record>, CatalogError> {
        let (realm, repo, name) = (self.realm(), repo.clone(), name.clone());
        self.catalog().read(move |transaction| records_for(transaction, realm, &repo, &name)).await
    }

    /// One record, by kind and id.
    pub async fn record(&self, kind: RecordKind, id: RecordId) -> Result<Option<Record>, CatalogError> {
        let realm = self.realm();
        self.catalog().read(move |transaction| look::record(transaction, realm, kind, id)).await
    }
}

pub(crate) fn insert(
    transaction: &WriteTransaction,
    realm: RealmId,
    record: &Record,
    origin: Origin<'_>,
) -> Result<Inserted, InsertError> {
    if record.realm() != realm {
        return Err(InsertError::Realm { expected: realm, found: record.realm() });
    }
    let key = keys::record(realm, record.kind(), record.id());
    if look::value_of(transaction, tables::RECORDS, &key)?.is_some() {
        return Ok(Inserted::Known);
    }
    let body = record.body()?;
    publishers::check(transaction, realm, record.key(), &body)?;
    let publisher = body.publisher(record.key());
    let place = place_of(transaction, realm, publisher, origin)?;
    let store = || store(transaction, record, publisher, place);
    match &body {
        Body::Profile(profile) => publishers::insert(transaction, record, profile, store),
        Body::Revision(revision) => insert_revision(transaction, record, revision, store),
        Body::Head(head) => insert_head(transaction, record, head, store),
        Body::Advisory(advisory) => advisories::insert(transaction, record, advisory, store),
        Body::Attestation(attestation) => attestations::insert(transaction, record, attestation, store),
    }
}

/// Signing is free, so strangers could fill any catalogue; what they fill is not what publishers need that matter here.
fn place_of<'a>(
    transaction: &WriteTransaction,
    realm: RealmId,
    publisher: PublisherKey,
    origin: Origin<'a>,
) -> Result<Place<'a>, InsertError> {
    match origin {
        Origin::Here => Ok(Place::Lasting),
        Origin::Peer(may_push_out, _) if !ring::is_known(transaction, realm, publisher)? => {
            Ok(Place::Ring(may_push_out))
        }
        Origin::Peer(_, bytes_max) if ring::known_bytes(transaction)? < bytes_max => Ok(Place::Lasting),
        Origin::Peer(_, bytes_max) => Err(InsertError::Full(bytes_max)),
    }
}

/// Comes before any other row of the record, for it may push out records that such rows speak of, and may refuse.
fn store(
    transaction: &WriteTransaction,
    record: &Record,
    publisher: PublisherKey,
    place: Place<'_>,
) -> Result<(), InsertError> {
    let key = keys::record(record.realm(), record.kind(), record.id());
    let bytes = record.to_bytes();
    let size = bytes.len() as u64;
    match place {
        Place::Lasting => ring::count_known(transaction, size)?,
        Place::Ring(may_push_out) => {
            if !ring::enter(transaction, publisher, &key, size, may_push_out)? {
                return Err(InsertError::PageShare);
            }
        }
    }
    put(transaction, tables::RECORDS, &key, &bytes)?;
    Ok(())
}

fn put(
    transaction: &WriteTransaction,
    table: redb::TableDefinition<'static, &'static [u8], &'static [u8]>,
    key: &[u8],
    value: &[u8],
) -> Result<(), CatalogError> {
    transaction.open_table(table)?.insert(key, value)?;
    Ok(())
}

fn insert_revision(
    transaction: &WriteTransaction,
    record: &Record,
    revision: &Revision,
    store: impl FnOnce() -> Result<(), InsertError>,
) -> Result<Inserted, InsertError> {
    let (realm, repo) = (record.realm(), revision.repo(record.key()));
    let key = keys::revision(realm, &repo, revision.revision);
    let known = look::id_of(transaction, tables::REVISIONS, &key)?.map(RecordId::from);
    // Of several records that say the same, the one with the smallest id stands for them on every node.
    if known.is_some_and(|known| known < record.id()) {
        return Ok(Inserted::Known);
    }
    store()?;
    note_repo(transaction, realm, &repo)?;
    put(transaction, tables::REVISIONS, &key, record.id().as_bytes())?;
    if let Some(known) = known {
        tree::remove(transaction, realm, known)?;
        if let Some((superseded, body)) = revision_record(transaction, realm, known)? {
            lineage::forget(transaction, &superseded, &body)?;
        }
    }
    tree::insert(transaction, realm, RecordKind::Revision, record.id())?;
    lineage::note(transaction, record, revision)?;
    let by_hash = keys::two(realm, revision.revision.as_bytes(), repo.publisher.as_bytes());
    put(transaction, tables::REVISION_REPOS, &by_hash, &keys::repo(realm, &repo)[keys::ID..])?;
    journal::note(transaction, realm, &repo)?;
    Ok(Inserted::New)
}

fn revision_record(
    transaction: &WriteTransaction,
    realm: RealmId,
    id: RecordId,
) -> Result<Option<(Record, Revision)>, CatalogError> {
    let record = look::record(transaction, realm, RecordKind::Revision, id)?;
    Ok(record.and_then(|record| match record.body() {
        Ok(Body::Revision(body)) => Some((record, body)),
        _ => None,
    }))
}

fn note_repo(transaction: &WriteTransaction, realm: RealmId, repo: &RepoId) -> Result<(), CatalogError> {
    let key = keys::repo(realm, repo);
    if look::value_of(transaction, tables::REPOS, &key)?.is_none() {
        put(transaction, tables::REPOS, &key, repo.name.as_str().as_bytes())?;
    }
    Ok(())
}

fn insert_head(
    transaction: &WriteTransaction,
    record: &Record,
    head: &Head,
    store: impl FnOnce() -> Result<(), InsertError>,
) -> Result<Inserted, InsertError> {
    let (realm, repo) = (record.realm(), head.repo(record.key()));
    let name = &head.ref_name;
    let heads = look::heads(transaction, realm, &repo, name)?;
    let row = HeadRow {
        id: record.id(),
        epoch: head.epoch,
        number: head.number,
        revision: head.revision,
        previous: head.previous,
        tag: head.tag,
    };
    check_shape(&row, name)?;
    store()?;
    note_repo(transaction, realm, &repo)?;
    let key = keys::head(realm, &repo, name, row.epoch, row.number, row.id);
    put(transaction, tables::HEADS, &key, &look::head_value(&row))?;
    tree::insert(transaction, realm, RecordKind::Head, row.id)?;
    journal::note(transaction, realm, &repo)?;
    let disagrees = |other: &HeadRow| other.place() == row.place() || other.tag != row.tag;
    if heads.iter().any(disagrees) {
        tracing::warn!(%repo, %name, epoch = row.epoch, number = row.number, "the publisher's heads contradict each other");
    }
    // A rival of a tag changes where the tag stands, however low its number.
    let is_behind = heads.last().is_some_and(|newest| newest.place() > row.place() && newest.tag == row.tag);
    Ok(if is_behind { Inserted::Stale } else { Inserted::New })
}

/// What a head must be, whatever else is known of its ref.
fn check_shape(row: &HeadRow, name: &RefName) -> Result<(), InsertError> {
    if row.number == 0 {
        return Err(link_error(name, row, "numbers begin at 1"));
    }
    if row.tag && *name == RefName::main() {
        return Err(InsertError::TagOnMain);
    }
    if row.tag && (row.number != 1 || row.previous.is_some()) {
        return Err(InsertError::TagMoves(name.clone()));
    }
    match row.previous {
        None if row.number != 1 => Err(link_error(name, row, "only the first head follows none")),
        Some(_) if row.number == 1 && row.epoch == 0 => Err(link_error(name, row, "the first head follows none")),
        _ => Ok(()),
    }
}

fn link_error(name: &RefName, row: &HeadRow, reason: &'static str) -> InsertError {
    InsertError::Link { reference: name.clone(), number: row.number, reason }
}

/// Envelopes, and the key to go on from.
type Page = (Vec<Vec<u8>>, Vec<u8>);

fn page(transaction: &redb::ReadTransaction, realm: RealmId, after: &[u8], limit: usize) -> Result<Page, CatalogError> {
    let prefix = keys::realm(realm);
    let after = [prefix.as_slice(), after].concat();
    let (mut envelopes, mut bytes) = (Vec::new(), 0);
    let (mut last, mut more) = (Vec::new(), false);
    look::visit(transaction, tables::RECORDS, &prefix, Some(&after), |key, value| {
        bytes += value.len();
        if envelopes.len() == limit || (bytes > HEADS_PAGE_BYTES_MAX && !envelopes.is_empty()) {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        envelopes.push(value.to_vec());
        last = key[keys::ID..].to_vec();
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((envelopes, if more { last } else { Vec::new() }))
}

fn verified(bytes: &[u8]) -> Result<Record, CatalogError> {
    Record::verify(bytes).map_err(|error| CatalogError::Damaged(error.to_string()))
}

fn records_for(
    transaction: &redb::ReadTransaction,
    realm: RealmId,
    repo: &RepoId,
    name: &RefName,
) -> Result<Vec<Record>, CatalogError> {
    let (_, standing) = look::standing(transaction, realm, repo, name)?;
    let mut heads: Vec<HeadRow> = standing.head.into_iter().collect();
    for passed in standing.passed_over {
        match passed {
            PassedOver::Contested { heads: contested, .. } => heads.extend(contested),
            PassedOver::RevisionUnknown(head) | PassedOver::BeforeRotation(head) => heads.push(head),
        }
    }
    heads.sort_by_key(|head| head.id);
    heads.dedup_by_key(|head| head.id);
    let mut records = Vec::new();
    if let Some(profile) = look::profile(transaction, realm, repo.publisher)? {
        records.extend(look::record(transaction, realm, RecordKind::Profile, profile.id)?);
    }
    for head in &heads {
        let key = keys::revision(realm, repo, head.revision);
        if let Some(id) = look::id_of(transaction, tables::REVISIONS, &key)? {
            records.extend(look::record(transaction, realm, RecordKind::Revision, RecordId::from(id))?);
        }
    }
    for head in &heads {
        records.extend(look::record(transaction, realm, RecordKind::Head, head.id)?);
    }
    records.dedup_by_key(|record| record.id());
    Ok(records)
}
