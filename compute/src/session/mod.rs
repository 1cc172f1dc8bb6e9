//! One generation, seen from its coordinator: which stages it runs on, what it sends them, what it does when one dies.
//!
//! [`Session`] is a [`Machine`](cairn_protocol::machine::Machine): inputs and the time go in, effects come out, and
//! nothing here waits, opens a connection, reads a clock or throws dice. It is *not* a tokenizer (ids in, ids out; stop
//! strings are the driver's, see [`Input::StopMatched`]), *not* a planner (it asks with [`Effect::MakePlan`]) and *not*
//! a transport.
//!
//! Invariant: the ids that [`Effect::Emit`] carries are those of an undisturbed run, each once and in order, whatever
//! stages die, whatever arrives late or twice. It holds because the only ground truth is `prompt + emitted ids`; a
//! recovery rebuilds every stage from exactly that, and the choice of a token depends on (seed, position, logits)
//! alone.
//!
//! # Driving it
//!
//! ```text
//! let mut session = Session::new(config);                    // nothing happens yet
//! session.step(now_ms, Input::Start, &mut effects);          // → MakePlan
//! loop {
//!     for effect in effects.drain(..) { carry it out; never wait for the other end while doing so }
//!     select! {
//!         input = next thing that happened => session.step(now_ms, input, &mut effects),
//!         _ = sleep_until(session.wake_at()) => session.wake(now_ms, &mut effects),
//!     }
//! }                                                          // until Effect::Finish, which is always the last effect
//! ```
//!
//! `now_ms` is any clock that never goes back; [`Config::deadline_ms`] is on the same clock.
//!
//! | effect | the driver |
//! |---|---|
//! | `MakePlan{epoch, excluded, bound, may_wait}` | gathers candidates, calls `plan::plan` with `excluded`, `bound` and `may_wait`, answers `PlanMade{epoch, plan}` or `PlanFailed{epoch, refusal}` |
//! | `Open{epoch, plan, history, wait_ms}` | opens a control stream to every stage of `plan` at once (`OpenStage` with that epoch; the last stage also gets `history`, the ids that a repetition penalty counts). Events that come back become `StageProgress`, `StageReady`, `Evicted`, `StageRefused`, `Beat`, `Token`, `Lost`, each with the epoch of the `Open` that made the stream. When a control stream ends or can't be opened: `LinkClosed` |
//! | `Send{epoch, sequence, …}` | writes a `StageInput` to the first stage, in order. When it is written (flow control let it through): `Sent{epoch, sequence}`. At most [`SENDS_IN_FLIGHT`] unanswered `Send`s exist, so the driver's queue is that long |
//! | `Emit{index, position, id}` | shows the token to the client (through `text::Stream`); when the text matched a stop string: `StopMatched`, before the next `wake`, so that the last permitted token may stop too |
//! | `Close{epoch}` | sends `Close` to every stage of that epoch and drops its streams; later events of that epoch may still be delivered here, they are ignored |
//! | `Recovered(..)` | reports it; it comes just before the first token after a death |
//! | `Finish(..)` | ends the stream to the client |
//!
//! Heartbeats: a network task beside every control stream (not the engine thread, not this machine) sends a beat each
//! [`BEAT_MS`] in both directions, from the moment the stream is accepted, also while weights load. The machine only
//! judges silence. A stage whose neighbour is gone keeps its control stream open, says `Lost{node}` and waits for
//! `Close`, so that the dead one is blamed and not the messenger.
//!
//! Stages may hold the beginning already, from an earlier session that began alike: sending begins where the one that holds least
//! ends. A stage whose keys and values made room for another session's says `Evicted`: the same plan is opened again in a new epoch,
//! which is nobody's fault and no recovery.
//!
//! Busy nodes are left out at first, as others may be free. When no plan is left, the busy ones are asked again and may keep the
//! session waiting in line, for [`Config::wait_ms`] in all.
//!
//! Positions: a token's position is its place in `prompt + generated`; the first generated token has position
//! `prompt.len()`. A `Send` whose `sample` is set asks for the token at `first_position + tokens.len()`, and that is
//! the `position` of the `Token` that answers it and of `sample::choose`.

