//! The task that keeps the index up with the catalogue.
//!
//! It goes through the whole catalogue once, for a new index, and from then on through the journal. What it reads comes from one moment
//! of the catalogue; then the index commits; then the journal's rows go. Killed between any two of these it does the last piece again.
//!
//! Invariant: it holds at most a batch of repos in memory, never the catalogue's own threads for longer than a write of some rows, and its
//! failures keep nothing but searches from going on.

use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cairn_protocol::{
    id::{PublisherKey, RealmId, RecordId},
    name::{RefName, RepoId},
    record::Revision,
    record_pb,
};
use prost::Message;
use redb::ReadTransaction;
use tokio::sync::watch;

use super::{
    Shared,
    index::{Change, IndexFailure, Opened, Progress, WHAT, Writer},
    journal::{self, Row},
    schema::{Facts, key_of},
};
use crate::{
    catalog::{Catalog, CatalogError, keys, tables},
    damage::guarded,
    listing, look,
};

/// Repos of one batch: with 16 KiB each they are 32 MiB at most.
const BATCH: usize = 2048;

/// Batches between two commits while the whole catalogue is gone through.
const BATCHES_A_COMMIT: usize = 32;

/// Batches of the journal between two commits: what comes in a flood is searchable some seconds later.
const BATCHES_A_PIECE: usize = 8;

/// From a failure to the next try.
const RETRY: Duration = Duration::from_secs(5);

/// Changes that come in one after the other are indexed together.
const GATHER: Duration = Duration::from_millis(20);

/// From the last change until the writer and its memory are let go.
const IDLE: Duration = Duration::from_secs(30);

pub(super) struct Keeper {
    pub(super) catalog: Catalog,
    pub(super) realm: RealmId,
    pub(super) shared: Arc<Shared>,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) closing: watch::Receiver<bool>,
}

/// Why a round ended.
enum Stop {
    Closing,
    Failed(String),
    /// The index has to be looked at whole.
    Damaged(String),
}

