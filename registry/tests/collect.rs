//! Garbage collection against pins of every class, and what is left after a process dies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init)] // A test may fail loudly.

mod house;

use std::{collections::BTreeSet, fs};

use cairn_protocol::{BlobHash, RealmId, RefName};
use cairn_registry::{OpenError, PinClass, Registry};
use house::{House, REALM, bytes, key, repo, sign};

#[tokio::test]
async fn what_nothing_pins_goes_and_every_class_of_pin_holds() {
    let house = House::new().await;
    let blobs = house.registry.blobs();
    let source = house.source("kept", &[("a.bin", bytes(40_000, 1))]);
    let published = house.publish(&source, &key(1), "kept", 1).await;
    let manifest = house.registry.manifest(published.revision).await.unwrap().unwrap();

    let pinned = blobs.add(bytes(50_000, 2)).await.unwrap();
    let staged = blobs.add(bytes(60_000, 3)).await.unwrap().hash();
    blobs.protect_stage(&[staged], 1, 1 << 30).await.unwrap();
    let garbage = blobs.add(bytes(70_000, 4)).await.unwrap().hash();
    blobs.collect().await.unwrap();
    for kept in [manifest.files[0].blake3, published.revision.blob(), pinned.hash(), staged] {
        assert!(blobs.has(kept).await.unwrap(), "{kept} was swept");
    }
    assert!(!blobs.has(garbage).await.unwrap(), "garbage stayed");

    house.registry.unpin(published.revision).await.unwrap();
    let was = pinned.hash();
    drop(pinned);
    assert_eq!(blobs.protect_stage(&[], 2, 0).await.unwrap(), [staged]);
    blobs.collect().await.unwrap();
    for gone in [manifest.files[0].blake3, published.revision.blob(), was, staged] {
        assert!(!blobs.has(gone).await.unwrap(), "{gone} stayed");
    }
    house.registry.close().await;
}

#[tokio::test]
async fn a_blob_is_pinned_in_the_realm_that_keeps_it_and_in_no_other() {
    let house = House::new().await;
    let blobs = house.registry.blobs();
    let source = house.source("kept", &[("a.bin", bytes(40_000, 1))]);
    let published = house.publish(&source, &key(1), "kept", 1).await;
    let manifest = house.registry.manifest(published.revision).await.unwrap().unwrap();
    let file = manifest.files[0].blake3;
    let staged = blobs.add(bytes(60_000, 3)).await.unwrap().hash();
    blobs.protect_stage(&[staged], 1, 1 << 30).await.unwrap();
    let held = blobs.add(bytes(50_000, 2)).await.unwrap();
    let all = BTreeSet::from([published.revision.blob(), file, staged, held.hash()]);
    let asked: Vec<BlobHash> = all.iter().copied().chain([BlobHash::from([9; 32])]).collect();
    assert_eq!(blobs.pinned(asked.clone()).await.unwrap(), all);
    drop(held);
    house.registry.close().await;

    let other = Registry::open(&house.home(), RealmId::from([7; 32])).await.unwrap();
    assert!(other.blobs().has(file).await.unwrap(), "the bytes are in the same home");
    assert_eq!(other.blobs().pinned(asked.clone()).await.unwrap(), BTreeSet::new());
    other.close().await;

    let house = house.reopen().await;
    let durable = BTreeSet::from([published.revision.blob(), file, staged]);
    assert_eq!(house.registry.blobs().pinned(asked.clone()).await.unwrap(), durable);
    house.registry.unpin(published.revision).await.unwrap();
    assert_eq!(house.registry.blobs().pinned(asked).await.unwrap(), BTreeSet::from([staged]));
    house.registry.close().await;
}

