//! The scheduler against simulated sources: no clock, no network.

use super::*;

const MIB: u64 = 1 << 20;

/// How a simulated source behaves.
#[derive(Clone)]
enum Behaviour {
    /// Delivers at so many bytes a millisecond.
    Serves(u64),
    /// Connects and says nothing.
    Silent,
    /// Can't be reached.
    Down,
    /// Sends wrong bytes in that range.
    Lies(Range<u64>),
    /// Has only that range.
    Has(Range<u64>),
    /// Says so many times that it is busy.
    Busy(u32),
}

struct Sim {
    schedule: Schedule,
    sources: Vec<Behaviour>,
    flights: BTreeMap<FlightId, (usize, Range<u64>, u64)>,
    got: Vec<(usize, Range<u64>)>,
    now_ms: u64,
}

impl Sim {
    fn new(wanted: Vec<Range<u64>>, sources: &[Behaviour]) -> Sim {
        let schedule = Schedule::new(wanted, sources.len());
        Sim { schedule, sources: sources.to_vec(), flights: BTreeMap::new(), got: vec![], now_ms: 0 }
    }

    /// Runs in steps of 10 ms until the outcome, at most ten simulated minutes.
    fn run(&mut self) -> Outcome {
        let mut effects = Vec::new();
        self.schedule.wake(self.now_ms, &mut effects);
        while self.now_ms < 600_000 {
            for effect in std::mem::take(&mut effects) {
                self.perform(effect, &mut effects);
            }
            if !effects.is_empty() {
                continue;
            }
            match self.schedule.outcome() {
                Outcome::Pending => {}
                outcome => return outcome,
            }
            self.now_ms += 10;
            self.advance(&mut effects);
            if self.schedule.wake_at().is_some_and(|at| at <= self.now_ms) {
                self.schedule.wake(self.now_ms, &mut effects);
            }
        }
        Outcome::Pending
    }

    fn perform(&mut self, effect: Effect, effects: &mut Vec<Effect>) {
        match effect {
            Effect::Start { flight, source, range } => {
                assert!(range.end - range.start <= PIECE_BYTES_MAX && !range.is_empty());
                assert!(self.flights.values().filter(|(s, ..)| *s == source).count() < FLIGHTS_PER_SOURCE);
                self.flights.insert(flight, (source, range, self.now_ms));
            }
            Effect::Cancel { flight } => {
                let failure = self.schedule.cancelled(flight).unwrap();
                self.fail(flight, failure, 0, None, effects);
            }
        }
    }

    fn fail(
        &mut self,
        flight: FlightId,
        failure: Failure,
        bytes: u64,
        holdings: Option<Vec<Range<u64>>>,
        effects: &mut Vec<Effect>,
    ) {
        let (source, range, _) = self.flights.remove(&flight).unwrap();
        let middle = range.start + bytes / GROUP_BYTES * GROUP_BYTES;
        if middle > range.start {
            self.got.push((source, range.start..middle));
        }
        let input = Input::Failed { flight, failure, left: vec![middle..range.end], holdings };
        self.schedule.step(self.now_ms, input, effects);
    }

    fn advance(&mut self, effects: &mut Vec<Effect>) {
        for (flight, (source, range, started)) in self.flights.clone() {
            match self.sources[source].clone() {
                Behaviour::Silent => {}
                Behaviour::Down => self.fail(flight, Failure::Unreachable("refused".into()), 0, None, effects),
                Behaviour::Busy(0) => self.deliver(flight, 10_000, started, effects),
                Behaviour::Busy(left) => {
                    self.sources[source] = Behaviour::Busy(left - 1);
                    self.fail(flight, Failure::Busy, 0, None, effects);
                }
                Behaviour::Lies(lie) if lie.start < range.end && lie.end > range.start => {
                    let good = lie.start.saturating_sub(range.start);
                    self.fail(flight, Failure::False, good, None, effects);
                }
                Behaviour::Has(has) if has.start > range.start || has.end < range.end => {
                    self.fail(flight, Failure::Absent, 0, Some(vec![has]), effects);
                }
                Behaviour::Lies(_) | Behaviour::Has(_) => self.deliver(flight, 10_000, started, effects),
                Behaviour::Serves(rate) => self.deliver(flight, rate, started, effects),
            }
        }
    }

