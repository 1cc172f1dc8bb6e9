//! Keys and values of one sequence in one stage, in pages of 64 positions.
//!
//! A page holds its positions for all layers of the stage, `[layer][kv head]{keys, values}`, each as [`super::kv`] says. A sequence takes pages as it grows and gives them back when it shrinks; sequences
//! that begin alike may hold the same full pages. (Pages as in PagedAttention, Kwon et al. 2023.)
//!
//! Not here: how many pages there may be, and who gives way when there are none ([`crate::stage::pages`]).
//! Invariant: a page that more than one holds is not written; it is copied first.

use super::{
    kernels::{KV_TILE, KvHead},
    kv::KvFormat,
    lines::{LINE_BYTES, Line},
};
use std::{any::Any, ops::Range, sync::Arc};

/// What a page holds keys and values of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Layers of the stage.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub width: usize,
    /// What they are held as.
    pub format: KvFormat,
}

impl PageShape {
    /// Lines of keys and values of one head.
    pub fn head_lines(&self) -> usize {
        self.format.key_lines(self.width) + self.format.value_lines(self.width)
    }

    fn layer_lines(&self) -> usize {
        self.head_lines() * self.kv_heads
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> u64 {
        (self.layer_lines() * self.layers * LINE_BYTES) as u64
    }

    /// Bytes that a position takes.
    pub fn position_bytes(&self) -> u64 {
        self.page_bytes() / KV_TILE as u64
    }

    /// Bytes of the pages that so many positions take.
    pub fn bytes(&self, positions: u64) -> u64 {
        self.page_bytes() * positions.div_ceil(KV_TILE as u64)
    }
}

/// Pages that so many positions take.
pub fn pages(positions: usize) -> usize {
    positions.div_ceil(KV_TILE)
}

/// Keys and values of [`KV_TILE`] positions, and whatever counts their memory. Heads begin with a line, so that no load of sixteen
/// halves needs two.
pub struct Page {
    lines: Vec<Line>,
    _counted: Option<Box<dyn Any + Send + Sync>>,
}

impl Page {
    /// An empty one. `counted` is dropped with it.
    pub fn new(shape: PageShape, counted: Option<Box<dyn Any + Send + Sync>>) -> Self {
        let count = shape.layer_lines() * shape.layers;
        let mut lines = Vec::with_capacity(count);
        super::pages::prefer_huge(lines.spare_capacity_mut());
        lines.resize(count, Line::ZERO);
        Self { lines, _counted: counted }
    }

    /// Everything it holds.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}

/// The key/value store of a sequence.
pub struct Cache {
    shape: PageShape,
    pages: Vec<Arc<Page>>,
}

/// No page is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Cache {
    /// Without any page.
    pub fn empty(shape: PageShape) -> Self {
        Self { shape, pages: Vec::new() }
    }

    /// With room for `context` positions at once, which nobody counts.
    pub fn new(shape: PageShape, context: usize) -> Self {
        let pages = (0..pages(context)).map(|_| Arc::new(Page::new(shape, None))).collect();
        Self { shape, pages }
    }

    /// What its pages are of.
    pub fn shape(&self) -> PageShape {
        self.shape
    }

    /// Its pages, the first positions' first.
    pub fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }

    /// Holds what others have computed, and nothing else.
    pub fn adopt(&mut self, pages: Vec<Arc<Page>>) {
        self.pages = pages;
    }

    /// Makes sure that the positions `at`, which follow those held, have pages of their own. What was taken before there
    /// were no more is kept.
    pub fn reserve(&mut self, at: Range<usize>, mut take: impl FnMut() -> Option<Page>) -> Result<(), Full> {
        for index in at.start / KV_TILE..pages(at.end) {
            let Some(page) = self.pages.get_mut(index) else {
                self.pages.push(Arc::new(take().ok_or(Full)?));
                continue;
            };
            if Arc::get_mut(page).is_none() {
                let mut own = take().ok_or(Full)?;
                own.lines.copy_from_slice(&page.lines);
                *page = Arc::new(own);
            }
        }
        Ok(())
    }

    /// Gives back the pages that the first `positions` don't need.
    pub fn truncate(&mut self, positions: usize) {
        self.pages.truncate(pages(positions));
    }

    /// All heads of a layer in one page, to be written. The page is the sequence's own ([`Cache::reserve`]).
    pub fn layer_mut(&mut self, page: usize, layer: usize) -> &mut [Line] {
        let lines = self.shape.layer_lines();
        let own = Arc::get_mut(&mut self.pages[page]).expect("positions are reserved before they are written");
        &mut own.lines[layer * lines..][..lines]
    }

    /// Keys and values of one head of a layer.
    pub fn head(&self, layer: usize, head: usize) -> KvHead<'_> {
        let (shape, lines) = (self.shape, self.shape.head_lines());
        let at = layer * shape.layer_lines() + head * lines;
        KvHead { pages: &self.pages, format: shape.format, at, key_lines: shape.format.key_lines(shape.width), lines }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: PageShape = PageShape { layers: 2, kv_heads: 3, width: 20, format: KvFormat::F16 };

    #[test]
    fn pages_hold_what_positions_are_said_to_take() {
        for format in KvFormat::ALL {
            let shape = PageShape { format, ..SHAPE };
            assert_eq!(shape.page_bytes(), shape.bytes(1));
            assert_eq!(size_of_val(Page::new(shape, None).lines()) as u64, shape.page_bytes());
            assert_eq!(shape.bytes(65), 2 * shape.page_bytes());
        }
        assert_eq!(SHAPE.position_bytes(), 2 * 3 * (20 + 32) * 2);
    }

    #[test]
    fn a_sequence_takes_a_page_when_it_grows_into_it_and_gives_it_back() {
        let mut cache = Cache::empty(SHAPE);
        let mut taken = 0;
        let mut reserve = |cache: &mut Cache, at: Range<usize>| {
            let take = || {
                taken += 1;
                (taken <= 3).then(|| Page::new(SHAPE, None))
            };
            let reserved = cache.reserve(at, take);
            (reserved, cache.pages().len())
        };
        assert_eq!(reserve(&mut cache, 0..64), (Ok(()), 1));
        assert_eq!(reserve(&mut cache, 64..65), (Ok(()), 2));
        assert_eq!(reserve(&mut cache, 65..128), (Ok(()), 2));
        assert_eq!(reserve(&mut cache, 128..300), (Err(Full), 3), "what there was is kept");
        cache.truncate(65);
        assert_eq!(cache.pages().len(), 2);
        cache.truncate(0);
        assert!(cache.pages().is_empty());
    }

    #[test]
    fn a_page_that_another_holds_is_copied_before_it_is_written() {
        let mut one = Cache::new(SHAPE, 128);
        one.layer_mut(1, 0).fill(Line([1; 64]));
        let mut other = Cache::empty(SHAPE);
        other.adopt(one.pages().to_vec());
        other.reserve(100..101, || Some(Page::new(SHAPE, None))).expect("a page");
        assert!(Arc::ptr_eq(&one.pages()[0], &other.pages()[0]) && !Arc::ptr_eq(&one.pages()[1], &other.pages()[1]));
        other.layer_mut(1, 0)[0] = Line::ZERO;
        let begins = |cache: &Cache| [0, 1].map(|line| cache.pages()[1].lines()[line].0[0]);
        assert_eq!((begins(&one), begins(&other)), ([1, 1], [0, 1]));
    }
}
