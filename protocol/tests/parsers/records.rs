//! Signed records. Not the catalogue's rules.

use cairn_protocol::limits::{RECORD_BYTES_MAX, REVISION_BYTES_MAX};
use cairn_protocol::record::{
    Advisory, Attestation, Body, CardFacts, Category, Head, Measurement, Origin, Profile, Record, RecordError,
    RecordKind, Revision, Subject,
};
use cairn_protocol::{BlobHash, Keypair, RealmId, RecordId, RepoId, RepoKind, RevisionId, record_pb};
use proptest::prelude::*;
use prost::Message;

use crate::{cases, mutations};

fn key() -> Keypair {
    Keypair::from_seed([1; 32])
}

fn head() -> Head {
    Head {
        kind: cairn_protocol::RepoKind::Model,
        name: "Tiny".parse().unwrap(),
        ref_name: "release/1".parse().unwrap(),
        epoch: 0,
        number: 3,
        revision: RevisionId::from([5; 32]),
        previous: Some(RecordId::from([6; 32])),
        created_ms: -1,
        tag: true,
        publisher: None,
    }
}

fn revision() -> Revision {
    Revision {
        revision: RevisionId::from([5; 32]),
        manifest_bytes: 100,
        kind: cairn_protocol::RepoKind::Adapter,
        name: "tiny".parse().unwrap(),
        parents: vec![RevisionId::from([7; 32])],
        files: 2,
        bytes: 10,
        message: "first".into(),
        created_ms: 1,
        architecture: "llama".into(),
        parameters: 15_000_000,
        license: "apache-2.0".into(),
        quantisation: String::new(),
        tags: vec!["small".into()],
        card: Box::new(CardFacts {
            task: "text-generation".into(),
            library: "transformers".into(),
            languages: vec!["en".into(), "pt-br".into()],
            base_models: vec!["acme/base".into()],
            base_model_relation: "finetune".into(),
            datasets: vec!["acme/poems".into()],
            text: "It writes poems.".into(),
        }),
        publisher: None,
        origins: Vec::new(),
    }
}

fn advisory() -> Advisory {
    let repo = RepoId { publisher: key().public(), kind: RepoKind::Dataset, name: "poems".parse().unwrap() };
    Advisory {
        name: "2026-003".into(),
        number: 2,
        category: Category::Malware,
        is_withdrawn: true,
        subjects: vec![
            Subject::Publisher(key().public()),
            Subject::Repo(repo),
            Subject::Revision(RevisionId::from([4; 32])),
            Subject::Blob(BlobHash::from([5; 32])),
        ],
        text: "it calls home".into(),
        url: "https://example.org/2026-003".into(),
        instead: "acme/tiny@v2".into(),
        created_ms: 9,
    }
}

fn attestation() -> Attestation {
    Attestation {
        revision: RevisionId::from([4; 32]),
        r#type: "evaluation".into(),
        tool: "cairn eval".into(),
        tool_version: "0.1".into(),
        number: 1,
        is_withdrawn: false,
        verdict: "passed".into(),
        measurements: vec![Measurement {
            name: "perplexity".into(),
            value: 12.5,
            unit: "nats".into(),
            on: "datasets/acme/poems".into(),
        }],
        text: "on the first 4,096 tokens".into(),
        materials: vec![Origin {
            relation: "dataset".into(),
            repo: RepoId { publisher: key().public(), kind: RepoKind::Dataset, name: "poems".parse().unwrap() },
            revision: None,
        }],
        report: Some(BlobHash::from([6; 32])),
        created_ms: 10,
    }
}

