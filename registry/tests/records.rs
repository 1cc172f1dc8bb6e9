//! Records from peers: order of arrival, equivocation, rollback, tags, names.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use cairn_protocol::{RealmId, RecordId, RefName, RevisionId, record::Record};
use cairn_registry::{
    InsertError, Inserted, PassedOver, Registry, ResolveError, Resolved,
    mirror::{Policy, Rules},
};
use house::{House, REALM, head, key, profile, repo, revision};

async fn resolve(registry: &Registry, name: &str) -> Result<Resolved, ResolveError> {
    registry.resolve(&name.parse().unwrap(), &[]).await
}

fn id(byte: u8) -> RevisionId {
    RevisionId::from([byte; 32])
}

/// profile, revisions 1 and 2, heads 1 and 2 of acme/tiny.
fn story() -> Vec<Record> {
    let key = key(1);
    let first = head("tiny", 1, 1, None).sign(REALM, &key).unwrap();
    let second = head("tiny", 2, 2, Some(first.id())).sign(REALM, &key).unwrap();
    vec![profile(&key, "acme", 0), revision(&key, "tiny", 1), revision(&key, "tiny", 2), first, second]
}

#[tokio::test]
async fn any_order_of_arrival_ends_with_the_same_answer() {
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [4, 2, 0, 3, 1], [3, 0, 4, 1, 2]] {
        let house = House::new().await;
        for index in order {
            house.registry.insert(story()[index].clone()).await.unwrap();
        }
        let resolved = resolve(&house.registry, "acme/tiny").await.unwrap();
        assert_eq!((resolved.revision, resolved.number, resolved.path.as_str()), (id(2), 2, "acme/tiny"), "{order:?}");
        assert!(resolved.warning.unwrap().contains(&key(1).public().to_string()), "the sole claimant's key is shown");
        house.registry.close().await;
    }
}

#[tokio::test]
async fn a_head_without_its_revisions_record_waits() {
    let house = House::new().await;
    let [profile, first_revision, second_revision, first, second] = story().try_into().unwrap();
    for record in [profile, first.clone(), second] {
        house.registry.insert(record).await.unwrap();
    }
    assert!(matches!(resolve(&house.registry, "acme/tiny").await, Err(ResolveError::RevisionUnknown { .. })));
    house.registry.insert(first_revision).await.unwrap();
    let resolved = resolve(&house.registry, "acme/tiny").await.unwrap();
    assert_eq!(resolved.number, 1);
    assert!(resolved.warning.unwrap().contains("has not arrived"));
    house.registry.insert(second_revision).await.unwrap();
    assert_eq!(resolve(&house.registry, "acme/tiny").await.unwrap().number, 2);
    assert_eq!(house.registry.insert(first).await.unwrap(), Inserted::Known);
    house.registry.close().await;
}

#[tokio::test]
async fn an_old_head_does_not_turn_the_repo_back() {
    let house = House::new().await;
    let [profile, first_revision, second_revision, first, second] = story().try_into().unwrap();
    for record in [profile, first_revision, second_revision, second] {
        house.registry.insert(record).await.unwrap();
    }
    assert_eq!(house.registry.insert(first).await.unwrap(), Inserted::Stale);
    assert_eq!(resolve(&house.registry, "acme/tiny").await.unwrap().number, 2);
    house.registry.close().await;
}

#[tokio::test]
async fn two_heads_of_one_number_are_kept_and_shown_and_do_not_count() {
    let house = House::new().await;
    let key = key(1);
    for record in story() {
        house.registry.insert(record).await.unwrap();
    }
    let first = story()[3].id();
    let rival = head("tiny", 2, 3, Some(first)).sign(REALM, &key).unwrap();
    house.registry.insert(revision(&key, "tiny", 3)).await.unwrap();
    assert_eq!(house.registry.insert(rival.clone()).await.unwrap(), Inserted::New);
    let resolved = resolve(&house.registry, "acme/tiny").await.unwrap();
    assert_eq!(resolved.number, 1);
    assert!(resolved.warning.unwrap().contains("2 different heads with number 2"));
    let refs = house.registry.refs(&repo(&key, "tiny")).await.unwrap();
    assert_eq!(refs[0].history.len(), 3);
    assert!(matches!(&refs[0].passed_over[..], [PassedOver::Contested { heads, .. }] if heads.len() == 2));
    let told = house.registry.records_for(&repo(&key, "tiny"), &RefName::main()).await.unwrap();
    assert_eq!(told.len(), 1 + 3 + 3, "a peer that asks learns of both heads");

    let healing = head("tiny", 3, 3, Some(rival.id())).sign(REALM, &key).unwrap();
    house.registry.insert(healing).await.unwrap();
    let healed = resolve(&house.registry, "acme/tiny").await.unwrap();
    assert_eq!((healed.number, healed.revision), (3, id(3)));
    house.registry.close().await;
}

