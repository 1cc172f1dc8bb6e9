//! How much more memory a process took while something was done to it.
//!
//! The kernel's own high-water mark (Linux), set back at the start, so that a peak between two looks counts too. Not
//! here: what rise is too much.

use std::fs;

use anyhow::{Context, Result};

/// A process under watch since [`Memory::watch`].
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pid: u32,
    before_bytes: u64,
}

impl Memory {
    /// Sets the high-water mark back to what is resident now.
    pub fn watch(pid: u32) -> Result<Self> {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("set the high-water mark back")?;
        Ok(Self { pid, before_bytes: status_bytes(pid, "VmRSS:")? })
    }

    /// How far above its beginning resident memory has been since. An error if the process is gone.
    pub fn rise_bytes(&self) -> Result<u64> {
        Ok(status_bytes(self.pid, "VmHWM:")?.saturating_sub(self.before_bytes))
    }
}

fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field} line"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("a number of kB")?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_that_is_over_is_seen_and_the_next_watch_forgets_it() {
        let watch = Memory::watch(std::process::id()).expect("this process");
        drop(std::hint::black_box(vec![1u8; 96 << 20]));
        assert!(watch.rise_bytes().expect("still here") > 80 << 20);
        let next = Memory::watch(std::process::id()).expect("this process");
        assert!(next.rise_bytes().expect("still here") < 80 << 20);
    }
}
