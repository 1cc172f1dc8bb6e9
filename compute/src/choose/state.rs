//! What a chooser knows, and one choice. No thread: [`super::chooser`] gives it one.

use super::{
    Choice, ChooseError, Demands, GrammarError, Vocabulary, adjust::adjust, constraint::Constraint, logprobs::logprobs,
};
use crate::sample;

/// Demands, and the ids so far.
pub(super) struct State {
    demands: Demands,
    constraint: Option<Constraint>,
    /// Ids by position.
    history: Vec<u32>,
}

impl State {
    /// Compiles the grammar, if there is one, and follows it along what was generated before.
    pub fn new(demands: Demands, vocabulary: Option<&Vocabulary>, history: Vec<u32>) -> Result<State, GrammarError> {
        let constraint = match (&demands.grammar, vocabulary) {
            (Some(grammar), Some(vocabulary)) => Some(vocabulary.constraint(grammar)?),
            (Some(_), None) => return Err(GrammarError::NoEnd),
            (None, _) => None,
        };
        let mut state = State { demands, constraint, history };
        let is_new = state.history.len() <= state.demands.prompt_tokens;
        state.prepare().map_err(|why| match is_new {
            true => GrammarError::Malformed(format!("no text follows it: {why}")),
            false => GrammarError::NotFollowed(why),
        })?;
        Ok(state)
    }

    /// Notes ids that the stage was given from position `first` on.
    pub fn see(&mut self, first: usize, ids: &[u32]) {
        if first <= self.history.len() && !self.history[first..].starts_with(ids) {
            self.history.truncate(first);
            self.history.extend_from_slice(ids);
        }
    }

    /// The token for `position`.
    pub fn choose(&mut self, position: u64, mut logits: Vec<f32>) -> Result<Choice, ChooseError> {
        let known = self.history.len();
        let past = usize::try_from(position).ok().filter(|past| *past <= known);
        let past = past.ok_or(ChooseError::UnknownPast { position, known })?;
        self.history.truncate(past);
        let raw = self.demands.logprobs.map(|_| logits.clone());
        let generated = &self.history[self.demands.prompt_tokens.min(past)..];
        adjust(&mut logits, &self.demands, generated);
        if let Some(constraint) = &mut self.constraint {
            constraint.follow(generated).and_then(|()| constraint.apply(&mut logits)).map_err(ChooseError::Grammar)?;
        }
        let mut token = sample::choose(&logits, &self.demands.sampling, position, &self.history);
        if let Some(constraint) = &mut self.constraint
            && logits.get(token as usize).is_none_or(|logit| logit.is_nan())
        {
            token = constraint.lowest().map_err(ChooseError::Grammar)?;
        }
        self.history.push(token);
        let logprobs = raw.zip(self.demands.logprobs).map(|(raw, count)| logprobs(&raw, token, count));
        Ok(Choice { token, logprobs })
    }

    /// Makes the mask that the next token needs.
    pub fn prepare(&mut self) -> Result<(), String> {
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        constraint.follow(&self.history[self.demands.prompt_tokens.min(self.history.len())..])?;
        constraint.mask().map(drop)
    }
}
