//! The disk of the daemon's home: what is refused for want of room, and when a write that failed is put down to that.
//!
//! A full disk is a state that people mend, not a fault: writes are refused, reads go on. How much must stay free is the registry's
//! knowledge. Invariant: a refusal says how much is to be written and how much is free.

use cairn_protocol::refusal::{Reason, Refusal};

use crate::shell::Node;

/// Better said before hours of fetching than after.
pub(super) fn refuse_full(node: &Node, bytes: u64) -> Result<(), Refusal> {
    node.registry.blobs().room_for(bytes).map_err(|error| {
        Refusal::new(Reason::DiskFull, node.home.root().display().to_string(), error.to_string())
            .try_this("making room, or --include")
    })
}

/// Whether there is hardly any room.
pub(super) fn is_full(node: &Node) -> bool {
    node.registry.blobs().room_for(0).is_err()
}
