//! One session of a stage: what it holds, how it samples, and what a step does. Pure computing on the caller's thread;
//! the engine gives it one.
//!
//! Two engines stand behind [`Stage`]: our own on the CPU ([`cpu`]) and candle's on a GPU ([`gpu`]).
//!
//! Invariant: after a step that failed, the session holds the positions it held before, so the step may be sent again.

mod cpu;
mod gpu;

pub(crate) use cpu::CpuWeights;
pub(crate) use gpu::{GpuError, GpuWeights};

use crate::{
    cpu::{level::Level, pool::Pool},
    engine::Share,
    sample::{self, Sampling},
};
use std::{sync::Arc, time::Instant};

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
    /// Positions that the table of angles covers.
    pub context: usize,
    /// Bytes of keys and values that one position takes.
    pub position_bytes: u64,
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

    fn open(&self, context: usize) -> Result<Box<dyn Stage>, StepError> {
        Ok(match &self.kind {
            Kind::Cpu(weights) => Box::new(weights.open(context)),
            Kind::Gpu(weights) => Box::new(weights.open(context)?),
        })
    }
}

/// What computes the positions of one session.
pub(crate) trait Stage: Send {
    /// Computes `run.count` positions after the `run.held` that came before, overwriting what may be there. `choose` is
    /// given the logits of the last position.
    fn compute(&mut self, hands: &Hands, run: Run, choose: &mut dyn FnMut(&[f32]) -> u32) -> Result<Made, StepError>;
}

/// Positions to compute. Every number and value was checked.
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

/// What was computed.
pub(crate) enum Made {
    Hidden(Vec<f32>),
    Token(u32),
    Nothing,
}

/// A session of a stage.
pub(crate) struct Session {
    stage: Box<dyn Stage>,
    facts: Facts,
    /// Positions held.
    held: usize,
    /// Most positions.
    context: usize,
    sampling: Sampling,
    /// Ids by position, as far as they are known: what a penalty reads.
    history: Vec<u32>,
    /// Keeps the weights' memory reserved.
    _weights: Arc<Weights>,
}

impl Session {
    /// A session of up to `context` positions.
    pub fn new(weights: Arc<Weights>, context: usize) -> Result<Self, StepError> {
        let facts = weights.facts();
        let context = context.min(facts.context);
        let stage = weights.open(context)?;
        let (sampling, history) = (Sampling::GREEDY, Vec::new());
        Ok(Self { stage, facts, held: 0, context, sampling, history, _weights: weights })
    }

    pub fn set_sampling(&mut self, sampling: Sampling) {
        self.sampling = sampling;
    }

    /// Ids of positions from 0 on: the prompt, for a last stage that does not see tokens.
    pub fn set_history(&mut self, ids: Vec<u32>) {
        self.history = ids;
        self.history.truncate(self.context);
    }

    /// Forgets positions from `len` on. More than are held changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.held = self.held.min(len);
    }

    /// Computes one step.
    pub fn step(&mut self, hands: &Hands, input: &StepInput) -> Result<StepOutput, StepError> {
        let start = Instant::now();
        let run = self.check(input)?;
        if let Checked::Ids(ids) = run.input {
            self.history.truncate(self.held);
            if self.history.len() == self.held {
                self.history.extend_from_slice(ids);
            }
        }
        let position = self.held + run.count;
        let (history, sampling) = (&self.history[..self.history.len().min(position)], &self.sampling);
        let mut choose = |logits: &[f32]| sample::choose(logits, sampling, position as u64, history);
        let made = self.stage.compute(hands, run, &mut choose)?;
        self.held = position;
        let compute_ns = start.elapsed().as_nanos() as u64;
        Ok(match made {
            Made::Hidden(values) => StepOutput::Hidden { values, compute_ns },
            Made::Nothing => StepOutput::Nothing { compute_ns },
            Made::Token(token) => {
                self.remember(token);
                StepOutput::Token { token, compute_ns }
            }
        })
    }

    /// Notes the token of the position after the last.
    fn remember(&mut self, token: u32) {
        if self.history.len() >= self.held {
            self.history.truncate(self.held);
            self.history.push(token);
        }
    }

    fn check<'a>(&self, input: &'a StepInput) -> Result<Run<'a>, StepError> {
        let (first, count, sample) = match input {
            StepInput::Tokens { first_position, ids, sample } => (*first_position, ids.len(), *sample),
            StepInput::Hidden { first_position, count, sample, .. } => (*first_position, *count as usize, *sample),
        };
        let (held, context) = (self.held as u64, self.context as u64);
        if count == 0 {
            return Err(StepError::WrongInput("the input holds no position"));
        }
        if first != held {
            return Err(StepError::NotNext { held, got: first });
        }
        let needed = held + count as u64;
        if needed > context {
            return Err(StepError::TooLong { needed, context });
        }
        Ok(Run { input: self.checked_values(input)?, held: self.held, count, sample })
    }

    fn checked_values<'a>(&self, input: &'a StepInput) -> Result<Checked<'a>, StepError> {
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
                None => Ok(Checked::Ids(ids)),
            },
            StepInput::Hidden { values, count, .. } => {
                let got = values.len();
                if got != *count as usize * width {
                    return Err(StepError::WrongSize { got, count: *count, width });
                }
                if values.iter().any(|v| !v.is_finite()) {
                    return Err(StepError::NotFinite);
                }
                Ok(Checked::Values(values))
            }
        }
    }
}
