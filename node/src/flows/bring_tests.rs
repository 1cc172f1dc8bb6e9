//! Selections become ranges: pure.

use cairn_protocol::{
    id::{PublisherKey, RealmId},
    name::{RepoId, RepoKind},
};

use super::*;

fn file(path: &str, hash: u8, size: u64) -> ManifestFile {
    ManifestFile {
        path: path.parse().unwrap(),
        size,
        blake3: BlobHash::from([hash; 32]),
        sha256: [0; 32],
        git_sha1: [0; 20],
        header_bytes: 0,
    }
}

fn manifest() -> Manifest {
    Manifest {
        realm: RealmId::PUBLIC,
        repo: RepoId { publisher: PublisherKey::from([1; 32]), kind: RepoKind::Model, name: "x".parse().unwrap() },
        parents: vec![],
        files: vec![file("config.json", 1, 10), file("a/copy.json", 1, 10), file("w.bin", 2, 99)],
        tensors: vec![],
        model: None,
        message: String::new(),
        created_ms: 0,
        metadata: vec![],
    }
}

fn wanted(include: &[&str]) -> Vec<(String, u64)> {
    let include = include.iter().map(ToString::to_string).collect();
    let wanted = select(&manifest(), &Selection { include, layers: None }).unwrap();
    wanted.into_iter().map(|want| (want.path, want.size)).collect()
}

#[test]
fn everything_is_wanted_unless_told_otherwise_and_equal_files_once() {
    assert_eq!(wanted(&[]), [("config.json".to_owned(), 10), ("w.bin".to_owned(), 99)]);
}

#[test]
fn patterns_choose_files() {
    assert_eq!(wanted(&["*.bin"]), [("w.bin".to_owned(), 99)]);
    assert_eq!(wanted(&["a/*"]), [("a/copy.json".to_owned(), 10)]);
    assert_eq!(wanted(&["*.json", "w*"]).len(), 2);
}

#[test]
fn a_pattern_that_matches_nothing_or_is_none_is_refused() {
    let refuse = |include: &str| {
        let selection = Selection { include: vec![include.to_owned()], layers: None };
        select(&manifest(), &selection).unwrap_err().reason
    };
    assert_eq!(refuse("*.gguf"), Reason::NotFound);
    assert_eq!(refuse("a[b"), Reason::BadInput);
}

#[test]
fn layers_of_what_is_no_model_are_refused() {
    let selection = Selection { include: vec![], layers: LayerRange::new(0, 1) };
    assert_eq!(select(&manifest(), &selection).unwrap_err().reason, Reason::Unsupported);
}
