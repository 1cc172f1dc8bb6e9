//! Who has come by parts of a blob while it is fetched here, so that those who fetch the same thing at the same time give to each other.
//!
//! Peers are asked in rounds: those known to hold a part, since they may hold more by now, and a few others in turn. What
//! follows from their answers is [`super::schedule`]'s. Invariant: one round at a time, of at most [`ROUND_MAX`] short questions
//! ([`EVERYBODY_MAX`] for a fetch that would end otherwise).

use std::{ops::Range, time::Duration};

use cairn_protocol::{
    id::{BlobHash, NodeId},
    limits::HOLDING_RANGES_MAX,
    peer_pb::{Answer, Holding, Holds, Question, answer::Say, question::Ask},
};
use cairn_registry::ranges::joined;
use futures::{FutureExt, StreamExt, stream};
use tokio::task::JoinSet;

use super::{fetch::Source, ranges::inner_groups};
use crate::net::NetHandle;

/// The first round begins after so long; a fetch that is over sooner asks nobody.
const FIRST_MS: u64 = 250;
/// Rounds begin so far apart.
const EVERY_MS: u64 = 1_000;
/// Questions of one round to peers that are no sources yet.
const ROUND_MAX: usize = 8;
/// The same when no source is left.
const EVERYBODY_MAX: usize = 32;
/// Time for one answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// What a peer says it holds.
#[derive(Debug)]
pub(super) struct Found {
    /// Who, and where.
    pub(super) source: Source,
    /// What.
    pub(super) word: Word,
}

/// What a node says about one blob, in whole groups.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    /// It has these.
    pub(super) holdings: Vec<Range<u64>>,
    /// It is fetching these.
    pub(super) coming: Vec<Range<u64>>,
}

/// Asks for one blob. Dropping it ends the round.
pub(super) struct Scout {
    net: Option<NetHandle>,
    hash: BlobHash,
    size: u64,
    round: JoinSet<Vec<Found>>,
    due_ms: u64,
    /// Peers are asked in turn; this is whose turn it is.
    turn: usize,
    /// Bytes that had come when everybody was asked.
    hoped_at: Option<u64>,
}

impl Scout {
    pub(super) fn new(net: Option<NetHandle>, hash: BlobHash, size: u64) -> Scout {
        Scout { net, hash, size, round: JoinSet::new(), due_ms: FIRST_MS, turn: 0, hoped_at: None }
    }

    /// Whether it is time for another round.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.due_ms && self.round.is_empty()
    }

    /// Begins a round. `parts` hold some of it, `sources` are all that are known.
    pub(super) fn look(&mut self, now_ms: u64, parts: Vec<Source>, sources: &[Source], others_max: usize) {
        self.due_ms = now_ms + EVERY_MS;
        self.begin(parts, sources, others_max.min(ROUND_MAX));
    }

    /// Asks everybody, since no source is left. `false` if that was done already and nothing has come since.
    pub(super) fn hope(&mut self, come: u64, sources: &[Source]) -> bool {
        if !self.round.is_empty() {
            return true;
        }
        if self.net.is_none() || self.hoped_at == Some(come) {
            return false;
        }
        self.hoped_at = Some(come);
        self.begin(sources.to_vec(), sources, EVERYBODY_MAX);
        true
    }

    /// What the round brought; waits for ever without one.
    pub(super) async fn found(&mut self) -> Vec<Found> {
        match self.round.join_next().await {
            Some(found) => found.unwrap_or_default(),
            None => std::future::pending().await,
        }
    }

    fn begin(&mut self, mut asked: Vec<Source>, sources: &[Source], others_max: usize) {
        let Some(net) = self.net.clone() else { return };
        let peers = net.peers().into_iter().filter(|peer| peer.connected);
        let others = peers.filter_map(|peer| {
            let addresses = peer.advert?.data_addresses;
            let is_new = !addresses.is_empty() && sources.iter().all(|source| source.node != peer.node_id);
            is_new.then_some(Source { node: peer.node_id, addresses })
        });
        let others: Vec<Source> = others.collect();
        let turn = self.turn;
        self.turn = turn.wrapping_add(others_max);
        asked.extend((0..others.len().min(others_max)).map(|at| others[turn.wrapping_add(at) % others.len()].clone()));
        let (hash, size) = (self.hash, self.size);
        self.round.spawn(async move {
            let asking: Vec<_> = asked.into_iter().map(|source| ask(&net, source, hash, size).boxed()).collect();
            stream::iter(asking).buffer_unordered(EVERYBODY_MAX).filter_map(std::future::ready).collect().await
        });
    }
}

async fn ask(net: &NetHandle, source: Source, hash: BlobHash, size: u64) -> Option<Found> {
    let word = word(net, source.node, hash, size).await?;
    Some(Found { source, word })
}

/// What a node says it has of a blob; `None` if it says nothing.
pub(super) async fn word(net: &NetHandle, node: NodeId, hash: BlobHash, size: u64) -> Option<Word> {
    let question = Question { ask: Some(Ask::Holds(Holds { hashes: vec![hash.to_vec()] })) };
    let Ok(Answer { say: Some(Say::Held(held)) }) = net.ask(node, question, DEADLINE).await else { return None };
    let holding = held.holdings.into_iter().find(|holding| holding.hash == hash.as_bytes());
    Some(holding.map_or_else(Word::default, |holding| read(&holding, size)))
}

fn read(holding: &Holding, size: u64) -> Word {
    let groups = |flat: &[u64]| {
        let pairs = flat.chunks_exact(2).take(HOLDING_RANGES_MAX / 2).filter(|pair| pair[0] < pair[1]);
        joined(&pairs.filter_map(|pair| inner_groups(&(pair[0]..pair[1]), size)).collect::<Vec<_>>(), size)
    };
    match holding.complete {
        true => Word { holdings: std::iter::once(0..size).collect(), coming: Vec::new() },
        false => Word { holdings: groups(&holding.ranges), coming: groups(&holding.coming) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_ranges_of_a_peer_are_left_out() {
        const GROUP: u64 = 16 << 10;
        let said = |ranges: &[u64]| {
            let holding = Holding { hash: vec![], complete: false, ranges: ranges.to_vec(), coming: ranges.to_vec() };
            let word = read(&holding, 10 * GROUP + 1);
            assert_eq!(word.holdings, word.coming);
            word.holdings
        };
        assert_eq!(said(&[5 * GROUP, 6 * GROUP, 0, 2 * GROUP, GROUP, 3 * GROUP]), [0..3 * GROUP, 5 * GROUP..6 * GROUP]);
        assert_eq!(said(&[GROUP, 0, 7, 9, 3]), []);
        assert_eq!(said(&[10 * GROUP, u64::MAX, u64::MAX - 1, u64::MAX]), [10 * GROUP..10 * GROUP + 1]);
    }
}
