//! Takes one file into the blob store and says its digests.
//!
//! A file that the file system can clone is cloned (no second copy of the bytes); otherwise it is read once, and the same bytes go to
//! the store and to the digests. A hard link is made only when it was asked for and the store has no whole copy; it replaces
//! what stood in its place only after it was read. It does not know manifests.
//!
//! Invariant: the digests are of the bytes that the store holds, even if someone writes to the file meanwhile; then the import
//! fails or describes the copy, never a mixture.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cairn_protocol::id::BlobHash;
use futures::stream;
use iroh_blobs::{
    BlobFormat,
    api::{
        TempTag,
        blobs::{AddPathOptions, ImportMode},
    },
};
use tokio::sync::mpsc;

use crate::{
    blobs::{BlobError, Blobs, TempPin, blocking, intake::Wanted, other, remove_if_there},
    hashing::{Sums, sums},
};

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Pieces between the reading thread and the store.
const PIECES_MAX: usize = 4;

/// Files up to this size are stored inside the store's database, so cloning or linking them means nothing.
pub(crate) const INLINE_MAX: u64 = 16 * 1024;

/// How bytes get from a person's folder into the store, and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transfer {
    /// Cloned where the file system can, else copied.
    #[default]
    Copy,
    /// Hard-linked and made read-only, for whom asks: an edit through the person's name would damage the store.
    HardLink,
}

/// A file that the store holds.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) pin: TempPin,
    pub(crate) size: u64,
    pub(crate) sums: Sums,
}

/// Why a file did not get into the store.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It could not be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Someone wrote to it meanwhile.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// It can't be hard-linked.
    #[error("{} can't be hard-linked into the store: {error}", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// Imports `path`, which had `size` bytes when it was listed. `advance` hears of bytes as they are read.
///
/// Dropping the future ends the reading soon; it leaves at most an unpinned blob, which goes at the next collection, and temporary
/// files, which go when the store has let them go.
pub(crate) async fn import(
    blobs: &Blobs,
    path: &Path,
    size: u64,
    intake: Transfer,
    advance: impl Fn(u64) + Send + Sync + Clone + 'static,
) -> Result<Imported, ImportError> {
    let (owned, path) = (blobs.clone(), path.to_owned());
    let import = move |wanted| async move { import_any(&owned, &Source { path, size, wanted }, intake, advance).await };
    blobs.take_in(import).await
}

/// A file to take in.
#[derive(Clone)]
struct Source {
    path: PathBuf,
    size: u64,
    wanted: Wanted,
}

async fn import_any(
    blobs: &Blobs,
    source: &Source,
    intake: Transfer,
    advance: impl Fn(u64) + Send + Sync + Clone + 'static,
) -> Result<Imported, ImportError> {
    blobs.room_for(0).map_err(BlobError::Io)?;
    if source.size > INLINE_MAX {
        if intake == Transfer::HardLink {
            return import_linked(blobs, source, advance).await;
        }
        if let Some(cloned) = import_cloned(blobs, source, advance.clone()).await? {
            return Ok(cloned);
        }
    }
    import_streamed(blobs, source, advance).await
}

async fn import_streamed(
    blobs: &Blobs,
    source: &Source,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<Imported, ImportError> {
    blobs.room_for(source.size).map_err(BlobError::Io)?;
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_MAX);
    let reader = tokio::task::spawn_blocking({
        let source = source.clone();
        move || read_into(&source, &sender, advance)
    });
    let adding = blobs.store().add_stream(stream::poll_fn(move |context| receiver.poll_recv(context))).await;
    let tag = adding.temp_tag().await;
    // The reader's error says more than the store's "the stream broke off".
    let sums = reader.await.map_err(io::Error::other).map_err(BlobError::Io)??;
    let pin = blobs.adopt(tag.map_err(other)?);
    Ok(Imported { pin, size: source.size, sums })
}

fn read_into(
    source: &Source,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    advance: impl Fn(u64),
) -> Result<Sums, ImportError> {
    let read = sums(source.size, |digest| {
        read_exactly(&source.path, source, |piece| {
            advance(piece.len() as u64);
            digest(&piece);
            sender.blocking_send(Ok(piece)).map_err(|_| io::Error::other("the store stopped the import"))
        })
    });
    if read.is_err() {
        // A broken stream must not look like a short file.
        let _ = sender.blocking_send(Err(io::ErrorKind::InvalidData.into()));
    }
    read
}

