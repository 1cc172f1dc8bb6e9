//! Who signs for a publisher, what is said of revisions, and where they come from, against the real catalogue.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use cairn_protocol::{
    BlobHash, Keypair, PublisherKey, RevisionId,
    record::{Advisory, Attestation, Category, Head, Origin, Profile, Record, Revision, Subject},
};
use cairn_registry::{
    About, InsertError, Inserted, Notice, Registry, ResolveError, Weight,
    lineage::{Direction, Lineage},
};
use house::{House, REALM, head, key, profile, repo, revision, statement};

fn id(byte: u8) -> RevisionId {
    RevisionId::from([byte; 32])
}

/// The first profile of key 1, which names key 9 for recovery.
fn first_profile() -> Record {
    stated(0, 0, None, &key(1))
}

fn stated(epoch: u64, number: u64, signing: Option<&Keypair>, signer: &Keypair) -> Record {
    let profile = Profile {
        handle: "acme".parse().unwrap(),
        display_name: format!("Acme {epoch}.{number}"),
        epoch,
        recovery_key: Some(key(9).public()),
        previous: None,
        created_ms: 0,
        publisher: Some(key(1).public()),
        number,
        signing_key: signing.map(Keypair::public),
        members: Vec::new(),
    };
    profile.sign(REALM, signer).unwrap()
}

fn head_for(epoch: u64, number: u64, revision: u8, previous: Option<&Record>, signer: &Keypair) -> Record {
    let head =
        Head { epoch, publisher: Some(key(1).public()), ..head("tiny", number, revision, previous.map(Record::id)) };
    head.sign(REALM, signer).unwrap()
}

async fn main_of(registry: &Registry) -> Result<RevisionId, ResolveError> {
    registry.resolve(&"acme/tiny".parse().unwrap(), &[]).await.map(|resolved| resolved.revision)
}

/// A publisher with one revision; the record of its head.
async fn published(house: &House) -> Record {
    let head = head_for(0, 1, 1, None, &key(1));
    for record in [first_profile(), revision(&key(1), "tiny", 1), revision(&key(1), "tiny", 2), head.clone()] {
        house.registry.insert(record).await.unwrap();
    }
    head
}

#[tokio::test]
async fn nobody_signs_for_a_publisher_who_is_not_named_by_its_profiles() {
    let house = House::new().await;
    let first = published(&house).await;
    let forged = head_for(0, 2, 2, Some(&first), &key(66));
    assert!(matches!(house.registry.insert(forged).await, Err(InsertError::NotAuthorised { .. })));
    let body = Revision { publisher: Some(key(1).public()), ..statement("tiny", 7) };
    let forged = body.sign(REALM, &key(66)).unwrap();
    assert!(matches!(house.registry.insert(forged).await, Err(InsertError::NotAuthorised { .. })));
    let forged = stated(1, 0, Some(&key(66)), &key(66));
    assert!(matches!(house.registry.insert(forged).await, Err(InsertError::NotAuthorised { .. })));
    let beyond = head_for(4, 1, 2, Some(&first), &key(1));
    assert!(matches!(house.registry.insert(beyond).await, Err(InsertError::NotAuthorised { .. })), "no such epoch yet");
    assert_eq!(main_of(&house.registry).await.unwrap(), id(1));
    house.registry.close().await;
}

#[tokio::test]
async fn a_member_signs_revisions_and_heads_of_its_organisation() {
    let house = House::new().await;
    let first = published(&house).await;
    let mut with_member = Profile::parse(&stated(0, 1, None, &key(1)).envelope().payload).unwrap();
    with_member.members = vec![key(5).public()];
    house.registry.insert(with_member.sign(REALM, &key(1)).unwrap()).await.unwrap();
    let body = Revision { publisher: Some(key(1).public()), ..statement("tiny", 7) };
    house.registry.insert(body.sign(REALM, &key(5)).unwrap()).await.unwrap();
    house.registry.insert(head_for(0, 2, 7, Some(&first), &key(5))).await.unwrap();
    assert_eq!(main_of(&house.registry).await.unwrap(), id(7));
    house.registry.close().await;
}

