//! Who fetches which bytes of one blob: a pure decider. It knows sources by number, pieces by byte range, and time as an
//! argument; connections and bytes are [`super::fetch`]'s.
//!
//! What is wanted lies in a queue. Each source that has room gets pieces: together about a second's worth of its own speed, each at
//! most [`PIECE_BYTES_MAX`], and never so much that nothing is left for the others. A piece that fails goes back, to be
//! tried elsewhere; a source that fails too often is dropped; a source that dawdles over the last pieces loses them to one
//! that is idle and faster. Sources that hold a part, as others do who fetch the same blob now, may come and hold more with time;
//! whoever has all of it is asked for what none of them has.
//!
//! Invariant: at every moment the queue and the flights together are exactly what is still missing, and every failure
//! brings the end nearer: a piece remembers who failed at it, a source has few strikes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

use cairn_protocol::machine::Machine;
use cairn_registry::ranges::{joined, total, without};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::ranges::GROUP_BYTES;

/// Largest piece: what a failure can waste, and what one source can hold up.
pub const PIECE_BYTES_MAX: u64 = 16 << 20;
/// Smallest piece, where there is that much: below this a request's round trip costs more than its bytes.
const PIECE_BYTES_MIN: u64 = 256 << 10;
/// First piece of a source whose speed is not known.
const PIECE_BYTES_FIRST: u64 = 1 << 20;
/// Pieces under way from one source: enough to hide round trips.
const FLIGHTS_PER_SOURCE: usize = 4;
/// Pieces under way for one blob: they share one disk.
const FLIGHTS_MAX: usize = 16;
/// What near sources together must give for far ones to be left alone.
const NEAR_BYTES_PER_S: f64 = 8e6;
/// For so long they are given the time to show it.
const NEAR_ALONE_MS: u64 = 2_000;
/// Whoever holds a part and is so many times as fast as one that has all, is left to deliver it.
const QUICK: f64 = 2.0;
/// What others say they fetch is left to them, unless nothing comes for so long.
const COMING_PATIENCE_MS: u64 = 2_000;
/// A piece that makes no progress for so long has stalled.
const STALL_MS: u64 = 5_000;
/// Failures in a row after which a source is not asked again.
const STRIKES_MAX: u32 = 3;
/// A source that is busy is left alone for so long…
const BUSY_PAUSE_MS: u64 = 250;
/// …and so often: 20 seconds in all.
const BUSY_MAX: u32 = 80;
/// How often idle sources look for pieces to take over.
const STEAL_INTERVAL_MS: u64 = 500;
/// A piece is left to its source for so long before it is taken away.
const STEAL_PATIENCE_MS: u64 = 1_000;

/// One piece under way.
pub type FlightId = u64;

/// Why a piece did not arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection could be made.
    Unreachable(String),
    /// The source does not serve us.
    Refused,
    /// The source has too much to do now.
    Busy,
    /// The connection broke.
    Lost(String),
    /// Nothing came for 5 s.
    Stalled,
    /// It was taken away, since another source is much faster.
    TooSlow,
    /// The source does not have these bytes.
    Absent,
    /// The source says that it has these bytes and can't deliver them: its copy is damaged.
    Damaged,
    /// The source sent bytes that don't match the hash.
    False,
}

/// What the decider is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// So many bytes of the piece have arrived and are verified.
    Progress {
        /// Which piece.
        flight: FlightId,
        /// In all.
        bytes: u64,
    },
    /// What a source holds and fetches now: whole groups, sorted.
    Holds {
        /// Index of the source.
        source: usize,
        /// Here.
        holdings: Vec<Range<u64>>,
        /// Under way to it.
        coming: Vec<Range<u64>>,
    },
    /// This node's own rates have the piece wait: its source is not to blame.
    Held {
        /// Which piece.
        flight: FlightId,
    },
    /// All of it arrived.
    Done {
        /// Which piece.
        flight: FlightId,
    },
    /// It ended before it was whole; also the answer to [`Effect::Cancel`].
    Failed {
        /// Which piece.
        flight: FlightId,
        /// Why.
        failure: Failure,
        /// What of it is still missing, in whole groups.
        left: Vec<Range<u64>>,
        /// What the source has of this blob, if that is known now.
        holdings: Option<Vec<Range<u64>>>,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Fetch that range from that source.
    Start {
        /// The new piece.
        flight: FlightId,
        /// Index of the source.
        source: usize,
        /// Bytes.
        range: Range<u64>,
    },
    /// Stop that piece, and say what is left of it.
    Cancel {
        /// Which piece.
        flight: FlightId,
    },
}

