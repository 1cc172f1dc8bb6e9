//! The engine: one thread that computes for all stages of this process, one that loads them, and the handles to both.
//!
//! ```text
//! Engine::load ──▶ loader thread ──▶ StageHandle ──▶ engine thread (with its pool of kernel threads) ──▶ done(result)
//! ```
//!
//! Passes follow each other, so every pass has all cores. Sessions of one stage's weights share passes: they join and
//! leave between two passes, whoever waits for a token first, prompts in pieces; steps of one session keep
//! their order. What a session's tokens become does not depend on its neighbours. Queues are bounded: a full one is
//! answered `Busy` at once. Callbacks run on the engine's threads and must not block. A panic while computing
//! loses that stage only: its session answers `Lost` from then on, and the engine goes on.

mod adapter;
mod deal;
mod device;
mod handle;
mod preempt;
mod sessions;
mod threads;
mod turns;
mod work;

pub use crate::cpu::level::{Level, UnknownLevel};
pub use adapter::{AdapterDone, AdapterHandle, SetAdapterError, WantedAdapter};
pub use device::DeviceError;
pub use handle::StageHandle;
pub use work::WorkError;

use crate::{
    adapter::AdapterError,
    arch::{self, ShapeError, StageError, StagePart},
    choose::CHOOSER_THREAD,
    cpu::{
        acts::Planes,
        kv::KvFormat,
        pool::{self, Pool},
    },
    stage::{GpuError, Hands, pages::Pages},
    weights::{Conversion, TensorSource, WeightsError},
};
use cairn_protocol::manifest::{Model, TensorEntry};
use candle_core::Device;
use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
};
use threads::{Answer, Command, Job, LoadJob};

/// Steps and session changes that may wait for the engine thread: far more than sessions times what each has in flight.
const COMMANDS_MAX: usize = 256;
/// Name of the thread that computes, and of the one that loads.
const ENGINE_THREAD: &str = "cairn-engine";
const LOAD_THREAD: &str = "cairn-load";

/// Whether a thread of this name is the engine's, which catches its own panics.
pub fn is_engine_thread(name: &str) -> bool {
    [ENGINE_THREAD, LOAD_THREAD, CHOOSER_THREAD].contains(&name) || name.starts_with(pool::KERNEL_THREADS)
}

/// Loads that may wait.
const LOADS_MAX: usize = 16;
/// Forces an instruction-set level where the configuration leaves it open.
const LEVEL_VARIABLE: &str = "CAIRN_LEVEL";

/// How to start.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Threads that compute; 0 is one a core.
    pub threads: usize,
    /// The instruction-set level; none is `CAIRN_LEVEL` or the best that the processor has.
    pub level: Option<Level>,
    /// Most bytes of all stages together: weights, keys and values, buffers.
    pub memory_max: u64,
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A forced level that the processor has not.
    #[error("this processor has no {0} instructions")]
    MissingLevel(Level),
    /// A forced level that does not exist.
    #[error("CAIRN_LEVEL: {0}")]
    UnknownLevel(#[from] UnknownLevel),
    /// A device that this build or this machine has not.
    #[error("CAIRN_DEVICE: {0}")]
    Device(#[from] DeviceError),
    /// No thread could be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
}

/// For whom a session computes: passes are shared fairly between clients. Any number, as long as it is the same for the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// How a stage is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Most positions of a session; cut to the model's own.
    pub context: u32,
    /// Int8 planes of activations: 1 is faster, anything else is 2, which is nearly exact.
    pub planes: u32,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { context: 2048, planes: 2 }
    }
}

/// Why a stage was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The index does not hold what the part needs.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// Its tensors could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It could not be put on the GPU.
    #[error("{0}")]
    Gpu(String),
    /// More memory than stages may have.
    #[error("the stage takes {needed} bytes, {free} of {max} are free")]
    Memory {
        /// What it takes.
        needed: u64,
        /// What is free.
        free: u64,
        /// The ceiling.
        max: u64,
    },
    /// It does not fit the model, or could not be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Other keys and values than halves, on a device that has only these.
    #[error("keys and values are held as {0} on processors only, not on this node's GPU")]
    KvFormat(KvFormat),
    /// A longer session than its weights were loaded for.
    #[error("a session of {asked} positions needs the stage loaded for as many, it was for {loaded}")]
    Context {
        /// Asked for.
        asked: u64,
        /// Loaded for.
        loaded: u64,
    },
    /// Too many loads are waiting.
    #[error("the engine is busy: {LOADS_MAX} loads are waiting")]
    Busy,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// Loading panicked; nothing is held.
    #[error("loading failed: {0}")]
    Panicked(String),
}

