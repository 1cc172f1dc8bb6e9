//! Log-probabilities of tokens: the model's own distribution, as its logits say it, before temperature, penalties, biases and
//! grammars. So they are comparable between requests, and a forced token shows how unlikely it was.
//!
//! Sums run over ids in order and in f64: equal logits give equal bits.

use std::cmp::Ordering;

/// Most tokens told beside the chosen one, as in the OpenAI API.
pub const LOGPROBS_MAX: u32 = 20;

/// How likely a token was, and which were likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token; minus infinity where its logit is no number.
    pub chosen: f32,
    /// The likeliest first, of equals the lowest id; as many as were asked for.
    pub best: Vec<(u32, f32)>,
}

/// The log-probability of `token` and of the `count` likeliest.
pub(super) fn logprobs(logits: &[f32], token: u32, count: u32) -> Logprobs {
    let normaliser = log_sum_exp(logits);
    let of = |id: u32| logits.get(id as usize).map_or(f32::NEG_INFINITY, |logit| log_probability(*logit, normaliser));
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|id| !logits[*id as usize].is_nan()).collect();
    let by_logit =
        |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
    let count = (count.min(LOGPROBS_MAX) as usize).min(ids.len());
    if count < ids.len() && count > 0 {
        ids.select_nth_unstable_by(count - 1, by_logit);
    }
    ids.truncate(count);
    ids.sort_unstable_by(by_logit);
    Logprobs { chosen: of(token), best: ids.into_iter().map(|id| (id, of(id))).collect() }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let numbers = || logits.iter().filter(|logit| !logit.is_nan()).map(|logit| f64::from(*logit));
    let top = numbers().fold(f64::NEG_INFINITY, f64::max);
    if !top.is_finite() {
        return top;
    }
    top + numbers().map(|logit| (logit - top).exp()).sum::<f64>().ln()
}

fn log_probability(logit: f32, normaliser: f64) -> f32 {
    let value = (f64::from(logit) - normaliser) as f32;
    // Infinities among the logits: nothing sensible can be said.
    if value.is_nan() { f32::NEG_INFINITY } else { value.min(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn they_are_those_of_a_softmax_and_the_likeliest_come_first() {
        let logits = [0.2f32.ln() + 7.0, 0.5f32.ln() + 7.0, f32::NAN, 0.3f32.ln() + 7.0];
        let told = logprobs(&logits, 0, 2);
        assert!((told.chosen.exp() - 0.2).abs() < 1e-6, "{told:?}");
        assert_eq!(told.best.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3]);
        assert!((told.best[0].1.exp() - 0.5).abs() < 1e-6);
        assert!(logprobs(&logits, 0, 0).best.is_empty());
    }

    proptest! {
        #[test]
        fn any_floats_are_survived_and_none_is_nan(
            logits in prop::collection::vec(any::<f32>(), 0..40), token in 0u32..50, count in 0u32..60
        ) {
            let told = logprobs(&logits, token, count);
            prop_assert!(!told.chosen.is_nan() && told.best.iter().all(|(_, l)| !l.is_nan() && *l <= 0.0));
            prop_assert!(told.best.len() <= LOGPROBS_MAX as usize);
        }

        #[test]
        fn probabilities_of_all_tokens_sum_to_one(logits in prop::collection::vec(-30.0f32..30.0, 1..20)) {
            let sum: f32 = (0..logits.len() as u32).map(|id| logprobs(&logits, id, 0).chosen.exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        }
    }
}
