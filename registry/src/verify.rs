//! Re-reads what is kept of a revision: every byte from disk, and every signature.
//!
//! It repairs nothing; [`crate::blobs::Blobs::quarantine`] throws a damaged blob away so that it can be fetched anew.
//!
//! Invariant: `ok` means that every byte of every file was read from disk just now and hashes to what the signed records name, by
//! BLAKE3 and by SHA-256, and that the proof which peers are served is the right one. Of a file that is here in part, that part is
//! read and held against BLAKE3; what is missing is told apart from what is wrong.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bao_tree::{
    BaoTree, TreeNode,
    io::sync::{OutboardMut, outboard},
};
use cairn_protocol::{
    id::{BlobHash, RevisionId},
    manifest::{Manifest, ManifestFile},
    name::FilePath,
    record::{Record, RecordKind},
};
use iroh_blobs::store::IROH_BLOCK_SIZE;
use sha2::{Digest as _, Sha256};

use crate::{
    Registry,
    blobs::{BlobError, blocking},
    catalog::{CatalogError, keys, tables},
    holding::{HoldError, blob_of},
    listing, look,
    prepare::Progress,
};

/// Proofs up to this size lie in the store's database, larger ones in a file of their own.
const PROOF_INLINE_MAX: u64 = 16 * 1024;
/// A file that is here in part is read in pieces of this size.
const PIECE_BYTES: u64 = 4 << 20;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Signed records that were checked.
    pub records: u64,
    /// What is wrong with files.
    pub bad: Vec<BadFile>,
    /// What is wrong with the signed records or with how the manifest fits them.
    pub bad_records: Vec<String>,
}

/// A file that is not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    /// The file.
    pub path: FilePath,
    /// Its blob.
    pub blob: BlobHash,
    /// What is wrong.
    pub problem: Problem,
}

/// What may be wrong with a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not all of it is here; this is no damage.
    #[error("{held} of {size} bytes are here")]
    Incomplete {
        /// Bytes that are here.
        held: u64,
        /// Bytes that it has.
        size: u64,
    },
    /// The bytes on disk are others.
    #[error("the bytes on disk are not those that the revision names")]
    Data,
    /// BLAKE3 fits and the size does not: the publisher stated a wrong one; this is no damage.
    #[error("the manifest states {stated} bytes, and the blob that it names has {actual}")]
    Size {
        /// Bytes as the manifest tells it.
        stated: u64,
        /// Bytes that the blob has.
        actual: u64,
    },
    /// BLAKE3 fits and SHA-256 does not: the publisher stated a wrong one.
    #[error("the manifest states another SHA-256 than the bytes have")]
    Sha256,
    /// The bytes are right, the proof that is sent along to peers is not.
    #[error("the proof beside the bytes is damaged, so peers can't be served")]
    Proof,
    /// The disk does not let it be read.
    #[error("it can't be read from disk: {0}")]
    Unreadable(String),
}

impl Problem {
    /// Whether throwing the blob away and fetching it anew would mend it.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Data | Self::Proof | Self::Unreadable(_))
    }

    /// Bytes that are simply not here.
    pub fn bytes_missing(&self) -> u64 {
        match self {
            Self::Incomplete { held, size } => size.saturating_sub(*held),
            _ => 0,
        }
    }
}

impl Registry {
    /// Re-reads a revision whose manifest is here. Dropping the future stops after the file in hand.
    pub async fn verify(
        &self,
        revision: RevisionId,
        progress: impl Fn(Progress) + Send + Sync + Clone + 'static,
    ) -> Result<VerifyReport, HoldError> {
        let manifest = self.manifest(revision).await?.ok_or(HoldError::NoManifest(revision))?;
        let (records, bad_records) = self.verify_records(revision, &manifest).await?;
        let mut report = VerifyReport { ok: true, files: 0, bytes: 0, records, bad: Vec::new(), bad_records };
        let total = manifest.bytes();
        for file in &manifest.files {
            let (progress, before) = (progress.clone(), report.bytes);
            let advance = move |done| progress(Progress { done: before + done, total });
            let problem = self.verify_file(file, advance).await?;
            report.files += 1;
            report.bytes += match problem {
                Some(Problem::Incomplete { held, .. }) => held,
                _ => file.size,
            };
            report.bad.extend(problem.map(|problem| BadFile { path: file.path.clone(), blob: file.blake3, problem }));
        }
        report.ok = report.bad.is_empty() && report.bad_records.is_empty();
        Ok(report)
    }

