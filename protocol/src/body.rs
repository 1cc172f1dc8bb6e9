//! What records say: profiles, revisions, heads ([`crate::advisory`] and [`crate::attestation`] have the other two). Not the envelope and not the rules between records (who may follow whom).
//! Invariant: a value of these types obeys every rule that one record can be held to by itself.

use prost::Message;

use crate::advisory::Advisory;
use crate::attestation::Attestation;
use crate::id::{PublisherKey, RecordId, RevisionId};
use crate::limits::{
    BASE_MODELS_MAX, CARD_TEXT_BYTES_MAX, DATASETS_MAX, DISPLAY_NAME_BYTES_MAX, LANGUAGES_MAX, MEMBERS_MAX,
    MESSAGE_BYTES_MAX, NAMED_REPO_BYTES_MAX, ORIGINS_MAX, PARENTS_MAX, REVISION_BYTES_MAX, TAGS_MAX, WORD_BYTES_MAX,
};
use crate::name::{Handle, RefName, RepoId, RepoKind, RepoName, RepoPath};
use crate::record::{Record, RecordError, RecordKind};
use crate::record_pb;
use crate::{id::RealmId, key::Keypair};

/// A record's payload.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Who a key says it is.
    Profile(Profile),
    /// That a manifest is a revision of a repo.
    Revision(Revision),
    /// Which revision a ref stands for.
    Head(Head),
    /// A warning.
    Advisory(Advisory),
    /// What somebody found out about a revision.
    Attestation(Attestation),
}

impl Body {
    /// Whose statement it is, when this key signed it: the publisher that the key signs for, else the key.
    pub fn publisher(&self, signer: PublisherKey) -> PublisherKey {
        let stated = match self {
            Self::Profile(profile) => profile.publisher,
            Self::Revision(revision) => revision.publisher,
            Self::Head(head) => head.publisher,
            Self::Advisory(_) | Self::Attestation(_) => None,
        };
        stated.unwrap_or(signer)
    }
}

/// Who a key says it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The claimed name.
    pub handle: Handle,
    /// For people.
    pub display_name: String,
    /// Raised by key rotation.
    pub epoch: u64,
    /// A key that may rotate this one.
    pub recovery_key: Option<PublisherKey>,
    /// The profile that this one follows.
    pub previous: Option<RecordId>,
    /// By the publisher's clock; orders nothing.
    pub created_ms: i64,
    /// Whose profile it is; none: its signer's.
    pub publisher: Option<PublisherKey>,
    /// Within the epoch; 0 begins it.
    pub number: u64,
    /// Signs for the publisher in this epoch; none: the publisher's own key.
    pub signing_key: Option<PublisherKey>,
    /// Further keys that may sign the publisher's revisions and heads in this epoch.
    pub members: Vec<PublisherKey>,
}

/// The catalogue's summary of a revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// The manifest's hash.
    pub revision: RevisionId,
    /// The manifest's size.
    pub manifest_bytes: u64,
    /// Kind of the repo.
    pub kind: RepoKind,
    /// Name of the repo.
    pub name: RepoName,
    /// What it was made from.
    pub parents: Vec<RevisionId>,
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the publisher says of it.
    pub message: String,
    /// By the publisher's clock; orders nothing.
    pub created_ms: i64,
    /// "llama", "qwen2" or empty.
    pub architecture: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// As the publisher states it.
    pub license: String,
    /// "Q4_K", "BF16" or empty.
    pub quantisation: String,
    /// Free words.
    pub tags: Vec<String>,
    /// What its card says.
    pub card: Box<CardFacts>,
    /// Whose revision it is; none: its signer's.
    pub publisher: Option<PublisherKey>,
    /// What it was made from, as far as its publisher's node knew it.
    pub origins: Vec<Origin>,
}

/// A repo, or one revision of it, that another was made from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// "finetune", "adapter", "merge", "quantized", "dataset" or "import".
    pub relation: String,
    /// The repo.
    pub repo: RepoId,
    /// Which revision, if that is said.
    pub revision: Option<RevisionId>,
}

