//! Whose weights get the next pass. Pure.
//!
//! Sessions on one set of weights share passes ([`super::deal`]), those on different ones take turns. They do so by client:
//! the next pass is for the client that was served longest ago, and for the one of its sessions that has waited longest. So a
//! client with many sessions on one model holds up another's one session on another model for one pass.
//! (Round robin over flows and not over packets, as in Nagle, RFC 970, 1985.)
//!
//! A client counts as served when its longest waiting session had a turn: its others can be in the passes of other clients
//! again and again without that one. Who comes counts as served just now, so coming again under another name gains nothing.
//!
//! Invariant: a client that waits is served before any other is served twice, and with it the longest waiting of its sessions; so
//! every session has its turn. Sessions of one client keep their order.

use super::ClientId;
use std::collections::BTreeMap;

/// When each client was served last.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Passes so far.
    passes: u64,
    served: BTreeMap<ClientId, u64>,
}

impl Turns {
    /// A client has a session.
    pub fn came(&mut self, client: ClientId) {
        self.served.entry(client).or_insert(self.passes);
    }

    /// Which in a line of sessions' clients is next, the longest waiting standing first. None in an empty one.
    pub fn next(&self, line: impl Iterator<Item = ClientId>) -> Option<usize> {
        line.enumerate().min_by_key(|(at, client)| (self.served.get(client), *at)).map(|(at, _)| at)
    }

    /// Notes for whom of a line a pass was, and of which of their sessions.
    pub fn note(&mut self, line: impl Iterator<Item = (ClientId, bool)> + Clone) {
        self.passes += 1;
        for (client, _) in line.clone().filter(|(_, is_in)| *is_in) {
            if line.clone().find(|(other, _)| *other == client).is_some_and(|(_, is_in)| is_in) {
                self.served.insert(client, self.passes);
            }
        }
    }

