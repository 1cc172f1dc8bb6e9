//! Cache lines: the memory that weights and activations are laid out in.
//!
//! All weights of a stage lie in one allocation, in the order they are read during a pass, on huge pages where the
//! system gives them. This file holds layout only; what the bytes mean is said in `packed` and `plain`.

#![allow(unsafe_code)]

use half::f16;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// Bytes in a line.
pub const LINE_BYTES: usize = 64;

impl Line {
    /// A line of zeros.
    pub const ZERO: Self = Self([0; 64]);

    /// Lines as the bytes that they are.
    pub fn bytes(lines: &[Line]) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding, so a slice of them is that many bytes, which live as long.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
    }

    /// The same, to be written.
    pub fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
        // SAFETY: as above, borrowed alone; any bytes make a line.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }

    /// Lines as halves, to be written.
    pub fn halves_mut(lines: &mut [Line]) -> &mut [f16] {
        let count = lines.len() * (LINE_BYTES / size_of::<f16>());
        // SAFETY: a line is 32 halves without padding, at an address that is a multiple of theirs; borrowed alone, and any
        // bits make a line.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), count) }
    }
}

/// The weights of a stage, one after the other. Grows while loading, never after.
pub struct Store {
    lines: Vec<Line>,
    /// Lines that were given out.
    placed: usize,
}

impl Store {
    /// Room for `lines` lines; `None` when the system has not that much memory.
    pub fn with_room(lines: usize) -> Option<Self> {
        let mut store = Vec::new();
        store.try_reserve_exact(lines).ok()?;
        super::pages::prefer_huge(store.spare_capacity_mut());
        Some(Self { lines: store, placed: 0 })
    }

    /// Gives out the next `count` lines, zeros unless they were filled before, and returns where they begin.
    pub fn grow(&mut self, count: usize) -> usize {
        let from = self.placed;
        self.placed += count;
        self.lines.resize(self.lines.len().max(self.placed), Line::ZERO);
        from
    }

    /// Gives out lines from the first again, with what they hold.
    pub fn rewind(&mut self) {
        self.placed = 0;
    }

    /// Lines held.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// `count` lines from `from` on.
    pub fn slice(&self, from: usize, count: usize) -> &[Line] {
        &self.lines[from..from + count]
    }

    /// `count` lines from `from` on, to be filled.
    pub fn slice_mut(&mut self, from: usize, count: usize) -> &mut [Line] {
        &mut self.lines[from..from + count]
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        (self.lines.len() * LINE_BYTES) as u64
    }
}
