//! What `hf://` names: a repo of a Hub and a revision of it. It knows no endpoint and asks nobody.
//!
//! Invariant: a value's parts are of the Hub's alphabet, so they can stand in a path as they are; a revision is percent-encoded.

use std::{fmt::Write as _, str::FromStr};

use cairn_protocol::refusal::{Reason, Refusal};

/// Longest name of an organisation or repo.
const PART_BYTES_MAX: usize = 96;
/// Longest name of a branch.
const REVISION_BYTES_MAX: usize = 255;

/// `hf://[datasets/|spaces/]ORG/NAME[@REV]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubSource {
    kind: HubKind,
    /// `ORG/NAME`.
    id: String,
    revision: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HubKind {
    Models,
    Datasets,
    Spaces,
}

impl HubSource {
    /// The path of a question about the repo: `api/models/ORG/NAME/TAIL`.
    pub(super) fn api(&self, tail: &str) -> String {
        let kind = match self.kind {
            HubKind::Models => "models",
            HubKind::Datasets => "datasets",
            HubKind::Spaces => "spaces",
        };
        format!("api/{kind}/{}/{tail}", self.id)
    }

    /// The path of a file at a commit.
    pub(super) fn file(&self, commit: &str, path: &str) -> String {
        let path: Vec<String> = path.split('/').map(encoded).collect();
        format!("{}{}/resolve/{}/{}", self.prefix(), self.id, encoded(commit), path.join("/"))
    }

    /// The revision that was asked for, as a part of a path.
    pub(super) fn revision(&self) -> String {
        encoded(&self.revision)
    }

    /// The same at a commit.
    pub(super) fn at(&self, commit: &str) -> String {
        format!("hf://{}{}@{commit}", self.prefix(), self.id)
    }

    fn prefix(&self) -> &'static str {
        match self.kind {
            HubKind::Models => "",
            HubKind::Datasets => "datasets/",
            HubKind::Spaces => "spaces/",
        }
    }
}

impl FromStr for HubSource {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let bad = |why: &str| {
            Refusal::new(Reason::BadInput, text, why)
                .try_this("hf://ORG/NAME, hf://ORG/NAME@REV or hf://datasets/ORG/NAME")
        };
        let Some(rest) = text.strip_prefix("hf://") else {
            return Err(bad("only hf://, a folder or a .gguf file can be imported"));
        };
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let (kind, id) = match &parts[..] {
            ["models", organisation, name] => (HubKind::Models, [*organisation, *name]),
            ["datasets", organisation, name] => (HubKind::Datasets, [*organisation, *name]),
            ["spaces", organisation, name] => (HubKind::Spaces, [*organisation, *name]),
            [organisation, name] => (HubKind::Models, [*organisation, *name]),
            _ => return Err(bad("a repo of a Hub is named by an organisation and a name")),
        };
        if !id.iter().all(|part| is_name(part)) {
            return Err(bad("a name is of letters, digits, '.', '_' and '-', at most 96"));
        }
        if revision.is_empty() || revision.len() > REVISION_BYTES_MAX || revision.contains("..") {
            return Err(bad("what follows the @ is no revision"));
        }
        Ok(Self { kind, id: id.join("/"), revision: revision.to_owned() })
    }
}

fn is_name(part: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !part.is_empty() && part.len() <= PART_BYTES_MAX && part.bytes().all(is_allowed) && !part.starts_with('.')
}

/// A part of a path with all but the unreserved bytes encoded.
fn encoded(part: &str) -> String {
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~') {
            text.push(byte.into());
        } else {
            // Writing to a text does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_their_paths_are_what_a_hub_expects() {
        let model: HubSource = "hf://acme/tiny".parse().unwrap();
        assert_eq!(model.api("revision/main"), "api/models/acme/tiny/revision/main");
        assert_eq!(model.file("c0ffee", "a b/ü.txt"), "acme/tiny/resolve/c0ffee/a%20b/%C3%BC.txt");
        let dataset: HubSource = "hf://datasets/acme/poems@refs/pr/1".parse().unwrap();
        assert_eq!(
            (dataset.revision(), dataset.at("c0")),
            ("refs%2Fpr%2F1".to_owned(), "hf://datasets/acme/poems@c0".to_owned())
        );
        assert_eq!(dataset.file("c0", "x"), "datasets/acme/poems/resolve/c0/x");
    }

    #[test]
    fn what_names_no_repo_is_refused() {
        for text in [
            "hf://tiny",
            "hf://a/b/c/d",
            "hf://../x",
            "hf://a/b@",
            "hf://a/b@../x",
            "http://a/b",
            "hf://a/b c",
            "s3://a/b",
        ] {
            assert_eq!(text.parse::<HubSource>().unwrap_err().reason, Reason::BadInput, "{text}");
        }
    }
}
