//! Catalogues that earlier versions wrote are read. Each released schema has one file here, never rewritten.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use std::{fs, path::Path};

use cairn_protocol::{RecordId, RevisionId, limits::CATALOG_BYTES_MAX};
use cairn_registry::{OpenError, Registry, mirror::Policy};
use house::{House, REALM, head, key, profile, revision};

/// Schema 1, as `the_first_schema_is_written_as_ever` writes it, packed by leaving out runs of zeros.
const SCHEMA_1: &str = "tests/data/catalog-schema-1.packed";
/// Schema 2, with a stranger's records beside them.
const SCHEMA_2: &str = "tests/data/catalog-schema-2.packed";

async fn fill(registry: &Registry) {
    let key = key(1);
    let first = head("tiny", 1, 1, None).sign(REALM, &key).unwrap();
    let second = head("tiny", 2, 2, Some(first.id())).sign(REALM, &key).unwrap();
    for record in [profile(&key, "acme", 0), revision(&key, "tiny", 1), revision(&key, "tiny", 2), first, second] {
        registry.insert(record).await.unwrap();
    }
    registry.pin_handle(&"acme".parse().unwrap(), key.public()).await.unwrap();
    registry.add_mirror(&Policy::all_of("acme/*".parse().unwrap())).await.unwrap();
}

/// Of a publisher that nothing here is kept of.
async fn fill_from_a_stranger(registry: &Registry) {
    let key = key(2);
    let head = head("odd", 1, 7, None).sign(REALM, &key).unwrap();
    for record in [profile(&key, "stranger", 0), revision(&key, "odd", 7), head] {
        registry.insert(record).await.unwrap();
    }
}

async fn check(registry: &Registry) {
    let resolved = registry.resolve(&"acme/tiny".parse().unwrap(), &[]).await.unwrap();
    assert_eq!((resolved.revision, resolved.number), (RevisionId::from([2; 32]), 2));
    assert_eq!(resolved.warning, None, "the pin of the handle was read");
    assert_eq!(registry.mirrors().await.unwrap(), [Policy::all_of("acme/*".parse().unwrap())]);
    assert_eq!(registry.heads_page(Vec::new(), 100).await.unwrap().0.len(), 5);
    assert_eq!(registry.live_records().await.unwrap(), 5, "they are compared with other nodes'");
}

#[tokio::test]
async fn a_catalogue_of_the_first_schema_is_read() {
    let house = unpacked(SCHEMA_1).await;
    check(&house.registry).await;
    fill(&house.registry).await;
    check(&house.registry).await;
    house.registry.close().await;
}

#[tokio::test]
async fn a_catalogue_from_before_blobs_knew_their_keepers_learns_them() {
    let house = House::new().await;
    let source = house.source("a", &[("a.bin", house::bytes(40_000, 1))]);
    let published = house.publish(&source, &key(1), "a", 1).await;
    house.registry.close().await;
    house.set_meta("schema", &1u32.to_le_bytes());
    let keepers: redb::TableDefinition<&[u8], &[u8]> = redb::TableDefinition::new("blob-keepers-1");
    let database = redb::Database::open(house.home().join("catalog.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    assert!(transaction.delete_table(keepers).unwrap());
    transaction.commit().unwrap();
    drop(database);
    let house = house.reopen().await;
    let manifest = published.revision.blob();
    assert!(house.registry.blobs().pinned(vec![manifest]).await.unwrap().contains(&manifest));
    house.registry.close().await;
}

/// The files above were made by this, with `CAIRN_WRITE_SCHEMA` set to their path, when their schema was the present one.
#[tokio::test]
async fn what_is_written_now_reads_back_from_its_packed_form() {
    let house = House::new().await;
    fill(&house.registry).await;
    fill_from_a_stranger(&house.registry).await;
    house.registry.close().await;
    let written = fs::read(house.home().join("catalog.redb")).unwrap();
    let packed = pack(&written);
    assert_eq!(unpack(&packed), written);
    if let Some(path) = std::env::var_os("CAIRN_WRITE_SCHEMA") {
        fs::write(path, &packed).unwrap();
    }
}

#[tokio::test]
async fn a_catalogue_of_a_later_schema_is_refused_untouched() {
    let house = House::new().await;
    house.registry.close().await;
    house.set_meta("schema", &99u32.to_le_bytes());
    assert!(matches!(Registry::open(&house.home(), REALM).await, Err(OpenError::Migrate { .. })));
}

#[tokio::test]
async fn strangers_of_the_second_schema_make_way_and_its_known_publishers_stay() {
    let house = unpacked(SCHEMA_2).await;
    check_counts(&house.registry, 8).await;
    let house = house.with_meta("ring-bytes", CATALOG_BYTES_MAX).await;
    house.registry.insert(profile(&key(9), "newcomer", 0)).await.unwrap();
    let records = check_counts(&house.registry, 8).await;
    assert!(records.contains(&profile(&key(9), "newcomer", 0).id()), "the newcomer is not here");
    assert!(!records.contains(&profile(&key(2), "stranger", 0).id()), "the first of the stranger's stayed");
    let house = house.with_meta("ring-bytes", 2 * CATALOG_BYTES_MAX).await;
    house.registry.insert(profile(&key(8), "flood", 0)).await.unwrap();
    check_counts(&house.registry, 6).await;
    let resolved = house.registry.resolve(&"acme/tiny".parse().unwrap(), &[]).await.unwrap();
    assert_eq!((resolved.revision, resolved.number), (RevisionId::from([2; 32]), 2));
    house.registry.close().await;
}

async fn check_counts(registry: &Registry, expected: usize) -> Vec<RecordId> {
    let records = registry.heads_page(Vec::new(), 100).await.unwrap().0;
    assert_eq!(records.len(), expected);
    assert_eq!(registry.live_records().await.unwrap(), expected as u64);
    records.iter().map(|record| record.id()).collect()
}

async fn unpacked(path: &str) -> House {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    let packed = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    fs::write(home.join("catalog.redb"), unpack(&packed)).unwrap();
    let registry = Registry::open(&home, REALM).await.unwrap();
    House { folder, registry }
}

#[tokio::test]
async fn a_file_that_is_no_catalogue_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("catalog.redb"), vec![7; 100_000]).unwrap();
    assert!(matches!(Registry::open(folder.path(), REALM).await, Err(OpenError::Migrate { .. })));
}

/// Runs of (zeros u32, literal length u32, literal).
fn pack(bytes: &[u8]) -> Vec<u8> {
    let (mut packed, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let zeros = bytes[at..].iter().take_while(|byte| **byte == 0).count();
        let rest = &bytes[at + zeros..];
        let length = rest.windows(64).position(|window| window.iter().all(|byte| *byte == 0)).unwrap_or(rest.len());
        packed.extend_from_slice(&(zeros as u32).to_le_bytes());
        packed.extend_from_slice(&(length as u32).to_le_bytes());
        packed.extend_from_slice(&rest[..length]);
        at += zeros + length;
    }
    packed
}

fn unpack(mut packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !packed.is_empty() {
        let number = |at: usize| u32::from_le_bytes(packed[at..at + 4].try_into().unwrap()) as usize;
        let (zeros, length) = (number(0), number(4));
        bytes.resize(bytes.len() + zeros, 0);
        bytes.extend_from_slice(&packed[8..8 + length]);
        packed = &packed[8 + length..];
    }
    bytes
}