/// Where the work stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something is under way or will be.
    Pending,
    /// Nothing is missing.
    Done,
    /// Something is missing and nobody is left who could deliver it.
    Stuck,
}

/// The decider of one blob.
#[derive(Debug)]
pub struct Schedule {
    /// All that was wanted: a source that lacks some of it holds a part.
    wanted: Vec<Range<u64>>,
    sources: Vec<Candidate>,
    queue: VecDeque<Piece>,
    flights: BTreeMap<FlightId, Flight>,
    next_flight: FlightId,
    stole_ms: u64,
    /// When bytes came last, or this node's own rates held them.
    moved_ms: u64,
    /// Set for good once nothing came for long: nobody who only says that it fetches something holds this one up twice.
    is_impatient: bool,
    dice: StdRng,
}

/// What is the same for all sources in one step.
struct Scene {
    near_suffices: bool,
    /// What those have or fetch who don't have all.
    common: Vec<Range<u64>>,
    /// Of these, what the quick ones have or fetch.
    quick: Vec<Range<u64>>,
}

#[derive(Debug, Default)]
struct Candidate {
    /// Left alone while near ones suffice.
    is_far: bool,
    is_dropped: bool,
    strikes: u32,
    busy: u32,
    paused_until_ms: u64,
    flights: usize,
    /// Smoothed, of all its pieces together; 0 while unknown.
    bytes_per_s: f64,
    holdings: Option<Vec<Range<u64>>>,
    /// What it is fetching itself.
    coming: Vec<Range<u64>>,
    failure: Option<(Failure, Range<u64>)>,
}

#[derive(Clone, Debug)]
struct Piece {
    range: Range<u64>,
    /// Sources that failed at it.
    tried: BTreeSet<usize>,
    /// Sources that were slow or lost with it: asked again only when nobody else is left.
    avoided: BTreeSet<usize>,
}

#[derive(Debug)]
struct Flight {
    source: usize,
    piece: Piece,
    started_ms: u64,
    moved_ms: u64,
    bytes: u64,
    /// Set once a cancel was asked for: why.
    cancelled: Option<Failure>,
}

impl Schedule {
    /// For `wanted` (whole groups, sorted, not touching) and so many sources, best first.
    pub fn new(wanted: Vec<Range<u64>>, sources: usize) -> Schedule {
        let queue = wanted.iter().filter(|range| !range.is_empty()).cloned();
        Schedule {
            sources: (0..sources).map(|_| Candidate::default()).collect(),
            queue: queue.map(|range| Piece { range, tried: BTreeSet::new(), avoided: BTreeSet::new() }).collect(),
            wanted,
            flights: BTreeMap::new(),
            next_flight: 0,
            stole_ms: 0,
            moved_ms: 0,
            is_impatient: false,
            dice: StdRng::seed_from_u64(0),
        }
    }

    /// Leaves these sources (by index) alone while the others hold what is wanted and together give [`NEAR_BYTES_PER_S`].
    pub fn sparing(mut self, far: &[bool]) -> Schedule {
        for (source, is_far) in self.sources.iter_mut().zip(far) {
            source.is_far = *is_far;
        }
        self
    }

    /// Begins at a place drawn by lot instead of at the front: those who fetch the same at the same time then soon have something for
    /// each other.
    pub fn scattered(mut self, seed: u64) -> Schedule {
        self.dice = StdRng::seed_from_u64(seed);
        self.jump(&[]);
        self
    }

    /// Brings what lies at `offset` and behind it to the front.
    fn begin_at(&mut self, offset: u64) {
        let offset = offset / GROUP_BYTES * GROUP_BYTES;
        let Some(at) = self.queue.iter().position(|piece| piece.range.contains(&offset)) else { return };
        let before = self.queue[at].range.start..offset;
        self.queue[at].range.start = offset;
        self.queue.rotate_left(at);
        if !before.is_empty() {
            let piece = Piece { range: before, ..self.queue[0].clone() };
            self.queue.push_back(piece);
        }
    }

