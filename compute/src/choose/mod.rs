//! Choosing a token where a request asks for more than [`sample`](crate::sample) does on its own: text that follows a grammar,
//! log-probabilities, penalties on what was generated, a bias on single tokens.
//!
//! ```text
//! engine thread ─ logits ─▶ Chooser (its own thread) ─▶ token, log-probabilities
//!                              bias, penalties ▸ grammar's mask ▸ sample::choose
//! ```
//!
//! Not the engine's work: a mask may take longer than a pass, and a pass carries everybody's tokens. So the engine hands such
//! a session's logits out ([`StageHandle::hand_out_logits`](crate::StageHandle::hand_out_logits)), and the mask of the next
//! token is made while this one is on its lap.
//!
//! Invariant: a choice is a function of (demands, prompt, generated ids, logits, position) and nothing else. What is kept
//! between choices is only a faster way to the same answer, so a chooser that is made anew with the ids so far goes on as the
//! old one would have.

mod adjust;
mod chooser;
mod constraint;
mod grammar;
mod logprobs;
mod state;
#[cfg(test)]
mod tests;

pub use adjust::{LOGIT_BIAS_MAX, PENALTY_MAX};
pub(crate) use chooser::CHOOSER_THREAD;
pub use chooser::{Chooser, Done};
pub use constraint::Vocabulary;
pub use grammar::{GRAMMAR_BYTES_MAX, Grammar, GrammarError};
pub use logprobs::{LOGPROBS_MAX, Logprobs};

use crate::sample::Sampling;

/// What a request asks of its tokens, beside the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demands {
    /// How one is drawn.
    pub sampling: Sampling,
    /// Taken from a token's logit for each time that it was generated.
    pub frequency_penalty: f32,
    /// Taken from a token's logit if it was generated.
    pub presence_penalty: f32,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tells the chosen token's log-probability, and so many of the likeliest tokens with theirs.
    pub logprobs: Option<u32>,
    /// What the generated text follows.
    pub grammar: Option<Grammar>,
    /// The position of the first generated token. What stands before it is counted by none of these.
    pub prompt_tokens: usize,
}

impl Demands {
    /// Whether they take a [`Chooser`]; if not, the engine samples by itself.
    pub fn needs_logits(&self) -> bool {
        let adjusts = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || !self.logit_bias.is_empty();
        adjusts || self.logprobs.is_some() || self.grammar.is_some()
    }

    /// Whether they look at the ids so far.
    pub fn needs_history(&self) -> bool {
        self.needs_logits() || self.sampling.needs_history()
    }
}

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// If they were asked for.
    pub logprobs: Option<Logprobs>,
}

/// Why no token was chosen. Another node's stage would say the same: sending the work elsewhere does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// The grammar took more work than is given to one token, or its library failed.
    #[error("the grammar could not be followed: {0}")]
    Grammar(String),
    /// Ids are missing that a grammar or a penalty counts.
    #[error("{known} ids are known here, and the token for position {position} depends on all before it")]
    UnknownPast {
        /// Of the token.
        position: u64,
        /// Ids known.
        known: usize,
    },
    /// The thread has ended.
    #[error("its thread has ended")]
    Stopped,
}
