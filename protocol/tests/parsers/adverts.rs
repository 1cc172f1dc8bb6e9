//! Signed adverts.

use cairn_protocol::advert::{Advert, AdvertError, Capacity, Gpu, Grant, Grants, Load, SignedAdvert};
use cairn_protocol::limits::ADVERT_BYTES_MAX;
use cairn_protocol::{Keypair, RealmId, RevisionId, peer_pb};
use proptest::prelude::*;
use prost::Message;

use crate::{cases, mutations};

fn identity() -> Keypair {
    Keypair::from_seed([3; 32])
}

fn advert() -> Advert {
    Advert {
        realm: RealmId::PUBLIC,
        node: identity().node_id(),
        incarnation: 4,
        sequence: 5,
        ttl_ms: 60_000,
        talk_addresses: vec!["/ip4/10.0.0.1/tcp/4177".into()],
        data_addresses: vec!["10.0.0.1:4178".parse().unwrap(), "[::1]:4178".parse().unwrap()],
        relay_urls: vec![],
        capacity: Capacity {
            cpu: "Some CPU".into(),
            cores: 8,
            memory_bytes: 1 << 34,
            level: "avx2".into(),
            gpus: vec![Gpu { name: "Some GPU".into(), memory_bytes: 1, driver: "2".into() }],
            bandwidth_bytes_per_s: 3,
            macs_per_s: 4,
            stage_memory_bytes: 5,
        },
        grants: Grants { store: Grant::Realm, compute: Grant::Anyone, train: Grant::Nobody },
        load: Load { sessions: 1, sessions_max: 2, stage_memory_free_bytes: 3, loads: 1, tasks: 2, tasks_max: 4 },
        agent: "cairn/0.1.0".into(),
        holds: vec![RevisionId::from([9; 32])],
        tasks: vec!["embed".into()],
        warm: vec![RevisionId::from([8; 32])],
        mirrors: true,
    }
}

#[test]
fn an_advert_survives_its_bytes() {
    let signed = SignedAdvert::sign(&advert(), &identity()).unwrap();
    assert_eq!(SignedAdvert::from_bytes(&signed.to_bytes()).unwrap().verify(), Ok(advert()));
    assert_eq!(SignedAdvert::from_pb(signed.to_pb()).unwrap(), signed);
}

#[test]
fn an_advert_of_another_node_is_refused() {
    let error = SignedAdvert::sign(&advert(), &Keypair::from_seed([4; 32])).unwrap_err();
    assert_eq!(error, AdvertError::BadSignature);
}

#[test]
fn an_advert_outside_of_its_limits_can_not_be_made() {
    let revision = RevisionId::from([1; 32]);
    for (field, wrong) in [
        ("ttl_ms", Advert { ttl_ms: 0, ..advert() }),
        ("ttl_ms", Advert { ttl_ms: 3_600_001, ..advert() }),
        ("holds", Advert { holds: vec![revision; 33], ..advert() }),
        ("tasks", Advert { tasks: vec!["x".into(); 17], ..advert() }),
        ("tasks", Advert { tasks: vec!["a\x1b[2J".into()], ..advert() }),
        ("warm", Advert { warm: vec![revision; 17], ..advert() }),
        ("talk_addresses", Advert { talk_addresses: vec!["x".into(); 17], ..advert() }),
        ("relay_urls", Advert { relay_urls: vec!["a\x1b[2J".into()], ..advert() }),
        ("agent", Advert { agent: "x".repeat(129), ..advert() }),
    ] {
        assert_eq!(SignedAdvert::sign(&wrong, &identity()), Err(AdvertError::Invalid(field)));
    }
    let long = Advert { talk_addresses: vec!["x".repeat(256); 16], ..advert() };
    assert!(matches!(SignedAdvert::sign(&long, &identity()), Err(AdvertError::TooLarge(_))));
    assert_eq!(SignedAdvert::from_bytes(&[0; ADVERT_BYTES_MAX + 1]), Err(AdvertError::TooLarge(ADVERT_BYTES_MAX + 1)));
}

#[test]
fn a_grant_that_is_not_understood_is_the_narrowest() {
    let signed = SignedAdvert::sign(&advert(), &identity()).unwrap().to_pb();
    let mut pb = peer_pb::Advert::decode(&signed.payload[..]).unwrap();
    pb.grants = Some(peer_pb::Grants { store: 99, compute: 0, train: 4 });
    let payload = pb.encode_to_vec();
    let signature = identity().sign(b"cairn/advert/1", &payload).to_vec();
    let read = SignedAdvert::from_pb(peer_pb::SignedAdvert { payload, signature }).unwrap().verify().unwrap();
    assert_eq!(read.grants, Grants { store: Grant::Nobody, compute: Grant::Nobody, train: Grant::Anyone });
}

#[test]
fn the_later_of_two_adverts_is_the_one_of_the_later_start() {
    let restarted = Advert { incarnation: 5, sequence: 0, ..advert() };
    assert!(
        restarted.is_newer_than(&advert()) && !advert().is_newer_than(&restarted) && !advert().is_newer_than(&advert())
    );
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_bytes_are_no_advert(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(SignedAdvert::from_bytes(&bytes).and_then(|signed| signed.verify()).is_err());
    }

    #[test]
    fn a_damaged_advert_never_says_something_else(changes in mutations()) {
        let mut bytes = SignedAdvert::sign(&advert(), &identity()).unwrap().to_bytes();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(read) = SignedAdvert::from_bytes(&bytes).and_then(|signed| signed.verify()) {
            prop_assert_eq!(read, advert());
        }
    }
}
