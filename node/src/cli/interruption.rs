//! Being told to stop in the middle: Ctrl-C, SIGTERM, and the terminal going away (SIGHUP).
//!
//! For commands that leave something to clean up. Invariant: from [`Interruption::listen`] on, no such signal ends the
//! process by itself, so what the work holds (processes, temporary folders) is dropped in order.

use std::future::Future;

use cairn_protocol::refusal::{Reason, Refusal};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output;

/// Handlers of the signals that interrupt.
pub(super) struct Interruption {
    interrupt: Signal,
    terminate: Signal,
    /// None where whoever started us had it ignored, as `nohup` does.
    hangup: Option<Signal>,
}

impl Interruption {
    /// Installs the handlers. A signal that comes before anybody waits is kept.
    pub(super) fn listen() -> Result<Interruption, Refusal> {
        let listen = |kind| signal(kind).map_err(|error| output::failed("signals", &error));
        let hangup = if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) };
        Ok(Interruption {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup,
        })
    }

    /// Waits for the next signal. Dropped, it loses none.
    pub(super) async fn comes(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = hangup => (),
        }
    }
}

/// Runs `work` to its end; a signal drops it, and with it all that it holds.
pub(super) async fn or_interrupted<T>(
    what: &str,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let mut interruption = Interruption::listen()?;
    tokio::select! {
        done = work => done,
        () = interruption.comes() => Err(interrupted(what)),
    }
}

/// What an interrupted command says.
pub(super) fn interrupted(what: &str) -> Refusal {
    Refusal::new(Reason::Cancelled, what, "interrupted; nothing is left behind").try_this(what)
}

/// Whether SIGHUP, signal 1, was ignored when this process began; Linux says so.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