    fn deliver(&mut self, flight: FlightId, rate: u64, started: u64, effects: &mut Vec<Effect>) {
        let (source, range, _) = self.flights[&flight].clone();
        let bytes = (self.now_ms - started) * rate / 4;
        if bytes >= range.end - range.start {
            self.flights.remove(&flight);
            self.got.push((source, range));
            self.schedule.step(self.now_ms, Input::Done { flight }, effects);
        } else {
            self.schedule.step(self.now_ms, Input::Progress { flight, bytes }, effects);
        }
    }

    /// What arrived, joined.
    fn joined(&self) -> Vec<Range<u64>> {
        let mut got: Vec<_> = self.got.iter().map(|(_, range)| range.clone()).collect();
        got.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in got {
            match joined.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push(range),
            }
        }
        joined
    }

    fn from(&self, source: usize) -> u64 {
        self.got.iter().filter(|(s, _)| *s == source).map(|(_, range)| range.end - range.start).sum()
    }
}

#[test]
fn every_byte_is_fetched_once_and_all_sources_take_part() {
    let wanted = vec![0..100 * MIB, 200 * MIB..200 * MIB + 48 * 1024];
    let mut sim =
        Sim::new(wanted.clone(), &[Behaviour::Serves(50_000), Behaviour::Serves(50_000), Behaviour::Serves(50_000)]);
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.joined(), wanted);
    for source in 0..3 {
        assert!(sim.from(source) > 15 * MIB, "source {source} gave {}", sim.from(source));
    }
}

#[test]
fn a_faster_source_gives_more() {
    let mut sim = Sim::new(vec![0..256 * MIB], &[Behaviour::Serves(5_000), Behaviour::Serves(100_000)]);
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.joined(), [0..256 * MIB]);
    assert!(sim.from(1) > 5 * sim.from(0), "{} and {}", sim.from(0), sim.from(1));
}

#[test]
fn a_silent_source_costs_its_patience_and_no_more() {
    let mut sim = Sim::new(vec![0..64 * MIB], &[Behaviour::Silent, Behaviour::Serves(20_000)]);
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.joined(), [0..64 * MIB]);
    assert_eq!(sim.from(0), 0);
    assert!(sim.now_ms < 3 * STALL_MS, "took {} ms", sim.now_ms);
}

#[test]
fn a_dawdling_source_loses_its_last_pieces() {
    let mut sim = Sim::new(vec![0..32 * MIB], &[Behaviour::Serves(10), Behaviour::Serves(20_000)]);
    assert_eq!(sim.run(), Outcome::Done);
    assert!(sim.now_ms < 20_000, "took {} ms", sim.now_ms);
}

#[test]
fn what_a_liar_falsifies_comes_from_another() {
    let lie = 20 * MIB..20 * MIB + 10;
    let mut sim = Sim::new(vec![0..64 * MIB], &[Behaviour::Lies(lie.clone()), Behaviour::Serves(1_000)]);
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.joined(), [0..64 * MIB]);
    let lied = sim.got.iter().filter(|(_, range)| range.contains(&lie.start));
    assert!(lied.into_iter().all(|(source, _)| *source == 1));
}

#[test]
fn a_lone_liar_leaves_exactly_what_it_could_not_deliver() {
    let mut sim = Sim::new(vec![0..64 * MIB], &[Behaviour::Lies(20 * MIB..20 * MIB + 10)]);
    assert_eq!(sim.run(), Outcome::Stuck);
    let missing = sim.schedule.missing();
    assert!(missing.len() == 1 && missing[0].contains(&(20 * MIB)), "{missing:?}");
    let (source, failure, range) = sim.schedule.failures().next().unwrap();
    assert_eq!((source, failure), (0, &Failure::False));
    assert!(range.contains(&(20 * MIB)));
}

#[test]
fn sources_that_have_parts_complete_each_other() {
    let sources = [Behaviour::Has(0..30 * MIB), Behaviour::Has(20 * MIB..64 * MIB)];
    let mut sim = Sim::new(vec![0..64 * MIB], &sources);
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.joined(), [0..64 * MIB]);
    assert!(sim.got.iter().all(|(source, range)| *source == 1 || range.end <= 30 * MIB));
}

