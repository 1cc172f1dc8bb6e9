//! One session of a stage: what it holds, how it samples, and what a step does. Pure computing on the caller's thread;
//! the engine gives it one, and decides whose turn it is.
//!
//! A step is begun, computed in one turn or several, and finished. Turns of sessions that share their weights may share a
//! pass on the CPU ([`cpu`]); on a GPU ([`gpu`]) a step is one turn, alone.
//!
//! Invariant: until a step is finished, the session holds the positions it held before, so a step that failed may be sent
//! again.

mod adapter;
mod cpu;
mod gpu;
pub(crate) mod pages;

pub(crate) use adapter::Adapter;
pub(crate) use cpu::CpuWeights;
pub(crate) use gpu::{GpuError, GpuWeights};
pub use pages::PageKey;

use crate::{
    cpu::{cache::Full, kernels::KV_TILE, kv::KvFormat, level::Level, pool::Pool, work::SAMPLED_MAX},
    engine::Share,
    sample::{self, Sampling},
};
use cairn_protocol::id::RevisionId;
use cpu::{CpuStage, Piece, Wants};
use gpu::GpuStage;
use smallvec::SmallVec;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Sessions of a pass up to which its lists take no memory from the system: more than it gives tokens.
pub(crate) const SESSIONS_USUAL: usize = 2 * SAMPLED_MAX;

/// What a stage is given to compute.
#[derive(Clone, Debug, PartialEq)]
pub enum StepInput {
    /// Token ids, for a stage with the embedding.
    Tokens {
        /// The position of the first; it follows the last that the stage holds.
        first_position: u64,
        /// The tokens.
        ids: Vec<u32>,
        /// Whether a last stage samples at the last position.
        sample: bool,
    },
    /// Hidden states of the stage before.
    Hidden {
        /// The position of the first; it follows the last that the stage holds.
        first_position: u64,
        /// Positions.
        count: u32,
        /// Token-major, `count` times the model's width.
        values: Vec<f32>,
        /// Whether a last stage samples at the last position.
        sample: bool,
    },
}

impl StepInput {
    /// The position of its first token or hidden state.
    pub fn first_position(&self) -> u64 {
        match self {
            Self::Tokens { first_position, .. } | Self::Hidden { first_position, .. } => *first_position,
        }
    }
}

/// What a stage has computed.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutput {
    /// Hidden states for the next stage, token-major.
    Hidden {
        /// As many rows of the model's width as there were positions.
        values: Vec<f32>,
        /// Time spent computing.
        compute_ns: u64,
    },
    /// The token that a last stage chose for the position after the last.
    Token {
        /// Its id.
        token: u32,
        /// Time spent computing.
        compute_ns: u64,
    },
    /// What a last stage's token is chosen from, where another does that.
    Logits {
        /// One for each id, after the last position.
        values: Vec<f32>,
        /// Time spent computing.
        compute_ns: u64,
    },
    /// A last stage that was not asked to sample.
    Nothing {
        /// Time spent computing.
        compute_ns: u64,
    },
}

/// Why a step was not computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Positions have to follow each other.
    #[error("the input begins at position {got}, the stage holds {held}")]
    NotNext {
        /// Positions held.
        held: u64,
        /// Where the input begins.
        got: u64,
    },
    /// More positions than the context the stage was loaded with.
    #[error("{needed} positions are more than the context of {context}")]
    TooLong {
        /// Positions that the step would make.
        needed: u64,
        /// The most.
        context: u64,
    },
    /// A token that the vocabulary has not.
    #[error("token {id} is not in a vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Tokens known.
        vocabulary: u32,
    },
    /// Tokens to a stage without the embedding, hidden states to one with it, or no positions at all.
    #[error("{0}")]
    WrongInput(&'static str),
    /// Not `count` times the width.
    #[error("{got} values came for {count} positions of width {width}")]
    WrongSize {
        /// Values that came.
        got: usize,
        /// Positions announced.
        count: u32,
        /// The model's width.
        width: usize,
    },
    /// Infinities or NaNs in a hidden state.
    #[error("the hidden state holds values that are not finite")]
    NotFinite,
    /// Its keys and values made room for another session's. Nothing is held, and its positions may be sent again from 0.
    #[error("its keys and values made room for another session's")]
    Evicted,
    /// Not even alone it fits the memory that stages may have.
    #[error("keys and values of {needed} positions don't fit the memory that is left")]
    NoRoom {
        /// Positions that the step would make.
        needed: u64,
    },
    /// The stage is gone after a panic; its session has to be opened elsewhere or again.
    #[error("the stage is lost: {0}")]
    Lost(String),
    /// The engine's queue is full.
    #[error("the engine is busy: its queue is full")]
    Busy,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// Threads and instructions.
pub(crate) struct Hands {
    pub pool: Pool,
    pub level: Level,
}

/// What is known of a loaded stage, whatever computes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub width: usize,
    pub vocabulary: usize,
    pub has_embedding: bool,
    pub has_head: bool,
    /// Positions that the table of angles covers.
    pub context: usize,
}