impl From<CatalogError> for Stop {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Closed => Self::Closing,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<IndexFailure> for Stop {
    fn from(error: IndexFailure) -> Self {
        match error {
            IndexFailure::Damaged(why) => Self::Damaged(why),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl Keeper {
    /// Runs until the registry closes. A task of its own.
    pub(super) async fn run(mut self) {
        self.keep().await;
        if let Ok(opened) = self.shared.opened() {
            opened.release();
        }
    }

    async fn keep(&mut self) {
        loop {
            match self.keep_up().await {
                Err(Stop::Closing) => return,
                Err(Stop::Failed(why)) => tracing::warn!(%why, "the search index does not keep up"),
                Err(Stop::Damaged(why)) => {
                    tracing::warn!(%why, "the search index is looked at whole");
                    self.shared.doubts.send_replace(true);
                }
                Ok(()) => continue,
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = self.closing.wait_for(|closing| *closing) => return,
            }
        }
    }

    /// Works until nothing has been left to do for a while.
    async fn keep_up(&mut self) -> Result<(), Stop> {
        self.check().await?;
        let opened = self.opened()?;
        self.changes.mark_unchanged();
        let mut progress = blocking(move || opened.progress()).await?;
        let mut writer: Option<Writer> = None;
        loop {
            self.shared.is_whole.store(progress.going_through.is_none(), Ordering::Relaxed);
            let (before, has_more) = (progress.clone(), self.has_more(&progress).await?);
            if has_more {
                let taken = match writer.take() {
                    Some(writer) => writer,
                    None => self.writer().await?,
                };
                let (given_back, come) = self.piece(taken, before).await?;
                (writer, progress) = (Some(given_back), come);
                continue;
            }
            self.shared.settled.send_modify(|count| *count += 1);
            if *self.shared.doubts.borrow() {
                return Ok(());
            }
            let is_idle = !self.wait(writer.is_some()).await?;
            if let Some(writer) = writer.take_if(|_| is_idle) {
                blocking(move || writer.finish()).await?;
            }
        }
    }

    async fn writer(&self) -> Result<Writer, Stop> {
        let opened = self.opened()?;
        blocking(move || opened.writer()).await
    }

    fn opened(&self) -> Result<Arc<Opened>, Stop> {
        self.shared.opened().map_err(Stop::Failed)
    }

    /// Reads a doubtful index whole, and makes a damaged one anew.
    async fn check(&self) -> Result<(), Stop> {
        if !*self.shared.doubts.borrow() {
            return Ok(());
        }
        let opened = self.opened()?;
        let (checked, folder) = (opened.clone(), opened.folder().to_owned());
        let is_sound = blocking(move || Ok(checked.damaged_files().is_ok_and(|files| files == 0))).await?;
        if !is_sound {
            tracing::warn!("the search index is damaged; it is made anew");
            drop(opened);
            self.shared.replace(blocking(move || Opened::make(&folder)).await?);
        }
        self.shared.doubts.send_replace(false);
        Ok(())
    }

    async fn has_more(&self, progress: &Progress) -> Result<bool, Stop> {
        if *self.closing.borrow() {
            return Err(Stop::Closing);
        }
        let (realm, is_new) = (self.realm, progress.going_through.is_some());
        let rows = self.catalog.survey(move |transaction| journal::rows(transaction, realm, None, 1)).await?;
        Ok(is_new || !rows.is_empty())
    }

    /// Waits for a change; `false` when none came while there is a writer to let go.
    async fn wait(&mut self, has_writer: bool) -> Result<bool, Stop> {
        let idle = async {
            match has_writer {
                true => tokio::time::sleep(IDLE).await,
                false => std::future::pending().await,
            }
        };
        let mut doubts = self.shared.doubts.subscribe();
        tokio::select! {
            _ = doubts.wait_for(|doubts| *doubts) => return Ok(true),
            changed = self.changes.changed() => changed.map_err(|_| Stop::Closing)?,
            _ = self.closing.wait_for(|closing| *closing) => return Err(Stop::Closing),
            () = idle => return Ok(false),
        }
        tokio::time::sleep(GATHER).await;
        self.changes.mark_unchanged();
        Ok(true)
    }

    async fn piece(&self, writer: Writer, progress: Progress) -> Result<(Writer, Progress), Stop> {
        match progress.going_through.clone() {
            Some(after) => self.go_through(writer, progress, after).await,
            None => self.follow(writer, progress).await,
        }
    }

    /// Some batches of the whole catalogue, in the order of its keys.
    async fn go_through(
        &self,
        mut writer: Writer,
        mut progress: Progress,
        mut after: Vec<u8>,
    ) -> Result<(Writer, Progress), Stop> {
        let realm = self.realm;
        // Rows from here on are worked on when this is done.
        if after.is_empty() {
            let numbers = self.catalog.survey(move |transaction| journal::numbers(transaction, realm)).await?;
            progress.number = numbers.0 - 1;
        }
        let mut is_last = false;
        for _ in 0..BATCHES_A_COMMIT {
            let from = after.clone();
            let (batch, last) = self.catalog.survey(move |transaction| some_repos(transaction, realm, &from)).await?;
            is_last = batch.len() < BATCH;
            after = last.unwrap_or(after);
            writer = blocking(move || {
                batch.iter().try_for_each(|facts| writer.add(facts))?;
                Ok(writer)
            })
            .await?;
            if is_last || *self.closing.borrow() {
                break;
            }
        }
        progress.going_through = (!is_last).then_some(after);
        self.commit(writer, progress).await
    }

    /// Some batches of the journal.
    async fn follow(&self, mut writer: Writer, mut progress: Progress) -> Result<(Writer, Progress), Stop> {
        let realm = self.realm;
        let (mut rows, mut goes_on): (Vec<Row>, _) = (Vec::new(), None);
        for _ in 0..BATCHES_A_PIECE {
            let after = rows.last().map(|row| row.key.clone());
            let batch =
                self.catalog.survey(move |transaction| some_changes(transaction, realm, after.as_deref())).await?;
            let is_last = batch.rows.is_empty() || batch.goes_on.is_some() || batch.changes.len() < BATCH;
            rows.extend(batch.rows);
            goes_on = batch.goes_on;
            let changes = batch.changes;
            writer = blocking(move || {
                changes.iter().try_for_each(|change| writer.change(change))?;
                Ok(writer)
            })
            .await?;
            if is_last || *self.closing.borrow() {
                break;
            }
        }
        progress.number = rows.iter().map(|row| row.number).fold(progress.number, u64::max);
        let done = self.commit(writer, progress).await?;
        let settled = self.catalog.write::<_, CatalogError, _>(move |transaction| {
            let goes_on = goes_on.as_ref().map(|(row, after)| (row, after.as_slice()));
            journal::settle(transaction, realm, &rows, goes_on)
        });
        settled.await?;
        Ok(done)
    }

    async fn commit(&self, mut writer: Writer, progress: Progress) -> Result<(Writer, Progress), Stop> {
        let opened = self.opened()?;
        let committed = blocking(move || {
            writer.commit(&progress)?;
            opened.refresh()?;
            Ok((writer, progress))
        });
        committed.await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IndexFailure> + Send + 'static,
) -> Result<T, Stop> {
    match tokio::task::spawn_blocking(|| guarded(WHAT, work)).await {
        Ok(Ok(result)) => Ok(result?),
        Ok(Err(why)) => Err(Stop::Damaged(why)),
        Err(error) => Err(Stop::Failed(error.to_string())),
    }
}

/// A piece of the journal, read at one moment of the catalogue.
struct Batch {
    changes: Vec<Change>,
    rows: Vec<Row>,
    goes_on: Option<(Row, Vec<u8>)>,
}

fn some_changes(transaction: &ReadTransaction, realm: RealmId, after: Option<&[u8]>) -> Result<Batch, CatalogError> {
    let mut batch = Batch { changes: Vec::new(), rows: Vec::new(), goes_on: None };
    for row in journal::rows(transaction, realm, after, BATCH)? {
        if batch.changes.len() >= BATCH {
            break;
        }
        if row.key.len() != 2 * keys::ID {
            batch.changes.push(change_of(transaction, realm, &row.key)?);
            batch.rows.push(row);
            continue;
        }
        let after = Some(row.after.as_slice()).filter(|after| !after.is_empty());
        let (repos, last) = facts_after(transaction, realm, &row.key, after)?;
        let is_all = repos.len() < BATCH;
        batch.changes.extend(repos.into_iter().map(|facts| Change::Put(Box::new(facts))));
        match last.filter(|_| !is_all) {
            None => batch.rows.push(row),
            Some(last) => {
                batch.goes_on = Some((row, last));
                break;
            }
        }
    }
    Ok(batch)
}

fn change_of(transaction: &ReadTransaction, realm: RealmId, key: &[u8]) -> Result<Change, CatalogError> {
    match look::value_of(transaction, tables::REPOS, key)? {
        Some(name) => Ok(Change::Put(Box::new(facts(transaction, realm, keys::parse_repo(key, &name)?)?))),
        None => {
            let folded = key.strip_suffix(&[0]).and_then(|key| key.get(2 * keys::ID + 1..));
            let repo = keys::parse_repo(key, folded.ok_or_else(|| keys::damaged("a row of the journal"))?)?;
            Ok(Change::Remove(key_of(&repo)))
        }
    }
}

fn some_repos(
    transaction: &ReadTransaction,
    realm: RealmId,
    after: &[u8],
) -> Result<(Vec<Facts>, Option<Vec<u8>>), CatalogError> {
    facts_after(transaction, realm, &keys::realm(realm), Some(after).filter(|after| !after.is_empty()))
}

/// A batch of the repos whose keys begin so, and the last one's key.
fn facts_after(
    transaction: &ReadTransaction,
    realm: RealmId,
    prefix: &[u8],
    after: Option<&[u8]>,
) -> Result<(Vec<Facts>, Option<Vec<u8>>), CatalogError> {
    let (mut repos, mut last) = (Vec::new(), None);
    look::visit(transaction, tables::REPOS, prefix, after, |key, name| {
        repos.push(keys::parse_repo(key, name)?);
        last = Some(key.to_vec());
        Ok(if repos.len() < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let facts = repos.into_iter().map(|repo| facts(transaction, realm, repo)).collect::<Result<_, _>>()?;
    Ok((facts, last))
}

/// What the index is to say of a repo: what its `main`, else its first ref that stands somewhere, says.
fn facts(transaction: &ReadTransaction, realm: RealmId, repo: RepoId) -> Result<Facts, CatalogError> {
    let mut refs = listing::refs(transaction, realm, &repo)?;
    refs.sort_by_key(|state| state.name != RefName::main());
    let head = refs.into_iter().find_map(|state| state.head);
    let revision = match head {
        Some(head) => revision_of(transaction, realm, &keys::revision(realm, &repo, head.revision))?,
        None => None,
    };
    let handle = handle_of(transaction, realm, repo.publisher)?;
    Ok(Facts { repo, handle, revision })
}

fn handle_of(
    transaction: &ReadTransaction,
    realm: RealmId,
    publisher: PublisherKey,
) -> Result<Option<String>, CatalogError> {
    Ok(look::profile(transaction, realm, publisher)?.map(|profile| profile.handle.to_string()))
}

/// What a revision's record says. Its signature was checked before it was stored; for an index that is enough.
fn revision_of(transaction: &ReadTransaction, realm: RealmId, key: &[u8]) -> Result<Option<Revision>, CatalogError> {
    let Some(id) = look::id_of(transaction, tables::REVISIONS, key)? else { return Ok(None) };
    let key = keys::record(realm, cairn_protocol::RecordKind::Revision, RecordId::from(id));
    let Some(bytes) = look::value_of(transaction, tables::RECORDS, &key)? else { return Ok(None) };
    let envelope = record_pb::Envelope::decode(bytes.as_slice()).map_err(|_| keys::damaged("a revision's record"))?;
    Revision::parse(&envelope.payload).map(Some).map_err(|error| CatalogError::Damaged(error.to_string()))
}

/// Opens the index as the catalogue's journal permits.
pub(super) async fn open(home: std::path::PathBuf, catalog: &Catalog, realm: RealmId) -> Result<Opened, String> {
    let numbers = catalog.survey(move |transaction| journal::numbers(transaction, realm)).await;
    let numbers = numbers.map_err(|error: CatalogError| error.to_string())?;
    let opened = tokio::task::spawn_blocking(move || Opened::open(&home, realm, numbers)).await;
    opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
