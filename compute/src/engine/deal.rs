//! Who is in the next pass, and with how many positions. Pure.
//!
//! A decoded token costs a pass the reading of all weights, and a few more tokens in it cost almost nothing; so whoever
//! waits for a token goes first, and prompts fill what is left, in pieces, so that a long one holds nobody up for longer
//! than a short pass. (Continuous batching as in Orca, Yu et al. 2022; prompts in pieces as in Sarathi, Agrawal et al. 2023.)
//!
//! Invariant: whoever has waited longest is in the pass, no more is dealt than a pass holds, and nothing is left unused that
//! somebody could have had.

use crate::cpu::work::{PASS_TOKENS_MAX, SAMPLED_MAX};

/// Positions of a pass in which somebody waits for a token and somebody else has a prompt: what a token waits at most.
const MIXED_TOKENS_MAX: usize = 64;
/// Of those, what is kept for prompts, however many wait for tokens.
const PROMPT_TOKENS_LEAST: usize = 32;

/// A step that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// Positions to compute yet; at least 1.
    pub left: usize,
    /// Whether the last of them gives a token.
    pub samples: bool,
}

impl Waiting {
    fn is_decode(&self) -> bool {
        self.left == 1
    }
}

/// Positions that each of `waiting` gets in the next pass, some of them none. They share their weights and stand in the
/// order in which they have waited, the longest first. So many others are `absent`: they were just given a token, and will
/// wait for the next one before the pass is over.
pub(super) fn deal(waiting: &[Waiting], absent: usize) -> Vec<usize> {
    let has_prompt = waiting.iter().any(|w| !w.is_decode());
    let is_mixed = has_prompt && (absent > 0 || waiting.iter().any(Waiting::is_decode));
    let mut pass = Pass { room: if is_mixed { MIXED_TOKENS_MAX } else { PASS_TOKENS_MAX }, tokens: SAMPLED_MAX };
    let kept = if is_mixed { PROMPT_TOKENS_LEAST } else { 0 };
    // A token that a prompt's end gives is one of those that the pass can give, so one place is the oldest's.
    let oldest_is_prompt = waiting.first().is_some_and(|w| !w.is_decode());
    let mut dealt = vec![0; waiting.len()];
    pass.room -= kept;
    pass.tokens -= usize::from(oldest_is_prompt);
    for (w, dealt) in waiting.iter().zip(&mut dealt).filter(|(w, _)| w.is_decode()) {
        *dealt = pass.take(*w);
    }
    pass.room += kept;
    pass.tokens += usize::from(oldest_is_prompt);
    for (w, dealt) in waiting.iter().zip(&mut dealt).filter(|(w, _)| !w.is_decode()) {
        *dealt = pass.take(*w);
    }
    dealt
}

/// What a pass can still hold.
struct Pass {
    room: usize,
    tokens: usize,
}

impl Pass {
    /// As much of a step as fits; its last position only if the pass can give one more token.
    fn take(&mut self, step: Waiting) -> usize {
        let mut count = step.left.min(self.room);
        if step.samples && count == step.left {
            match self.tokens {
                0 => count -= 1,
                _ => self.tokens -= 1,
            }
        }
        self.room -= count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiting() -> impl Strategy<Value = Vec<Waiting>> {
        let left = prop_oneof![3 => Just(1usize), 1 => 2usize..400];
        let one = (left, any::<bool>()).prop_map(|(left, samples)| Waiting { left, samples });
        prop::collection::vec(one, 1..80)
    }

    proptest! {
        #[test]
        fn a_pass_holds_what_was_dealt_and_the_oldest_is_in_it(waiting in waiting(), absent in 0usize..3) {
            let dealt = deal(&waiting, absent);
            let ends = |(w, n): (&Waiting, &usize)| w.samples && w.left == *n;
            prop_assert!(dealt[0] > 0, "{dealt:?}");
            prop_assert!(dealt.iter().sum::<usize>() <= PASS_TOKENS_MAX);
            prop_assert!(waiting.iter().zip(&dealt).all(|(w, n)| *n <= w.left));
            prop_assert!(waiting.iter().zip(&dealt).filter(|both| ends(*both)).count() <= SAMPLED_MAX);
        }

        #[test]
        fn nobody_waits_while_there_is_room(waiting in waiting()) {
            let dealt = deal(&waiting, 0);
            let is_mixed = waiting.iter().any(|w| w.left == 1) && waiting.iter().any(|w| w.left > 1);
            let room = if is_mixed { MIXED_TOKENS_MAX } else { PASS_TOKENS_MAX } - dealt.iter().sum::<usize>();
            let given = waiting.iter().zip(&dealt).filter(|(w, n)| w.samples && w.left == **n).count();
            for (w, n) in waiting.iter().zip(&dealt).filter(|(w, n)| **n < w.left && w.left > 1) {
                prop_assert!(room == 0 || (w.samples && *n + 1 == w.left && given == SAMPLED_MAX), "{w:?} got {n} of {dealt:?}");
            }
        }
    }

    #[test]
    fn a_prompt_does_not_hold_up_who_waits_for_a_token() {
        let (prompt, token) = (Waiting { left: 1000, samples: true }, Waiting { left: 1, samples: true });
        assert_eq!(deal(&[prompt], 0), [PASS_TOKENS_MAX]);
        assert_eq!(deal(&[prompt], 1), [MIXED_TOKENS_MAX], "who is about to wait counts too");
        assert_eq!(deal(&[prompt, token, token], 0), [MIXED_TOKENS_MAX - 2, 1, 1]);
        assert_eq!(deal(&[prompt, prompt], 0), [PASS_TOKENS_MAX, 0], "one after the other");
    }
}
