//! The disk of the daemon's home: whether there is room for what is about to be written, and whether it was a full disk that made a
//! write fail.
//!
//! A full disk is a state that people mend, not a fault: writes are refused, reads go on. Invariant: a disk that can't be asked is taken
//! for one with room, so that the write itself decides.

use cairn_protocol::refusal::{Reason, Refusal};

use crate::shell::Node;

/// With less free, a failed write is put down to it: a file's outboard, a page of the catalogue and a journal take as much.
const NONE_FREE: u64 = 1 << 20;

/// Better said before hours of fetching than after.
pub(super) fn refuse_full(node: &Node, bytes: u64) -> Result<(), Refusal> {
    let Some(free) = free(node).filter(|free| *free < bytes) else { return Ok(()) };
    let why = format!("{bytes} bytes are to be written and {free} are free on its disk");
    Err(Refusal::new(Reason::DiskFull, node.home.root().display().to_string(), why)
        .try_this("making room, or --include"))
}

/// Whether there is hardly any room.
pub(super) fn is_full(node: &Node) -> bool {
    free(node).is_some_and(|free| free < NONE_FREE)
}

fn free(node: &Node) -> Option<u64> {
    let disk = rustix::fs::statvfs(node.home.root()).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}
