//! Bytes by their BLAKE3 hash: what is held, reading it verified, making it durable, and throwing away what has gone bad.
//!
//! It wraps the file store of `iroh-blobs`, which also serves and fetches through the handle that [`Blobs::store`] lends. It knows
//! nothing of revisions or records.
//!
//! Invariant: bytes that [`Blobs::read`] returns hash to what was asked for; a blob that is pinned stays.

mod coming;
pub(crate) mod guard;
pub(crate) mod intake;
mod room;
pub(crate) mod stage_cache;

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use cairn_protocol::id::{BlobHash, RealmId};
use futures::StreamExt;
use iroh_blobs::{
    api::blobs::{BlobStatus, EncodedItem},
    protocol::{ChunkRanges, ChunkRangesExt},
    store::fs::{FsStore, options::Options},
};

use self::{
    coming::Coming,
    guard::{COLLECT_EVERY, COLLECT_OVERDUE, Guard, raw},
    intake::Intake,
};
pub use self::{
    coming::ComingNote,
    guard::{Stalled, TempPin},
    room::DISK_RESERVE,
};
use crate::{
    catalog::{Catalog, CatalogError, keys, tables},
    import::INLINE_MAX,
    ranges::{joined, without},
};

/// After a sweep, the store forgets the state of a blob it had open within this time.
const FORGET_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a chunk, BLAKE3's unit; the store counts what it holds in chunks.
const CHUNK: u64 = 1024;

/// Why a blob could not be read, kept or thrown away.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Not all of what was asked for is here.
    #[error("blob {hash} is not held in bytes {}..{}", range.start, range.end)]
    NotHeld {
        /// The blob.
        hash: BlobHash,
        /// What was asked for.
        range: Range<u64>,
    },
    /// The bytes on disk are not those that the hash names.
    #[error("blob {hash} is damaged on disk: {detail}")]
    Corrupt {
        /// The blob.
        hash: BlobHash,
        /// What the store found.
        detail: String,
    },
    /// The blob store failed, or has no room ([`BlobError::is_disk_full`]).
    #[error("the blob store failed: {0}")]
    Io(#[from] io::Error),
    /// Garbage collection, which is the only way to remove a blob, does not run.
    #[error(transparent)]
    Stalled(#[from] Stalled),
    /// Someone else still uses the blob.
    #[error("blob {hash} is in use and cannot be removed now")]
    InUse {
        /// The blob.
        hash: BlobHash,
    },
    /// The catalogue, which keeps the stage cache, failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl BlobError {
    /// Whether the disk is full, which people can mend.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::StorageFull,
            Self::Catalog(error) => error.is_disk_full(),
            _ => false,
        }
    }
}

/// A handle to the blob store. Clones share it.
#[derive(Clone)]
pub struct Blobs {
    store: FsStore,
    root: Arc<Path>,
    guard: Arc<Guard>,
    intake: Arc<Intake>,
    coming: Arc<Coming>,
    catalog: Catalog,
    realm: RealmId,
}

impl Blobs {
    pub(crate) async fn open(root: &Path, catalog: Catalog, realm: RealmId) -> io::Result<Self> {
        let guard = Guard::new();
        make_folders(root)?;
        let mut options = Options::new(root);
        options.gc = Some(guard.collector(&catalog));
        let store = FsStore::load_with_opts(root.join("blobs.db"), options).await.map_err(io::Error::other)?;
        Ok(Self { store, root: root.into(), guard, intake: Arc::default(), coming: Arc::default(), catalog, realm })
    }

    /// The library's store, for serving blobs and for fetching them.
    pub fn store(&self) -> &FsStore {
        &self.store
    }

    /// Notes what is under way of a blob while the note lives.
    pub fn note_coming(&self, hash: BlobHash) -> ComingNote {
        self.coming.begin(hash)
    }

    /// Bytes of a blob that fetches are bringing now, as they noted.
    pub fn coming(&self, hash: BlobHash) -> Vec<Range<u64>> {
        self.coming.of(hash)
    }