#[tokio::test]
async fn publishing_while_collections_run_without_a_pause_loses_nothing() {
    let house = House::new().await;
    let collecting = async {
        for _ in 0..30 {
            house.registry.blobs().collect().await.unwrap();
        }
    };
    let publishing = async {
        let mut published = Vec::new();
        for number in 0..12u8 {
            let files = [("a.bin", bytes(20_000 + usize::from(number), number)), ("b.txt", vec![number])];
            let source = house.source(&format!("source{number}"), &files);
            published.push(house.publish(&source, &key(1), &format!("repo{number}"), 1).await.revision);
        }
        published
    };
    let ((), published) = tokio::join!(collecting, publishing);
    for revision in published {
        assert!(house.registry.verify(revision, |_| {}).await.unwrap().ok);
    }
    house.registry.close().await;
}

/// The library's loop ends at its first error, and a store whose database is gone makes one.
#[tokio::test]
async fn a_collector_that_died_is_noticed_at_once_and_a_living_one_is_not_taken_for_dead() {
    let house = House::new().await;
    let blobs = house.registry.blobs();
    blobs.collect().await.unwrap();
    assert!(!blobs.collection_is_overdue());
    blobs.store().shutdown().await.unwrap();
    let collected = tokio::time::timeout(std::time::Duration::from_secs(20), blobs.collect()).await;
    assert!(matches!(collected, Ok(Err(_))), "{collected:?}");
    assert!(blobs.collection_is_overdue());
    house.registry.close().await;
}

#[tokio::test]
async fn bytes_that_were_prepared_and_never_committed_go_after_a_restart() {
    let house = House::new().await;
    let source = house.source("a", &[("a.bin", bytes(100_000, 1))]);
    let prepared = house.prepare(&source, &repo(&key(1), "a"), 1).await.unwrap();
    let blob = prepared.manifest.files[0].blake3;
    house.registry.blobs().collect().await.unwrap();
    assert!(house.registry.blobs().has(blob).await.unwrap(), "a prepared blob was swept");
    fs::write(house.home().join("blobs/temp/half.temp"), b"left by a killed import").unwrap();
    std::mem::forget(prepared);

    let house = house.reopen().await;
    assert!(!house.home().join("blobs/temp/half.temp").exists());
    house.registry.blobs().collect().await.unwrap();
    assert!(!house.registry.blobs().has(blob).await.unwrap());
    assert!(house.registry.list("", None, 10).await.unwrap().0.is_empty());
    house.registry.close().await;
}