/// What a catalogue is searched by of a revision's card, beside licence and tags. All of it may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardFacts {
    /// What it is for: "text-generation".
    pub task: String,
    /// What loads it: "transformers".
    pub library: String,
    /// Codes of languages.
    pub languages: Vec<String>,
    /// What it was made from, as the card names it.
    pub base_models: Vec<String>,
    /// "finetune", "adapter", "merge", "quantized" or empty.
    pub base_model_relation: String,
    /// What it was trained on, as the card names it.
    pub datasets: Vec<String>,
    /// The beginning of its text.
    pub text: String,
}

/// Which revision a ref stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Kind of the repo.
    pub kind: RepoKind,
    /// Name of the repo.
    pub name: RepoName,
    /// The ref.
    pub ref_name: RefName,
    /// Heads are ordered by epoch, then number.
    pub epoch: u64,
    /// Counts from 1 within a repo's ref.
    pub number: u64,
    /// What the ref stands for.
    pub revision: RevisionId,
    /// The head that this one follows; none for the first.
    pub previous: Option<RecordId>,
    /// By the publisher's clock; orders nothing.
    pub created_ms: i64,
    /// A tag never moves.
    pub tag: bool,
    /// Whose repo it is; none: its signer's.
    pub publisher: Option<PublisherKey>,
}

impl Profile {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        record_pb::Profile {
            handle: self.handle.to_string(),
            display_name: self.display_name.clone(),
            epoch: self.epoch,
            recovery_key: optional(&self.recovery_key),
            previous: optional(&self.previous),
            created_ms: self.created_ms,
            publisher: optional(&self.publisher),
            number: self.number,
            signing_key: optional(&self.signing_key),
            members: self.members.iter().map(PublisherKey::to_vec).collect(),
        }
        .encode_to_vec()
    }

    /// From a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, RecordError> {
        let pb = decode::<record_pb::Profile>(payload)?;
        if pb.members.len() > MEMBERS_MAX {
            return Err(RecordError::Invalid { field: "members" });
        }
        Ok(Self {
            handle: parsed(&pb.handle, "handle")?,
            display_name: bounded(pb.display_name, DISPLAY_NAME_BYTES_MAX, "display_name")?,
            epoch: pb.epoch,
            recovery_key: maybe(&pb.recovery_key, "recovery_key")?,
            previous: maybe(&pb.previous, "previous")?,
            created_ms: pb.created_ms,
            publisher: maybe(&pb.publisher, "publisher")?,
            number: pb.number,
            signing_key: maybe(&pb.signing_key, "signing_key")?,
            members: pb.members.iter().map(|key| exact(key, "members")).collect::<Result<_, _>>()?,
        })
    }

    /// The signed record.
    pub fn sign(&self, realm: RealmId, key: &Keypair) -> Result<Record, RecordError> {
        Self::parse(&self.encode())?;
        Record::sign(RecordKind::Profile, realm, self.encode(), key)
    }
}

impl Revision {
    /// The repo, when this key signed it.
    pub fn repo(&self, signer: PublisherKey) -> RepoId {
        RepoId { publisher: self.publisher.unwrap_or(signer), kind: self.kind, name: self.name.clone() }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        record_pb::Revision {
            manifest: self.revision.to_vec(),
            manifest_bytes: self.manifest_bytes,
            kind: self.kind.to_pb(),
            name: self.name.to_string(),
            parents: self.parents.iter().map(RevisionId::to_vec).collect(),
            files: self.files,
            bytes: self.bytes,
            message: self.message.clone(),
            created_ms: self.created_ms,
            architecture: self.architecture.clone(),
            parameters: self.parameters,
            license: self.license.clone(),
            quantisation: self.quantisation.clone(),
            tags: self.tags.clone(),
            task: self.card.task.clone(),
            library: self.card.library.clone(),
            languages: self.card.languages.clone(),
            base_models: self.card.base_models.clone(),
            base_model_relation: self.card.base_model_relation.clone(),
            datasets: self.card.datasets.clone(),
            card_text: self.card.text.clone(),
            publisher: optional(&self.publisher),
            origins: origins_to_pb(&self.origins),
        }
        .encode_to_vec()
    }