impl From<ShapeError> for LoadError {
    fn from(error: ShapeError) -> Self {
        Self::Stage(error.into())
    }
}

impl From<GpuError> for LoadError {
    fn from(error: GpuError) -> Self {
        match error {
            GpuError::Stage(error) => Self::Stage(error),
            other => Self::Gpu(other.to_string()),
        }
    }
}

/// What loading did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Bytes of weights held.
    pub weights_bytes: u64,
    /// Bytes of weights that one decoded token reads.
    pub bytes_a_token: u64,
    /// Memory reserved for the stage with its first session.
    pub memory_bytes: u64,
    /// Stored types that are held as others.
    pub conversions: Vec<Conversion>,
}

/// What a load ends with.
pub type LoadDone = Box<dyn FnOnce(Result<StageHandle, LoadError>) + Send>;

/// Memory that stages hold.
pub(crate) struct Memory {
    max: u64,
    used: AtomicU64,
    /// Pages of all weights: those that are idle give way to any other use. Guards the list; held for a look only.
    lent: Mutex<Vec<Weak<Pages>>>,
    /// Bytes of pages.
    paged: AtomicU64,
    evictions: AtomicU64,
    adopted: AtomicU64,
}

/// A share of the engine's memory, given back when dropped.
pub struct Share {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    pub fn new(max: u64) -> Arc<Self> {
        let [used, paged, evictions, adopted] = [0; 4].map(AtomicU64::new);
        Arc::new(Self { max, used, lent: Mutex::default(), paged, evictions, adopted })
    }

    /// Takes bytes; idle pages make room for them.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Share, LoadError> {
        let taken = self.take(bytes).or_else(|used| {
            self.call_in((used.saturating_add(bytes)).saturating_sub(self.max));
            self.take(bytes)
        });
        match taken {
            Ok(()) => Ok(Share { memory: self.clone(), bytes }),
            Err(used) => Err(LoadError::Memory { needed: bytes, free: self.max - used, max: self.max }),
        }
    }

    fn take(&self, bytes: u64) -> Result<(), u64> {
        let take = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.max);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).map(drop)
    }

    /// Bytes that are held.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// Notes whose idle pages may be called in.
    pub fn lends_to(&self, pages: &Arc<Pages>) {
        let mut lent = self.lent();
        lent.retain(|pages| pages.strong_count() > 0);
        lent.push(Arc::downgrade(pages));
    }

    /// Has idle pages of that many bytes freed, as far as there are any.
    fn call_in(&self, bytes: u64) {
        let mut missing = bytes;
        for pages in self.borrowers() {
            missing = missing.saturating_sub(pages.give_back(missing));
            if missing == 0 {
                return;
            }
        }
    }

    /// Takes bytes for a page.
    pub fn reserve_page(self: &Arc<Self>, bytes: u64) -> Option<PageShare> {
        let share = self.reserve(bytes).ok()?;
        self.paged.fetch_add(bytes, Ordering::Relaxed);
        Some(PageShare { share })
    }

    /// Counts a session that gave way to another.
    pub fn note_eviction(&self) {
        self.evictions.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts positions that need not be computed again.
    pub fn note_adopted(&self, positions: u64) {
        self.adopted.fetch_add(positions, Ordering::Relaxed);
    }

    fn keys_and_values(&self) -> KeysAndValues {
        KeysAndValues {
            bytes: self.paged.load(Ordering::Relaxed),
            idle_bytes: self.borrowers().iter().map(|pages| pages.idle_bytes()).sum(),
            evictions: self.evictions.load(Ordering::Relaxed),
            adopted_positions: self.adopted.load(Ordering::Relaxed),
        }
    }

    fn borrowers(&self) -> Vec<Arc<Pages>> {
        self.lent().iter().filter_map(Weak::upgrade).collect()
    }

    fn lent(&self) -> MutexGuard<'_, Vec<Weak<Pages>>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// A page's share of the memory.
pub(crate) struct PageShare {
    share: Share,
}

impl Drop for PageShare {
    fn drop(&mut self) {
        self.share.memory.paged.fetch_sub(self.share.bytes, Ordering::Relaxed);
    }
}

/// Keys and values of all sessions on this CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeysAndValues {
    /// Bytes of their pages; part of the memory that is held.
    pub bytes: u64,
    /// Bytes of those that no session holds, kept for who begins alike: any other use may have them.
    pub idle_bytes: u64,
    /// Sessions that gave way to others since the start.
    pub evictions: u64,
    /// Positions that were found computed since the start.
    pub adopted_positions: u64,
}

