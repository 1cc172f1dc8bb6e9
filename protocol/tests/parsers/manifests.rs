//! Manifests: round trip, every rule, hostile bytes.

use cairn_protocol::manifest::{
    Experts, Manifest, ManifestError, ManifestFile, Model, Naming, RopeScaling, TensorEntry, Variations,
};
use cairn_protocol::{BlobHash, Dtype, Keypair, RealmId, RepoId, RepoKind, RevisionId, record_pb};
use proptest::prelude::*;
use prost::Message;

use crate::{cases, mutations};

fn file(path: &str, size: u64, header_bytes: u64) -> ManifestFile {
    let blake3 = BlobHash::of(path.as_bytes());
    ManifestFile { path: path.parse().unwrap(), size, blake3, sha256: [2; 32], git_sha1: [3; 20], header_bytes }
}

fn tensor(name: &str, offset: u64, elements: u64) -> TensorEntry {
    TensorEntry { name: name.into(), file: 1, offset, length: elements * 4, dtype: Dtype::F32, shape: vec![elements] }
}

fn model() -> Model {
    Model {
        architecture: "llama".into(),
        layers: 2,
        width: 64,
        heads: 4,
        kv_heads: 2,
        head_width: 16,
        feed_forward: 128,
        vocabulary: 1000,
        norm_epsilon: 1e-5,
        rope_base: 10_000.0,
        context_max: 2048,
        tied_embeddings: true,
        attention_bias: false,
        naming: Naming::HuggingFace,
        rope_half_split: true,
        eos_tokens: vec![2],
        bos_token: Some(0),
        rope_scaling: None,
        window: None,
        variations: Variations::default(),
    }
}

fn manifest() -> Manifest {
    Manifest {
        realm: RealmId::PUBLIC,
        repo: RepoId {
            publisher: Keypair::from_seed([1; 32]).public(),
            kind: RepoKind::Model,
            name: "tiny".parse().unwrap(),
        },
        parents: vec![RevisionId::from([8; 32])],
        files: vec![file("config.json", 10, 0), file("model.safetensors", 1000, 100), file("empty", 0, 0)],
        tensors: vec![tensor("a", 100, 25), tensor("b", 200, 200)],
        model: Some(model()),
        message: "hello".into(),
        created_ms: 5,
        metadata: vec![("license".into(), "mit".into())],
    }
}

fn refused(change: impl FnOnce(&mut Manifest)) -> ManifestError {
    let mut manifest = manifest();
    change(&mut manifest);
    manifest.seal().unwrap_err()
}

#[test]
fn a_manifest_survives_its_bytes_and_its_id_is_their_hash() {
    let (id, bytes) = manifest().seal().unwrap();
    assert_eq!(Manifest::parse(&bytes), Ok(manifest()));
    assert_eq!((id, id.blob()), (manifest().id(), BlobHash::of(&bytes)));
    assert_eq!(manifest().bytes(), 1010);
    assert_eq!(manifest().tensor("b").unwrap().offset, 200);
    assert!(manifest().file("config.json").is_some() && manifest().file("Config.json").is_none());
}

#[test]
fn paths_that_collide_on_some_system_are_refused() {
    for (a, b) in [("x", "x"), ("Readme.md", "README.md"), ("a", "a/b"), ("A/b", "a"), ("Ä.txt", "ä.txt")] {
        let error = refused(|m| m.files.extend([file(a, 1, 0), file("a.b", 1, 0), file(b, 1, 0)]));
        assert!(matches!(error, ManifestError::PathCollision(_)), "{a} and {b}: {error}");
    }
}

#[test]
fn impossible_paths_are_refused() {
    let mut pb = record_pb::Manifest::decode(&manifest().encode()[..]).unwrap();
    for path in ["../x", "/x", "C:\\x", "nul", "a\0"] {
        pb.files[0].path = path.into();
        assert!(matches!(Manifest::parse(&pb.encode_to_vec()), Err(ManifestError::Path(_))), "{path:?}");
    }
}

