//! The signed envelope around everything that the mesh replicates. Not the meaning of a payload (see `body`) and not the
//! catalogue's rules. Invariant: a [`Record`] was verified, and its payload is the exact bytes that were signed, so fields
//! that this version does not know survive.
//!
//! The signature covers `"cairn/record/1" ‖ kind (u32, little-endian) ‖ realm (32 bytes) ‖ payload`. The record's id is the
//! BLAKE3 of those same bytes followed by the key (32 bytes): without the key, two publishers' equal statements would be one
//! record. What the signature does not cover (unknown fields of the envelope itself) is dropped, so nobody can attach
//! anything to another's record.

use prost::Message;

use crate::id::{PublisherKey, RealmId, RecordId};
use crate::key::{RECORD_DOMAIN, is_signed};
use crate::limits::{RECORD_BYTES_MAX, REVISION_BYTES_MAX};
use crate::record_pb;

pub use crate::advisory::{Advisory, Category, Subject};
pub use crate::attestation::{Attestation, Measurement};
pub use crate::body::{Body, CardFacts, Head, Origin, Profile, Revision};
pub use crate::key::Keypair;

/// The version of the envelope.
const VERSION: u32 = 1;

/// What a record states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// Who a key says it is.
    Profile = 1,
    /// That a manifest is a revision of a repo.
    Revision = 2,
    /// Which revision a ref stands for.
    Head = 3,
    /// A warning.
    Advisory = 4,
    /// What somebody found out about a revision.
    Attestation = 5,
}

impl RecordKind {
    /// The number in the envelope.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// From the number in the envelope.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Profile,
            2 => Self::Revision,
            3 => Self::Head,
            4 => Self::Advisory,
            5 => Self::Attestation,
            _ => return None,
        })
    }
}

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Larger than its kind may be.
    #[error("the record has {got} bytes, at most {max} are accepted")]
    TooLarge {
        /// Its bytes.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// Not protobuf, or a field of a wrong length.
    #[error("the record is malformed: {0}")]
    Malformed(&'static str),
    /// An envelope of another version.
    #[error("the record's version is {0}, version {VERSION} is understood")]
    UnknownVersion(u32),
    /// A kind that this version does not know: to be counted, not stored, not forwarded.
    #[error("the record's kind {0} is not known")]
    UnknownKind(u32),
    /// Not signed by its key.
    #[error("the record's signature is not its key's")]
    BadSignature,
    /// The payload says something that its kind does not permit.
    #[error("the record's {field} is not valid")]
    Invalid {
        /// Which field.
        field: &'static str,
    },
}

/// A verified record.
#[derive(Clone, PartialEq)]
pub struct Record {
    envelope: record_pb::Envelope,
    kind: RecordKind,
    realm: RealmId,
    key: PublisherKey,
    id: RecordId,
}

impl Record {
    /// Signs a payload.
    pub fn sign(kind: RecordKind, realm: RealmId, payload: Vec<u8>, key: &Keypair) -> Result<Self, RecordError> {
        let signed = signed_bytes(kind, realm, &payload);
        let envelope = record_pb::Envelope {
            version: VERSION,
            kind: kind.number(),
            realm: realm.to_vec(),
            key: key.public().to_vec(),
            signature: key.sign(RECORD_DOMAIN, &signed).to_vec(),
            payload,
        };
        check_size(kind, &envelope)?;
        Ok(Self { kind, realm, key: key.public(), id: id_of(&signed, &key.public()), envelope })
    }

    /// From the bytes of an envelope: size first, then shape, then the signature.
    pub fn verify(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::TooLarge { got: bytes.len(), max: RECORD_BYTES_MAX });
        }
        let envelope = record_pb::Envelope::decode(bytes).map_err(|_| RecordError::Malformed("not protobuf"))?;
        Self::from_envelope(envelope)
    }

    /// From an envelope that came inside another message, with the same checks as [`Record::verify`].
    pub fn from_envelope(envelope: record_pb::Envelope) -> Result<Self, RecordError> {
        if envelope.version != VERSION {
            return Err(RecordError::UnknownVersion(envelope.version));
        }
        let kind = RecordKind::from_number(envelope.kind).ok_or(RecordError::UnknownKind(envelope.kind))?;
        check_size(kind, &envelope)?;
        let realm = RealmId::try_from(&envelope.realm[..]).map_err(|_| RecordError::Malformed("realm"))?;
        let key = PublisherKey::try_from(&envelope.key[..]).map_err(|_| RecordError::Malformed("key"))?;
        let signed = signed_bytes(kind, realm, &envelope.payload);
        if !is_signed(key.as_bytes(), RECORD_DOMAIN, &signed, &envelope.signature) {
            return Err(RecordError::BadSignature);
        }
        Ok(Self { kind, realm, key, id: id_of(&signed, &key), envelope })
    }

    /// The bytes to store and to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.envelope.encode_to_vec()
    }

    /// The envelope, to put into another message.
    pub fn envelope(&self) -> &record_pb::Envelope {
        &self.envelope
    }

    /// Its id.
    pub fn id(&self) -> RecordId {
        self.id
    }

    /// What it states.
    pub fn kind(&self) -> RecordKind {
        self.kind
    }

    /// Where it holds.
    pub fn realm(&self) -> RealmId {
        self.realm
    }

    /// Who signed it.
    pub fn key(&self) -> PublisherKey {
        self.key
    }

    /// The payload, parsed and validated.
    pub fn body(&self) -> Result<Body, RecordError> {
        let payload = &self.envelope.payload[..];
        Ok(match self.kind {
            RecordKind::Profile => Body::Profile(Profile::parse(payload)?),
            RecordKind::Revision => Body::Revision(Revision::parse(payload)?),
            RecordKind::Head => Body::Head(Head::parse(payload)?),
            RecordKind::Advisory => Body::Advisory(Advisory::parse(payload)?),
            RecordKind::Attestation => Body::Attestation(Attestation::parse(payload)?),
        })
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({:?} {} by {})", self.kind, self.id.short(), self.key.short())
    }
}

fn check_size(kind: RecordKind, envelope: &record_pb::Envelope) -> Result<(), RecordError> {
    let (got, max) = match kind {
        RecordKind::Revision if envelope.payload.len() > REVISION_BYTES_MAX => {
            (envelope.payload.len(), REVISION_BYTES_MAX)
        }
        _ => (envelope.encoded_len(), RECORD_BYTES_MAX),
    };
    match got > max {
        true => Err(RecordError::TooLarge { got, max }),
        false => Ok(()),
    }
}

/// What the signature covers, after its domain.
fn signed_bytes(kind: RecordKind, realm: RealmId, payload: &[u8]) -> Vec<u8> {
    [&kind.number().to_le_bytes()[..], realm.as_bytes(), payload].concat()
}

fn id_of(signed: &[u8], key: &PublisherKey) -> RecordId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(RECORD_DOMAIN).update(signed).update(key.as_bytes());
    RecordId::from(*hasher.finalize().as_bytes())
}
