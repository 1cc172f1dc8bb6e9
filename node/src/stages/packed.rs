//! Weights as the engine holds them, on this disk: a stage that was loaded here before loads at the speed of reading.
//!
//! Files in `HOME/packed`, one for each part of a revision; the longest unused go when a new one passes the ceiling. What is in
//! them is the engine's business, which holds every piece against its digest. They are copies: all may be deleted at any time.
//!
//! Invariant: a file under its name was written whole and synced.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use cairn_compute::Saves;
use tempfile::NamedTempFile;

use super::request::StageRequest;
use crate::{config::sources::disk_free_bytes, shell::Node};

/// The file of one part.
#[derive(Clone)]
pub(super) struct Packed {
    folder: PathBuf,
    name: String,
    bytes_max: u64,
}

impl Packed {
    /// Where a part's weights are; `None` when none are to be kept.
    pub fn of(node: &Node, request: &StageRequest) -> Option<Packed> {
        let (bytes_max, part, revision) = (node.config.packed_disk_bytes, &request.part, request.revision);
        let quantised = request.quantise.map(|target| format!(".{}", target.name())).unwrap_or_default();
        let ends = [(part.embedding, "e"), (part.head, "h")];
        let ends: String = ends.into_iter().filter(|(is_there, _)| *is_there).map(|(_, end)| end).collect();
        let name = format!("{revision}.{}-{}{ends}{quantised}", part.layers.start, part.layers.end);
        (bytes_max > 0).then(|| Packed { folder: node.home.join("packed"), name, bytes_max })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn try_keep(&self, bytes: u64, write: &mut dyn FnMut(&mut File) -> io::Result<()>) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        for file in to_evict(kept(&self.folder)?, &self.name, bytes, self.bytes_max) {
            fs::remove_file(self.folder.join(file))?;
        }
        let mut draft = NamedTempFile::with_prefix_in(DRAFT, &self.folder)?;
        write(draft.as_file_mut())?;
        draft.persist(self.path())?;
        File::open(&self.folder)?.sync_all()
    }
}

/// Files under way; what a killed daemon left of them goes with the next that is written.
const DRAFT: &str = "draft-";

impl Saves for Packed {
    fn find(&mut self) -> Option<File> {
        let file = File::open(self.path()).ok()?;
        // The clock of use; a disk that refuses it evicts in another order.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    fn keep(&mut self, bytes: u64, write: &mut dyn FnMut(&mut File) -> io::Result<()>) {
        if bytes > self.bytes_max || bytes > disk_free_bytes(&self.folder) / 2 {
            return;
        }
        if let Err(error) = self.try_keep(bytes, write) {
            tracing::warn!(%error, file = self.name, "packed weights could not be saved; the next load packs them again");
        }
    }

    fn forget(&mut self) {
        tracing::warn!(file = self.name, "saved weights are not what this build needs, and are packed anew");
        let _ = fs::remove_file(self.path());
    }
}

/// A kept file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    name: String,
    bytes: u64,
    used: SystemTime,
}

fn kept(folder: &Path) -> io::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if let Ok(name) = entry.file_name().into_string() {
            all.push(Kept { name, bytes: about.len(), used: about.modified()? });
        }
    }
    Ok(all)
}

/// Pure: drafts, and the longest unused files until another of `bytes` fits beside the rest. One thread of one process writes
/// here, so a draft that is found is nobody's.
fn to_evict(mut all: Vec<Kept>, name: &str, bytes: u64, bytes_max: u64) -> Vec<String> {
    all.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
    let is_gone = |kept: &Kept| kept.name.starts_with(DRAFT) || kept.name == name;
    let (gone, staying): (Vec<Kept>, Vec<Kept>) = all.into_iter().partition(is_gone);
    let mut held: u64 = staying.iter().map(|kept| kept.bytes).sum();
    let mut evicted: Vec<String> = gone.into_iter().map(|kept| kept.name).collect();
    for kept in staying {
        if held.saturating_add(bytes) <= bytes_max {
            break;
        }
        held -= kept.bytes;
        evicted.push(kept.name);
    }
    evicted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, time::Duration};

    fn file(name: &str, bytes: u64, used_s: u64) -> Kept {
        Kept { name: name.to_owned(), bytes, used: SystemTime::UNIX_EPOCH + Duration::from_secs(used_s) }
    }

    #[test]
    fn the_longest_unused_go_and_only_as_many_as_needed() {
        let all = vec![file("a", 10, 3), file("b", 10, 1), file("c", 10, 2)];
        assert_eq!(to_evict(all.clone(), "d", 10, 40), [""; 0]);
        assert_eq!(to_evict(all.clone(), "d", 10, 30), ["b"]);
        assert_eq!(to_evict(all.clone(), "d", 20, 30), ["b", "c"]);
        assert_eq!(to_evict(all.clone(), "b", 10, 30), ["b"], "its own former self makes room first");
        let drafts = [vec![file("draft-x", 99, 9)], all].concat();
        assert_eq!(to_evict(drafts, "d", 10, 40), ["draft-x"]);
    }

    #[test]
    fn a_file_that_failed_half_way_is_not_kept_and_a_whole_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut packed = Packed { folder: folder.path().join("packed"), name: "one".to_owned(), bytes_max: 1 << 20 };
        assert!(packed.find().is_none());
        packed.keep(4, &mut |file| {
            file.write_all(b"ha")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(packed.find().is_none() && kept(&packed.folder).unwrap().is_empty());
        packed.keep(4, &mut |file| file.write_all(b"full"));
        assert_eq!(packed.find().unwrap().metadata().unwrap().len(), 4);
        packed.keep(2 << 20, &mut |_| panic!("larger than all that may be kept"));
        packed.forget();
        assert!(packed.find().is_none());
    }
}
