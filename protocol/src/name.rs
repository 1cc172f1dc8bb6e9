//! What people type: handles, repos, refs. Not resolution (that needs a catalogue). Invariant: a value of these types obeys the
//! grammar, so nobody checks it again; names are equal without regard to case, and keep the case they were given.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::id::{PublisherKey, looks_like_hex};
use crate::limits::{NAME_BYTES_MAX, REF_BYTES_MAX};
use crate::record_pb;

pub use crate::path::{FilePath, PathError};

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not 1 to 96 of the permitted characters, or a dot at an end.
    #[error("`{0}` must be 1 to 96 of A-Z a-z 0-9 . _ - and neither begin nor end with a dot")]
    Part(String),
    /// A handle that could be taken for a key or for a part of an address.
    #[error("`{0}` can't be a handle: it looks like a key or is reserved")]
    Handle(String),
    /// Not `PUBLISHER/NAME` or `KIND/PUBLISHER/NAME`.
    #[error("`{0}` is not PUBLISHER/NAME, datasets/PUBLISHER/NAME, adapters/… or spaces/…")]
    Repo(String),
    /// Not a ref.
    #[error("`{0}` can't be a ref: parts as in names, separated by /, and not 8 to 64 hex digits")]
    Ref(String),
    /// A kind that is none.
    #[error("unknown kind `{0}`: model, dataset, adapter or space")]
    Kind(String),
}

/// What a repo holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RepoKind {
    /// Weights.
    Model = 1,
    /// Training or evaluation data.
    Dataset = 2,
    /// A small change to a model.
    Adapter = 3,
    /// An application.
    Space = 4,
}

impl RepoKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Model, Self::Dataset, Self::Adapter, Self::Space];

    /// "model", "dataset", "adapter" or "space".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Adapter => "adapter",
            Self::Space => "space",
        }
    }

    /// The plural that begins a path; models need none.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Adapter => "adapters",
            Self::Space => "spaces",
        }
    }

    /// The number in signed records.
    pub const fn to_pb(self) -> i32 {
        self as i32
    }

    /// From the number in signed records.
    pub fn from_pb(number: i32) -> Option<Self> {
        match record_pb::RepoKind::try_from(number).ok()? {
            record_pb::RepoKind::Unspecified => None,
            record_pb::RepoKind::Model => Some(Self::Model),
            record_pb::RepoKind::Dataset => Some(Self::Dataset),
            record_pb::RepoKind::Adapter => Some(Self::Adapter),
            record_pb::RepoKind::Space => Some(Self::Space),
        }
    }
}

impl fmt::Display for RepoKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for RepoKind {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text || kind.folder() == text);
        found.ok_or_else(|| NameError::Kind(shown(text)))
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(String);

        impl $name {
            /// As it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// In lowercase: what catalogue keys are made of.
            pub fn folded(&self) -> String {
                self.0.to_ascii_lowercase()
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.eq_ignore_ascii_case(&other.0)
            }
        }

        impl Eq for $name {}

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                let folded = |name: &Self| name.0.clone().into_bytes().into_iter().map(|b| b.to_ascii_lowercase());
                folded(self).cmp(folded(other))
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.folded().hash(state);
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// The last part of a repo's name.
    RepoName
);
name!(
    /// A publisher's claimed name.
    Handle
);

impl FromStr for RepoName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match is_part(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError::Part(shown(text))),
        }
    }
}

/// First parts of paths that the doors keep for themselves.
const RESERVED_HANDLES: [&str; 9] =
    ["models", "datasets", "adapters", "spaces", "api", "v1", "metrics", "healthz", "readyz"];

impl FromStr for Handle {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if !is_part(text) {
            return Err(NameError::Part(shown(text)));
        }
        let reserved = RESERVED_HANDLES.iter().any(|word| word.eq_ignore_ascii_case(text));
        match reserved || looks_like_hex(text, 64..=64) {
            true => Err(NameError::Handle(shown(text))),
            false => Ok(Self(text.to_owned())),
        }
    }
}

/// Who published: as people write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Publisher {
    /// By the name it claims.
    Handle(Handle),
    /// By its key.
    Key(PublisherKey),
}

impl FromStr for Publisher {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(key) => Ok(Self::Key(key)),
            Err(_) => Ok(Self::Handle(text.parse()?)),
        }
    }
}

impl fmt::Display for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handle(handle) => handle.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

/// What a repo is: its publisher's key, its kind, its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId {
    /// The key that signs its records.
    pub publisher: PublisherKey,
    /// What it holds.
    pub kind: RepoKind,
    /// Its name, unique for this key and kind without regard to case.
    pub name: RepoName,
}

impl RepoId {
    /// The same repo as people may write it, with the key for a publisher.
    pub fn path(&self) -> RepoPath {
        RepoPath { kind: self.kind, publisher: Publisher::Key(self.publisher), name: self.name.clone() }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().fmt(f)
    }
}

/// A repo as people write it: `acme/tiny`, `datasets/acme/poems`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath {
    /// What it holds.
    pub kind: RepoKind,
    /// Handle or key.
    pub publisher: Publisher,
    /// Its name.
    pub name: RepoName,
}

impl FromStr for RepoPath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Repo(shown(text));
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let (kind, publisher, name) = match parts[..] {
            [publisher, name] => (RepoKind::Model, publisher, name),
            [folder, publisher, name] => {
                let kind = RepoKind::ALL.into_iter().find(|kind| kind.folder() == folder);
                (kind.ok_or_else(wrong)?, publisher, name)
            }
            _ => return Err(wrong()),
        };
        Ok(Self { kind, publisher: publisher.parse()?, name: name.parse()? })
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RepoKind::Model => write!(f, "{}/{}", self.publisher, self.name),
            kind => write!(f, "{}/{}/{}", kind.folder(), self.publisher, self.name),
        }
    }
}

/// A branch or tag: parts as in names, separated by `/`; never 8 to 64 hex digits, which name revisions.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName(String);

impl RefName {
    /// The ref that is meant when none is said.
    pub fn main() -> Self {
        Self("main".to_owned())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RefName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = text.len() <= REF_BYTES_MAX && text.split('/').all(is_part);
        match fits && !looks_like_hex(text, 8..=64) {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError::Ref(shown(text))),
        }
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What stands after the `@`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefSpec {
    /// A branch or tag.
    Ref(RefName),
    /// The first 8 to 64 hex digits of a revision, in lowercase.
    Prefix(String),
}

impl FromStr for RefSpec {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match looks_like_hex(text, 8..=64) {
            true => Ok(Self::Prefix(text.to_ascii_lowercase())),
            false => Ok(Self::Ref(text.parse()?)),
        }
    }
}

impl fmt::Display for RefSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ref(name) => name.fmt(f),
            Self::Prefix(digits) => f.pad(digits),
        }
    }
}

/// `REPO[@REF]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoRef {
    /// The repo.
    pub path: RepoPath,
    /// Which of its revisions; `main` when nothing is said.
    pub spec: Option<RefSpec>,
}

impl FromStr for RepoRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(match text.split_once('@') {
            Some((path, spec)) => Self { path: path.parse()?, spec: Some(spec.parse()?) },
            None => Self { path: text.parse()?, spec: None },
        })
    }
}

impl fmt::Display for RepoRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spec {
            Some(spec) => write!(f, "{}@{spec}", self.path),
            None => self.path.fmt(f),
        }
    }
}

fn is_part(text: &str) -> bool {
    let permitted = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(permitted)
        && !text.starts_with('.')
        && !text.ends_with('.')
}

/// At most 100 characters of what was typed, for an error.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}
