//! Cache lines: the memory that weights and activations are laid out in.
//!
//! All weights of a stage lie in one allocation, in the order they are read during a pass, on huge pages where the
//! system gives them. This file holds layout only; what the bytes mean is said in `packed` and `plain`.

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// Bytes in a line.
pub const LINE_BYTES: usize = 64;

impl Line {
    /// A line of zeros.
    pub const ZERO: Self = Self([0; 64]);
}

/// The weights of a stage, one after the other. Grows while loading, never after.
pub struct Store {
    lines: Vec<Line>,
}

impl Store {
    /// Room for `lines` lines; `None` when the system has not that much memory.
    pub fn with_room(lines: usize) -> Option<Self> {
        let mut store = Vec::new();
        store.try_reserve_exact(lines).ok()?;
        super::pages::prefer_huge(store.spare_capacity_mut());
        Some(Self { lines: store })
    }

    /// Adds `count` zero lines and returns where they begin.
    pub fn grow(&mut self, count: usize) -> usize {
        let from = self.lines.len();
        self.lines.resize(from + count, Line::ZERO);
        from
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
