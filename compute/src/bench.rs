//! How fast this machine computes a model: prefill and decode, with the bound that memory sets.
//!
//! Runs on the caller's thread with a pool of its own, no engine and no network between. Rates are medians, with the
//! slowest and the fastest round beside them; one round before is not counted. Tokens of all users count together.

mod perplexity;
mod sweep;

use crate::{
    arch::StagePart,
    cpu::{
        acts::Planes,
        cache::Cache,
        kv::KvFormat,
        level::Level,
        model::Model,
        packed::LANES,
        pass::{Pass, Slot},
        pool::Pool,
        work::{PASS_TOKENS_MAX, Work},
    },
    engine,
    files::{FilesError, ModelFiles},
    measure,
    sample::{self, Sampling},
    weights::{self, Conversion, WeightsError},
};
use serde::Serialize;
use std::{
    io,
    panic::resume_unwind,
    path::Path,
    thread,
    time::{Duration, Instant},
};

#[cfg(test)]
pub(crate) use perplexity::of_windows;
pub use perplexity::{PerplexityReport, WINDOW, perplexity};
pub use sweep::{SweepReport, SweepRow, sweep};

/// Time spent measuring the memory's bandwidth.
const BANDWIDTH_BUDGET: Duration = Duration::from_millis(300);
/// Most users of one benchmark: each has a key/value store.
const USERS_MAX: usize = 256;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Tokens of the prompt of each user.
    pub prompt_tokens: usize,
    /// Tokens decoded for each user.
    pub decode_tokens: usize,
    /// Users who decode together, a token each a step.
    pub users: usize,
    /// Threads; 0 is one a core.
    pub threads: usize,
    /// Rounds that count.
    pub repeat: usize,
    /// Int8 planes of activations: 1, or 2 for anything else.
    pub planes: u32,
    /// What keys and values are held as.
    pub kv: KvFormat,
    /// The instruction-set level; none is as an engine would choose.
    pub level: Option<Level>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        let kv = KvFormat::F16;
        Self { prompt_tokens: 128, decode_tokens: 64, users: 1, threads: 0, repeat: 5, planes: 2, kv, level: None }
    }
}

/// What was measured. Rates are tokens a second, of all users together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// Median over the rounds.
    pub prefill_tokens_per_s: f64,
    /// Slowest round.
    pub prefill_min: f64,
    /// Fastest round.
    pub prefill_max: f64,
    /// Median over the rounds.
    pub decode_tokens_per_s: f64,
    /// Slowest round.
    pub decode_min: f64,
    /// Fastest round.
    pub decode_max: f64,
    /// Threads that computed.
    pub threads: usize,
    /// Users who decoded together.
    pub users: usize,
    /// Instruction-set level.
    pub level: &'static str,
    /// Int8 planes.
    pub planes: usize,
    /// What keys and values are held as.
    pub kv: &'static str,
    /// Bytes of weights held.
    pub weights_bytes: u64,
    /// Bytes of weights that a step reads.
    pub step_bytes: u64,
    /// Bytes a second that all cores read from memory.
    pub bandwidth_bytes_per_s: u64,
    /// Tokens a second if reading the weights once a step were all there is to do.
    pub decode_bound_tokens_per_s: f64,
    /// Seconds to read and pack the weights.
    pub load_s: f64,
    /// Stored types held as others, as `Q5_0 as Q8_0 (133)`.
    pub conversions: Vec<String>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The files are no model.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The model can't be loaded.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No threads.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
    /// The processor has no such instructions.
    #[error("this processor has no {0} instructions")]
    MissingLevel(Level),
    /// Numbers that can't be measured with.
    #[error("{0}")]
    Options(String),
}

