//! What strangers have of the catalogue: who makes way for whom, and what goes with a record that does.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use cairn_protocol::{
    RecordId,
    limits::{CATALOG_BYTES_MAX, CATALOG_PAGE_DISPLACES_MAX},
    record::{Record, RecordKind},
};
use cairn_registry::{CATALOG_BYTES_DEFAULT, InsertError, Inserted, Registry, ResolveError, mirror::Policy};
use house::{House, REALM, head, key, profile, repo, revision, statement};

async fn has(registry: &Registry, record: &Record) -> bool {
    registry.record(record.kind(), record.id()).await.unwrap().is_some()
}

/// A house whose strangers' bytes are used up, whatever they hold.
async fn full(house: House) -> House {
    house.with_meta("ring-bytes", CATALOG_BYTES_MAX).await
}

/// A profile, a revision and a head of one repo.
fn story(seed: u8, handle: &str, name: &str) -> Vec<Record> {
    let key = key(seed);
    let first = head(name, 1, seed, None).sign(REALM, &key).unwrap();
    vec![profile(&key, handle, 0), revision(&key, name, seed), first]
}

#[tokio::test]
async fn a_flood_of_strangers_keeps_no_newcomer_out_and_the_oldest_arrival_makes_way() {
    let house = House::new().await;
    for record in story(1, "first", "a").into_iter().chain(story(2, "second", "b")) {
        house.registry.insert(record).await.unwrap();
    }
    let house = full(house).await;
    for (number, record) in story(3, "newcomer", "c").into_iter().enumerate() {
        assert_eq!(house.registry.insert(record).await.unwrap(), Inserted::New, "{number}");
    }
    let resolved = house.registry.resolve(&"newcomer/c".parse().unwrap(), &[]).await.unwrap();
    assert_eq!(resolved.number, 1);
    assert!(!has(&house.registry, &story(1, "first", "a")[0]).await, "the oldest arrival stayed");
    assert!(has(&house.registry, &story(2, "second", "b")[2]).await, "a later arrival went first");
    house.registry.close().await;
}

#[tokio::test]
async fn a_record_that_makes_way_leaves_no_row_behind_and_may_come_again() {
    let house = House::new().await;
    let gone = story(1, "first", "a");
    for record in &gone {
        house.registry.insert(record.clone()).await.unwrap();
    }
    let house = house.with_meta("ring-bytes", 2 * CATALOG_BYTES_MAX).await;
    house.registry.insert(profile(&key(2), "second", 0)).await.unwrap();
    for record in &gone {
        assert!(!has(&house.registry, record).await);
    }
    let registry = &house.registry;
    assert!(registry.list("", None, 10).await.unwrap().0.is_empty());
    assert!(registry.claimants(&"first".parse().unwrap()).await.unwrap().is_empty());
    assert!(registry.refs(&repo(&key(1), "a")).await.unwrap().is_empty());
    assert_eq!(registry.revision([1; 32].into()).await.unwrap(), None);
    let unknown = registry.resolve(&"first/a".parse().unwrap(), &[]).await;
    assert!(matches!(unknown, Err(ResolveError::UnknownHandle(_))), "{unknown:?}");

    for record in gone {
        assert_eq!(registry.insert(record).await.unwrap(), Inserted::New);
    }
    assert_eq!(registry.resolve(&"first/a".parse().unwrap(), &[]).await.unwrap().number, 1);
    house.registry.close().await;
}

#[tokio::test]
async fn a_head_whose_revisions_record_made_way_waits_for_it() {
    let house = House::new().await;
    let [_, revision, head] = story(1, "first", "a").try_into().unwrap();
    house.registry.insert(revision.clone()).await.unwrap();
    house.registry.insert(head.clone()).await.unwrap();
    let house = full(house).await;
    house.registry.insert(profile(&key(2), "x", 0)).await.unwrap();
    assert!(!has(&house.registry, &revision).await && has(&house.registry, &head).await);
    let name = repo(&key(1), "a").to_string().parse().unwrap();
    let waiting = house.registry.resolve(&name, &[]).await;
    assert!(matches!(waiting, Err(ResolveError::RevisionUnknown { .. })), "{waiting:?}");
    assert_eq!(house.registry.list("", None, 10).await.unwrap().0.len(), 1, "its repo is still listed");
    house.registry.insert(revision).await.unwrap();
    // The head was the oldest by now.
    assert!(!has(&house.registry, &head).await);
    house.registry.close().await;
}

#[tokio::test]
async fn publishers_that_a_persons_act_made_known_never_make_way() {
    let house = House::new().await;
    let (pinned, trusted, mirrored) = (story(2, "pinned", "a"), story(3, "trusted", "a"), story(4, "mirrored", "a"));
    let by_key = story(5, "by-key", "a");
    for record in [&pinned, &trusted, &mirrored, &by_key].into_iter().flatten() {
        house.registry.insert(record.clone()).await.unwrap();
    }
    house.registry.insert(profile(&key(1), "stranger", 0)).await.unwrap();
    let registry = &house.registry;
    registry.pin_handle(&"pinned".parse().unwrap(), key(2).public()).await.unwrap();
    registry.trust_handle(&"trusted".parse().unwrap(), Some(key(3).public())).await.unwrap();
    registry.add_mirror(&Policy::all_of("mirrored/a".parse().unwrap())).await.unwrap();
    registry.add_mirror(&Policy::all_of(format!("{}/*", key(5).public()).parse().unwrap())).await.unwrap();
    let source = house.source("own", &[("a.txt", b"a".to_vec())]);
    registry.insert(profile(&key(6), "own", 0)).await.unwrap();
    let published = house.publish(&source, &key(6), "own", 1).await;

    let house = house.with_meta("ring-bytes", 2 * CATALOG_BYTES_MAX).await;
    house.registry.insert(profile(&key(7), "newcomer", 0)).await.unwrap();
    assert!(!has(&house.registry, &profile(&key(1), "stranger", 0)).await);
    for record in [&pinned, &trusted, &mirrored, &by_key].into_iter().flatten() {
        assert!(has(&house.registry, record).await, "{record:?} made way");
    }
    assert!(has(&house.registry, &profile(&key(6), "own", 0)).await, "an own profile made way");
    let resolved = house.registry.resolve(&"own/own".parse().unwrap(), &[]).await.unwrap();
    assert_eq!(resolved.revision, published.revision);
    house.registry.close().await;
}