/// Loaded weights; sessions share them.
pub(crate) struct Weights {
    kind: Kind,
    /// The memory they take, given back with them.
    _share: Option<Share>,
}

pub(crate) enum Kind {
    Cpu(Arc<CpuWeights>),
    Gpu(Arc<GpuWeights>),
}

impl Weights {
    pub fn new(kind: Kind, share: Option<Share>) -> Self {
        Self { kind, _share: share }
    }

    pub fn facts(&self) -> Facts {
        match &self.kind {
            Kind::Cpu(weights) => weights.facts(),
            Kind::Gpu(weights) => weights.facts(),
        }
    }

    /// Whether an adapter was loaded for just such weights.
    pub fn takes(&self, adapter: &Adapter) -> bool {
        match &self.kind {
            Kind::Cpu(weights) => weights.takes(adapter),
            Kind::Gpu(_) => false,
        }
    }

    /// Whether their sessions take memory page by page.
    pub fn has_pages(&self) -> bool {
        matches!(self.kind, Kind::Cpu(_))
    }

    /// Whether sessions on them share passes.
    pub fn shares_passes(&self) -> bool {
        matches!(self.kind, Kind::Cpu(_))
    }

    /// Bytes of keys and values that one position takes.
    pub fn position_bytes(&self, kv: KvFormat) -> u64 {
        match &self.kind {
            Kind::Cpu(weights) => weights.position_bytes(kv),
            Kind::Gpu(weights) => weights.position_bytes(),
        }
    }

    fn open(&self, context: usize, kv: KvFormat) -> Result<Seat, StepError> {
        Ok(match &self.kind {
            Kind::Cpu(weights) => Seat::Cpu(weights.open(kv)),
            Kind::Gpu(weights) => Seat::Gpu(weights.open(context)?),
        })
    }
}

/// Where a session's keys and values are.
enum Seat {
    Cpu(CpuStage),
    Gpu(GpuStage),
}

/// Positions to compute after the `held` that came before. Every number and value was checked.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub input: Checked<'a>,
    pub held: usize,
    pub count: usize,
    pub sample: bool,
}

/// A step's input after every check.
#[derive(Clone, Copy)]
pub(crate) enum Checked<'a> {
    Ids(&'a [u32]),
    Values(&'a [f32]),
}

impl<'a> Checked<'a> {
    fn ids(&self) -> &'a [u32] {
        if let Self::Ids(ids) = self { ids } else { &[] }
    }

    fn values(&self) -> &'a [f32] {
        if let Self::Values(values) = self { values } else { &[] }
    }
}

/// Who chooses a last stage's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Choosing {
    /// The pass, at its end.
    Here(Sampling),
    /// Who is handed the logits.
    Elsewhere,
}

/// What was computed.
pub(crate) enum Made {
    Hidden(Vec<f32>),
    Token(u32),
    Nothing,
}

/// A session of a stage.
pub(crate) struct Session {
    seat: Seat,
    facts: Facts,
    /// Positions held.
    held: usize,
    /// Most positions.
    context: usize,
    choosing: Choosing,
    /// Ids by position, as far as they are known: what a penalty reads.
    history: Vec<u32>,
    /// What it adds to the weights.
    adapter: Option<Arc<Adapter>>,
    /// What it held made room for others, and who asks has not been told to begin again, or has not done so.
    is_evicted: bool,
    /// What it computes with; keeps their memory reserved.
    weights: Arc<Weights>,
}