/// Clones the file into a place of ours, then describes the clone. `None` when the file system can't clone.
async fn import_cloned(
    blobs: &Blobs,
    source: &Source,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<Option<Imported>, ImportError> {
    let (path, folder) = (source.path.clone(), blobs.temp_folder());
    let cloned = blocking(move || {
        let clone = tempfile::Builder::new().make_in(folder, |clone| reflink_copy::reflink(&path, clone));
        Ok(clone.ok().map(tempfile::NamedTempFile::into_temp_path))
    });
    let Some(clone) = cloned.await.map_err(BlobError::Io)? else { return Ok(None) };
    let (hash, sums) = describe(&clone, source, advance).await?;
    let tag = add_path(blobs, &clone, ImportMode::Copy).await?;
    accept(blobs, tag, hash, source, sums).map(Some)
}

async fn import_linked(
    blobs: &Blobs,
    source: &Source,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<Imported, ImportError> {
    let failed = |error| ImportError::Link { path: source.path.clone(), error };
    let (path, folder) = (source.path.clone(), blobs.link_folder());
    let linked = blocking(move || {
        tempfile::Builder::new().suffix(".part").make_in(folder, |link| std::fs::hard_link(&path, link))
    });
    let link = linked.await.map_err(failed)?.into_temp_path();
    let (hash, sums) = describe(&link, source, advance).await?;
    let pin = blobs.temp_pin(hash).await;
    if blobs.is_whole_on_disk(hash).await? {
        return Ok(Imported { pin, size: source.size, sums });
    }
    let target = blobs.link_path(hash);
    blocking({
        let target = target.clone();
        move || move_in(link, &target)
    })
    .await
    .map_err(failed)?;
    let tag = add_path(blobs, &target, ImportMode::TryReference).await?;
    let accepted = accept(blobs, tag, hash, source, sums);
    if accepted.is_err() {
        // What stood here before was not whole, and this is not what its name says.
        blocking(move || remove_if_there(&target)).await.map_err(failed)?;
    }
    accepted
}

/// Puts a checked link in its place. Whatever stood there is gone only when the new one stands.
fn move_in(link: tempfile::TempPath, target: &Path) -> io::Result<()> {
    let mut permissions = std::fs::metadata(&link)?.permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&link, permissions)?;
    let link = link.keep().map_err(|error| error.error)?;
    std::fs::rename(&link, target)?;
    // Renaming one link of a file over another of the same file leaves both.
    remove_if_there(&link)
}

async fn add_path(blobs: &Blobs, path: &Path, mode: ImportMode) -> Result<TempTag, ImportError> {
    let options = AddPathOptions { path: path.to_owned(), format: BlobFormat::Raw, mode };
    Ok(blobs.store().add_path_with_opts(options).temp_tag().await.map_err(other)?)
}

/// The store hashed the file too; if it found something else, the file changed between the two readings.
fn accept(blobs: &Blobs, tag: TempTag, hash: BlobHash, source: &Source, sums: Sums) -> Result<Imported, ImportError> {
    let pin = blobs.adopt(tag);
    if pin.hash() != hash {
        return Err(ImportError::Changed(source.path.clone()));
    }
    Ok(Imported { pin, size: source.size, sums })
}

/// All digests of a file that the store does not read through us: `path` is where we have it, errors name the person's.
async fn describe(
    path: &Path,
    source: &Source,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<(BlobHash, Sums), ImportError> {
    let (path, source) = (path.to_owned(), source.clone());
    let described = tokio::task::spawn_blocking(move || {
        let mut blake3 = blake3::Hasher::new();
        let sums = sums(source.size, |digest| {
            read_exactly(&path, &source, |piece| {
                advance(piece.len() as u64);
                blake3.update(&piece);
                digest(&piece);
                Ok(())
            })
        });
        Ok((BlobHash::from(*blake3.finalize().as_bytes()), sums?))
    });
    described.await.map_err(io::Error::other).map_err(BlobError::Io)?
}

/// Reads what lies at `path` in pieces; a file that ends before or after the source's size has changed since it was listed.
fn read_exactly(
    path: &Path,
    source: &Source,
    mut take: impl FnMut(Bytes) -> io::Result<()>,
) -> Result<(), ImportError> {
    let failed = |error| ImportError::Read { path: source.path.clone(), error };
    let mut file = File::open(path).map_err(failed)?;
    let mut left = source.size;
    while left > 0 {
        source.wanted.check().map_err(failed)?;
        let mut piece = vec![0; left.min(PIECE as u64) as usize];
        match file.read_exact(&mut piece) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ImportError::Changed(source.path.clone()));
            }
            Err(error) => return Err(failed(error)),
        }
        left -= piece.len() as u64;
        take(Bytes::from(piece)).map_err(failed)?;
    }
    match file.read(&mut [0]).map_err(failed)? {
        0 => Ok(()),
        _ => Err(ImportError::Changed(source.path.clone())),
    }
}
