//! What the binary says and how it ends, without a daemon: help, usage, exit codes, closed pipes.
#![allow(clippy::unwrap_used, clippy::panic)]

mod daemon;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use daemon::{CAIRN, Daemon, cairn, error_of};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
fn help_of_every_command_has_examples() {
    let home = tempfile::tempdir().unwrap();
    let commands = [
        "",
        "node",
        "demo",
        "publish",
        "import",
        "pull",
        "mirror",
        "mirror add",
        "mirror ls",
        "mirror rm",
        "mirror status",
        "ls",
        "search",
        "show",
        "verify",
        "peers",
        "status",
        "capacity",
        "plan",
        "run",
        "config",
        "config show",
        "bench",
        "bench engine",
        "bench perplexity",
        "bench blobs",
        "bench stages",
        "bench users",
        "bench catalog",
        "bench sync",
    ];
    for command in commands {
        let words: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect();
        let output = cairn(home.path(), &words);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(text.contains("Examples:"), "cairn {command} --help shows no examples:\n{text}");
        assert!(text.contains("--json"), "cairn {command} --help hides the options of all commands");
    }
}

#[test]
fn wrong_usage_is_one_line_and_exit_2() {
    let home = tempfile::tempdir().unwrap();
    for words in [
        &["frobnicate"][..],
        &["pull"],
        &["pull", "a/b", "--layers", "x"],
        &["ls", "--nope"],
        &[],
        &["run"],
        &["run", "a/b", "x", "--max-tokens", "0"],
        &["bench", "engine", "m", "--planes", "9"],
    ] {
        let output = cairn(home.path(), words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.trim_end().lines().count(), 1, "{words:?}: {text}");
        assert!(text.starts_with("error: ") && text.contains("(try: cairn"), "{words:?}: {text}");
        let with_json: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let output = cairn(home.path(), &with_json);
        assert_eq!(output.status.code(), Some(2), "{with_json:?}");
        assert_eq!(error_of(&output)["code"], "usage");
    }
}

