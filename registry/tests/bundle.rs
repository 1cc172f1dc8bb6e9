//! Bundles: what one registry writes, another that never hears of it otherwise takes in, once, whole or not at all.
//!
//! Invariant under test: whatever a file of this name holds, nothing of it is visible unless all of it is sound, and no bytes of it make
//! the reader fall over.
#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use std::io;

use cairn_protocol::{Keypair, RealmId};
use cairn_registry::{Applied, BundleError, Manner, Registry, Selection, Summary, Wish, show_bundle};
use house::{House, bytes, head, key, profile, repo, revision};
use proptest::prelude::*;

/// More than one segment, and one that is not a multiple of anything.
const LARGE: usize = (9 << 20) + 12_345;

fn all() -> Wish {
    Wish { selection: Selection::Kept, records_only: false, since: None }
}

async fn written(house: &House, wish: Wish) -> Vec<u8> {
    let mut bundle = Vec::new();
    house.registry.create_bundle(wish, &mut bundle, |_| {}).await.unwrap();
    bundle
}

async fn apply(house: &House, bundle: &[u8]) -> Result<Applied, BundleError> {
    house.registry.apply_bundle(bundle, Manner::Whole, |_| {}).await
}

/// A house with a profile and a repo of files of all sizes that are stored differently.
async fn published(key: &Keypair) -> House {
    let house = House::new().await;
    house.registry.insert_here(vec![profile(key, "acme", 1)]).await.unwrap();
    let files =
        [("empty", Vec::new()), ("small", bytes(100, 1)), ("middle", bytes(70_000, 2)), ("large", bytes(LARGE, 3))];
    let source = house.source("tiny", &files);
    house.publish(&source, key, "tiny", 1).await;
    house
}

/// A repo of two small files, for tests that read it often.
async fn small(key: &Keypair) -> House {
    let house = House::new().await;
    house.registry.insert_here(vec![profile(key, "acme", 1)]).await.unwrap();
    let source = house.source("tiny", &[("a", bytes(300, 1)), ("b", bytes(40_000, 2))]);
    house.publish(&source, key, "tiny", 1).await;
    house
}

async fn is_untouched(registry: &Registry) -> bool {
    registry.live_records().await.unwrap() == 0 && registry.kept().await.unwrap().is_empty()
}

#[tokio::test]
async fn what_one_writes_another_resolves_keeps_and_reads() {
    let key = key(1);
    let (a, b) = (published(&key).await, House::new().await);
    let applied = apply(&b, &written(&a, all()).await).await.unwrap();
    assert_eq!((applied.totals.records, applied.totals.revisions, applied.totals.blobs), (3, 1, 3));
    assert_eq!((applied.new_records, applied.new_blobs), (3, 3));
    assert_eq!(applied.new_bytes, (100 + 70_000 + LARGE) as u64);
    assert_eq!(b.registry.bundle_summary().await.unwrap(), a.registry.bundle_summary().await.unwrap());
    let name = "acme/tiny".parse().unwrap();
    let resolved = b.registry.resolve(&name, &[]).await.unwrap();
    assert_eq!(resolved.revision, a.registry.resolve(&name, &[]).await.unwrap().revision);
    assert!(b.registry.keeps_whole(resolved.revision).await);
    let verified = b.registry.verify(resolved.revision, |_| {}).await.unwrap();
    assert!(verified.bad.is_empty(), "{verified:?}");
}

#[tokio::test]
async fn what_was_applied_outlives_a_restart_and_a_collection() {
    let key = key(1);
    let (a, b) = (published(&key).await, House::new().await);
    apply(&b, &written(&a, all()).await).await.unwrap();
    let b = b.reopen().await;
    b.registry.blobs().collect().await.unwrap();
    assert!(b.registry.keeps_whole(b.registry.kept().await.unwrap()[0]).await);
    assert!(b.registry.blobs().stage_blobs().await.unwrap().is_empty(), "the stage cache still counts the bundle");
}

#[tokio::test]
async fn a_bundle_that_is_applied_again_brings_nothing_new() {
    let (a, b) = (published(&key(1)).await, House::new().await);
    let bundle = written(&a, all()).await;
    apply(&b, &bundle).await.unwrap();
    let again = apply(&b, &bundle).await.unwrap();
    assert_eq!((again.new_records, again.new_blobs, again.new_bytes), (0, 0, 0));
    assert_eq!(again.totals.blobs, 3);
}