#[tokio::test]
async fn after_a_rotation_the_old_key_moves_nothing() {
    let house = House::new().await;
    let first = published(&house).await;
    house.registry.insert(stated(1, 0, Some(&key(2)), &key(1))).await.unwrap();
    let by_thief = head_for(0, 2, 2, Some(&first), &key(1));
    house.registry.insert(by_thief).await.unwrap();
    assert!(matches!(main_of(&house.registry).await, Err(ResolveError::BeforeRotation { .. })));
    let in_new_epoch = head_for(1, 1, 2, Some(&first), &key(1));
    assert!(matches!(house.registry.insert(in_new_epoch).await, Err(InsertError::NotAuthorised { .. })));
    house.registry.insert(head_for(1, 1, 1, Some(&first), &key(2))).await.unwrap();
    assert_eq!(main_of(&house.registry).await.unwrap(), id(1));
    let house = house.reopen().await;
    assert_eq!(main_of(&house.registry).await.unwrap(), id(1));
    house.registry.close().await;
}

#[tokio::test]
async fn who_has_the_recovery_key_takes_the_name_back_from_a_thief_who_rotated_first() {
    let house = House::new().await;
    let first = published(&house).await;
    let thief = key(66);
    house.registry.insert(stated(1, 0, Some(&thief), &key(1))).await.unwrap();
    let stolen = head_for(1, 1, 2, Some(&first), &thief);
    house.registry.insert(stolen.clone()).await.unwrap();
    assert_eq!(main_of(&house.registry).await.unwrap(), id(2));
    house.registry.insert(stated(1, 0, Some(&key(2)), &key(9))).await.unwrap();
    assert!(
        matches!(main_of(&house.registry).await, Err(ResolveError::BeforeRotation { .. })),
        "the thief's head is gone"
    );
    assert!(matches!(
        house.registry.insert(head_for(1, 2, 2, Some(&stolen), &thief)).await,
        Err(InsertError::NotAuthorised { .. })
    ));
    house.registry.insert(head_for(1, 1, 1, Some(&first), &key(2))).await.unwrap();
    assert_eq!(main_of(&house.registry).await.unwrap(), id(1));
    let state = house.registry.publisher(key(1).public()).await.unwrap();
    assert_eq!(state.authority.now().1.signing_key, key(2).public());
    house.registry.close().await;
}

/// Whatever is heard first: what does not fit yet is offered again, as peers do, and all nodes end with the same set and answer.
#[tokio::test]
async fn rotations_members_and_heads_end_alike_in_any_order() {
    let first = head_for(0, 1, 1, None, &key(1));
    let mut with_member = Profile::parse(&stated(1, 1, Some(&key(2)), &key(2)).envelope().payload).unwrap();
    with_member.members = vec![key(5).public()];
    let in_new = head_for(1, 1, 1, Some(&first), &key(2));
    let by_member = Revision { publisher: Some(key(1).public()), ..statement("tiny", 7) }.sign(REALM, &key(5)).unwrap();
    let records = [
        first_profile(),
        revision(&key(1), "tiny", 1),
        first,
        stated(1, 0, Some(&key(2)), &key(9)),
        with_member.sign(REALM, &key(2)).unwrap(),
        in_new.clone(),
        by_member,
        head_for(1, 2, 7, Some(&in_new), &key(5)),
    ];
    for shift in 0..records.len() {
        for is_backwards in [false, true] {
            let house = House::new().await;
            let mut order: Vec<Record> = records[shift..].iter().chain(&records[..shift]).cloned().collect();
            if is_backwards {
                order.reverse();
            }
            for _ in 0..records.len() {
                house.registry.insert_page(order.clone()).await.unwrap();
            }
            let live = house.registry.live_records().await.unwrap();
            assert_eq!((live, main_of(&house.registry).await.unwrap()), (records.len() as u64, id(7)), "{shift}");
            house.registry.close().await;
        }
    }
}