/// What is on disk at the moment of the answer must be enough: the copy of the home is what a killed process leaves.
#[tokio::test]
async fn an_acknowledged_revision_is_whole_in_a_copy_of_the_home_taken_at_that_moment() {
    let house = House::new().await;
    let files = [("small.txt", b"hello".to_vec()), ("mid.bin", bytes(100_000, 1)), ("big.bin", bytes(5 << 20, 2))];
    let source = house.source("a", &files);
    for created_ms in 1..4 {
        let published = house.publish(&source, &key(1), "a", created_ms).await;
        let copy = house.folder.path().join(format!("copy{created_ms}"));
        copy_folder(&house.home(), &copy);
        let survivor = Registry::open(&copy, REALM).await.unwrap();
        let name = format!("{}/a", key(1).public());
        let resolved = survivor.resolve(&name.parse().unwrap(), &[]).await.unwrap();
        assert_eq!((resolved.revision, resolved.number), (published.revision, created_ms as u64));
        let report = survivor.verify(published.revision, |_| {}).await.unwrap();
        assert!(report.ok, "{report:?}");
        survivor.blobs().collect().await.unwrap();
        assert!(survivor.held(published.revision).await.unwrap().whole);
        survivor.close().await;
    }
    house.registry.close().await;
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_home_that_is_open_is_refused_and_free_again_after_closing() {
    let house = House::new().await;
    assert!(matches!(Registry::open(&house.home(), REALM).await, Err(OpenError::InUse(_))));
    let house = house.reopen().await;
    house.registry.close().await;
}

#[tokio::test]
async fn a_data_file_that_vanished_is_an_error_and_no_panic() {
    let house = House::new().await;
    let source = house.source("a", &[("a.bin", bytes(100_000, 1))]);
    let published = house.publish(&source, &key(1), "a", 1).await;
    let blob = house.registry.manifest(published.revision).await.unwrap().unwrap().files[0].blake3;
    let house = house.reopen().await;
    fs::remove_file(house.home().join(format!("blobs/data/{blob}.data"))).unwrap();
    assert!(house.registry.blobs().read(blob, 0..10).await.is_err());
    let report = house.registry.verify(published.revision, |_| {}).await.unwrap();
    assert_eq!(report.damaged(), [blob]);
    house.registry.blobs().quarantine(blob).await.unwrap();
    let _pin = house.registry.blobs().add(bytes(100_000, 1)).await.unwrap();
    assert!(house.registry.verify(published.revision, |_| {}).await.unwrap().ok);
    house.registry.close().await;
}

#[tokio::test]
async fn a_data_file_that_was_cut_short_is_an_error_and_no_panic() {
    let house = House::new().await;
    let source = house.source("a", &[("a.bin", bytes(100_000, 1))]);
    let published = house.publish(&source, &key(1), "a", 1).await;
    let blob = house.registry.manifest(published.revision).await.unwrap().unwrap().files[0].blake3;
    let file = fs::File::options().write(true).open(house.home().join(format!("blobs/data/{blob}.data"))).unwrap();
    file.set_len(50_000).unwrap();
    let house = house.reopen().await;
    let read = house.registry.blobs().read(blob, 0..100_000).await;
    assert!(matches!(read, Err(cairn_registry::BlobError::Corrupt { .. })), "{read:?}");
    assert_eq!(house.registry.verify(published.revision, |_| {}).await.unwrap().damaged(), [blob]);
    house.registry.close().await;
}

#[tokio::test]
async fn ranges_that_are_here_and_missing_are_told_by_byte() {
    let house = House::new().await;
    let pin = house.registry.blobs().add(bytes(50_000, 1)).await.unwrap();
    let blobs = house.registry.blobs();
    assert_eq!(blobs.local_ranges(pin.hash()).await.unwrap(), [0..50_000]);
    assert!(blobs.missing(pin.hash(), 50_000, &[10..40_000, 49_000..60_000]).await.unwrap().is_empty());
    let unknown = cairn_protocol::BlobHash::from([7; 32]);
    assert_eq!(blobs.missing(unknown, 100, &[10..20, 15..400]).await.unwrap(), [10..100]);
    assert_eq!(blobs.read(pin.hash(), 1023..16_385).await.unwrap(), bytes(50_000, 1)[1023..16_385]);
    assert!(blobs.read(pin.hash(), 49_999..50_001).await.is_err());
    house.registry.close().await;
}

#[tokio::test]
async fn a_pin_in_the_stage_cache_goes_by_age_and_needs_no_record() {
    let house = House::new().await;
    let source = house.source("a", &[("a.bin", bytes(30_000, 1))]);
    let repo = repo(&key(1), "a");
    let prepared = house.prepare(&source, &repo, 1).await.unwrap();
    let revision = prepared.revision;
    let next = house.registry.next_head(&repo, &RefName::main()).await.unwrap();
    let records = sign(&prepared, &key(1), next);
    house.registry.commit(prepared, records).await.unwrap();
    house.registry.unpin(revision).await.unwrap();
    house.registry.pin(revision, PinClass::StageCache { now_ms: 5, bytes_max: 1 << 20 }).await.unwrap();
    assert_eq!(house.registry.blobs().stage_blobs().await.unwrap().len(), 2);
    house.registry.blobs().collect().await.unwrap();
    let holding = house.registry.held(revision).await.unwrap();
    assert!(holding.whole && !holding.kept);
    house.registry.close().await;
}
