//! Who is in the next pass, and with how many positions. Pure.
//!
//! A decoded token costs a pass the reading of all weights, and a few more tokens in it cost almost nothing; so whoever
//! waits for a token goes first, and prompts fill what is left, in pieces, so that a long one holds nobody up for longer
//! than a short pass. (Continuous batching as in Orca, Yu et al. 2022; prompts in pieces as in Sarathi, Agrawal et al. 2023.)
//!
//! What there is is shared between clients and not between steps: places for tokens go round, one to each client in turn, and
//! a prompt's client gets as much room as any other that wants as much (max-min fairness, Bertsekas and Gallager, Data
//! Networks, 6.5.2). Eight long prompts of one client hold up the one prompt of another no longer than one would.
//!
//! Invariant: whoever has waited longest is in the pass, so is every client while there are no more of them than places, no more is
//! dealt than a pass holds, and nothing is left unused that somebody could have had.

use super::ClientId;
use crate::{
    cpu::work::{PASS_TOKENS_MAX, SAMPLED_MAX},
    stage::SESSIONS_USUAL,
};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Positions of a pass in which somebody waits for a token and somebody else has a prompt: what a token waits at most.
const MIXED_TOKENS_MAX: usize = 64;
/// Of those, what is kept for prompts, however many wait for tokens.
const PROMPT_TOKENS_LEAST: usize = 32;

/// A number for each of those who wait.
type Counts = SmallVec<[usize; SESSIONS_USUAL]>;

/// A step that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// Positions to compute yet; at least 1.
    pub left: usize,
    /// Whether the last of them gives a token.
    pub samples: bool,
    /// For whom.
    pub client: ClientId,
}

impl Waiting {
    fn is_decode(&self) -> bool {
        self.left == 1
    }
}

/// Positions that each of `waiting` gets in the next pass, some of them none. They share their weights and stand in the
/// order in which they have waited, the longest first. So many others are `absent`: they were just given a token, and will
/// wait for the next one before the pass is over.
pub(super) fn deal(waiting: &[Waiting], absent: usize) -> Counts {
    let (decodes, prompts): (Counts, Counts) = (0..waiting.len()).partition(|i| waiting[*i].is_decode());
    let is_mixed = !prompts.is_empty() && (absent > 0 || !decodes.is_empty());
    let mut pass = Pass { room: if is_mixed { MIXED_TOKENS_MAX } else { PASS_TOKENS_MAX }, tokens: SAMPLED_MAX };
    let kept = if is_mixed { PROMPT_TOKENS_LEAST } else { 0 };
    // A token that a prompt's end gives is one of those that the pass can give, so one place is the oldest's.
    let oldest_is_prompt = waiting.first().is_some_and(|w| !w.is_decode());
    let mut dealt: Counts = SmallVec::from_elem(0, waiting.len());
    pass.room -= kept;
    pass.tokens -= usize::from(oldest_is_prompt);
    for i in in_turn(waiting, decodes) {
        dealt[i] = pass.take(waiting[i], 1);
    }
    pass.room += kept;
    pass.tokens += usize::from(oldest_is_prompt);
    let mut shares = shares(waiting, &prompts, pass.room);
    for i in &prompts {
        let share = shares.entry(waiting[*i].client).or_default();
        dealt[*i] = pass.take(waiting[*i], *share);
        *share -= dealt[*i];
    }
    // What some could not use, since the pass gives no more tokens, others can.
    for i in prompts {
        let rest = Waiting { left: waiting[i].left - dealt[i], ..waiting[i] };
        if rest.left > 0 {
            dealt[i] += pass.take(rest, usize::MAX);
        }
    }
    dealt
}

/// Steps one of each client in turn, in the order in which they wait.
fn in_turn(waiting: &[Waiting], steps: Counts) -> impl Iterator<Item = usize> {
    let before = |at: usize| steps[..at].iter().filter(|i| waiting[**i].client == waiting[steps[at]].client).count();
    let mut turns: SmallVec<[(usize, usize); SESSIONS_USUAL]> = (0..steps.len()).map(|at| (before(at), at)).collect();
    turns.sort_unstable();
    turns.into_iter().map(move |(_, at)| steps[at])
}

/// How much of `room` each client's prompts get: as much as any other that wants as much, the longest waiting first where it does
/// not come out even.
fn shares(waiting: &[Waiting], prompts: &[usize], room: usize) -> BTreeMap<ClientId, usize> {
    let mut wanted: Vec<(ClientId, usize)> = Vec::new();
    for i in prompts {
        let Waiting { client, left, .. } = waiting[*i];
        match wanted.iter_mut().find(|(known, _)| *known == client) {
            Some((_, all)) => *all += left,
            None => wanted.push((client, left)),
        }
    }
    let mut shares: BTreeMap<ClientId, usize> = BTreeMap::new();
    let mut room = room;
    while room > 0 && !wanted.is_empty() {
        let each = (room / wanted.len()).max(1);
        wanted.retain_mut(|(client, left)| {
            let given = each.min(*left).min(room);
            *shares.entry(*client).or_default() += given;
            room -= given;
            *left -= given;
            *left > 0
        });
    }
    shares
}

