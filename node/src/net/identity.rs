//! One seed, two names: the same Ed25519 public key is our `NodeId` and libp2p's `PeerId`.
//!
//! Not a place for keys on disk; `home` reads them. Invariant: `node_id(&peer_id(n)) == n` for every `n` that is a
//! key at all, and no other kind of `PeerId` is ever accepted.

use cairn_protocol::{id::NodeId, record::Keypair};
use libp2p::{PeerId, identity};

/// What an Ed25519 `PeerId` begins with: identity multihash, 36 bytes, key type Ed25519, 32 bytes.
const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// libp2p's name of a node; `None` if these 32 bytes aren't an Ed25519 key.
pub fn peer_id(node: NodeId) -> Option<PeerId> {
    let key = identity::ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(identity::PublicKey::from(key).to_peer_id())
}

/// The node behind a `PeerId`; `None` for keys that aren't Ed25519.
pub fn node_id(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key: [u8; 32] = bytes.strip_prefix(&PREFIX)?.try_into().ok()?;
    Some(NodeId::from(key))
}

/// The same key pair as libp2p holds it.
pub(super) fn libp2p_keypair(identity: &Keypair) -> identity::Keypair {
    identity::Keypair::ed25519_from_bytes(identity.seed()).expect("any 32 bytes are an Ed25519 seed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_and_its_peer_id_name_the_same_key() {
        for seed in 0..20 {
            let identity = Keypair::from_seed([seed; 32]);
            let peer = libp2p_keypair(&identity).public().to_peer_id();
            assert_eq!(node_id(&peer), Some(identity.node_id()));
            assert_eq!(peer_id(identity.node_id()), Some(peer));
        }
    }

    #[test]
    fn a_peer_id_of_another_kind_of_key_is_no_node() {
        let hashed = PeerId::random();
        assert_eq!(node_id(&hashed), None);
    }
}