fn advisory(name: &str, number: u64, category: Category, subjects: Vec<Subject>) -> Advisory {
    Advisory {
        name: name.into(),
        number,
        category,
        is_withdrawn: false,
        subjects,
        text: "it calls home".into(),
        url: String::new(),
        instead: String::new(),
        created_ms: 0,
    }
}

fn about() -> About {
    About { repo: repo(&key(1), "tiny"), revision: id(1), blobs: vec![BlobHash::from([8; 32])] }
}

async fn said(registry: &Registry, own: &[PublisherKey]) -> Vec<(String, Weight)> {
    let of = |notice: Notice| (notice.advisory.name, notice.weight);
    registry.advisories(about(), own).await.unwrap().into_iter().map(of).collect()
}

#[tokio::test]
async fn advisories_count_by_who_signed_them_and_strangers_hide_none() {
    let house = House::new().await;
    published(&house).await;
    let on_repo = vec![Subject::Repo(repo(&key(1), "tiny"))];
    for n in 0..100u32 {
        let rumour = advisory(&format!("rumour-{n}"), 1, Category::Malware, vec![Subject::Revision(id(1))]);
        let signer = Keypair::from_seed([n as u8 + 100; 32]);
        house.registry.insert(rumour.sign(REALM, &signer).unwrap()).await.unwrap();
    }
    let yanked = advisory("yank", 1, Category::Yanked, vec![Subject::Revision(id(1))]);
    house.registry.insert(yanked.sign(REALM, &key(1)).unwrap()).await.unwrap();
    let warned = advisory("lab-1", 1, Category::Legal, vec![Subject::Blob(BlobHash::from([8; 32]))]);
    house.registry.insert(warned.sign(REALM, &key(7)).unwrap()).await.unwrap();
    let old = advisory("own", 1, Category::Deprecated, on_repo);
    house.registry.insert(old.sign(REALM, &key(3)).unwrap()).await.unwrap();
    let own = [key(3).public()];
    let heard = said(&house.registry, &own).await;
    assert_eq!(heard[..2], [("own".into(), Weight::Own), ("yank".into(), Weight::Publisher)]);
    assert!(heard[2..].iter().all(|(_, weight)| *weight == Weight::Hearsay) && heard.len() <= 2 + 64);
    assert!(house.registry.heed(key(7).public(), true).await.unwrap());
    assert!(said(&house.registry, &own).await.contains(&("lab-1".into(), Weight::Adviser)));
    assert!(house.registry.heed(key(7).public(), false).await.unwrap());
    assert!(!said(&house.registry, &own).await.contains(&("lab-1".into(), Weight::Adviser)));
    house.registry.close().await;
}

#[tokio::test]
async fn a_later_number_replaces_an_advisory_and_a_withdrawn_one_is_not_told() {
    let house = House::new().await;
    published(&house).await;
    let whole = advisory("yank", 1, Category::Yanked, vec![Subject::Repo(repo(&key(1), "tiny"))]);
    house.registry.insert(whole.sign(REALM, &key(1)).unwrap()).await.unwrap();
    assert_eq!(said(&house.registry, &[]).await.len(), 1);
    let live = house.registry.live_records().await.unwrap();
    let other = advisory("yank", 2, Category::Yanked, vec![Subject::Revision(id(2))]);
    house.registry.insert(other.sign(REALM, &key(1)).unwrap()).await.unwrap();
    assert_eq!(said(&house.registry, &[]).await, [], "it is about another revision now");
    let stale = house.registry.insert(whole.sign(REALM, &key(1)).unwrap()).await.unwrap();
    assert!(matches!(stale, Inserted::Stale | Inserted::Known));
    let back = Advisory { number: 3, is_withdrawn: true, ..whole };
    house.registry.insert(back.sign(REALM, &key(1)).unwrap()).await.unwrap();
    assert_eq!(said(&house.registry, &[]).await, []);
    assert_eq!(house.registry.live_records().await.unwrap(), live, "one of each name is compared with peers");
    house.registry.close().await;
}