    /// Those of `hashes` that a pin of this run's realm keeps: a kept revision, the stage cache, or a temporary pin of this run. Only
    /// they are this realm's to serve; bytes that another realm keeps in the same home are not. Costs one look into the catalogue.
    pub async fn pinned(&self, hashes: Vec<BlobHash>) -> Result<BTreeSet<BlobHash>, CatalogError> {
        let (held, others): (Vec<_>, Vec<_>) = hashes.into_iter().partition(|hash| self.guard.is_pinned(*hash));
        let mut pinned = BTreeSet::from_iter(held);
        if others.is_empty() {
            return Ok(pinned);
        }
        let realm = self.realm;
        let read = self.catalog.read::<_, CatalogError, _>(move |transaction| {
            let stage = transaction.open_table(tables::STAGE_BLOBS)?;
            let keepers = transaction.open_table(tables::BLOB_KEEPERS)?;
            let mut found = Vec::new();
            for hash in others {
                let key = keys::one(realm, hash.as_bytes());
                let next = keepers.range(key.as_slice()..)?.next().transpose()?;
                let is_kept = next.is_some_and(|(next, _)| next.value().starts_with(&key));
                if is_kept || stage.get(key.as_slice())?.is_some() {
                    found.push(hash);
                }
            }
            Ok(found)
        });
        pinned.extend(read.await?);
        Ok(pinned)
    }

    /// Whether the whole blob is here (by the store's book-keeping; `verify` reads the bytes).
    pub async fn has(&self, hash: BlobHash) -> Result<bool, BlobError> {
        self.store.has(raw(hash)).await.map_err(other)
    }

    /// Size of a blob that is here whole.
    pub async fn size(&self, hash: BlobHash) -> Result<Option<u64>, BlobError> {
        match self.store.status(raw(hash)).await.map_err(other)? {
            BlobStatus::Complete { size } => Ok(Some(size)),
            BlobStatus::Partial { .. } | BlobStatus::NotFound => Ok(None),
        }
    }

    /// The byte ranges that are here, in order, not touching; they begin and end on chunks (1 KiB) or at the blob's end.
    pub async fn local_ranges(&self, hash: BlobHash) -> Result<Vec<Range<u64>>, BlobError> {
        match self.store.status(raw(hash)).await.map_err(other)? {
            BlobStatus::NotFound => Ok(Vec::new()),
            BlobStatus::Complete { size: 0 } => Ok(Vec::new()),
            BlobStatus::Complete { size } => Ok(std::iter::once(0..size).collect()),
            BlobStatus::Partial { .. } => {
                let held = self.store.observe(raw(hash)).await.map_err(other)?;
                Ok(byte_ranges(&held.ranges, held.size()))
            }
        }
    }

    /// Bytes of this blob that are here.
    pub async fn bytes_held(&self, hash: BlobHash) -> Result<u64, BlobError> {
        let ranges = self.local_ranges(hash).await?;
        Ok(ranges.iter().map(|range| range.end - range.start).sum())
    }

    /// What of `wanted` is not here. `size` is the blob's size as its manifest tells it; ranges past it are cut.
    pub async fn missing(
        &self,
        hash: BlobHash,
        size: u64,
        wanted: &[Range<u64>],
    ) -> Result<Vec<Range<u64>>, BlobError> {
        let held = self.local_ranges(hash).await?;
        Ok(without(&joined(wanted, size), &held))
    }

    /// Reads a range, verified against the hash. Memory: the range's length and 16 KiB.
    pub async fn read(&self, hash: BlobHash, range: Range<u64>) -> Result<Bytes, BlobError> {
        let not_held = || BlobError::NotHeld { hash, range: range.clone() };
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let held = self.local_ranges(hash).await?;
        if !held.iter().any(|held| held.start <= range.start && range.end <= held.end) {
            return Err(not_held());
        }
        let length = usize::try_from(range.end - range.start).map_err(|_| not_held())?;
        let mut bytes = BytesMut::with_capacity(length);
        let mut items = std::pin::pin!(self.store.export_bao(raw(hash), ChunkRanges::bytes(range.clone())).stream());
        while let Some(item) = items.next().await {
            match item {
                EncodedItem::Leaf(leaf) => append_overlap(&mut bytes, &range, leaf.offset, &leaf.data),
                EncodedItem::Error(error) => return Err(read_error(hash, &range, error)),
                EncodedItem::Size(_) | EncodedItem::Parent(_) | EncodedItem::Done => {}
            }
        }
        if bytes.len() == length { Ok(bytes.freeze()) } else { Err(not_held()) }
    }

