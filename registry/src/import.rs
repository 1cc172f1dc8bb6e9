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
    blobs::{BlobError, Blobs, TempPin, blocking, other, remove_if_there},
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
/// Dropping the future leaves at most an unpinned blob and a temporary file; both go at the next collection or start.
pub(crate) async fn import(
    blobs: &Blobs,
    path: &Path,
    size: u64,
    intake: Transfer,
    advance: impl Fn(u64) + Send + Sync + Clone + 'static,
) -> Result<Imported, ImportError> {
    if size > INLINE_MAX {
        if intake == Transfer::HardLink {
            return import_linked(blobs, path, size, advance).await;
        }
        if let Some(cloned) = import_cloned(blobs, path, size, advance.clone()).await? {
            return Ok(cloned);
        }
    }
    import_streamed(blobs, path, size, advance).await
}

async fn import_streamed(
    blobs: &Blobs,
    path: &Path,
    size: u64,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<Imported, ImportError> {
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_MAX);
    let reader = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || read_into(&path, size, &sender, advance)
    });
    let adding = blobs.store().add_stream(stream::poll_fn(move |context| receiver.poll_recv(context))).await;
    let tag = adding.temp_tag().await;
    // The reader's error says more than the store's "the stream broke off".
    let sums = reader.await.map_err(io::Error::other).map_err(BlobError::Io)??;
    let pin = blobs.adopt(tag.map_err(other)?);
    Ok(Imported { pin, size, sums })
}

fn read_into(
    path: &Path,
    size: u64,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    advance: impl Fn(u64),
) -> Result<Sums, ImportError> {
    let read = sums(size, |digest| {
        read_exactly(path, size, |piece| {
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
    path: &Path,
    size: u64,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<Option<Imported>, ImportError> {
    let (source, folder) = (path.to_owned(), blobs.temp_folder());
    let cloned = blocking(move || {
        let clone = tempfile::Builder::new().make_in(folder, |clone| reflink_copy::reflink(&source, clone));
        Ok(clone.ok().map(tempfile::NamedTempFile::into_temp_path))
    });
    let Some(clone) = cloned.await.map_err(BlobError::Io)? else { return Ok(None) };
    let (hash, sums) = describe(&clone, path, size, advance).await?;
    let tag = add_path(blobs, &clone, ImportMode::Copy).await?;
    accept(blobs, tag, hash, path, size, sums).map(Some)
}

async fn import_linked(
    blobs: &Blobs,
    path: &Path,
    size: u64,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<Imported, ImportError> {
    let failed = |error| ImportError::Link { path: path.to_owned(), error };
    let (source, folder) = (path.to_owned(), blobs.link_folder());
    let linked = blocking(move || {
        tempfile::Builder::new().suffix(".part").make_in(folder, |link| std::fs::hard_link(&source, link))
    });
    let link = linked.await.map_err(failed)?.into_temp_path();
    let (hash, sums) = describe(&link, path, size, advance).await?;
    let pin = blobs.temp_pin(hash).await;
    if blobs.is_whole_on_disk(hash).await? {
        return Ok(Imported { pin, size, sums });
    }
    let target = blobs.link_path(hash);
    blocking({
        let target = target.clone();
        move || move_in(link, &target)
    })
    .await
    .map_err(failed)?;
    let tag = add_path(blobs, &target, ImportMode::TryReference).await?;
    let accepted = accept(blobs, tag, hash, path, size, sums);
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
fn accept(
    blobs: &Blobs,
    tag: TempTag,
    hash: BlobHash,
    path: &Path,
    size: u64,
    sums: Sums,
) -> Result<Imported, ImportError> {
    let pin = blobs.adopt(tag);
    if pin.hash() != hash {
        return Err(ImportError::Changed(path.to_owned()));
    }
    Ok(Imported { pin, size, sums })
}

/// All digests of a file that the store does not read through us. `named` is the path that errors name.
async fn describe(
    path: &Path,
    named: &Path,
    size: u64,
    advance: impl Fn(u64) + Send + 'static,
) -> Result<(BlobHash, Sums), ImportError> {
    let (path, named) = (path.to_owned(), named.to_owned());
    let described = tokio::task::spawn_blocking(move || {
        let mut blake3 = blake3::Hasher::new();
        let sums = sums(size, |digest| {
            read_exactly(&path, size, |piece| {
                advance(piece.len() as u64);
                blake3.update(&piece);
                digest(&piece);
                Ok(())
            })
        });
        let sums = sums.map_err(|error| renamed(error, &named))?;
        Ok((BlobHash::from(*blake3.finalize().as_bytes()), sums))
    });
    described.await.map_err(io::Error::other).map_err(BlobError::Io)?
}

fn renamed(error: ImportError, named: &Path) -> ImportError {
    match error {
        ImportError::Read { error, .. } => ImportError::Read { path: named.to_owned(), error },
        ImportError::Changed(_) => ImportError::Changed(named.to_owned()),
        error => error,
    }
}

/// Reads a file in pieces; one that ends before or after `size` bytes has changed since it was listed.
fn read_exactly(path: &Path, size: u64, mut take: impl FnMut(Bytes) -> io::Result<()>) -> Result<(), ImportError> {
    let failed = |error| ImportError::Read { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(failed)?;
    let mut left = size;
    while left > 0 {
        let mut piece = vec![0; left.min(PIECE as u64) as usize];
        match file.read_exact(&mut piece) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ImportError::Changed(path.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        }
        left -= piece.len() as u64;
        take(Bytes::from(piece)).map_err(failed)?;
    }
    match file.read(&mut [0]).map_err(failed)? {
        0 => Ok(()),
        _ => Err(ImportError::Changed(path.to_owned())),
    }
}
