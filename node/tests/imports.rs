//! Imports from a Hub that has the quirks of real ones, or worse: redirects to another origin, broken connections, refusals for a
//! while, other bytes than it listed. Scans and exports of what was imported.
#![allow(clippy::unwrap_used, clippy::panic)]

mod daemon;
mod hub;

use std::path::Path;

use daemon::{CAIRN, Daemon, error_of};
use hub::{Hub, Quirk};
use serde_json::Value;

fn result(output: &std::process::Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_str(text.lines().last().unwrap_or_else(|| panic!("no result: {error}"))).unwrap()
}

fn import(node: &Daemon, hub: &Hub, more: &[&str]) -> std::process::Output {
    let endpoint = hub.endpoint();
    let words = ["--json", "import", "hf://org/tiny", "acme/tiny", "--endpoint", &endpoint];
    node.cairn(&[&words[..], more].concat())
}

/// A repo of some files, one of them large enough to break off.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![
        (".gitattributes", b"*.bin filter=lfs\n".to_vec()),
        ("README.md", b"---\nlicense: mit\ntags: [tiny]\n---\n# Tiny\n".to_vec()),
        ("config.json", br#"{"model_type": "none"}"#.to_vec()),
        ("sub folder/\u{fc}.txt", b"text".to_vec()),
        ("weights.bin", large),
    ]
}

#[test]
fn a_repo_comes_in_through_redirects_refusals_and_broken_connections_and_says_where_from() {
    let node = Daemon::start();
    let quirks = [Quirk::Redirect, Quirk::RefuseFirst, Quirk::BreakAt(700_000), Quirk::PagesOf(2)];
    let hub = Hub::start(files(), &quirks);
    let done = result(&import(&node, &hub, &[]));
    assert_eq!((&done["files"], &done["unchanged"]), (&Value::from(4), &Value::from(false)));
    assert_eq!(done["imported_from"], format!("hf://org/tiny@{}", hub.commit()));
    assert_eq!(done["bytes_fetched"], done["bytes"], "no byte came twice");
    assert!(hub.ranges_seen() >= 4, "the download went on where it broke off");
    let shown = result(&node.cairn(&["--json", "show", "acme/tiny"]));
    assert!(shown.to_string().contains(&format!("hf://org/tiny@{}", hub.commit())), "{shown}");
    assert!(shown.to_string().contains("mit"), "{shown}");
    let to = tempfile::tempdir().unwrap();
    result(&node.cairn(&["--json", "export", "acme/tiny", "--to", to.path().to_str().unwrap()]));
    for (path, bytes) in files().into_iter().skip(1) {
        assert_eq!(std::fs::read(to.path().join(path)).unwrap(), bytes, "{path}");
    }
    assert_eq!(std::fs::read_dir(node.home().join("imports")).unwrap().count(), 0, "nothing stays behind");
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_where_it_redirects() {
    let node = Daemon::start();
    let hub = Hub::start(files(), &[Quirk::Redirect, Quirk::NeedsToken("hf_secret")]);
    let refused = import(&node, &hub, &[]);
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(error_of(&refused)["try"].as_str().unwrap().contains("--token-file"));
    let token = node.home().join("hub.token");
    std::fs::write(&token, "hf_secret\n").unwrap();
    result(&import(&node, &hub, &["--token-file", token.to_str().unwrap()]));
    assert!(!hub.token_was_told_elsewhere());
}

#[test]
fn a_commit_that_is_here_makes_no_new_revision_and_a_new_one_fetches_what_changed() {
    let node = Daemon::start();
    let hub = Hub::start(files(), &[]);
    let first = result(&import(&node, &hub, &[]));
    let again = result(&import(&node, &hub, &[]));
    assert_eq!((&again["revision"], &again["unchanged"]), (&first["revision"], &Value::from(true)));
    let mut changed = files();
    changed[2].1 = b"{}".to_vec();
    let hub = Hub::start(changed, &[]);
    let next = result(&import(&node, &hub, &[]));
    assert_ne!(next["revision"], first["revision"]);
    assert!(next["bytes_fetched"].as_u64().unwrap() < 1000, "{next}");
}

#[test]
fn a_hub_that_sends_other_bytes_than_it_listed_is_refused_and_nothing_is_published() {
    let node = Daemon::start();
    for quirk in [Quirk::Lie, Quirk::SendMore] {
        let hub = Hub::start(files(), &[quirk]);
        let refused = import(&node, &hub, &[]);
        assert_eq!(refused.status.code(), Some(1));
        let error = error_of(&refused);
        assert_eq!(error["code"], "corrupt", "{error}");
        assert!(error["why"].as_str().unwrap().contains("other bytes than its listing names"), "{error}");
    }
    assert!(!node.cairn(&["show", "acme/tiny"]).status.success());
}

#[test]
fn a_path_that_leads_out_and_a_listing_that_goes_on_elsewhere_are_refused() {
    let node = Daemon::start();
    let hub = Hub::start(vec![("../../outside", b"x".to_vec())], &[]);
    assert!(!import(&node, &hub, &[]).status.success());
    let hub = Hub::start(files(), &[Quirk::PagesElsewhere]);
    let error = error_of(&import(&node, &hub, &[]));
    assert!(error["why"].as_str().unwrap().contains("lies elsewhere"), "{error}");
}

#[test]
fn a_killed_daemon_goes_on_with_the_import_where_it_was() {
    let node = Daemon::start();
    let hub = Hub::start(files(), &[Quirk::StallAt(1_000_000)]);
    let endpoint = hub.endpoint();
    let mut client = daemon::command(node.home());
    client.args(["import", "hf://org/tiny", "acme/tiny", "--endpoint", &endpoint]);
    let mut client = client.stderr(std::process::Stdio::null()).spawn().unwrap();
    hub.wait_until_stalled();
    let part_is_here = || {
        let parts = walk(&node.home().join("imports"));
        parts.iter().any(|(path, bytes)| path.contains("parts/") && *bytes > 500_000)
    };
    let deadline = std::time::Instant::now() + daemon::PATIENCE;
    while !part_is_here() {
        assert!(std::time::Instant::now() < deadline, "no part: {:?}", walk(&node.home().join("imports")));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    node.signal(rustix::process::Signal::KILL);
    client.wait().unwrap();
    let (_, _, home) = node.wait();
    hub.go_on();
    let node = Daemon::start_in(home, &[]);
    let done = result(&import(&node, &hub, &[]));
    let (fetched, bytes) = (done["bytes_fetched"].as_u64().unwrap(), done["bytes"].as_u64().unwrap());
    assert!(fetched + 500_000 < bytes, "{fetched} of {bytes} bytes came after the death");
}

fn walk(folder: &Path) -> Vec<(String, u64)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => found.extend(walk(&entry.path())),
            Ok(metadata) => found.push((entry.path().display().to_string(), metadata.len())),
            Err(_) => {}
        }
    }
    found
}

