//! Disks that are full, read-only or damaged: what is said, what survives, and that the node goes on.
//!
//! A full disk is a small file system in memory, which only root may mount; where that is refused the tests say so, and fail in CI.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod daemon;

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use daemon::{Daemon, cairn, error_of};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tempfile::TempDir;

/// A file system of its own.
struct SmallDisk {
    at: TempDir,
}

impl SmallDisk {
    /// `None` where it may not be mounted.
    fn mount(bytes: u64) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self { at });
        }
        assert!(std::env::var_os("CI").is_none(), "a file system must be mounted here: run this as root");
        eprintln!("NOT TESTED: only root may mount a small file system");
        None
    }

    fn remount(&self, how: &str) -> bool {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(self.at.path()).status();
        status.is_ok_and(|status| status.success())
    }

    fn path(&self) -> &Path {
        self.at.path()
    }

    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Fills it until so many bytes are left.
    fn leave(&self, bytes: u64) -> Ballast {
        self.fill("ballast", bytes)
    }

    fn fill(&self, name: &str, bytes: u64) -> Ballast {
        let path = self.path().join(name);
        let mut file = fs::File::create(&path).unwrap();
        let mut filled = self.free().saturating_sub(bytes);
        let piece = vec![7; 64 << 10];
        while filled > 0 {
            let length = filled.min(piece.len() as u64) as usize;
            if file.write_all(&piece[..length]).is_err() {
                break;
            }
            filled -= length as u64;
        }
        Ballast(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(self.at.path()).status();
    }
}

struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn random_file(folder: &Path, dice: &mut StdRng, bytes: usize) -> PathBuf {
    let path = folder.join(format!("{}.bin", dice.random_range(0..u64::MAX)));
    let mut data = vec![0; bytes];
    dice.fill(&mut data[..]);
    fs::write(&path, data).unwrap();
    path
}

fn ok(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap()).unwrap()
}

/// Every repo that is listed as held is whole.
fn check_held(home: &Path) -> usize {
    let repos = ok(&cairn(home, &["ls", "--json"]))["repos"].as_array().unwrap().clone();
    let held: Vec<_> = repos.iter().filter(|repo| repo["held"] == true).collect();
    for repo in &held {
        let report = ok(&cairn(home, &["verify", repo["repo"].as_str().unwrap(), "--json"]));
        assert_eq!(report["ok"], true, "{report}");
    }
    held.len()
}

/// Publishes; the revision, or nothing where the disk was full.
fn published(daemon: &Daemon, path: &Path, repo: &str) -> Option<(String, Value)> {
    let output = daemon.cairn(&["publish", path.to_str().unwrap(), repo, "--json"]);
    if output.status.success() {
        return Some((repo.to_owned(), ok(&output)["revision"].clone()));
    }
    let error = error_of(&output);
    assert_eq!(error["code"], "disk_full", "{error}");
    None
}

fn check_acknowledged(daemon: &Daemon, acknowledged: &[(String, Value)]) {
    for (repo, revision) in acknowledged {
        assert_eq!(ok(&daemon.cairn(&["show", repo, "--json"]))["repo"]["revision"], *revision, "{repo}");
    }
    assert_eq!(check_held(daemon.home()), acknowledged.len());
}