#[tokio::test]
async fn a_difference_holds_only_what_the_other_side_lacks() {
    let key = key(1);
    let (a, b) = (published(&key).await, House::new().await);
    apply(&b, &written(&a, all()).await).await.unwrap();
    let files = [("small", bytes(100, 9)), ("large", bytes(LARGE, 3))];
    let source = a.source("second", &files);
    a.publish(&source, &key, "tiny", 2).await;
    let since = Summary::parse(&b.registry.bundle_summary().await.unwrap().to_bytes()).unwrap();
    let wish = Wish { since: Some(since), ..all() };
    let difference = written(&a, wish).await;
    assert!(difference.len() < 10_000, "{} bytes for one small file", difference.len());
    let applied = apply(&b, &difference).await.unwrap();
    assert_eq!((applied.totals.records, applied.totals.blobs, applied.totals.bytes), (2, 1, 100));
    assert_eq!(b.registry.bundle_summary().await.unwrap(), a.registry.bundle_summary().await.unwrap());
    let missing = apply(&House::new().await, &difference).await.unwrap_err();
    assert!(matches!(missing, BundleError::Missing { .. }), "{missing}");
}

#[tokio::test]
async fn records_alone_bring_names_and_no_bytes() {
    let (a, b) = (published(&key(1)).await, House::new().await);
    let applied = apply(&b, &written(&a, Wish { records_only: true, ..all() }).await).await.unwrap();
    assert_eq!((applied.totals.records, applied.totals.revisions, applied.totals.blobs), (3, 0, 0));
    b.registry.resolve(&"acme/tiny".parse().unwrap(), &[]).await.unwrap();
    assert!(b.registry.kept().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_whole_catalogue_goes_also_where_no_byte_is_kept() {
    let (mine, other) = (key(1), key(2));
    let (a, b) = (published(&mine).await, House::new().await);
    a.registry.insert_here(vec![profile(&other, "else", 1), revision(&other, "far", 7)]).await.unwrap();
    let kept = apply(&b, &written(&a, all()).await).await.unwrap();
    assert_eq!(kept.totals.records, 3);
    let whole = Wish { selection: Selection::Catalogue, ..all() };
    let applied = apply(&b, &written(&a, whole).await).await.unwrap();
    assert_eq!((applied.totals.records, applied.new_records, applied.totals.revisions), (5, 2, 1));
    assert_eq!(b.registry.bundle_summary().await.unwrap(), a.registry.bundle_summary().await.unwrap());
}

/// A source that breaks off is what a killed apply saw; its registry is opened anew.
#[tokio::test]
async fn an_apply_that_broke_off_shows_nothing_and_goes_on_where_it_was() {
    let (a, b) = (published(&key(1)).await, House::new().await);
    let bundle = written(&a, all()).await;
    let broken = apply(&b, &bundle[..bundle.len() - (2 << 20)]).await.unwrap_err();
    assert!(matches!(broken, BundleError::Truncated { .. }), "{broken}");
    assert!(is_untouched(&b.registry).await);
    let b = b.reopen().await;
    b.registry.blobs().collect().await.unwrap();
    assert!(is_untouched(&b.registry).await);
    let applied = apply(&b, &bundle).await.unwrap();
    assert!(applied.new_bytes < 6 << 20, "{} bytes were taken in again", applied.new_bytes);
    assert_eq!(b.registry.bundle_summary().await.unwrap(), a.registry.bundle_summary().await.unwrap());
}

#[tokio::test]
async fn a_bundle_cut_off_anywhere_is_refused_and_shows_nothing() {
    let (a, b) = (small(&key(1)).await, House::new().await);
    let bundle = written(&a, all()).await;
    for length in (0..bundle.len()).step_by(97).chain(bundle.len() - 40..bundle.len()) {
        let cut = apply(&b, &bundle[..length]).await.unwrap_err();
        assert!(matches!(cut, BundleError::Truncated { .. } | BundleError::NotABundle), "{length} bytes: {cut}");
        assert!(show_bundle(&bundle[..length], |_| {}).await.is_err());
    }
    assert!(is_untouched(&b.registry).await);
}

#[tokio::test]
async fn a_bundle_of_another_realm_or_version_is_refused_with_the_reason() {
    let (a, b) = (small(&key(1)).await, House::new().await);
    let mut bundle = written(&a, all()).await;
    bundle[8] = 7;
    assert!(matches!(apply(&b, &bundle).await.unwrap_err(), BundleError::Version(7)));
    (bundle[8], bundle[12]) = (1, 1);
    let found = match apply(&b, &bundle).await.unwrap_err() {
        BundleError::Realm { found, .. } => found,
        other => panic!("{other}"),
    };
    assert_ne!(found, RealmId::PUBLIC);
    assert!(matches!(apply(&b, b"PK\x03\x04 and so on").await.unwrap_err(), BundleError::NotABundle));
}

/// 4 GiB are promised and 100 bytes are there: the length is what is refused, not the missing bytes.
#[tokio::test]
async fn a_length_larger_than_its_kind_permits_is_refused_before_memory_is_taken() {
    let (a, b) = (small(&key(1)).await, House::new().await);
    let bundle = written(&a, all()).await;
    for kind in [1, 2, 3, 4] {
        let mut hostile = bundle[..76].to_vec();
        hostile.extend_from_slice(&[kind, 0xff, 0xff, 0xff, 0xff]);
        hostile.extend_from_slice(&[0; 100]);
        let refused = apply(&b, &hostile).await.unwrap_err();
        assert!(matches!(refused, BundleError::Frame { at: 76, .. }), "kind {kind}: {refused}");
    }
}

#[tokio::test]
async fn bytes_that_no_record_asks_for_are_refused() {
    let (a, b) = (small(&key(1)).await, House::new().await);
    let bundle = written(&a, all()).await;
    let (records, rest) = split_records(&bundle);
    assert_eq!(records.len(), 3);
    let orphaned = [&bundle[..76], rest].concat();
    let refused = apply(&b, &orphaned).await.unwrap_err();
    assert!(refused.to_string().contains("no record before names"), "{refused}");
    assert!(is_untouched(&b.registry).await);
}

#[tokio::test]
async fn a_blob_that_no_manifest_before_needs_is_refused() {
    let (a, other, b) = (small(&key(1)).await, published(&key(2)).await, House::new().await);
    let (ours, theirs) = (written(&a, all()).await, written(&other, all()).await);
    let smuggled = [&ours[..first_segment(&ours)], &theirs[first_segment(&theirs)..]].concat();
    for refused in [apply(&b, &smuggled).await.map(drop), show_bundle(&smuggled[..], |_| {}).await.map(drop)] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("no manifest before needs"), "{refused}");
    }
    assert!(is_untouched(&b.registry).await);
}

