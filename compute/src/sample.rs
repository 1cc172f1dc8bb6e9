//! Chooses a token from logits.
//!
//! Not a stateful generator: the dice are a function of (seed, position, sample index), so the choice at a position is
//! the same whoever computes it, in whatever order, before or after a recovery. Invariant: equal logits, settings,
//! position and history give an equal token, and the token's logit is a number (never NaN) if any is.
//!
//! The generator is Philox 4×32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
//! section 4.3): key = seed, counter = (position, sample index).
//!
//! Order of the steps, as in most engines: repetition penalty (Keskar et al. 2019, CTRL, section 4.1), temperature,
//! top-k, softmax, top-p (the smallest set of likeliest tokens that reaches p, as in Holtzman et al. 2020), min-p (Nguyen et
//! al. 2024), draw. What else a request may ask of its tokens comes before all of these and is [`choose`](crate::choose)'s.

use std::cmp::Ordering;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy (and so is anything that is not a positive number).
    pub temperature: f32,
    /// Only the k likeliest; 0 is all.
    pub top_k: u32,
    /// Only the likeliest whose probabilities reach p together; 1 (or 0, as in an unset field) is all.
    pub top_p: f32,
    /// Of the dice.
    pub seed: u64,
    /// Divides positive and multiplies negative logits of ids in the history; 1 (or 0) is none.
    pub repetition_penalty: f32,
    /// Only tokens at least so likely as this part of the likeliest; 0 is all.
    pub min_p: f32,
    /// Which of several samples of one prompt this is: each has its own dice.
    pub index: u32,
}

impl Sampling {
    /// The likeliest token each time.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0, repetition_penalty: 1.0, min_p: 0.0, index: 0 };

    /// Whether the choice looks at the history, so that the last stage needs the prompt's ids.
    pub fn needs_history(&self) -> bool {
        is_penalty(self.repetition_penalty)
    }
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling::GREEDY
    }
}

/// [`Sampler::choose`], once.
pub fn choose(logits: &[f32], sampling: &Sampling, position: u64, history: &[u32]) -> u32 {
    Sampler::default().choose(logits, sampling, position, history)
}

/// Room for choosing tokens, kept from one to the next; what is chosen does not depend on it.
#[derive(Debug, Default)]
pub struct Sampler {
    penalised: Vec<f32>,
    ids: Vec<u32>,
    candidates: Vec<Weighted>,
}

impl Sampler {
    /// The token for `position` (its own place in prompt + generated). `history` is every id before it; only the penalty
    /// reads it.
    ///
    /// NaN logits are never chosen; if all are NaN, or there are none, the answer is 0. Ties go to the lowest id.
    pub fn choose(&mut self, logits: &[f32], sampling: &Sampling, position: u64, history: &[u32]) -> u32 {
        if !sampling.needs_history() || history.is_empty() {
            return choose_from(logits, &mut self.candidates, sampling, position);
        }
        self.penalised.clear();
        self.penalised.extend_from_slice(logits);
        self.ids.clear();
        self.ids.extend_from_slice(history);
        penalise(&mut self.penalised, &mut self.ids, sampling.repetition_penalty);
        choose_from(&self.penalised, &mut self.candidates, sampling, position)
    }
}

fn choose_from(logits: &[f32], candidates: &mut Vec<Weighted>, sampling: &Sampling, position: u64) -> u32 {
    let greedy = likeliest(logits);
    let is_hot = sampling.temperature > 0.0;
    let Some(top) = logits.get(greedy as usize).filter(|l| is_hot && l.is_finite()) else { return greedy };
    candidates.clear();
    candidates.extend(weighted(logits, *top, sampling.temperature));
    if sampling.top_k > 0 {
        keep_best(candidates, sampling.top_k as usize);
    }
    if sampling.top_p > 0.0 && sampling.top_p < 1.0 {
        keep_nucleus(candidates, f64::from(sampling.top_p));
    }
    if sampling.min_p > 0.0 && sampling.min_p <= 1.0 {
        // The likeliest weighs 1.
        candidates.retain(|(_, weight)| *weight >= f64::from(sampling.min_p));
    }
    draw(candidates, uniform(sampling.seed, position, u64::from(sampling.index))).unwrap_or(greedy)
}

/// The lowest id among the greatest logits, NaN aside.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if !logit.is_nan() && best.is_none_or(|(_, known)| logit > known) {
            best = Some((id, logit));
        }
    }
    best.map_or(0, |(id, _)| id as u32)
}

