//! The index on disk: `HOME/search/VERSION-REALM`, opened, made anew, written and walked.
//!
//! It is derived from the catalogue and may be deleted at any time. Everything here blocks.
//!
//! Invariant: a commit carries how far the index has come ([`Progress`]) and is whole or absent after a crash; an index that is of
//! another version, does not open or is older than what the journal has already let go is made anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cairn_protocol::id::RealmId;
use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, TantivyError, Term, directory::error::LockError,
    query::Query,
};

use super::{
    collect::{Walked, Wanted},
    schema::{Columns, Facts, VERSION, key_of},
};
use crate::damage::guarded;

/// Memory of the writer: what it gathers before it writes a part of the index.
const WRITER_BYTES: usize = 96 << 20;

/// Threads that walk the parts of the index for one search.
const WALKERS_MAX: usize = 4;

/// What a panic of its library is about.
pub(super) const WHAT: &str = "the search index";

/// A file that is there while the index is open.
const IN_USE: &str = "in-use";

/// A writer of before may still be ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What the index can do wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexFailure {
    #[error("the search index failed: {0}")]
    Index(#[from] TantivyError),
    #[error("the search index's folder failed: {0}")]
    Io(#[from] io::Error),
    /// Its library panicked on what a disk altered.
    #[error("{0}")]
    Damaged(String),
}

/// How far an index has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Progress {
    /// While the whole catalogue is gone through: the key of REPOS to go on after. `None`: it has been.
    pub(super) going_through: Option<Vec<u8>>,
    /// Journal rows up to this number have been worked on.
    pub(super) number: u64,
}

impl Progress {
    fn fresh() -> Self {
        Self { going_through: Some(Vec::new()), number: 0 }
    }

    fn to_text(&self) -> String {
        let place = self.going_through.as_ref().map_or_else(|| "whole".to_owned(), hex::encode);
        format!("{}:{place}", self.number)
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, place) = text.split_once(':')?;
        let going_through = if place == "whole" { None } else { Some(hex::decode(place).ok()?) };
        Some(Self { going_through, number: number.parse().ok()? })
    }
}

/// One change of the index.
pub(super) enum Change {
    /// A repo as it is now.
    Put(Box<Facts>),
    /// A repo that is no more, by its index key.
    Remove(Vec<u8>),
}

/// An index that is open for searching.
pub(super) struct Opened {
    folder: PathBuf,
    index: Index,
    reader: IndexReader,
    pub(super) columns: Columns,
    was_in_use: bool,
}

impl Opened {
    /// Opens the index of a realm, or makes an empty one. `numbers` are the journal's: the next one, and up to which its rows are gone.
    pub(super) fn open(home: &Path, realm: RealmId, numbers: (u64, u64)) -> Result<Self, IndexFailure> {
        let root = home.join("search");
        fs::create_dir_all(&root)?;
        remove_other_versions(&root)?;
        let folder = root.join(format!("{VERSION}-{}", realm.short()));
        let opened = guarded(WHAT, || Self::open_there(&folder)).unwrap_or_else(|why| Err(IndexFailure::Damaged(why)));
        match opened {
            Ok(opened) if opened.fits(numbers)? => return Ok(opened),
            Ok(_) => tracing::warn!("the search index is not of this catalogue; it is made anew"),
            Err(error) if folder.exists() => tracing::warn!(%error, "the search index does not open; it is made anew"),
            Err(_) => {}
        }
        Self::make(&folder)
    }

    fn open_there(folder: &Path) -> Result<Self, IndexFailure> {
        let opened = Self::with(folder, Index::open_in_dir(folder)?)?;
        if opened.index.schema() != opened.columns.schema {
            return Err(TantivyError::SchemaError("it has other fields".to_owned()).into());
        }
        Ok(opened)
    }