#[test]
fn nobody_with_the_bytes_is_an_end_and_not_a_wait() {
    assert_eq!(Sim::new(vec![0..MIB], &[]).run(), Outcome::Stuck);
    assert_eq!(Sim::new(vec![0..MIB], &[Behaviour::Down, Behaviour::Has(0..0)]).run(), Outcome::Stuck);
    assert_eq!(Sim::new(vec![], &[]).run(), Outcome::Done);
}

#[test]
fn a_busy_source_is_asked_again_a_moment_later_and_not_for_ever() {
    let mut sim = Sim::new(vec![0..8 * MIB], &[Behaviour::Busy(10)]);
    assert_eq!(sim.run(), Outcome::Done);
    let mut sim = Sim::new(vec![0..8 * MIB], &[Behaviour::Busy(u32::MAX)]);
    assert_eq!(sim.run(), Outcome::Stuck);
    assert!(sim.now_ms < 60_000);
}

#[test]
fn a_small_blob_does_not_wait_for_a_dead_source_to_stall() {
    let mut sim = Sim::new(vec![0..500], &[Behaviour::Silent, Behaviour::Serves(1_000)]);
    assert_eq!(sim.run(), Outcome::Done);
    assert!(sim.now_ms < 2 * STEAL_PATIENCE_MS, "took {} ms", sim.now_ms);
}

#[test]
fn silent_sources_alone_are_given_up() {
    let mut sim = Sim::new(vec![0..8 * MIB], &[Behaviour::Silent, Behaviour::Silent]);
    assert_eq!(sim.run(), Outcome::Stuck);
    assert!(sim.now_ms < 60_000, "took {} ms", sim.now_ms);
}

#[test]
fn a_slow_source_gets_its_piece_back_when_the_fast_one_lies_about_it() {
    let mut sim = Sim::new(vec![0..8 * MIB], &[Behaviour::Lies(5 * MIB..5 * MIB + 9), Behaviour::Serves(100)]);
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.joined(), [0..8 * MIB]);
}

/// Bytes by source.
fn by_source(sim: &Sim) -> Vec<u64> {
    let mut sums = vec![0; sim.sources.len()];
    sim.got.iter().for_each(|(source, range)| sums[*source] += range.end - range.start);
    sums
}

#[test]
fn a_far_source_is_left_alone_while_near_ones_suffice() {
    let mut sim = Sim::new(vec![0..64 * MIB], &[Behaviour::Serves(20_000), Behaviour::Serves(90_000)]);
    sim.schedule = sim.schedule.sparing(&[false, true]);
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(by_source(&sim), [64 * MIB, 0]);
}

#[test]
fn a_far_source_helps_near_ones_that_are_slow_gone_or_hold_only_a_part() {
    for near in [Behaviour::Serves(500), Behaviour::Down, Behaviour::Silent, Behaviour::Has(0..8 * MIB)] {
        let mut sim = Sim::new(vec![0..64 * MIB], &[near, Behaviour::Serves(50_000)]);
        sim.schedule = sim.schedule.sparing(&[false, true]);
        assert_eq!(sim.run(), Outcome::Done);
        assert!(by_source(&sim)[1] > 32 * MIB, "{:?}", by_source(&sim));
    }
}

#[test]
fn a_piece_that_our_own_rates_hold_has_not_stalled() {
    let (mut schedule, mut effects) = (Schedule::new(vec![0..GROUP_BYTES], 1), Vec::new());
    schedule.wake(0, &mut effects);
    let [Effect::Start { flight, .. }] = effects[..] else { panic!("{effects:?}") };
    effects.clear();
    for now_ms in (0..60_000).step_by(1000) {
        schedule.step(now_ms, Input::Held { flight }, &mut effects);
        schedule.wake(now_ms, &mut effects);
    }
    assert!(effects.is_empty(), "{effects:?}");
    schedule.wake(59_000 + STALL_MS, &mut effects);
    assert_eq!(effects, [Effect::Cancel { flight }], "held no more");
}

#[test]
fn a_lone_source_that_stalls_once_is_asked_again() {
    let mut schedule = Schedule::new(vec![0..PIECE_BYTES_MIN], 1);
    let mut effects = Vec::new();
    schedule.wake(0, &mut effects);
    assert_eq!(effects.len(), 1);
    effects.clear();
    assert_eq!(schedule.wake_at(), Some(STEAL_INTERVAL_MS));
    schedule.wake(STALL_MS, &mut effects);
    assert_eq!(effects, [Effect::Cancel { flight: 0 }]);
    effects.clear();
    let input = Input::Failed { flight: 0, failure: Failure::Stalled, left: vec![0..PIECE_BYTES_MIN], holdings: None };
    schedule.step(STALL_MS + 1, input, &mut effects);
    assert_eq!(effects, [Effect::Start { flight: 1, source: 0, range: 0..PIECE_BYTES_MIN }]);
}

