//! One open stage: inputs go to the engine, outputs go on, without a hop that is not needed.
//!
//! A reader task hands a step to the engine ([`Run::submit`]); the engine's thread hands the result straight to the
//! writer that sends it on. Not here: the life of the session ([`super::serve`]). Invariant: at most
//! [`bounds::STEPS_MAX`] steps of a run exist between its input and its output, so neither channel here can be full
//! unless the other end stopped reading.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cairn_compute::{
    PageKey, StageHandle, StepError, StepInput, StepOutput,
    choose::{Choice, ChooseError, Chooser, Logprobs},
};
use cairn_protocol::{
    frame::{FrameDtype, FrameHeader},
    id::{NodeId, SessionId},
    peer_pb::{self, stage_event::Event},
    refusal::Reason,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::bounds;

/// A hidden state on its way to the next stage.
pub(crate) struct Outgoing {
    pub header: FrameHeader,
    pub values: Vec<f32>,
    /// Given back when the frame is written.
    _permit: OwnedSemaphorePermit,
}

/// What a run is made of.
pub(crate) struct RunParts {
    pub session: SessionId,
    pub epoch: u32,
    pub previous: NodeId,
    pub me: NodeId,
    pub width: u32,
    pub handle: StageHandle,
    /// Its coordinator knows what to do when it is told of one.
    pub understands_eviction: bool,
    /// Of a last stage whose engine hands its logits out.
    pub chooser: Option<Chooser>,
    pub events: mpsc::Sender<peer_pb::StageEvent>,
    /// None for the last stage.
    pub frames: Option<mpsc::Sender<Outgoing>>,
}

/// A loaded stage of a session.
pub(crate) struct Run {
    parts: RunParts,
    permits: Arc<Semaphore>,
    /// Cancelled when the session ends here; the data reader and writer watch it.
    pub closed: CancellationToken,
    /// A data stream has been accepted; a second one is refused.
    claimed: AtomicBool,
    sequences: Sequences,
    /// Nanoseconds of the last step.
    step_ns: AtomicU64,
    /// Steps of one token, and the nanoseconds that they took together.
    decode_steps: AtomicU64,
    decode_ns: AtomicU64,
    /// Something happened since the session's task last looked.
    worked: AtomicBool,
    /// A loss or an eviction has been reported; the first is the cause.
    has_lost: AtomicBool,
}

/// One step's place in its session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub sequence: u64,
    pub first_position: u64,
    pub count: u32,
    pub sample: bool,
}

impl Step {
    /// The position of the token that it asks for.
    fn after(&self) -> u64 {
        self.first_position + u64::from(self.count)
    }
}

impl Run {
    pub fn new(parts: RunParts) -> Arc<Run> {
        Arc::new(Run {
            parts,
            permits: Arc::new(Semaphore::new(bounds::STEPS_MAX)),
            closed: CancellationToken::new(),
            claimed: AtomicBool::new(false),
            sequences: Sequences::default(),
            step_ns: AtomicU64::new(0),
            decode_steps: AtomicU64::new(0),
            decode_ns: AtomicU64::new(0),
            worked: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
        })
    }

    pub fn me(&self) -> NodeId {
        self.parts.me
    }

    pub fn session(&self) -> SessionId {
        self.parts.session
    }

    pub fn epoch(&self) -> u32 {
        self.parts.epoch
    }

    pub fn width(&self) -> u32 {
        self.parts.width
    }

    /// What the next beat says of the engine's work.
    pub fn beat(&self, count: u64) -> peer_pb::StageBeat {
        peer_pb::StageBeat {
            count,
            step_ns: self.step_ns.load(Ordering::Relaxed),
            decode_steps: self.decode_steps.load(Ordering::Relaxed),
            decode_ns: self.decode_ns.load(Ordering::Relaxed),
        }
    }

    fn computed(&self, step: Step, compute_ns: u64) {
        self.step_ns.store(compute_ns, Ordering::Relaxed);
        if step.count == 1 {
            self.decode_steps.fetch_add(1, Ordering::Relaxed);
            self.decode_ns.fetch_add(compute_ns, Ordering::Relaxed);
        }
    }