impl Session {
    /// A session of up to `context` positions; on a GPU keys and values are held as it likes.
    pub fn new(weights: Arc<Weights>, context: usize, kv: KvFormat) -> Result<Self, StepError> {
        let facts = weights.facts();
        let context = context.min(facts.context);
        let seat = weights.open(context, kv)?;
        let (choosing, history) = (Choosing::Here(Sampling::GREEDY), Vec::new());
        Ok(Self { seat, facts, held: 0, context, choosing, history, adapter: None, is_evicted: false, weights })
    }

    pub fn set_choosing(&mut self, choosing: Choosing) {
        self.choosing = choosing;
    }

    /// Ids of positions from 0 on: the prompt, for a last stage that does not see tokens.
    pub fn set_history(&mut self, ids: Vec<u32>) {
        self.history = ids;
        self.history.truncate(self.context);
    }

    /// Forgets positions from `len` on. More than are held changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.held = self.held.min(len);
        if let Seat::Cpu(stage) = &mut self.seat {
            stage.truncate(self.held);
        }
    }

    /// Begins with the positions that others have computed under the first of these keys, on a CPU; says how many. It must hold
    /// none yet. Its own pages are filed under the keys as they fill: whoever gives them vouches that they name all that
    /// the pages depend on beside weights and adapter.
    pub fn adopt(&mut self, keys: Vec<PageKey>) -> usize {
        let adapter = self.adapter();
        if let Seat::Cpu(stage) = &mut self.seat
            && self.held == 0
        {
            let context = self.context / KV_TILE;
            self.held = stage.adopt(keys.iter().take(context).map(|key| of_adapter(*key, adapter)).collect());
        }
        self.held
    }

    /// What was adopted is there to be begun from anywhere: other stages of the session may hold less.
    fn begin_earlier(&mut self, input: &StepInput) {
        let first = input.first_position();
        if let Seat::Cpu(stage) = &mut self.seat
            && stage.has_just_adopted()
            && first < self.held as u64
        {
            self.truncate(first as usize);
        }
    }

    /// Files the pages that it holds under these keys, from position 0 on.
    pub fn name_pages(&mut self, keys: Vec<PageKey>) {
        let adapter = self.adapter();
        if let Seat::Cpu(stage) = &mut self.seat {
            stage.name_pages(keys.into_iter().map(|key| of_adapter(key, adapter)).collect(), self.held);
        }
    }

    /// Sees to it that the next `count` positions of a step have pages.
    pub fn reserve(&mut self, step: &UnderWay, count: usize) -> Result<(), Full> {
        let at = self.held + step.done..self.held + step.done + count;
        match &mut self.seat {
            Seat::Cpu(stage) => stage.reserve(at),
            Seat::Gpu(_) => Ok(()),
        }
    }

    /// Positions held.
    pub fn held(&self) -> u64 {
        self.held as u64
    }

    /// Gives up all that it holds, so that others have room. Its next step is answered [`StepError::Evicted`] unless it begins
    /// again.
    pub fn evict(&mut self) {
        self.held = 0;
        self.is_evicted = true;
        if let Seat::Cpu(stage) = &mut self.seat {
            stage.evict();
        }
    }

    /// Bytes that evicting it would free at once.
    pub fn own_bytes(&self) -> u64 {
        match &self.seat {
            Seat::Cpu(stage) => stage.own_bytes(),
            Seat::Gpu(_) => 0,
        }
    }

    /// Computes with an adapter that fits the weights, or with none. Positions that were computed with another are forgotten.
    pub fn set_adapter(&mut self, adapter: Option<Arc<Adapter>>) {
        if self.adapter() != adapter.as_ref().map(|adapter| adapter.revision) {
            self.truncate(0);
            if let Seat::Cpu(stage) = &mut self.seat {
                stage.forget_keys();
            }
        }
        self.adapter = adapter;
    }

    /// The revision of its adapter: what keys and values depend on beside tokens and weights.
    pub fn adapter(&self) -> Option<RevisionId> {
        self.adapter.as_ref().map(|adapter| adapter.revision)
    }

    /// The weights it computes with.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Checks a step, which may be computed then.
    pub fn begin(&mut self, input: StepInput) -> Result<UnderWay, StepError> {
        self.begin_earlier(&input);
        let (count, sample) = self.check(&input)?;
        self.is_evicted = false;
        if let StepInput::Tokens { ids, .. } = &input {
            self.history.truncate(self.held);
            if self.history.len() == self.held {
                self.history.extend_from_slice(ids);
            }
        }
        let hidden = if self.facts.has_head { Vec::new() } else { vec![0.0; count * self.facts.width] };
        let (token, logits, compute) = (None, None, Duration::ZERO);
        let sample = sample && self.facts.has_head;
        Ok(UnderWay { input, count, sample, done: 0, hidden, token, logits, compute })
    }

    /// A whole step at once, alone.
    #[cfg(test)]
    pub fn step(&mut self, hands: &Hands, input: &StepInput) -> Result<StepOutput, StepError> {
        let mut step = self.begin(input.clone())?;
        while step.left() > 0 {
            let count = step.left().min(crate::cpu::work::PASS_TOKENS_MAX);
            self.reserve(&step, count).expect("there is room");
            compute(hands, &mut [Turn { session: self, step: &mut step, count }])?;
        }
        Ok(self.finish(step))
    }

    /// Takes in a step of which nothing is left.
    pub fn finish(&mut self, step: UnderWay) -> StepOutput {
        self.held += step.count;
        if let Seat::Cpu(stage) = &mut self.seat {
            stage.file(self.held);
        }
        let compute_ns = step.compute.as_nanos() as u64;
        if let Some(values) = step.logits {
            return StepOutput::Logits { values, compute_ns };
        }
        match step.token {
            Some(token) => {
                self.remember(token);
                StepOutput::Token { token, compute_ns }
            }
            None if self.facts.has_head => StepOutput::Nothing { compute_ns },
            None => StepOutput::Hidden { values: step.hidden, compute_ns },
        }
    }

    /// Notes the token of the position after the last.
    fn remember(&mut self, token: u32) {
        if self.history.len() >= self.held {
            self.history.truncate(self.held);
            self.history.push(token);
        }
    }

    /// How many positions a step has, and whether it asks for a token.
    fn check(&self, input: &StepInput) -> Result<(usize, bool), StepError> {
        let (first, count, sample) = match input {
            StepInput::Tokens { first_position, ids, sample } => (*first_position, ids.len(), *sample),
            StepInput::Hidden { first_position, count, sample, .. } => (*first_position, *count as usize, *sample),
        };
        let (held, context) = (self.held as u64, self.context as u64);
        if count == 0 {
            return Err(StepError::WrongInput("the input holds no position"));
        }
        if self.is_evicted && first != held {
            return Err(StepError::Evicted);
        }
        if first != held {
            return Err(StepError::NotNext { held, got: first });
        }
        let needed = held + count as u64;
        if needed > context {
            return Err(StepError::TooLong { needed, context });
        }
        self.check_values(input)?;
        Ok((count, sample))
    }

    fn check_values(&self, input: &StepInput) -> Result<(), StepError> {
        let Facts { width, vocabulary, has_embedding, .. } = self.facts;
        match input {
            StepInput::Tokens { .. } if !has_embedding => {
                Err(StepError::WrongInput("tokens came to a stage without the embedding"))
            }
            StepInput::Hidden { .. } if has_embedding => {
                Err(StepError::WrongInput("hidden states came to a stage that begins with tokens"))
            }
            StepInput::Tokens { ids, .. } => match ids.iter().find(|id| **id as usize >= vocabulary) {
                Some(id) => Err(StepError::UnknownToken { id: *id, vocabulary: vocabulary as u32 }),
                None => Ok(()),
            },
            StepInput::Hidden { values, count, .. } => {
                let got = values.len();
                if got != *count as usize * width {
                    return Err(StepError::WrongSize { got, count: *count, width });
                }
                if values.iter().any(|v| !v.is_finite()) {
                    return Err(StepError::NotFinite);
                }
                Ok(())
            }
        }
    }
}

