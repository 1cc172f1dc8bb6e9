//! Where an import's files wait: `HOME/imports/<source>`, with `files/` for what is whole and checked, and `parts/` for what is on its
//! way. The folder's name is a hash of endpoint, repo, commit and patterns, so what lies in it is always of that commit and asked for.
//!
//! Invariant: what is in `files/` matched its digest and is synced; one import at a time uses a stage. What nobody has touched for a
//! week goes when the next import begins.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_protocol::{
    name::FilePath,
    refusal::{Reason, Refusal},
};

use super::hub::RemoteFile;
use crate::home::Home;

/// Stages of imports that nobody went on with.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The folder of one import.
pub(super) struct Stage {
    root: PathBuf,
    files: PathBuf,
    /// Held as long as the import runs; a killed daemon's is free at once.
    _lock: File,
}

impl Stage {
    /// Opens the stage of this source, with what an earlier import left.
    pub(super) fn open(home: &Home, key: &str) -> Result<Self, Refusal> {
        let imports = home.join("imports");
        clear_old(&imports);
        let root = imports.join(&blake3::hash(key.as_bytes()).to_hex()[..32]);
        let failed = |error: io::Error| Refusal::internal(root.display().to_string(), error);
        let files = root.join("files");
        fs::create_dir_all(&files).and_then(|()| fs::create_dir_all(root.join("parts"))).map_err(failed)?;
        let lock = File::create(root.join("lock")).map_err(failed)?;
        if lock.try_lock().is_err() {
            let why = "another import of the same commit is under way";
            return Err(Refusal::new(Reason::Busy, "import", why).try_this("again when it is done"));
        }
        Ok(Self { files, root, _lock: lock })
    }

    /// The folder to publish.
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    /// Whether the file is whole here. It got its name when its digest was right.
    pub(super) fn has(&self, file: &RemoteFile) -> bool {
        fs::metadata(self.place(&file.path)).is_ok_and(|found| found.is_file() && found.len() == file.size)
    }

    /// Bytes that are still to come.
    pub(super) fn bytes_missing(&self, files: &[RemoteFile]) -> u64 {
        let missing = |file: &&RemoteFile| !self.has(file);
        let begun = |file: &RemoteFile| fs::metadata(self.part(&file.path)).map_or(0, |found| found.len());
        files.iter().filter(missing).map(|file| file.size.saturating_sub(begun(file))).sum()
    }

    /// Where the file's bytes lie while they come.
    pub(super) fn part(&self, path: &FilePath) -> PathBuf {
        self.root.join("parts").join(&blake3::hash(path.as_str().as_bytes()).to_hex()[..32])
    }

    /// Gives a part that is whole, checked and synced its name.
    pub(super) fn keep(&self, path: &FilePath) -> io::Result<()> {
        let place = self.place(path);
        let folder = place.parent().unwrap_or(&self.files);
        fs::create_dir_all(folder)?;
        fs::rename(self.part(path), &place)?;
        File::open(folder)?.sync_all()
    }

    /// Names a file that the store has; false where the file system has no room for one more name.
    pub(super) fn link(&self, stored: &Path, file: &RemoteFile) -> io::Result<bool> {
        let place = self.place(&file.path);
        fs::create_dir_all(place.parent().unwrap_or(&self.files))?;
        match fs::hard_link(stored, &place) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => {
                tracing::debug!(%error, path = %file.path, "a stored file is downloaded again");
                Ok(false)
            }
        }
    }

    /// Removes it all, when it is published.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.root) {
            tracing::warn!(%error, stage = %self.root.display(), "an import's files were not removed");
        }
    }

    fn place(&self, path: &FilePath) -> PathBuf {
        path.parts().fold(self.files.clone(), |place, part| place.join(part))
    }
}

fn clear_old(imports: &Path) {
    let Ok(entries) = fs::read_dir(imports) else { return };
    for entry in entries.flatten() {
        let lock = entry.path().join("lock");
        let is_old = |file: &File| {
            file.metadata().and_then(|found| found.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEPT))
        };
        let is_left = File::open(&lock).is_ok_and(|file| is_old(&file) && file.try_lock().is_ok());
        if is_left && let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, "an old import's files were not removed");
        }
    }
}

/// What a file that can't be written means for people.
pub(super) fn unwritten(path: &FilePath, error: &io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::StorageFull {
        return Refusal::new(Reason::DiskFull, path.to_string(), error.to_string())
            .try_this("making room on the disk of the daemon's home, then the same again");
    }
    Refusal::internal(path.to_string(), error)
}
