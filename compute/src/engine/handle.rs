//! The handle to one session of a loaded stage.
//!
//! Invariant: when the last clone is dropped, the session's keys and values are given back, after the steps before it.

use super::{
    ClientId, LoadError, LoadReport, Memory,
    threads::{Answer, Command, SessionId},
};
use crate::{
    cpu::{kernels::KV_TILE, kv::KvFormat},
    sample::Sampling,
    stage::{Adapter, Choosing, PageKey, StepError, StepInput, StepOutput, Weights},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Instant,
};

/// A session of a stage. Clones are the same session.
#[derive(Clone)]
pub struct StageHandle {
    inner: Arc<Inner>,
}

struct Inner {
    session: SessionId,
    commands: SyncSender<Command>,
    /// Seen by the engine thread whenever it takes a command.
    closed: Arc<AtomicBool>,
    weights: Arc<Weights>,
    memory: Arc<Memory>,
    context: usize,
    kv: KvFormat,
    report: LoadReport,
}

/// What a handle is made of.
pub(super) struct Parts {
    pub session: SessionId,
    pub commands: SyncSender<Command>,
    pub closed: Arc<AtomicBool>,
    pub weights: Arc<Weights>,
    pub memory: Arc<Memory>,
    pub context: usize,
    pub kv: KvFormat,
    pub report: LoadReport,
}

impl StageHandle {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { session, commands, closed, weights, memory, context, kv, report } = parts;
        Self { inner: Arc::new(Inner { session, commands, closed, weights, memory, context, kv, report }) }
    }

    /// Computes a step. `done` is called once, on the engine thread, or at once on this one when the step is refused.
    pub fn step(&self, input: StepInput, done: Box<dyn FnOnce(Result<StepOutput, StepError>) + Send>) {
        let answer = Answer::new(done, || StepError::Stopped);
        let command = Command::Step { session: self.inner.session, input, asked: Instant::now(), answer };
        // A stopped engine drops the step, which answers so.
        if let Err(TrySendError::Full(Command::Step { answer, .. })) = self.inner.commands.try_send(command) {
            answer.give(Err(StepError::Busy));
        }
    }

    /// Forgets positions from `len` on, after the steps before. False when the engine is busy or has stopped: nothing
    /// was forgotten, and the next step would be answered `NotNext`.
    pub fn truncate(&self, len: usize) -> bool {
        self.send(Command::Truncate { session: self.inner.session, len })
    }

    /// How a last stage chooses tokens; greedy until set. False as for [`StageHandle::truncate`].
    pub fn set_sampling(&self, sampling: Sampling) -> bool {
        self.send(Command::Choosing { session: self.inner.session, choosing: Choosing::Here(sampling) })
    }

    /// A last stage hands the logits of each token out instead ([`StepOutput::Logits`]), until it is given a sampling again. Whoever
    /// takes them says what comes next; a history is not kept for it here. False as above.
    pub fn hand_out_logits(&self) -> bool {
        self.send(Command::Choosing { session: self.inner.session, choosing: Choosing::Elsewhere })
    }

    /// The ids of positions from 0 on, which a repetition penalty in a last stage needs. False as above.
    pub fn set_history(&self, ids: Vec<u32>) -> bool {
        self.send(Command::History { session: self.inner.session, ids })
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.inner.weights
    }

    pub(super) fn give_adapter(&self, adapter: Option<Arc<Adapter>>) -> bool {
        self.send(Command::Adapter { session: self.inner.session, adapter })
    }

    fn send(&self, command: Command) -> bool {
        self.inner.commands.try_send(command).is_ok()
    }

    /// Begins with what other sessions computed of the same weights, adapter and tokens: `keys` name pages of 64 positions from 0 on,
    /// and the first of them that were filed are taken over. `done` hears, on the engine thread, how many positions are held then.
    /// The session's own pages are filed under the keys as they fill, so that others find them. A key has to name everything
    /// that a page depends on beside weights and adapter: all tokens up to its end and, where hidden states come in, who is
    /// trusted to have made them. The session holds nothing yet.
    pub fn adopt(&self, keys: Vec<PageKey>, done: Box<dyn FnOnce(Result<u64, StepError>) + Send>) {
        let answer = Answer::new(done, || StepError::Stopped);
        let command = Command::Adopt { session: self.inner.session, keys, answer };
        if let Err(TrySendError::Full(Command::Adopt { answer, .. })) = self.inner.commands.try_send(command) {
            answer.give(Err(StepError::Busy));
        }
    }

    /// Files the full pages that it holds under `keys`, as in [`StageHandle::adopt`], after the steps before: ids that were generated
    /// have keys only now. False as for [`StageHandle::truncate`].
    pub fn name_pages(&self, keys: Vec<PageKey>) -> bool {
        self.send(Command::Name { session: self.inner.session, keys })
    }

    /// Bytes of pages that so many positions take.
    pub fn pages_bytes(&self, positions: u64) -> u64 {
        self.inner.weights.position_bytes(self.inner.kv) * positions.next_multiple_of(KV_TILE as u64)
    }

    /// Another session on the same weights, empty, of up to `context` positions (not more than these were loaded for).
    pub fn another(&self, context: u32) -> Result<StageHandle, LoadError> {
        self.another_for(ClientId::default(), context, KvFormat::F16)
    }

    /// The same for a client, with which it shares passes fairly, and with keys and values held as `kv`.
    pub fn another_for(&self, client: ClientId, context: u32, kv: KvFormat) -> Result<StageHandle, LoadError> {
        let (inner, facts) = (&self.inner, self.inner.weights.facts());
        let (asked, loaded) = (u64::from(context).max(1), facts.context as u64);
        if asked > loaded {
            return Err(LoadError::Context { asked, loaded });
        }
        // On a CPU it takes pages as it grows.
        let share = match inner.weights.has_pages() {
            true => None,
            false if kv != KvFormat::F16 => return Err(LoadError::KvFormat(kv)),
            false => Some(inner.memory.reserve(self.pages_bytes(asked))?),
        };
        let (session, closed) = (SessionId::fresh(), Arc::new(AtomicBool::new(false)));
        let (weights, context) = (inner.weights.clone(), asked as usize);
        let open =
            Command::Open { session, weights: weights.clone(), client, context, kv, share, closed: closed.clone() };
        inner.commands.try_send(open).map_err(|error| match error {
            TrySendError::Full(_) => LoadError::Busy,
            TrySendError::Disconnected(_) => LoadError::Stopped,
        })?;
        let (commands, memory, report) = (inner.commands.clone(), inner.memory.clone(), inner.report.clone());
        Ok(Self::new(Parts { session, commands, closed, weights, memory, context, kv, report }))
    }

    /// Bytes of memory that were reserved for the stage with its first session.
    pub fn bytes(&self) -> u64 {
        self.inner.report.memory_bytes
    }

    /// Most positions.
    pub fn context(&self) -> usize {
        self.inner.context
    }

    /// What loading did.
    pub fn report(&self) -> &LoadReport {
        &self.inner.report
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Only to wake the engine thread: where the queue is full it is awake and sees the flag.
        let _ = self.commands.try_send(Command::Sweep);
    }
}

impl std::fmt::Debug for StageHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StageHandle")
            .field("session", &self.inner.session)
            .field("context", &self.inner.context)
            .finish()
    }
}