/// A page's key for computing with an adapter.
fn of_adapter(key: PageKey, adapter: Option<RevisionId>) -> PageKey {
    let Some(adapter) = adapter else { return key };
    let mut hasher = blake3::Hasher::new_derive_key("cairn 2026-11 pages computed with an adapter");
    hasher.update(&key).update(&adapter.to_vec());
    *hasher.finalize().as_bytes()
}

/// A step that was begun: what was asked, and what came of it so far.
pub(crate) struct UnderWay {
    input: StepInput,
    count: usize,
    /// Its last position gives a token.
    sample: bool,
    /// Positions computed.
    done: usize,
    /// Of a stage that is not last, token-major.
    hidden: Vec<f32>,
    token: Option<u32>,
    /// Where they are handed out.
    logits: Option<Vec<f32>>,
    compute: Duration,
}

impl UnderWay {
    /// Positions to compute yet.
    pub fn left(&self) -> usize {
        self.count - self.done
    }

    /// Positions computed.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Whether computing all of them gives a token.
    pub fn samples(&self) -> bool {
        self.sample
    }
}

/// A session's part in a pass: so many positions of its step, all of them on a GPU.
pub(crate) struct Turn<'a> {
    pub session: &'a mut Session,
    pub step: &'a mut UnderWay,
    pub count: usize,
}