#[tokio::test]
async fn a_head_that_contradicts_itself_is_refused_and_one_that_contradicts_others_does_not_count() {
    let house = House::new().await;
    let key = key(1);
    for record in story() {
        house.registry.insert(record).await.unwrap();
    }
    let (first, second) = (story()[3].id(), story()[4].id());
    let skips = head("tiny", 4, 1, Some(second));
    let falls_back = head("tiny", 1, 1, Some(second));
    let follows_nothing = head("tiny", 3, 1, None);
    let repeats = head("tiny", 1, 1, Some(first));
    for head in [falls_back, follows_nothing, repeats] {
        let refused = house.registry.insert(head.sign(REALM, &key).unwrap()).await;
        assert!(matches!(refused, Err(InsertError::Link { .. })), "{head:?}: {refused:?}");
    }
    assert_eq!(house.registry.insert(skips.sign(REALM, &key).unwrap()).await.unwrap(), Inserted::New);
    let resolved = resolve(&house.registry, "acme/tiny").await.unwrap();
    assert_eq!(resolved.number, 2);
    assert!(resolved.warning.unwrap().contains("head 4 of main does not continue"));
    let unknown = head("tiny", 9, 1, Some(RecordId::from([9; 32])));
    assert_eq!(house.registry.insert(unknown.sign(REALM, &key).unwrap()).await.unwrap(), Inserted::New);
    house.registry.close().await;
}

#[tokio::test]
async fn a_tag_from_a_peer_does_not_move_either() {
    let house = House::new().await;
    let key = key(1);
    let tag = |number, revision, previous| {
        let mut head = head("tiny", number, revision, previous);
        (head.ref_name, head.tag) = ("v1".parse().unwrap(), true);
        head
    };
    let first = tag(1, 1, None).sign(REALM, &key).unwrap();
    house.registry.insert(revision(&key, "tiny", 1)).await.unwrap();
    house.registry.insert(first.clone()).await.unwrap();
    let moved = tag(2, 2, Some(first.id())).sign(REALM, &key).unwrap();
    assert!(matches!(house.registry.insert(moved).await, Err(InsertError::TagMoves(_))));
    let mut branch = tag(2, 2, Some(first.id()));
    branch.tag = false;
    house.registry.insert(branch.sign(REALM, &key).unwrap()).await.unwrap();
    let name = format!("{}@v1", repo(&key, "tiny"));
    assert!(matches!(resolve(&house.registry, &name).await, Err(ResolveError::Contested { heads: 2, .. })));
    house.registry.close().await;
}

#[tokio::test]
async fn a_head_that_calls_main_a_tag_is_refused_and_contests_nothing() {
    let house = House::new().await;
    for record in story() {
        house.registry.insert(record).await.unwrap();
    }
    let mut tag = head("tiny", 1, 3, None);
    tag.tag = true;
    let refused = house.registry.insert(tag.sign(REALM, &key(1)).unwrap()).await;
    assert!(matches!(refused, Err(InsertError::TagOnMain)), "{refused:?}");
    let resolved = resolve(&house.registry, "acme/tiny").await.unwrap();
    assert_eq!((resolved.revision, resolved.number), (id(2), 2));
    house.registry.close().await;
}

/// Everything that a publisher may say about two refs and should not.
fn contradictions() -> Vec<Record> {
    let key = key(1);
    let on = |reference: &str, is_tag: bool, mut head: cairn_protocol::record::Head| {
        (head.ref_name, head.tag) = (reference.parse().unwrap(), is_tag);
        head.sign(REALM, &key).unwrap()
    };
    let first = on("main", false, head("tiny", 1, 1, None));
    let second = on("main", false, head("tiny", 2, 2, Some(first.id())));
    let tag = on("v1", true, head("tiny", 1, 1, None));
    vec![
        on("main", false, head("tiny", 2, 3, Some(first.id()))),
        on("main", false, head("tiny", 5, 3, Some(second.id()))),
        on("v1", true, head("tiny", 1, 2, None)),
        on("v1", false, head("tiny", 2, 3, Some(tag.id()))),
        on("v2", false, head("tiny", 1, 1, None)),
        on("v2", true, head("tiny", 1, 2, None)),
        first,
        second,
        tag,
        revision(&key, "tiny", 1),
        revision(&key, "tiny", 2),
        revision(&key, "tiny", 3),
    ]
}

