//! From what people write (`acme/tiny@v1`) to a revision.
//!
//! A handle is only a claim, so it resolves in this order: the caller's own keys, the operator's trust list, a pin that a person's
//! explicit act made, a sole claimant (with its fingerprint in a warning); several claimants are refused with their keys.
//!
//! Invariant: what is hearsay never outranks what someone here decided; an ambiguous name or prefix is an error that lists the candidates,
//! never a guess.

use std::ops::ControlFlow;

use cairn_protocol::{
    id::{PublisherKey, RealmId, RecordId, RevisionId},
    name::{Handle, Publisher, RefName, RefSpec, RepoId, RepoPath, RepoRef},
    record::{Body, RecordKind},
};
use redb::ReadTransaction;

use crate::{
    Registry,
    catalog::{
        CatalogError, keys,
        tables::{self, Tables},
    },
    history::{HeadRow, PassedOver},
    look, ring,
};

/// Candidates that an error lists; more would not help anyone.
const CANDIDATES_MAX: usize = 16;

/// A name, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Whose repo.
    pub repo: RepoId,
    /// The repo as people write it here, with a handle where one is known.
    pub path: String,
    /// The ref that named it; `None` when a hash prefix did.
    pub ref_name: Option<RefName>,
    /// What it is.
    pub revision: RevisionId,
    /// The head's epoch; 0 when a hash prefix named it.
    pub epoch: u64,
    /// The head's number; 0 when a hash prefix named it.
    pub number: u64,
    /// The head that says so.
    pub head: Option<RecordId>,
    /// What a person should know: a handle taken on trust, a contested number.
    pub warning: Option<String>,
}

/// Why a name does not resolve here.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nobody that this node has heard of claims the handle.
    #[error("no publisher known here claims the handle {0}")]
    UnknownHandle(Handle),
    /// Several publishers claim it and nothing here decides between them.
    #[error("{} publishers claim the handle {handle}", claimants.len())]
    ClaimedBySeveral {
        /// The handle.
        handle: Handle,
        /// Their keys.
        claimants: Vec<PublisherKey>,
    },
    /// No such repo is known here.
    #[error("{0} is not known here")]
    UnknownRepo(RepoPath),
    /// The repo has no such ref.
    #[error("{path} has no ref {reference} that is known here")]
    UnknownRef {
        /// The repo.
        path: RepoPath,
        /// The ref.
        reference: RefName,
    },
    /// Its heads contradict each other and none before them counts.
    #[error("the publisher of {path} has signed {heads} heads for one number of {reference}")]
    Contested {
        /// The repo.
        path: RepoPath,
        /// The ref.
        reference: RefName,
        /// How many.
        heads: usize,
        /// What they name.
        revisions: Vec<RevisionId>,
    },
    /// Its head is here, the record of its revision is not.
    #[error("{path}@{reference} is revision {revision}, whose record has not arrived")]
    RevisionUnknown {
        /// The repo.
        path: RepoPath,
        /// The ref.
        reference: RefName,
        /// The revision.
        revision: RevisionId,
    },
    /// No revision of the repo begins so.
    #[error("no known revision of {path} begins with {prefix}")]
    UnknownPrefix {
        /// The repo.
        path: RepoPath,
        /// What was asked for.
        prefix: String,
    },
    /// Several do.
    #[error("several revisions of {path} begin with {prefix}")]
    AmbiguousPrefix {
        /// The repo.
        path: RepoPath,
        /// What was asked for.
        prefix: String,
        /// They (at most 16).
        candidates: Vec<RevisionId>,
    },
    /// The publisher's keys were rotated, and nothing signed since says what it is.
    #[error(
        "the publisher of {path} has rotated its keys and has not signed {reference} since; number {number} of before could be a thief's"
    )]
    BeforeRotation {
        /// The repo.
        path: RepoPath,
        /// The ref.
        reference: RefName,
        /// The newest number of before.
        number: u64,
        /// What it names.
        revision: RevisionId,
    },
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Registry {
    /// Resolves a name with what is known here; no peer is asked. `own` are the publisher keys that this node signs with.
    pub async fn resolve(&self, name: &RepoRef, own: &[PublisherKey]) -> Result<Resolved, ResolveError> {
        let (realm, name, own) = (self.realm(), name.clone(), own.to_vec());
        self.catalog().read(move |transaction| resolve(transaction, realm, &name, &own)).await
    }

    /// Decides whose repo a path means, whether or not the repo exists. The warning tells of a handle taken on trust.
    pub async fn resolve_publisher(
        &self,
        publisher: &Publisher,
        own: &[PublisherKey],
    ) -> Result<(PublisherKey, Option<String>), ResolveError> {
        let (realm, publisher, own) = (self.realm(), publisher.clone(), own.to_vec());
        self.catalog().read(move |transaction| whose(transaction, realm, &publisher, &own)).await
    }

    /// Who claims a handle, by key.
    pub async fn claimants(&self, handle: &Handle) -> Result<Vec<PublisherKey>, CatalogError> {
        let (realm, handle) = (self.realm(), handle.clone());
        self.catalog().read(move |transaction| claimants(transaction, realm, &handle)).await
    }

    /// Remembers that on this node the handle means this key. Only for an explicit act of a person (pull, run).
    pub async fn pin_handle(&self, handle: &Handle, publisher: PublisherKey) -> Result<(), CatalogError> {
        self.put_handle(tables::HANDLE_PINS, handle, Some(publisher)).await
    }

    /// Puts a handle on the operator's trust list, or takes it off.
    pub async fn trust_handle(&self, handle: &Handle, publisher: Option<PublisherKey>) -> Result<(), CatalogError> {
        self.put_handle(tables::TRUSTED, handle, publisher).await
    }

    async fn put_handle(
        &self,
        table: redb::TableDefinition<'static, &'static [u8], &'static [u8]>,
        handle: &Handle,
        publisher: Option<PublisherKey>,
    ) -> Result<(), CatalogError> {
        let (realm, key) = (self.realm(), keys::handle(self.realm(), handle));
        let write = self.catalog().write(move |transaction| {
            if let Some(publisher) = publisher {
                ring::note_known(transaction, realm, publisher)?;
            }
            let mut table = transaction.open_table(table)?;
            match publisher {
                Some(publisher) => table.insert(key.as_slice(), publisher.as_bytes().as_slice())?,
                None => table.remove(key.as_slice())?,
            };
            Ok(())
        });
        write.await
    }
}

