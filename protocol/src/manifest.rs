//! What a revision consists of: files, tensors, the model's shape. Not where the bytes are. Invariant: a parsed [`Manifest`]
//! obeys every rule of this file, so that whoever exports a file or reads a tensor's range need not check again.

use std::collections::{HashMap, HashSet};

use prost::Message;

use crate::digest::Digest;
use crate::dtype::{Dtype, elements};
use crate::id::{BlobHash, PublisherKey, RealmId, RevisionId};
use crate::limits::{
    DIGESTS_MAX, ENTRY_BYTES_MAX, FILE_BYTES_MAX, MANIFEST_BYTES_MAX, MANIFEST_ENTRIES_MAX, MANIFEST_FILES_MAX,
    MANIFEST_TENSORS_MAX, MESSAGE_BYTES_MAX, PARENTS_MAX, TENSOR_DIMENSIONS_MAX, TENSOR_NAME_BYTES_MAX,
};
use crate::name::{FilePath, RepoId, RepoKind};
use crate::path::PathError;
use crate::record_pb;
use crate::wire::walk;

pub use crate::model::{Experts, Model, Naming, RopeScaling, Variations};

/// The version of the manifest's format.
const VERSION: u32 = 1;

/// One revision of one repo.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Where it was published.
    pub realm: RealmId,
    /// Whose repo it is.
    pub repo: RepoId,
    /// What it was made from.
    pub parents: Vec<RevisionId>,
    /// Its files.
    pub files: Vec<ManifestFile>,
    /// Its tensors, of all files.
    pub tensors: Vec<TensorEntry>,
    /// The shape, when it is a model that is known.
    pub model: Option<Model>,
    /// What the publisher says of it.
    pub message: String,
    /// By the publisher's clock; orders nothing.
    pub created_ms: i64,
    /// Free key-value pairs; keys are unique.
    pub metadata: Vec<(String, String)>,
}

/// One file of a revision.
#[derive(Clone, Debug, PartialEq)]
pub struct ManifestFile {
    /// Its path inside the revision.
    pub path: FilePath,
    /// Its bytes.
    pub size: u64,
    /// For transfer: the blob's name.
    pub blake3: BlobHash,
    /// For clients that check this one.
    pub sha256: [u8; 32],
    /// The git blob's id.
    pub git_sha1: [u8; 20],
    /// Bytes before the first tensor; 0 for files without tensors.
    pub header_bytes: u64,
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Index into [`Manifest::files`].
    pub file: u32,
    /// From the file's first byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
}