#[test]
fn a_fetch_may_begin_anywhere_and_gets_all() {
    let starts = (0..20).map(|seed| {
        let wanted = vec![0..8 * MIB, 16 * MIB..64 * MIB];
        let mut sim = Sim::new(wanted.clone(), &[Behaviour::Serves(10_000)]);
        sim.schedule = Schedule::new(wanted.clone(), 1).scattered(seed);
        assert_eq!(sim.run(), Outcome::Done);
        assert_eq!(sim.joined(), wanted, "seed {seed}");
        sim.got[0].1.start
    });
    assert!(starts.collect::<BTreeSet<_>>().len() > 10);
}

#[test]
fn a_source_that_comes_by_parts_is_asked_for_them_and_the_whole_one_for_the_rest() {
    let mut sim = Sim::new(vec![0..64 * MIB], &[Behaviour::Serves(10_000), Behaviour::Serves(10_000)]);
    sim.schedule = Schedule::new(vec![0..64 * MIB], 1);
    let (joined, mut effects) = (sim.schedule.join(false), Vec::new());
    assert_eq!((joined, sim.schedule.parts().collect::<Vec<_>>()), (1, vec![1]));
    sim.schedule.step(
        0,
        Input::Holds { source: 1, holdings: vec![0..24 * MIB, 40 * MIB..64 * MIB], coming: vec![] },
        &mut effects,
    );
    for effect in effects {
        sim.perform(effect, &mut Vec::new());
    }
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.joined(), [0..64 * MIB]);
    let scarce = sim.got.iter().filter(|(_, range)| range.end > 24 * MIB && range.start < 40 * MIB);
    assert!(scarce.into_iter().all(|(source, _)| *source == 0), "{:?}", sim.got);
    let first = sim.got.iter().find(|(source, _)| *source == 0).map(|(_, range)| range.start);
    assert!(first.is_some_and(|start| (24 * MIB..40 * MIB).contains(&start)), "what nobody else has comes first");
}

#[test]
fn a_source_that_keeps_promising_what_it_does_not_deliver_is_dropped() {
    let mut schedule = Schedule::new(vec![0..PIECE_BYTES_MIN], 0);
    let source = schedule.join(false);
    for round in 0..STRIKES_MAX {
        assert_eq!(schedule.outcome(), Outcome::Stuck, "before round {round}");
        let mut effects = Vec::new();
        schedule.step(0, Input::Holds { source, holdings: vec![0..PIECE_BYTES_MIN], coming: vec![] }, &mut effects);
        let [Effect::Start { flight, .. }] = effects[..] else { panic!("{effects:?}") };
        let failed =
            Input::Failed { flight, failure: Failure::Absent, left: vec![0..PIECE_BYTES_MIN], holdings: Some(vec![]) };
        schedule.step(0, failed, &mut Vec::new());
    }
    let mut effects = Vec::new();
    schedule.step(0, Input::Holds { source, holdings: vec![0..PIECE_BYTES_MIN], coming: vec![] }, &mut effects);
    assert!(effects.is_empty() && schedule.outcome() == Outcome::Stuck);
}

#[test]
fn one_who_says_that_it_fetches_everything_and_never_has_it_costs_one_wait() {
    let mut sim = Sim::new(vec![0..64 * MIB], &[Behaviour::Serves(10_000), Behaviour::Serves(100_000)]);
    sim.schedule = Schedule::new(vec![0..64 * MIB], 1);
    let (source, mut effects) = (sim.schedule.join(false), Vec::new());
    let boast = Input::Holds { source, holdings: vec![0..MIB], coming: vec![0..64 * MIB] };
    sim.schedule.step(0, boast, &mut effects);
    for effect in effects {
        sim.perform(effect, &mut Vec::new());
    }
    assert_eq!(sim.run(), Outcome::Done);
    assert_eq!(sim.from(1), MIB);
    assert!(sim.now_ms < 64 * MIB / 10_000 + 2 * COMING_PATIENCE_MS, "took {} ms", sim.now_ms);
}
