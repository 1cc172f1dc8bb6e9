//! What this machine can do, for its advert: bytes read from memory a second, and multiply-adds of packed int8 products.
//!
//! Best of a few rounds, since anything else that runs makes it slower, never faster. Not a benchmark of a model (that
//! is `bench`). One measurement at a time on a machine is the caller's business.

use crate::{
    cpu::{
        acts::{Acts, Planes, Rows},
        kernels::{self, Post, View},
        level::Level,
        lines::{LINE_BYTES, Line},
        packed::{BLOCK, LANES, Packed, PackedFormat},
        pages,
        plain::{Plain, PlainFormat},
        pool::Pool,
    },
    engine,
};
use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Larger than the last-level cache of most machines, small enough to fill in time.
const READ_BYTES: usize = 96 << 20;
/// Elements of a row and rows of the product that is timed: it stays in a core's second-level cache.
const ROW: usize = 512;
const ROWS: usize = 256;
/// Tokens of that product: a short prompt.
const TOKENS: usize = 24;
/// Elements of a row and rows of the F32 product that is timed, and its turns, so that handing it out weighs little.
const FLOAT_ROW: usize = 128;
const FLOAT_ROWS: usize = 32;
const FLOAT_TURNS: usize = 100;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// All cores together.
    pub bandwidth_bytes_per_s: u64,
    /// Int8 multiply-adds of a packed product, all cores together.
    pub macs_per_s: u64,
}

/// The instruction-set level that an engine would start with here.
pub fn level() -> &'static str {
    engine::level_here().name()
}

/// Measures within `budget`; zeros where no thread could be started. The buffer's first use counts, too, so less than
/// 100 ms leaves little to measure.
pub fn measure(budget: Duration) -> Figures {
    let deadline = Instant::now() + budget;
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    let Ok(pool) = Pool::new(threads) else { return Figures { bandwidth_bytes_per_s: 0, macs_per_s: 0 } };
    let macs_per_s = products(&pool, engine::level_here(), Planes::One, budget / 4);
    let bandwidth_bytes_per_s = read(&pool, deadline);
    Figures { bandwidth_bytes_per_s, macs_per_s }
}

/// Bytes a second, read until the deadline nears.
fn read(pool: &Pool, deadline: Instant) -> u64 {
    let mut buffer: Vec<u64> = Vec::new();
    if buffer.try_reserve_exact(READ_BYTES / 8).is_err() {
        return 0;
    }
    pages::prefer_huge(buffer.spare_capacity_mut());
    buffer.resize(READ_BYTES / 8, 0);
    // Written by all threads, so that it is memory and not the page of zeros.
    pool.split(&mut buffer, 512, |first, part| part.fill(first as u64 + 1));
    let mut rounds = Rounds::until(deadline);
    while rounds.goes_on() {
        let total = AtomicU64::new(0);
        rounds.time(|| {
            let n = pool.threads();
            pool.run(&|id| {
                let part = &buffer[buffer.len() * id / n..buffer.len() * (id + 1) / n];
                total.fetch_add(sum(part), Ordering::Relaxed);
            });
        });
        black_box(total.into_inner());
    }
    rounds.per_second(READ_BYTES as u64)
}

fn sum(part: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    for chunk in part.as_chunks::<16>().0 {
        (0..16).for_each(|i| lanes[i] = lanes[i].wrapping_add(chunk[i]));
    }
    lanes.iter().fold(0, |s, lane| s.wrapping_add(*lane))
}

/// Products of a weight and an activation (of all its planes) that `pool` computes a second within `budget`, all of them in
/// the cores' caches.
pub(crate) fn products(pool: &Pool, level: Level, planes: Planes, budget: Duration) -> u64 {
    let deadline = Instant::now() + budget;
    let blocks = ROW / BLOCK;
    let per = PackedFormat::Q8_0.group_lines(blocks);
    let lines = vec![Line([0x5a; LINE_BYTES]); ROWS / LANES * per];
    let weights = Packed::new(PackedFormat::Q8_0, blocks, &lines);
    let mut acts = Acts::new(ROW, TOKENS, planes);
    let stride = acts.stride;
    for record in acts.words.chunks_exact_mut(stride) {
        kernels::quantise(level, View { values: &[0.5; ROW], step: LANES }, ROW, planes, None, record);
    }
    let panel = ROWS * TOKENS;
    let mut out = vec![0f32; panel * pool.threads()];
    let mut rounds = Rounds::until(deadline);
    while rounds.goes_on() {
        rounds.time(|| {
            pool.split(&mut out, panel, |_, part| {
                part.chunks_exact_mut(panel).for_each(|panel| {
                    kernels::product_packed(level, weights, 0, &acts, panel, Post::Store);
                });
            });
        });
    }
    black_box(&out);
    rounds.per_second((ROWS * ROW * TOKENS * pool.threads()) as u64)
}

/// F32 products that `pool` computes a second within `budget`, both factors in the cores' first-level caches.
pub(crate) fn float_products(pool: &Pool, level: Level, budget: Duration) -> u64 {
    let deadline = Instant::now() + budget;
    let groups = FLOAT_ROWS / LANES;
    let lines = vec![Line([0x3e; LINE_BYTES]); groups * PlainFormat::F32.group_lines(FLOAT_ROW)];
    let weights = Plain::new(PlainFormat::F32, FLOAT_ROW, &lines);
    let mut rows = Rows::new(FLOAT_ROW, TOKENS);
    rows.values.fill(0.5);
    let panel = FLOAT_ROWS * TOKENS;
    let mut out = vec![0f32; panel * pool.threads()];
    let mut rounds = Rounds::until(deadline);
    while rounds.goes_on() {
        rounds.time(|| {
            pool.split(&mut out, panel, |_, part| {
                part.chunks_exact_mut(panel).for_each(|panel| {
                    (0..FLOAT_TURNS).for_each(|_| kernels::product_plain(level, weights, 0, &rows, panel, Post::Store));
                });
            });
        });
    }
    black_box(&out);
    rounds.per_second((FLOAT_ROWS * FLOAT_ROW * TOKENS * FLOAT_TURNS * pool.threads()) as u64)
}

/// Rounds of one kind of work, of which the fastest counts; at least one.
struct Rounds {
    deadline: Instant,
    best: Duration,
    done: bool,
}

impl Rounds {
    fn until(deadline: Instant) -> Self {
        Self { deadline, best: Duration::MAX, done: false }
    }
    /// True while another round of the fastest's length fits.
    fn goes_on(&self) -> bool {
        !self.done || Instant::now() + self.best < self.deadline
    }
    fn time(&mut self, work: impl FnOnce()) {
        let start = Instant::now();
        work();
        self.best = self.best.min(start.elapsed());
        self.done = true;
    }
    fn per_second(&self, units: u64) -> u64 {
        (units as f64 / self.best.as_secs_f64().max(1e-9)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_a_computer_and_come_in_time() {
        let start = Instant::now();
        let figures = measure(Duration::from_millis(300));
        // Twice the budget: the tests of this crate run beside.
        assert!(start.elapsed() < Duration::from_millis(1500), "took {:?}", start.elapsed());
        assert!((100_000_000..10_000_000_000_000).contains(&figures.bandwidth_bytes_per_s), "{figures:?}");
        assert!((1_000_000..1_000_000_000_000_000).contains(&figures.macs_per_s), "{figures:?}");
        assert!(Level::ALL.iter().any(|known| known.name() == level()));
    }
}
