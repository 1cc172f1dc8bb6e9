//! Cuts the layers for a given row of nodes: dynamic programming over the cut points.
//!
//! Not a choice of nodes. Invariant of a result: one non-empty range for each node, in order, together all layers, each
//! within its node's memory;
//! `None` means that no such cut exists.
//!
//! State: the best way to put layers `0..end` on the first `i` nodes. O(nodes × layers²) steps.

use super::{Candidate, PlanInput};
use cairn_protocol::layers::LayerRange;

/// What a good cut is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The slowest stage computes a token as fast as can be, then the sum.
    Slowest,
    /// An answer takes as short as can be over all stages together, then over the slowest.
    Sum,
}

/// How good a cut is; less is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    first: u64,
    then: u64,
}

impl Score {
    fn with(self, input: &PlanInput, goal: Goal, range: LayerRange, on: &Candidate) -> Score {
        match goal {
            Goal::Slowest => {
                let token_ns = input.cost.decode_ns(range, on);
                Score { first: self.first.max(token_ns), then: self.then.saturating_add(token_ns) }
            }
            Goal::Sum => {
                let answer_ns = input.answer_ns(range, on);
                Score { first: self.first.saturating_add(answer_ns), then: self.then.max(answer_ns) }
            }
        }
    }
}

/// The best ranges for `nodes` in this order.
pub(super) fn split(input: &PlanInput, nodes: &[&Candidate], goal: Goal) -> Option<Vec<LayerRange>> {
    let layers = input.cost.layer_count();
    if nodes.is_empty() || nodes.len() > layers {
        return None;
    }
    let mut best: Vec<Vec<Option<(Score, usize)>>> = vec![vec![None; layers + 1]; nodes.len() + 1];
    best[0][0] = Some((Score::default(), 0));
    for (i, node) in nodes.iter().enumerate() {
        let last = i + 1 == nodes.len();
        let ends = if last { layers..=layers } else { i + 1..=layers - (nodes.len() - i - 1) };
        for end in ends {
            best[i + 1][end] = best_start(input, node, goal, &best[i], end);
        }
    }
    best[nodes.len()][layers]?;
    Some(trace(&best, nodes.len(), layers))
}

/// The start from which `node` best carries layers up to `end`. Walks backwards, so it stops at the first range that
/// does not fit.
fn best_start(
    input: &PlanInput,
    node: &Candidate,
    goal: Goal,
    before: &[Option<(Score, usize)>],
    end: usize,
) -> Option<(Score, usize)> {
    let mut found: Option<(Score, usize)> = None;
    for start in (0..end).rev() {
        let range = LayerRange { start: start as u32, end: end as u32 };
        if input.cost.stage_memory(range, input.context) > node.memory_free_bytes {
            break;
        }
        let Some((sofar, _)) = before[start] else { continue };
        let score = sofar.with(input, goal, range, node);
        if found.is_none_or(|(known, _)| score < known) {
            found = Some((score, start));
        }
    }
    found
}

fn trace(best: &[Vec<Option<(Score, usize)>>], nodes: usize, layers: usize) -> Vec<LayerRange> {
    let mut ranges = Vec::with_capacity(nodes);
    let mut end = layers;
    for i in (1..=nodes).rev() {
        let (_, start) = best[i][end].expect("a cut that was reached was stored");
        ranges.push(LayerRange { start: start as u32, end: end as u32 });
        end = start;
    }
    ranges.reverse();
    ranges
}
