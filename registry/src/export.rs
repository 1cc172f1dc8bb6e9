//! Writes files of a revision into a person's folder.
//!
//! Cloned where the file system can, else copied; hard links only when asked for. Paths come from a manifest, which has none that
//! leave a folder; a symbolic link in the folder that leads out is refused here.
//!
//! Invariant: a file appears under its name only whole, synced, and with bytes that hash to what the revision names.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cairn_protocol::{
    id::{BlobHash, RevisionId},
    manifest::ManifestFile,
    name::FilePath,
};
use tempfile::NamedTempFile;

use crate::{Registry, blobs::BlobError, holding::HoldError, import::Transfer, prepare::Progress};

/// Bytes copied at once.
const PIECE: usize = 1 << 20;

/// What an export did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportReport {
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those files, how many share their bytes with the store by a clone or a link.
    pub shared: u64,
    /// The folder.
    pub path: PathBuf,
}

/// Why an export stopped. Files that were written before stay.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The revision has no such file.
    #[error("revision {revision} has no file {path}")]
    NoSuchFile {
        /// The revision.
        revision: RevisionId,
        /// The file.
        path: FilePath,
    },
    /// Not all of it is here.
    #[error("{path} is not here as a whole")]
    NotHeld {
        /// The file.
        path: FilePath,
        /// Its blob.
        blob: BlobHash,
    },
    /// The bytes are right, and the manifest states another size than they have.
    #[error("{path} has {actual} bytes, and the manifest states {stated}")]
    WrongSize {
        /// The file.
        path: FilePath,
        /// Bytes as the manifest tells it.
        stated: u64,
        /// Bytes that the blob has.
        actual: u64,
    },
    /// The store's bytes are not those that the revision names.
    #[error("{path} is damaged in the store")]
    Corrupt {
        /// The file.
        path: FilePath,
        /// Its blob, to be thrown away and fetched anew.
        blob: BlobHash,
    },
    /// A file stands where the folder should be.
    #[error("{} is a file, and a folder is needed", .0.display())]
    NotAFolder(PathBuf),
    /// A folder on the way is a link to somewhere else.
    #[error("{} leads out of the folder", .0.display())]
    LeadsOut(PathBuf),
    /// Writing failed.
    #[error("{}: {error}", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The revision could not be read.
    #[error(transparent)]
    Hold(#[from] HoldError),
}

enum Source {
    File(PathBuf),
    Memory(Bytes),
}

impl Registry {
    /// Writes these files of a revision below `to`, which is made if need be; files of the same names are replaced.
    ///
    /// Dropping the future stops after the file in hand.
    pub async fn export(
        &self,
        revision: RevisionId,
        files: &[FilePath],
        to: &Path,
        transfer: Transfer,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<ExportReport, ExportError> {
        let manifest = self.manifest(revision).await?.ok_or(HoldError::NoManifest(revision))?;
        let mut chosen = Vec::with_capacity(files.len());
        for path in files {
            let file = manifest.files.iter().find(|file| file.path == *path);
            chosen.push(file.ok_or_else(|| ExportError::NoSuchFile { revision, path: path.clone() })?);
        }
        let root = make_root(to).await?;
        let total = chosen.iter().map(|file| file.size).sum();
        let mut report = ExportReport { path: root.clone(), ..ExportReport::default() };
        for file in chosen {
            let is_shared = self.export_file(file, &root, transfer).await?;
            report.files += 1;
            report.bytes += file.size;
            report.shared += u64::from(is_shared);
            progress(Progress { done: report.bytes, total });
        }
        Ok(report)
    }

    pub(crate) async fn export_file(
        &self,
        file: &ManifestFile,
        root: &Path,
        transfer: Transfer,
    ) -> Result<bool, ExportError> {
        let not_held = || ExportError::NotHeld { path: file.path.clone(), blob: file.blake3 };
        let corrupt = || ExportError::Corrupt { path: file.path.clone(), blob: file.blake3 };
        let size = self.blobs().size(file.blake3).await.map_err(HoldError::from)?;
        let actual = size.ok_or_else(not_held)?;
        if actual != file.size {
            return Err(ExportError::WrongSize { path: file.path.clone(), stated: file.size, actual });
        }
        // Kept from a collection while it is read.
        let _pin = self.blobs().temp_pin(file.blake3).await;
        let source = match self.blobs().path(file.blake3).await {
            Some(path) => Source::File(path),
            None => match self.blobs().read(file.blake3, 0..file.size).await {
                Ok(bytes) => Source::Memory(bytes),
                Err(BlobError::Corrupt { .. } | BlobError::NotHeld { .. }) => return Err(corrupt()),
                Err(error) => return Err(HoldError::from(error).into()),
            },
        };
        let (root, file) = (root.to_owned(), file.clone());
        let written = tokio::task::spawn_blocking(move || write(&source, &file, &root, transfer));
        written.await.map_err(|error| HoldError::Blobs(BlobError::Io(io::Error::other(error))))?
    }
}

pub(crate) async fn make_root(to: &Path) -> Result<PathBuf, ExportError> {
    let to = to.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        let made = fs::create_dir_all(&to).and_then(|()| to.canonicalize());
        made.map_err(|error| match to.is_file() {
            true => ExportError::NotAFolder(to.clone()),
            false => write_error(&to, error),
        })
    });
    made.await.map_err(|error| HoldError::Blobs(BlobError::Io(io::Error::other(error))))?
}

