//! What the binary says and how it ends, without a daemon: help, usage, exit codes, closed pipes.

mod daemon;

use std::io::Read;
use std::process::{Command, Stdio};

use daemon::{CAIRN, cairn, error_of};

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
        "bench blobs",
        "bench stages",
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
    for words in [&["frobnicate"][..], &["pull"], &["pull", "a/b", "--layers", "x"], &["ls", "--nope"], &[], &["run"]] {
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