mod laps;
mod liveness;
mod machine;
#[cfg(test)]
mod simulation;

use crate::plan::{Bound, Plan};
use cairn_protocol::id::NodeId;
use cairn_protocol::refusal::Refusal;
use std::collections::BTreeSet;

pub use machine::Session;

/// How often each end of a control stream says that it lives.
pub const BEAT_MS: u64 = 100;
/// Silence after which a stage is suspect, to which the lap's p99 is added: four beats, so one lost and one late are
/// forgiven.
pub const SUSPECT_MS: u64 = 400;
/// Most that slow laps may add to [`SUSPECT_MS`], so that a pause stays under two seconds.
pub const SUSPECT_LAP_MS_MAX: u64 = 600;
/// Silence allowed while a stage loads and has beaten at least once: disks and page faults make even network tasks
/// late.
pub const SUSPECT_LOADING_MS: u64 = 1_500;
/// Silence allowed before a stage's first sign of life: a connection has to be made.
pub const FIRST_SIGN_MS: u64 = 5_000;
/// A wake-up this late says that this machine itself stood still, and that beats may lie unread: it proves nobody's
/// death.
pub const LATE_WAKE_MS: u64 = 100;
/// What a late wake-up grants every stage to be heard again.
pub const LATE_GRACE_MS: u64 = 200;
/// `Send`s without their `Sent`: enough to keep the first stage busy while the next chunk travels.
pub const SENDS_IN_FLIGHT: usize = 4;
/// Recoveries in a row without one new token, after which the session gives up.
pub const RECOVERIES_WITHOUT_TOKEN_MAX: u32 = 8;
/// Evictions in a row without one new token, after which a stage that says so is taken for lost.
pub const EVICTIONS_WITHOUT_TOKEN_MAX: u32 = 64;
/// Plans asked for in one recovery, about half a minute with the pauses between; then nobody is coming back.
pub const PLANS_FAILED_MAX: u32 = 10;
/// First pause before a plan that failed in a recovery is tried again; doubles up to [`RETRY_MS_MAX`].
pub const RETRY_MS: u64 = 250;
/// Longest pause between two tries to plan.
pub const RETRY_MS_MAX: u64 = 4_000;