fn write(source: &Source, file: &ManifestFile, root: &Path, transfer: Transfer) -> Result<bool, ExportError> {
    let (folder, target) = place(root, &file.path)?;
    let failed = |error| write_error(&target, error);
    let mut temporary = tempfile::Builder::new();
    temporary.prefix(".cairn-").suffix(".part");
    let (written, is_shared) = match (source, transfer) {
        (Source::File(path), Transfer::HardLink) => {
            let link = temporary.make_in(&folder, |link| hard_link(path, link)).map_err(failed)?;
            (link.into_temp_path(), true)
        }
        (Source::File(path), Transfer::Copy) => {
            clone_or_copy(path, temporary.tempfile_in(&folder).map_err(failed)?).map_err(failed)?
        }
        (Source::Memory(bytes), _) => {
            let mut copy = temporary.tempfile_in(&folder).map_err(failed)?;
            copy.write_all(bytes).and_then(|()| make_ordinary(copy.as_file())).map_err(failed)?;
            (copy.into_temp_path(), false)
        }
    };
    if hash(&written).map_err(failed)? != file.blake3 {
        return Err(ExportError::Corrupt { path: file.path.clone(), blob: file.blake3 });
    }
    File::open(&written).and_then(|file| file.sync_all()).map_err(failed)?;
    written.persist(&target).map_err(|error| failed(error.error))?;
    File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(is_shared)
}

/// Makes the folders on the way, and refuses one that is a link out of the root.
pub(crate) fn place(root: &Path, path: &FilePath) -> Result<(PathBuf, PathBuf), ExportError> {
    let target = path.parts().fold(root.to_owned(), |place, part| place.join(part));
    let mut folder = root.to_owned();
    let parts: Vec<&str> = path.parts().collect();
    for part in &parts[..parts.len() - 1] {
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(write_error(&folder, error)),
            _ => {}
        }
        let real = folder.canonicalize().map_err(|error| write_error(&folder, error))?;
        if !real.starts_with(root) {
            return Err(ExportError::LeadsOut(folder));
        }
    }
    Ok((folder, target))
}

fn hard_link(source: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(source, link)?;
    let mut permissions = fs::metadata(link)?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(link, permissions)
}

fn clone_or_copy(source: &Path, mut target: NamedTempFile) -> io::Result<(tempfile::TempPath, bool)> {
    let mut source = File::open(source)?;
    if reflink_copy::reflink_file(&source, target.as_file()).is_ok() {
        make_ordinary(target.as_file())?;
        return Ok((target.into_temp_path(), true));
    }
    io::copy(&mut source, target.as_file_mut())?;
    make_ordinary(target.as_file())?;
    Ok((target.into_temp_path(), false))
}

/// A temporary file is for its owner alone; an exported one is as readable as files usually are.
fn make_ordinary(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

pub(crate) fn hash(path: &Path) -> io::Result<BlobHash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(BlobHash::from(*hasher.finalize().as_bytes())),
            read => hasher.update(&piece[..read]),
        };
    }
}

pub(crate) fn write_error(path: &Path, error: io::Error) -> ExportError {
    ExportError::Write { path: path.to_owned(), error }
}
