//! Work that is no step of a session: computed whole between two passes, with all threads, and forgotten.
//!
//! Invariant: `done` is called exactly once, and a panic of the work loses the work only.

use super::threads::{Answer, said};
use crate::stage::Hands;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why work gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// Too much waits already.
    #[error("the engine's queue is full")]
    Busy,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// It panicked.
    #[error("computing failed: {0}")]
    Panicked(String),
}

/// One piece of work.
pub(super) struct Work {
    act: Box<dyn FnOnce(Order) + Send>,
}

/// What becomes of it.
enum Order<'a> {
    Run(&'a Hands),
    Refuse,
}

impl Work {
    pub fn new<T: Send + 'static>(
        what: impl FnOnce(&Hands) -> T + Send + 'static,
        done: impl FnOnce(Result<T, WorkError>) + Send + 'static,
    ) -> Self {
        let answer = Answer::new(Box::new(done), || WorkError::Stopped);
        let act = move |order: Order<'_>| {
            let result = match order {
                Order::Run(hands) => {
                    catch_unwind(AssertUnwindSafe(|| what(hands))).map_err(|panic| WorkError::Panicked(said(&*panic)))
                }
                Order::Refuse => Err(WorkError::Busy),
            };
            answer.give(result);
        };
        Self { act: Box::new(act) }
    }

    pub fn run(self, hands: &Hands) {
        (self.act)(Order::Run(hands));
    }

    pub fn refuse(self) {
        (self.act)(Order::Refuse);
    }
}