/// What a pass can still hold.
struct Pass {
    room: usize,
    tokens: usize,
}

impl Pass {
    /// As much of a step as fits and `most` allows; its last position only if the pass can give one more token.
    fn take(&mut self, step: Waiting, most: usize) -> usize {
        let mut count = step.left.min(self.room).min(most);
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

    fn counts(waiting: &[Waiting], absent: usize) -> Vec<usize> {
        deal(waiting, absent).into_vec()
    }
    use proptest::prelude::*;

    fn waiting() -> impl Strategy<Value = Vec<Waiting>> {
        let left = prop_oneof![3 => Just(1usize), 1 => 2usize..400];
        let one = (left, any::<bool>(), 0u64..6).prop_map(|(left, samples, client)| Waiting {
            left,
            samples,
            client: ClientId(client),
        });
        prop::collection::vec(one, 1..80)
    }

    proptest! {
        #[test]
        fn a_pass_holds_what_was_dealt_and_the_oldest_is_in_it(waiting in waiting(), absent in 0usize..3) {
            let dealt = counts(&waiting, absent);
            let ends = |(w, n): (&Waiting, &usize)| w.samples && w.left == *n;
            prop_assert!(dealt[0] > 0, "{dealt:?}");
            prop_assert!(dealt.iter().sum::<usize>() <= PASS_TOKENS_MAX);
            prop_assert!(waiting.iter().zip(&dealt).all(|(w, n)| *n <= w.left));
            prop_assert!(waiting.iter().zip(&dealt).filter(|both| ends(*both)).count() <= SAMPLED_MAX);
        }

        #[test]
        fn nobody_waits_while_there_is_room(waiting in waiting()) {
            let dealt = counts(&waiting, 0);
            let is_mixed = waiting.iter().any(|w| w.left == 1) && waiting.iter().any(|w| w.left > 1);
            let room = if is_mixed { MIXED_TOKENS_MAX } else { PASS_TOKENS_MAX } - dealt.iter().sum::<usize>();
            let given = waiting.iter().zip(&dealt).filter(|(w, n)| w.samples && w.left == **n).count();
            for (w, n) in waiting.iter().zip(&dealt).filter(|(w, n)| **n < w.left && w.left > 1) {
                prop_assert!(room == 0 || (w.samples && *n + 1 == w.left && given == SAMPLED_MAX), "{w:?} got {n} of {dealt:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_client_waits_for_another_s_many_steps(waiting in waiting(), absent in 0usize..3) {
            let dealt = counts(&waiting, absent);
            let of = |client: u64, prompts: bool| {
                let steps = waiting.iter().zip(&dealt).filter(move |(w, _)| w.client.0 == client && prompts == (w.left > 1));
                steps.fold((0, 0), |(left, dealt), (w, n)| (left + w.left, dealt + n))
            };
            let given = waiting.iter().zip(&dealt).filter(|(w, n)| w.samples && w.left == **n).count();
            for (a, b) in (0..6).flat_map(|a| (0..6).map(move |b| (a, b))).filter(|_| given + 1 < SAMPLED_MAX) {
                let ((wanted, got), (_, others)) = (of(a, true), of(b, true));
                prop_assert!(got == wanted || others <= got + 1, "client {a} got {got} of {wanted}, {b} got {others}: {dealt:?}");
                let ((wanted, got), (_, others)) = (of(a, false), of(b, false));
                prop_assert!(got == wanted || others <= got + 1, "client {a} got {got} tokens of {wanted}, {b} {others}");
            }
        }
    }

    #[test]
    fn eight_long_prompts_of_one_client_hold_up_another_s_no_longer_than_one_does() {
        let step = |left, client| Waiting { left, samples: true, client: ClientId(client) };
        let mut waiting = vec![step(1000, 1); 8];
        waiting.push(step(500, 2));
        let dealt = counts(&waiting, 0);
        assert_eq!((dealt[0], dealt[8]), (PASS_TOKENS_MAX / 2, PASS_TOKENS_MAX / 2));
        let mut short = vec![step(1000, 1); 8];
        short.push(step(20, 2));
        let dealt = counts(&short, 0);
        assert_eq!((dealt[0], dealt[8]), (PASS_TOKENS_MAX - 20, 20), "what it does not need is the others'");
        let mut tokens = vec![step(1, 1); 40];
        tokens.push(step(1, 2));
        assert_eq!(counts(&tokens, 0)[40], 1, "a token's place, too");
    }

    #[test]
    fn a_prompt_does_not_hold_up_who_waits_for_a_token() {
        let client = ClientId(1);
        let (prompt, token) =
            (Waiting { left: 1000, samples: true, client }, Waiting { left: 1, samples: true, client });
        assert_eq!(counts(&[prompt], 0), [PASS_TOKENS_MAX]);
        assert_eq!(counts(&[prompt], 1), [MIXED_TOKENS_MAX], "who is about to wait counts too");
        assert_eq!(counts(&[prompt, token, token], 0), [MIXED_TOKENS_MAX - 2, 1, 1]);
        assert_eq!(counts(&[prompt, prompt], 0), [PASS_TOKENS_MAX, 0], "one after the other");
    }
}
