//! One session of a stage: its keys and values, its sampling, and what a step does. Pure computing on the caller's
//! thread; the engine gives it one.
//!
//! Invariant: after a step that failed, the session holds the positions it held before, so the step may be sent again.

use crate::{
    cpu::{
        acts::Planes,
        cache::Cache,
        level::Level,
        model::Model,
        pass::{Pass, Slot},
        pool::Pool,
        work::{PASS_TOKENS_MAX, Work},
    },
    engine::Share,
    sample::{self, Sampling},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

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

/// Loaded weights and the buffers of their passes; sessions share them.
pub(crate) struct Weights {
    pub model: Model,
    pub planes: Planes,
    /// Positions that the table of angles covers.
    pub context: usize,
    /// Guards the buffers of one pass; held by the engine thread for a pass, so never contended.
    work: Mutex<Option<Work>>,
    /// The memory they take, given back with them.
    _share: Option<Share>,
}

impl Weights {
    pub fn new(model: Model, planes: Planes, context: usize, share: Option<Share>) -> Self {
        Self { model, planes, context, work: Mutex::new(None), _share: share }
    }
}

/// Threads and instructions.
pub(crate) struct Hands {
    pub pool: Pool,
    pub level: Level,
}

/// A session of a stage.
pub(crate) struct Session {
    weights: Arc<Weights>,
    cache: Cache,
    sampling: Sampling,
    /// Ids by position, as far as they are known: what a penalty reads.
    history: Vec<u32>,
    slots: Vec<Slot>,
}

/// A step's input after every check.
enum Checked<'a> {
    Ids(&'a [u32]),
    Values(&'a [f32]),
}

impl Session {
    /// A session of up to `context` positions.
    pub fn new(weights: Arc<Weights>, context: usize) -> Self {
        let s = &weights.model.shape;
        let cache = Cache::new(weights.model.layers.len(), s.kv_heads, s.head_width, context.min(weights.context));
        Self { weights, cache, sampling: Sampling::GREEDY, history: Vec::new(), slots: Vec::new() }
    }

    pub fn set_sampling(&mut self, sampling: Sampling) {
        self.sampling = sampling;
    }

    /// Ids of positions from 0 on: the prompt, for a last stage that does not see tokens.
    pub fn set_history(&mut self, ids: Vec<u32>) {
        self.history = ids;
        self.history.truncate(self.cache.context);
    }

    /// Forgets positions from `len` on. More than are held changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.cache.len = self.cache.len.min(len);
    }

    /// Computes one step.
    pub fn step(&mut self, hands: &Hands, input: &StepInput) -> Result<StepOutput, StepError> {
        let start = Instant::now();
        let (input, count, sample) = self.check(input)?;
        let held = self.cache.len;
        if let Checked::Ids(ids) = input {
            self.history.truncate(held);
            if self.history.len() == held {
                self.history.extend_from_slice(ids);
            }
        }
        let weights = self.weights.clone();
        let mut work = weights.work.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that a pass that panics leaves no half-written buffers behind.
        let mut taken = work.take().unwrap_or_else(|| Work::new(&weights.model, weights.planes, PASS_TOKENS_MAX, 1));
        let hidden = self.passes(hands, &weights, &mut taken, input, count, sample);
        let token = (weights.model.head.is_some() && sample).then(|| self.choose(&weights, &taken));
        *work = Some(taken);
        let compute_ns = start.elapsed().as_nanos() as u64;
        Ok(match (hidden, token) {
            (Some(values), _) => StepOutput::Hidden { values, compute_ns },
            (None, Some(token)) => StepOutput::Token { token, compute_ns },
            (None, None) => StepOutput::Nothing { compute_ns },
        })
    }

    fn check<'a>(&self, input: &'a StepInput) -> Result<(Checked<'a>, usize, bool), StepError> {
        let (first, count, sample) = match input {
            StepInput::Tokens { first_position, ids, sample } => (*first_position, ids.len(), *sample),
            StepInput::Hidden { first_position, count, sample, .. } => (*first_position, *count as usize, *sample),
        };
        let (held, context) = (self.cache.len as u64, self.cache.context as u64);
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
        Ok((self.checked_values(input)?, count, sample))
    }

    fn checked_values<'a>(&self, input: &'a StepInput) -> Result<Checked<'a>, StepError> {
        let (shape, has_embedding) = (&self.weights.model.shape, self.weights.model.embedding.is_some());
        match input {
            StepInput::Tokens { .. } if !has_embedding => {
                Err(StepError::WrongInput("tokens came to a stage without the embedding"))
            }
            StepInput::Hidden { .. } if has_embedding => {
                Err(StepError::WrongInput("hidden states came to a stage that begins with tokens"))
            }
            StepInput::Tokens { ids, .. } => match ids.iter().find(|id| **id as usize >= shape.vocabulary) {
                Some(id) => Err(StepError::UnknownToken { id: *id, vocabulary: shape.vocabulary as u32 }),
                None => Ok(Checked::Ids(ids)),
            },
            StepInput::Hidden { values, count, .. } => {
                let (got, width) = (values.len(), shape.width);
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

    /// Walks all positions, a pass at a time; gives the hidden states of a stage that is not last.
    fn passes(
        &mut self,
        hands: &Hands,
        weights: &Weights,
        work: &mut Work,
        input: Checked,
        count: usize,
        sample: bool,
    ) -> Option<Vec<f32>> {
        let (model, held) = (&weights.model, self.cache.len);
        let width = model.shape.width;
        let mut hidden = model.head.is_none().then(|| vec![0f32; count * width]);
        for start in (0..count).step_by(PASS_TOKENS_MAX) {
            let end = count.min(start + PASS_TOKENS_MAX);
            self.slots.clear();
            self.slots.extend((start..end).map(|i| Slot { sequence: 0, position: held + i }));
            let (pool, level, planes) = (&hands.pool, hands.level, weights.planes);
            let pass = Pass { model, pool, level, planes, slots: &self.slots };
            match input {
                Checked::Ids(ids) => pass.embed(work, &ids[start..end]),
                Checked::Values(values) => pass.receive(work, &values[start * width..end * width]),
            }
            pass.walk(work, std::slice::from_mut(&mut self.cache));
            match &mut hidden {
                Some(values) => pass.send(work, &mut values[start * width..end * width]),
                None if sample && end == count => pass.logits(work, &[end - start - 1]),
                None => {}
            }
        }
        self.cache.len = held + count;
        hidden
    }

    /// The token of the position after the last.
    fn choose(&mut self, weights: &Weights, work: &Work) -> u32 {
        let position = self.cache.len;
        let known = &self.history[..self.history.len().min(position)];
        let logits = &work.logits[..weights.model.shape.vocabulary];
        let token = sample::choose(logits, &self.sampling, position as u64, known);
        if self.history.len() >= position {
            self.history.truncate(position);
            self.history.push(token);
        }
        token
    }
}
