//! What the engine's two threads do.
//!
//! Invariant: every `done` is called exactly once, and a panic (of computing, loading or a callback) ends neither thread.

use super::{
    LoadError, LoadReport, Share,
    handle::{Parts, StageHandle},
};
use crate::{
    arch::StagePart,
    cpu::acts::Planes,
    sample::Sampling,
    stage::{CpuWeights, GpuWeights, Hands, Kind, Session, StepError, StepInput, StepOutput, Weights},
    weights::{self, Loaded, TensorSource},
};
use cairn_protocol::manifest::{Model, TensorEntry};
use candle_core::Device;
use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender},
    },
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

pub(super) type StepAnswer = Answer<StepOutput, StepError>;
pub(super) type LoadAnswer = Answer<StageHandle, LoadError>;

/// What the engine thread is asked.
pub(super) enum Command {
    Open {
        session: SessionId,
        weights: Arc<Weights>,
        context: usize,
        share: Option<Share>,
        closed: Arc<AtomicBool>,
    },
    Step {
        session: SessionId,
        input: StepInput,
        answer: StepAnswer,
    },
    Truncate {
        session: SessionId,
        len: usize,
    },
    Sampling {
        session: SessionId,
        sampling: Sampling,
    },
    History {
        session: SessionId,
        ids: Vec<u32>,
    },
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

/// A session as the engine thread knows it.
struct Open {
    /// What computes, or why it is lost.
    session: Result<Session, String>,
    closed: Arc<AtomicBool>,
    /// What a further session takes, given back with it; the first one's is with the weights.
    _share: Option<Share>,
}

/// The engine thread: takes commands until it is stopped or nobody can send any.
pub(super) fn compute(hands: &Hands, queue: &Receiver<Command>, stop: &AtomicBool) {
    hands.pool.bind_caller();
    let mut sessions: BTreeMap<SessionId, Open> = BTreeMap::new();
    for command in queue.iter() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        take(hands, &mut sessions, command);
        sessions.retain(|_, open| !open.closed.load(Ordering::SeqCst));
    }
}

fn take(hands: &Hands, sessions: &mut BTreeMap<SessionId, Open>, command: Command) {
    match command {
        Command::Open { session, weights, context, share, closed } => {
            let state = match catch_unwind(AssertUnwindSafe(|| Session::new(weights, context))) {
                Ok(opened) => opened.map_err(|error| error.to_string()),
                Err(panic) => Err(said(&*panic)),
            };
            sessions.insert(session, Open { session: state, closed, _share: share });
        }
        Command::Step { session, input, answer } => {
            let result = match sessions.get_mut(&session) {
                Some(open) => step(hands, open, &input),
                None => Err(StepError::Lost("it was closed".to_string())),
            };
            answer.give(result);
        }
        Command::Truncate { session, len } => live(sessions, session, |s| s.truncate(len)),
        Command::Sampling { session, sampling } => live(sessions, session, |s| s.set_sampling(sampling)),
        Command::History { session, ids } => live(sessions, session, |s| s.set_history(ids)),
        Command::Sweep => {}
    }
}

/// Changes a session that is not lost.
fn live(sessions: &mut BTreeMap<SessionId, Open>, session: SessionId, change: impl FnOnce(&mut Session)) {
    if let Some(open) = sessions.get_mut(&session) {
        // Of a lost session there is nothing to change, and its next step says so.
        let _ = guarded(open, |session| {
            change(session);
            Ok(())
        });
    }
}

fn step(hands: &Hands, open: &mut Open, input: &StepInput) -> Result<StepOutput, StepError> {
    guarded(open, |session| session.step(hands, input))
}

/// Does something with a session; a panic loses it.
fn guarded<T>(open: &mut Open, act: impl FnOnce(&mut Session) -> Result<T, StepError>) -> Result<T, StepError> {
    let session = open.session.as_mut().map_err(|why| StepError::Lost(why.clone()))?;
    match catch_unwind(AssertUnwindSafe(|| act(session))) {
        Ok(result) => result,
        Err(panic) => {
            let why = said(&*panic);
            tracing::error!(why, "a stage panicked and is lost");
            open.session = Err(why.clone());
            Err(StepError::Lost(why))
        }
    }
}

/// The loader thread: loads one stage after the other until nobody can ask for any.
pub(super) fn load(jobs: &Receiver<LoadJob>, commands: &SyncSender<Command>) {
    for job in jobs.iter() {
        let LoadJob { model, tensors, part, context, planes, device, source, share, answer } = job;
        // The source goes in: it belongs to whoever asked, and may panic when it is dropped, too.
        let loaded = catch_unwind(AssertUnwindSafe(move || -> Result<_, LoadError> {
            let mut source = source;
            let source = &mut *source;
            match device {
                None => Ok(on_cpu(weights::load(&model, &tensors, &part, context, source)?, planes, context)),
                Some(device) => Ok(on_gpu(GpuWeights::load(&model, &tensors, &part, context, source, device)?)),
            }
        }));
        answer.give(match loaded {
            Ok(Ok((kind, report))) => open(kind, report, context, share, commands),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(LoadError::Panicked(said(&*panic))),
        });
    }
}