#[test]
fn an_unsafe_pickle_is_refused_by_publish_and_import_unless_it_is_admitted_and_the_scan_is_attested() {
    let node = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let evil = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.";
    std::fs::write(folder.path().join("pytorch_model.bin"), evil).unwrap();
    let path = folder.path().to_str().unwrap();
    for command in ["publish", "import"] {
        let refused = node.cairn(&["--json", command, path, "acme/evil"]);
        assert_eq!(refused.status.code(), Some(4));
        let error = error_of(&refused);
        assert_eq!(error["code"], "unsafe_files");
        assert!(error["why"].as_str().unwrap().contains("posix.system"), "{error}");
    }
    let scanned = node.cairn(&["--json", "scan", path]);
    assert_eq!(scanned.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&scanned.stdout).contains("\"verdict\":\"unsafe\""));
    let hub = Hub::start(vec![("pytorch_model.bin", evil.to_vec())], &[]);
    assert_eq!(error_of(&import(&node, &hub, &[]))["code"], "unsafe_files");
    let done = result(&node.cairn(&["--json", "publish", path, "acme/evil", "--allow-unsafe-files"]));
    assert_eq!(done["scan"]["verdict"], "unsafe");
    let shown = result(&node.cairn(&["--json", "show", "acme/evil"]));
    let attested = shown["attestations"].as_array().unwrap();
    let scan = attested.iter().find(|attested| attested["type"] == "scan").unwrap();
    assert_eq!((&scan["tool"], &scan["verdict"]), (&Value::from("cairn-scan"), &Value::from("unsafe")));
    assert!(scan["text"].as_str().unwrap().contains("posix.system"), "{scan}");
    assert_eq!(node.cairn(&["scan", "acme/evil"]).status.code(), Some(1));
}

#[test]
fn a_hub_cache_holds_bytes_by_etag_and_snapshots_that_lead_to_them() {
    let node = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in files().into_iter().skip(1) {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    result(&node.cairn(&["--json", "publish", folder.path().to_str().unwrap(), "acme/tiny"]));
    let cache = tempfile::tempdir().unwrap();
    let word = format!("--hub-cache={}", cache.path().display());
    for link in [&[][..], &["--link"][..]] {
        let done = result(&node.cairn(&[&["--json", "export", "acme/tiny", &word][..], link].concat()));
        let root = cache.path().join("models--acme--tiny");
        let commit = std::fs::read_to_string(root.join("refs/main")).unwrap();
        assert_eq!(done["commit"], commit);
        assert!(done["revision"].as_str().unwrap().starts_with(&commit) && commit.len() == 40);
        let snapshot = root.join("snapshots").join(&commit);
        for (path, bytes) in files().into_iter().skip(1) {
            assert_eq!(std::fs::read(snapshot.join(path)).unwrap(), bytes, "{path}");
            let target = std::fs::read_link(snapshot.join(path)).unwrap();
            assert!(target.starts_with("../../blobs") || target.starts_with("../../../blobs"), "{target:?}");
        }
        assert_eq!(std::fs::read_dir(root.join("blobs")).unwrap().count(), 4, "no more than the files");
    }
    // What was damaged there is written anew.
    let blobs = cache.path().join("models--acme--tiny/blobs");
    let small = std::fs::read_dir(&blobs).unwrap().flatten().find(|entry| entry.file_name().len() == 40).unwrap();
    std::fs::write(small.path(), "damaged").unwrap();
    result(&node.cairn(&["--json", "export", "acme/tiny", &word]));
    assert_ne!(std::fs::read(small.path()).unwrap(), b"damaged");
    assert!(Path::new(CAIRN).exists());
}