    /// One more source, which holds nothing yet: its index.
    pub fn join(&mut self, is_far: bool) -> usize {
        self.sources.push(Candidate { is_far, holdings: Some(Vec::new()), ..Candidate::default() });
        self.sources.len() - 1
    }

    /// Sources that hold a part and may hold more by now.
    pub fn parts(&self) -> impl Iterator<Item = usize> {
        let sources = self.sources.iter().enumerate();
        sources.filter(|(_, source)| !source.is_dropped && source.is_part(&self.wanted)).map(|(index, _)| index)
    }

    /// Sources that may still be asked.
    pub fn sources_live(&self) -> usize {
        self.sources.iter().filter(|source| !source.is_dropped).count()
    }

    /// Where the work stands.
    pub fn outcome(&self) -> Outcome {
        match (self.queue.is_empty(), self.flights.is_empty()) {
            (true, true) => Outcome::Done,
            (_, false) => Outcome::Pending,
            (false, true) if self.is_stuck() => Outcome::Stuck,
            (false, true) => Outcome::Pending,
        }
    }

    /// Why a piece that was cancelled was cancelled.
    pub fn cancelled(&self, flight: FlightId) -> Option<Failure> {
        self.flights.get(&flight)?.cancelled.clone()
    }

    /// What is known against each source: the worst failure, and the range at which it happened.
    pub fn failures(&self) -> impl Iterator<Item = (usize, &Failure, &Range<u64>)> {
        let failures = self.sources.iter().enumerate();
        failures.filter_map(|(index, source)| source.failure.as_ref().map(|(failure, range)| (index, failure, range)))
    }

    /// What nobody delivered.
    pub fn missing(&self) -> Vec<Range<u64>> {
        self.queue.iter().map(|piece| piece.range.clone()).collect()
    }

    fn is_stuck(&self) -> bool {
        !self.queue.iter().any(|piece| has_taker(&self.sources, piece))
    }

    fn assign(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for piece in self.queue.iter_mut().filter(|piece| !piece.avoided.is_empty()) {
            if !has_taker(&self.sources, piece) {
                piece.avoided.clear();
            }
        }
        let is_lone = self.sources_live() == 1;
        let is_idle = self.parts().next().is_some() && now_ms >= self.moved_ms + COMING_PATIENCE_MS;
        self.is_impatient |= is_idle && !self.queue.is_empty();
        let scene = self.scene(now_ms);
        for room in 1..=FLIGHTS_PER_SOURCE {
            for source in 0..self.sources.len() {
                // A source that has delivered nothing yet gets one piece, unless it is the only one: it may be dead.
                let is_tried = is_lone || self.sources[source].bytes_per_s > 0.0;
                let room = if is_tried { room } else { 1 };
                while self.sources[source].is_free(now_ms, room) && self.flights.len() < FLIGHTS_MAX {
                    let Some(piece) = self.take(source, &scene) else { break };
                    self.launch(now_ms, source, piece, effects);
                }
            }
        }
    }

    fn launch(&mut self, now_ms: u64, source: usize, piece: Piece, effects: &mut Vec<Effect>) {
        let flight = self.next_flight;
        self.next_flight += 1;
        self.sources[source].flights += 1;
        effects.push(Effect::Start { flight, source, range: piece.range.clone() });
        let flown = Flight { source, piece, started_ms: now_ms, moved_ms: now_ms, bytes: 0, cancelled: None };
        self.flights.insert(flight, flown);
    }

    /// Cuts the next piece for this source out of the queue: of one that has all, what those who hold a part neither have nor fetch;
    /// then what no quick one of them has or fetches.
    fn take(&mut self, source: usize, scene: &Scene) -> Option<Piece> {
        if scene.common.is_empty() || self.sources[source].is_part(&self.wanted) {
            return self.cut(source, scene, &[]);
        }
        let front = self.queue.front()?.range.start;
        if scene.common.iter().any(|held| held.contains(&front)) {
            // Two that follow each other would fetch the same from here on.
            self.jump(&scene.common);
        }
        self.cut(source, scene, &scene.common).or_else(|| self.cut(source, scene, &scene.quick))
    }

