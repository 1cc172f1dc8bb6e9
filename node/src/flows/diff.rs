//! What differs between two revisions: their files, and the tensors in files that differ.
//!
//! Comparing is pure: two manifests in, changes out. Whether tensors of one shape hold the same bytes can be told only where both files are
//! here; it is asked for, since it reads them. Invariant: what was not compared is said to be unknown, never to be the same.

use std::collections::{BTreeMap, BTreeSet};

use cairn_protocol::{
    api,
    id::BlobHash,
    limits::PIECE_BYTES_MAX,
    manifest::{Manifest, ManifestFile, TensorEntry},
    name::RepoRef,
    refusal::Refusal,
};
use cairn_registry::Resolved;

use super::{holders, names};
use crate::shell::Node;

/// Changes of tensors that one answer lists.
const TENSORS_MAX: usize = 10_000;

/// Answers `Diff`.
pub async fn diff(node: &Node, request: api::DiffRequest) -> Result<api::DiffResponse, Refusal> {
    let (from_at, before) = side(node, &request.repo, &request.from).await?;
    let (to_at, after) = side(node, &request.repo, &request.to).await?;
    let files = file_changes(&before, &after);
    let mut tensors = tensor_changes(&before, &after);
    if request.bytes {
        for change in &mut tensors.open {
            change.is_same = same_bytes(node, &change.before, &change.after).await;
        }
    }
    let (bytes_new, bytes_shared) = bytes(&before, &after);
    let (changes, same) = tensors.told();
    Ok(api::DiffResponse {
        repo: to_at.path.clone(),
        from: from_at.revision.to_string(),
        to: to_at.revision.to_string(),
        files,
        tensors: changes,
        tensors_same: same,
        bytes_new,
        bytes_shared,
        metadata: metadata(&before, &after),
    })
}

/// One of the two: a ref or hash prefix of the repo, or a name of its own.
async fn side(node: &Node, repo: &str, at: &str) -> Result<(Resolved, Manifest), Refusal> {
    let name: RepoRef = match at.contains('/') && names::parse(at).is_ok_and(|name| name.spec.is_some()) {
        true => names::parse(at)?,
        false => names::parse(&format!("{repo}@{}", at.trim_start_matches('@')))?,
    };
    let resolved = names::resolve_anywhere(node, &name).await?;
    let manifest = holders::manifest_of(node, &resolved).await?;
    Ok((resolved, manifest))
}

fn by_path(manifest: &Manifest) -> BTreeMap<&str, &ManifestFile> {
    manifest.files.iter().map(|file| (file.path.as_str(), file)).collect()
}