#[test]
fn no_daemon_is_exit_5_and_says_where_was_looked() {
    let home = tempfile::tempdir().unwrap();
    // Port 1 is never a daemon's.
    let output = cairn(home.path(), &["status", "--api", "127.0.0.1:1", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    let error = error_of(&output);
    assert_eq!((error["code"].as_str(), error["try"].as_str()), (Some("unavailable"), Some("cairn node")));
    assert!(error["why"].as_str().unwrap().contains("--api"), "{error}");
}

#[test]
fn a_config_that_can_not_be_used_is_exit_2_with_the_nearest_key() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.toml"), "api_lisen = \"127.0.0.1:1\"\n").unwrap();
    let output = cairn(home.path(), &["config", "show", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_of(&output)["try"].as_str().unwrap().contains("api_listen"));
    std::fs::write(home.path().join("config.toml"), "lease_idle_s = \"soon\"\n").unwrap();
    let output = cairn(home.path(), &["config", "show", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!error_of(&output)["try"].as_str().unwrap().contains("config show"), "it advises itself");
}

#[test]
fn config_show_says_who_set_what() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.toml"), "sessions_per_peer = 9\n").unwrap();
    let output = Command::new(CAIRN)
        .args(["config", "show", "--json", "--home"])
        .arg(home.path())
        .env("CAIRN_LEASE_IDLE_S", "5")
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let find = |key: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let setting = settings.iter().find(|setting| setting["key"] == key).unwrap();
        (setting["value"].as_str().unwrap().to_string(), setting["source"].as_str().unwrap().to_string())
    };
    assert_eq!(find("sessions_per_peer"), ("9".into(), "config.toml".into()));
    assert_eq!(find("lease_idle_s"), ("5".into(), "environment".into()));
    assert_eq!(find("grant.compute"), ("listed".into(), "default".into()));
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut child = Command::new(CAIRN).arg("--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(said, "");
}

#[test]
fn an_address_that_others_reach_is_refused_without_tls() {
    let home = tempfile::tempdir().unwrap();
    for flag in ["--api-listen", "--http-listen"] {
        let output = daemon::node(home.path()).args([flag, "0.0.0.0:0"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag}");
        assert!(error_of(&output)["why"].as_str().unwrap().contains("TLS"), "{flag}");
    }
}

#[test]
fn bench_stages_measures_one_process_and_several_on_the_same_tokens() {
    let home = tempfile::tempdir().unwrap();
    let model = cairn_testnet::tiny_model(home.path()).unwrap();
    let model = model.to_str().unwrap();
    let words = ["bench", "stages", model, "--nodes", "2", "--decode-tokens", "64", "--repeat", "1", "--json"];
    let output = cairn(home.path(), &words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(report["same_tokens"], true);
    assert_eq!(report["one"]["layers"].as_array().unwrap().len(), 1);
    assert_eq!(report["split"]["layers"].as_array().unwrap().len(), 2);
    for side in ["one", "split"] {
        assert!(report[side]["decode_tokens_per_s"].as_f64().unwrap() > 0.0, "{report}");
    }
    let missing = cairn(home.path(), &["bench", "stages", "no-such-model"]);
    assert_eq!(missing.status.code(), Some(3));
}

#[test]
fn a_wrong_value_is_told_without_noise_and_with_its_own_command() {
    let home = tempfile::tempdir().unwrap();
    for (words, command, says) in [
        (&["pull", "x", "--layers", "5..2"][..], "cairn pull", "--layers"),
        (&["run", "a/b", "--seed", "abc"], "cairn run", "whole number"),
        (&["run", "a/b", "--seed", "-1"], "cairn run", "whole number"),
        (&["run", "a/b", "--temperature", "-1"], "cairn run", "0 or more"),
        (&["run", "a/b", "--max-tokens", "0"], "cairn run", "--max-tokens"),
        (&["bench", "blobs", "--mib", "0"], "cairn bench blobs", "--mib"),
    ] {
        let output = cairn(home.path(), words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(text.contains(says) && text.trim_end().ends_with(&format!("(try: {command} --help)")), "{text}");
        assert!(!text.contains("For more") && !text.contains("tip:"), "{text}");
    }
}

#[test]
fn an_address_that_is_none_is_refused_before_a_home_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    for flag in ["--listen", "--bootstrap"] {
        let output = cairn(&home, &["node", flag, "bogus", "--json"]);
        assert_eq!(output.status.code(), Some(2), "{flag}");
        let error = error_of(&output);
        assert!(error["try"].as_str().unwrap().starts_with(flag), "{error}");
        assert!(!home.exists(), "{flag} made a home");
    }
}

#[test]
fn a_path_that_is_not_there_is_exit_3_everywhere() {
    let daemon = Daemon::start();
    for words in [
        &["publish", "no-such-file", "acme/x"][..],
        &["import", "no-such-file", "acme/x"],
        &["bench", "engine", "no-such-file"],
        &["bench", "stages", "no-such-file"],
    ] {
        let output = daemon.cairn(&[words, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(3), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(error_of(&output)["code"], "not_found");
    }
}

#[test]
fn a_result_that_can_not_be_written_is_a_failure() {
    let home = tempfile::tempdir().unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = daemon::command(home.path());
    let output = command.args(["config", "show", "--json"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error_of(&output)["what"], "standard output");
}

/// Starts a command whose temporary files all lie in `tmp`.
fn start(home: &Path, tmp: &Path, words: &[&str]) -> Child {
    let mut command = daemon::command(home);
    command.args(words).env("TMPDIR", tmp).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// SIGHUP, where whoever started the tests has not had it ignored, as `nohup` does: children inherit that, and then it
/// rightly ends nothing.
fn hangup() -> Signal {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    if u64::from_str_radix(ignored, 16).unwrap() & 1 == 0 {
        return Signal::HUP;
    }
    eprintln!("SIGHUP is ignored here: NOT TESTED, SIGTERM is sent in its place");
    Signal::TERM
}

/// Waits for the end, and for nothing to be left in `tmp` and no process to speak of it.
fn ends_clean(child: Child, tmp: &Path) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    let mut left: Vec<_> = std::fs::read_dir(tmp).unwrap().map(|entry| entry.unwrap().path()).collect();
    // An empty file that all nodes of a machine share, so that they measure it one at a time.
    left.retain(|path| !path.ends_with("cairn-measure.lock"));
    assert!(left.is_empty(), "left behind: {left:?}");
    assert_eq!(processes_of(tmp), 0, "processes are left behind");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// How many processes name a folder on their command line.
fn processes_of(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap();
    let lines = processes.filter_map(|entry| std::fs::read(entry.unwrap().path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder)).count()
}

fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < daemon::PATIENCE, "{what}: not so");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_cancelled((code, said): (Option<i32>, String)) {
    assert_eq!(code, Some(1), "{said}");
    let error: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(error["error"]["code"], "cancelled", "{said}");
}

#[test]
fn a_demo_interrupted_at_its_start_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    for (kind, nodes) in [(Signal::INT, 1), (Signal::TERM, 1), (hangup(), 2), (Signal::INT, 3)] {
        let tmp = tempfile::tempdir().unwrap();
        let child = start(home.path(), tmp.path(), &["demo", "--json"]);
        wait_for("nodes are started", || processes_of(tmp.path()) >= nodes);
        signal(&child, kind);
        is_cancelled(ends_clean(child, tmp.path()));
    }
}

#[test]
fn an_interrupted_benchmark_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let model = cairn_testnet::tiny_model(home.path()).unwrap();
    let model = model.to_str().unwrap();
    for (kind, words) in [
        (Signal::INT, &["bench", "blobs", "--mib", "4096"][..]),
        (Signal::TERM, &["bench", "stages", model, "--decode-tokens", "4096", "--repeat", "1000"]),
        (hangup(), &["bench", "stages", model, "--decode-tokens", "4096", "--repeat", "1000"]),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        let child = start(home.path(), tmp.path(), &[words, &["--json"]].concat());
        wait_for("something is there", || std::fs::read_dir(tmp.path()).unwrap().count() > 0);
        signal(&child, kind);
        is_cancelled(ends_clean(child, tmp.path()));
    }
}

#[test]
fn a_demo_whose_reader_goes_away_ends_quietly_and_cleans_up() {
    let (home, tmp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut child = start(home.path(), tmp.path(), &["demo", "--json"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("nodes"), "{line}");
    assert_eq!(ends_clean(child, tmp.path()), (Some(0), String::new()));
}

#[test]
fn a_demo_takes_no_setting_of_its_caller_and_is_quiet_if_asked() {
    let (home, tmp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = daemon::command(home.path());
    command.args(["demo", "-q", "--nodes", "2"]).env("TMPDIR", tmp.path());
    command.env("CAIRN_GRANT_COMPUTE", "nobody").env("CAIRN_THREADS", "bogus").env("CAIRN_API", "127.0.0.1:1");
    let output = command.output().unwrap();
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(text.contains("tokens/s") && !text.contains("publishes"), "{text}");
}

#[test]
fn an_interrupted_run_says_what_is_known_in_its_last_line() {
    let daemon = Daemon::start();
    publish_tiny(&daemon);
    let mut command = daemon::command(daemon.home());
    command.args(["run", "acme/tiny", "--raw", "Once", "--max-tokens", "100000", "--seed", "5", "--json"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let tokens = lines.by_ref().filter(|line| line.contains("\"token\"")).take(3).count();
    assert_eq!(tokens, 3, "it made fewer tokens");
    signal(&child, Signal::INT);
    let done: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert_eq!((&done["event"], &done["finish"], &done["seed"]), (&"done".into(), &"cancelled".into(), &5.into()));
    assert_eq!(done["stages"].as_array().unwrap().len(), 1, "{done}");
    assert!(done["prompt_tokens"].as_u64().unwrap() > 0, "{done}");
    assert!(done["ttft_ms"].as_f64().unwrap() > 0.0 && done["tokens_per_s"].as_f64().unwrap() > 0.0, "{done}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

fn publish_tiny(daemon: &Daemon) {
    let model = daemon.home().join("model");
    cairn_node::builtin::write(&model).unwrap();
    let output = daemon.cairn(&["publish", model.to_str().unwrap(), "acme/tiny"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