#[tokio::test]
async fn any_order_of_hearing_the_same_heads_gives_the_same_standing() {
    let mut told: Option<String> = None;
    for seed in 0..16u64 {
        let mut records = contradictions();
        let mut dice = seed;
        for at in (1..records.len()).rev() {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            records.swap(at, (dice >> 33) as usize % (at + 1));
        }
        let house = House::new().await;
        for record in records {
            house.registry.insert(record).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        let refs = format!("{:?}", house.registry.refs(&repo(&key(1), "tiny")).await.unwrap());
        assert_eq!(told.get_or_insert_with(|| refs.clone()), &refs, "seed {seed}");
        let name = |reference| format!("{}@{reference}", repo(&key(1), "tiny"));
        assert_eq!(resolve(&house.registry, &name("main")).await.unwrap().number, 1);
        for tag in ["v1", "v2"] {
            assert!(matches!(resolve(&house.registry, &name(tag)).await, Err(ResolveError::Contested { .. })));
        }
        house.registry.close().await;
    }
}

#[tokio::test]
async fn a_record_of_another_realm_is_refused() {
    let house = House::new().await;
    let foreign = head("tiny", 1, 1, None).sign(RealmId::from([1; 32]), &key(1)).unwrap();
    assert!(matches!(house.registry.insert(foreign).await, Err(InsertError::Realm { .. })));
    house.registry.close().await;
}

#[tokio::test]
async fn a_revision_signed_by_a_stranger_does_not_enter_the_repo() {
    let house = House::new().await;
    let (owner, stranger) = (key(1), key(2));
    house.registry.insert(head("tiny", 1, 1, None).sign(REALM, &owner).unwrap()).await.unwrap();
    house.registry.insert(revision(&stranger, "tiny", 1)).await.unwrap();
    let name = repo(&owner, "tiny").to_string();
    assert!(matches!(resolve(&house.registry, &name).await, Err(ResolveError::RevisionUnknown { .. })));
    house.registry.close().await;
}

#[tokio::test]
async fn a_handle_resolves_by_own_keys_then_trust_then_pin_then_a_sole_claimant() {
    let house = House::new().await;
    let registry = &house.registry;
    let handle = "acme".parse().unwrap();
    for seed in [1, 2] {
        let key = key(seed);
        registry.insert(profile(&key, "Acme", 0)).await.unwrap();
        registry.insert(revision(&key, "tiny", seed)).await.unwrap();
        registry.insert(head("tiny", 1, seed, None).sign(REALM, &key).unwrap()).await.unwrap();
    }
    let name = "acme/tiny".parse().unwrap();
    match registry.resolve(&name, &[]).await {
        Err(ResolveError::ClaimedBySeveral { claimants, .. }) => assert_eq!(claimants.len(), 2),
        other => panic!("{other:?}"),
    }
    registry.pin_handle(&handle, key(1).public()).await.unwrap();
    assert_eq!(registry.resolve(&name, &[]).await.unwrap().revision, id(1));
    registry.trust_handle(&handle, Some(key(2).public())).await.unwrap();
    assert_eq!(registry.resolve(&name, &[]).await.unwrap().revision, id(2));
    assert_eq!(registry.resolve(&name, &[key(1).public()]).await.unwrap().revision, id(1));
    registry.trust_handle(&handle, None).await.unwrap();
    assert_eq!(registry.resolve(&name, &[]).await.unwrap().revision, id(1));
    let unknown = resolve(registry, "nobody/tiny").await;
    assert!(matches!(unknown, Err(ResolveError::UnknownHandle(_))));
    house.registry.close().await;
}

#[tokio::test]
async fn a_second_claimant_is_listed_by_its_key_and_not_under_the_handle() {
    let house = House::new().await;
    let (mine, squatter) = (key(1), key(2));
    house.registry.insert(profile(&mine, "acme", 0)).await.unwrap();
    let source = house.source("a", &[("a.txt", b"a".to_vec())]);
    house.publish(&source, &mine, "tiny", 1).await;
    house.registry.insert(profile(&squatter, "acme", 0)).await.unwrap();
    house.registry.insert(revision(&squatter, "tiny", 9)).await.unwrap();
    let (page, _) = house.registry.list("", None, 10).await.unwrap();
    let mut paths: Vec<_> = page.into_iter().map(|summary| summary.path).collect();
    paths.sort();
    let mut expected = vec!["acme/tiny".to_owned(), format!("{}/tiny", squatter.public())];
    expected.sort();
    assert_eq!(paths, expected);
    house.registry.close().await;
}

#[tokio::test]
async fn a_newer_profile_gives_the_old_handle_back() {
    let house = House::new().await;
    let registry = &house.registry;
    registry.insert(profile(&key(1), "old", 0)).await.unwrap();
    registry.insert(profile(&key(1), "new", 1)).await.unwrap();
    assert_eq!(registry.insert(profile(&key(1), "older", 0)).await.unwrap(), Inserted::Stale);
    assert!(registry.claimants(&"old".parse().unwrap()).await.unwrap().is_empty());
    assert_eq!(registry.claimants(&"NEW".parse().unwrap()).await.unwrap(), [key(1).public()]);
    house.registry.close().await;
}

#[tokio::test]
async fn a_hash_prefix_resolves_when_it_is_unambiguous_and_lists_candidates_when_not() {
    let house = House::new().await;
    let registry = &house.registry;
    let key = key(1);
    let mut near = [0xab; 32];
    near[31] = 1;
    for revision in [[0xab; 32], near, [0xcd; 32]] {
        let mut statement = house::statement("tiny", 0);
        statement.revision = RevisionId::from(revision);
        registry.insert(statement.sign(REALM, &key).unwrap()).await.unwrap();
    }
    let path = repo(&key, "tiny").to_string();
    let sole = resolve(registry, &format!("{path}@cdcdcdcdc")).await.unwrap();
    assert_eq!((sole.revision, sole.head), (RevisionId::from([0xcd; 32]), None));
    match resolve(registry, &format!("{path}@abababab")).await {
        Err(ResolveError::AmbiguousPrefix { candidates, .. }) => assert_eq!(candidates.len(), 2),
        other => panic!("{other:?}"),
    }
    assert!(resolve(registry, &format!("{path}@{}", RevisionId::from(near))).await.is_ok());
    assert!(matches!(resolve(registry, &format!("{path}@12345678")).await, Err(ResolveError::UnknownPrefix { .. })));
    house.registry.close().await;
}

#[tokio::test]
async fn a_late_joiner_gets_everything_in_bounded_pages() {
    let (a, b) = (House::new().await, House::new().await);
    let mut records = story();
    for number in 0..40u8 {
        let mut statement = house::statement("tiny", number + 10);
        statement.tags = vec!["x".repeat(100); 60];
        records.push(statement.sign(REALM, &key(1)).unwrap());
    }
    let verdicts = a.registry.insert_page(records.clone()).await.unwrap();
    assert!(verdicts.iter().all(|verdict| matches!(verdict, Ok(Inserted::New))));

    let (mut after, mut pages, mut got) = (Vec::new(), 0, 0);
    loop {
        let (page, next) = a.registry.heads_page(after, 17).await.unwrap();
        assert!(page.len() <= 17 && page.iter().map(|record| record.to_bytes().len()).sum::<usize>() <= 512 * 1024);
        (pages, got) = (pages + 1, got + page.len());
        b.registry.insert_page(page).await.unwrap();
        if next.is_empty() {
            break;
        }
        after = next;
    }
    assert_eq!((pages, got), (3, records.len()));
    assert_eq!(resolve(&b.registry, "acme/tiny").await.unwrap().number, 2);
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn lists_come_in_pages_by_path_and_survive_a_reopening() {
    let house = House::new().await;
    for (seed, handle) in [(1, "zoo"), (2, "acme")] {
        house.registry.insert(profile(&key(seed), handle, 0)).await.unwrap();
        for name in ["b", "a", "c"] {
            house.registry.insert(revision(&key(seed), name, seed * 10)).await.unwrap();
        }
    }
    let house = house.reopen().await;
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let (page, next) = house.registry.list("", after, 4).await.unwrap();
        seen.extend(page.into_iter().map(|summary| summary.path));
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, ["acme/a", "acme/b", "acme/c", "zoo/a", "zoo/b", "zoo/c"]);
    assert_eq!(house.registry.list("zoo/", None, 10).await.unwrap().0.len(), 3);
    for (prefix, count) in
        [("zoo/a", 1), ("z", 3), ("datasets/", 0), ("d", 0), ("a", 3), ("Zoo/", 0), ("zoo", 3), ("zo/", 0)]
    {
        assert_eq!(house.registry.list(prefix, None, 10).await.unwrap().0.len(), count, "{prefix}");
    }
    assert_eq!(house.registry.list("", Some("nonsense".to_owned()), 10).await.unwrap(), (Vec::new(), None));
    house.registry.close().await;
}

#[tokio::test]
async fn those_without_a_handle_are_listed_after_those_with_one_whatever_the_size_of_a_page() {
    let house = House::new().await;
    for seed in 1..=6 {
        if seed % 2 == 0 {
            house.registry.insert(profile(&key(seed), &format!("h{seed}"), 0)).await.unwrap();
        }
        for name in ["a", "b"] {
            house.registry.insert(revision(&key(seed), name, seed * 10)).await.unwrap();
        }
    }
    let (whole, _) = house.registry.list("", None, 100).await.unwrap();
    let paths: Vec<String> = whole.into_iter().map(|summary| summary.path).collect();
    assert_eq!(paths[..6], ["h2/a", "h2/b", "h4/a", "h4/b", "h6/a", "h6/b"]);
    assert_eq!(paths.len(), 12);
    for limit in 1..=7 {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let (page, next) = house.registry.list("", after, limit).await.unwrap();
            seen.extend(page.into_iter().map(|summary| summary.path));
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, paths, "pages of {limit}");
    }
    let keyed = key(3).public().to_string();
    for (prefix, count) in
        [(keyed.clone(), 2), (format!("{keyed}/b"), 1), (keyed[..7].to_owned(), 2), (format!("{}/", &keyed[..7]), 0)]
    {
        assert_eq!(house.registry.list(&prefix, None, 10).await.unwrap().0.len(), count, "{prefix}");
    }
    house.registry.close().await;
}