/// What a generation is, fixed before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// The prompt's ids; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub tokens_max: u64,
    /// Most positions that stages keep, prompt included.
    pub context: u64,
    /// Ids that end the generation; the one met is emitted.
    pub eos: Vec<u32>,
    /// Ids at or above this can't come from an honest stage.
    pub vocabulary: u32,
    /// Prompt tokens in one frame.
    pub chunk_tokens: usize,
    /// `Some(n)`: the first plan has exactly n different nodes.
    pub stages: Option<usize>,
    /// When the request ends whatever happens, on the clock of `now_ms`.
    pub deadline_ms: u64,
    /// The node whose death is this session's death; never excluded.
    pub coordinator: NodeId,
    /// How long the session waits for places where all nodes that could take it are busy; 0 is not at all.
    pub wait_ms: u64,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Begin. Anything before it is ignored.
    Start,
    /// The answer to `MakePlan` of this epoch.
    PlanMade {
        /// Of the `MakePlan` answered.
        epoch: u32,
        /// Where the layers go.
        plan: Plan,
    },
    /// No plan for this epoch.
    PlanFailed {
        /// Of the `MakePlan` answered.
        epoch: u32,
        /// Why, for the person who asked.
        refusal: Refusal,
    },
    /// Stage `index` is fetching or loading.
    StageProgress {
        /// Of its `Open`.
        epoch: u32,
        /// Index in the plan's stages.
        index: usize,
    },
    /// Stage `index` has its weights and its link to the next.
    StageReady {
        /// Of its `Open`.
        epoch: u32,
        /// Index in the plan's stages.
        index: usize,
        /// Positions from 0 on that it holds already.
        held: u64,
    },
    /// What stage `index` held made room for another session.
    Evicted {
        /// Of its `Open`.
        epoch: u32,
        /// Index in the plan's stages.
        index: usize,
    },
    /// Stage `index` will not serve.
    StageRefused {
        /// Of its `Open`.
        epoch: u32,
        /// Index in the plan's stages.
        index: usize,
        /// Its reason.
        refusal: Refusal,
    },
    /// Stage `index` lives.
    Beat {
        /// Of its `Open`.
        epoch: u32,
        /// Index in the plan's stages.
        index: usize,
    },
    /// The control stream of stage `index` ended or could not be made.
    LinkClosed {
        /// Of its `Open`.
        epoch: u32,
        /// Index in the plan's stages.
        index: usize,
        /// What the transport said.
        why: String,
    },
    /// Stage `index` says that it, or its neighbour `node`, is lost.
    Lost {
        /// Of its `Open`.
        epoch: u32,
        /// Who says so.
        index: usize,
        /// Who is lost.
        node: NodeId,
        /// What it saw.
        why: String,
    },
    /// A `Send` was written to the first stage's stream.
    Sent {
        /// Of the `Send`.
        epoch: u32,
        /// Of the `Send`.
        sequence: u64,
    },
    /// The last stage chose a token.
    Token {
        /// Of its `Open`.
        epoch: u32,
        /// Of the `Send` that asked for it.
        sequence: u64,
        /// Its place in prompt + generated.
        position: u64,
        /// The token.
        id: u32,
    },
    /// The driver found a stop string in the text.
    StopMatched,
    /// The client went away or said stop.
    Cancel,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Find places for the layers.
    MakePlan {
        /// To be named in the answer.
        epoch: u32,
        /// Nodes that died or refused in this session.
        excluded: BTreeSet<NodeId>,
        /// How many nodes.
        bound: Bound,
        /// Nodes whose places are taken may be planned with.
        may_wait: bool,
    },
    /// Open every stage of the plan.
    Open {
        /// Of the streams to open.
        epoch: u32,
        /// Where the layers go.
        plan: Plan,
        /// Prompt and generated ids so far, for the last stage's repetition penalty.
        history: Vec<u32>,
        /// How long stages may wait for their places; 0 is refused at once.
        wait_ms: u64,
    },
    /// Tokens for the first stage.
    Send {
        /// Of the streams to use.
        epoch: u32,
        /// Counts from 0 in each epoch.
        sequence: u64,
        /// Position of the first of `tokens`.
        first_position: u64,
        /// The ids.
        tokens: Vec<u32>,
        /// The last stage samples after the last of them.
        sample: bool,
    },
    /// A new token for the client.
    Emit {
        /// Counts generated tokens from 0.
        index: u64,
        /// Its place in prompt + generated.
        position: u64,
        /// The token.
        id: u32,
    },
    /// Be done with the streams of an epoch.
    Close {
        /// Which.
        epoch: u32,
    },
    /// The generation goes on after a loss; the next effect is the token.
    Recovered(Recovery),
    /// The end; the last effect of a session.
    Finish(Finish),
}

/// A loss that was mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Who was lost since the last token, with what was seen, in order.
    pub lost: Vec<(NodeId, String)>,
    /// The epoch that goes on.
    pub epoch: u32,
    /// Last sign of life of the (first) lost stage → its loss known.
    pub noticed_ms: u64,
    /// Loss known → new plan.
    pub replanned_ms: u64,
    /// New plan → all stages ready.
    pub opened_ms: u64,
    /// All stages ready → first new token, which includes replaying prompt and generated ids.
    pub replayed_ms: u64,
    /// What the client felt: last sign of life → first new token. The sum of the parts.
    pub pause_ms: u64,
}

impl Recovery {
    /// New plan → first new token.
    pub fn rebuilt_ms(&self) -> u64 {
        self.opened_ms + self.replayed_ms
    }
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// An end-of-sequence token or a stop string.
    Stop,
    /// `tokens_max` or the context is full.
    Length,
    /// The client cancelled.
    Cancelled,
    /// It could not go on.
    Failed(Refusal),
}
