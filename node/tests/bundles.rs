//! Repos carried by hand between nodes that no network connects: the same state as over one, whatever kills the way.
#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod daemon;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use daemon::{Daemon, command, error_of};
use serde_json::Value;

/// Of the file that makes an apply take a while.
const LARGE_BYTES: usize = 96 << 20;

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn told(node: &Daemon, words: &[&str]) -> Value {
    result(&node.cairn(&[words, &["--json"]].concat()))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn folder(work: &Path, name: &str, files: &[(&str, usize)]) -> String {
    let folder = work.join(name);
    std::fs::create_dir(&folder).unwrap();
    for (file, bytes) in files {
        let mut data = vec![0; *bytes];
        blake3::Hasher::new().update(file.as_bytes()).update(name.as_bytes()).finalize_xof().fill(&mut data);
        std::fs::write(folder.join(file), data).unwrap();
    }
    folder.display().to_string()
}

/// What a node holds, as it writes it down itself: ids of records and blobs.
fn summary(node: &Daemon, work: &Path) -> Vec<u8> {
    let path = work.join("summary");
    told(node, &["bundle", "summary", "-o", text(&path)]);
    std::fs::read(path).unwrap()
}

/// A daemon that knows nobody.
fn alone() -> Daemon {
    Daemon::start()
}

#[test]
fn a_bundle_brings_what_a_pull_brings_and_only_what_is_lacking_the_second_time() {
    let work = tempfile::tempdir().unwrap();
    let here = alone();
    let address = here.ready["listen"][0].as_str().unwrap().to_owned();
    let online = Daemon::start_in(tempfile::tempdir().unwrap(), &["--bootstrap", &address]);
    let there = alone();
    told(&here, &["publish", &folder(work.path(), "one", &[("a", 0), ("b", 300), ("c", 5 << 20)]), "acme/one"]);
    told(&here, &["advise", "add", "deprecated", "acme/one", "-m", "old"]);
    told(&here, &["tag", "acme/one", "v1"]);
    let bundle = work.path().join("first.cairn");
    let created = told(&here, &["bundle", "create", "acme/one", "-o", text(&bundle)]);
    assert_eq!((&created["revisions"], &created["blobs"]), (&1.into(), &2.into()), "an empty file is no blob to carry");
    assert_eq!(created["file_bytes"], std::fs::metadata(&bundle).unwrap().len());
    let shown = result(&daemon::cairn(there.home(), &["bundle", "show", text(&bundle), "--json"]));
    assert_eq!(shown["revisions"][0]["repo"], "acme/one");
    let applied = told(&there, &["bundle", "apply", text(&bundle)]);
    assert_eq!(applied["new_bytes"], 300 + (5 << 20));
    assert!(told(&there, &["verify", "acme/one"])["ok"].as_bool().unwrap());
    pull_when_heard_of(&online, "acme/one");
    assert_eq!(summary(&online, work.path()), summary(&there, work.path()), "not the state of a node that pulled");
    second_time(&here, &there, work.path());
}

fn pull_when_heard_of(node: &Daemon, repo: &str) {
    for _ in 0..200 {
        if node.cairn(&["pull", repo]).status.success()
            && told(node, &["advise", "ls", repo])["advisories"][0].is_object()
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{repo} was not heard of");
}

fn second_time(here: &Daemon, there: &Daemon, work: &Path) {
    let since = work.join("there.summary");
    told(there, &["bundle", "summary", "-o", text(&since)]);
    std::fs::write(work.join("one/b"), b"another b").unwrap();
    told(here, &["publish", text(&work.join("one")), "acme/one"]);
    let more = work.join("more.cairn");
    told(here, &["bundle", "create", "--all", "--since", text(&since), "-o", text(&more)]);
    assert!(std::fs::metadata(&more).unwrap().len() < 20_000, "5 MiB that are there went along");
    let stranger = alone();
    let refused = stranger.cairn(&["bundle", "apply", text(&more), "--json"]);
    assert_eq!(error_of(&refused)["code"], "not_found", "it lacks what the difference builds on");
    assert_eq!(told(&stranger, &["ls"])["repos"].as_array().map_or(0, Vec::len), 0, "nothing of it is visible");
    assert_eq!(told(there, &["bundle", "apply", text(&more)])["new_bytes"], 9);
    let again = told(there, &["bundle", "apply", text(&more)]);
    assert_eq!((&again["new_records"], &again["new_blobs"]), (&0.into(), &0.into()), "again is nothing");
    assert_eq!(summary(here, work), summary(there, work));
}

#[test]
fn a_bundle_goes_through_pipes_and_a_cut_one_is_told() {
    let work = tempfile::tempdir().unwrap();
    let (here, there) = (alone(), alone());
    told(&here, &["publish", &folder(work.path(), "one", &[("a", 3 << 20)]), "acme/one"]);
    let streamed = here.cairn(&["bundle", "create", "acme/one", "-o", "-"]);
    assert!(streamed.status.success());
    let cut = piped(&there, &streamed.stdout[..streamed.stdout.len() - 1_000_000]);
    assert_eq!(error_of(&cut)["code"], "corrupt");
    assert_eq!(result(&piped(&there, &streamed.stdout))["new_bytes"], 3 << 20);
    assert!(told(&there, &["verify", "acme/one"])["ok"].as_bool().unwrap());
    let garbage =
        piped(&there, b"no bundle at all, and long enough to have a header of one, or nearly so, if it were one");
    assert_eq!(error_of(&garbage)["code"], "bad_input");
}

fn piped(node: &Daemon, bytes: &[u8]) -> Output {
    let mut command = command(node.home());
    command.args(["bundle", "apply", "-", "--json"]);
    fed(command, bytes)
}

fn fed(mut command: Command, bytes: &[u8]) -> Output {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

#[test]
fn a_killed_apply_shows_nothing_and_the_next_goes_on_from_what_arrived() {
    let work = tempfile::tempdir().unwrap();
    let (here, mut there) = (alone(), alone());
    told(&here, &["publish", &folder(work.path(), "big", &[("w", LARGE_BYTES), ("x", LARGE_BYTES)]), "acme/big"]);
    let bundle = work.path().join("big.cairn");
    told(&here, &["bundle", "create", "acme/big", "-o", text(&bundle)]);
    let mut applying = command(there.home());
    applying.args(["bundle", "apply", text(&bundle), "--json"]);
    let mut applying = applying.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while stored(there.home()) < LARGE_BYTES as u64 {
        assert!(applying.try_wait().unwrap().is_none(), "it was done before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    there.signal(rustix::process::Signal::KILL);
    let (_, _, home) = there.wait();
    assert!(!applying.wait().unwrap().success());
    there = Daemon::start_in(home, &[]);
    assert_eq!(told(&there, &["ls"])["repos"].as_array().map_or(0, Vec::len), 0, "half of a bundle is visible");
    let applied = told(&there, &["bundle", "apply", text(&bundle)]);
    let new = applied["new_bytes"].as_u64().unwrap();
    eprintln!("after the kill {new} of {} bytes were taken in", 2 * LARGE_BYTES);
    assert!(new < 2 * LARGE_BYTES as u64, "what had arrived was taken in again");
    assert!(told(&there, &["verify", "acme/big"])["ok"].as_bool().unwrap());
    assert_eq!(summary(&here, work.path()), summary(&there, work.path()));
}

/// Bytes on the disk under a home.
fn stored(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => stored(&entry.path()),
        _ => {
            use std::os::unix::fs::MetadataExt;
            entry.metadata().map_or(0, |meta| meta.blocks() * 512)
        }
    });
    sizes.sum()
}
