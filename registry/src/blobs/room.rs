//! Room on the disk: asked for before bytes are written, with a reserve that no blob may use.
//!
//! The blob library stops for good at a write that fails, and a catalogue that can't commit takes nothing in. So the reserve is for them: what
//! does not fit beside it is refused before it begins. A disk that somebody else fills in between can still stop the library; nothing that was
//! acknowledged is lost by it, and a restart mends it.
//!
//! Invariant: a disk that can't be asked is taken for one with room, so that the write itself decides.

use std::io;

use super::Blobs;

/// Kept free beside what is written: pages of the store's database, proofs and the catalogue's own commits, with plenty to spare.
pub const DISK_RESERVE: u64 = 16 << 20;

impl Blobs {
    /// Errs with [`io::ErrorKind::StorageFull`] where so many bytes don't fit beside the reserve.
    pub fn room_for(&self, bytes: u64) -> io::Result<()> {
        let Ok(disk) = rustix::fs::statvfs(&*self.root) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= bytes.saturating_add(DISK_RESERVE) {
            return Ok(());
        }
        let why = format!(
            "{bytes} bytes are to be written and {free} are free, {DISK_RESERVE} of which are kept for the catalogue"
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, why))
    }
}