#[tokio::test]
async fn attestations_are_told_with_whose_word_they_are() {
    let house = House::new().await;
    published(&house).await;
    let scan = |number, verdict: &str| Attestation {
        revision: id(1),
        r#type: "scan".into(),
        tool: "cairn scan".into(),
        tool_version: "1".into(),
        number,
        is_withdrawn: false,
        verdict: verdict.into(),
        measurements: Vec::new(),
        text: String::new(),
        materials: Vec::new(),
        report: None,
        created_ms: 0,
    };
    for (signer, number, verdict) in [(4, 1, "unsafe"), (1, 1, "code"), (1, 2, "clean")] {
        house.registry.insert(scan(number, verdict).sign(REALM, &key(signer)).unwrap()).await.unwrap();
    }
    let told = house.registry.attestations(key(1).public(), id(1), &[]).await.unwrap();
    let told: Vec<_> = told.iter().map(|told| (told.attestation.verdict.as_str(), told.weight)).collect();
    assert_eq!(told, [("clean", Weight::Publisher), ("unsafe", Weight::Hearsay)]);
    let next = house.registry.next_attestation(key(1).public(), id(1), "scan", "cairn scan").await.unwrap();
    assert_eq!(next, 3);
    house.registry.close().await;
}

fn edges(lineage: &Lineage) -> Vec<(u32, &str, &str, &str)> {
    lineage
        .edges
        .iter()
        .map(|edge| (edge.depth, edge.relation.as_str(), edge.child.path.as_str(), edge.origin.path.as_str()))
        .collect()
}

/// base ← tuned (by its card) ← quantised (by an exact origin), of three publishers.
async fn family(house: &House) {
    let registry = &house.registry;
    for (signer, handle) in [(1, "acme"), (2, "tuners"), (3, "packers")] {
        registry.insert(profile(&key(signer), handle, 0)).await.unwrap();
    }
    let mut tuned = statement("tuned", 11);
    tuned.card.base_models = vec!["Acme/base".into(), "tuners/tuned".into()];
    tuned.card.datasets = vec!["acme/poems".into()];
    let origin = Origin { relation: "quantized".into(), repo: repo(&key(2), "tuned"), revision: Some(id(11)) };
    let packed = Revision { origins: vec![origin], ..statement("packed", 12) };
    for (signer, body, at) in [(1, statement("base", 10), 10), (2, tuned, 11), (3, packed, 12)] {
        let first = head(body.name.as_str(), 1, at, None).sign(REALM, &key(signer)).unwrap();
        registry.insert(body.sign(REALM, &key(signer)).unwrap()).await.unwrap();
        registry.insert(first).await.unwrap();
    }
}

#[tokio::test]
async fn a_lineage_is_followed_both_ways() {
    let house = House::new().await;
    family(&house).await;
    let up = house.registry.lineage(&repo(&key(3), "packed"), id(12), Direction::Up, 8).await.unwrap();
    let expected = [
        (1, "quantized", "packers/packed", "tuners/tuned"),
        (2, "finetune", "tuners/tuned", "acme/base"),
        (2, "dataset", "tuners/tuned", "acme/poems"),
    ];
    assert_eq!(edges(&up), expected);
    let down = house.registry.lineage(&repo(&key(1), "base"), id(10), Direction::Down, 8).await.unwrap();
    let expected = [(1, "finetune", "tuners/tuned", "acme/base"), (2, "quantized", "packers/packed", "tuners/tuned")];
    assert_eq!(edges(&down), expected);
    let near = house.registry.lineage(&repo(&key(1), "base"), id(10), Direction::Down, 1).await.unwrap();
    assert_eq!(near.edges.len(), 1);
    house.registry.close().await;
}
