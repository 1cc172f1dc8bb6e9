//! Blobs that are here in part, as a pull that was cut short or a stage leaves them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init)] // A test may fail loudly.

mod house;

use std::ops::Range;

use cairn_protocol::{BlobHash, RefName};
use cairn_registry::{BlobError, Blobs, ExportError, PinClass, Problem, Transfer};
use house::{House, bytes, key, repo, sign};
use iroh_blobs::{
    Hash,
    protocol::{ChunkRanges, ChunkRangesExt},
};

const SIZE: usize = (8 << 20) + 17;

/// Moves a byte range from one store to another, verified, as a transfer does.
async fn carry(from: &Blobs, to: &Blobs, blob: BlobHash, range: Range<u64>) {
    let hash = Hash::from_bytes(*blob.as_bytes());
    let chunks = ChunkRanges::bytes(range);
    let encoded = from.store().export_bao(hash, chunks.clone()).bao_to_vec().await.unwrap();
    to.store().import_bao_bytes(hash, chunks, encoded).await.unwrap();
}

/// A revision with one file, published in the first house; the second knows its records and has its manifest.
async fn two_houses() -> (House, House, cairn_protocol::RevisionId, BlobHash) {
    let (a, b) = (House::new().await, House::new().await);
    let source = a.source("a", &[("big.bin", bytes(SIZE, 1))]);
    let repo = repo(&key(1), "a");
    let prepared = a.prepare(&source, &repo, 1).await.unwrap();
    let manifest = prepared.manifest.encode();
    let blob = prepared.manifest.files[0].blake3;
    let next = a.registry.next_head(&repo, &RefName::main()).await.unwrap();
    let records = sign(&prepared, &key(1), next);
    let published = a.registry.commit(prepared, records.clone()).await.unwrap();
    b.registry.insert_page(records).await.unwrap();
    b.registry.blobs().add(manifest).await.unwrap();
    (a, b, published.revision, blob)
}

#[tokio::test]
async fn a_range_that_is_here_reads_and_what_lies_beside_it_does_not() {
    let (a, b, revision, blob) = two_houses().await;
    let (from, to) = (a.registry.blobs(), b.registry.blobs());
    let _pin = to.temp_pin(blob).await;
    carry(from, to, blob, 3 << 20..4 << 20).await;
    assert_eq!(to.local_ranges(blob).await.unwrap(), [3 << 20..4 << 20]);
    assert_eq!(to.missing(blob, SIZE as u64, &[0..SIZE as u64]).await.unwrap(), [0..3 << 20, 4 << 20..SIZE as u64]);
    let read = to.read(blob, (3 << 20) + 5..(4 << 20) - 5).await.unwrap();
    assert_eq!(read, bytes(SIZE, 1)[(3 << 20) + 5..(4 << 20) - 5]);
    let beside = to.read(blob, (3 << 20) - 1..3 << 20).await;
    assert!(matches!(beside, Err(BlobError::NotHeld { .. })), "{beside:?}");

    let holding = b.registry.held(revision).await.unwrap();
    assert_eq!((holding.whole, holding.bytes_held, holding.bytes_total), (false, 1 << 20, Some(SIZE as u64)));
    let report = b.registry.verify(revision, |_| {}).await.unwrap();
    assert_eq!(report.bad[0].problem, Problem::Incomplete { held: 1 << 20, size: SIZE as u64 });
    assert_eq!(report.bytes, 1 << 20, "it counts what it read");
    assert!(report.damaged().is_empty(), "what is missing is not damaged");
    let out = b.folder.path().join("out");
    let refused = b.registry.export(revision, &["big.bin".parse().unwrap()], &out, Transfer::Copy, |_| {}).await;
    assert!(matches!(refused, Err(ExportError::NotHeld { .. })), "{refused:?}");
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn a_pull_that_was_cut_short_goes_on_from_what_is_here_after_a_reopening() {
    let (a, b, revision, blob) = two_houses().await;
    carry(a.registry.blobs(), b.registry.blobs(), blob, 0..5 << 20).await;
    b.registry.pin(revision, PinClass::Record).await.unwrap();
    let b = b.reopen().await;
    b.registry.blobs().collect().await.unwrap();
    let missing = b.registry.blobs().missing(blob, SIZE as u64, &[0..SIZE as u64]).await.unwrap();
    assert_eq!(missing, [5 << 20..SIZE as u64]);
    carry(a.registry.blobs(), b.registry.blobs(), blob, missing[0].clone()).await;
    b.registry.pin(revision, PinClass::Record).await.unwrap();
    let b = b.reopen().await;
    assert!(b.registry.verify(revision, |_| {}).await.unwrap().ok);
    assert!(b.registry.held(revision).await.unwrap().whole);
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn a_part_in_the_stage_cache_counts_what_it_holds_and_goes_when_there_is_no_room() {
    let (a, b, revision, blob) = two_houses().await;
    let blobs = b.registry.blobs();
    carry(a.registry.blobs(), blobs, blob, 0..1 << 20).await;
    b.registry.pin(revision, PinClass::StageCache { now_ms: 1, bytes_max: 2 << 20 }).await.unwrap();
    let cached = blobs.stage_blobs().await.unwrap();
    assert_eq!(cached.iter().find(|cached| cached.hash == blob).unwrap().bytes, 1 << 20);
    blobs.collect().await.unwrap();
    assert_eq!(blobs.bytes_held(blob).await.unwrap(), 1 << 20);

    let newer = blobs.add(bytes(3 << 20, 9)).await.unwrap();
    let evicted = blobs.protect_stage(&[newer.hash()], 2, 3 << 20).await.unwrap();
    assert!(evicted.contains(&blob));
    blobs.collect().await.unwrap();
    assert_eq!(blobs.bytes_held(blob).await.unwrap(), 0);
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn bytes_that_do_not_fit_the_hash_do_not_come_in() {
    let (a, b, _, blob) = two_houses().await;
    let (from, to) = (a.registry.blobs(), b.registry.blobs());
    let hash = Hash::from_bytes(*blob.as_bytes());
    let chunks = ChunkRanges::bytes(0..1u64 << 20);
    let mut encoded = from.store().export_bao(hash, chunks.clone()).bao_to_vec().await.unwrap();
    let end = encoded.len() - 100;
    encoded[end] ^= 1;
    assert!(to.store().import_bao_bytes(hash, chunks, encoded).await.is_err());
    let held = to.local_ranges(blob).await.unwrap();
    let altered = (1 << 20) - 100;
    assert!(!held.iter().any(|range| range.contains(&altered)), "{held:?}");
    a.registry.close().await;
    b.registry.close().await;
}
