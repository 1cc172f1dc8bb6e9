//! Public messages that nodes also write to disk. Not for what is signed or spoken among nodes.
//!
//! Invariant: bytes that were written here read back the same; other bytes are `None`.

use prost::Message;

use crate::api::MirrorRules;

impl MirrorRules {
    /// For the disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// From the disk.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).ok()
    }
}