#[tokio::test]
async fn strangers_that_fill_their_bytes_keep_out_nobody_known_and_the_known_have_a_bound_of_their_own() {
    let house = House::new().await;
    house.registry.pin_handle(&"pinned".parse().unwrap(), key(2).public()).await.unwrap();
    let house = full(house).await;
    house.registry.insert(profile(&key(2), "pinned", 0)).await.unwrap();
    let house = house.with_meta("known-bytes", CATALOG_BYTES_DEFAULT).await;
    let refused = house.registry.insert(profile(&key(2), "pinned", 1)).await;
    assert!(matches!(refused, Err(InsertError::Full(CATALOG_BYTES_DEFAULT))), "{refused:?}");
    house.registry.insert(profile(&key(3), "stranger", 0)).await.unwrap();
    let source = house.source("a", &[("a.txt", b"a".to_vec())]);
    house.publish(&source, &key(1), "a", 1).await;
    house.registry.close().await;
}

/// Of about 6 KiB each.
fn large(count: u8, first: u8) -> Vec<Record> {
    let large = |number| {
        let mut statement = statement("tiny", number);
        statement.tags = vec!["x".repeat(100); 60];
        statement.sign(REALM, &key(9)).unwrap()
    };
    (first..first + count).map(large).collect()
}

#[tokio::test]
async fn a_page_of_a_peers_catalogue_pushes_out_no_more_than_its_share_and_the_next_look_brings_the_rest() {
    let house = House::new().await;
    house.registry.insert_page(large(20, 0)).await.unwrap();
    let house = full(house).await;
    let (page, record) = (large(20, 100), large(1, 0)[0].to_bytes().len() as u64);
    let per_look = CATALOG_PAGE_DISPLACES_MAX.div_ceil(record) as usize;
    for look in 1..3 {
        let verdicts = house.registry.insert_peers_page(page.clone()).await.unwrap();
        let new = verdicts.iter().filter(|verdict| matches!(verdict, Ok(Inserted::New))).count();
        let refused = verdicts.iter().filter(|verdict| matches!(verdict, Err(InsertError::PageShare))).count();
        assert_eq!((new, refused), (per_look, 20 - look * per_look), "look {look}");
    }
    let news = house.registry.insert_page(page).await.unwrap();
    assert!(news.iter().all(Result::is_ok), "gossip pushes out what it needs");
    house.registry.close().await;
}

/// What is listed reads back, whatever was pushed out in which order.
#[tokio::test]
async fn no_row_speaks_of_a_record_that_made_way() {
    let house = House::new().await;
    let mut dice = 7u64;
    let mut all = Vec::new();
    for seed in 1..30 {
        all.extend(story(seed, &format!("handle{}", seed % 5), &format!("repo{}", seed % 3)));
        all.push(profile(&key(seed), "again", 1));
    }
    for at in (1..all.len()).rev() {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.swap(at, (dice >> 33) as usize % (at + 1));
    }
    let (before, after) = all.split_at(40);
    house.registry.insert_page(before.to_vec()).await.unwrap();
    let house = full(house).await;
    house.registry.insert_page(after.to_vec()).await.unwrap();
    let registry = &house.registry;
    let records: Vec<RecordId> =
        registry.heads_page(Vec::new(), 1000).await.unwrap().0.iter().map(Record::id).collect();
    assert!(records.len() < 60, "{} records made no way", records.len());
    let listed = registry.list("", None, 100).await.unwrap().0;
    assert!(!listed.is_empty());
    for summary in listed {
        let refs = registry.refs(&summary.repo).await.unwrap();
        let revision = registry.revision([key_seed(&summary.repo.publisher); 32].into()).await.unwrap();
        assert!(!refs.is_empty() || revision.is_some(), "{} is listed and empty", summary.path);
        for head in refs.iter().flat_map(|state| &state.history) {
            assert!(registry.record(RecordKind::Head, head.id).await.unwrap().is_some());
        }
    }
    for handle in ["handle0", "handle1", "handle2", "handle3", "handle4", "again"] {
        for claimant in registry.claimants(&handle.parse().unwrap()).await.unwrap() {
            let seed = key_seed(&claimant);
            let claims = [profile(&key(seed), handle, 0), profile(&key(seed), handle, 1)];
            assert!(claims.iter().any(|claim| records.contains(&claim.id())), "{handle} is claimed by no profile");
        }
    }
    house.registry.close().await;
}

fn key_seed(publisher: &cairn_protocol::PublisherKey) -> u8 {
    (1..30).find(|seed| key(*seed).public() == *publisher).unwrap()
}