    /// Reads a whole blob of at most `bytes_max`.
    pub async fn read_all(&self, hash: BlobHash, bytes_max: u64) -> Result<Bytes, BlobError> {
        match self.size(hash).await? {
            Some(size) if size <= bytes_max => self.read(hash, 0..size).await,
            _ => Err(BlobError::NotHeld { hash, range: 0..bytes_max }),
        }
    }

    /// Stores bytes that are in memory and pins them.
    pub async fn add(&self, bytes: impl Into<Bytes>) -> Result<TempPin, BlobError> {
        let (blobs, bytes) = (self.clone(), bytes.into());
        self.take_in(|_| async move {
            blobs.room_for(bytes.len() as u64)?;
            let tag = blobs.store.add_bytes(bytes).temp_tag().await.map_err(other)?;
            Ok(blobs.guard.adopt(tag))
        })
        .await
    }

    /// Keeps a blob, or as much of it as is here or arrives, while the pin lives. Waits for a sweep that would take it, for as long as
    /// that lives.
    pub async fn temp_pin(&self, hash: BlobHash) -> TempPin {
        self.guard.pin(hash).await
    }

    pub(crate) fn adopt(&self, tag: iroh_blobs::api::TempTag) -> TempPin {
        self.guard.adopt(tag)
    }

    /// Makes these blobs durable: data and proof files, their directories, then the store's own database. After this
    /// answered `Ok`, neither a killed process nor a lost power takes them away.
    pub async fn sync(&self, hashes: &[BlobHash]) -> Result<(), BlobError> {
        let (root, hashes) = (self.root.clone(), hashes.to_vec());
        blocking(move || sync_files(&root, &hashes)).await?;
        self.store.sync_db().await.map_err(other)
    }

    /// Collects garbage now: what no pin of any class protects goes. Runs twice, since a pin that was dropped still counts in the
    /// first run after it. Takes as long as deleting does.
    pub async fn collect(&self) -> Result<(), BlobError> {
        self.guard.collect().await?;
        self.guard.collect().await?;
        self.sweep_links().await
    }

    /// Throws a blob away although it is pinned, since its bytes are wrong, so that it can be fetched anew. The pins stay.
    pub async fn quarantine(&self, hash: BlobHash) -> Result<(), BlobError> {
        self.guard.condemn(hash);
        let collected = self.guard.collect().await;
        self.guard.pardon(hash);
        collected?;
        if self.store.status(raw(hash)).await.map_err(other)? != BlobStatus::NotFound {
            return Err(BlobError::InUse { hash });
        }
        let link = self.link_path(hash);
        blocking(move || remove_if_there(&link)).await?;
        self.wait_until_forgotten(hash).await
    }

    /// Whether garbage collection has stopped, which only a restart mends.
    pub fn collection_is_overdue(&self) -> bool {
        self.guard.is_overdue()
    }

    /// The file that holds a blob's bytes, if it is a file (small blobs lie in the store's database).
    pub async fn path(&self, hash: BlobHash) -> Option<PathBuf> {
        if !matches!(self.has(hash).await, Ok(true)) {
            return None;
        }
        let candidates = [self.data_path(hash), self.link_path(hash)];
        blocking(move || Ok(candidates.into_iter().find(|path| path.is_file()))).await.ok().flatten()
    }

    pub(crate) fn proof_path(&self, hash: BlobHash) -> PathBuf {
        proof_path(&self.root, hash)
    }