    /// What is the same for all sources in one step.
    fn scene(&self, now_ms: u64) -> Scene {
        let parts: Vec<&Candidate> = self.parts().map(|source| &self.sources[source]).collect();
        let all = |parts: &mut dyn Iterator<Item = &&Candidate>| {
            let ranges = parts.flat_map(|part| part.holdings.iter().flatten().chain(&part.coming));
            joined(&ranges.cloned().collect::<Vec<_>>(), u64::MAX)
        };
        let whole = self.sources.iter().filter(|source| !source.is_dropped && !source.is_part(&self.wanted));
        let fastest = whole.map(|source| source.bytes_per_s).fold(0.0, f64::max);
        let is_quick = |part: &&&Candidate| match part.bytes_per_s > 0.0 {
            _ if self.is_impatient => false,
            true => part.bytes_per_s > QUICK * fastest,
            false => part.strikes == 0 && part.holdings.as_ref().is_some_and(|holdings| !holdings.is_empty()),
        };
        Scene {
            near_suffices: self.near_suffices(now_ms),
            common: all(&mut parts.iter()),
            quick: all(&mut parts.iter().filter(is_quick)),
        }
    }

    /// Goes on at another place, drawn from what lies outside of `others`.
    fn jump(&mut self, others: &[Range<u64>]) {
        let outside = |piece: &Piece| without(std::slice::from_ref(&piece.range), others);
        let free: Vec<Range<u64>> = self.queue.iter().flat_map(outside).collect();
        let mut at = self.dice.random_range(0..total(&free).max(1));
        for part in free {
            let bytes = part.end - part.start;
            if at < bytes {
                // A small one is not cut up further.
                return self.begin_at(if bytes > PIECE_BYTES_MAX { part.start + at } else { part.start });
            }
            at -= bytes;
        }
    }

    /// Cuts the first piece that this source has and that does not lie in `others`.
    fn cut(&mut self, source: usize, scene: &Scene, others: &[Range<u64>]) -> Option<Piece> {
        let bytes_max = self.piece_bytes(source);
        let candidate = &self.sources[source];
        let spares = |piece: &Piece| scene.near_suffices && candidate.is_far && self.has_near_taker(piece);
        let found = self.queue.iter().enumerate().filter(|(_, piece)| !spares(piece));
        let mut parts = found.filter_map(|(at, piece)| Some((at, candidate.overlap(source, piece)?)));
        let (at, part) = parts.find_map(|(at, part)| Some((at, without(&[part], others).into_iter().next()?)))?;
        let whole = self.queue.remove(at)?;
        let end = part.end.min(part.start + bytes_max);
        let rest = [whole.range.start..part.start, end..whole.range.end];
        for range in rest.into_iter().rev().filter(|range| !range.is_empty()) {
            self.queue.insert(at, Piece { range, ..whole.clone() });
        }
        Some(Piece { range: part.start..end, ..whole })
    }

    /// Whether near sources are as fast as one needs; the first pieces are too small to tell.
    fn near_suffices(&self, now_ms: u64) -> bool {
        let near = self.sources.iter().filter(|source| !source.is_far && !source.is_dropped);
        now_ms < NEAR_ALONE_MS || near.map(|source| source.bytes_per_s).sum::<f64>() >= NEAR_BYTES_PER_S
    }

    fn has_near_taker(&self, piece: &Piece) -> bool {
        let mut near = self.sources.iter().enumerate().filter(|(_, source)| !source.is_far && !source.is_dropped);
        near.any(|(at, source)| source.overlap(at, piece).is_some())
    }

    /// All of a source's pieces together are about a second's worth, and not so much that the others stand idle.
    fn piece_bytes(&self, source: usize) -> u64 {
        let speed = self.sources[source].bytes_per_s;
        let by_speed = if speed > 0.0 { speed as u64 / FLIGHTS_PER_SOURCE as u64 } else { PIECE_BYTES_FIRST };
        let queued: u64 = self.queue.iter().map(|piece| piece.range.end - piece.range.start).sum();
        let live = self.sources_live().max(1) as u64;
        let share = queued / (live * FLIGHTS_PER_SOURCE as u64);
        let bytes = by_speed.min(share.max(PIECE_BYTES_MIN)).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
        bytes.next_multiple_of(GROUP_BYTES)
    }