fn on_cpu(loaded: Loaded, planes: Planes, context: usize) -> (Kind, LoadReport) {
    let report = LoadReport {
        weights_bytes: loaded.model.bytes(),
        bytes_a_token: loaded.model.bytes_a_token(),
        memory_bytes: 0,
        conversions: loaded.conversions,
    };
    (Kind::Cpu(CpuWeights::new(loaded.model, planes, context)), report)
}

fn on_gpu(weights: Arc<GpuWeights>) -> (Kind, LoadReport) {
    (Kind::Gpu(weights), LoadReport::default())
}

/// Opens the first session on loaded weights.
fn open(
    kind: Kind,
    report: LoadReport,
    context: usize,
    share: Share,
    commands: &SyncSender<Command>,
) -> Result<StageHandle, LoadError> {
    let report = LoadReport { memory_bytes: share.bytes, ..report };
    let memory = share.memory.clone();
    let weights = Arc::new(Weights::new(kind, Some(share)));
    let (session, closed) = (SessionId::fresh(), Arc::new(AtomicBool::new(false)));
    let open = Command::Open { session, weights: weights.clone(), context, share: None, closed: closed.clone() };
    commands.send(open).map_err(|_| LoadError::Stopped)?;
    Ok(StageHandle::new(Parts { session, commands: commands.clone(), closed, weights, memory, context, report }))
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arch,
        cpu::{level::Level, pool::Pool},
        tiny::{self, Tiny},
    };
    use cairn_protocol::dtype::Dtype;

    /// Weights that say a longer context than their table of angles has: a bug that panics in the middle of a pass.
    fn broken(tiny: &Tiny) -> Arc<Weights> {
        let loaded =
            weights::load(&tiny.model, &tiny.tensors, &tiny.headless(), 4, &mut *tiny.source()).expect("loads");
        Arc::new(Weights::new(Kind::Cpu(CpuWeights::new(loaded.model, Planes::Two, 64)), None))
    }

    fn ask(
        hands: &Hands,
        sessions: &mut BTreeMap<SessionId, Open>,
        session: SessionId,
        first: u64,
        count: usize,
    ) -> Result<StepOutput, StepError> {
        let (said, heard) = std::sync::mpsc::sync_channel(1);
        let input = StepInput::Tokens { first_position: first, ids: vec![1; count], sample: false };
        let answer = Answer::new(Box::new(move |result| drop(said.send(result))), || StepError::Stopped);
        take(hands, sessions, Command::Step { session, input, answer });
        heard.recv().expect("an answer")
    }

    #[test]
    fn a_panic_while_a_session_is_changed_loses_that_session_only() {
        let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::F32);
        let hands = Hands { pool: Pool::new(1).expect("pool"), level: Level::best() };
        let (mut sessions, shared) = (BTreeMap::new(), broken(&tiny));
        let [bad, good] = [SessionId::fresh(), SessionId::fresh()];
        for session in [bad, good] {
            let (weights, closed) = (shared.clone(), Arc::new(AtomicBool::new(false)));
            take(&hands, &mut sessions, Command::Open { session, weights, context: 64, share: None, closed });
        }
        live(&mut sessions, bad, |_| panic!("planned"));
        assert_eq!(ask(&hands, &mut sessions, bad, 0, 1), Err(StepError::Lost("planned".to_string())));
        take(&hands, &mut sessions, Command::Truncate { session: bad, len: 0 });
        assert!(matches!(ask(&hands, &mut sessions, bad, 0, 1), Err(StepError::Lost(_))), "it stays lost");
        assert!(ask(&hands, &mut sessions, good, 0, 4).is_ok(), "the other goes on");
    }

    #[test]
    fn a_panic_on_any_thread_in_a_pass_loses_that_session_only() {
        let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::F32);
        assert!(arch::is_served(&tiny.model));
        let hands = Hands { pool: Pool::new(3).expect("pool"), level: Level::best() };
        let (mut sessions, shared) = (BTreeMap::new(), broken(&tiny));
        let [bad, good] = [SessionId::fresh(), SessionId::fresh()];
        for session in [bad, good] {
            let (weights, closed) = (shared.clone(), Arc::new(AtomicBool::new(false)));
            take(&hands, &mut sessions, Command::Open { session, weights, context: 64, share: None, closed });
        }
        assert!(ask(&hands, &mut sessions, bad, 0, 4).is_ok());
        assert!(matches!(ask(&hands, &mut sessions, bad, 4, 20), Err(StepError::Lost(_))), "past the table");
        assert!(matches!(ask(&hands, &mut sessions, bad, 0, 1), Err(StepError::Lost(_))), "it stays lost");
        assert!(ask(&hands, &mut sessions, good, 0, 4).is_ok(), "the other goes on, on the same weights");
        assert!(matches!(ask(&hands, &mut sessions, SessionId::fresh(), 0, 1), Err(StepError::Lost(_))));
    }
}
