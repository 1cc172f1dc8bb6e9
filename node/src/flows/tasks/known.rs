//! What is known of a revision as a task: what it is for and how, from its small files. Read once, kept for some models.
//!
//! Invariant: what is kept was read from files that were verified against the revision's hashes, which never change.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use cairn_compute::tasks::{self, Files, LoadError, SMALL_FILES, Task, embed::Recipe};
use cairn_protocol::{
    id::RevisionId,
    manifest::{Manifest, ManifestFile},
    refusal::{Reason, Refusal},
};

use crate::{data::fetch::Source, shell::Node, stages};

/// Revisions that are remembered.
const KNOWN_MAX: usize = 64;
/// Largest of the small files.
const SMALL_BYTES_MAX: u64 = 4 << 20;

/// A revision whose task is served.
#[derive(Debug)]
pub(crate) struct Known {
    /// Its small files, index and listing; no tokenizer.
    pub files: Files,
    /// How it makes vectors.
    pub recipe: Recipe,
}

/// What is known, the last used at the end.
#[derive(Default)]
pub(crate) struct KnownTasks {
    /// Guards the list; never held across an await.
    kept: Mutex<VecDeque<(RevisionId, Arc<Known>)>>,
}

impl KnownTasks {
    fn get(&self, revision: RevisionId) -> Option<Arc<Known>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| *known == revision)?;
        let entry = kept.remove(at)?;
        let known = entry.1.clone();
        kept.push_back(entry);
        Some(known)
    }

    fn put(&self, revision: RevisionId, known: Arc<Known>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((revision, known));
        if kept.len() > KNOWN_MAX {
            kept.pop_front();
        }
    }
}

/// What the revision is for; a refusal that names its task when that is not served.
pub(super) async fn known(
    node: &Node,
    repo: &str,
    revision: RevisionId,
    manifest: &Manifest,
    sources: &[Source],
) -> Result<Arc<Known>, Refusal> {
    if let Some(known) = node.known_tasks.get(revision) {
        return Ok(known);
    }
    let files = small_files(node, manifest, sources).await?;
    check_task(repo, &files)?;
    let recipe = Recipe::read(&files).map_err(|error| unserved(repo, &error))?;
    let known = Arc::new(Known { files, recipe });
    node.known_tasks.put(revision, known.clone());
    Ok(known)
}

async fn small_files(node: &Node, manifest: &Manifest, sources: &[Source]) -> Result<Files, Refusal> {
    let mut files = Files {
        tensors: manifest.tensors.clone(),
        listing: manifest.files.iter().map(|file| (file.path.to_string(), file.size)).collect(),
        ..Files::default()
    };
    for path in SMALL_FILES {
        add(node, manifest, sources, &mut files, path).await?;
    }
    let named = files.small("modules.json").map(tasks::embed::named_files).unwrap_or_default();
    for path in named {
        add(node, manifest, sources, &mut files, &path).await?;
    }
    Ok(files)
}

async fn add(
    node: &Node,
    manifest: &Manifest,
    sources: &[Source],
    files: &mut Files,
    path: &str,
) -> Result<(), Refusal> {
    let Some(file) = file_of(manifest, path).filter(|file| file.size <= SMALL_BYTES_MAX) else { return Ok(()) };
    let bytes = read(node, file, sources).await?;
    files.small.insert(path.to_owned(), bytes.to_vec());
    Ok(())
}

/// A file of the revision by its path.
pub(super) fn file_of<'a>(manifest: &'a Manifest, path: &str) -> Option<&'a ManifestFile> {
    manifest.files.iter().find(|file| file.path.as_str() == path)
}

/// A whole file, fetched if it is not here.
pub(super) async fn read(node: &Node, file: &ManifestFile, sources: &[Source]) -> Result<Bytes, Refusal> {
    let blobs = node.registry.blobs();
    let pin = blobs.temp_pin(file.blake3).await;
    let whole = 0..file.size;
    let wanted = std::slice::from_ref(&whole);
    let fetched = node.data.fetch_ranges(node, file.blake3, file.size, wanted, sources, |_| {}).await?;
    if fetched.bytes_fetched > 0 {
        stages::keep(node, &[file.blake3]).await?;
    }
    let read = blobs.read(file.blake3, whole).await;
    drop(pin);
    read.map_err(|e| Refusal::new(Reason::Corrupt, file.path.to_string(), e.to_string()).try_this("cairn verify"))
}

fn check_task(repo: &str, files: &Files) -> Result<(), Refusal> {
    let refuse = |why: String, attempt: &str| Err(Refusal::new(Reason::Unsupported, repo, why).try_this(attempt));
    let served = tasks::served_words();
    match files.card().task() {
        Task::Served(_) => Ok(()),
        Task::Unserved(tag) if tag == "text-generation" => {
            refuse(format!("its task is {tag}, which is not one of a single node (served: {served})"), "cairn run")
        }
        Task::Unserved(tag) => {
            refuse(format!("its task is {tag}, which is not served (served: {served})"), "another model")
        }
        Task::Unknown => refuse(
            format!("its files do not say what it is for (served: {served})"),
            "a pipeline_tag in its README's front matter",
        ),
    }
}

/// What a model that can't be computed means for people.
pub(super) fn unserved(repo: &str, error: &LoadError) -> Refusal {
    let (reason, attempt) = match error {
        LoadError::Malformed { .. } | LoadError::Tensor { .. } => {
            (Reason::Corrupt, "its publisher, to publish it again")
        }
        LoadError::Source { .. } => (Reason::Corrupt, "cairn verify"),
        LoadError::Memory(_) => (Reason::NoMemory, "another node, or a smaller model"),
        LoadError::Missing(_) | LoadError::Unserved { .. } | LoadError::Tokenizer(_) => {
            (Reason::Unsupported, "another model")
        }
    };
    Refusal::new(reason, repo, error.to_string()).try_this(attempt)
}
