//! Brings wanted bytes of a revision here, several files at once, and pins them. Pulls, mirrors and reads share it.
//!
//! Which bytes are wanted is a [`Selection`], turned into ranges by pure functions; how one blob travels is
//! [`crate::data::fetch`]'s. Invariant: what was brought is pinned from before its first byte until the record-class pin is
//! durable; dropping the flow leaves what arrived for the next attempt.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cairn_compute::arch::{self, StagePart};
use cairn_protocol::{
    id::{BlobHash, RevisionId},
    layers::LayerRange,
    manifest::{Manifest, ManifestFile},
    refusal::{Reason, Refusal},
};
use cairn_registry::{HoldError, PinClass};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use globset::{Glob, GlobSet, GlobSetBuilder};

use super::{announce, disk, holders};
use crate::{
    data::fetch::{FetchError, FetchReport, Source},
    shell::Node,
};

/// Files fetched at the same time: enough to hide round trips of small ones; each may have several pieces under way.
const FILES_AT_ONCE: usize = 4;
/// Patterns of one request.
const GLOBS_MAX: usize = 64;

/// Which part of a revision is wanted.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only files that one of these matches; all if there is none.
    pub include: Vec<String>,
    /// Only the tensors of these layers, and the headers that say where they lie.
    pub layers: Option<LayerRange>,
}

/// What is wanted of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The first file that has these bytes.
    pub path: String,
    /// The blob.
    pub hash: BlobHash,
    /// Its bytes.
    pub size: u64,
    /// Which of them.
    pub ranges: Vec<Range<u64>>,
}

/// The wanted ranges, one entry for each different blob.
pub fn select(manifest: &Manifest, selection: &Selection) -> Result<Vec<Wanted>, Refusal> {
    let globs = globs(&selection.include)?;
    let mut wanted: BTreeMap<BlobHash, Wanted> = BTreeMap::new();
    let mut want = |file: &ManifestFile, range: Range<u64>| {
        let entry = wanted.entry(file.blake3).or_insert_with(|| Wanted {
            path: file.path.to_string(),
            hash: file.blake3,
            size: file.size,
            ranges: Vec::new(),
        });
        entry.ranges.push(range);
    };
    for file in chosen(manifest, &globs, selection.layers.is_some()) {
        want(file, 0..file.size);
    }
    if let Some(layers) = selection.layers {
        for (file, range) in layer_ranges(manifest, layers)? {
            want(file, range);
        }
    }
    if wanted.is_empty() && !manifest.files.is_empty() {
        return Err(Refusal::new(Reason::NotFound, selection.include.join(", "), "no file of the revision matches")
            .try_this("cairn show REPO"));
    }
    Ok(wanted.into_values().collect())
}

/// The files that are wanted whole.
pub fn whole_files<'a>(manifest: &'a Manifest, selection: &Selection) -> Result<Vec<&'a ManifestFile>, Refusal> {
    Ok(chosen(manifest, &globs(&selection.include)?, selection.layers.is_some()))
}

/// With layers, only files that are named by a pattern are wanted whole.
fn chosen<'a>(manifest: &'a Manifest, globs: &Option<GlobSet>, has_layers: bool) -> Vec<&'a ManifestFile> {
    let is_chosen = |file: &&ManifestFile| match globs {
        Some(globs) => globs.is_match(file.path.as_str()),
        None => !has_layers,
    };
    manifest.files.iter().filter(is_chosen).collect()
}

fn layer_ranges(manifest: &Manifest, layers: LayerRange) -> Result<Vec<(&ManifestFile, Range<u64>)>, Refusal> {
    let what = format!("layers {layers}");
    let model = manifest.model.as_ref().filter(|model| arch::is_served(model)).ok_or_else(|| {
        Refusal::new(Reason::Unsupported, &what, "the revision is not of a model whose layers are known here")
            .try_this("--include")
    })?;
    if layers.is_empty() || layers.end > model.layers {
        let why = format!("the model has layers 0..{}", model.layers);
        return Err(Refusal::new(Reason::BadInput, &what, why).try_this("a range within them"));
    }
    let part = StagePart::of(layers, model.layers);
    let tensors = arch::stage_tensors(model, &manifest.tensors, &part)
        .map_err(|error| Refusal::new(Reason::Unsupported, &what, error.to_string()).try_this("--include"))?;
    let mut ranges = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let Some(file) = manifest.files.get(tensor.file as usize) else { continue };
        ranges.push((file, tensor.offset..tensor.offset.saturating_add(tensor.length)));
        ranges.push((file, 0..file.header_bytes));
    }
    Ok(ranges)
}