    /// Forgets clients that are gone.
    pub fn retain(&mut self, is_here: impl Fn(ClientId) -> bool) {
        self.served.retain(|client, _| is_here(*client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::work::PASS_TOKENS_MAX,
        engine::deal::{Waiting, deal},
    };
    use proptest::prelude::*;

    /// All of whom are in the pass.
    fn served(line: &[u64]) -> impl Iterator<Item = (ClientId, bool)> + Clone {
        line.iter().map(|client| (ClientId(*client), true))
    }

    fn clients(line: &[u64]) -> impl Iterator<Item = ClientId> {
        line.iter().copied().map(ClientId)
    }

    #[test]
    fn a_lone_client_keeps_its_order_and_an_empty_line_has_no_next() {
        let mut turns = Turns::default();
        turns.note(served(&[1]));
        assert_eq!((turns.next(clients(&[1, 1, 1])), turns.next(clients(&[]))), (Some(0), None));
    }

    #[test]
    fn whoever_waits_is_served_before_another_is_served_twice() {
        // Lines of sessions of four clients in any mixture, each on weights of its own: a pass is for one of them.
        let mut dice = crate::tiny::Dice(5);
        for _ in 0..200 {
            let mut turns = Turns::default();
            let mut line: Vec<u64> = (0..12).map(|_| dice.next() % 4).collect();
            let here: std::collections::BTreeSet<u64> = line.iter().copied().collect();
            here.iter().for_each(|client| turns.came(ClientId(*client)));
            let mut last: BTreeMap<u64, usize> = BTreeMap::new();
            for pass in 0..40 {
                let at = turns.next(clients(&line)).expect("somebody waits");
                let client = line.remove(at);
                turns.note(served(&[client]));
                let before = last.insert(client, pass).unwrap_or(0);
                assert!(pass - before <= here.len(), "{client} waited from {before} to {pass}: {line:?}");
                line.push(client);
            }
            assert_eq!(last.len(), here.len(), "nobody was left out");
        }
    }

    #[test]
    fn who_comes_is_behind_who_waits_and_gains_nothing_by_coming_again() {
        let mut turns = Turns::default();
        turns.came(ClientId(1));
        turns.note(served(&[1]));
        turns.came(ClientId(2));
        assert_eq!(turns.next(clients(&[1, 2])), Some(0), "as if served with it");
        turns.note(served(&[1]));
        assert_eq!(turns.next(clients(&[1, 1, 2])), Some(2));
        turns.note(served(&[2]));
        turns.retain(|client| client == ClientId(1));
        turns.came(ClientId(2));
        assert_eq!(turns.next(clients(&[2, 1])), Some(1));
    }

    /// Sessions as the engine moves them on: of which client, on which weights, and how many positions each asks for again and again.
    struct Simulation {
        turns: Turns,
        /// With the number of each, in the order in which they wait.
        line: Vec<(usize, Waiting)>,
        asked: Vec<(u64, usize, usize)>,
        totals: BTreeMap<u64, usize>,
    }

    impl Simulation {
        fn new(asked: Vec<(u64, usize, usize)>) -> Self {
            let mut turns = Turns::default();
            asked.iter().for_each(|(client, ..)| turns.came(ClientId(*client)));
            let step = |(client, _, left): &(u64, usize, usize)| Waiting {
                left: *left,
                samples: true,
                client: ClientId(*client),
            };
            let line = asked.iter().map(step).enumerate().collect();
            Self { turns, line, asked, totals: BTreeMap::new() }
        }

        /// Who was in the next pass.
        fn pass(&mut self) -> Vec<usize> {
            let at = self.turns.next(self.line.iter().map(|(_, step)| step.client)).expect("somebody waits");
            let first = self.line.remove(at);
            self.line.insert(0, first);
            let weights = |session: usize| self.asked[session].1;
            let (sharing, waiting): (Vec<usize>, Vec<Waiting>) =
                self.line.iter().copied().filter(|(session, _)| weights(*session) == weights(first.0)).unzip();
            let dealt: BTreeMap<usize, usize> =
                sharing.into_iter().zip(deal(&waiting, 0)).filter(|(_, count)| *count > 0).collect();
            self.turns.note(self.line.iter().map(|(session, step)| (step.client, dealt.contains_key(session))));
            let (mut through, others) =
                self.line.iter().copied().partition::<Vec<_>, _>(|(session, _)| dealt.contains_key(session));
            for (session, step) in &mut through {
                *self.totals.entry(step.client.0).or_default() += dealt[session];
                step.left -= dealt[session];
                step.left = if step.left == 0 { self.asked[*session].2 } else { step.left };
            }
            self.line = [others, through].concat();
            dealt.into_keys().collect()
        }
    }

    proptest! {
        #[test]
        fn a_lone_client_is_served_in_the_order_of_its_line(asked in prop::collection::vec((Just(1), 0usize..4, 1usize..400), 1..12)) {
            let mut simulation = Simulation::new(asked);
            for _ in 0..100 {
                let front = simulation.line[0].0;
                prop_assert!(simulation.pass().contains(&front));
            }
        }

        /// However clients and weights cross.
        #[test]
        fn nobody_waits_for_more_turns_than_clients_and_own_sessions_have(
            asked in prop::collection::vec((0u64..4, 0usize..4, 1usize..400), 1..12),
        ) {
            let mut waits = vec![0; asked.len()];
            let mut simulation = Simulation::new(asked);
            for _ in 0..300 {
                waits.iter_mut().for_each(|passes| *passes += 1);
                simulation.pass().into_iter().for_each(|session| waits[session] = 0);
                prop_assert!(waits.iter().all(|passes| *passes < 4 * waits.len()), "{waits:?}");
            }
        }

        /// Seven sessions of one client on any sets of weights, one session of another client on one of its own, or all on the same.
        #[test]
        fn two_clients_that_always_have_work_get_the_same_whoever_has_more_sessions(
            sets in prop::collection::vec(1usize..4, 7),
            is_apart in any::<bool>(),
            at in 0usize..8,
            left in 10_000usize..20_000,
        ) {
            let mut asked: Vec<_> = sets.into_iter().map(|set| (1, if is_apart { set } else { 0 }, left)).collect();
            asked.insert(at, (2, 0, 1_000_000));
            let mut simulation = Simulation::new(asked);
            for pass in 1..=200 {
                simulation.pass();
                let [many, one] = [1, 2].map(|client| simulation.totals.get(&client).copied().unwrap_or(0));
                prop_assert!(many.abs_diff(one) <= PASS_TOKENS_MAX, "after {pass} passes {many} and {one}");
                prop_assert_eq!(many + one, pass * PASS_TOKENS_MAX, "no pass is half empty");
            }
        }
    }
}