#[test]
fn advisories_and_attestations_that_break_a_rule_are_refused() {
    let refused = |field| Err(RecordError::Invalid { field });
    let sign = |advisory: Advisory| advisory.sign(RealmId::PUBLIC, &key()).map(drop);
    assert_eq!(sign(Advisory { subjects: vec![], ..advisory() }), refused("subjects"));
    assert_eq!(sign(Advisory { number: 0, ..advisory() }), refused("number"));
    assert_eq!(sign(Advisory { name: String::new(), ..advisory() }), refused("name"));
    assert_eq!(sign(Advisory { name: "a\0b".into(), ..advisory() }), refused("name"));
    let many = vec![Subject::Publisher(key().public()); 65];
    assert_eq!(sign(Advisory { subjects: many, ..advisory() }), refused("subjects"));
    let unknown =
        record_pb::Advisory { category: 99, ..record_pb::Advisory::decode(&advisory().encode()[..]).unwrap() };
    assert_eq!(Advisory::parse(&unknown.encode_to_vec()).map(drop), refused("category"));
    let sign = |attestation: Attestation| attestation.sign(RealmId::PUBLIC, &key()).map(drop);
    assert_eq!(sign(Attestation { r#type: String::new(), ..attestation() }), refused("type"));
    let endless = Measurement { value: f64::INFINITY, ..attestation().measurements[0].clone() };
    assert_eq!(sign(Attestation { measurements: vec![endless], ..attestation() }), refused("measurements"));
}

#[test]
fn every_body_survives_signing_and_verification() {
    let profile = Profile {
        handle: "acme".parse().unwrap(),
        display_name: "Acme".into(),
        epoch: 1,
        recovery_key: Some(key().public()),
        previous: None,
        created_ms: 2,
        publisher: Some(Keypair::from_seed([2; 32]).public()),
        number: 3,
        signing_key: Some(key().public()),
        members: vec![Keypair::from_seed([3; 32]).public()],
    };
    let records = [
        (profile.sign(RealmId::PUBLIC, &key()).unwrap(), Body::Profile(profile)),
        (revision().sign(RealmId::PUBLIC, &key()).unwrap(), Body::Revision(revision())),
        (head().sign(RealmId::PUBLIC, &key()).unwrap(), Body::Head(head())),
        (advisory().sign(RealmId::PUBLIC, &key()).unwrap(), Body::Advisory(advisory())),
        (attestation().sign(RealmId::PUBLIC, &key()).unwrap(), Body::Attestation(attestation())),
    ];
    for (record, body) in records {
        let again = Record::verify(&record.to_bytes()).unwrap();
        assert_eq!(again, record);
        assert_eq!((again.id(), again.key(), again.body()), (record.id(), key().public(), Ok(body)));
    }
}

#[test]
fn the_id_is_the_hash_of_the_signed_bytes_and_the_key() {
    let realm = RealmId::from([9; 32]);
    let record = Record::sign(RecordKind::Head, realm, b"payload".to_vec(), &key()).unwrap();
    let said = [&b"cairn/record/1"[..], &3u32.to_le_bytes(), &[9; 32], b"payload", key().public().as_bytes()].concat();
    assert_eq!(record.id().as_bytes(), blake3::hash(&said).as_bytes());
    let other = Record::sign(RecordKind::Head, realm, b"payload".to_vec(), &Keypair::from_seed([2; 32])).unwrap();
    assert_ne!(record.id(), other.id());
}

#[test]
fn a_change_of_anything_signed_is_noticed() {
    let envelope = head().sign(RealmId::PUBLIC, &key()).unwrap().envelope().clone();
    let changed = [
        record_pb::Envelope { kind: 1, ..envelope.clone() },
        record_pb::Envelope { realm: vec![1; 32], ..envelope.clone() },
        record_pb::Envelope { key: Keypair::from_seed([2; 32]).public().to_vec(), ..envelope.clone() },
        record_pb::Envelope { payload: [&envelope.payload[..], &[0x78, 1]].concat(), ..envelope.clone() },
    ];
    for envelope in changed {
        assert_eq!(Record::from_envelope(envelope), Err(RecordError::BadSignature));
    }
}

#[test]
fn fields_that_are_not_known_survive_in_the_payload_and_are_dropped_around_it() {
    let payload = [head().encode(), vec![0xf8, 0x07, 42]].concat();
    let record = Record::sign(RecordKind::Head, RealmId::PUBLIC, payload.clone(), &key()).unwrap();
    let with_baggage = [record.to_bytes(), vec![0xf8, 0x07, 42]].concat();
    let again = Record::verify(&with_baggage).unwrap();
    assert_eq!(again.envelope().payload, payload);
    assert_eq!(again.body(), Ok(Body::Head(head())));
    assert_eq!(again.to_bytes(), record.to_bytes());
}

#[test]
fn an_unknown_kind_or_version_is_told_apart_from_a_malformed_record() {
    let envelope = head().sign(RealmId::PUBLIC, &key()).unwrap().envelope().clone();
    let kind = record_pb::Envelope { kind: 77, ..envelope.clone() };
    assert_eq!(Record::from_envelope(kind), Err(RecordError::UnknownKind(77)));
    let version = record_pb::Envelope { version: 2, ..envelope };
    assert_eq!(Record::from_envelope(version), Err(RecordError::UnknownVersion(2)));
}

#[test]
fn records_above_their_limit_are_refused_by_signer_and_reader() {
    let revision = Record::sign(RecordKind::Revision, RealmId::PUBLIC, vec![0; REVISION_BYTES_MAX + 1], &key());
    assert!(matches!(revision, Err(RecordError::TooLarge { max: REVISION_BYTES_MAX, .. })));
    let any = Record::sign(RecordKind::Profile, RealmId::PUBLIC, vec![0; RECORD_BYTES_MAX], &key());
    assert!(matches!(any, Err(RecordError::TooLarge { max: RECORD_BYTES_MAX, .. })));
    assert!(matches!(Record::verify(&vec![0; RECORD_BYTES_MAX + 1]), Err(RecordError::TooLarge { .. })));
}

#[test]
fn bodies_that_break_a_rule_are_refused() {
    let zero = Head { number: 0, ..head() };
    assert_eq!(zero.sign(RealmId::PUBLIC, &key()), Err(RecordError::Invalid { field: "number" }));
    let many = Revision { parents: vec![RevisionId::from([1; 32]); 17], ..revision() };
    assert_eq!(many.sign(RealmId::PUBLIC, &key()), Err(RecordError::Invalid { field: "parents" }));
    let long = Revision { license: "x".repeat(129), ..revision() };
    assert_eq!(long.sign(RealmId::PUBLIC, &key()), Err(RecordError::Invalid { field: "license" }));
    let short = record_pb::Head {
        revision: vec![1; 31],
        number: 1,
        kind: 1,
        name: "x".into(),
        r#ref: "main".into(),
        ..Default::default()
    };
    assert_eq!(Head::parse(&short.encode_to_vec()), Err(RecordError::Invalid { field: "revision" }));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Record::verify(&bytes).is_err());
        let _ = (Profile::parse(&bytes), Revision::parse(&bytes), Head::parse(&bytes));
        let _ = (Advisory::parse(&bytes), Attestation::parse(&bytes));
    }

    #[test]
    fn a_damaged_record_never_says_something_else(changes in mutations()) {
        let record = revision().sign(RealmId::PUBLIC, &key()).unwrap();
        let mut bytes = record.to_bytes();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(read) = Record::verify(&bytes) {
            prop_assert_eq!(read, record);
        }
    }
}

#[test]
fn the_largest_card_is_cut_until_its_record_is_taken() {
    let words = |count: usize, bytes: usize| (0..count).map(|n| format!("{n:0bytes$}")).collect::<Vec<_>>();
    let full = Revision {
        message: "m".repeat(4096),
        tags: words(64, 128),
        card: Box::new(CardFacts {
            languages: words(128, 128),
            base_models: words(16, 256),
            datasets: words(32, 256),
            text: "é".repeat(2048),
            ..CardFacts::default()
        }),
        ..revision()
    };
    assert!(full.sign(RealmId::PUBLIC, &key()).is_err(), "it is too large as it is");
    let cut = full.clone().cut_to_fit();
    assert!(cut.sign(RealmId::PUBLIC, &key()).is_ok());
    assert!(cut.card.text.is_empty() && cut.card.datasets.is_empty() && cut.card.base_models == full.card.base_models);
    assert_eq!(revision().cut_to_fit(), revision());
}