    /// Whether a data stream from `node` is the one this run waits for; true once.
    pub fn claim(&self, node: NodeId) -> bool {
        node == self.parts.previous && !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// Room for one more step.
    pub async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = self.permits.clone();
        permits.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Room for one more step, if there is some now.
    pub fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Whether a step was taken since the last call.
    pub fn take_worked(&self) -> bool {
        self.worked.swap(false, Ordering::Relaxed)
    }

    /// Whether a step is new: a repeated or overtaken one is dropped, so that sending twice changes nothing.
    pub fn is_new(&self, sequence: u64) -> bool {
        self.sequences.take(sequence)
    }

    /// Gives the engine a step; its thread passes the result on.
    pub fn submit(self: &Arc<Self>, step: Step, input: StepInput, permit: OwnedSemaphorePermit) {
        self.worked.store(true, Ordering::Relaxed);
        if let (Some(chooser), StepInput::Tokens { first_position, ids, .. }) = (&self.parts.chooser, &input) {
            chooser.see(*first_position, ids.clone());
        }
        let run = self.clone();
        let done = move |result| match result {
            Ok(output) => run.pass_on(step, output, permit),
            Err(StepError::Evicted) if run.parts.understands_eviction => run.say_evicted(),
            Err(error) => run.lose(run.parts.me, format!("a step failed: {error}")),
        };
        self.parts.handle.step(input, Box::new(done));
    }

    /// Forgets positions from `length` on.
    pub fn truncate(&self, length: u64) {
        if !self.parts.handle.truncate(usize::try_from(length).unwrap_or(usize::MAX)) {
            self.lose(self.parts.me, "the engine's queue is full".to_owned());
        }
    }

    /// Lets the asker's later sessions find what this one computed, under these keys.
    pub fn name_pages(&self, keys: Vec<PageKey>) {
        // A busy engine keeps nothing, and nothing is lost.
        self.parts.handle.name_pages(keys);
    }

    /// Tells the coordinator, once, that the session has to begin again.
    fn say_evicted(&self) {
        if !self.has_lost.swap(true, Ordering::AcqRel) {
            self.say(Event::Evicted(peer_pb::StageEvicted {}));
        }
    }

    /// Reports that `node` is lost to this stage, once. The session stays until its coordinator closes it, so that the
    /// dead one is blamed and not the messenger.
    pub fn lose(&self, node: NodeId, why: String) {
        if self.closed.is_cancelled() || self.has_lost.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::info!(session = %self.parts.session, lost = %node.short(), why, "stage link lost");
        let lost = peer_pb::StageLost { node: node.as_bytes().to_vec(), why };
        self.say(Event::Lost(lost));
    }

    fn pass_on(self: &Arc<Self>, step: Step, output: StepOutput, permit: OwnedSemaphorePermit) {
        match output {
            StepOutput::Hidden { values, compute_ns } => {
                self.computed(step, compute_ns);
                self.send_on(step, values, permit);
            }
            StepOutput::Token { token, compute_ns } => {
                self.computed(step, compute_ns);
                self.say_token(step, Choice { token, logprobs: None });
            }
            StepOutput::Logits { values, compute_ns } => {
                self.computed(step, compute_ns);
                self.choose(step, values, permit);
            }
            StepOutput::Nothing { compute_ns } => self.computed(step, compute_ns),
        }
    }

    /// Has a token chosen, off the engine's thread.
    fn choose(self: &Arc<Self>, step: Step, logits: Vec<f32>, permit: OwnedSemaphorePermit) {
        let Some(chooser) = &self.parts.chooser else {
            return self.lose(self.parts.me, "an engine handed logits out to nobody".to_owned());
        };
        let run = self.clone();
        let done = move |chosen: Result<Choice, ChooseError>| {
            match chosen {
                Ok(choice) => run.say_token(step, choice),
                Err(error) => run.say_unchosen(&error),
            }
            drop(permit);
        };
        chooser.choose(step.after(), logits, Box::new(done));
    }

    fn say_token(&self, step: Step, choice: Choice) {
        let logprobs = choice.logprobs.map(|Logprobs { chosen, best }| {
            let (best, best_logprobs) = best.into_iter().unzip();
            peer_pb::TokenLogprobs { logprob: chosen, best, best_logprobs }
        });
        let (epoch, sequence, token) = (self.parts.epoch, step.sequence, choice.token);
        self.say(Event::Token(peer_pb::StageToken { epoch, sequence, position: step.after(), token, logprobs }));
    }

    fn say_unchosen(&self, error: &ChooseError) {
        let reason = match error {
            ChooseError::Grammar(_) => Reason::Limit,
            ChooseError::UnknownPast { .. } | ChooseError::Stopped => Reason::Internal,
        };
        self.say(Event::Unchosen(peer_pb::Refused { reason: reason.code().to_owned(), why: error.to_string() }));
    }

    fn send_on(&self, step: Step, values: Vec<f32>, permit: OwnedSemaphorePermit) {
        let Some(frames) = &self.parts.frames else {
            return self.lose(self.parts.me, "a last stage made a hidden state".to_owned());
        };
        let header = FrameHeader {
            session: self.parts.session,
            epoch: self.parts.epoch,
            sequence: step.sequence,
            first_position: step.first_position,
            count: step.count,
            width: self.parts.width,
            dtype: FrameDtype::F32,
            sample: step.sample,
        };
        if frames.try_send(Outgoing { header, values, _permit: permit }).is_err() {
            self.lose(self.parts.me, "the link to the next stage is closed".to_owned());
        }
    }

    /// Tells the coordinator. One that reads nothing for a whole queue of events is gone.
    pub fn say(&self, event: Event) {
        if self.parts.events.try_send(peer_pb::StageEvent { event: Some(event) }).is_err() {
            self.closed.cancel();
        }
    }
}

/// Which sequences a run has taken: each more than the one before.
#[derive(Default)]
struct Sequences {
    /// Highest sequence taken, plus one.
    next: AtomicU64,
}

impl Sequences {
    /// Whether a sequence is new; it is taken then. The last number of all is never new: nothing could come after it.
    fn take(&self, sequence: u64) -> bool {
        let Some(next) = sequence.checked_add(1) else { return false };
        if sequence < self.next.load(Ordering::Acquire) {
            return false;
        }
        self.next.store(next, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_new_once_and_the_last_number_of_all_never_is() {
        let sequences = Sequences::default();
        assert!(sequences.take(0) && !sequences.take(0));
        assert!(!sequences.take(u64::MAX), "a peer may send any number");
        assert!(sequences.take(7) && !sequences.take(1));
        assert!(sequences.take(u64::MAX - 1) && !sequences.take(u64::MAX));
    }
}