#[test]
fn a_disk_without_room_refuses_politely_serves_on_and_takes_more_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount(96 << 20) else { return };
    let work = tempfile::tempdir().unwrap();
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let daemon = Daemon::start_in(tempfile::tempdir_in(disk.path()).unwrap(), &[]);
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    // KiB around what a publication of 700 needs beside the reserve, and far below it.
    let beside = [-15_000i64, -9_000, -3_000, -500, -1, 0, 1, 40, 300, 690, 699, 700, 701, 740, 800, 1_000, 1_500];
    for (round, kib) in beside.into_iter().enumerate() {
        let path = random_file(work.path(), &mut dice, 700 << 10);
        let free = (cairn_registry::DISK_RESERVE as i64 + (kib << 10)) as u64 + dice.random_range(0..4096);
        let ballast = disk.leave(free);
        match published(&daemon, &path, &format!("acme/m{round}")) {
            Some(done) => acknowledged.push(done),
            None => refused += 1,
        }
        check_acknowledged(&daemon, &acknowledged);
        drop(ballast);
        // With room again it goes on, without a restart.
        let small = random_file(work.path(), &mut dice, 30 << 10);
        acknowledged.push(published(&daemon, &small, &format!("acme/small{round}")).unwrap());
    }
    assert!(refused >= 5 && acknowledged.len() > beside.len(), "{refused} refused, {} not", acknowledged.len());
    daemon.signal(rustix::process::Signal::KILL);
    let (_, log, home) = daemon.wait();
    assert!(!log.contains("panicked"), "{log}");
    let ballast = disk.leave(2 << 20);
    let daemon = Daemon::start_in(home, &[]);
    check_acknowledged(&daemon, &acknowledged);
    drop(ballast);
}

#[test]
fn a_disk_that_another_fills_while_it_is_written_to_loses_nothing() {
    let Some(disk) = SmallDisk::mount(96 << 20) else { return };
    let work = tempfile::tempdir().unwrap();
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut daemon = Daemon::start_in(tempfile::tempdir_in(disk.path()).unwrap(), &[]);
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for round in 0..16 {
        let path = random_file(work.path(), &mut dice, if round % 3 == 0 { 200 << 10 } else { 4 << 20 });
        let after = std::time::Duration::from_millis(dice.random_range(0..50));
        let most = disk.leave(cairn_registry::DISK_RESERVE + (6 << 20));
        let rest = std::thread::scope(|scope| {
            let filling = scope.spawn(|| {
                std::thread::sleep(after);
                disk.fill("rest", 0)
            });
            // What the store says when it stops at a failed write is no answer either.
            let output = daemon.cairn(&["publish", path.to_str().unwrap(), &format!("acme/m{round}"), "--json"]);
            match output.status.success() {
                true => acknowledged.push((format!("acme/m{round}"), ok(&output)["revision"].clone())),
                false => refused += usize::from(error_of(&output)["code"].is_string()),
            }
            filling.join().unwrap()
        });
        // The library may have stopped; with room, a restart mends it.
        daemon.signal(rustix::process::Signal::KILL);
        let (_, log, home) = daemon.wait();
        assert!(!log.contains("panicked"), "{log}");
        drop((most, rest));
        daemon = Daemon::start_in(home, &[]);
        check_acknowledged(&daemon, &acknowledged);
    }
    eprintln!("{} acknowledged, {refused} refused", acknowledged.len());
    assert!(refused > 0 && !acknowledged.is_empty(), "the disk was never filled in between");
}