/// Measures a GGUF file or a folder of safetensors, on a thread of its own as the engine has one.
pub fn run(path: &Path, options: &BenchOptions) -> Result<BenchReport, BenchError> {
    let measured = thread::scope(|scope| scope.spawn(|| measured(path, options)).join());
    let mut report = measured.unwrap_or_else(|panic| resume_unwind(panic))?;
    // Not on that thread: those that it starts would be bound with it.
    report.bandwidth_bytes_per_s = measure::measure(BANDWIDTH_BUDGET).bandwidth_bytes_per_s;
    let steps_per_s = report.bandwidth_bytes_per_s as f64 / report.step_bytes.max(1) as f64;
    report.decode_bound_tokens_per_s = steps_per_s * options.users as f64;
    Ok(report)
}

/// A model that is ready to be measured.
struct Opened {
    bench: Bench,
    load_s: f64,
    conversions: Vec<Conversion>,
}

fn open(path: &Path, options: &BenchOptions) -> Result<Opened, BenchError> {
    let files = ModelFiles::open(path)?;
    let context = checked(options, files.model.context_max)?;
    let level = options.level.unwrap_or_else(engine::level_here);
    if !level.is_available() {
        return Err(BenchError::MissingLevel(level));
    }
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if options.threads == 0 { cores } else { options.threads };
    let start = Instant::now();
    let part = StagePart::whole(files.model.layers);
    let loaded = weights::load(&files.model, &files.tensors, &part, context, &mut *files.source()?)?;
    let load_s = start.elapsed().as_secs_f64();
    let planes = if options.planes == 1 { Planes::One } else { Planes::Two };
    let pool = Pool::bound(threads)?;
    pool.bind_caller();
    let bench = Bench { kv: options.kv, ..Bench::new(loaded.model, pool, level, planes, options.users) };
    Ok(Opened { bench, load_s, conversions: loaded.conversions })
}

/// All but the bounds.
fn measured(path: &Path, options: &BenchOptions) -> Result<BenchReport, BenchError> {
    let Opened { mut bench, load_s, conversions } = open(path, options)?;
    bench.seat(options.users, options.prompt_tokens + options.decode_tokens);
    let rounds: Vec<Round> = (0..=options.repeat).map(|round| bench.round(round, options)).collect();
    let prefill = Spread::of(rounds[1..].iter().map(|r| r.prefill));
    let decode = Spread::of(rounds[1..].iter().map(|r| r.decode));
    let step_bytes = bench.model.bytes_a_token();
    Ok(BenchReport {
        prefill_tokens_per_s: prefill.median,
        prefill_min: prefill.least,
        prefill_max: prefill.most,
        decode_tokens_per_s: decode.median,
        decode_min: decode.least,
        decode_max: decode.most,
        threads: bench.pool.threads(),
        users: options.users,
        level: bench.level.name(),
        planes: bench.planes.count(),
        kv: bench.kv.name(),
        weights_bytes: bench.model.bytes(),
        step_bytes,
        bandwidth_bytes_per_s: 0,
        decode_bound_tokens_per_s: 0.0,
        load_s,
        conversions: conversions.iter().map(told).collect(),
    })
}

fn told(c: &Conversion) -> String {
    format!("{} as {} ({} tensors{})", c.from, c.to, c.tensors, if c.is_lossy { ", rounded" } else { "" })
}

/// The positions that a user needs.
fn checked(options: &BenchOptions, context_max: u32) -> Result<usize, BenchError> {
    let refused = |why: String| Err(BenchError::Options(why));
    if options.prompt_tokens == 0 || options.decode_tokens == 0 || options.repeat == 0 {
        return refused("prompt tokens, decode tokens and rounds have to be at least 1".to_string());
    }
    if !(1..=USERS_MAX).contains(&options.users) || options.users > PASS_TOKENS_MAX {
        return refused(format!("between 1 and {} users can decode together", USERS_MAX.min(PASS_TOKENS_MAX)));
    }
    let context = options.prompt_tokens.saturating_add(options.decode_tokens);
    if context > context_max as usize {
        return refused(format!("{context} tokens are more than the model's context of {context_max}"));
    }
    Ok(context)
}

/// Rates of one round.
struct Round {
    prefill: f64,
    decode: f64,
}

