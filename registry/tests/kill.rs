//! Kills a publishing process with SIGKILL at many moments, and looks at what it leaves: every acknowledged revision is whole.
//!
//! A program of its own (no test harness), since it starts itself again as the process to be killed.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use cairn_protocol::{RefName, RevisionId};
use cairn_registry::{PrepareOptions, Registry};
use house::{REALM, bytes, key, repo, sign};

/// Moments of death, spread over the time of some publications.
const ROUNDS: u64 = 12;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match arguments.get(1).map(String::as_str) {
        Some("publish-until-killed") => runtime.block_on(publish_until_killed(Path::new(&arguments[2]))),
        // As the test harness answers, for tools that list tests.
        Some("--list") => println!("killed_publishers_keep_their_word: test"),
        _ => runtime.block_on(killed_publishers_keep_their_word()),
    }
}

async fn killed_publishers_keep_their_word() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let mut acknowledged: Vec<RevisionId> = Vec::new();
    for round in 0..ROUNDS {
        let lines = run_and_kill(folder.path(), Duration::from_millis(40 + (97 * round) % 800));
        acknowledged.extend(lines.iter().map(|line| line.parse::<RevisionId>().unwrap()));
        let registry = Registry::open(&home, REALM).await.unwrap();
        registry.blobs().collect().await.unwrap();
        for revision in &acknowledged {
            let report = registry.verify(*revision, |_| {}).await;
            assert!(report.as_ref().is_ok_and(|report| report.ok), "round {round}: {report:?}");
            assert!(registry.held(*revision).await.unwrap().whole);
        }
        let next = registry.next_head(&repo(&key(1), "a"), &RefName::main()).await.unwrap();
        let published = acknowledged.len() as u64;
        assert!(next.number > published, "round {round}: head {} after {published} answers", next.number);
        // A kept revision is whole even when its acknowledgement was lost with the process.
        for revision in registry.kept().await.unwrap() {
            assert!(registry.verify(revision, |_| {}).await.unwrap().ok);
        }
        registry.close().await;
    }
    assert!(acknowledged.len() >= 3, "only {} publications were acknowledged", acknowledged.len());
    println!("test killed_publishers_keep_their_word ... ok ({} acknowledged, {ROUNDS} killed)", acknowledged.len());
}

/// Runs this program until `life` after its first line; returns the revisions that it acknowledged.
fn run_and_kill(folder: &Path, life: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("publish-until-killed")
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "open");
    let killer = std::thread::spawn(move || {
        std::thread::sleep(life);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    // A last line may be cut short: it was not an answer yet.
    let answers = lines.map_while(Result::ok).filter(|line| line.len() == 64).collect();
    killer.join().unwrap();
    answers
}

async fn publish_until_killed(folder: &Path) {
    let registry = Registry::open(&folder.join("home"), REALM).await.unwrap();
    say("open");
    let (key, main) = (key(1), RefName::main());
    let repo = repo(&key, "a");
    for number in 0u32.. {
        let seed = u32::from_le_bytes(std::process::id().to_le_bytes()).wrapping_mul(31).wrapping_add(number);
        let source = folder.join("source");
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join("small.txt"), seed.to_le_bytes()).unwrap();
        std::fs::write(source.join("mid.bin"), bytes(100_000 + (seed % 1000) as usize, number as u8)).unwrap();
        std::fs::write(source.join("big.bin"), bytes((5 << 20) + (seed % 1000) as usize, number as u8)).unwrap();
        let options = PrepareOptions { created_ms: i64::from(seed), ..PrepareOptions::default() };
        let prepared = registry.prepare(source, repo.clone(), options, |_| {}).await.unwrap();
        let next = registry.next_head(&repo, &main).await.unwrap();
        let records = sign(&prepared, &key, next);
        let committed = registry.commit(prepared, records).await.unwrap();
        say(&committed.revision.to_string());
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}