fn file_changes(before: &Manifest, after: &Manifest) -> Vec<api::FileChange> {
    let (old, new) = (by_path(before), by_path(after));
    let gone: BTreeMap<BlobHash, &str> =
        old.iter().filter(|(path, _)| !new.contains_key(*path)).map(|(path, file)| (file.blake3, *path)).collect();
    let mut moved = BTreeSet::new();
    let mut changes = Vec::new();
    for (path, file) in &new {
        let (change, was, path_before) = match (old.get(path), gone.get(&file.blake3)) {
            (Some(was), _) if was.blake3 == file.blake3 => continue,
            (Some(was), _) => ("changed", was.size, ""),
            (None, Some(from)) if moved.insert(*from) => ("renamed", file.size, *from),
            (None, _) => ("added", 0, ""),
        };
        changes.push(change_of(path, change, was, file.size, path_before));
    }
    let removed = old.iter().filter(|(path, _)| !new.contains_key(*path) && !moved.contains(*path));
    changes.extend(removed.map(|(path, file)| change_of(path, "removed", file.size, 0, "")));
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn change_of(path: &str, change: &str, size_before: u64, size_after: u64, path_before: &str) -> api::FileChange {
    api::FileChange {
        path: path.to_owned(),
        change: change.to_owned(),
        size_before,
        size_after,
        path_before: path_before.to_owned(),
    }
}

/// Bytes of `after` that are not in `before`, and those that are: a file is fetched whole unless its hash is here.
fn bytes(before: &Manifest, after: &Manifest) -> (u64, u64) {
    let old: BTreeSet<BlobHash> = before.files.iter().map(|file| file.blake3).collect();
    let mut seen = BTreeSet::new();
    let (mut new, mut shared) = (0, 0);
    for file in after.files.iter().filter(|file| seen.insert(file.blake3)) {
        match old.contains(&file.blake3) {
            true => shared += file.size,
            false => new += file.size,
        }
    }
    (new, shared)
}

/// Where a tensor's bytes lie.
struct Located {
    blob: BlobHash,
    offset: u64,
    length: u64,
}

/// A tensor of the same shape and type on both sides, in files that differ.
struct Open {
    name: String,
    shape: String,
    before: Located,
    after: Located,
    /// Whether the bytes are the same, as far as that was looked at.
    is_same: Option<bool>,
}

#[derive(Default)]
struct TensorChanges {
    changes: Vec<api::TensorChange>,
    open: Vec<Open>,
    same: u64,
}

impl TensorChanges {
    /// The changes in order of name, and how many tensors are the same.
    fn told(mut self) -> (Vec<api::TensorChange>, u64) {
        for open in self.open {
            match open.is_same {
                Some(true) => self.same += 1,
                Some(false) => self.changes.push(tensor(&open.name, "changed", &open.shape, &open.shape)),
                None => self.changes.push(tensor(&open.name, "unknown", &open.shape, &open.shape)),
            }
        }
        self.changes.sort_by(|a, b| a.name.cmp(&b.name));
        self.changes.truncate(TENSORS_MAX);
        (self.changes, self.same)
    }
}

fn tensor_changes(before: &Manifest, after: &Manifest) -> TensorChanges {
    let of = |manifest: &Manifest| -> BTreeMap<String, TensorEntry> {
        manifest.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect()
    };
    let (old, new) = (of(before), of(after));
    let mut found = TensorChanges::default();
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        match (old.get(name), new.get(name)) {
            (Some(was), None) => found.changes.push(tensor(name, "removed", &shape(was), "")),
            (None, Some(is)) => found.changes.push(tensor(name, "added", "", &shape(is))),
            (Some(was), Some(is)) if was.shape != is.shape => {
                found.changes.push(tensor(name, "reshaped", &shape(was), &shape(is)));
            }
            (Some(was), Some(is)) if was.dtype != is.dtype => {
                found.changes.push(tensor(name, "retyped", &shape(was), &shape(is)));
            }
            (Some(was), Some(is)) => compare(&mut found, name, (before, was), (after, is)),
            (None, None) => {}
        }
    }
    found
}

fn compare(found: &mut TensorChanges, name: &str, was: (&Manifest, &TensorEntry), is: (&Manifest, &TensorEntry)) {
    let (Some(before), Some(after)) = (located(was), located(is)) else { return };
    if (before.blob, before.offset, before.length) == (after.blob, after.offset, after.length) {
        found.same += 1;
        return;
    }
    found.open.push(Open { name: name.to_owned(), shape: shape(is.1), before, after, is_same: None });
}

fn located((manifest, tensor): (&Manifest, &TensorEntry)) -> Option<Located> {
    let file = manifest.files.get(tensor.file as usize)?;
    Some(Located { blob: file.blake3, offset: tensor.offset, length: tensor.length })
}

/// Whether two tensors hold the same bytes; `None` if one of them is not here.
async fn same_bytes(node: &Node, before: &Located, after: &Located) -> Option<bool> {
    if before.length != after.length {
        return Some(false);
    }
    let blobs = node.registry.blobs();
    let mut done = 0;
    while done < before.length {
        let end = before.length.min(done + PIECE_BYTES_MAX as u64);
        let was = blobs.read(before.blob, before.offset + done..before.offset + end).await.ok()?;
        let is = blobs.read(after.blob, after.offset + done..after.offset + end).await.ok()?;
        if was != is {
            return Some(false);
        }
        done = end;
    }
    Some(true)
}

fn shape(tensor: &TensorEntry) -> String {
    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    format!("{} [{}]", tensor.dtype.name(), shape.join(", "))
}

fn tensor(name: &str, change: &str, before: &str, after: &str) -> api::TensorChange {
    api::TensorChange {
        name: name.to_owned(),
        change: change.to_owned(),
        before: before.to_owned(),
        after: after.to_owned(),
    }
}

/// What the publisher says of it that is not what it said before.
fn metadata(before: &Manifest, after: &Manifest) -> Vec<String> {
    let lines = |manifest: &Manifest| -> BTreeSet<String> {
        manifest.metadata.iter().map(|(key, value)| format!("{key}: {value}")).collect()
    };
    let (old, new) = (lines(before), lines(after));
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    gone.chain(new.difference(&old).map(|line| format!("+ {line}"))).collect()
}
