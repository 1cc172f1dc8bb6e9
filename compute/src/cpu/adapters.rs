//! Low-rank additions to a stage's matrices, each for some columns of a pass: `y = Wx + scale * B(Ax)`
//! (LoRA, Hu et al. 2021).
//!
//! A pass puts the columns of each adapter into blocks ([`Low::gather`]). Before a product, `Ax` of all blocks is computed from
//! the product's own input in F32 ([`Low::project`]); inside the product, as soon as some rows have their sums,
//! `B(Ax)` is added to the blocks' columns of just those rows ([`Low::add`]), so nothing of a matrix's height is kept.
//! Not here: where adapters come from (`adapter`). Invariant: what is added to a column depends on that column and its
//! adapter alone, and a column without one is never touched.

use super::{
    acts::Rows,
    kernels::{self, Norm, Post, View},
    level::Level,
    lines::Store,
    matrix::{Feed, Fused, Matrix},
    model::{Activation, GateUp},
    packed::LANES,
    pass::{Pass, Slot},
    pool::Pool,
    work::PASS_TOKENS_MAX,
};
use std::sync::Arc;

/// Columns of a block: two tiles of the plain product, and few enough that a prompt's blocks keep all threads at work.
const COLUMNS: usize = 12;
/// Groups of rows that are added at a time: what they need lies on the stack.
const GROUPS: usize = 4;
/// Matrices that read one input: queries, keys, values.
const PARTS_MAX: usize = 3;

/// The products of a layer, by their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// Queries, keys and values.
    Qkv,
    /// Attention's output projection.
    Out,
    /// Gate and up.
    GateUp,
    /// Down.
    Down,
}

/// An addition to one matrix.
pub struct Part {
    /// Which panel it adds to: 1 for up, else 0.
    pub panel: usize,
    /// The first group of rows of that panel that the matrix has.
    pub first: usize,
    /// A: from the input to the rank.
    pub down: Matrix,
    /// B: from the rank to the matrix's rows.
    pub up: Matrix,
    /// What `Ax` is multiplied by.
    pub scale: f32,
}

/// Additions to one layer.
#[derive(Default)]
pub struct LayerAdapter {
    parts: [Vec<Part>; 4],
}

/// Additions to all layers of a stage.
pub struct Adapter {
    /// Where all matrices lie.
    pub store: Store,
    /// A stage's layers, in order.
    pub layers: Vec<LayerAdapter>,
}

impl LayerAdapter {
    /// Adds a part; a site has at most one for each of its matrices.
    pub fn push(&mut self, site: Site, part: Part) {
        debug_assert!(self.parts[site as usize].len() < PARTS_MAX);
        self.parts[site as usize].push(part);
    }
}

impl Adapter {
    fn parts(&self, layer: usize, site: Site) -> &[Part] {
        self.layers.get(layer).map_or(&[], |layer| &layer.parts[site as usize])
    }
}

/// Bytes of the buffers of the widest pass, all its columns adapted, where inputs have up to `k` elements and ranks are up
/// to `rank`.
pub fn buffer_bytes(k: usize, rank: usize) -> u64 {
    let column = k.next_multiple_of(LANES) + 2 * PARTS_MAX * rank.next_multiple_of(LANES);
    (PASS_TOKENS_MAX * column * size_of::<f32>()) as u64
}

/// What the adapters of a pass work with.
#[derive(Default)]
pub struct Low {
    /// Those in use, then such as are kept for their memory.
    blocks: Vec<Block>,
    live: usize,
    /// What `Ax` was computed for.
    layer: usize,
    site: Option<Site>,
}

/// Some columns of a pass with one adapter.
struct Block {
    adapter: Option<Arc<Adapter>>,
    columns: Vec<usize>,
    /// The input of a product.
    x: Rows,
    /// `Ax` as the product gives it.
    panel: Vec<f32>,
    /// `Ax`, scaled, of each part.
    low: [Rows; PARTS_MAX],
}