#[test]
fn tensors_that_lie_elsewhere_are_refused() {
    let elsewhere: [(&str, fn(&mut TensorEntry)); 7] = [
        ("another file", |t| t.file = 3),
        ("past the end", |t| t.offset = 201),
        ("overflow", |t| t.offset = u64::MAX),
        ("in the header", |t| t.offset = 99),
        ("on another", |t| t.offset = 196),
        ("too long for its shape", |t| t.length = 801),
        ("an endless shape", |t| t.shape = vec![u64::MAX, 2]),
    ];
    for (what, change) in elsewhere {
        let error = refused(|m| change(&mut m.tensors[1]));
        assert!(matches!(error, ManifestError::Tensor { .. }), "{what}: {error}");
    }
    assert!(matches!(refused(|m| m.tensors[1].name = "a".into()), ManifestError::Tensor { .. }));
}

#[test]
fn models_that_divide_by_zero_or_overflow_are_refused() {
    let impossible: [(&str, fn(&mut Model)); 8] = [
        ("layers", |m| m.layers = 0),
        ("layers", |m| m.layers = u32::MAX),
        ("kv_heads", |m| m.kv_heads = 0),
        ("kv_heads", |m| m.kv_heads = 3),
        ("head_width", |m| m.head_width = 1 << 24),
        ("norm_epsilon", |m| m.norm_epsilon = f64::NAN),
        ("rope_base", |m| m.rope_base = f64::INFINITY),
        ("eos_tokens", |m| m.eos_tokens = vec![1; 65]),
    ];
    for (field, change) in impossible {
        let error = refused(|m| change(m.model.as_mut().unwrap()));
        assert_eq!(error, ManifestError::Model(field));
    }
}

#[test]
fn rope_scaling_survives_its_bytes_and_its_absence_adds_none() {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 };
    for scaling in [RopeScaling::Linear { factor: 4.0 }, llama3, RopeScaling::Tensor] {
        let with = Manifest { model: Some(Model { rope_scaling: Some(scaling), ..model() }), ..manifest() };
        assert_eq!(Manifest::parse(&with.encode()), Ok(with.clone()));
        assert!(with.encode().len() > manifest().encode().len());
    }
    let mut pb = record_pb::Manifest::decode(&manifest().encode()[..]).unwrap();
    assert_eq!(pb.model.as_ref().unwrap().rope_scaling, None);
    pb.model.as_mut().unwrap().rope_scaling = Some(record_pb::RopeScaling { kind: 77, ..Default::default() });
    let later = Manifest::parse(&pb.encode_to_vec()).unwrap().model.unwrap();
    assert_eq!(later.rope_scaling, Some(RopeScaling::Unknown), "kept and listed, for others to compute");
}

#[test]
fn a_window_survives_its_bytes_and_its_absence_adds_none() {
    for window in [1, 4096, u32::MAX] {
        let window = std::num::NonZeroU32::new(window);
        let with = Manifest { model: Some(Model { window, ..model() }), ..manifest() };
        assert_eq!(Manifest::parse(&with.encode()), Ok(with.clone()));
        assert!(with.encode().len() > manifest().encode().len());
    }
}

fn all_variations() -> [Variations; 6] {
    let number = std::num::NonZeroU32::new;
    let none = Variations::default();
    [
        Variations { full_attention_every: number(6), ..none },
        Variations { window_rope_base: Some(10_000.0), ..none },
        Variations { unrotated_every: number(4), ..none },
        Variations { experts: Some(Experts { count: 128, used: 8, normalised: true }), ..none },
        Variations { query_scalar: Some(168.0), ..none },
        Variations { rotary_width: number(12), ..none },
    ]
}

#[test]
fn variations_survive_their_bytes_and_their_absence_adds_none() {
    for variations in all_variations() {
        let with = Manifest { model: Some(Model { variations, ..model() }), ..manifest() };
        assert_eq!(Manifest::parse(&with.encode()), Ok(with.clone()));
        assert!(with.encode().len() > manifest().encode().len());
    }
}

#[test]
fn impossible_variations_are_refused() {
    let none = Variations::default();
    let experts = |count, used| Variations { experts: Some(Experts { count, used, normalised: true }), ..none };
    let rotary = |n| Variations { rotary_width: std::num::NonZeroU32::new(n), ..none };
    for (variations, field) in [
        (Variations { window_rope_base: Some(-1.0), ..none }, "window_rope_base"),
        (Variations { query_scalar: Some(f64::NAN), ..none }, "query_scalar"),
        (experts(0, 0), "experts"),
        (experts(4, 0), "experts"),
        (experts(4, 5), "experts"),
        (experts(u32::MAX, 1), "experts"),
        (rotary(7), "rotary_width"),
        (rotary(18), "rotary_width"),
    ] {
        assert_eq!(refused(|m| m.model.as_mut().unwrap().variations = variations), ManifestError::Model(field));
    }
}

