//! Which bytes of a blob are under way to here, so that peers who fetch the same blob take others meanwhile.
//!
//! Invariant: a range is told only while the fetch that noted it lives.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cairn_protocol::id::BlobHash;

/// By blob and fetch.
type Notes = BTreeMap<(BlobHash, u64), Vec<Range<u64>>>;

/// All that is under way.
#[derive(Debug, Default)]
pub(super) struct Coming {
    /// Guards the ranges; held for one look or change.
    notes: Mutex<Notes>,
}

impl Coming {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, hash: BlobHash) -> Vec<Range<u64>> {
        self.notes().range((hash, 0)..=(hash, u64::MAX)).flat_map(|(_, ranges)| ranges.clone()).collect()
    }

    pub(super) fn begin(self: &Arc<Self>, hash: BlobHash) -> ComingNote {
        let mut notes = self.notes();
        let last = notes.range((hash, 0)..=(hash, u64::MAX)).next_back().map_or(0, |((_, fetch), _)| *fetch);
        let key = (hash, last + 1);
        notes.insert(key, Vec::new());
        drop(notes);
        ComingNote { coming: self.clone(), key }
    }
}

/// One fetch's note. Dropping it takes it back.
#[derive(Debug)]
pub struct ComingNote {
    coming: Arc<Coming>,
    key: (BlobHash, u64),
}

impl ComingNote {
    /// These bytes are under way now, and no others.
    pub fn set(&self, ranges: Vec<Range<u64>>) {
        self.coming.notes().insert(self.key, ranges);
    }
}

impl Drop for ComingNote {
    fn drop(&mut self) {
        self.coming.notes().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_told_while_its_fetch_lives() {
        let (coming, hash, other) = (Arc::<Coming>::default(), BlobHash::from([1; 32]), BlobHash::from([2; 32]));
        let (one, two, third) = (coming.begin(hash), coming.begin(hash), coming.begin(other));
        one.set(vec![0..10, 20..30]);
        two.set(vec![40..50]);
        third.set(vec![60..70]);
        assert_eq!(coming.of(hash), [0..10, 20..30, 40..50]);
        one.set(vec![5..10]);
        drop(two);
        assert_eq!((coming.of(hash), coming.of(other).len()), (vec![5..10; 1], 1));
        drop(one);
        assert_eq!(coming.of(hash), []);
    }
}
