//! Penalties and biases, added to logits before anything is drawn.
//!
//! As the OpenAI API defines them: `logit += bias - count * frequency_penalty - (count > 0) * presence_penalty`, where `count`
//! is how often the token was generated; the prompt does not count.

use super::Demands;
use std::collections::BTreeMap;

/// Most ids with a bias: as many as other servers take, and enough to forbid a word in every spelling.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Penalties are between minus and plus this.
pub const PENALTY_MAX: f32 = 2.0;

/// Adds what the demands say, given the generated ids. Ids that the model has not are passed over.
pub(super) fn adjust(logits: &mut [f32], demands: &Demands, generated: &[u32]) {
    for (id, bias) in &demands.logit_bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    let (frequency, presence) = (demands.frequency_penalty, demands.presence_penalty);
    if frequency == 0.0 && presence == 0.0 {
        return;
    }
    for (id, count) in counts(generated) {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= count as f32 * frequency + presence;
        }
    }
}

fn counts(ids: &[u32]) -> BTreeMap<u32, u32> {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(*id).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_generated_often_loses_more_and_a_bias_is_added() {
        let mut logits = vec![1.0, 1.0, 1.0, 1.0];
        let logit_bias = vec![(0, -100.0), (3, 0.5), (9, 1.0)];
        let demands = Demands { frequency_penalty: 0.25, presence_penalty: 0.5, logit_bias, ..Demands::default() };
        adjust(&mut logits, &demands, &[2, 1, 2, 77]);
        assert_eq!(logits, [-99.0, 0.25, 0.0, 1.5]);
    }
}