    fn progress(&mut self, now_ms: u64, flight: FlightId, bytes: u64) {
        if let Some(flight) = self.flights.get_mut(&flight)
            && bytes > flight.bytes
        {
            flight.bytes = bytes;
            flight.moved_ms = now_ms;
            self.moved_ms = now_ms;
        }
    }

    fn held(&mut self, now_ms: u64, flight: FlightId) {
        self.moved_ms = now_ms;
        if let Some(flight) = self.flights.get_mut(&flight) {
            flight.moved_ms = now_ms;
        }
    }

    fn done(&mut self, now_ms: u64, id: FlightId) {
        let Some(flight) = self.flights.remove(&id) else { return };
        self.moved_ms = now_ms;
        let bytes = flight.piece.range.end - flight.piece.range.start;
        let source = &mut self.sources[flight.source];
        // Its other pieces share the way, so what one piece got is that part of the source's speed.
        let sample = bytes as f64 * 1000.0 / (now_ms - flight.started_ms).max(1) as f64 * source.flights as f64;
        source.bytes_per_s = if source.bytes_per_s > 0.0 { 0.7 * source.bytes_per_s + 0.3 * sample } else { sample };
        source.flights -= 1;
        source.strikes = 0;
        source.busy = 0;
    }

    fn failed(
        &mut self,
        now_ms: u64,
        id: FlightId,
        failure: Failure,
        left: Vec<Range<u64>>,
        holdings: Option<Vec<Range<u64>>>,
    ) {
        let Some(flight) = self.flights.remove(&id) else { return };
        let source = &mut self.sources[flight.source];
        source.flights -= 1;
        let mut piece = flight.piece;
        // It did not say that it has this, and says now what it has.
        let is_excused = failure == Failure::Absent && holdings.is_some() && !source.has(&piece.range);
        source.blame(now_ms, &failure, left.first().unwrap_or(&piece.range), is_excused);
        source.holdings = holdings.or(source.holdings.take());
        match failure {
            Failure::Busy => false,
            // Its holdings keep it from being asked again, until they grow.
            Failure::Absent if source.holdings.is_some() => false,
            Failure::Lost(_) | Failure::Stalled | Failure::TooSlow => piece.avoided.insert(flight.source),
            _ => piece.tried.insert(flight.source),
        };
        for range in left.into_iter().rev().filter(|range| !range.is_empty()) {
            self.queue.push_front(Piece { range, ..piece.clone() });
        }
    }

    /// Asks for the end of pieces that have stalled, and of those that an idle source would deliver much sooner.
    fn look_after(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for (id, flight) in &mut self.flights {
            if flight.cancelled.is_none() && now_ms >= flight.moved_ms + STALL_MS {
                flight.cancelled = Some(Failure::Stalled);
                effects.push(Effect::Cancel { flight: *id });
            }
        }
        if self.queue.is_empty() && now_ms >= self.stole_ms + STEAL_INTERVAL_MS {
            self.stole_ms = now_ms;
            self.steal(now_ms, effects);
        }
    }

    fn steal(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let sources = &self.sources;
        let is_idle = |source: &Candidate| source.flights == 0 && source.is_free(now_ms, 1);
        let worth = self.flights.iter_mut().filter(|(_, flight)| {
            let mut thieves = sources.iter().enumerate().filter(|(_, source)| is_idle(source));
            thieves.any(|(at, thief)| {
                at != flight.source
                    && thief.overlap(at, &flight.piece).is_some()
                    && flight.is_worth_stealing(now_ms, thief.bytes_per_s)
            })
        });
        if let Some((id, flight)) = worth.max_by_key(|(_, flight)| flight.left_ms(now_ms)) {
            flight.cancelled = Some(Failure::TooSlow);
            effects.push(Effect::Cancel { flight: *id });
        }
    }
}

/// Whether a source is left that may be asked for some of the piece.
fn has_taker(sources: &[Candidate], piece: &Piece) -> bool {
    sources.iter().enumerate().any(|(at, source)| !source.is_dropped && source.overlap(at, piece).is_some())
}

impl Candidate {
    fn is_free(&self, now_ms: u64, room: usize) -> bool {
        !self.is_dropped && self.flights < room && now_ms >= self.paused_until_ms
    }

