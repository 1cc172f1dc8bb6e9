//! The part of a layer after attention: one block for all tokens, or a few of many experts for each.
//!
//! With experts, tokens are grouped by the expert that they go through, and each expert's weights are read once for all of
//! its tokens. A token alone (decoding) has all of its experts in one fork. Either way a column of a product depends on
//! nothing but itself, and what a token's experts give is added in the order of experts: so its result does not depend on
//! whom it shares them with.

use super::{
    adapters::{Low, Site},
    kernels::{self, Norm, Post, View},
    matrix::{Feed, Fused},
    model::{Activation, Block, Experts, FeedForward, GateUp, Layer, Routing},
    packed::LANES,
    pass::{Columns, Pass, QUANTISE_FORK, copy_rows},
    route::{self, Choice},
    work::Work,
};

/// The residual stream, and room for what is normalised before it is added.
pub(super) struct Stream<'w> {
    pub x: &'w mut [f32],
    pub branch: &'w mut [f32],
    pub normed: &'w mut [f32],
    /// What adapters add to the product that is joined.
    pub low: &'w Low,
}

impl Pass<'_> {
    pub(super) fn feed_forward(&self, work: &mut Work, index: usize, layer: &Layer) {
        let s = self.shape();
        let norm = Norm { weights: &layer.feed_forward_norm, epsilon: s.epsilon };
        let packed = layer.feed_forward.readers().find(|reader| reader.reads_acts());
        let plain = layer.feed_forward.readers().find(|reader| reader.reads_rows());
        for reader in packed.into_iter().chain(plain) {
            self.feed(&mut work.narrow, reader, Columns::Panel(&work.x), s.width, Some(norm));
        }
        match &layer.feed_forward {
            FeedForward::Block(block) => self.block(work, index, layer, block),
            FeedForward::Experts(experts) => self.experts(work, experts),
        }
    }

    fn block(&self, work: &mut Work, index: usize, layer: &Layer, block: &Block) {
        let (n, s) = (self.tokens(), self.shape());
        let hidden = &mut work.hidden[..s.feed_forward.next_multiple_of(LANES) * n];
        if work.low.touches(index, Site::GateUp) {
            let norm = Norm { weights: &layer.feed_forward_norm, epsilon: s.epsilon };
            self.project(&mut work.low, (index, Site::GateUp), Columns::Panel(&work.x), s.width, Some(norm));
            self.adapted_gate_up(&block.gate_up, &work.narrow, &work.low, hidden);
        } else {
            for (matrix, post) in self.steps(&block.gate_up).into_iter().flatten() {
                self.product(matrix, &work.narrow, n, hidden, post);
            }
        }
        self.feed(&mut work.wide, &block.down, Columns::Panel(&work.hidden), s.feed_forward, None);
        self.project(&mut work.low, (index, Site::Down), Columns::Panel(&work.hidden), s.feed_forward, None);
        let norm = layer.post_norms.as_ref().map(|[_, norm]| &norm[..]);
        let stream = Stream { x: &mut work.x, branch: &mut work.branch, normed: &mut work.normed, low: &work.low };
        self.join(stream, &block.down, &work.wide, norm);
    }

    /// The products that make a block's hidden values, and what becomes of each.
    fn steps<'m>(&self, gate_up: &'m GateUp) -> [Option<(&'m Fused, Post)>; 2] {
        match (gate_up, self.shape().activation) {
            (GateUp::Paired(both), _) => [Some((both, Post::SwiGlu)), None],
            (GateUp::Apart(gate, up), Activation::Silu) => [Some((gate, Post::Store)), Some((up, Post::Gate))],
            (GateUp::Apart(gate, up), Activation::Gelu) => [Some((gate, Post::Gelu)), Some((up, Post::Times))],
        }
    }

    /// Adds a product to the residual stream, normalised before where the model does so.
    pub(super) fn join(&self, stream: Stream, matrix: &Fused, feed: &Feed, norm: Option<&[f32]>) {
        let (n, s) = (self.tokens(), self.shape());
        let padded = s.width.next_multiple_of(LANES);
        let x = &mut stream.x[..padded * n];
        let Some(weights) = norm else { return self.adapted_product(matrix, feed, stream.low, x, Post::Add) };
        let (branch, normed) = (&mut stream.branch[..padded * n], &mut stream.normed[..padded * n]);
        self.adapted_product(matrix, feed, stream.low, branch, Post::Store);
        self.normalised(branch, weights, normed);
        let normed = &*normed;
        let add = |first: usize, groups: &mut [f32]| {
            for (g, group) in groups.chunks_exact_mut(n * LANES).enumerate() {
                for (t, column) in group.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    let row = &normed[t * padded + (first + g) * LANES..][..LANES];
                    column.iter_mut().zip(row).for_each(|(x, y)| *x += y);
                }
            }
        };
        if n < QUANTISE_FORK { add(0, x) } else { self.pool.split(x, n * LANES, add) }
    }

    /// The columns of a panel as wide as the model, normalised, as rows.
    fn normalised(&self, panel: &[f32], weights: &[f32], rows: &mut [f32]) {
        let (n, s) = (self.tokens(), self.shape());
        let (norm, padded) = (Norm { weights, epsilon: s.epsilon }, s.width.next_multiple_of(LANES));
        let each = |first: usize, rows: &mut [f32]| {
            for (i, row) in rows.chunks_exact_mut(padded).enumerate() {
                let view = View { values: &panel[(first + i) * LANES..], step: n * LANES };
                kernels::normalise(self.level, view, s.width, Some(norm), row);
            }
        };
        if n < QUANTISE_FORK { each(0, rows) } else { self.pool.split(rows, padded, each) }
    }

    fn experts(&self, work: &mut Work, experts: &Experts) {
        let Some(routing) = self.shape().routing else { return };
        let mut choices = std::mem::take(&mut work.choices);
        self.route(work, experts, routing, &mut choices);
        if self.tokens() == 1 {
            self.side_by_side(work, experts, &choices);
        } else {
            for same in choices.chunk_by(|a, b| a.expert == b.expert) {
                self.together(work, &experts.blocks[same[0].expert], same);
            }
        }
        work.choices = choices;
    }

    /// The choices of all tokens, in the order of experts.
    fn route(&self, work: &mut Work, experts: &Experts, routing: Routing, choices: &mut Vec<Choice>) {
        let n = self.tokens();
        let routes = &mut work.routes[..routing.experts.next_multiple_of(LANES) * n];
        self.product(&experts.router, &work.narrow, n, routes, Post::Store);
        choices.clear();
        for t in 0..n {
            copy_rows(routes, n, t, 0, &mut work.scores);
            route::choose(routing, t, &work.scores, choices);
        }
        choices.sort_unstable_by_key(|choice| (choice.expert, choice.token));
    }

    /// One expert, for all tokens that go through it.
    fn together(&self, work: &mut Work, block: &Block, same: &[Choice]) {
        let (n, m, s) = (self.tokens(), same.len(), self.shape());
        let Some(picked) = &mut work.picked else { return };
        let hidden = &mut work.hidden[..s.feed_forward.next_multiple_of(LANES) * m];
        for (matrix, post) in self.steps(&block.gate_up).into_iter().flatten() {
            picked.pick(&work.narrow, matrix, same.iter().map(|choice| choice.token));
            self.product(matrix, picked, m, hidden, post);
        }
        self.feed_columns(m, &mut work.wide, &block.down, Columns::Panel(hidden), s.feed_forward, None);
        let branch = &mut work.branch[..s.width.next_multiple_of(LANES) * m];
        self.product(&block.down, &work.wide, m, branch, Post::Store);
        let branch = &*branch;
        let add = |first: usize, groups: &mut [f32]| {
            for (g, group) in groups.chunks_exact_mut(n * LANES).enumerate() {
                for (i, choice) in same.iter().enumerate() {
                    let from = &branch[((first + g) * m + i) * LANES..][..LANES];
                    add_weighted(&mut group[choice.token * LANES..][..LANES], from, choice.weight);
                }
            }
        };
        let x = &mut work.x[..s.width.next_multiple_of(LANES) * n];
        if m < QUANTISE_FORK { add(0, x) } else { self.pool.split(x, n * LANES, add) }
    }

    /// All experts of the one token of a pass: a fork for their gates and ups, and one for their downs.
    fn side_by_side(&self, work: &mut Work, experts: &Experts, choices: &[Choice]) {
        let s = self.shape();
        let (inner, padded) = (s.feed_forward.next_multiple_of(LANES), s.width.next_multiple_of(LANES));
        let block = |i: usize| &experts.blocks[choices[i].expert];
        let hidden = &mut work.hidden[..inner * choices.len()];
        for step in 0..2 {
            let job = |i: usize| self.steps(&block(i).gate_up)[step].map(|(matrix, post)| (matrix, &work.narrow, post));
            if (0..choices.len()).any(|i| job(i).is_some()) {
                self.products(hidden, inner, job);
            }
        }
        for (i, (feed, hidden)) in work.each.iter_mut().zip(hidden.chunks_exact(inner)).enumerate() {
            let down = &block(i).down;
            self.feed_columns(1, feed, down, Columns::Panel(hidden), s.feed_forward, None);
        }
        let branch = &mut work.branch[..padded * choices.len()];
        let each = &work.each;
        self.products(branch, padded, |i| Some((&block(i).down, &each[i], Post::Store)));
        for (choice, branch) in choices.iter().zip(branch.chunks_exact(padded)) {
            add_weighted(&mut work.x[..padded], branch, choice.weight);
        }
    }

    /// Products of one token each, one after the other in parts of so many `rows` of `out`, in one fork.
    fn products<'m>(
        &self,
        out: &mut [f32],
        rows: usize,
        job: impl Fn(usize) -> Option<(&'m Fused, &'m Feed, Post)> + Sync,
    ) {
        let each = rows / LANES;
        self.pool.split(out, LANES, |first, part| {
            let (mut at, end) = (first, first + part.len() / LANES);
            while at < end {
                let (i, group) = (at / each, at % each);
                let run = (each - group).min(end - at);
                let out = &mut part[(at - first) * LANES..][..run * LANES];
                if let Some((matrix, feed, post)) = job(i) {
                    matrix.product(self.level, &self.model.store, group * groups_read(post), feed, out, post);
                }
                at += run;
            }
        });
    }
}

/// Groups of weights that make one group of a product.
pub(super) fn groups_read(post: Post) -> usize {
    if post == Post::SwiGlu { 2 } else { 1 }
}

fn add_weighted(x: &mut [f32], from: &[f32], weight: f32) {
    x.iter_mut().zip(from).for_each(|(x, y)| *x += weight * y);
}