    pub(crate) fn temp_folder(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Where a hard link to a person's file stands when that was asked for.
    pub(crate) fn link_path(&self, hash: BlobHash) -> PathBuf {
        link_path(&self.root, hash)
    }

    /// Where hard links stand.
    pub(crate) fn link_folder(&self) -> PathBuf {
        self.root.join("linked")
    }

    /// Whether the store has all of a blob that is large enough for a file, by its book-keeping and by the file's bytes.
    pub(crate) async fn is_whole_on_disk(&self, hash: BlobHash) -> Result<bool, BlobError> {
        let Some(path) = self.path(hash).await else { return Ok(false) };
        let read = blocking(move || {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(std::fs::File::open(path)?)?;
            Ok(BlobHash::from(*hasher.finalize().as_bytes()))
        });
        // A file that can't be read is no copy.
        Ok(read.await.is_ok_and(|found| found == hash))
    }

    /// Errs unless every blob is here whole and, if it is too large for the store's database, as a file of its size.
    pub(crate) async fn require(&self, wanted: &[(BlobHash, u64)]) -> Result<(), BlobError> {
        for (hash, size) in wanted {
            let not_held = || BlobError::NotHeld { hash: *hash, range: 0..*size };
            if self.size(*hash).await? != Some(*size) {
                return Err(not_held());
            }
            if *size > INLINE_MAX {
                let path = self.path(*hash).await.ok_or_else(not_held)?;
                let length = blocking(move || Ok(std::fs::metadata(path)?.len())).await?;
                if length != *size {
                    return Err(not_held());
                }
            }
        }
        Ok(())
    }

    fn data_path(&self, hash: BlobHash) -> PathBuf {
        data_path(&self.root, hash)
    }

    /// Watches the collector, and removes links that it left and files that broken imports left, until the store is closed.
    pub(crate) async fn supervise(self) {
        loop {
            let goes_on = tokio::select! {
                goes_on = self.guard.pause(COLLECT_EVERY) => goes_on,
                () = self.import_broke() => self.clear_after_break().await,
            };
            if !goes_on {
                return;
            }
            self.look_after().await;
        }
    }

    async fn look_after(&self) {
        if self.guard.is_overdue() {
            self.guard.tell_of_death();
        }
        if let Some(taken) = self.guard.sweeping_for().filter(|taken| *taken > COLLECT_OVERDUE) {
            tracing::warn!(minutes = taken.as_secs() / 60, "a garbage collection is still deleting");
        }
        if let Err(error) = self.sweep_links().await {
            tracing::warn!(%error, "hard links to blobs that are gone were not removed");
        }
        self.sweep_temporary().await;
    }

    /// Bytes of every blob that is here, counted once.
    pub(crate) async fn bytes_stored(&self) -> Result<u64, BlobError> {
        let mut bytes = 0;
        for hash in self.store.list().hashes().await.map_err(other)? {
            bytes += self.bytes_held(BlobHash::from(*hash.as_bytes())).await?;
        }
        Ok(bytes)
    }

    /// Ends the store, with its last seconds on disk. Nothing works after this.
    pub(crate) async fn close(&self) {
        self.guard.close();
        self.imports_ended().await;
        // The store's database was asked to close; if it is gone already, so be it.
        let _ = self.store.shutdown().await;
    }

    /// The store closes a blob's files a moment after its last use; until then it would answer from what it had open.
    async fn wait_until_forgotten(&self, hash: BlobHash) -> Result<(), BlobError> {
        let forgotten = async {
            while self.store.observe(raw(hash)).await.is_ok_and(|held| !held.is_empty()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(FORGET_PATIENCE, forgotten).await.map_err(|_| BlobError::InUse { hash })
    }

    /// The store does not remove files that it was only pointed at; hard links are ours to remove.
    async fn sweep_links(&self) -> Result<(), BlobError> {
        let folder = self.root.join("linked");
        for hash in blocking(move || hashes_in(&folder)).await? {
            if self.store.status(raw(hash)).await.map_err(other)? == BlobStatus::NotFound {
                let (path, guard) = (self.link_path(hash), self.guard.clone());
                // An import pins its blob before it puts the link here, and the store knows the blob only after it was hashed.
                blocking(move || guard.unless_pinned(hash, || remove_if_there(&path))).await?;
            }
        }
        Ok(())
    }
}

/// Makes the folders, and clears what a killed import left behind. Only one daemon has this home: the catalogue's lock is ours.
fn make_folders(root: &Path) -> io::Result<()> {
    for folder in [intake::temporary(root), root.join("incoming")] {
        if folder.is_dir() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(folder)?;
    }
    let linked = root.join("linked");
    std::fs::create_dir_all(&linked)?;
    for entry in std::fs::read_dir(&linked)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "part") {
            remove_if_there(&path)?;
        }
    }
    std::fs::create_dir_all(root.join("data"))
}

fn data_path(root: &Path, hash: BlobHash) -> PathBuf {
    root.join("data").join(format!("{hash}.data"))
}

fn proof_path(root: &Path, hash: BlobHash) -> PathBuf {
    root.join("data").join(format!("{hash}.obao4"))
}

fn link_path(root: &Path, hash: BlobHash) -> PathBuf {
    root.join("linked").join(format!("{hash}.data"))
}

fn sync_files(root: &Path, hashes: &[BlobHash]) -> io::Result<()> {
    for hash in hashes {
        let sizes = root.join("data").join(format!("{hash}.sizes4"));
        for path in [data_path(root, *hash), proof_path(root, *hash), link_path(root, *hash), sizes] {
            sync_if_there(&path)?;
        }
    }
    for folder in [root.join("data"), root.join("linked"), root.to_owned()] {
        sync_if_there(&folder)?;
    }
    Ok(())
}

fn sync_if_there(path: &Path) -> io::Result<()> {
    match std::fs::File::open(path) {
        Ok(file) => file.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn hashes_in(folder: &Path) -> io::Result<Vec<BlobHash>> {
    let mut hashes = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let hash = name.to_str().and_then(|name| name.strip_suffix(".data"));
        hashes.extend(hash.and_then(|hash| hash.parse::<BlobHash>().ok()));
    }
    Ok(hashes)
}

/// Runs blocking file work off the async workers. Dropping the future abandons the answer, not the work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn byte_ranges(chunks: &ChunkRanges, size: u64) -> Vec<Range<u64>> {
    let bound = |at: Option<&u64>| at.map_or(size, |chunk| chunk.saturating_mul(CHUNK).min(size));
    let bounds: Vec<u64> = chunks.boundaries().iter().map(|chunk| chunk.0).collect();
    let ranges = bounds.chunks(2).map(|pair| bound(pair.first())..bound(pair.get(1)));
    ranges.filter(|range| !range.is_empty()).collect()
}

fn append_overlap(bytes: &mut BytesMut, range: &Range<u64>, offset: u64, data: &[u8]) {
    let start = range.start.max(offset);
    let end = range.end.min(offset + data.len() as u64);
    if start < end {
        bytes.extend_from_slice(&data[(start - offset) as usize..(end - offset) as usize]);
    }
}

fn read_error(hash: BlobHash, range: &Range<u64>, error: bao_tree::io::EncodeError) -> BlobError {
    use bao_tree::io::EncodeError;
    match error {
        EncodeError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            BlobError::NotHeld { hash, range: range.clone() }
        }
        EncodeError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => BlobError::Io(error),
        error => BlobError::Corrupt { hash, detail: error.to_string() },
    }
}

