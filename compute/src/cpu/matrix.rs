//! A weight matrix of a stage: its format, its size and where it lies in the store; and several fused into one product.

use super::{
    acts::{Acts, Rows},
    kernels::{self, Post},
    level::Level,
    lines::{LINE_BYTES, Store},
    packed::{self, BLOCK, LANES, Packed, PackedFormat},
    plain::{self, Plain, PlainFormat},
};

/// How the engine holds a matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Format {
    /// Quantised, for integer products.
    Packed(PackedFormat),
    /// In its own width, for F32 products.
    Plain(PlainFormat),
}

impl Format {
    /// Lines in a group of 16 rows of `k` elements.
    pub fn group_lines(self, k: usize) -> usize {
        match self {
            Self::Packed(format) => format.group_lines(k / BLOCK),
            Self::Plain(format) => format.group_lines(k),
        }
    }
}

/// Where a matrix lies.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// How it is held.
    pub format: Format,
    /// Elements in a row.
    pub k: usize,
    /// Groups of 16 rows.
    pub groups: usize,
    from: usize,
}

impl Matrix {
    /// Room for `groups` groups of rows of `k` elements, all zero.
    pub fn place(store: &mut Store, format: Format, groups: usize, k: usize) -> Self {
        Self { format, k, groups, from: store.grow(groups * format.group_lines(k)) }
    }

    /// Writes a source row into lane `lane` of group `group`.
    pub fn fill(&self, store: &mut Store, group: usize, lane: usize, row: &[u8]) {
        let lines = self.format.group_lines(self.k);
        let into = store.slice_mut(self.from + group * lines, lines);
        match self.format {
            Format::Packed(format) => packed::fill_row(format, self.k / BLOCK, into, lane, row),
            Format::Plain(format) => plain::fill_row(format, into, lane, row),
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> u64 {
        (self.groups * self.format.group_lines(self.k) * LINE_BYTES) as u64
    }

    /// One row as F32, handed out element by element.
    pub fn row(&self, store: &Store, row: usize, put: impl FnMut(usize, f32)) {
        match self.view(store) {
            MatrixView::Packed(w) => w.row(row, put),
            MatrixView::Plain(w) => w.row(row, put),
        }
    }

    /// Multiplies groups from `first` on of a plain matrix by rows; `out` is their panel. (A packed one reads no rows.)
    pub fn product_rows(&self, level: Level, store: &Store, first: usize, rows: &Rows, out: &mut [f32]) {
        let MatrixView::Plain(w) = self.view(store) else { return };
        kernels::product_plain(level, w, first, rows, out, Post::Store);
    }

    fn view<'a>(&self, store: &'a Store) -> MatrixView<'a> {
        let lines = store.slice(self.from, self.groups * self.format.group_lines(self.k));
        match self.format {
            Format::Packed(format) => MatrixView::Packed(Packed::new(format, self.k / BLOCK, lines)),
            Format::Plain(format) => MatrixView::Plain(Plain::new(format, self.k, lines)),
        }
    }
}

enum MatrixView<'a> {
    Packed(Packed<'a>),
    Plain(Plain<'a>),
}

/// Activations in the forms that a fused product's sections read.
pub struct Feed {
    /// For packed sections.
    pub acts: Acts,
    /// For plain sections.
    pub rows: Rows,
}

impl Feed {
    /// Takes over some tokens of another feed of the same width, in the forms that `reader` reads.
    pub fn pick(&mut self, from: &Feed, reader: &Fused, tokens: impl ExactSizeIterator<Item = usize> + Clone) {
        if reader.reads_acts() {
            let stride = from.acts.stride;
            self.acts.set_tokens(tokens.len());
            for (record, token) in self.acts.words.chunks_exact_mut(stride).zip(tokens.clone()) {
                record.copy_from_slice(&from.acts.words[token * stride..][..stride]);
            }
        }
        if reader.reads_rows() {
            let stride = from.rows.stride;
            self.rows.set_tokens(tokens.len());
            for (row, token) in self.rows.values.chunks_exact_mut(stride).zip(tokens) {
                row.copy_from_slice(&from.rows.values[token * stride..][..stride]);
            }
        }
    }
}

/// Matrices of one width, one after the other: one product over their rows. Sections may differ in format.
#[derive(Clone, Debug, Default)]
pub struct Fused {
    /// The parts, in order.
    pub sections: Vec<Matrix>,
}

impl Fused {
    /// Groups of all sections.
    pub fn groups(&self) -> usize {
        self.sections.iter().map(|s| s.groups).sum()
    }

    /// True when some section reads int8 records.
    pub fn reads_acts(&self) -> bool {
        self.sections.iter().any(|s| matches!(s.format, Format::Packed(_)))
    }

    /// True when some section reads F32 rows.
    pub fn reads_rows(&self) -> bool {
        self.sections.iter().any(|s| matches!(s.format, Format::Plain(_)))
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> u64 {
        self.sections.iter().map(Matrix::bytes).sum()
    }

    /// Multiplies groups from `first` on (counted over all sections) by all tokens of the feed; `out` is their panel.
    pub fn product(&self, level: Level, store: &Store, first: usize, feed: &Feed, out: &mut [f32], post: Post) {
        let tokens = if self.reads_acts() { feed.acts.tokens } else { feed.rows.tokens };
        let (per, panel) = (if post == Post::SwiGlu { 2 } else { 1 }, tokens * LANES);
        let mut done = 0;
        let mut base = 0;
        for section in &self.sections {
            let at = first + done * per;
            let left = out.len() / panel - done;
            if at < base + section.groups && left > 0 {
                let count = ((base + section.groups - at) / per).min(left);
                let part = &mut out[done * panel..(done + count) * panel];
                match section.view(store) {
                    MatrixView::Packed(w) => kernels::product_packed(level, w, at - base, &feed.acts, part, post),
                    MatrixView::Plain(w) => kernels::product_plain(level, w, at - base, &feed.rows, part, post),
                }
                done += count;
            }
            base += section.groups;
        }
    }
}
