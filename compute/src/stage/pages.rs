//! The pages of one stage's weights: taken under the engine's ceiling, and found again by what they hold.
//!
//! A full page can be filed under a key that says everything its contents depend on: the tokens up to its end and whatever
//! else the filer puts into the key. A session that begins with the same keys takes the filed pages instead of computing them
//! again; by the law of arithmetic they hold the same bits. Filed pages that no session holds give way to any other use
//! of the memory, the longest unused first, of those used together the last of a sequence first: what follows a lost page can't be
//! found any more.
//!
//! Not here: who makes up the keys, and whom they keep apart. Invariant: a page that a session holds is never taken away.

use crate::{
    cpu::cache::{Page, PageShape},
    engine::Memory,
};
use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a full page is known by.
pub type PageKey = [u8; 32];

/// All pages of a stage's weights that are filed, and the way to new ones.
pub(crate) struct Pages {
    shape: PageShape,
    memory: Option<Arc<Memory>>,
    /// Guards the file; held for look-ups only, never while memory is asked for.
    file: Mutex<File>,
}

#[derive(Default)]
struct File {
    pages: HashMap<PageKey, Filed>,
    /// Counts look-ups: the time that a page was last used.
    clock: u64,
}

struct Filed {
    page: Arc<Page>,
    used: u64,
    /// Pages before it in its sequence.
    depth: usize,
}

impl Filed {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.page) == 1
    }
}

impl Pages {
    /// Without any page. `memory` gets back from here what it lacks.
    pub fn new(shape: PageShape, memory: Option<&Arc<Memory>>) -> Arc<Self> {
        let pages = Arc::new(Self { shape, memory: memory.cloned(), file: Mutex::default() });
        if let Some(memory) = memory {
            memory.lends_to(&pages);
        }
        pages
    }

    /// What they are of.
    pub fn shape(&self) -> PageShape {
        self.shape
    }

    /// A new page, if the memory has room for it or what is idle can make room.
    pub fn take(&self) -> Option<Page> {
        let Some(memory) = &self.memory else { return Some(Page::new(self.shape, None)) };
        let share = memory.reserve_page(self.shape.page_bytes())?;
        Some(Page::new(self.shape, Some(Box::new(share))))
    }

    /// The pages filed under the first of `keys`, up to the first that is not here.
    pub fn find(&self, keys: &[PageKey]) -> Vec<Arc<Page>> {
        let mut file = self.file();
        file.clock += 1;
        let now = file.clock;
        let mut found = Vec::new();
        for key in keys {
            let Some(filed) = file.pages.get_mut(key) else { break };
            filed.used = now;
            found.push(filed.page.clone());
        }
        found
    }

    /// Counts for the engine, where it counts.
    pub fn memory(&self) -> Option<&Arc<Memory>> {
        self.memory.as_ref()
    }

    /// Files a full page that nobody writes any more, `depth` pages into its sequence. Where one has the key it stays.
    pub fn file_page(&self, key: PageKey, depth: usize, page: &Arc<Page>) {
        let mut file = self.file();
        let used = file.clock;
        file.pages.entry(key).or_insert_with(|| Filed { page: page.clone(), used, depth });
    }

    /// Frees idle pages until so many bytes are free or there are none; says how many were freed.
    pub fn give_back(&self, bytes: u64) -> u64 {
        // A stage may have no layer, and pages without a byte.
        let page_bytes = self.shape.page_bytes().max(1);
        let mut file = self.file();
        let mut idle: Vec<(u64, Reverse<usize>, PageKey)> = file
            .pages
            .iter()
            .filter(|(_, filed)| filed.is_idle())
            .map(|(key, filed)| (filed.used, Reverse(filed.depth), *key))
            .collect();
        idle.sort_unstable();
        let gone: Vec<Filed> = idle
            .iter()
            .take(bytes.div_ceil(page_bytes) as usize)
            .filter_map(|(_, _, key)| file.pages.remove(key))
            .collect();
        gone.len() as u64 * page_bytes
    }

    /// Bytes of filed pages that no session holds.
    pub fn idle_bytes(&self) -> u64 {
        self.file().pages.values().filter(|filed| filed.is_idle()).count() as u64 * self.shape.page_bytes()
    }

    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kv::KvFormat;

    const SHAPE: PageShape = PageShape { layers: 1, kv_heads: 1, width: 16, format: KvFormat::F16 };

    fn key(n: u8) -> PageKey {
        [n; 32]
    }

    fn room(pages: u64) -> (Arc<Memory>, Arc<Pages>) {
        let memory = Memory::new(pages * SHAPE.page_bytes());
        let pages = Pages::new(SHAPE, Some(&memory));
        (memory, pages)
    }

    fn file(pages: &Pages, keys: &[u8]) {
        for (depth, n) in keys.iter().enumerate() {
            pages.file_page(key(*n), depth, &Arc::new(pages.take().expect("room")));
        }
    }

    #[test]
    fn what_is_filed_is_found_up_to_the_first_gap() {
        let (_memory, pages) = room(8);
        file(&pages, &[1, 2, 4]);
        let found = |keys: &[u8]| pages.find(&keys.iter().map(|n| key(*n)).collect::<Vec<_>>()).len();
        assert_eq!((found(&[1, 2, 3, 4]), found(&[9, 1]), found(&[4]), found(&[])), (2, 0, 1, 0));
    }

    #[test]
    fn idle_pages_give_way_the_longest_unused_first_and_of_a_sequence_its_end() {
        let (memory, pages) = room(4);
        file(&pages, &[1, 2, 3, 4]);
        let held = pages.find(&[key(1), key(2)]);
        assert_eq!(pages.idle_bytes(), 2 * SHAPE.page_bytes());
        let one = pages.take().expect("4 gives way");
        assert_eq!(pages.find(&[key(3)]).len(), 1, "3 is left");
        let other = pages.take().expect("3 gives way");
        assert!(pages.take().is_none(), "the others are held");
        drop((held, one));
        assert!(memory.reserve(3 * SHAPE.page_bytes()).is_ok(), "any other use has the memory, too");
        assert!(pages.find(&[key(1)]).is_empty());
        drop(other);
        assert_eq!(memory.used(), 0, "nothing is left behind");
    }

    #[test]
    fn one_memory_has_the_idle_pages_of_all_weights() {
        let (memory, pages) = room(3);
        let others = Pages::new(SHAPE, Some(&memory));
        file(&pages, &[1, 2]);
        file(&others, &[3]);
        drop(pages.find(&[key(1)]));
        let all: Vec<Page> = (0..3).map(|_| others.take().expect("room")).collect();
        assert!(others.take().is_none() && pages.find(&[key(1)]).is_empty());
        drop(all);
    }
}