impl Block {
    fn empty() -> Self {
        let low = std::array::from_fn(|_| Rows::new(0, 0));
        Self { adapter: None, columns: Vec::with_capacity(COLUMNS), x: Rows::new(0, 0), panel: Vec::new(), low }
    }

    fn parts(&self, layer: usize, site: Site) -> &[Part] {
        self.adapter.as_ref().map_or(&[], |adapter| adapter.parts(layer, site))
    }
}

/// An input of a product, of which each column is viewed by itself.
pub struct Read<'a, F> {
    /// The layer, counted in the stage.
    pub layer: usize,
    /// The product.
    pub site: Site,
    /// Elements of a column.
    pub k: usize,
    /// What it goes through first.
    pub norm: Option<Norm<'a>>,
    /// A column of the pass.
    pub view: F,
}

impl Low {
    /// Puts the columns of `slots` into blocks by the adapters of their sequences, for one pass.
    pub fn gather(&mut self, adapters: &[Option<&Arc<Adapter>>], slots: &[Slot]) {
        self.clear();
        if adapters.iter().all(Option::is_none) {
            return;
        }
        for (column, slot) in slots.iter().enumerate() {
            let Some(adapter) = adapters[slot.sequence] else { continue };
            let is_open = |block: &Block| {
                block.columns.len() < COLUMNS && block.adapter.as_ref().is_some_and(|a| Arc::ptr_eq(a, adapter))
            };
            let at = self.blocks[..self.live].iter().position(is_open).unwrap_or_else(|| self.begin(adapter));
            self.blocks[at].columns.push(column);
        }
    }

    fn begin(&mut self, adapter: &Arc<Adapter>) -> usize {
        if self.live == self.blocks.len() {
            self.blocks.push(Block::empty());
        }
        self.blocks[self.live].adapter = Some(adapter.clone());
        self.live += 1;
        self.live - 1
    }

    /// Lets go of the pass' adapters.
    pub fn clear(&mut self) {
        for block in &mut self.blocks[..self.live] {
            block.adapter = None;
            block.columns.clear();
        }
        (self.live, self.site) = (0, None);
    }

    /// Whether some column has an addition to a product.
    pub fn touches(&self, layer: usize, site: Site) -> bool {
        self.blocks[..self.live].iter().any(|block| !block.parts(layer, site).is_empty())
    }

    /// Computes `Ax` of every block for a product.
    pub fn project<'v>(&mut self, pool: &Pool, level: Level, read: Read<'v, impl Fn(usize) -> View<'v> + Sync>) {
        (self.layer, self.site) = (read.layer, Some(read.site));
        match &mut self.blocks[..self.live] {
            [] => {}
            [block] => block.project(level, &read),
            blocks => pool.split(blocks, 1, |_, blocks| blocks.iter_mut().for_each(|b| b.project(level, &read))),
        }
    }

    /// Adds `B(Ax)` to the blocks' columns of the groups from `first` on of a panel of `tokens` columns, which is `out`.
    pub fn add(&self, level: Level, panel: usize, first: usize, tokens: usize, out: &mut [f32]) {
        let Some(site) = self.site else { return };
        let end = first + out.len() / (tokens * LANES);
        for block in &self.blocks[..self.live] {
            let parts = block.parts(self.layer, site).iter().zip(&block.low).filter(|(part, _)| part.panel == panel);
            for (part, low) in parts {
                let groups = first.max(part.first)..end.min(part.first + part.up.groups);
                for group in groups.clone().step_by(GROUPS) {
                    let count = GROUPS.min(groups.end - group);
                    let out = &mut out[(group - first) * tokens * LANES..][..count * tokens * LANES];
                    block.add(level, part, low, group - part.first, tokens, out);
                }
            }
        }
    }
}