/// What patterns choose; `None` without any.
pub(super) fn globs(patterns: &[String]) -> Result<Option<GlobSet>, Refusal> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let bad = |pattern: &str, why: String| Refusal::new(Reason::BadInput, pattern, why).try_this("--include '*.json'");
    if patterns.len() > GLOBS_MAX {
        return Err(bad(&patterns[GLOBS_MAX], format!("at most {GLOBS_MAX} patterns are taken")));
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|error| bad(pattern, error.to_string()))?);
    }
    set.build().map(Some).map_err(|error| bad("--include", error.to_string()))
}

/// Fetches what is wanted and not here, then pins the revision in a class. `progress` hears how many of the wanted
/// bytes are here, and the path of a file that moved.
pub async fn bring(
    node: &Node,
    revision: RevisionId,
    wanted: &[Wanted],
    class: PinClass,
    progress: impl Fn(u64, &str) + Send + Sync,
) -> Result<FetchReport, Refusal> {
    let blobs = node.registry.blobs();
    let mut pins = vec![blobs.temp_pin(revision.blob()).await];
    for want in wanted {
        pins.push(blobs.temp_pin(want.hash).await);
    }
    let report = fetch_all(node, revision, wanted, progress).await?;
    node.registry.pin(revision, class).await.map_err(|error| hold_refusal(revision, error))?;
    if node.registry.held(revision).await.map_err(|error| hold_refusal(revision, error))?.whole {
        announce::keeps(node, revision).await;
    }
    drop(pins);
    Ok(report)
}

/// Fetches without pinning.
pub async fn fetch_all(
    node: &Node,
    revision: RevisionId,
    wanted: &[Wanted],
    progress: impl Fn(u64, &str) + Send + Sync,
) -> Result<FetchReport, Refusal> {
    let sources = match bytes_missing(node, wanted).await? {
        0 => Vec::new(),
        bytes => {
            disk::refuse_full(node, bytes)?;
            holders::find(node, revision).await
        }
    };
    let here = Arc::new(AtomicU64::new(0));
    let mut files = Vec::with_capacity(wanted.len());
    for want in wanted {
        let (sources, progress, here) = (&sources, &progress, here.clone());
        let file = async move {
            let before = AtomicU64::new(0);
            let advance = |bytes: u64| {
                let moved = bytes.saturating_sub(before.fetch_max(bytes, Ordering::Relaxed));
                let all = here.fetch_add(moved, Ordering::Relaxed) + moved;
                progress(all, &want.path);
            };
            fetch_one(node, revision, want, sources, advance).await
        };
        files.push(file.boxed());
    }
    let mut fetched = stream::iter(files).buffer_unordered(FILES_AT_ONCE);
    let mut report = FetchReport::default();
    while let Some(one) = fetched.try_next().await? {
        report.add(one);
    }
    Ok(report)
}

async fn fetch_one(
    node: &Node,
    revision: RevisionId,
    want: &Wanted,
    sources: &[Source],
    progress: impl Fn(u64) + Send + Sync,
) -> Result<FetchReport, Refusal> {
    let fetched = node.data.fetch_ranges(node, want.hash, want.size, &want.ranges, sources, progress).await;
    match fetched {
        Ok(report) => Ok(report),
        Err(FetchError::NoSource { .. }) => {
            Err(Refusal { what: want.path.clone(), ..holders::no_holder(node, revision).await })
        }
        Err(error) => Err(Refusal { what: want.path.clone(), ..error.into() }),
    }
}

/// Bytes of what is wanted that are not here.
pub(super) async fn bytes_missing(node: &Node, wanted: &[Wanted]) -> Result<u64, Refusal> {
    let mut bytes = 0;
    for want in wanted {
        let missing = node.registry.blobs().missing(want.hash, want.size, &want.ranges).await;
        let missing = missing.map_err(|error| Refusal::internal(&want.path, error))?;
        bytes += missing.iter().map(|range| range.end - range.start).sum::<u64>();
    }
    Ok(bytes)
}

/// What a holding that can't be told or changed means for people.
pub fn hold_refusal(revision: RevisionId, error: HoldError) -> Refusal {
    let why = error.to_string();
    let reason = match &error {
        HoldError::NoManifest(_) | HoldError::NotMirrored(_) => Reason::NotFound,
        HoldError::Manifest { .. } => Reason::Corrupt,
        HoldError::Catalog(error) if error.is_disk_full() => Reason::DiskFull,
        HoldError::Blobs(_) | HoldError::Catalog(_) => Reason::Internal,
    };
    Refusal::new(reason, format!("revision {}", revision.short()), why).try_this("cairn verify")
}

#[cfg(test)]
#[path = "bring_tests.rs"]
mod tests;