/// Computes turns in one pass. Their sessions share their weights; on a GPU there is one turn. A turn that failed has
/// computed nothing, and may be taken again.
pub(crate) fn compute(hands: &Hands, turns: &mut [Turn]) -> Result<(), StepError> {
    let start = Instant::now();
    if let [turn] = turns
        && matches!(turn.session.seat, Seat::Gpu(_))
    {
        turn.compute_alone()?;
    } else {
        cpu::pass(hands, &mut turns.iter_mut().filter_map(Turn::piece).collect::<SmallVec<[_; SESSIONS_USUAL]>>());
    }
    let took = start.elapsed();
    for turn in turns {
        turn.step.done += turn.count;
        turn.step.compute += took;
    }
    Ok(())
}

impl Turn<'_> {
    fn piece(&mut self) -> Option<Piece<'_>> {
        let (Session { seat, facts, held, choosing, history, adapter, .. }, step) =
            (&mut *self.session, &mut *self.step);
        let adapter = adapter.as_ref().map(|adapter| &adapter.weights);
        let Seat::Cpu(stage) = seat else { return None };
        let (from, to) = (step.done, step.done + self.count);
        let input = match &step.input {
            StepInput::Tokens { ids, .. } => Checked::Ids(&ids[from..to]),
            StepInput::Hidden { values, .. } => Checked::Values(&values[from * facts.width..to * facts.width]),
        };
        let history = &history[..history.len().min(*held + to)];
        let wants = match facts.has_head {
            false => Wants::Hidden(&mut step.hidden[from * facts.width..to * facts.width]),
            true if step.sample && to == step.count => match choosing {
                Choosing::Here(sampling) => Wants::Token { sampling, history, token: &mut step.token },
                Choosing::Elsewhere => Wants::Logits(&mut step.logits),
            },
            true => Wants::Nothing,
        };
        Some(Piece { stage, adapter, input, first: *held + from, count: self.count, wants })
    }

    fn compute_alone(&mut self) -> Result<(), StepError> {
        let (Session { seat, held, choosing, history, .. }, step) = (&mut *self.session, &mut *self.step);
        let Seat::Gpu(stage) = seat else { return Ok(()) };
        let input = match &step.input {
            StepInput::Tokens { ids, .. } => Checked::Ids(ids),
            StepInput::Hidden { values, .. } => Checked::Values(values),
        };
        let position = *held + step.count;
        let history = &history[..history.len().min(position)];
        let handed_out = &mut step.logits;
        let mut choose = |logits: &[f32]| match choosing {
            Choosing::Here(sampling) => sample::choose(logits, sampling, position as u64, history),
            Choosing::Elsewhere => {
                *handed_out = Some(logits.to_vec());
                0
            }
        };
        let run = Run { input, held: *held, count: step.count, sample: step.sample };
        match stage.compute(run, &mut choose)? {
            Made::Hidden(values) => step.hidden = values,
            Made::Token(token) => step.token = Some(token),
            Made::Nothing => {}
        }
        Ok(())
    }
}
