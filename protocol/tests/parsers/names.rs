//! Names, refs and paths. Not their resolution.

use cairn_protocol::name::{FilePath, Handle, Publisher, RefName, RefSpec, RepoKind, RepoName, RepoPath, RepoRef};
use proptest::prelude::*;

use crate::cases;

#[test]
fn a_repo_is_read_with_and_without_its_kind() {
    let model: RepoPath = "acme/Tiny.v1".parse().unwrap();
    assert_eq!((model.kind, model.name.as_str()), (RepoKind::Model, "Tiny.v1"));
    assert_eq!("models/acme/Tiny.v1".parse::<RepoPath>().unwrap(), model);
    let data: RepoPath = "datasets/acme/poems".parse().unwrap();
    assert_eq!((data.kind, data.to_string().as_str()), (RepoKind::Dataset, "datasets/acme/poems"));
    let keyed: RepoPath = format!("{}/x", "0a".repeat(32)).parse().unwrap();
    assert!(matches!(keyed.publisher, Publisher::Key(_)));
}

#[test]
fn what_is_no_repo_is_refused() {
    for text in [
        "",
        "/",
        "acme",
        "acme/",
        "/x",
        "a/b/c",
        "datasets/acme",
        "datasets/a/b/c",
        "a b/c",
        "acme/.x",
        "acme/x.",
        "acme/x@y@z/@",
        "../x",
    ] {
        assert!(text.parse::<RepoRef>().is_err(), "{text:?} was accepted");
    }
    assert!(format!("acme/{}", "x".repeat(97)).parse::<RepoPath>().is_err());
    assert!(format!("acme/{}", "x".repeat(96)).parse::<RepoPath>().is_ok());
}

#[test]
fn names_are_equal_without_regard_to_case_and_keep_theirs() {
    let (a, b): (RepoName, RepoName) = ("Tiny".parse().unwrap(), "tINY".parse().unwrap());
    assert_eq!(a, b);
    assert_eq!(a.cmp(&b), std::cmp::Ordering::Equal);
    assert_eq!(std::collections::HashSet::from([a.clone(), b]).len(), 1);
    assert_eq!((a.to_string(), a.folded()), ("Tiny".to_owned(), "tiny".to_owned()));
}

#[test]
fn a_handle_that_looks_like_a_key_or_a_door_is_refused() {
    assert!("0A".repeat(32).parse::<Handle>().is_err());
    assert!("ab".repeat(32).parse::<Handle>().is_err());
    for text in ["datasets", "API", "v1"] {
        assert!(text.parse::<Handle>().is_err(), "{text} was accepted");
    }
    assert!("ab".repeat(31).parse::<Handle>().is_ok());
}

#[test]
fn a_ref_may_nest_but_not_look_like_a_revision() {
    for text in ["main", "v1", "release/2025/a", "1234567", "deadbeefg"] {
        assert_eq!(text.parse::<RefName>().unwrap().as_str(), text);
    }
    for text in ["", "/", "a//b", "a/", "../x", "12345678", "DEADBEEF", &"a".repeat(64), &["a"; 101].join("/")] {
        assert!(text.parse::<RefName>().is_err(), "{text:?} was accepted");
    }
    assert_eq!("DEADBEEF".parse(), Ok(RefSpec::Prefix("deadbeef".to_owned())));
    assert!(matches!("acme/x@v1".parse::<RepoRef>().unwrap().spec, Some(RefSpec::Ref(_))));
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn any_text_parses_or_not_without_panic(text in ".{0,200}") {
        let _ = (text.parse::<RepoRef>(), text.parse::<Handle>(), text.parse::<RefName>(), text.parse::<FilePath>());
    }

    #[test]
    fn what_parses_reads_back(text in "(datasets/|spaces/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,8}/[A-Za-z0-9][A-Za-z0-9._-]{0,8}[a-z](@[a-z0-9/]{1,12})?") {
        if let Ok(parsed) = text.parse::<RepoRef>() {
            prop_assert_eq!(parsed.to_string(), text.clone());
            prop_assert_eq!(parsed.to_string().parse::<RepoRef>(), Ok(parsed));
        }
    }

    #[test]
    fn an_accepted_path_stays_inside_its_folder(text in "[a./\\\\:\\x00 ]{1,12}") {
        if let Ok(path) = text.parse::<FilePath>() {
            let only_normal = std::path::Path::new(path.as_str()).components().all(|part| matches!(part, std::path::Component::Normal(_)));
            prop_assert!(only_normal);
            prop_assert!(!text.contains(['\\', ':', '\0']));
        }
    }
}
