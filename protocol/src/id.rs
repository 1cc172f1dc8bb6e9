//! Names made of bytes: keys, hashes and ids. Not parsed anywhere else. Invariant: each is exactly 32 (or 16) bytes, written
//! as lowercase hex; uppercase is refused, so one id has one spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why bytes or a text are not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Wrong number of bytes.
    #[error("expected {expected} bytes, got {got}")]
    Length {
        /// Bytes of this sort of id.
        expected: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// Not lowercase hexadecimal.
    #[error("not {0} lowercase hexadecimal digits")]
    NotHex(usize),
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first ten hex digits, for people.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..5])
            }

            /// The raw bytes, owned, as protobuf fields want them.
            pub fn to_vec(&self) -> Vec<u8> {
                self.0.to_vec()
            }
        }

        impl From<[u8; $bytes]> for $name {
            fn from(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;
            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                let got = bytes.len();
                bytes.try_into().map(Self).map_err(|_| IdError::Length { expected: $bytes, got })
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex::<$bytes>(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A node: its Ed25519 public key.
    NodeId, 32
);
id!(
    /// A publisher: the Ed25519 public key that signs its records.
    PublisherKey, 32
);
id!(
    /// A revision: the BLAKE3 of its manifest.
    RevisionId, 32
);
id!(
    /// A record: the BLAKE3 of what its signature covers, then the key.
    RecordId, 32
);
id!(
    /// A closed mesh with its own membership; all zeros is the public one.
    RealmId, 32
);
id!(
    /// The BLAKE3 of a blob's bytes.
    BlobHash, 32
);
id!(
    /// One generation through stages.
    SessionId, 16
);

impl RealmId {
    /// The realm that everyone is in.
    pub const PUBLIC: Self = Self([0; 32]);
}

impl RevisionId {
    /// The blob that holds this revision's manifest: the same hash.
    pub const fn blob(self) -> BlobHash {
        BlobHash(self.0)
    }
}

impl BlobHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// Whether the text could be the lowercase hex of `digits.start..=digits.end` digits.
pub(crate) fn looks_like_hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> bool {
    digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    let mut bytes = [0; N];
    let lowercase = !text.bytes().any(|b| b.is_ascii_uppercase());
    match lowercase && hex::decode_to_slice(text, &mut bytes).is_ok() {
        true => Ok(bytes),
        false => Err(IdError::NotHex(N * 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_text_and_json() {
        let id = RevisionId::from([0xab; 32]);
        assert_eq!(id.to_string().parse::<RevisionId>(), Ok(id));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(32)));
        assert_eq!(serde_json::from_str::<RevisionId>(&json).unwrap(), id);
        assert_eq!(id.short(), "ababababab");
    }

    #[test]
    fn uppercase_and_wrong_lengths_are_refused() {
        assert_eq!("AB".repeat(32).parse::<NodeId>(), Err(IdError::NotHex(64)));
        assert_eq!("ab".repeat(31).parse::<NodeId>(), Err(IdError::NotHex(64)));
        assert_eq!(NodeId::try_from(&[0u8; 31][..]), Err(IdError::Length { expected: 32, got: 31 }));
    }
}