/// Where records and manifests end.
fn first_segment(bundle: &[u8]) -> usize {
    let mut at = 76;
    while bundle[at] < 3 {
        at += 5 + u32::from_le_bytes(bundle[at + 1..at + 5].try_into().unwrap()) as usize;
    }
    at
}

fn split_records(bundle: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (mut records, mut rest) = (Vec::new(), &bundle[76..]);
    while rest[0] == 1 {
        let length = u32::from_le_bytes(rest[1..5].try_into().unwrap()) as usize;
        let (record, next) = rest.split_at(5 + length);
        records.push(record);
        rest = next;
    }
    (records, rest)
}

#[tokio::test]
async fn a_record_that_the_catalogue_refuses_refuses_all_unless_asked_to_keep_going() {
    let (good, stranger) = (key(1), key(2));
    let a = small(&good).await;
    let bundle = written(&a, all()).await;
    let (records, rest) = split_records(&bundle);
    let mut odd = head("odd", 1, 9, None);
    odd.publisher = Some(good.public());
    let odd = odd.sign(RealmId::PUBLIC, &stranger).unwrap().to_bytes();
    let odd = [&[1][..], &(odd.len() as u32).to_le_bytes(), &odd].concat();
    let mut forged = [&bundle[..76], &records.concat(), &odd, &rest[..rest.len() - 37]].concat();
    forged[44] += 1;
    let digest = digest_of(&forged);
    forged.extend([&[4, 32, 0, 0, 0][..], &digest].concat());
    let b = House::new().await;
    let refused = apply(&b, &forged).await.unwrap_err();
    assert!(matches!(refused, BundleError::Refused { .. }), "{refused}");
    assert!(is_untouched(&b.registry).await);
    let applied = b.registry.apply_bundle(&forged[..], Manner::KeepGoing, |_| {}).await.unwrap();
    assert_eq!((applied.refused.len(), applied.new_records, applied.kept.len()), (1, 3, 1));
}