    /// The first part of the piece that this source may be asked for.
    fn overlap(&self, index: usize, piece: &Piece) -> Option<Range<u64>> {
        if piece.tried.contains(&index) || piece.avoided.contains(&index) {
            return None;
        }
        let Some(holdings) = &self.holdings else { return Some(piece.range.clone()) };
        let parts = holdings.iter().map(|held| held.start.max(piece.range.start)..held.end.min(piece.range.end));
        parts.into_iter().find(|part| !part.is_empty())
    }

    /// Whether it is known to lack some of what is wanted.
    fn is_part(&self, wanted: &[Range<u64>]) -> bool {
        self.holdings.is_some() && !wanted.iter().all(|range| self.has(range))
    }

    /// Whether it said that it has all of the range.
    fn has(&self, range: &Range<u64>) -> bool {
        let holdings = self.holdings.iter().flatten();
        holdings.into_iter().any(|held| held.start <= range.start && range.end <= held.end)
    }

    /// Takes note of a failure.
    fn blame(&mut self, now_ms: u64, failure: &Failure, range: &Range<u64>, is_excused: bool) {
        let weight = |failure: &Failure| match failure {
            Failure::False => 4,
            Failure::Damaged => 3,
            Failure::Busy | Failure::TooSlow => 0,
            Failure::Absent => 1,
            _ => 2,
        };
        if self.failure.as_ref().is_none_or(|(known, _)| weight(failure) > weight(known)) {
            self.failure = Some((failure.clone(), range.clone()));
        }
        match failure {
            Failure::Unreachable(_) | Failure::Refused => self.is_dropped = true,
            Failure::Busy => {
                self.busy += 1;
                self.paused_until_ms = now_ms + BUSY_PAUSE_MS;
                self.is_dropped |= self.busy > BUSY_MAX;
            }
            Failure::TooSlow => {}
            _ if is_excused => {}
            _ => self.strikes += 1,
        }
        self.is_dropped |= self.strikes >= STRIKES_MAX;
    }
}

impl Flight {
    /// How long it will take at its own speed.
    fn left_ms(&self, now_ms: u64) -> u64 {
        let left = (self.piece.range.end - self.piece.range.start).saturating_sub(self.bytes);
        left.saturating_mul(now_ms - self.started_ms) / self.bytes.max(1)
    }

    /// By a source of that speed; one whose speed is not known takes only what does not move at all.
    fn is_worth_stealing(&self, now_ms: u64, bytes_per_s: f64) -> bool {
        let left = (self.piece.range.end - self.piece.range.start).saturating_sub(self.bytes);
        let is_faster = match bytes_per_s > 0.0 {
            true => self.left_ms(now_ms) > 2 * (left as f64 * 1000.0 / bytes_per_s) as u64 + STEAL_PATIENCE_MS,
            false => self.bytes == 0,
        };
        self.cancelled.is_none() && now_ms >= self.started_ms + STEAL_PATIENCE_MS && is_faster
    }
}

impl Machine for Schedule {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now_ms: u64, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Progress { flight, bytes } => return self.progress(now_ms, flight, bytes),
            Input::Held { flight } => return self.held(now_ms, flight),
            Input::Done { flight } => self.done(now_ms, flight),
            Input::Holds { source, holdings, coming } => {
                let source = &mut self.sources[source];
                (source.holdings, source.coming) = (Some(holdings), coming);
            }
            Input::Failed { flight, failure, left, holdings } => self.failed(now_ms, flight, failure, left, holdings),
        }
        self.assign(now_ms, effects);
    }

    fn wake(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        self.look_after(now_ms, effects);
        self.assign(now_ms, effects);
    }

    fn wake_at(&self) -> Option<u64> {
        let running = self.flights.values().filter(|flight| flight.cancelled.is_none());
        let stalls = running.map(|flight| flight.moved_ms + STALL_MS);
        let pauses = self.sources.iter().filter(|source| !source.is_dropped && source.paused_until_ms > 0);
        let pauses = pauses.map(|source| source.paused_until_ms).filter(|_| !self.queue.is_empty());
        let steal = (self.queue.is_empty() && !self.flights.is_empty()).then_some(self.stole_ms + STEAL_INTERVAL_MS);
        let patience =
            self.parts().next().filter(|_| !self.queue.is_empty()).map(|_| self.moved_ms + COMING_PATIENCE_MS);
        stalls.chain(pauses).chain(steal).chain(patience).min()
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "swarm_tests.rs"]
mod swarm_tests;
