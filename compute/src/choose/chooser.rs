//! One session's chooser: a thread that owns its [`State`], and the handle to it.
//!
//! A thread each, so that a grammar that takes long for its masks holds up its own session and no other. Invariant: every
//! choice that is asked for is answered once, and the thread ends when the handle is dropped.

use super::{Choice, ChooseError, Demands, GrammarError, Vocabulary, state::State};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

/// The name of these threads, which catch their own panics.
pub(crate) const CHOOSER_THREAD: &str = "cairn-choose";
/// Jobs that may wait; a stage has fewer steps under way.
const JOBS_MAX: usize = 16;
/// How long a grammar may take to be ready. The fuel of a grammar's compilation is spent in a tenth of this.
const READY_MAX: Duration = Duration::from_secs(10);
/// Grammars that are prepared at one time on this machine.
const PREPARING_MAX: usize = 8;
/// Grammars are read by recursion; only what is used of a stack takes memory.
const STACK_BYTES: usize = 64 << 20;

static PREPARING: AtomicUsize = AtomicUsize::new(0);

/// Takes a choice. Called once, on the chooser's thread, or on the caller's if that has ended; must not block.
pub type Done = Box<dyn FnOnce(Result<Choice, ChooseError>) + Send>;

enum Job {
    See { first: usize, ids: Vec<u32> },
    Choose { position: u64, logits: Vec<f32>, done: Done },
}

/// Chooses the tokens of one session.
pub struct Chooser {
    jobs: SyncSender<Job>,
}

impl Chooser {
    /// Prepares a chooser for a session of which `history` are the ids so far, prompt and generated. A grammar needs the model's
    /// `vocabulary`. Blocks while the grammar is compiled, ten seconds at most.
    pub fn start(
        demands: Demands,
        vocabulary: Option<Arc<Vocabulary>>,
        history: Vec<u32>,
    ) -> Result<Chooser, GrammarError> {
        let place = Preparing::begin()?;
        let (jobs, queue) = mpsc::sync_channel(JOBS_MAX);
        let (told, ready) = mpsc::sync_channel(1);
        let work = move || {
            let made = catch_unwind(AssertUnwindSafe(|| State::new(demands, vocabulary.as_deref(), history)));
            drop(place);
            let made = made.unwrap_or_else(|_| Err(GrammarError::Malformed("its library failed".to_owned())));
            match made {
                Ok(state) if told.send(Ok(())).is_ok() => serve(state, &queue),
                Ok(_) => {}
                Err(error) => drop(told.send(Err(error))),
            }
        };
        let thread = thread::Builder::new().name(CHOOSER_THREAD.into()).stack_size(STACK_BYTES).spawn(work);
        thread.map_err(|_| GrammarError::Busy)?;
        match ready.recv_timeout(READY_MAX) {
            Ok(Ok(())) => Ok(Chooser { jobs }),
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Timeout) => Err(GrammarError::TooCostly(READY_MAX)),
            Err(RecvTimeoutError::Disconnected) => Err(GrammarError::Malformed("its library failed".to_owned())),
        }
    }

    /// Notes ids that the stage was given from position `first` on, where it sees ids at all.
    pub fn see(&self, first: u64, ids: Vec<u32>) {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        // A full queue is of a session that breaks the rules; its next choice says what is not known.
        let _ = self.jobs.try_send(Job::See { first, ids });
    }

    /// Chooses the token for `position`, given the logits after all positions before it. What was known of later positions is
    /// forgotten.
    pub fn choose(&self, position: u64, logits: Vec<f32>, done: Done) {
        if let Err(
            TrySendError::Full(Job::Choose { done, .. }) | TrySendError::Disconnected(Job::Choose { done, .. }),
        ) = self.jobs.try_send(Job::Choose { position, logits, done })
        {
            done(Err(ChooseError::Stopped));
        }
    }
}

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chooser").finish()
    }
}

/// Takes jobs until nobody can send any more, or a panic has left the state in doubt.
fn serve(mut state: State, queue: &Receiver<Job>) {
    for job in queue.iter() {
        match job {
            Job::See { first, ids } => state.see(first, &ids),
            Job::Choose { position, logits, done } => {
                let chosen = catch_unwind(AssertUnwindSafe(|| state.choose(position, logits)));
                let Ok(chosen) = chosen else { return done(Err(ChooseError::Stopped)) };
                done(chosen);
                // What it fails with, the next choice says.
                if catch_unwind(AssertUnwindSafe(|| state.prepare().is_ok())).is_err() {
                    return;
                }
            }
        }
    }
}

/// A place among the grammars that are being prepared.
struct Preparing;

impl Preparing {
    fn begin() -> Result<Preparing, GrammarError> {
        let place =
            PREPARING.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < PREPARING_MAX).then_some(n + 1));
        place.map(|_| Preparing).map_err(|_| GrammarError::Busy)
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        PREPARING.fetch_sub(1, Ordering::AcqRel);
    }
}
