//! Signing and strict verification. Not key storage. Invariant: every signature covers a domain first, so that a signature
//! made for one purpose is worth nothing for another; verification is strict (no small-order keys, no malleable signatures).

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::id::{NodeId, PublisherKey};

/// Domain of records.
pub const RECORD_DOMAIN: &[u8] = b"cairn/record/1";
/// Domain of adverts.
pub const ADVERT_DOMAIN: &[u8] = b"cairn/advert/1";

/// An Ed25519 key pair: a node's or a publisher's. Its `Debug` shows the public half alone; the secret is wiped on drop.
#[derive(Clone)]
pub struct Keypair(SigningKey);

impl Keypair {
    /// A new key from 32 bytes of the caller's entropy (this crate has no dice).
    pub fn generate(entropy: [u8; 32]) -> Self {
        Self::from_seed(entropy)
    }

    /// The key of a stored seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The seed: the secret itself.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half as a publisher's.
    pub fn public(&self) -> PublisherKey {
        self.0.verifying_key().to_bytes().into()
    }

    /// The public half as a node's.
    pub fn node_id(&self) -> NodeId {
        self.0.verifying_key().to_bytes().into()
    }

    /// Signs domain ‖ bytes.
    pub fn sign(&self, domain: &[u8], bytes: &[u8]) -> [u8; 64] {
        self.0.sign(&[domain, bytes].concat()).to_bytes()
    }
}

impl std::fmt::Debug for Keypair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keypair({})", self.public().short())
    }
}

/// Whether the signature is this key's over domain ‖ bytes. Wrong lengths and weak keys are simply not valid.
pub fn is_signed(key: &[u8; 32], domain: &[u8], bytes: &[u8], signature: &[u8]) -> bool {
    let Ok(signature) = Signature::from_slice(signature) else { return false };
    let Ok(key) = VerifyingKey::from_bytes(key) else { return false };
    key.verify_strict(&[domain, bytes].concat(), &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_domain_and_bytes_only() {
        let pair = Keypair::from_seed([7; 32]);
        let key = *pair.public().as_bytes();
        let signature = pair.sign(RECORD_DOMAIN, b"x");
        assert!(is_signed(&key, RECORD_DOMAIN, b"x", &signature));
        assert!(!is_signed(&key, ADVERT_DOMAIN, b"x", &signature));
        assert!(!is_signed(&key, RECORD_DOMAIN, b"y", &signature));
        assert!(!is_signed(Keypair::from_seed([8; 32]).public().as_bytes(), RECORD_DOMAIN, b"x", &signature));
        assert!(!is_signed(&key, RECORD_DOMAIN, b"x", &signature[..63]));
    }

    #[test]
    fn a_small_order_key_signs_nothing() {
        // The neutral element: with it, the signature (R = identity, s = 0) passes lax verification of any message.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!is_signed(&identity, RECORD_DOMAIN, b"anything", &signature));
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let pair = Keypair::from_seed([7; 32]);
        assert!(!format!("{pair:?}").contains("0707"));
    }
}