fn is_penalty(penalty: f32) -> bool {
    penalty.is_finite() && penalty > 0.0 && penalty != 1.0
}

/// Each id counts once, however often it stands in the history, which is sorted for that.
fn penalise(logits: &mut [f32], history: &mut Vec<u32>, penalty: f32) {
    history.sort_unstable();
    history.dedup();
    for id in history {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// An id and its probability, not normalised. In f64, so that the tail of a large vocabulary is not lost in the sum.
type Weighted = (u32, f64);

fn weighted(logits: &[f32], top: f32, temperature: f32) -> impl Iterator<Item = Weighted> {
    let weight = move |logit: f32| ((f64::from(logit) - f64::from(top)) / f64::from(temperature)).exp();
    logits.iter().enumerate().filter(|(_, l)| !l.is_nan()).map(move |(id, l)| (id as u32, weight(*l)))
}

/// Likeliest first; of equals the lowest id.
fn by_weight(a: &Weighted, b: &Weighted) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the `count` likeliest, sorted. Only those are sorted: a whole vocabulary would take longer than the model's lap.
fn keep_best(candidates: &mut Vec<Weighted>, count: usize) {
    sort_best(candidates, count);
    candidates.truncate(count);
}

/// Puts the `count` likeliest first, sorted.
fn sort_best(candidates: &mut [Weighted], count: usize) {
    let count = count.min(candidates.len());
    if count > 0 && count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, by_weight);
    }
    candidates[..count].sort_unstable_by(by_weight);
}

/// Keeps the smallest set of likeliest tokens that reaches `p` of the whole, sorted.
fn keep_nucleus(candidates: &mut Vec<Weighted>, p: f64) {
    let target = candidates.iter().map(|c| c.1).sum::<f64>() * p;
    let mut tried = 64;
    loop {
        sort_best(candidates, tried);
        let mut reached = 0.0;
        let last = candidates.iter().take(tried).position(|(_, weight)| {
            reached += weight;
            reached >= target
        });
        if last.is_some() || tried >= candidates.len() {
            return candidates.truncate(last.map_or(candidates.len(), |at| at + 1));
        }
        tried *= 8;
    }
}

/// The candidate at `uniform` of the way through; `None` if none has any weight.
fn draw(candidates: &[Weighted], uniform: f64) -> Option<u32> {
    let target = candidates.iter().map(|c| c.1).sum::<f64>() * uniform;
    let mut reached = 0.0;
    let found = candidates.iter().find(|(_, weight)| {
        reached += weight;
        target < reached
    });
    // Rounding can leave the target at the very end.
    found.or_else(|| candidates.iter().rfind(|(_, weight)| *weight > 0.0)).map(|(id, _)| *id)
}