    /// The same with less of the card where a record has no room for all: first its text is cut, then the last of the datasets, tags
    /// and languages go.
    pub fn cut_to_fit(mut self) -> Self {
        let excess = self.encode().len().saturating_sub(REVISION_BYTES_MAX);
        let kept = self.card.text.len().saturating_sub(excess);
        self.card.text.truncate(self.card.text.floor_char_boundary(kept));
        while self.encode().len() > REVISION_BYTES_MAX {
            let gone = self.card.datasets.pop().or_else(|| self.tags.pop()).or_else(|| self.card.languages.pop());
            if gone.is_none() {
                break;
            }
        }
        self
    }

    /// From a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, RecordError> {
        let pb = decode::<record_pb::Revision>(payload)?;
        if pb.parents.len() > PARENTS_MAX {
            return Err(RecordError::Invalid { field: "parents" });
        }
        if pb.tags.len() > TAGS_MAX {
            return Err(RecordError::Invalid { field: "tags" });
        }
        let card = Box::new(CardFacts::parse(&pb)?);
        let word = |text, field| bounded(text, WORD_BYTES_MAX, field);
        Ok(Self {
            revision: exact(&pb.manifest, "manifest")?,
            manifest_bytes: pb.manifest_bytes,
            kind: RepoKind::from_pb(pb.kind).ok_or(RecordError::Invalid { field: "kind" })?,
            name: parsed(&pb.name, "name")?,
            parents: pb.parents.iter().map(|id| exact(id, "parents")).collect::<Result<_, _>>()?,
            files: pb.files,
            bytes: pb.bytes,
            message: bounded(pb.message, MESSAGE_BYTES_MAX, "message")?,
            created_ms: pb.created_ms,
            architecture: word(pb.architecture, "architecture")?,
            parameters: pb.parameters,
            license: word(pb.license, "license")?,
            quantisation: word(pb.quantisation, "quantisation")?,
            tags: pb.tags.into_iter().map(|tag| word(tag, "tags")).collect::<Result<_, _>>()?,
            card,
            publisher: maybe(&pb.publisher, "publisher")?,
            origins: origins_of(&pb.origins, "origins")?,
        })
    }

    /// The signed record.
    pub fn sign(&self, realm: RealmId, key: &Keypair) -> Result<Record, RecordError> {
        Self::parse(&self.encode())?;
        Record::sign(RecordKind::Revision, realm, self.encode(), key)
    }
}

impl CardFacts {
    /// The repos that the card names, each with what it is to them: what a fine-tune, adapter, merge or quantisation was made from (a
    /// fine-tune where the card does not say), and its datasets.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        let relation = match self.base_model_relation.as_str() {
            "" => "finetune",
            relation => relation,
        };
        let bases = self.base_models.iter().map(move |name| (relation, name.as_str()));
        bases.chain(self.datasets.iter().map(|name| ("dataset", name.as_str())))
    }

    /// The repo that a name of [`CardFacts::named`] means, if it can be one's name; cards leave out that a dataset is one.
    pub fn repo_named(relation: &str, name: &str) -> Option<RepoPath> {
        let is_bare_dataset = relation == "dataset" && !name.starts_with("datasets/");
        let path = if is_bare_dataset { format!("datasets/{name}") } else { name.to_owned() };
        path.parse().ok()
    }

    fn parse(pb: &record_pb::Revision) -> Result<Self, RecordError> {
        let word = |text: &String, field| bounded(text.clone(), WORD_BYTES_MAX, field);
        Ok(Self {
            task: word(&pb.task, "task")?,
            library: word(&pb.library, "library")?,
            languages: list(&pb.languages, LANGUAGES_MAX, WORD_BYTES_MAX, "languages")?,
            base_models: list(&pb.base_models, BASE_MODELS_MAX, NAMED_REPO_BYTES_MAX, "base_models")?,
            base_model_relation: word(&pb.base_model_relation, "base_model_relation")?,
            datasets: list(&pb.datasets, DATASETS_MAX, NAMED_REPO_BYTES_MAX, "datasets")?,
            text: bounded(pb.card_text.clone(), CARD_TEXT_BYTES_MAX, "card_text")?,
        })
    }
}

