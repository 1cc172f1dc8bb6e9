//! What a mirror's patterns keep, and what goes when one ends.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use cairn_protocol::{BlobHash, RefName, RevisionId};
use cairn_registry::{
    HoldError, PinClass,
    mirror::{Pattern, Policy},
};
use house::{House, bytes, key, profile, repo, sign};

/// Publishes a file at one house and has the other one hold it, unpinned but for the pins that this answers.
async fn bring(
    from: &House,
    to: &House,
    name: &str,
    file: Vec<u8>,
) -> (RevisionId, BlobHash, Vec<cairn_registry::TempPin>) {
    let key = key(1);
    let source = from.source(name, &[("a.bin", file.clone())]);
    let prepared = from.prepare(&source, &repo(&key, name), 1).await.unwrap();
    let (manifest, blob) = (prepared.manifest.encode(), prepared.manifest.files[0].blake3);
    let next = from.registry.next_head(&repo(&key, name), &RefName::main()).await.unwrap();
    let records = sign(&prepared, &key, next);
    let revision = from.registry.commit(prepared, records.clone()).await.unwrap().revision;
    to.registry.insert(profile(&key, "acme", 0)).await.unwrap();
    to.registry.insert_page(records).await.unwrap();
    let pins = vec![to.registry.blobs().add(manifest).await.unwrap(), to.registry.blobs().add(file).await.unwrap()];
    (revision, blob, pins)
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

#[tokio::test]
async fn the_end_of_a_pattern_frees_what_it_alone_kept_and_nothing_else() {
    let (a, b) = (House::new().await, House::new().await);
    let registry = &b.registry;
    let (alone, blob, pins_of_alone) = bring(&a, &b, "alone", bytes(50_000, 1)).await;
    let (pulled, _, pins_of_pulled) = bring(&a, &b, "pulled", bytes(60_000, 2)).await;
    let (twice, _, pins_of_twice) = bring(&a, &b, "twice", bytes(70_000, 3)).await;
    let (later, _, pins_of_later) = bring(&a, &b, "later", bytes(80_000, 4)).await;
    let (same, shared, pins_of_same) = bring(&a, &b, "same", bytes(60_000, 2)).await;
    registry.add_mirror(&Policy::all_of(pattern("acme/*"))).await.unwrap();
    registry.pin(pulled, PinClass::Record).await.unwrap();
    for revision in [alone, pulled, twice, later, same] {
        registry.pin(revision, PinClass::Mirrored).await.unwrap();
    }
    registry.pin(later, PinClass::Record).await.unwrap();
    registry.add_mirror(&Policy::all_of(pattern("acme/twice"))).await.unwrap();
    drop((pins_of_alone, pins_of_pulled, pins_of_twice, pins_of_later, pins_of_same));

    let mut gone = registry.remove_mirror(&pattern("acme/*")).await.unwrap().unwrap();
    gone.revisions.sort();
    let mut expected = vec![alone, same];
    expected.sort();
    assert_eq!(gone.revisions, expected);
    let manifests = registry.blobs().size(alone.blob()).await.unwrap().unwrap()
        + registry.blobs().size(same.blob()).await.unwrap().unwrap();
    assert_eq!(gone.bytes, 50_000 + manifests, "a file that a kept revision shares is not freed");
    registry.blobs().collect().await.unwrap();
    assert!(!registry.blobs().has(blob).await.unwrap());
    assert!(registry.blobs().has(shared).await.unwrap());
    for revision in [pulled, twice, later] {
        assert!(registry.verify(revision, |_| {}).await.unwrap().ok);
    }

    let gone = registry.remove_mirror(&pattern("acme/twice")).await.unwrap().unwrap();
    assert_eq!(gone.revisions, [twice], "the pattern that took it over keeps it no longer");
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn what_a_mirror_fetched_is_not_kept_when_its_pattern_has_ended_meanwhile() {
    let (a, b) = (House::new().await, House::new().await);
    let (revision, _, _pins) = bring(&a, &b, "tiny", bytes(50_000, 1)).await;
    let refused = b.registry.pin(revision, PinClass::Mirrored).await;
    assert!(matches!(refused, Err(HoldError::NotMirrored(_))), "{refused:?}");
    assert!(!b.registry.is_kept(revision).await.unwrap());
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn a_stranger_who_claims_the_mirrored_handle_too_frees_nothing() {
    let (a, b) = (House::new().await, House::new().await);
    let (revision, _, pins) = bring(&a, &b, "tiny", bytes(50_000, 1)).await;
    b.registry.add_mirror(&Policy::all_of(pattern("acme/*"))).await.unwrap();
    b.registry.add_mirror(&Policy::all_of(pattern("*"))).await.unwrap();
    b.registry.pin(revision, PinClass::Mirrored).await.unwrap();
    drop(pins);
    b.registry.insert(profile(&key(2), "acme", 0)).await.unwrap();
    let gone = b.registry.remove_mirror(&pattern("*")).await.unwrap().unwrap();
    assert_eq!(gone.revisions, []);
    let gone = b.registry.remove_mirror(&pattern("acme/*")).await.unwrap().unwrap();
    assert_eq!(gone.revisions, [revision], "what nobody wants any more stays for ever");
    a.registry.close().await;
    b.registry.close().await;
}
