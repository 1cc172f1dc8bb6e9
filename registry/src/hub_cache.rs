//! Writes a revision into the cache of the Hub's own clients, so that they find it without a network.
//!
//! The layout, of `CACHE/models--ORG--NAME`: `blobs/<ETAG>` holds bytes, `snapshots/<COMMIT>/PATH` is a relative link to them, and
//! `refs/REF` holds the commit. An etag is a file's SHA-256 if a Hub would keep it apart (LFS), else git's name for it; a commit is the
//! first 40 digits of the revision.
//!
//! Invariant: a snapshot's link leads to bytes that were whole and verified when it was made, and a ref is written after its snapshot.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use cairn_protocol::{
    id::RevisionId,
    manifest::ManifestFile,
    name::{FilePath, RefName, RepoKind},
};

use crate::{
    Progress, Registry, Transfer,
    blobs::BlobError,
    export::{ExportError, ExportReport, hash, make_root, place, write_error},
    holding::HoldError,
};

/// Digits of a commit.
const COMMIT_DIGITS: usize = 40;
/// Larger files are kept apart, whatever they are.
const SMALL_BYTES_MAX: u64 = 10 << 20;
/// Names that a Hub keeps apart in every new repo.
const APART: [&str; 33] = [
    "7z",
    "arrow",
    "bin",
    "bz2",
    "ckpt",
    "ftz",
    "gguf",
    "gz",
    "h5",
    "joblib",
    "lfs",
    "mlmodel",
    "model",
    "msgpack",
    "npy",
    "npz",
    "onnx",
    "ot",
    "parquet",
    "pb",
    "pickle",
    "pkl",
    "pt",
    "pth",
    "rar",
    "safetensors",
    "tar",
    "tflite",
    "tgz",
    "wasm",
    "xz",
    "zip",
    "zst",
];

/// What a revision is called in a Hub's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// Models, datasets and spaces lie apart; adapters are models there.
    pub kind: RepoKind,
    /// What stands for the organisation.
    pub publisher: String,
    /// The repo's own name.
    pub name: String,
    /// The ref that shall mean it, if one does.
    pub reference: Option<RefName>,
}

impl HubName {
    fn folder(&self) -> String {
        let kind = match self.kind {
            RepoKind::Dataset => "datasets",
            RepoKind::Space => "spaces",
            RepoKind::Model | RepoKind::Adapter => "models",
        };
        format!("{kind}--{}--{}", self.publisher, self.name)
    }
}

/// What the Hub's clients call a revision.
pub fn hub_commit(revision: RevisionId) -> String {
    revision.to_string()[..COMMIT_DIGITS].to_owned()
}

/// What the Hub's clients call a file's bytes.
pub fn hub_etag(file: &ManifestFile) -> String {
    let name = file.path.file_name().to_lowercase();
    let is_apart = name.rsplit_once('.').is_some_and(|(_, extension)| APART.contains(&extension));
    match is_apart || file.size > SMALL_BYTES_MAX {
        true => hex::encode(file.sha256),
        false => hex::encode(file.git_sha1),
    }
}

impl Registry {
    /// Writes these files of a revision into the cache `to`. What is there already and right stays.
    ///
    /// Dropping the future stops after the file in hand; the ref is written last.
    pub async fn export_to_hub_cache(
        &self,
        revision: RevisionId,
        files: &[FilePath],
        to: &Path,
        name: &HubName,
        transfer: Transfer,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<ExportReport, ExportError> {
        let manifest = self.manifest(revision).await?.ok_or(HoldError::NoManifest(revision))?;
        let chosen: Vec<_> = manifest.files.iter().filter(|file| files.contains(&file.path)).collect();
        let root = make_root(&to.join(name.folder())).await?;
        let total = chosen.iter().map(|file| file.size).sum();
        let commit = hub_commit(revision);
        let mut report = ExportReport { path: root.join("snapshots").join(&commit), ..ExportReport::default() };
        for file in chosen {
            report.shared += u64::from(self.cache_file(file, &root, &commit, transfer).await?);
            report.files += 1;
            report.bytes += file.size;
            progress(Progress { done: report.bytes, total });
        }
        if let Some(reference) = name.reference.clone() {
            blocking(move || write_ref(&root, &reference, &commit)).await?;
        }
        Ok(report)
    }

    /// One file: bytes first, then the link; whether its bytes are shared with the store by this call.
    async fn cache_file(
        &self,
        file: &ManifestFile,
        root: &Path,
        commit: &str,
        transfer: Transfer,
    ) -> Result<bool, ExportError> {
        let etag = hub_etag(file);
        let blob = root.join("blobs").join(&etag);
        let (stored, expected) = (blob.clone(), file.blake3);
        let is_there = blocking(move || Ok(hash(&stored).is_ok_and(|found| found == expected))).await?;
        let mut is_shared = false;
        if !is_there {
            let path = format!("blobs/{etag}").parse().map_err(|_| ExportError::LeadsOut(blob))?;
            is_shared = self.export_file(&ManifestFile { path, ..file.clone() }, root, transfer).await?;
        }
        let (root, path, commit) = (root.to_owned(), file.path.clone(), commit.to_owned());
        blocking(move || link(&root, &commit, &path, &etag)).await?;
        Ok(is_shared)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    let worked = tokio::task::spawn_blocking(work);
    worked.await.map_err(|error| HoldError::Blobs(BlobError::Io(io::Error::other(error))))?
}

/// The snapshot's link to the bytes.
fn link(root: &Path, commit: &str, path: &FilePath, etag: &str) -> Result<(), ExportError> {
    let inside: FilePath = format!("snapshots/{commit}/{path}")
        .parse()
        .map_err(|_| ExportError::LeadsOut(root.join("snapshots").join(commit)))?;
    let (_, target) = place(root, &inside)?;
    // Out of the file's folders, the commit's and `snapshots`.
    let up: PathBuf = std::iter::repeat_n("..", path.parts().count() + 1).collect();
    let wanted = up.join("blobs").join(etag);
    if fs::read_link(&target).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    replace(&target, |temporary| symlink(&wanted, temporary))
}

fn write_ref(root: &Path, reference: &RefName, commit: &str) -> Result<(), ExportError> {
    let inside: FilePath = format!("refs/{reference}").parse().map_err(|_| ExportError::LeadsOut(root.join("refs")))?;
    let (_, target) = place(root, &inside)?;
    if fs::read(&target).is_ok_and(|found| found == commit.as_bytes()) {
        return Ok(());
    }
    replace(&target, |temporary| fs::write(temporary, commit))
}

/// Makes something beside its place, then puts it there in one step.
fn replace(target: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), ExportError> {
    let failed = |error| write_error(target, error);
    let folder =
        tempfile::Builder::new().prefix(".cairn-").tempdir_in(target.parent().unwrap_or(target)).map_err(failed)?;
    let temporary = folder.path().join("made");
    make(&temporary).and_then(|()| fs::rename(&temporary, target)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_go_by_sha256_and_small_texts_by_gits_name_as_on_the_hub() {
        let file = |path: &str, size| ManifestFile {
            path: path.parse().unwrap(),
            size,
            blake3: cairn_protocol::BlobHash::of(b""),
            sha256: [1; 32],
            git_sha1: [2; 20],
            header_bytes: 0,
        };
        assert_eq!(hub_etag(&file("model.safetensors", 10)).len(), 64);
        assert_eq!(hub_etag(&file("config.json", 10)).len(), 40);
        assert_eq!(hub_etag(&file("tokenizer.json", 20 << 20)).len(), 64);
    }
}
