//! Whose weights get the next pass. Pure.
//!
//! Sessions on one set of weights share passes ([`super::deal`]), those on different ones take turns. They do so by client:
//! the next pass is for a client that none was for as long as for any other, and for the one of its sessions that has waited
//! longest. So a client with many sessions on one model holds up another's one session on another model for one pass.
//!
//! Invariant: a client that waits is served before any other is served twice; sessions of one client keep their order.

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
    /// Which in a line of sessions' clients is next, the longest waiting standing first. None in an empty one.
    pub fn next(&self, line: impl Iterator<Item = ClientId>) -> Option<usize> {
        // Passes are counted from 1, so whoever is new comes first.
        let served = |client: &ClientId| self.served.get(client).copied().unwrap_or(0);
        line.enumerate().min_by_key(|(at, client)| (served(client), *at)).map(|(at, _)| at)
    }

    /// Notes for whom a pass was.
    pub fn note(&mut self, clients: impl Iterator<Item = ClientId>) {
        self.passes += 1;
        self.served.extend(clients.map(|client| (client, self.passes)));
    }

    /// Forgets clients that are gone.
    pub fn retain(&mut self, is_here: impl Fn(ClientId) -> bool) {
        self.served.retain(|client, _| is_here(*client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(line: &[u64]) -> impl Iterator<Item = ClientId> {
        line.iter().copied().map(ClientId)
    }

    #[test]
    fn a_lone_client_keeps_its_order_and_an_empty_line_has_no_next() {
        let mut turns = Turns::default();
        turns.note(clients(&[1]));
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
            let mut last: BTreeMap<u64, usize> = BTreeMap::new();
            for pass in 0..40 {
                let at = turns.next(clients(&line)).expect("somebody waits");
                let client = line.remove(at);
                turns.note(clients(&[client]));
                let before = last.insert(client, pass).unwrap_or(0);
                assert!(pass - before <= here.len(), "{client} waited from {before} to {pass}: {line:?}");
                line.push(client);
            }
            assert_eq!(last.len(), here.len(), "nobody was left out");
        }
    }

    #[test]
    fn who_is_gone_is_forgotten_and_comes_first_when_back() {
        let mut turns = Turns::default();
        turns.note(clients(&[1, 2]));
        turns.note(clients(&[2]));
        assert_eq!(turns.next(clients(&[2, 1])), Some(1));
        turns.retain(|client| client == ClientId(1));
        assert_eq!(turns.next(clients(&[1, 2])), Some(1));
    }
}
