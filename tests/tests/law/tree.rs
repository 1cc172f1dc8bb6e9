//! Reading the checkout, and the laws that every file of it obeys.

use std::fs;
use std::path::{Path, PathBuf};

/// The workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// The text of a file of the workspace.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every source and text file below `folder`, as (path from the root, text); build output is left out.
pub fn texts(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    found.sort();
    assert!(!found.is_empty(), "{folder} has no files");
    found
}

fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path: PathBuf = entry.expect("a listed entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_output = name.ends_with(".egg-info");
        if is_output
            || ["target", ".git", ".venv", "__pycache__", ".pytest_cache", "node_modules"].contains(&name.as_str())
        {
            continue;
        }
        if path.is_dir() {
            walk(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            found.push((path, text));
        }
    }
}

/// The Rust sources below `folder`, generated ones left out.
pub fn sources(folder: &str) -> Vec<(String, String)> {
    texts(folder).into_iter().filter(|(path, _)| path.ends_with(".rs") && !path.contains("/gen/")).collect()
}

#[test]
fn no_file_names_a_place_on_the_machine_it_was_written_on() {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/tm", "p/")];
    let named = texts(".").into_iter().filter(|(path, _)| !path.ends_with(".lock")).flat_map(|(path, text)| {
        let lines = text.lines().enumerate().filter(|(_, line)| places.iter().any(|place| line.contains(place)));
        lines.map(|(n, line)| format!("{path}:{}: {}", n + 1, line.trim())).collect::<Vec<_>>()
    });
    let named: Vec<String> = named.collect();
    assert!(named.is_empty(), "{}", named.join("\n"));
}

#[test]
fn every_source_says_first_what_it_is_for() {
    let silent: Vec<String> =
        sources(".").into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "these open without //!: {silent:?}");
}

#[test]
fn no_file_is_called_after_nothing() {
    let empty_names = ["utils.rs", "util.rs", "helpers.rs", "helper.rs", "common.rs", "misc.rs", "manager.rs"];
    for (path, _) in sources(".") {
        let name = path.rsplit('/').next().unwrap_or(&path);
        assert!(!empty_names.contains(&name), "{path}: a file's name is its idea");
    }
}

#[test]
fn unsafe_code_lives_in_files_that_announce_it() {
    let word = concat!("uns", "afe ");
    for (path, text) in sources(".") {
        let code = text.lines().map(|line| line.split("//").next().unwrap_or(line));
        let is_used = code.clone().any(|line| {
            let line = line.trim_start();
            [format!("{word}{{"), format!("{word}fn"), format!("{word}impl"), format!("{word}extern")]
                .iter()
                .any(|form| line.contains(form.as_str()))
        });
        assert!(!is_used || text.contains("allow(unsafe_code)"), "{path} has {word}code without saying so at its top");
    }
}