/// A number in [0, 1) that depends on nothing but its arguments.
pub fn uniform(seed: u64, position: u64, index: u64) -> f64 {
    let [a, b, ..] = philox(seed, position, index);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// Philox 4×32-10.
fn philox(key: u64, low: u64, high: u64) -> [u32; 4] {
    const MULTIPLY: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut c = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    let mut k = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let (p, q) = (MULTIPLY[0] * u64::from(c[0]), MULTIPLY[1] * u64::from(c[2]));
        c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hot(seed: u64) -> Sampling {
        Sampling { temperature: 0.9, seed, ..Sampling::GREEDY }
    }

    #[test]
    fn philox_gives_the_known_answers_of_its_authors() {
        // Random123's kat_vectors for philox4x32 with 10 rounds.
        assert_eq!(philox(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, u64::MAX, u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let counter = (0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e);
        assert_eq!(
            philox(0x299f_31d0_a409_3822, counter.0, counter.1),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits_and_never_nan() {
        assert_eq!(choose(&[f32::NAN, 1.0, 3.0, 3.0], &Sampling::GREEDY, 0, &[]), 2);
        assert_eq!(choose(&[f32::NAN; 3], &hot(1), 0, &[]), 0);
        assert_eq!(choose(&[], &hot(1), 0, &[]), 0);
        assert_eq!(choose(&[f32::NEG_INFINITY, f32::INFINITY, 0.0], &hot(1), 0, &[]), 1);
    }

    #[test]
    fn a_strong_penalty_turns_greedy_away_from_the_history() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
        assert_eq!(choose(&[4.0, 3.0, -1.0], &sampling, 3, &[0, 0, 9]), 1);
        assert_eq!(choose(&[-1.0, -1.5, -9.0], &sampling, 3, &[0]), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let sampling = Sampling { temperature: 1.0, seed: 11, ..Sampling::GREEDY };
        let mut counts = [0u32; 3];
        for position in 0..20_000 {
            counts[choose(&logits, &sampling, position, &[]) as usize] += 1;
        }
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (logit, count) in logits.iter().zip(counts) {
            let expected = f64::from(*logit).exp() / total;
            assert!((f64::from(count) / 20_000.0 - expected).abs() < 0.012, "{counts:?}");
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // Probabilities 0.6, 0.3, 0.1.
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let seen = |top_p: f32| {
            let sampling = Sampling { temperature: 1.0, top_p, seed: 5, ..Sampling::GREEDY };
            (0..2_000).map(|p| choose(&logits, &sampling, p, &[])).collect::<std::collections::BTreeSet<u32>>().len()
        };
        assert_eq!((seen(0.5), seen(0.61), seen(0.89), seen(0.95), seen(1.0)), (1, 2, 2, 3, 3));
    }

    #[test]
    fn min_p_keeps_what_is_likely_beside_the_likeliest() {
        // Probabilities 0.6, 0.3, 0.1.
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let seen = |min_p: f32| {
            let sampling = Sampling { temperature: 1.0, min_p, seed: 5, ..Sampling::GREEDY };
            (0..2_000).map(|p| choose(&logits, &sampling, p, &[])).collect::<std::collections::BTreeSet<u32>>().len()
        };
        assert_eq!((seen(0.0), seen(0.1), seen(0.4), seen(0.6), seen(1.0)), (3, 3, 2, 1, 1));
    }

    #[test]
    fn samples_of_one_prompt_have_dice_of_their_own() {
        let logits = [0.0f32; 64];
        let drawn = |index| {
            let sampling = Sampling { index, ..hot(3) };
            (0..32).map(|position| choose(&logits, &sampling, position, &[])).collect::<Vec<u32>>()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(0), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn a_flat_vocabulary_has_a_nucleus_of_its_share() {
        let mut flat: Vec<Weighted> = (0..5_000).map(|id| (id, 1.0)).collect();
        keep_nucleus(&mut flat, 0.5);
        assert_eq!(flat.iter().map(|c| c.0).collect::<Vec<_>>(), (0..2_500).collect::<Vec<u32>>());
    }

    proptest! {
        #[test]
        fn the_choice_is_allowed_by_top_k_and_depends_on_nothing_but_its_arguments(
            logits in prop::collection::vec(prop_oneof![9 => -20.0f32..20.0, 1 => Just(f32::NAN), 1 => Just(f32::NEG_INFINITY)], 1..80),
            top_k in 0u32..10, top_p in 0.0f32..1.2, seed: u64, position: u64, temperature in 0.01f32..3.0,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, seed, ..Sampling::GREEDY };
            let id = choose(&logits, &sampling, position, &[]);
            prop_assert_eq!(id, choose(&logits, &sampling, position, &[1, 2, 3]));
            if logits.iter().any(|l| !l.is_nan()) {
                let chosen = logits[id as usize];
                prop_assert!(!chosen.is_nan());
                let above = logits.iter().enumerate().filter(|(i, l)| **l > chosen || (**l == chosen && (*i as u32) < id)).count();
                prop_assert!(top_k == 0 || above < top_k as usize);
            }
        }

        #[test]
        fn top_k_of_one_is_greedy(logits in prop::collection::vec(-20.0f32..20.0, 1..80), seed: u64, position: u64) {
            let sampling = Sampling { top_k: 1, ..hot(seed) };
            prop_assert_eq!(choose(&logits, &sampling, position, &[]), choose(&logits, &Sampling::GREEDY, position, &[]));
        }

        #[test]
        fn any_floats_are_survived(logits in prop::collection::vec(any::<f32>(), 0..40), t: f32, p: f32, r: f32, m: f32, k: u32) {
            let sampling =
                Sampling { temperature: t, top_k: k, top_p: p, seed: 1, repetition_penalty: r, min_p: m, index: 9 };
            let id = choose(&logits, &sampling, 7, &[0, 3, 500]);
            prop_assert!(id == 0 || (id as usize) < logits.len());
        }
    }
}
