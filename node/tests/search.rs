//! Publishing with a card and finding it again, through a real daemon, the command line and a `kill -9`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod daemon;

use std::time::Instant;

use daemon::{Daemon, PATIENCE, error_of};
use rustix::process::Signal;
use serde_json::Value;

const CARD: &str = "---\nlicense: apache-2.0\nlanguage: [en, de]\npipeline_tag: text-generation\nlibrary_name: transformers\n\
    base_model: acme/base\nbase_model_relation: finetune\ntags:\n- verse\n- {not: a text}\n---\n# Sonnet\nWrites alexandrines.\n";

fn publish(daemon: &Daemon, name: &str, card: &str) -> Value {
    let folder = daemon.home().join(name.replace('/', "-"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("README.md"), card).unwrap();
    std::fs::write(folder.join("weights.bin"), name).unwrap();
    let output = daemon.cairn(&["publish", folder.to_str().unwrap(), name, "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn search(daemon: &Daemon, words: &[&str]) -> Value {
    let words: Vec<&str> = ["search", "--json"].iter().chain(words).copied().collect();
    let output = daemon.cairn(&words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Searches until the index has caught up.
fn settled(daemon: &Daemon, words: &[&str]) -> Value {
    let started = Instant::now();
    loop {
        let found = search(daemon, words);
        if found["pending"] == 0 {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "the index does not catch up: {found}");
    }
}

fn names(found: &Value) -> Vec<&str> {
    found["repos"].as_array().unwrap().iter().map(|repo| repo["repo"].as_str().unwrap()).collect()
}

#[test]
fn a_card_is_checked_shown_and_found() {
    let daemon = Daemon::start();
    let published = publish(&daemon, "acme/Sonnet-135M", CARD);
    let problem = &published["card_problems"][0];
    assert_eq!(
        (problem["line"].as_u64(), problem["field"].as_str(), problem["error"].as_bool()),
        (Some(10), Some("tags"), Some(true))
    );
    publish(&daemon, "acme/other", "---\nlicense: mit\nlanguage: de\n---\nNothing to see.\n");
    publish(&daemon, "datasets/acme/poems", "no front matter");

    let shown: Value = serde_json::from_slice(&daemon.cairn(&["show", "acme/sonnet-135m", "--json"]).stdout).unwrap();
    let card = &shown["card"];
    assert_eq!(
        (card["task"].as_str(), card["base_model_relation"].as_str()),
        (Some("text-generation"), Some("finetune"))
    );
    assert_eq!(card["problems"][0]["what"], "expected a text here");
    assert_eq!(shown["repo"]["license"], "apache-2.0");

    assert_eq!(names(&settled(&daemon, &["sonnet"])), ["acme/Sonnet-135M"]);
    for words in [
        &["135m"][..],
        &["alexandrines", "-other"],
        &["--language", "en"],
        &["--task", "text-generation", "--library", "transformers", "--tag", "verse"],
        &["--base-model", "acme/base", "--license", "apache-2.0", "--publisher", "acme", "--min-bytes", "1"],
    ] {
        let words: Vec<&str> =
            if words.contains(&"-other") { vec!["--", "alexandrines", "-other"] } else { words.to_vec() };
        assert_eq!(names(&search(&daemon, &words)), ["acme/Sonnet-135M"], "{words:?}");
    }
    let all = search(&daemon, &["--sort", "name", "--limit", "2", "--facets", "kind,language"]);
    assert_eq!((all["total"].as_u64(), names(&all)), (Some(3), vec!["acme/other", "datasets/acme/poems"]));
    assert_eq!(all["facets"]["kind"][0], serde_json::json!({"value": "model", "count": 2}));
    assert_eq!(all["facets"]["language"][0], serde_json::json!({"value": "de", "count": 2}));
    let rest = search(&daemon, &["--sort", "name", "--limit", "2", "--after", all["next_cursor"].as_str().unwrap()]);
    assert_eq!((names(&rest), rest["next_cursor"].as_str()), (vec!["acme/Sonnet-135M"], Some("")));

    for (words, part) in [
        (&["licens:mit"][..], "at character 1"),
        (&["--facets", "nope"], "no field is called"),
        (&["--after", "x"], "cursor"),
    ] {
        let output = daemon.cairn(&[&["search", "--json"][..], words].concat());
        let error = error_of(&output);
        assert!(error["why"].as_str().unwrap().contains(part), "{error}");
        assert_eq!(error["code"], "bad_input");
    }
}

#[test]
fn what_was_published_before_a_kill_is_found_after_it() {
    let daemon = Daemon::start();
    for n in 0..5 {
        publish(&daemon, &format!("acme/verse-{n}"), CARD);
    }
    daemon.signal(Signal::KILL);
    let (_, _, home) = daemon.wait();
    let daemon = Daemon::start_in(home, &[]);
    let found = settled(&daemon, &["alexandrines", "--sort", "name"]);
    assert_eq!(names(&found), ["acme/verse-0", "acme/verse-1", "acme/verse-2", "acme/verse-3", "acme/verse-4"]);
}
