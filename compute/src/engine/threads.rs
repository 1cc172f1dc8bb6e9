//! What the engine's two threads do.
//!
//! Invariant: every `done` is called exactly once, and a panic (of computing, loading or a callback) ends neither thread.

use super::{
    ClientId, LoadError, LoadReport, Memory, Share,
    adapter::AdapterHandle,
    handle::{Parts, StageHandle},
    sessions::Sessions,
    work::Work,
};
use crate::{
    adapter::{self, AdapterSpec},
    arch::{self, StagePart},
    cpu::{acts::Planes, kv::KvFormat},
    stage::{
        Adapter, Choosing, CpuWeights, GpuWeights, Hands, Kind, PageKey, StepError, StepInput, StepOutput, Weights,
    },
    weights::{self, Loaded, TensorSource},
};
use cairn_protocol::{
    id::RevisionId,
    manifest::{Model, TensorEntry},
};
use candle_core::Device;
use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError},
    },
    time::Instant,
};

/// A session's number in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionId(u64);

impl SessionId {
    /// One that was never given.
    pub fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

pub(super) type Done<T, E> = Box<dyn FnOnce(Result<T, E>) + Send>;

/// A callback that is called exactly once: with an answer, or with `stopped` when it is dropped without one.
pub(super) struct Answer<T, E> {
    done: Option<Done<T, E>>,
    stopped: fn() -> E,
}

impl<T, E> Answer<T, E> {
    pub fn new(done: Done<T, E>, stopped: fn() -> E) -> Self {
        Self { done: Some(done), stopped }
    }

    pub fn give(mut self, result: Result<T, E>) {
        self.call(result);
    }

    /// A panic in a callback is a bug of its owner, and ends nothing here.
    fn call(&mut self, result: Result<T, E>) {
        let Some(done) = self.done.take() else { return };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| done(result))) {
            tracing::error!(why = said(&*panic), "a callback of the engine panicked");
        }
    }
}

impl<T, E> Drop for Answer<T, E> {
    fn drop(&mut self) {
        let stopped = self.stopped;
        self.call(Err(stopped()));
    }
}

/// Work that the engine thread has taken; more waits in the queue of commands.
const WORKS_MAX: usize = 64;

pub(super) type StepAnswer = Answer<StepOutput, StepError>;
pub(super) type AdoptAnswer = Answer<u64, StepError>;
pub(super) type LoadAnswer = Answer<StageHandle, LoadError>;

/// What the engine thread is asked.
pub(super) enum Command {
    Open {
        session: SessionId,
        weights: Arc<Weights>,
        client: ClientId,
        context: usize,
        kv: KvFormat,
        share: Option<Share>,
        closed: Arc<AtomicBool>,
    },
    Step {
        session: SessionId,
        input: StepInput,
        /// When.
        asked: Instant,
        answer: StepAnswer,
    },
    Truncate {
        session: SessionId,
        len: usize,
    },
    /// Let others find what it holds.
    Name {
        session: SessionId,
        keys: Vec<PageKey>,
    },
    /// Begin with what others have computed.
    Adopt {
        session: SessionId,
        keys: Vec<PageKey>,
        answer: AdoptAnswer,
    },
    Choosing {
        session: SessionId,
        choosing: Choosing,
    },
    History {
        session: SessionId,
        ids: Vec<u32>,
    },
    Adapter {
        session: SessionId,
        adapter: Option<Arc<Adapter>>,
    },
    /// Something that is computed between two passes.
    Work(Work),
    /// Look at the flags: a handle was dropped, or the engine is to stop.
    Sweep,
}

/// What the loader thread is asked.
pub(super) struct LoadJob {
    pub model: Model,
    pub tensors: Vec<TensorEntry>,
    pub part: StagePart,
    pub context: usize,
    pub planes: Planes,
    /// None is the CPU.
    pub device: Option<Device>,
    pub source: Box<dyn TensorSource>,
    pub share: Share,
    pub answer: LoadAnswer,
}

/// What the loader thread is asked for an adapter.
pub(super) struct AdapterJob {
    pub model: Model,
    pub spec: AdapterSpec,
    pub revision: RevisionId,
    pub tensors: Vec<TensorEntry>,
    pub part: StagePart,
    pub source: Box<dyn TensorSource>,
    pub share: Share,
    pub answer: Answer<AdapterHandle, LoadError>,
}

/// Either.
pub(super) enum Job {
    Stage(Box<LoadJob>),
    Adapter(Box<AdapterJob>),
}

/// What the engine thread has before it.
#[derive(Default)]
struct Desk {
    sessions: Sessions,
    /// In the order in which it was asked for; the queue of commands bounds it.
    works: VecDeque<Work>,
}

/// The engine thread: takes what it is asked and computes pass after pass, until it is stopped or nobody can ask any more.
/// Passes of stages and other work take turns.
pub(super) fn compute(hands: &Hands, queue: &Receiver<Command>, stop: &AtomicBool) {
    hands.pool.bind_caller();
    let mut desk = Desk::default();
    while desk.gather(queue) && !stop.load(Ordering::SeqCst) {
        desk.sessions.sweep();
        if desk.sessions.has_work() {
            desk.sessions.pass(hands);
        }
        if let Some(work) = desk.works.pop_front() {
            work.run(hands);
        }
    }
}

