//! Which tokens a grammar allows next, by the `llguidance` library (an Earley parser over lexemes that are derivatives of regular
//! expressions, walked along a trie of the vocabulary's bytes).
//!
//! Not its own judge of cost: the library counts its work in fuel, which is the same on every machine, and we set how much
//! ([`limits`]). Invariant: a mask depends on the grammar, the vocabulary and the generated ids alone; it is never empty, and
//! holds an end-of-text token only where the text is complete.

use super::grammar::{Grammar, GrammarError};
use crate::text::Tokenizer;
use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// Longest token that a grammar may use; the trie's nodes count no further than twice this.
const TOKEN_BYTES_MAX: usize = 512;
/// Longest message of the library that is passed on.
const WHY_BYTES_MAX: usize = 300;

/// A model's vocabulary as grammars need it: the bytes of its tokens in a trie. Made once for a tokenizer; tens of megabytes
/// for the largest.
pub struct Vocabulary {
    factory: ParserFactory,
    size: usize,
}

impl Vocabulary {
    /// Of the tokens of a model with `size` logits, of which `eos` end a text. Special tokens have no text, so no grammar allows
    /// them. Takes a second for the largest vocabularies.
    pub fn new(tokenizer: &Tokenizer, eos: &[u32], size: u32) -> Result<Vocabulary, GrammarError> {
        let eos: Vec<u32> = eos.iter().copied().filter(|id| *id < size).collect();
        let Some(first) = eos.first() else { return Err(GrammarError::NoEnd) };
        let words: Vec<Vec<u8>> = (0..size).map(|id| word(tokenizer, id, &eos)).collect();
        let info = TokRxInfo::new(size, *first);
        let built = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&info, &words).with_eos_tokens(&eos);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&env)
        }));
        let mut factory = match built {
            Ok(Ok(factory)) => factory,
            Ok(Err(error)) => return Err(GrammarError::Malformed(in_a_line(&error.to_string()))),
            Err(_) => return Err(GrammarError::Malformed("the model's vocabulary makes no trie".to_owned())),
        };
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Vocabulary { factory, size: size as usize })
    }

    /// Compiles a grammar.
    pub(super) fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        grammar.check()?;
        let grammar = match grammar.schema()? {
            Some(schema) => TopLevelGrammar::from_json_schema(schema),
            None if matches!(grammar, Grammar::Regex(_)) => TopLevelGrammar::from_regex(grammar.text()),
            None => TopLevelGrammar::from_lark(grammar.text().to_owned()),
        };
        let parser = catch_unwind(AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let parser = parser.map_err(|_| GrammarError::Malformed("its library failed".to_owned()))?;
        let beginning = Matcher::new(parser);
        if let Some(why) = beginning.get_error() {
            return Err(GrammarError::Malformed(in_a_line(&why)));
        }
        let now = beginning.deep_clone();
        Ok(Constraint { beginning, now, taken: Vec::new(), mask: None, size: self.size })
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("size", &self.size).finish()
    }
}

/// How much work a grammar may be. Fuel and items are the library's units: a thousandth of these is about 20 µs.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // One or two kilobytes each.
        max_lexer_states: 16_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// The bytes of a token in texts; none of what has no text, and of what no text can hold.
fn word(tokenizer: &Tokenizer, id: u32, eos: &[u32]) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    // The trie takes 0xff for the mark of a special token; it is in no UTF-8.
    let is_text = bytes.len() <= TOKEN_BYTES_MAX && bytes.first() != Some(&0xff);
    if eos.contains(&id) || !is_text { Vec::new() } else { bytes.to_vec() }
}

/// A grammar and how far a text has come in it.
pub(super) struct Constraint {
    beginning: Matcher,
    now: Matcher,
    /// The ids that `now` has taken.
    taken: Vec<u32>,
    /// Of the token after those.
    mask: Option<SimpleVob>,
    size: usize,
}

impl Constraint {
    /// Goes to where `generated` leads; back to the beginning first, if it did not go on from there.
    pub fn follow(&mut self, generated: &[u32]) -> Result<(), String> {
        if !generated.starts_with(&self.taken) {
            self.now = self.beginning.deep_clone();
            self.taken.clear();
            self.mask = None;
        }
        let new = &generated[self.taken.len()..];
        if !new.is_empty() {
            self.mask = None;
            self.now.consume_tokens(new).map_err(|error| in_a_line(&error.to_string()))?;
            self.taken.extend_from_slice(new);
        }
        Ok(())
    }

    /// The tokens that may come next, after what was followed. Made once for each place.
    pub fn mask(&mut self) -> Result<&SimpleVob, String> {
        let mask = match self.mask.take() {
            Some(mask) => mask,
            None => {
                let mask = self.now.compute_mask_or_eos().map_err(|error| in_a_line(&error.to_string()))?;
                if mask.is_zero() {
                    return Err("no token goes on from here".to_owned());
                }
                mask
            }
        };
        Ok(self.mask.insert(mask))
    }

    /// Takes the disallowed tokens' logits away: a NaN is never chosen.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let size = self.size;
        let mask = self.mask()?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= size || !mask.is_allowed(id as u32) {
                *logit = f32::NAN;
            }
        }
        Ok(())
    }

    /// The lowest allowed id, for logits of which none is a number.
    pub fn lowest(&mut self) -> Result<u32, String> {
        let lowest = self.mask()?.first_bit_set();
        lowest.map(|id| id as u32).ok_or_else(|| "no token goes on from here".to_owned())
    }
}

/// What fits one line: the library adds traces and the grammar. Of a pattern's error, what it comes to stands last.
fn in_a_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut said = lines.next().unwrap_or("its library failed").to_owned();
    if let Some(error) = lines.find(|line| line.starts_with("error:")) {
        said = format!("{said} {error}");
    }
    let end = said.char_indices().map(|(at, _)| at).find(|at| *at >= WHY_BYTES_MAX).unwrap_or(said.len());
    said.truncate(end);
    said
}