impl Head {
    /// The repo, when this key signed it.
    pub fn repo(&self, signer: PublisherKey) -> RepoId {
        RepoId { publisher: self.publisher.unwrap_or(signer), kind: self.kind, name: self.name.clone() }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        record_pb::Head {
            kind: self.kind.to_pb(),
            name: self.name.to_string(),
            r#ref: self.ref_name.to_string(),
            epoch: self.epoch,
            number: self.number,
            revision: self.revision.to_vec(),
            previous: optional(&self.previous),
            created_ms: self.created_ms,
            tag: self.tag,
            publisher: optional(&self.publisher),
        }
        .encode_to_vec()
    }

    /// From a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, RecordError> {
        let pb = decode::<record_pb::Head>(payload)?;
        if pb.number == 0 {
            return Err(RecordError::Invalid { field: "number" });
        }
        Ok(Self {
            kind: RepoKind::from_pb(pb.kind).ok_or(RecordError::Invalid { field: "kind" })?,
            name: parsed(&pb.name, "name")?,
            ref_name: parsed(&pb.r#ref, "ref")?,
            epoch: pb.epoch,
            number: pb.number,
            revision: exact(&pb.revision, "revision")?,
            previous: maybe(&pb.previous, "previous")?,
            created_ms: pb.created_ms,
            tag: pb.tag,
            publisher: maybe(&pb.publisher, "publisher")?,
        })
    }

    /// The signed record.
    pub fn sign(&self, realm: RealmId, key: &Keypair) -> Result<Record, RecordError> {
        Self::parse(&self.encode())?;
        Record::sign(RecordKind::Head, realm, self.encode(), key)
    }
}

pub(crate) fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, RecordError> {
    M::decode(payload).map_err(|_| RecordError::Malformed("payload"))
}

pub(crate) fn parsed<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<T, RecordError> {
    text.parse().map_err(|_| RecordError::Invalid { field })
}

pub(crate) fn exact<'a, T: TryFrom<&'a [u8]>>(bytes: &'a [u8], field: &'static str) -> Result<T, RecordError> {
    bytes.try_into().map_err(|_| RecordError::Invalid { field })
}

pub(crate) fn maybe<'a, T: TryFrom<&'a [u8]>>(bytes: &'a [u8], field: &'static str) -> Result<Option<T>, RecordError> {
    match bytes.is_empty() {
        true => Ok(None),
        false => exact(bytes, field).map(Some),
    }
}

pub(crate) fn optional<T: AsRef<[u8]>>(id: &Option<T>) -> Vec<u8> {
    id.as_ref().map_or_else(Vec::new, |id| id.as_ref().to_vec())
}

pub(crate) fn bounded(text: String, max: usize, field: &'static str) -> Result<String, RecordError> {
    match text.len() > max {
        true => Err(RecordError::Invalid { field }),
        false => Ok(text),
    }
}

pub(crate) fn origins_to_pb(origins: &[Origin]) -> Vec<record_pb::Origin> {
    let to_pb = |origin: &Origin| record_pb::Origin {
        relation: origin.relation.clone(),
        publisher: origin.repo.publisher.to_vec(),
        kind: origin.repo.kind.to_pb(),
        name: origin.repo.name.to_string(),
        revision: optional(&origin.revision),
    };
    origins.iter().map(to_pb).collect()
}

pub(crate) fn origins_of(origins: &[record_pb::Origin], field: &'static str) -> Result<Vec<Origin>, RecordError> {
    if origins.len() > ORIGINS_MAX {
        return Err(RecordError::Invalid { field });
    }
    let parse = |origin: &record_pb::Origin| {
        let repo = RepoId {
            publisher: exact(&origin.publisher, field)?,
            kind: RepoKind::from_pb(origin.kind).ok_or(RecordError::Invalid { field })?,
            name: parsed(&origin.name, field)?,
        };
        let relation = bounded(origin.relation.clone(), WORD_BYTES_MAX, field)?;
        Ok(Origin { relation, repo, revision: maybe(&origin.revision, field)? })
    };
    origins.iter().map(parse).collect()
}

fn list(texts: &[String], count_max: usize, bytes_max: usize, field: &'static str) -> Result<Vec<String>, RecordError> {
    if texts.len() > count_max {
        return Err(RecordError::Invalid { field });
    }
    texts.iter().map(|text| bounded(text.clone(), bytes_max, field)).collect()
}