/// What the digest at the end covers: everything but proof and data of segments.
fn digest_of(bundle: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bundle[..76]);
    let mut rest = &bundle[76..];
    while let Some((head, body)) = rest.split_first_chunk::<5>() {
        let length = u32::from_le_bytes(head[1..].try_into().unwrap()) as usize;
        let covered = if head[0] == 3 { 48 } else { length };
        hasher.update(head).update(&body[..covered]);
        rest = &body[length..];
    }
    *hasher.finalize().as_bytes()
}

#[tokio::test]
async fn showing_verifies_everything_and_needs_no_store() {
    let bundle = written(&published(&key(1)).await, all()).await;
    let shown = show_bundle(&bundle[..], |_| {}).await.unwrap();
    assert_eq!(shown.revisions.len(), 1);
    let tiny = &shown.revisions[0];
    assert_eq!((tiny.repo.to_string(), tiny.files, tiny.bytes), ("acme/tiny".to_owned(), 4, tiny.bytes_inside));
    let mut damaged = bundle.clone();
    let at = damaged.len() - (1 << 20);
    damaged[at] ^= 1;
    assert!(matches!(show_bundle(&damaged[..], |_| {}).await.unwrap_err(), BundleError::Corrupt { .. }));
}

/// A disk that takes so many bytes.
struct Full(usize);

impl tokio::io::AsyncWrite for Full {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        if self.0 < bytes.len() {
            return std::task::Poll::Ready(Err(io::ErrorKind::StorageFull.into()));
        }
        self.0 -= bytes.len();
        std::task::Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_full_disk_is_told_as_one() {
    let a = small(&key(1)).await;
    let full = a.registry.create_bundle(all(), &mut Full(5000), |_| {}).await.unwrap_err();
    assert!(matches!(full, cairn_registry::CreateError::Write(error) if error.kind() == io::ErrorKind::StorageFull));
}

#[tokio::test]
async fn a_repo_of_which_nothing_is_kept_makes_no_bundle() {
    let house = House::new().await;
    house.registry.insert_here(vec![revision(&key(1), "tiny", 1)]).await.unwrap();
    let wish = Wish { selection: Selection::These(vec![(repo(&key(1), "tiny"), None)]), ..all() };
    let refused = house.registry.create_bundle(wish, &mut Vec::new(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, cairn_registry::CreateError::NothingKept));
}

/// Changes of a sound bundle: (where in thousandths, what to do with it, with which byte).
fn changes() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    proptest::collection::vec((0usize..1000, 0u8..4, any::<u8>()), 1..4)
}

fn changed(bundle: &[u8], changes: &[(usize, u8, u8)]) -> Vec<u8> {
    let mut bundle = bundle.to_vec();
    for (place, what, byte) in changes {
        let at = bundle.len() * place / 1000;
        match what {
            0 => bundle[at] = bundle[at].wrapping_add(*byte | 1),
            1 => bundle.insert(at, *byte),
            2 => drop(bundle.remove(at)),
            _ => bundle.truncate(at.max(1)),
        }
    }
    bundle
}

#[test]
fn no_changed_bundle_panics_or_shows_anything_of_itself() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bundle = runtime.block_on(async { written(&small(&key(1)).await, all()).await });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 200, ..ProptestConfig::default() });
    let tried = runner.run(&changes(), |changes| {
        let hostile = changed(&bundle, &changes);
        prop_assume!(hostile != bundle);
        let (is_applied, is_shown, is_untouched) = runtime.block_on(async {
            // A new one each time: a part that is here already is skipped, whatever the bundle has in its place.
            let b = House::new().await;
            let (applied, shown) = (apply(&b, &hostile).await, show_bundle(&hostile[..], |_| {}).await);
            (applied.is_ok(), shown.is_ok(), is_untouched(&b.registry).await)
        });
        prop_assert!(!is_applied && !is_shown && is_untouched, "{} {} {}", is_applied, is_shown, is_untouched);
        Ok(())
    });
    tried.unwrap();
}