    /// An empty one, whatever was there.
    pub(super) fn make(folder: &Path) -> Result<Self, IndexFailure> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
        let columns = Columns::new();
        Self::with(folder, Index::create_in_dir(folder, columns.schema)?)
    }

    fn with(folder: &Path, mut index: Index) -> Result<Self, IndexFailure> {
        let walkers = std::thread::available_parallelism().map_or(1, usize::from).min(WALKERS_MAX);
        if walkers > 1 {
            index.set_multithread_executor(walkers)?;
        }
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let mark = folder.join(IN_USE);
        let was_in_use = mark.exists();
        fs::write(mark, [])?;
        Ok(Self { folder: folder.to_owned(), index, reader, columns: Columns::new(), was_in_use })
    }

    /// Whether the rows that the journal has let go are in the index, and the index knows none that are still to come.
    fn fits(&self, (next, done): (u64, u64)) -> Result<bool, IndexFailure> {
        let progress = self.progress()?;
        Ok(progress == Progress::fresh() || (progress.number >= done && progress.number < next))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether whoever had it open last did not close it.
    pub(super) fn was_in_use(&self) -> bool {
        self.was_in_use
    }

    /// Says that it was closed in order, so that the next one who opens it need not check it.
    pub(super) fn release(&self) {
        if let Err(error) = fs::remove_file(self.folder.join(IN_USE)) {
            tracing::debug!(%error, "the search index's mark can't be removed");
        }
    }

    pub(super) fn progress(&self) -> Result<Progress, IndexFailure> {
        let payload = self.index.load_metas()?.payload;
        Ok(payload.as_deref().and_then(Progress::parse).unwrap_or_else(Progress::fresh))
    }

    /// Repos in the index.
    pub(super) fn repos(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    pub(super) fn walk(&self, query: &dyn Query, wanted: &Wanted) -> Result<Walked, IndexFailure> {
        Ok(self.reader.searcher().search(query, wanted)?)
    }

    /// Files whose bytes are not those that were written.
    pub(super) fn damaged_files(&self) -> Result<usize, IndexFailure> {
        Ok(self.index.validate_checksum()?.len())
    }

    /// The one writer, waiting for one of before to end.
    pub(super) fn writer(&self) -> Result<Writer, IndexFailure> {
        let started = Instant::now();
        loop {
            match self.index.writer_with_num_threads(1, WRITER_BYTES) {
                Ok(inner) => return Ok(Writer { inner, columns: self.columns.clone() }),
                Err(TantivyError::LockFailure(LockError::LockBusy, _)) if started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Searches see what was committed until now.
    pub(super) fn refresh(&self) -> Result<(), IndexFailure> {
        Ok(self.reader.reload()?)
    }
}

/// Versions that no program of this one's reads.
fn remove_other_versions(root: &Path) -> io::Result<()> {
    let ours = format!("{VERSION}-");
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(&ours) {
            fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()))?;
        }
    }
    Ok(())
}

/// Writes into the index.
pub(super) struct Writer {
    inner: IndexWriter<TantivyDocument>,
    columns: Columns,
}

impl Writer {
    /// Puts repos that the index does not have.
    pub(super) fn add(&mut self, facts: &Facts) -> Result<(), IndexFailure> {
        self.inner.add_document(self.columns.document(facts))?;
        Ok(())
    }

    /// Makes a change, whatever the index has of the repo.
    pub(super) fn change(&mut self, change: &Change) -> Result<(), IndexFailure> {
        let key = match change {
            Change::Put(facts) => key_of(&facts.repo),
            Change::Remove(key) => key.clone(),
        };
        self.inner.delete_term(Term::from_field_bytes(self.columns.key, &key));
        match change {
            Change::Put(facts) => self.add(facts),
            Change::Remove(_) => Ok(()),
        }
    }

    /// Makes all that was done durable.
    pub(super) fn commit(&mut self, progress: &Progress) -> Result<(), IndexFailure> {
        let mut commit = self.inner.prepare_commit()?;
        commit.set_payload(&progress.to_text());
        commit.commit()?;
        Ok(())
    }

    /// Ends the writer when its merges have ended.
    pub(super) fn finish(self) -> Result<(), IndexFailure> {
        Ok(self.inner.wait_merging_threads()?)
    }
}
