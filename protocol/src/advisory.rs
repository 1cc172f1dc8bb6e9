//! Advisories: signed warnings of what others published. Whose advisories count, and what follows from one, is each operator's policy
//! (`registry`). Invariant: a value obeys every rule that one advisory can be held to by itself.

use std::{fmt, str::FromStr};

use prost::Message;

use crate::body::{bounded, decode, exact, parsed};
use crate::id::{BlobHash, PublisherKey, RealmId, RevisionId};
use crate::key::Keypair;
use crate::limits::{MESSAGE_BYTES_MAX, NAMED_REPO_BYTES_MAX, SUBJECTS_MAX, URL_BYTES_MAX, WORD_BYTES_MAX};
use crate::name::{RepoId, RepoKind};
use crate::record::{Record, RecordError, RecordKind};
use crate::record_pb::{self, subject::Of};

/// A warning. Of one signer's advisories of one name, the highest number holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advisory {
    /// What its signer calls it.
    pub name: String,
    /// Counts from 1.
    pub number: u64,
    /// Of what sort.
    pub category: Category,
    /// It holds no more.
    pub is_withdrawn: bool,
    /// What it is about; at least one.
    pub subjects: Vec<Subject>,
    /// What a person should know.
    pub text: String,
    /// Where more is to be read, or empty.
    pub url: String,
    /// `REPO[@REF]` to use instead, or empty.
    pub instead: String,
    /// By the signer's clock; orders nothing.
    pub created_ms: i64,
}

/// Of what sort an advisory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// It harms whoever loads it.
    Malware = 1,
    /// Its licence is not what it says, or is not met.
    License = 2,
    /// It must not be had or passed on.
    Legal = 3,
    /// There is something better.
    Deprecated = 4,
    /// Its publisher takes it back.
    Yanked = 5,
}

/// What an advisory is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// All repos of a publisher.
    Publisher(PublisherKey),
    /// All revisions of a repo.
    Repo(RepoId),
    /// One revision.
    Revision(RevisionId),
    /// A file, in whatever revision.
    Blob(BlobHash),
}

impl Category {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Malware, Self::License, Self::Legal, Self::Deprecated, Self::Yanked];

    /// The word for people and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malware => "malware",
            Self::License => "license",
            Self::Legal => "legal",
            Self::Deprecated => "deprecated",
            Self::Yanked => "yanked",
        }
    }

    fn from_pb(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|category| *category as i32 == number)
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no category.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of malware, license, legal, deprecated, yanked")]
pub struct UnknownCategory(String);

impl FromStr for Category {
    type Err = UnknownCategory;

    fn from_str(word: &str) -> Result<Self, UnknownCategory> {
        let known = Self::ALL.into_iter().find(|category| category.name() == word);
        known.ok_or_else(|| UnknownCategory(word.to_owned()))
    }
}

impl Advisory {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        record_pb::Advisory {
            name: self.name.clone(),
            number: self.number,
            category: self.category as i32,
            withdrawn: self.is_withdrawn,
            subjects: self.subjects.iter().map(Subject::to_pb).collect(),
            text: self.text.clone(),
            url: self.url.clone(),
            instead: self.instead.clone(),
            created_ms: self.created_ms,
        }
        .encode_to_vec()
    }

    /// From a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, RecordError> {
        let pb = decode::<record_pb::Advisory>(payload)?;
        if pb.name.is_empty() || pb.name.contains('\0') {
            return Err(RecordError::Invalid { field: "name" });
        }
        if pb.number == 0 {
            return Err(RecordError::Invalid { field: "number" });
        }
        if pb.subjects.is_empty() || pb.subjects.len() > SUBJECTS_MAX {
            return Err(RecordError::Invalid { field: "subjects" });
        }
        Ok(Self {
            name: bounded(pb.name, WORD_BYTES_MAX, "name")?,
            number: pb.number,
            category: Category::from_pb(pb.category).ok_or(RecordError::Invalid { field: "category" })?,
            is_withdrawn: pb.withdrawn,
            subjects: pb.subjects.iter().map(Subject::parse).collect::<Result<_, _>>()?,
            text: bounded(pb.text, MESSAGE_BYTES_MAX, "text")?,
            url: bounded(pb.url, URL_BYTES_MAX, "url")?,
            instead: bounded(pb.instead, NAMED_REPO_BYTES_MAX, "instead")?,
            created_ms: pb.created_ms,
        })
    }

    /// The signed record.
    pub fn sign(&self, realm: RealmId, key: &Keypair) -> Result<Record, RecordError> {
        Self::parse(&self.encode())?;
        Record::sign(RecordKind::Advisory, realm, self.encode(), key)
    }
}

impl Subject {
    fn to_pb(&self) -> record_pb::Subject {
        let of = match self {
            Self::Publisher(key) => Of::Publisher(key.to_vec()),
            Self::Repo(repo) => Of::Repo(record_pb::RepoName {
                publisher: repo.publisher.to_vec(),
                kind: repo.kind.to_pb(),
                name: repo.name.to_string(),
            }),
            Self::Revision(revision) => Of::Revision(revision.to_vec()),
            Self::Blob(blob) => Of::Blob(blob.to_vec()),
        };
        record_pb::Subject { of: Some(of) }
    }

    fn parse(pb: &record_pb::Subject) -> Result<Self, RecordError> {
        const FIELD: &str = "subjects";
        Ok(match &pb.of {
            Some(Of::Publisher(key)) => Self::Publisher(exact(key, FIELD)?),
            Some(Of::Repo(repo)) => Self::Repo(RepoId {
                publisher: exact(&repo.publisher, FIELD)?,
                kind: RepoKind::from_pb(repo.kind).ok_or(RecordError::Invalid { field: FIELD })?,
                name: parsed(&repo.name, FIELD)?,
            }),
            Some(Of::Revision(revision)) => Self::Revision(exact(revision, FIELD)?),
            Some(Of::Blob(blob)) => Self::Blob(exact(blob, FIELD)?),
            None => return Err(RecordError::Invalid { field: FIELD }),
        })
    }
}
