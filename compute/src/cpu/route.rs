//! Which experts a token goes through, and with what weights. Pure; a token's choice depends on its own scores only.

use super::{kernels, model::Routing, packed::LANES};

/// That a token goes through an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Which expert.
    pub expert: usize,
    /// Which token of the pass.
    pub token: usize,
    /// What the expert's result is multiplied by.
    pub weight: f32,
}

/// Adds the choices of one token: the experts of the highest scores (of equal ones the first), in the order of experts,
/// weighted by the softmax of the scores, of all or of those that are chosen.
pub fn choose(routing: Routing, token: usize, scores: &[f32], choices: &mut Vec<Choice>) {
    let (scores, first) = (&scores[..routing.experts], choices.len());
    choices.extend(scores.iter().enumerate().map(|(expert, score)| Choice { expert, token, weight: *score }));
    let best_first = |a: &Choice, b: &Choice| b.weight.total_cmp(&a.weight).then(a.expert.cmp(&b.expert));
    if routing.used < routing.experts {
        choices[first..].select_nth_unstable_by(routing.used, best_first);
        choices.truncate(first + routing.used);
    }
    let chosen = &mut choices[first..];
    chosen.sort_unstable_by_key(|choice| choice.expert);
    let top = chosen.iter().fold(f32::NEG_INFINITY, |top, choice| top.max(choice.weight));
    for chunk in chosen.chunks_mut(LANES) {
        let weights = exponentials(chunk.iter().map(|choice| choice.weight), top);
        chunk.iter_mut().zip(weights).for_each(|(choice, weight)| choice.weight = weight);
    }
    let of_all = |chunk: &[f32]| exponentials(chunk.iter().copied(), top).into_iter().take(chunk.len());
    let total: f32 = match routing.is_normalised {
        true => chosen.iter().map(|choice| choice.weight).sum(),
        false => scores.chunks(LANES).flat_map(of_all).sum(),
    };
    chosen.iter_mut().for_each(|choice| choice.weight /= total);
}

/// `e^(score - top)` of up to [`LANES`] scores, in the engine's own arithmetic: a library's differs from machine to machine.
fn exponentials(scores: impl Iterator<Item = f32>, top: f32) -> [f32; LANES] {
    let mut lanes = [0f32; LANES];
    lanes.iter_mut().zip(scores).for_each(|(lane, score)| *lane = score - top);
    kernels::exp(&mut lanes);
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(used: usize, is_normalised: bool, scores: &[f32]) -> Vec<(usize, f32)> {
        let mut choices = Vec::new();
        choose(Routing { experts: scores.len(), used, is_normalised }, 3, scores, &mut choices);
        assert!(choices.iter().all(|choice| choice.token == 3));
        choices.iter().map(|choice| (choice.expert, choice.weight)).collect()
    }

    #[test]
    fn the_likeliest_are_chosen_and_of_equal_ones_the_first() {
        let experts = |scores: &[f32]| chosen(2, true, scores).iter().map(|(e, _)| *e).collect::<Vec<_>>();
        assert_eq!(experts(&[0.0, 3.0, 1.0, 2.0]), [1, 3]);
        assert_eq!(experts(&[1.0, 1.0, 1.0, 1.0]), [0, 1]);
        assert_eq!(experts(&[0.0, 1.0, 2.0, 1.0]), [1, 2]);
        assert_eq!(experts(&[-5.0, f32::NEG_INFINITY, -7.0]), [0, 2]);
    }

    #[test]
    fn weights_are_the_softmax_of_all_or_of_those_that_are_chosen() {
        let scores = [1f32, 0.5, -2.0, 0.25];
        let exp = scores.map(|s| f64::from(s).exp());
        let of = |total: f64, got: f32, e: usize| assert!((exp[e] / total - f64::from(got)).abs() < 1e-6, "{e}");
        for (is_normalised, total) in [(true, exp[0] + exp[1]), (false, exp.iter().sum())] {
            let chosen = chosen(2, is_normalised, &scores);
            assert_eq!(chosen.len(), 2);
            chosen.iter().for_each(|(expert, weight)| of(total, *weight, *expert));
        }
        assert_eq!(chosen(4, true, &scores).len(), 4, "all of them");
    }
}