    async fn verify_file(
        &self,
        file: &ManifestFile,
        advance: impl Fn(u64) + Send + 'static,
    ) -> Result<Option<Problem>, BlobError> {
        let blobs = self.blobs();
        // The blob is judged by its hash, as long as it is: a stated size is only the publisher's word.
        let Some(size) = blobs.size(file.blake3).await? else {
            return self.verify_part(file, advance).await.map(Some);
        };
        let Some(path) = blobs.path(file.blake3).await else { return self.verify_inline(file, size).await };
        let on_disk = OnDisk { path, proof: blobs.proof_path(file.blake3), file: file.clone() };
        let problem = blocking(move || Ok(on_disk.check(advance))).await?;
        if problem.is_some() || BaoTree::new(size, IROH_BLOCK_SIZE).outboard_size() > PROOF_INLINE_MAX {
            return Ok(problem);
        }
        // The proof lies in the store's database: reading through it checks it.
        match blobs.read(file.blake3, 0..size).await {
            Ok(_) => Ok(None),
            Err(BlobError::Io(error)) => Ok(Some(Problem::Unreadable(error.to_string()))),
            Err(error) => {
                tracing::warn!(%error, path = %file.path, "the proof of a blob does not hold");
                Ok(Some(Problem::Proof))
            }
        }
    }

    /// Of a blob that is here in part, every byte that is here.
    async fn verify_part(&self, file: &ManifestFile, advance: impl Fn(u64)) -> Result<Problem, BlobError> {
        let held = self.blobs().local_ranges(file.blake3).await?;
        let mut read = 0;
        for piece in held.iter().flat_map(pieces) {
            match self.blobs().read(file.blake3, piece.clone()).await {
                Ok(_) => read += piece.end - piece.start,
                Err(BlobError::Corrupt { .. } | BlobError::NotHeld { .. }) => return Ok(Problem::Data),
                Err(BlobError::Io(error)) => return Ok(Problem::Unreadable(error.to_string())),
                Err(error) => return Err(error),
            }
            advance(read);
        }
        Ok(Problem::Incomplete { held: read, size: file.size })
    }

    /// A small blob lies in the store's database; a large one without its file is damaged.
    async fn verify_inline(&self, file: &ManifestFile, size: u64) -> Result<Option<Problem>, BlobError> {
        match self.blobs().read(file.blake3, 0..size).await {
            Ok(bytes) if BlobHash::of(&bytes) != file.blake3 => Ok(Some(Problem::Data)),
            Ok(_) if size != file.size => Ok(Some(Problem::Size { stated: file.size, actual: size })),
            Ok(bytes) => Ok((Sha256::digest(&bytes)[..] != file.sha256).then_some(Problem::Sha256)),
            Err(BlobError::Corrupt { .. } | BlobError::NotHeld { .. }) => Ok(Some(Problem::Data)),
            Err(BlobError::Io(error)) => Ok(Some(Problem::Unreadable(error.to_string()))),
            Err(error) => Err(error),
        }
    }

    /// Checks the signatures of the revision's record and of every head that names it, and that the manifest is of that repo.
    async fn verify_records(
        &self,
        revision: RevisionId,
        manifest: &Manifest,
    ) -> Result<(u64, Vec<String>), CatalogError> {
        let (realm, repo) = (self.realm(), manifest.repo.clone());
        let is_same_realm = manifest.realm == realm;
        let read = self.catalog().read(move |transaction| {
            let mut stored = Vec::new();
            if let Some(id) = look::id_of(transaction, tables::REVISIONS, &keys::revision(realm, &repo, revision))? {
                stored.push(keys::record(realm, RecordKind::Revision, id.into()));
            }
            for state in listing::refs(transaction, realm, &repo)? {
                let heads = state.history.iter().filter(|head| head.revision == revision);
                stored.extend(heads.map(|head| keys::record(realm, RecordKind::Head, head.id)));
            }
            let mut bad = Vec::new();
            if stored.is_empty() {
                bad.push(format!("no signed record of {repo} names revision {revision}"));
            }
            if !is_same_realm {
                bad.push("the manifest is of another realm".to_owned());
            }
            for key in &stored {
                bad.extend(check_record(transaction, key, &repo)?);
            }
            Ok((stored.len() as u64, bad))
        });
        read.await
    }
}

fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(PIECE_BYTES as usize).map(move |start| start..end.min(start + PIECE_BYTES))
}

fn check_record(
    transaction: &redb::ReadTransaction,
    key: &[u8],
    repo: &cairn_protocol::name::RepoId,
) -> Result<Option<String>, CatalogError> {
    let Some(bytes) = look::value_of(transaction, tables::RECORDS, key)? else {
        return Ok(Some("a signed record is missing".to_owned()));
    };
    Ok(match Record::verify(&bytes) {
        Ok(record) if record.body().is_ok_and(|body| body.publisher(record.key()) == repo.publisher) => None,
        Ok(record) => Some(format!("record {} is not signed by the publisher", record.id())),
        Err(error) => Some(error.to_string()),
    })
}

struct OnDisk {
    path: PathBuf,
    proof: PathBuf,
    file: ManifestFile,
}

impl OnDisk {
    /// Reads the file once, computing BLAKE3 with its proof and SHA-256 on the way.
    fn check(&self, advance: impl Fn(u64)) -> Option<Problem> {
        self.try_check(advance).unwrap_or_else(|error| Some(Problem::Unreadable(error.to_string())))
    }

    fn try_check(&self, advance: impl Fn(u64)) -> io::Result<Option<Problem>> {
        let data = File::open(&self.path)?;
        let size = data.metadata()?.len();
        let tree = BaoTree::new(size, IROH_BLOCK_SIZE);
        let mut proof = Proof::open(&self.proof, tree)?;
        let mut tee = Tee { data: BufReader::with_capacity(1 << 20, data), sha256: Sha256::new(), done: 0, advance };
        let blake3 = outboard(&mut tee, tree, &mut proof)?;
        let has_lost_its_proof = proof.file.is_none() && tree.outboard_size() > PROOF_INLINE_MAX;
        Ok(if blake3.as_bytes() != self.file.blake3.as_bytes() {
            Some(Problem::Data)
        } else if size != self.file.size {
            Some(Problem::Size { stated: self.file.size, actual: size })
        } else if tee.sha256.finalize()[..] != self.file.sha256 {
            Some(Problem::Sha256)
        } else if proof.differs || has_lost_its_proof {
            Some(Problem::Proof)
        } else {
            None
        })
    }
}

/// Hashes what passes through.
struct Tee<A> {
    data: BufReader<File>,
    sha256: Sha256,
    done: u64,
    advance: A,
}

impl<A: Fn(u64)> Read for Tee<A> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.data.read(buffer)?;
        self.sha256.update(&buffer[..read]);
        let before = self.done >> 20;
        self.done += read as u64;
        if self.done >> 20 != before {
            (self.advance)(self.done);
        }
        Ok(read)
    }
}

/// Holds the proof on disk against the one that the data has, pair by pair, so that neither is ever in memory.
struct Proof {
    file: Option<File>,
    tree: BaoTree,
    differs: bool,
}

impl Proof {
    fn open(path: &Path, tree: BaoTree) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { file, tree, differs: false })
    }
}

impl OutboardMut for Proof {
    fn save(&mut self, node: TreeNode, pair: &(bao_tree::blake3::Hash, bao_tree::blake3::Hash)) -> io::Result<()> {
        let (Some(file), Some(place)) = (&self.file, self.tree.pre_order_offset(node)) else { return Ok(()) };
        let mut found = [0; 64];
        let is_read = file.read_exact_at(&mut found, place * 64).is_ok();
        self.differs |= !is_read || found[..32] != pair.0.as_bytes()[..] || found[32..] != pair.1.as_bytes()[..];
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl VerifyReport {
    /// The damaged blobs, each once, for throwing away.
    pub fn damaged(&self) -> Vec<BlobHash> {
        let mut damaged: Vec<BlobHash> =
            self.bad.iter().filter(|bad| bad.problem.is_damage()).map(|bad| bad.blob).collect();
        damaged.sort_unstable();
        damaged.dedup();
        damaged
    }
}

impl Registry {
    /// Whether the manifest's own blob is whole and right; a damaged one shows as an error of [`Registry::manifest`].
    pub async fn has_manifest(&self, revision: RevisionId) -> Result<bool, BlobError> {
        self.blobs().has(blob_of(revision)).await
    }
}
