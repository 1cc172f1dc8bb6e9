//! Attestations: signed statements of what somebody found out about a revision: a scan, an evaluation, where it comes from. Whom to
//! believe is the reader's choice. Invariant: a value obeys every rule that one attestation can be held to by itself.

use prost::Message;

use crate::body::{bounded, decode, exact, maybe, optional, origins_of, origins_to_pb};
use crate::id::{BlobHash, RealmId, RevisionId};
use crate::key::Keypair;
use crate::limits::{MEASUREMENTS_MAX, MESSAGE_BYTES_MAX, NAMED_REPO_BYTES_MAX, WORD_BYTES_MAX};
use crate::record::{Origin, Record, RecordError, RecordKind};
use crate::record_pb;

/// What its signer found out. Of one signer's attestations of one revision, type and tool, the highest number holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Attestation {
    /// What it is about.
    pub revision: RevisionId,
    /// "scan", "evaluation", "lineage" or a word of the signer's own.
    pub r#type: String,
    /// The program that found it out.
    pub tool: String,
    /// Its version.
    pub tool_version: String,
    /// Counts from 1.
    pub number: u64,
    /// It holds no more.
    pub is_withdrawn: bool,
    /// In a word: "clean", "passed".
    pub verdict: String,
    /// Numbers that it found.
    pub measurements: Vec<Measurement>,
    /// For people.
    pub text: String,
    /// What was looked at beside the revision.
    pub materials: Vec<Origin>,
    /// A blob with the whole report.
    pub report: Option<BlobHash>,
    /// By the signer's clock; orders nothing.
    pub created_ms: i64,
}

/// One number of an attestation.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// What was measured: "perplexity".
    pub name: String,
    /// Finite.
    pub value: f64,
    /// Its unit, or empty.
    pub unit: String,
    /// What it was measured on, or empty.
    pub on: String,
}

impl Attestation {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        record_pb::Attestation {
            revision: self.revision.to_vec(),
            r#type: self.r#type.clone(),
            tool: self.tool.clone(),
            tool_version: self.tool_version.clone(),
            number: self.number,
            withdrawn: self.is_withdrawn,
            verdict: self.verdict.clone(),
            measurements: self.measurements.iter().map(Measurement::to_pb).collect(),
            text: self.text.clone(),
            materials: origins_to_pb(&self.materials),
            report: optional(&self.report),
            created_ms: self.created_ms,
        }
        .encode_to_vec()
    }

    /// From a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, RecordError> {
        let pb = decode::<record_pb::Attestation>(payload)?;
        if pb.number == 0 {
            return Err(RecordError::Invalid { field: "number" });
        }
        if pb.measurements.len() > MEASUREMENTS_MAX {
            return Err(RecordError::Invalid { field: "measurements" });
        }
        Ok(Self {
            revision: exact(&pb.revision, "revision")?,
            r#type: key_word(pb.r#type, "type").and_then(|word| filled(word, "type"))?,
            tool: key_word(pb.tool, "tool")?,
            tool_version: bounded(pb.tool_version, WORD_BYTES_MAX, "tool_version")?,
            number: pb.number,
            is_withdrawn: pb.withdrawn,
            verdict: bounded(pb.verdict, WORD_BYTES_MAX, "verdict")?,
            measurements: pb.measurements.into_iter().map(Measurement::parse).collect::<Result<_, _>>()?,
            text: bounded(pb.text, MESSAGE_BYTES_MAX, "text")?,
            materials: origins_of(&pb.materials, "materials")?,
            report: maybe(&pb.report, "report")?,
            created_ms: pb.created_ms,
        })
    }

    /// The signed record.
    pub fn sign(&self, realm: RealmId, key: &Keypair) -> Result<Record, RecordError> {
        Self::parse(&self.encode())?;
        Record::sign(RecordKind::Attestation, realm, self.encode(), key)
    }
}

impl Measurement {
    fn to_pb(&self) -> record_pb::Measurement {
        record_pb::Measurement {
            name: self.name.clone(),
            value: self.value,
            unit: self.unit.clone(),
            on: self.on.clone(),
        }
    }

    fn parse(pb: record_pb::Measurement) -> Result<Self, RecordError> {
        if !pb.value.is_finite() {
            return Err(RecordError::Invalid { field: "measurements" });
        }
        let word = |text, max| bounded(text, max, "measurements");
        Ok(Self {
            name: word(pb.name, WORD_BYTES_MAX)?,
            value: pb.value,
            unit: word(pb.unit, WORD_BYTES_MAX)?,
            on: word(pb.on, NAMED_REPO_BYTES_MAX)?,
        })
    }
}

/// A word that stands in a key of the catalogue, where a NUL ends it.
fn key_word(word: String, field: &'static str) -> Result<String, RecordError> {
    match word.contains('\0') {
        true => Err(RecordError::Invalid { field }),
        false => bounded(word, WORD_BYTES_MAX, field),
    }
}

fn filled(word: String, field: &'static str) -> Result<String, RecordError> {
    match word.is_empty() {
        true => Err(RecordError::Invalid { field }),
        false => Ok(word),
    }
}