#[test]
fn impossible_rope_scalings_are_refused() {
    let llama3 = |factor, low, high, original_context| RopeScaling::Llama3 { factor, low, high, original_context };
    for scaling in [
        RopeScaling::Linear { factor: 0.0 },
        RopeScaling::Linear { factor: f64::NAN },
        RopeScaling::Linear { factor: 1e9 },
        llama3(8.0, 4.0, 4.0, 8192),
        llama3(8.0, 0.0, 4.0, 8192),
        llama3(8.0, 1.0, f64::INFINITY, 8192),
        llama3(-8.0, 1.0, 4.0, 8192),
        llama3(8.0, 1.0, 4.0, 0),
        llama3(8.0, 1.0, 4.0, u32::MAX),
    ] {
        let error = refused(|m| m.model.as_mut().unwrap().rope_scaling = Some(scaling));
        assert_eq!(error, ManifestError::Model("rope_scaling"), "{scaling:?}");
    }
}

#[test]
fn digests_must_be_there_once_and_whole() {
    let pb = record_pb::Manifest::decode(&manifest().encode()[..]).unwrap();
    let refuse = |change: fn(&mut Vec<record_pb::Digest>)| {
        let mut pb = pb.clone();
        change(&mut pb.files[0].digests);
        Manifest::parse(&pb.encode_to_vec()).unwrap_err()
    };
    assert!(matches!(refuse(Vec::clear), ManifestError::File { .. }));
    assert!(matches!(refuse(|d| d[1].value.truncate(31)), ManifestError::File { .. }));
    assert!(matches!(refuse(|d| d.push(d[0].clone())), ManifestError::File { .. }));
    assert_eq!(
        refuse(|d| d.extend(vec![record_pb::Digest { algorithm: 9, value: vec![] }; 14])),
        ManifestError::TooMany("digests")
    );
}

#[test]
fn sizes_that_overflow_together_are_refused() {
    assert_eq!(refused(|m| m.files.extend([file("x", 1 << 53, 0), file("y", 1, 0)])), ManifestError::TooMany("bytes"));
    assert!(matches!(refused(|m| m.files[0].size = u64::MAX), ManifestError::File { .. }));
}

#[test]
fn counts_above_their_limit_are_refused_before_they_are_decoded() {
    let (id, mut bytes) = manifest().seal().unwrap();
    assert_eq!(id, manifest().id());
    // Empty tensors: two bytes each on the wire, a hundred in memory.
    bytes.extend([0x42, 0].repeat(400_001));
    assert_eq!(Manifest::parse(&bytes), Err(ManifestError::TooMany("tensors")));
    assert_eq!(
        refused(|m| m.parents = (0..17).map(|n| RevisionId::from([n; 32])).collect()),
        ManifestError::TooMany("parents")
    );
}

#[test]
fn a_field_of_a_later_version_is_passed_over() {
    let bytes = [manifest().encode(), vec![0xfa, 0x07, 2, 1, 2]].concat();
    assert_eq!(Manifest::parse(&bytes), Ok(manifest()));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_bytes_are_a_manifest_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::parse(&bytes);
    }

    #[test]
    fn a_damaged_manifest_is_refused_or_obeys_the_rules(changes in mutations()) {
        let mut bytes = manifest().encode();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(read) = Manifest::parse(&bytes) {
            for tensor in &read.tensors {
                prop_assert!(tensor.offset + tensor.length <= read.files[tensor.file as usize].size);
            }
            prop_assert_eq!(Manifest::parse(&read.encode()), Ok(read));
        }
    }

    #[test]
    fn any_possible_manifest_survives(sizes in prop::collection::vec(0u64..1 << 40, 0..20), message in ".{0,50}") {
        let files = sizes.iter().enumerate().map(|(n, size)| file(&format!("f/{n}"), *size, 0)).collect();
        let made = Manifest { files, tensors: vec![], message, ..manifest() };
        prop_assert_eq!(Manifest::parse(&made.encode()), Ok(made));
    }
}