/// A handle to the engine. It ends when the last handle to it and to its stages is gone, or with [`Engine::stop`].
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    /// Of the CPU engine.
    level: Level,
    /// Where candle computes instead.
    device: Option<Device>,
    threads: usize,
    memory: Arc<Memory>,
    loads: SyncSender<Job>,
    commands: SyncSender<Command>,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Starts the threads.
    pub fn start(config: EngineConfig) -> Result<Self, StartError> {
        let level = chosen(config.level)?;
        let device = device::chosen()?;
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if config.threads == 0 { cores } else { config.threads };
        let hands = Hands { pool: Pool::bound(threads)?, level };
        let (commands, queue) = sync_channel(COMMANDS_MAX);
        let (loads, jobs) = sync_channel(LOADS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let memory = Memory::new(config.memory_max);
        thread::Builder::new().name(ENGINE_THREAD.into()).spawn(move || threads::compute(&hands, &queue, &stopping))?;
        let back = commands.clone();
        thread::Builder::new().name(LOAD_THREAD.into()).spawn(move || threads::load(&jobs, &back))?;
        tracing::info!(level = level.name(), threads, "engine started");
        Ok(Self { inner: Arc::new(Inner { level, device, threads, memory, loads, commands, stop }) })
    }

    /// The instruction-set level in use, or the kind of GPU: stages of one generation have to agree in it.
    pub fn level(&self) -> &'static str {
        self.inner.device.as_ref().map_or(self.inner.level.name(), device::kind)
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.inner.threads
    }

    /// Bytes that stages hold, of the most they may.
    pub fn memory(&self) -> (u64, u64) {
        (self.inner.memory.used(), self.inner.memory.max)
    }

    /// What keys and values take.
    pub fn keys_and_values(&self) -> KeysAndValues {
        self.inner.memory.keys_and_values()
    }

    /// Loads a part of a model with a session on it. `done` is called once, on the loader thread, or at once on this one
    /// when the load is refused.
    pub fn load(
        &self,
        model: Model,
        tensors: Vec<TensorEntry>,
        part: StagePart,
        options: LoadOptions,
        source: Box<dyn TensorSource>,
        done: LoadDone,
    ) {
        let needed = match arch::stage_memory(&model, &tensors, &part, options.context) {
            // Keys and values take pages as they grow.
            Ok(needed) if self.inner.device.is_none() => needed.total() - needed.cache,
            Ok(needed) => needed.total(),
            Err(error) => return done(Err(error.into())),
        };
        let share = match self.inner.memory.reserve(needed) {
            Ok(share) => share,
            Err(error) => return done(Err(error)),
        };
        let context = arch::context(&model, options.context);
        let planes = if options.planes == 1 { Planes::One } else { Planes::Two };
        let device = self.inner.device.clone();
        let answer = Answer::new(done, || LoadError::Stopped);
        let job = LoadJob { model, tensors, part, context, planes, device, source, share, answer };
        if let Err(TrySendError::Full(Job::Stage(job))) = self.inner.loads.try_send(Job::Stage(Box::new(job))) {
            job.answer.give(Err(LoadError::Busy));
        }
    }

    /// Takes memory for something else that computes here.
    pub fn reserve(&self, bytes: u64) -> Result<Share, LoadError> {
        self.inner.memory.reserve(bytes)
    }

    /// Computes something that keeps nothing here between two passes of stages. `done` is called once, on the engine
    /// thread, or at once on this one when there is no room to wait.
    pub(crate) fn work<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Hands) -> T + Send + 'static,
        done: impl FnOnce(Result<T, WorkError>) + Send + 'static,
    ) {
        let command = Command::Work(work::Work::new(what, done));
        // A stopped engine drops the work, which answers so.
        if let Err(TrySendError::Full(Command::Work(work))) = self.inner.commands.try_send(command) {
            work.refuse();
        }
    }

    /// Ends the engine thread after the step that it computes; the others are answered `Stopped`. Does not wait.
    pub fn stop(&self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        // Only to wake it: where the queue is full it is awake.
        let _ = self.inner.commands.try_send(Command::Sweep);
    }
}

/// The level that an engine would start with here when nothing is asked for.
pub(crate) fn level_here() -> Level {
    chosen(None).unwrap_or_else(|_| Level::best())
}

fn chosen(asked: Option<Level>) -> Result<Level, StartError> {
    let level = match (asked, std::env::var(LEVEL_VARIABLE)) {
        (Some(level), _) => level,
        (None, Ok(name)) => name.parse()?,
        (None, Err(_)) => Level::best(),
    };
    if level.is_available() { Ok(level) } else { Err(StartError::MissingLevel(level)) }
}

#[cfg(test)]
mod kv_tests;
#[cfg(test)]
mod paging_tests;
#[cfg(test)]
mod tests;
