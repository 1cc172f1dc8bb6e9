//! Who may import whom: the table of docs/architecture.md against `cargo metadata` and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::tree::{read, root, sources};

/// Outside crates that only these crates of ours name.
const OWNED: [(&str, &[&str]); 15] = [
    ("ed25519-dalek", &["cairn-protocol"]),
    ("redb", &["cairn-registry"]),
    ("tantivy", &["cairn-registry"]),
    ("saphyr-parser", &["cairn-registry"]),
    ("bao-tree", &["cairn-registry", "cairn"]),
    ("iroh-blobs", &["cairn-registry", "cairn"]),
    ("iroh", &["cairn"]),
    ("libp2p", &["cairn"]),
    ("axum", &["cairn"]),
    ("clap", &["cairn"]),
    ("tonic", &["cairn", "cairn-client"]),
    ("candle-core", &["cairn-compute"]),
    ("candle-nn", &["cairn-compute"]),
    ("tokenizers", &["cairn-compute"]),
    ("minijinja", &["cairn-compute"]),
];

/// Package → its direct dependencies that are built into it (those of tests are left out).
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages.iter().map(|package| (text(&package["name"]), built_in(package))).collect()
}

fn built_in(package: &Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().expect("dependencies");
    all.iter().filter(|dependency| dependency["kind"] != "dev").map(|dependency| text(&dependency["name"])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// The rows of the table: package → (its own folder, the folders it may import, the words under "never").
fn table() -> Vec<(String, String, String, String)> {
    let page = read("docs/architecture.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
        let (folder, rest) = cells.first()?.split_once('`')?;
        let package = rest.trim().strip_prefix('(')?.split(')').next()?;
        Some((package.to_owned(), folder.to_owned(), cells.get(1)?.to_string(), cells.get(2)?.to_string()))
    });
    rows.filter(|(_, folder, ..)| root().join(folder).join("Cargo.toml").exists()).collect()
}

fn permitted(may_import: &str, before: &[(String, String, String, String)]) -> BTreeSet<String> {
    match may_import {
        "nothing" => BTreeSet::new(),
        "all" | "all above" => before.iter().map(|(package, ..)| package.clone()).collect(),
        folders => {
            let named = folders.split(',').map(str::trim);
            let package = |folder: &str| before.iter().find(|row| row.1 == folder).map(|row| row.0.clone());
            named.map(|folder| package(folder).unwrap_or_else(|| panic!("no crate in `{folder}`"))).collect()
        }
    }
}

#[test]
fn crates_import_only_what_the_table_permits() {
    let (table, dependencies) = (table(), dependencies());
    let ours: BTreeSet<&String> = dependencies.keys().collect();
    let rows: BTreeSet<&String> = table.iter().map(|(package, ..)| package).collect();
    assert_eq!(rows, ours, "the table of docs/architecture.md has other crates than the workspace");
    for (package, _, may_import, never) in &table {
        let permitted = permitted(may_import, &table);
        let direct = &dependencies[package];
        let ours_named: Vec<&String> =
            direct.iter().filter(|name| ours.contains(name) && !permitted.contains(*name)).collect();
        assert!(ours_named.is_empty(), "{package} imports {ours_named:?}; the table permits {permitted:?}");
        let banned = never
            .split(',')
            .map(str::trim)
            .filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
        for word in banned {
            let named: Vec<&String> =
                direct.iter().filter(|name| *name == word || name.starts_with(&format!("{word}-"))).collect();
            assert!(named.is_empty(), "{package} imports {named:?}; the table says never");
        }
    }
}

#[test]
fn outside_crates_are_named_by_their_owners_alone() {
    for (package, direct) in dependencies() {
        for (outside, owners) in OWNED {
            assert!(
                !direct.contains(outside) || owners.contains(&package.as_str()),
                "{package} names {outside}, which belongs to {owners:?}"
            );
        }
    }
}

#[test]
fn the_protocol_does_no_io_and_has_no_clock() {
    let banned = [
        "std::fs",
        "std::io",
        "std::net::Tcp",
        "std::net::Udp",
        "std::thread",
        "std::env",
        "Instant",
        "SystemTime",
        "tokio",
        "async fn",
    ];
    for (path, source) in sources("protocol/src") {
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let named = banned.iter().find(|word| line.contains(*word));
            assert!(named.is_none(), "{path} names {named:?}: {line}");
        }
    }
}

#[test]
fn libp2p_and_iroh_are_named_in_their_rooms_alone() {
    let rooms = [
        ("libp2p", vec!["node/src/net/"]),
        ("iroh", vec!["node/src/data/"]),
        ("iroh_blobs", vec!["node/src/data/", "registry/src/"]),
    ];
    let all =
        ["node/src", "registry/src", "compute/src", "clients/rust/src", "testnet/src"].into_iter().flat_map(sources);
    for (path, source) in all {
        for (word, rooms) in &rooms {
            let is_named = source.lines().any(|line| names(line, word));
            assert!(
                !is_named || rooms.iter().any(|room| path.starts_with(room)),
                "{path} names {word}, whose rooms are {rooms:?}"
            );
        }
    }
}

/// Whether a line of code has the crate's name in a path: `word::` or `use word;`.
fn names(line: &str, word: &str) -> bool {
    let line = line.trim_start();
    if line.starts_with("//") {
        return false;
    }
    let path = format!("{word}::");
    let is_whole = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    line.match_indices(&path).any(|(at, _)| is_whole(at))
}

#[test]
fn the_check_of_rooms_sees_a_path_and_not_a_word() {
    assert!(names("    use iroh::Endpoint;", "iroh") && names("fn x() -> iroh::Endpoint {", "iroh"));
    assert!(
        !names("use iroh_blobs::store;", "iroh")
            && !names("// iroh::Endpoint", "iroh")
            && !names("let iroh = 1;", "iroh")
    );
}