/// Median, least and most.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(rates: impl Iterator<Item = f64>) -> Self {
        let mut rates: Vec<f64> = rates.collect();
        rates.sort_by(f64::total_cmp);
        let at = |i: usize| rates.get(i).copied().unwrap_or(0.0);
        Self { median: at(rates.len() / 2), least: at(0), most: at(rates.len().saturating_sub(1)) }
    }
}

struct Bench {
    model: Model,
    pool: Pool,
    level: Level,
    planes: Planes,
    kv: KvFormat,
    work: Work,
    caches: Vec<Cache>,
}

impl Bench {
    fn new(model: Model, pool: Pool, level: Level, planes: Planes, users_max: usize) -> Self {
        let work = Work::new(&model, planes, PASS_TOKENS_MAX, users_max);
        Self { model, pool, level, planes, kv: KvFormat::F16, work, caches: Vec::new() }
    }

    /// Gives so many users room for so many positions each.
    fn seat(&mut self, users: usize, context: usize) {
        let shape = self.model.page_shape(self.kv);
        self.caches.clear();
        self.caches.extend((0..users).map(|_| Cache::new(shape, context)));
    }

    fn round(&mut self, round: usize, options: &BenchOptions) -> Round {
        let start = Instant::now();
        let mut last = vec![0; options.users];
        for (user, token) in last.iter_mut().enumerate() {
            *token = self.prefill(user, &self.prompt(round + user, options.prompt_tokens));
        }
        let prefill = (options.users * options.prompt_tokens) as f64 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        for step in 0..options.decode_tokens {
            self.decode(&mut last, options.prompt_tokens + step);
        }
        let decode = (options.users * options.decode_tokens) as f64 / start.elapsed().as_secs_f64();
        Round { prefill, decode }
    }

    /// Some tokens, other ones each time.
    fn prompt(&self, salt: usize, tokens: usize) -> Vec<u32> {
        (0..tokens).map(|i| ((150 + i * 7 + salt * 13) % self.model.shape.vocabulary) as u32).collect()
    }

    fn prefill(&mut self, user: usize, ids: &[u32]) -> u32 {
        for (piece, ids) in ids.chunks(PASS_TOKENS_MAX).enumerate() {
            let from = piece * PASS_TOKENS_MAX;
            let slots: Vec<Slot> = (0..ids.len()).map(|i| Slot { sequence: user, position: from + i }).collect();
            self.pass(&slots, ids, &[ids.len() - 1]);
        }
        self.best(0, 1)
    }

    fn decode(&mut self, tokens: &mut [u32], position: usize) {
        let slots: Vec<Slot> = (0..tokens.len()).map(|sequence| Slot { sequence, position }).collect();
        let wanted: Vec<usize> = (0..tokens.len()).collect();
        self.pass(&slots, tokens, &wanted);
        let users = tokens.len();
        tokens.iter_mut().enumerate().for_each(|(user, token)| *token = self.best(user, users));
    }

    fn pass(&mut self, slots: &[Slot], ids: &[u32], wanted: &[usize]) {
        let (pool, level, planes) = (&self.pool, self.level, self.planes);
        let pass = Pass { model: &self.model, pool, level, planes, slots };
        pass.embed(&mut self.work, ids.iter().copied());
        pass.walk(&mut self.work, &mut self.caches.iter_mut().collect::<Vec<_>>());
        pass.logits(&mut self.work, wanted);
    }

    /// The likeliest token of a column of the logits.
    fn best(&self, column: usize, columns: usize) -> u32 {
        let vocabulary = self.model.shape.vocabulary;
        if columns == 1 {
            return sample::choose(&self.work.logits[..vocabulary], &Sampling::GREEDY, 0, &[]);
        }
        let chunks = self.work.logits.as_chunks::<LANES>().0.iter().skip(column).step_by(columns);
        let logits: Vec<f32> = chunks.flatten().copied().take(vocabulary).collect();
        sample::choose(&logits, &Sampling::GREEDY, 0, &[])
    }
}