fn resolve(
    transaction: &ReadTransaction,
    realm: RealmId,
    name: &RepoRef,
    own: &[PublisherKey],
) -> Result<Resolved, ResolveError> {
    let (publisher, warning) = whose(transaction, realm, &name.path.publisher, own)?;
    let repo = RepoId { publisher, kind: name.path.kind, name: name.path.name.clone() };
    let key = keys::repo(realm, &repo);
    let Some(written) = look::value_of(transaction, tables::REPOS, &key)? else {
        return Err(ResolveError::UnknownRepo(name.path.clone()));
    };
    let repo = keys::parse_repo(&key, &written)?;
    let mut resolved = match &name.spec {
        None => by_ref(transaction, realm, repo, &name.path, RefName::main())?,
        Some(RefSpec::Ref(reference)) => by_ref(transaction, realm, repo, &name.path, reference.clone())?,
        Some(RefSpec::Prefix(prefix)) => by_prefix(transaction, realm, repo, &name.path, prefix)?,
    };
    let warnings: Vec<String> = warning.into_iter().chain(resolved.warning.take()).collect();
    resolved.warning = (!warnings.is_empty()).then(|| warnings.join("; "));
    Ok(resolved)
}

pub(crate) fn whose(
    transaction: &impl Tables,
    realm: RealmId,
    publisher: &Publisher,
    own: &[PublisherKey],
) -> Result<(PublisherKey, Option<String>), ResolveError> {
    let handle = match publisher {
        Publisher::Key(key) => return Ok((*key, None)),
        Publisher::Handle(handle) => handle,
    };
    let claimants = claimants(transaction, realm, handle)?;
    if let Some(own) = own.iter().find(|key| claimants.contains(key)) {
        return Ok((*own, None));
    }
    let key = keys::handle(realm, handle);
    for decided in [tables::TRUSTED, tables::HANDLE_PINS] {
        if let Some(publisher) = look::id_of(transaction, decided, &key)? {
            return Ok((PublisherKey::from(publisher), None));
        }
    }
    match claimants[..] {
        [] => Err(ResolveError::UnknownHandle(handle.clone())),
        [sole] => {
            let warning = format!("{handle} is the key {sole}, the only one known here that claims the name");
            Ok((sole, Some(warning)))
        }
        _ => Err(ResolveError::ClaimedBySeveral { handle: handle.clone(), claimants }),
    }
}