impl Desk {
    /// Takes what was asked by now: waits for something when there is nothing to compute, and a moment for those who are
    /// about to ask. False when there is nothing to compute and nobody can ask any more.
    fn gather(&mut self, queue: &Receiver<Command>) -> bool {
        if !self.sessions.has_work() && self.works.is_empty() {
            let Ok(command) = queue.recv() else { return false };
            self.take(command);
        }
        while !self.is_full() {
            let command = match queue.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    let wait = self.sessions.worth_waiting(Instant::now()).filter(|_| self.works.is_empty());
                    let Some(wait) = wait else { break };
                    let Ok(command) = queue.recv_timeout(wait) else { break };
                    command
                }
            };
            self.take(command);
        }
        true
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Work(work) => self.works.push_back(work),
            command => self.sessions.take(command),
        }
    }

    fn is_full(&self) -> bool {
        self.sessions.is_full() || self.works.len() >= WORKS_MAX
    }
}

/// The loader thread: loads one stage or adapter after the other until nobody can ask for any. What was packed is saved
/// after its stage was answered.
pub(super) fn load(jobs: &Receiver<Job>, commands: &SyncSender<Command>) {
    for job in jobs.iter() {
        match job {
            Job::Stage(job) => load_stage(*job, commands),
            Job::Adapter(job) => load_adapter(*job),
        }
    }
}

fn load_stage(job: LoadJob, commands: &SyncSender<Command>) {
    let LoadJob { model, tensors, part, context, planes, device, source, share, answer } = job;
    // The source goes in: it belongs to whoever asked, and may panic when it is dropped, too.
    let memory = share.memory.clone();
    let loaded = guarded(move || match device {
        None => on_cpu(&model, &tensors, &part, context, planes, source, &memory),
        Some(device) => on_gpu(&model, &tensors, &part, context, device, source),
    });
    match loaded.and_then(|loaded| open(loaded, context, share, commands)) {
        Err(error) => answer.give(Err(error)),
        Ok((handle, weights, unsaved)) => {
            answer.give(Ok(handle));
            let _ = guarded(move || Ok(unsaved.map(Unsaved::save)));
            // Until now: the memory that is read while saving is accounted for.
            drop(weights);
        }
    }
}

fn load_adapter(job: AdapterJob) {
    let AdapterJob { model, spec, revision, tensors, part, source, share, answer } = job;
    let loaded = guarded(move || {
        let mut source = source;
        let fitted = adapter::fit(&model, &spec, &tensors, &part)?;
        let weights = Arc::new(adapter::load(&fitted, &spec, &part, &mut *source)?);
        Ok(AdapterHandle::new(Adapter { revision, weights, shape: arch::shape(&model)?, share }))
    });
    answer.give(loaded);
}

/// Does something whose panic is a failure to load.
fn guarded<T>(work: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(LoadError::Panicked(said(&*panic))))
}

/// A stage that was just loaded, and its weights if they are to be saved.
type Fresh = (Kind, LoadReport, Option<Unsaved>);

/// Weights that were packed, and where to save them.
struct Unsaved {
    weights: Arc<CpuWeights>,
    meaning: blake3::Hash,
    source: Box<dyn TensorSource>,
}

impl Unsaved {
    fn save(mut self) {
        weights::save(self.weights.model(), &self.meaning, &mut *self.source);
    }
}

fn on_cpu(
    model: &Model,
    tensors: &[TensorEntry],
    part: &StagePart,
    context: usize,
    planes: Planes,
    mut source: Box<dyn TensorSource>,
    memory: &Arc<Memory>,
) -> Result<Fresh, LoadError> {
    let Loaded { model, conversions, unsaved } = weights::load(model, tensors, part, context, &mut *source)?;
    let (weights_bytes, bytes_a_token) = (model.bytes(), model.bytes_a_token());
    let report = LoadReport { weights_bytes, bytes_a_token, memory_bytes: 0, conversions };
    let weights = CpuWeights::new(model, planes, context, Some(memory));
    let unsaved = unsaved.map(|meaning| Unsaved { weights: weights.clone(), meaning, source });
    Ok((Kind::Cpu(weights), report, unsaved))
}

fn on_gpu(
    model: &Model,
    tensors: &[TensorEntry],
    part: &StagePart,
    context: usize,
    device: Device,
    mut source: Box<dyn TensorSource>,
) -> Result<Fresh, LoadError> {
    let weights = GpuWeights::load(model, tensors, part, context, &mut *source, device)?;
    Ok((Kind::Gpu(weights), LoadReport::default(), None))
}

/// Opens the first session on loaded weights.
fn open(
    (kind, report, unsaved): Fresh,
    context: usize,
    share: Share,
    commands: &SyncSender<Command>,
) -> Result<(StageHandle, Arc<Weights>, Option<Unsaved>), LoadError> {
    let report = LoadReport { memory_bytes: share.bytes, ..report };
    let memory = share.memory.clone();
    let weights = Arc::new(Weights::new(kind, Some(share)));
    let (session, closed) = (SessionId::fresh(), Arc::new(AtomicBool::new(false)));
    let (client, kv, share) = (ClientId::default(), KvFormat::F16, None);
    let open = Command::Open { session, weights: weights.clone(), client, context, kv, share, closed: closed.clone() };
    commands.send(open).map_err(|_| LoadError::Stopped)?;
    let kept = weights.clone();
    let parts = Parts { session, commands: commands.clone(), closed, weights, memory, context, kv, report };
    Ok((StageHandle::new(parts), kept, unsaved))
}

/// What a panic said.
pub(super) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_string())
}