impl Block {
    fn project<'v>(&mut self, level: Level, read: &Read<'v, impl Fn(usize) -> View<'v>>) {
        let Some(adapter) = &self.adapter else { return };
        let (parts, count) = (adapter.parts(read.layer, read.site), self.columns.len());
        if parts.is_empty() {
            return;
        }
        self.x.stride = read.k.next_multiple_of(LANES);
        self.x.set_tokens(count);
        for (row, column) in self.x.values.chunks_exact_mut(self.x.stride).zip(&self.columns) {
            kernels::normalise(level, (read.view)(*column), read.k, read.norm, row);
        }
        for (part, low) in parts.iter().zip(&mut self.low) {
            self.panel.resize(part.down.groups * count * LANES, 0.0);
            part.down.product_rows(level, &adapter.store, 0, &self.x, &mut self.panel);
            low.stride = part.down.groups * LANES;
            low.set_tokens(count);
            for (i, chunk) in self.panel.as_chunks::<LANES>().0.iter().enumerate() {
                let to = &mut low.values[i % count * low.stride + i / count * LANES..][..LANES];
                to.iter_mut().zip(chunk).for_each(|(to, from)| *to = part.scale * from);
            }
        }
    }

    /// Adds groups from `group` on of `part` to this block's columns of just these groups.
    fn add(&self, level: Level, part: &Part, low: &Rows, group: usize, tokens: usize, out: &mut [f32]) {
        let Some(adapter) = &self.adapter else { return };
        let (count, groups) = (self.columns.len(), out.len() / (tokens * LANES));
        let mut sums = [0f32; GROUPS * COLUMNS * LANES];
        let sums = &mut sums[..groups * count * LANES];
        part.up.product_rows(level, &adapter.store, group, low, sums);
        for (out, sums) in out.chunks_exact_mut(tokens * LANES).zip(sums.chunks_exact(count * LANES)) {
            for (column, sum) in self.columns.iter().zip(sums.as_chunks::<LANES>().0) {
                let out = &mut out[column * LANES..][..LANES];
                out.iter_mut().zip(sum).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}

impl Pass<'_> {
    /// A product of all columns with what adapters add to it.
    pub(super) fn adapted_product(&self, matrix: &Fused, feed: &Feed, low: &Low, out: &mut [f32], post: Post) {
        let n = self.slots.len();
        self.pool.split(out, n * LANES, |g, part| {
            matrix.product(self.level, &self.model.store, g, feed, part, post);
            low.add(self.level, 0, g, n, part);
        });
    }

    /// `act(gate) * up` where adapters add to either before they meet: the same bits for columns without one. `feed` is in
    /// the forms that gate and up read.
    pub(super) fn adapted_gate_up(&self, gate_up: &GateUp, feed: &Feed, low: &Low, out: &mut [f32]) {
        let (n, level, store) = (self.slots.len(), self.level, &self.model.store);
        let panel = n * LANES;
        self.pool.split(out, panel, |first, part| {
            let mut sums = [0f32; 2 * PASS_TOKENS_MAX * LANES];
            let sums = &mut sums[..2 * panel];
            for (g, out) in part.chunks_exact_mut(panel).enumerate() {
                let g = first + g;
                match gate_up {
                    GateUp::Paired(both) => both.product(level, store, 2 * g, feed, sums, Post::Store),
                    GateUp::Apart(gate, up) => {
                        gate.product(level, store, g, feed, &mut sums[..panel], Post::Store);
                        up.product(level, store, g, feed, &mut sums[panel..], Post::Store);
                    }
                }
                low.add(level, 0, g, n, &mut sums[..panel]);
                low.add(level, 1, g, n, &mut sums[panel..]);
                let (gate, up) = sums.split_at(panel);
                let [first, second] = match self.model.shape.activation {
                    Activation::Silu => [Post::Store, Post::Gate],
                    Activation::Gelu => [Post::Gelu, Post::Times],
                };
                kernels::finish_all(level, gate, out, first);
                kernels::finish_all(level, up, out, second);
            }
        });
    }
}
