//! Several schedulers that fetch the same blob from one capped publisher and from each other: no clock, no network.

use super::*;
use crate::data::ranges::inner_groups;

const MIB: u64 = 1 << 20;
const STEP_MS: u64 = 50;
/// Between two rounds of asking who holds what.
const ROUND_MS: u64 = 1_000;
/// Bytes a millisecond that fetchers give each other, each flight.
const NEAR: f64 = 8_000.0;

/// One that fetches. Its source 0 is the publisher; `peers[i]` is its source i + 1.
struct Fetcher {
    schedule: Schedule,
    starts_ms: u64,
    peers: Vec<usize>,
    got: Vec<Range<u64>>,
    flights: BTreeMap<FlightId, (usize, Range<u64>, f64)>,
    from_publisher: f64,
}

struct Swarm {
    size: u64,
    fetchers: Vec<Fetcher>,
    now_ms: u64,
}

impl Swarm {
    fn new(size: u64, starts_ms: &[u64], seed: u64) -> Swarm {
        let fetcher = |(at, starts_ms): (usize, &u64)| Fetcher {
            schedule: Schedule::new(vec![0..size], 1).scattered(seed * 100 + at as u64),
            starts_ms: *starts_ms,
            peers: Vec::new(),
            got: Vec::new(),
            flights: BTreeMap::new(),
            from_publisher: 0.0,
        };
        Swarm { size, fetchers: starts_ms.iter().enumerate().map(fetcher).collect(), now_ms: 0 }
    }

    /// Until all have all: in how many milliseconds, and how many copies the publisher sent.
    fn run(&mut self, rate: f64) -> (u64, f64) {
        while self.fetchers.iter().any(|fetcher| fetcher.schedule.outcome() != Outcome::Done) {
            self.now_ms += STEP_MS;
            assert!(self.now_ms < 3_600_000, "it does not end");
            let flows = self.fetchers.iter().flat_map(|fetcher| fetcher.flights.values());
            let share = rate / flows.filter(|(source, ..)| *source == 0).count().max(1) as f64;
            for at in 0..self.fetchers.len() {
                if self.now_ms >= self.fetchers[at].starts_ms {
                    self.ask_around(at);
                    self.fetchers[at].advance(self.now_ms, share);
                }
            }
        }
        let sent: f64 = self.fetchers.iter().map(|fetcher| fetcher.from_publisher).sum();
        (self.now_ms, sent / self.size as f64)
    }

    fn ask_around(&mut self, at: usize) {
        let since = self.now_ms - self.fetchers[at].starts_ms;
        if since % ROUND_MS != ROUND_MS / 4 {
            return;
        }
        for other in (0..self.fetchers.len()).filter(|other| *other != at) {
            let (holdings, coming) = self.fetchers[other].word(self.size);
            let fetcher = &mut self.fetchers[at];
            let known = fetcher.peers.iter().position(|peer| *peer == other).map(|index| index + 1);
            if known.is_none() && holdings.is_empty() {
                continue;
            }
            let source = known.unwrap_or_else(|| {
                fetcher.peers.push(other);
                fetcher.schedule.join(false)
            });
            let mut effects = Vec::new();
            fetcher.schedule.step(self.now_ms, Input::Holds { source, holdings, coming }, &mut effects);
            fetcher.perform(effects);
        }
    }
}

impl Fetcher {
    fn word(&self, size: u64) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
        let under_way = self.flights.values().map(|(_, range, bytes)| range.start..range.start + *bytes as u64);
        let held = joined(&self.got.iter().cloned().chain(under_way).collect::<Vec<_>>(), size);
        let coming = self.flights.values().map(|(_, range, _)| range.clone()).collect();
        (held.iter().filter_map(|range| inner_groups(range, size)).collect(), coming)
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let Effect::Start { flight, source, range } = effect else { continue };
            self.flights.insert(flight, (source, range, 0.0));
        }
    }

    fn advance(&mut self, now_ms: u64, share: f64) {
        let mut effects = Vec::new();
        for (flight, (source, range, bytes)) in self.flights.clone() {
            let length = (range.end - range.start) as f64;
            let come = (if source == 0 { share } else { NEAR } * STEP_MS as f64).min(length - bytes);
            self.from_publisher += if source == 0 { come } else { 0.0 };
            if bytes + come >= length {
                self.flights.remove(&flight);
                self.got.push(range);
                self.schedule.step(now_ms, Input::Done { flight }, &mut effects);
            } else {
                self.flights.insert(flight, (source, range, bytes + come));
                self.schedule.step(now_ms, Input::Progress { flight, bytes: (bytes + come) as u64 }, &mut effects);
            }
        }
        self.schedule.wake(now_ms, &mut effects);
        let cancelled = effects.extract_if(.., |effect| matches!(effect, Effect::Cancel { .. })).collect::<Vec<_>>();
        self.perform(effects);
        for effect in cancelled {
            let Effect::Cancel { flight } = effect else { continue };
            self.give_back(now_ms, flight);
        }
    }

    fn give_back(&mut self, now_ms: u64, flight: FlightId) {
        let (failure, mut effects) = (self.schedule.cancelled(flight).unwrap(), Vec::new());
        let Some((_, range, bytes)) = self.flights.remove(&flight) else { return };
        let middle = range.start + bytes as u64 / GROUP_BYTES * GROUP_BYTES;
        self.got.push(range.start..middle);
        let failed = Input::Failed { flight, failure, left: vec![middle..range.end], holdings: None };
        self.schedule.step(now_ms, failed, &mut effects);
        self.perform(effects);
    }
}

#[test]
fn a_capped_publisher_sends_little_more_than_one_copy() {
    for (size, starts) in [(40 * MIB, vec![0, 0, 4_000]), (128 * MIB, vec![0, 0, 0, 0, 10_000, 10_000])] {
        let bound_ms = size / 4_000;
        let runs: Vec<_> = (0..4).map(|seed| Swarm::new(size, &starts, seed).run(4_000.0)).collect();
        let mean = runs.iter().map(|(_, copies)| copies).sum::<f64>() / runs.len() as f64;
        println!("{} MiB, {} fetch: {mean:.2} copies; bound {bound_ms} ms; {runs:.2?}", size / MIB, starts.len());
        assert!(mean < 1.6, "{mean} copies: {runs:?}");
    }
}
