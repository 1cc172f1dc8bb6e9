//! Docs say what is true: crates, constants and files that they name.

use std::collections::BTreeMap;

use crate::tree::{read, root, texts};

#[test]
fn the_architecture_and_the_readme_name_every_crate() {
    let manifest = read("Cargo.toml");
    let members = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).expect("members").0;
    for folder in members.split(',').map(|part| part.trim().trim_matches('"')).filter(|part| !part.is_empty()) {
        let package = read(&format!("{folder}/Cargo.toml"));
        let name =
            package.lines().find_map(|line| line.strip_prefix("name = ")).expect("a name").trim_matches('"').to_owned();
        for page in ["docs/architecture.md", "README.md"] {
            assert!(read(page).contains(&format!("`{folder}`")), "{page} does not name `{folder}`");
        }
        assert!(
            read("docs/architecture.md").contains(&format!("({name})")),
            "docs/architecture.md does not name {name}"
        );
    }
}

#[test]
fn every_limit_stands_in_the_protocol_page_with_its_value() {
    let code = constants(&read("protocol/src/limits.rs"));
    assert!(code.len() > 40, "only {} constants were read", code.len());
    let page = read("docs/protocol.md");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`');
        name.chars()
            .all(|c| c.is_ascii_uppercase() || c == '_')
            .then(|| (name.to_owned(), quantity(cells.next().unwrap_or_default())))
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), code.into_iter().map(|(name, value)| (name, Some(value))).collect());
}

/// `pub const NAME: T = EXPRESSION;` of sums of a few operators.
fn constants(source: &str) -> BTreeMap<String, u64> {
    let lines = source.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(" = "));
    lines
        .map(|(name, value)| {
            let name = name.split(':').next().unwrap_or(name).to_owned();
            let value = value.trim_end_matches(';');
            (name, evaluate(value).unwrap_or_else(|| panic!("`{value}` is no constant that is understood here")))
        })
        .collect()
}

fn evaluate(expression: &str) -> Option<u64> {
    if let Some((number, shift)) = expression.split_once("<<") {
        return evaluate(number)?.checked_shl(shift.trim().parse().ok()?);
    }
    expression
        .split('*')
        .try_fold(1u64, |product, factor| product.checked_mul(factor.trim().replace('_', "").parse().ok()?))
}

/// "32 KiB", "64 MiB", "200 000".
fn quantity(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(" KiB") {
        Some(number) => (number, 1 << 10),
        None => text.strip_suffix(" MiB").map_or((text, 1), |number| (number, 1 << 20)),
    };
    number.replace(' ', "").parse::<u64>().ok()?.checked_mul(unit)
}

#[test]
fn links_between_pages_lead_somewhere() {
    let pages = texts("docs").into_iter().chain([("README.md".to_owned(), read("README.md"))]);
    for (path, text) in pages.filter(|(path, _)| path.ends_with(".md")) {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let folder = root().join(&path);
            let found = folder.parent().is_some_and(|folder| folder.join(target).exists());
            assert!(found, "{path} links to {target}, which is not there");
        }
    }
}