pub(crate) fn claimants(
    transaction: &impl Tables,
    realm: RealmId,
    handle: &Handle,
) -> Result<Vec<PublisherKey>, CatalogError> {
    let mut claimants = Vec::new();
    look::visit(transaction, tables::CLAIMS, &keys::claims_of(realm, handle), None, |key, _| {
        claimants.push(PublisherKey::from(keys::last_id(key)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(claimants)
}

fn by_ref(
    transaction: &ReadTransaction,
    realm: RealmId,
    repo: RepoId,
    path: &RepoPath,
    reference: RefName,
) -> Result<Resolved, ResolveError> {
    let (_, standing) = look::standing(transaction, realm, &repo, &reference)?;
    let Some(head) = standing.head else {
        return Err(nowhere(path, reference, &standing.passed_over));
    };
    check_signed(transaction, realm, &repo, &reference, &head)?;
    Ok(Resolved {
        path: display_path(transaction, realm, &repo)?,
        repo,
        warning: standing.passed_over.first().map(|passed| warning_of(&reference, passed, head.number)),
        ref_name: Some(reference),
        revision: head.revision,
        epoch: head.epoch,
        number: head.number,
        head: Some(head.id),
    })
}

/// A row of the catalogue is only a copy of what was signed: a disk that altered it must not make a name mean something else.
fn check_signed(
    transaction: &ReadTransaction,
    realm: RealmId,
    repo: &RepoId,
    reference: &RefName,
    head: &HeadRow,
) -> Result<(), CatalogError> {
    let record = look::record(transaction, realm, RecordKind::Head, head.id)?;
    let signed = record.and_then(|record| record.body().ok().map(|body| (record.key(), body)));
    let is_same = match &signed {
        Some((key, Body::Head(body))) => {
            body.repo(*key) == *repo
                && body.ref_name == *reference
                && (body.revision, body.epoch, body.number) == (head.revision, head.epoch, head.number)
        }
        _ => false,
    };
    if is_same { Ok(()) } else { Err(keys::damaged("a head, which is not what was signed")) }
}

fn nowhere(path: &RepoPath, reference: RefName, passed_over: &[PassedOver]) -> ResolveError {
    let path = path.clone();
    match passed_over.first() {
        None => ResolveError::UnknownRef { path, reference },
        Some(PassedOver::Contested { heads, .. }) => ResolveError::Contested {
            path,
            reference,
            heads: heads.len(),
            revisions: heads.iter().take(CANDIDATES_MAX).map(|head| head.revision).collect(),
        },
        Some(PassedOver::BeforeRotation(head)) => {
            ResolveError::BeforeRotation { path, reference, number: head.number, revision: head.revision }
        }
        Some(PassedOver::RevisionUnknown(head)) => {
            ResolveError::RevisionUnknown { path, reference, revision: head.revision }
        }
    }
}

fn warning_of(reference: &RefName, passed: &PassedOver, in_force: u64) -> String {
    match passed {
        PassedOver::Contested { place: (_, number), heads } if heads.len() == 1 => format!(
            "the publisher's head {number} of {reference} does not continue the one that it follows; number {in_force} is used until a later head decides"
        ),
        PassedOver::Contested { place: (_, number), heads } => format!(
            "the publisher has signed {} different heads with number {number} of {reference}; number {in_force} is used until a later head decides",
            heads.len()
        ),
        PassedOver::BeforeRotation(_) => format!(
            "the publisher has rotated its keys and has not signed {reference} since; number {in_force}, which is used here, is from before"
        ),
        PassedOver::RevisionUnknown(head) => format!(
            "head {} of {reference} is known, but the record of its revision has not arrived; number {in_force} is used",
            head.number
        ),
    }
}

fn by_prefix(
    transaction: &ReadTransaction,
    realm: RealmId,
    repo: RepoId,
    path: &RepoPath,
    prefix: &str,
) -> Result<Resolved, ResolveError> {
    let candidates = revisions_with_prefix(transaction, realm, &repo, prefix)?;
    match candidates[..] {
        [] => Err(ResolveError::UnknownPrefix { path: path.clone(), prefix: prefix.to_owned() }),
        [revision] => Ok(Resolved {
            path: display_path(transaction, realm, &repo)?,
            repo,
            ref_name: None,
            revision,
            epoch: 0,
            number: 0,
            head: None,
            warning: None,
        }),
        _ => Err(ResolveError::AmbiguousPrefix { path: path.clone(), prefix: prefix.to_owned(), candidates }),
    }
}

fn revisions_with_prefix(
    transaction: &ReadTransaction,
    realm: RealmId,
    repo: &RepoId,
    prefix: &str,
) -> Result<Vec<RevisionId>, CatalogError> {
    let mut key = keys::repo(realm, repo);
    // Whole bytes narrow the scan; an odd last digit is compared below.
    key.extend(hex::decode(&prefix[..prefix.len() / 2 * 2]).unwrap_or_default());
    let mut found = Vec::new();
    look::visit(transaction, tables::REVISIONS, &key, None, |key, _| {
        let revision = RevisionId::from(keys::last_id(key)?);
        if revision.to_string().starts_with(prefix) {
            found.push(revision);
        }
        Ok(if found.len() == CANDIDATES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found)
}

/// The repo with its publisher's handle if the handle means this publisher here, else with the key: what is shown resolves to what
/// it is shown for, and a second claimant of a handle is not shown under it.
pub(crate) fn display_path(
    transaction: &ReadTransaction,
    realm: RealmId,
    repo: &RepoId,
) -> Result<String, CatalogError> {
    let publisher = display_publisher(transaction, realm, repo.publisher)?;
    Ok(RepoPath { kind: repo.kind, publisher, name: repo.name.clone() }.to_string())
}

/// A publisher as people write it: by its handle where that means it here, else by its key.
pub(crate) fn display_publisher(
    transaction: &ReadTransaction,
    realm: RealmId,
    key: PublisherKey,
) -> Result<Publisher, CatalogError> {
    let Some(profile) = look::profile(transaction, realm, key)? else { return Ok(Publisher::Key(key)) };
    let handle = Publisher::Handle(profile.handle);
    match whose(transaction, realm, &handle, &[]) {
        Ok((meant, _)) if meant == key => Ok(handle),
        Err(ResolveError::Catalog(error)) => Err(error),
        _ => Ok(Publisher::Key(key)),
    }
}