#[test]
fn a_pull_onto_a_disk_that_is_too_small_is_refused_before_it_begins_and_goes_on_with_room() {
    let Some(disk) = SmallDisk::mount(64 << 20) else { return };
    let work = tempfile::tempdir().unwrap();
    let mut dice = StdRng::seed_from_u64(1);
    let publisher = Daemon::start();
    let path = random_file(work.path(), &mut dice, 8 << 20);
    ok(&publisher.cairn(&["publish", path.to_str().unwrap(), "acme/large", "--json"]));
    let at = publisher.ready["listen"][0].as_str().unwrap().to_owned();
    let daemon = Daemon::start_in(tempfile::tempdir_in(disk.path()).unwrap(), &["--bootstrap", &at]);
    let known = || daemon.cairn(&["show", "acme/large", "--json"]).status.success();
    let started = std::time::Instant::now();
    while !known() && started.elapsed() < daemon::PATIENCE {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let ballast = disk.leave(cairn_registry::DISK_RESERVE + (5 << 20));
    assert_eq!(error_of(&daemon.cairn(&["pull", "acme/large", "--json"]))["code"], "disk_full");
    drop(ballast);
    let pulled = ok(&daemon.cairn(&["pull", "acme/large", "--json"]));
    assert_eq!(pulled["bytes_total"], 8 << 20);
    assert_eq!(check_held(daemon.home()), 1);
}

#[test]
fn a_read_only_home_is_one_clear_error() {
    let Some(disk) = SmallDisk::mount(24 << 20) else { return };
    let daemon = Daemon::start_in(tempfile::tempdir_in(disk.path()).unwrap(), &[]);
    daemon.signal(rustix::process::Signal::TERM);
    let (_, _, home) = daemon.wait();
    assert!(disk.remount("ro"));
    let output = daemon::node(home.path()).output().unwrap();
    let error = error_of(&output);
    assert!(!output.status.success() && error["why"].as_str().unwrap().contains("Read-only file system"), "{error}");
    assert!(disk.remount("rw"));
    let daemon = Daemon::start_in(home, &[]);
    assert_eq!(check_held(daemon.home()), 0);
}

/// A copy of a stopped daemon's home.
fn copy_of(home: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let status = Command::new("cp").arg("-a").arg(home.join(".")).arg(copy.path()).status();
    assert!(status.unwrap().success());
    copy
}

fn damage(path: &Path, dice: &mut StdRng) -> u64 {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    // A page of the database.
    let at = dice.random_range(0..file.metadata().unwrap().len()) & !0xfff;
    let mut bytes = [0; 4096];
    file.seek(SeekFrom::Start(at)).unwrap();
    let read = file.read(&mut bytes).unwrap();
    bytes[..read].iter_mut().for_each(|byte| *byte ^= 0x55);
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&bytes[..read]).unwrap();
    at
}

#[test]
fn a_damaged_catalogue_is_noticed_and_never_tells_anything_else() {
    let work = tempfile::tempdir().unwrap();
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let daemon = Daemon::start();
    let mut published = Vec::new();
    for n in 0..6 {
        let path = random_file(work.path(), &mut dice, 40 << 10);
        let repo = format!("acme/m{n}");
        let done = ok(&daemon.cairn(&["publish", path.to_str().unwrap(), &repo, "--json"]));
        published.push((repo, done["revision"].clone()));
    }
    daemon.signal(rustix::process::Signal::TERM);
    let (_, _, home) = daemon.wait();
    let (mut noticed, mut unharmed) = (0, 0);
    for round in 0..24 {
        let copy = copy_of(home.path());
        let pages: Vec<u64> =
            (0..1 + round % 8).map(|_| damage(&copy.path().join("catalog.redb"), &mut dice)).collect();
        match survives(copy, &published) {
            true => unharmed += 1,
            false => noticed += 1,
        }
        eprintln!("pages at {pages:?}: {unharmed} unharmed, {noticed} noticed");
    }
    assert!(noticed > 0, "no damage was ever noticed");
}

/// Whether everything is still there; else the damage was said, and nothing else was told in its place.
fn survives(home: TempDir, published: &[(String, Value)]) -> bool {
    let mut daemon = match Daemon::try_start_in(home, &[]) {
        Ok(daemon) => daemon,
        Err(log) => {
            let last = log.lines().last().unwrap_or_default();
            assert!(!log.contains("panicked") && last.contains("catalog.redb"), "{log}");
            return false;
        }
    };
    let mut is_whole = true;
    for (repo, revision) in published {
        let output = daemon.cairn(&["show", repo, "--json"]);
        match output.status.success() {
            true => assert_eq!(ok(&output)["repo"]["revision"], *revision, "{repo} is something else"),
            false => {
                error_of(&output);
                is_whole = false;
            }
        }
    }
    assert!(daemon.is_running(), "damage ended the daemon");
    daemon.signal(rustix::process::Signal::TERM);
    let (_, log, _) = daemon.wait();
    assert!(!log.contains("panicked"), "{log}");
    is_whole
}
