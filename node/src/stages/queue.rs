//! Who waits for a place on this node, and whose turn it is. Pure.
//!
//! Clients take turns, whoever was let in longest ago first; what one client waits for goes in the order in which it came. So a
//! client with one request waits for one of each other client, however many those have.
//!
//! Invariant: at most [`bounds::WAITING_MAX`] wait, and of one client as many as its quota; a ticket is in the queue until it is
//! taken out, whoever drops it.

use std::collections::{BTreeMap, VecDeque};

use cairn_protocol::id::NodeId;

use super::bounds;

/// For whom a session is: the node that asks, and for this node's own requests which of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// Who asks.
    pub node: NodeId,
    /// Which of this node's own clients; 0 of every other node, since a number that a peer makes up would multiply its turns.
    pub number: u64,
    /// It is a client of this node itself.
    pub is_self: bool,
}

/// A place in the queue.
pub type Ticket = u64;

/// Those who wait.
#[derive(Debug, Default)]
pub struct Queue {
    /// Of each client, in the order in which they came. None is empty.
    waiting: BTreeMap<Client, VecDeque<Ticket>>,
    /// When each client was let in last, as a count of all that were. Only of clients that wait.
    let_in: BTreeMap<Client, u64>,
    count: u64,
    tickets: Ticket,
}

/// As many wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Queue {
    /// Takes the last place of a client that may have `per_client`.
    pub fn push(&mut self, client: Client, per_client: usize) -> Result<Ticket, Full> {
        let own = self.waiting.get(&client).map_or(0, VecDeque::len);
        if own >= per_client || self.len() >= bounds::WAITING_MAX {
            return Err(Full);
        }
        self.tickets += 1;
        self.waiting.entry(client).or_default().push_back(self.tickets);
        self.let_in.entry(client).or_insert(0);
        Ok(self.tickets)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Whose turn it is among the clients that could be let in.
    pub fn next(&self, may_enter: impl Fn(Client) -> bool) -> Option<Ticket> {
        let ready = self.waiting.iter().filter(|(client, _)| may_enter(**client));
        let first = ready.filter_map(|(client, tickets)| Some((self.let_in.get(client)?, tickets.front()?)));
        first.min().map(|(_, ticket)| *ticket)
    }

    /// How many will be let in before a ticket, and itself: 1 is the next, if all could be let in.
    pub fn place(&self, ticket: Ticket) -> usize {
        let Some((own, before)) = self.find(ticket) else { return 0 };
        let turns = |client: &Client, tickets: &VecDeque<Ticket>| match *client == own {
            true => before,
            false => tickets.len().min(before + usize::from(self.turn(client) < self.turn(&own))),
        };
        1 + self.waiting.iter().map(|(client, tickets)| turns(client, tickets)).sum::<usize>()
    }

    /// Takes a ticket out: its session was let in.
    pub fn let_in(&mut self, ticket: Ticket) {
        if let Some((client, _)) = self.find(ticket) {
            self.count += 1;
            self.let_in.insert(client, self.count);
            self.remove(ticket);
        }
    }

    /// Takes a ticket out: it waits no more.
    pub fn remove(&mut self, ticket: Ticket) {
        let Some((client, at)) = self.find(ticket) else { return };
        if let Some(tickets) = self.waiting.get_mut(&client) {
            tickets.remove(at);
            if tickets.is_empty() {
                self.waiting.remove(&client);
                self.let_in.remove(&client);
            }
        }
    }

    /// When a client has its turn, in the order of the numbers.
    fn turn(&self, client: &Client) -> (u64, Option<Ticket>) {
        let first = self.waiting.get(client).and_then(|tickets| tickets.front().copied());
        (self.let_in.get(client).copied().unwrap_or(0), first)
    }

    fn find(&self, ticket: Ticket) -> Option<(Client, usize)> {
        let at = |(client, tickets): (&Client, &VecDeque<Ticket>)| {
            Some((*client, tickets.iter().position(|other| *other == ticket)?))
        };
        self.waiting.iter().find_map(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(n: u8) -> Client {
        Client { node: NodeId::from([n; 32]), number: 0, is_self: false }
    }

    fn all_in_turn(queue: &mut Queue) -> Vec<Ticket> {
        let mut order = Vec::new();
        while let Some(ticket) = queue.next(|_| true) {
            assert_eq!(queue.place(ticket), 1);
            queue.let_in(ticket);
            order.push(ticket);
        }
        order
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let mut queue = Queue::default();
        let tickets: Vec<Ticket> = [1, 1, 1, 2, 3, 3].iter().map(|n| queue.push(client(*n), 8).unwrap()).collect();
        let places: Vec<usize> = tickets.iter().map(|ticket| queue.place(*ticket)).collect();
        assert_eq!(places, [1, 4, 6, 2, 3, 5]);
        let order = all_in_turn(&mut queue);
        assert_eq!(order, [0, 3, 4, 1, 5, 2].map(|i| tickets[i]));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_client_that_may_not_enter_holds_nobody_up_and_one_over_its_quota_does_not_wait() {
        let mut queue = Queue::default();
        let (first, second) = (queue.push(client(1), 1).unwrap(), queue.push(client(2), 1).unwrap());
        assert_eq!(queue.push(client(1), 1), Err(Full));
        assert_eq!(queue.next(|c| c != client(1)), Some(second));
        queue.remove(first);
        assert_eq!((queue.next(|_| true), queue.place(second), queue.place(first)), (Some(second), 1, 0));
    }

    #[test]
    fn the_queue_is_bounded_for_all_together() {
        let mut queue = Queue::default();
        let taken = (0..=u8::MAX).flat_map(|n| [n; 2]).filter(|n| queue.push(client(*n), 2).is_ok()).count();
        assert_eq!((taken, queue.len()), (bounds::WAITING_MAX, bounds::WAITING_MAX));
    }

    proptest! {
        #[test]
        fn a_ticket_waits_for_no_more_of_any_other_client_than_of_its_own(pushes in prop::collection::vec(0u8..5, 1..60)) {
            let mut queue = Queue::default();
            let all: Vec<(u8, Ticket)> = pushes.iter().map(|n| (*n, queue.push(client(*n), 60).unwrap())).collect();
            let places: Vec<usize> = all.iter().map(|(_, ticket)| queue.place(*ticket)).collect();
            let order = all_in_turn(&mut queue);
            for ((n, ticket), place) in all.iter().zip(places) {
                let at = order.iter().position(|other| other == ticket).unwrap();
                prop_assert_eq!(place, at + 1);
                let before = |m: u8| all.iter().filter(|(o, t)| *o == m && order[..at].contains(t)).count();
                prop_assert!((0..5).all(|m| before(m) <= before(*n) + 1));
            }
        }
    }
}