/// The library's errors carry no facts that we could act on.
pub(crate) fn other(error: impl std::error::Error + Send + Sync + 'static) -> BlobError {
    BlobError::Io(io::Error::other(error))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_missing_is_what_is_wanted_and_not_held() {
        assert_eq!(without(&[0..10], &[]), [0..10]);
        assert_eq!(without(&[0..10], &[0..10]), []);
        assert_eq!(without(&[0..10], &[2..4, 6..7]), [0..2, 4..6, 7..10]);
        assert_eq!(without(&[5..8, 20..30], &[0..6, 25..40]), [6..8, 20..25]);
    }

    proptest! {
        #[test]
        fn missing_and_held_together_are_what_is_wanted_byte_for_byte(
            wanted in proptest::collection::vec((0u64..60, 0u64..20), 0..6),
            held in proptest::collection::vec((0u64..60, 0u64..20), 0..6),
            size in 0u64..70,
        ) {
            let ranges = |pairs: &[(u64, u64)]| pairs.iter().map(|(at, length)| *at..at + length).collect::<Vec<_>>();
            let (wanted, held) = (joined(&ranges(&wanted), size), joined(&ranges(&held), u64::MAX));
            let missing = without(&wanted, &held);
            let has = |ranges: &[Range<u64>], byte| ranges.iter().any(|range| range.contains(&byte));
            for byte in 0..90 {
                let expected = has(&wanted, byte) && !has(&held, byte);
                prop_assert_eq!(has(&missing, byte), expected, "byte {}", byte);
            }
            prop_assert!(missing.iter().all(|range| !range.is_empty() && range.end <= size));
        }
    }

    #[test]
    fn wanted_ranges_are_cut_at_the_end_and_joined() {
        assert_eq!(joined(&[8..20, 0..3, 2..5, 30..40], 15), [0..5, 8..15]);
        assert_eq!(joined(&[3..3, 90..99], 15), []);
    }

    #[test]
    fn held_chunks_become_bytes_that_end_with_the_blob() {
        assert_eq!(byte_ranges(&ChunkRanges::all(), 1500), [0..1500]);
        assert_eq!(byte_ranges(&ChunkRanges::chunks(1..3), 2500), [1024..2500]);
        assert_eq!(byte_ranges(&ChunkRanges::empty(), 2500), []);
    }
}
