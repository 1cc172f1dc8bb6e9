//! A hash with the name of its algorithm, as files carry several. Not a hasher. Invariant: the bytes have the length that the
//! algorithm makes.

use std::fmt;

use crate::record_pb;

/// A file's hash under one algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// For transfer between nodes.
    Blake3([u8; 32]),
    /// What most of the world publishes.
    Sha256([u8; 32]),
    /// The id of the git blob with these bytes, as Hub clients check it.
    GitSha1([u8; 20]),
}

impl Digest {
    /// "blake3", "sha256" or "git-sha1".
    pub const fn algorithm(&self) -> &'static str {
        match self {
            Self::Blake3(_) => "blake3",
            Self::Sha256(_) => "sha256",
            Self::GitSha1(_) => "git-sha1",
        }
    }

    /// The hash itself.
    pub const fn bytes(&self) -> &[u8] {
        match self {
            Self::Blake3(bytes) | Self::Sha256(bytes) => bytes,
            Self::GitSha1(bytes) => bytes,
        }
    }

    /// The signed form.
    pub fn to_pb(&self) -> record_pb::Digest {
        let algorithm = match self {
            Self::Blake3(_) => 1,
            Self::Sha256(_) => 2,
            Self::GitSha1(_) => 3,
        };
        record_pb::Digest { algorithm, value: self.bytes().to_vec() }
    }

    /// From the signed form: `None` for an algorithm that is not known here, an error for a wrong length.
    pub fn from_pb(digest: &record_pb::Digest) -> Result<Option<Self>, DigestError> {
        let wrong = |_| DigestError { algorithm: digest.algorithm, got: digest.value.len() };
        let value = digest.value.as_slice();
        Ok(Some(match digest.algorithm {
            1 => Self::Blake3(value.try_into().map_err(wrong)?),
            2 => Self::Sha256(value.try_into().map_err(wrong)?),
            3 => Self::GitSha1(value.try_into().map_err(wrong)?),
            _ => return Ok(None),
        }))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), hex::encode(self.bytes()))
    }
}

/// A digest whose bytes don't fit its algorithm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got} bytes are no digest of algorithm {algorithm}")]
pub struct DigestError {
    /// The algorithm's number.
    pub algorithm: u32,
    /// Bytes that were given.
    pub got: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_signed_form_and_a_wrong_length_is_refused() {
        for digest in [Digest::Blake3([1; 32]), Digest::Sha256([2; 32]), Digest::GitSha1([3; 20])] {
            assert_eq!(Digest::from_pb(&digest.to_pb()), Ok(Some(digest)));
            let short = record_pb::Digest { value: vec![0; 19], ..digest.to_pb() };
            assert!(Digest::from_pb(&short).is_err());
        }
        assert_eq!(Digest::from_pb(&record_pb::Digest { algorithm: 9, value: vec![] }), Ok(None));
    }
}