#[tokio::test]
async fn repos_whose_names_differ_only_by_case_are_one() {
    let house = House::new().await;
    house.registry.insert(revision(&key(1), "Tiny", 1)).await.unwrap();
    house.registry.insert(revision(&key(1), "tiny", 2)).await.unwrap();
    let (page, _) = house.registry.list("", None, 10).await.unwrap();
    assert_eq!(page.len(), 1);
    assert!(page[0].path.ends_with("/Tiny"), "the name keeps the case that was first written: {}", page[0].path);
    house.registry.close().await;
}

#[tokio::test]
async fn mirrors_are_kept_over_a_reopening() {
    let house = House::new().await;
    let [everything, acme] = ["*", "acme/*"].map(|pattern| Policy::all_of(pattern.parse().unwrap()));
    assert!(house.registry.add_mirror(&everything).await.unwrap());
    assert!(!house.registry.add_mirror(&everything).await.unwrap());
    assert!(house.registry.add_mirror(&acme).await.unwrap());
    let acme = Policy { rules: Rules { priority: 3, quota_bytes: Some(7), ..Rules::default() }, ..acme };
    assert!(house.registry.add_mirror(&acme).await.unwrap(), "other rules are a change");
    let house = house.reopen().await;
    assert_eq!(house.registry.mirrors().await.unwrap(), [everything.clone(), acme]);
    assert!(house.registry.remove_mirror(&everything.pattern).await.unwrap().is_some());
    assert_eq!(house.registry.remove_mirror(&everything.pattern).await.unwrap(), None);
    assert_eq!(house.registry.mirrors().await.unwrap().len(), 1);
    house.registry.close().await;
}

#[tokio::test]
async fn those_who_watch_hear_of_changes_and_only_of_changes() {
    let house = House::new().await;
    let mut changes = house.registry.changes();
    let record = profile(&key(1), "acme", 0);
    house.registry.insert(record.clone()).await.unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    house.registry.insert(record).await.unwrap();
    assert!(!changes.has_changed().unwrap());
    house.registry.close().await;
}