/// Why bytes are not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than any manifest may be.
    #[error("the manifest has {0} bytes, at most {MANIFEST_BYTES_MAX} are accepted")]
    TooLarge(usize),
    /// Not protobuf, or a field of a wrong length.
    #[error("the manifest is malformed: {0}")]
    Malformed(&'static str),
    /// Another version.
    #[error("the manifest's version is {0}, version {VERSION} is understood")]
    UnknownVersion(u32),
    /// A longer message than is accepted.
    #[error("the message has {0} bytes, at most {MESSAGE_BYTES_MAX} are accepted")]
    MessageTooLong(usize),
    /// More of something than is accepted.
    #[error("the manifest has too many {0}")]
    TooMany(&'static str),
    /// A path that can't be exported.
    #[error("the manifest names an impossible file: {0}")]
    Path(#[from] PathError),
    /// Two files in one place, or a file where another needs a folder.
    #[error("`{0}` collides with another path of the manifest when case is ignored")]
    PathCollision(String),
    /// A file whose numbers or digests contradict each other.
    #[error("file `{path}`: {what}")]
    File {
        /// Its path.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A tensor that lies nowhere, or on another.
    #[error("tensor `{name}`: {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A model whose shape can't be.
    #[error("the model's {0} is not possible")]
    Model(&'static str),
}

impl Manifest {
    /// The blob's bytes.
    pub fn encode(&self) -> Vec<u8> {
        record_pb::Manifest {
            version: VERSION,
            realm: self.realm.to_vec(),
            publisher: self.repo.publisher.to_vec(),
            kind: self.repo.kind.to_pb(),
            name: self.repo.name.to_string(),
            parents: self.parents.iter().map(RevisionId::to_vec).collect(),
            files: self.files.iter().map(file_to_pb).collect(),
            tensors: self.tensors.iter().map(tensor_to_pb).collect(),
            model: self.model.as_ref().map(Model::to_pb),
            message: self.message.clone(),
            created_ms: self.created_ms,
            metadata: self.metadata.iter().map(|(key, value)| entry_to_pb(key, value)).collect(),
        }
        .encode_to_vec()
    }

    /// From a blob's bytes. Costs at most a small multiple of their length in memory, whatever they say.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        count(bytes)?;
        let pb = record_pb::Manifest::decode(bytes).map_err(|_| ManifestError::Malformed("not protobuf"))?;
        from_pb(pb)
    }

    /// The revision's id: the hash of [`Manifest::encode`]. A manifest that came from elsewhere may hold fields that are not
    /// known here; its id is the hash of the bytes that came ([`BlobHash::of`]).
    pub fn id(&self) -> RevisionId {
        BlobHash::of(&self.encode()).into()
    }

    /// Checks what a publisher put together, as every receiver will: the id and the blob's bytes, or what is wrong.
    pub fn seal(&self) -> Result<(RevisionId, Vec<u8>), ManifestError> {
        let bytes = self.encode();
        Self::parse(&bytes)?;
        Ok((BlobHash::of(&bytes).into(), bytes))
    }

    /// The tensor of that name; one pass over all.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The file at that path; one pass over all.
    pub fn file(&self, path: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.path.as_str() == path)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl From<BlobHash> for RevisionId {
    fn from(hash: BlobHash) -> Self {
        (*hash.as_bytes()).into()
    }
}

/// Bounds every repeated field before anything is allocated for it.
fn count(bytes: &[u8]) -> Result<(), ManifestError> {
    let (mut parents, mut files, mut tensors, mut entries) = (0, 0, 0, 0);
    let mut excess = None;
    let walked = walk(bytes, |field| {
        let (seen, max, what) = match field.number {
            6 => (&mut parents, PARENTS_MAX, "parents"),
            7 => (&mut files, MANIFEST_FILES_MAX, "files"),
            8 => (&mut tensors, MANIFEST_TENSORS_MAX, "tensors"),
            12 => (&mut entries, MANIFEST_ENTRIES_MAX, "metadata entries"),
            _ => return Some(()),
        };
        *seen += 1;
        let nested = field.number == 7 && digests(field.bytes?)? > DIGESTS_MAX;
        if *seen > max || nested {
            excess = Some(if nested { "digests" } else { what });
            return None;
        }
        Some(())
    });
    match (walked, excess) {
        (_, Some(what)) => Err(ManifestError::TooMany(what)),
        (None, None) => Err(ManifestError::Malformed("not protobuf")),
        (Some(()), None) => Ok(()),
    }
}

fn digests(file: &[u8]) -> Option<usize> {
    let mut count = 0;
    walk(file, |field| {
        count += usize::from(field.number == 3);
        Some(())
    })?;
    Some(count)
}

fn from_pb(pb: record_pb::Manifest) -> Result<Manifest, ManifestError> {
    if pb.version != VERSION {
        return Err(ManifestError::UnknownVersion(pb.version));
    }
    if pb.message.len() > MESSAGE_BYTES_MAX {
        return Err(ManifestError::MessageTooLong(pb.message.len()));
    }
    let repo = RepoId {
        publisher: PublisherKey::try_from(&pb.publisher[..]).map_err(|_| ManifestError::Malformed("publisher"))?,
        kind: RepoKind::from_pb(pb.kind).ok_or(ManifestError::Malformed("kind"))?,
        name: pb.name.parse().map_err(|_| ManifestError::Malformed("name"))?,
    };
    let files = pb.files.iter().map(file_from_pb).collect::<Result<Vec<_>, _>>()?;
    check_paths(&files)?;
    let total = files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size));
    if total.is_none_or(|total| total > FILE_BYTES_MAX) {
        return Err(ManifestError::TooMany("bytes"));
    }
    let tensors = pb.tensors.into_iter().map(|tensor| tensor_from_pb(tensor, &files)).collect::<Result<Vec<_>, _>>()?;
    check_tensors(&tensors)?;
    Ok(Manifest {
        realm: RealmId::try_from(&pb.realm[..]).map_err(|_| ManifestError::Malformed("realm"))?,
        repo,
        parents: parents_from_pb(&pb.parents)?,
        files,
        tensors,
        model: pb.model.map(Model::from_pb).transpose().map_err(ManifestError::Model)?,
        message: pb.message,
        created_ms: pb.created_ms,
        metadata: metadata_from_pb(pb.metadata)?,
    })
}

fn parents_from_pb(parents: &[Vec<u8>]) -> Result<Vec<RevisionId>, ManifestError> {
    let wrong = ManifestError::Malformed("parents");
    let ids = parents.iter().map(|id| RevisionId::try_from(&id[..]).map_err(|_| wrong.clone()));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    match ids.iter().collect::<HashSet<_>>().len() == ids.len() {
        true => Ok(ids),
        false => Err(wrong),
    }
}

fn metadata_from_pb(entries: Vec<record_pb::Entry>) -> Result<Vec<(String, String)>, ManifestError> {
    let mut keys = HashSet::new();
    for entry in &entries {
        if entry.key.is_empty() || entry.key.len() + entry.value.len() > ENTRY_BYTES_MAX || !keys.insert(&entry.key) {
            return Err(ManifestError::Malformed("metadata"));
        }
    }
    Ok(entries.into_iter().map(|entry| (entry.key, entry.value)).collect())
}

fn entry_to_pb(key: &str, value: &str) -> record_pb::Entry {
    record_pb::Entry { key: key.to_owned(), value: value.to_owned() }
}

fn file_to_pb(file: &ManifestFile) -> record_pb::File {
    let digests =
        [Digest::Blake3(*file.blake3.as_bytes()), Digest::Sha256(file.sha256), Digest::GitSha1(file.git_sha1)];
    record_pb::File {
        path: file.path.to_string(),
        size: file.size,
        digests: digests.iter().map(Digest::to_pb).collect(),
        header_bytes: file.header_bytes,
    }
}

fn file_from_pb(pb: &record_pb::File) -> Result<ManifestFile, ManifestError> {
    let path: FilePath = pb.path.parse()?;
    let wrong = |what| ManifestError::File { path: path.to_string(), what };
    let (mut blake3, mut sha256, mut git_sha1) = (None, None, None);
    for digest in &pb.digests {
        let again = match Digest::from_pb(digest).map_err(|_| wrong("a digest has a wrong length"))? {
            Some(Digest::Blake3(bytes)) => blake3.replace(bytes).is_some(),
            Some(Digest::Sha256(bytes)) => sha256.replace(bytes).is_some(),
            Some(Digest::GitSha1(bytes)) => git_sha1.replace(bytes).is_some(),
            None => false,
        };
        if again {
            return Err(wrong("a digest is given twice"));
        }
    }
    if pb.size > FILE_BYTES_MAX || pb.header_bytes > pb.size {
        return Err(wrong("its size is not possible"));
    }
    Ok(ManifestFile {
        size: pb.size,
        blake3: blake3.ok_or_else(|| wrong("no BLAKE3 digest"))?.into(),
        sha256: sha256.ok_or_else(|| wrong("no SHA-256 digest"))?,
        git_sha1: git_sha1.ok_or_else(|| wrong("no git SHA-1 digest"))?,
        header_bytes: pb.header_bytes,
        path,
    })
}

/// No two files in one place, no file where another needs a folder, whatever the system thinks of case.
fn check_paths(files: &[ManifestFile]) -> Result<(), ManifestError> {
    let mut folded: Vec<(String, &FilePath)> = files.iter().map(|file| (file.path.folded(), &file.path)).collect();
    // With '/' lowest, everything inside a folder directly follows the name of that folder.
    folded.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
    for pair in folded.windows(2) {
        let [(before, _), (after, path)] = pair else { continue };
        let inside = after.strip_prefix(before.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if inside {
            return Err(ManifestError::PathCollision(path.to_string()));
        }
    }
    Ok(())
}

fn tensor_to_pb(tensor: &TensorEntry) -> record_pb::Tensor {
    record_pb::Tensor {
        name: tensor.name.clone(),
        file: tensor.file,
        offset: tensor.offset,
        length: tensor.length,
        dtype: tensor.dtype.to_pb(),
        shape: tensor.shape.clone(),
    }
}

fn tensor_from_pb(pb: record_pb::Tensor, files: &[ManifestFile]) -> Result<TensorEntry, ManifestError> {
    if pb.name.is_empty() || pb.name.len() > TENSOR_NAME_BYTES_MAX {
        return Err(ManifestError::Malformed("tensor name"));
    }
    let wrong = |what| ManifestError::Tensor { name: pb.name.clone(), what };
    let file = files.get(pb.file as usize).ok_or_else(|| wrong("its file is not in the manifest"))?;
    let end = pb.offset.checked_add(pb.length).filter(|end| *end <= file.size);
    if end.is_none() || pb.offset < file.header_bytes {
        return Err(wrong("it lies outside of its file"));
    }
    if pb.shape.len() > TENSOR_DIMENSIONS_MAX {
        return Err(wrong("it has too many dimensions"));
    }
    let count = elements(&pb.shape).ok_or_else(|| wrong("its shape overflows"))?;
    // A type that a later version knows is one whose size is not known here.
    let dtype = Dtype::from_pb(pb.dtype).unwrap_or(Dtype::Other);
    if dtype != Dtype::Other && dtype.bytes_for(count) != Some(pb.length) {
        return Err(wrong("its shape and its length disagree"));
    }
    Ok(TensorEntry { name: pb.name, file: pb.file, offset: pb.offset, length: pb.length, dtype, shape: pb.shape })
}

/// Names are unique and no two tensors share a byte.
fn check_tensors(tensors: &[TensorEntry]) -> Result<(), ManifestError> {
    let mut names = HashSet::with_capacity(tensors.len());
    let mut by_file: HashMap<u32, Vec<&TensorEntry>> = HashMap::new();
    for tensor in tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(ManifestError::Tensor { name: tensor.name.clone(), what: "its name occurs twice" });
        }
        by_file.entry(tensor.file).or_default().push(tensor);
    }
    for tensors in by_file.values_mut() {
        tensors.sort_by_key(|tensor| (tensor.offset, tensor.length));
        for pair in tensors.windows(2) {
            if pair[0].offset + pair[0].length > pair[1].offset {
                return Err(ManifestError::Tensor { name: pair[1].name.clone(), what: "it overlaps another" });
            }
        }
    }
    Ok(())
}
