//! What a grammar is before a model is known: its kind and its text, held against bounds.
//!
//! Compiling one is the library's ([`super::constraint`]). Grammars are strangers' text: their size and nesting are bounded
//! here, before anything recursive reads them.

use serde_json::Value;
use std::time::Duration;

/// Longest text of a grammar. The largest schemas in the wild are tens of kilobytes.
pub const GRAMMAR_BYTES_MAX: usize = 64 << 10;
/// Brackets within brackets, counted in the text as it stands, strings and comments too. Above what people write, below what
/// recursive parsers survive.
const NESTING_MAX: usize = 96;
/// Rules, terminals and definitions that refer to each other are followed by recursion, one level each.
const RULES_MAX: usize = 2_000;
/// Spaces between the parts of JSON: one, or a line break with an indent. Any number would let a model write spaces without
/// end.
const JSON_SPACE: &str = r"( |\n {0,32})";

/// What generated text follows, from its first character to its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// Any JSON value.
    Json,
    /// JSON that a JSON Schema (its text) accepts.
    JsonSchema(String),
    /// A regular expression in the syntax of Rust's `regex`, which the whole text matches.
    Regex(String),
    /// A context-free grammar in Lark's syntax, whose rule `start` the text follows.
    Lark(String),
}

/// Why a grammar is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Longer than [`GRAMMAR_BYTES_MAX`].
    #[error("it is {0} bytes long, at most {GRAMMAR_BYTES_MAX} are taken")]
    TooLong(usize),
    /// Brackets within brackets without end.
    #[error("its brackets are nested deeper than {NESTING_MAX}")]
    TooDeep,
    /// More rules than are taken.
    #[error("it has more than {RULES_MAX} lines or definitions")]
    TooManyRules,
    /// What the library says of it.
    #[error("{0}")]
    Malformed(String),
    /// It was not ready in time.
    #[error("it was not ready after {} s", .0.as_secs())]
    TooCostly(Duration),
    /// Others' grammars are being prepared.
    #[error("too many grammars are being prepared")]
    Busy,
    /// Without an id that ends a text nobody can say that it is complete.
    #[error("the model has no end-of-text token, so no text could be said to be complete")]
    NoEnd,
    /// The ids that were generated before do not follow it.
    #[error("the tokens generated so far do not follow it: {0}")]
    NotFollowed(String),
}

impl Grammar {
    /// Of a kind's word ([`Grammar::kind`]) and its text; `None` of an unknown one.
    pub fn of(kind: &str, text: &str) -> Option<Grammar> {
        Some(match kind {
            "json" => Grammar::Json,
            "json-schema" => Grammar::JsonSchema(text.to_owned()),
            "regex" => Grammar::Regex(text.to_owned()),
            "lark" => Grammar::Lark(text.to_owned()),
            _ => return None,
        })
    }

    /// Its kind's word, for messages between nodes.
    pub fn kind(&self) -> &'static str {
        match self {
            Grammar::Json => "json",
            Grammar::JsonSchema(_) => "json-schema",
            Grammar::Regex(_) => "regex",
            Grammar::Lark(_) => "lark",
        }
    }

    /// Its text; empty for any JSON.
    pub fn text(&self) -> &str {
        match self {
            Grammar::Json => "",
            Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text) => text,
        }
    }

    /// Holds the text against its bounds.
    pub(super) fn check(&self) -> Result<(), GrammarError> {
        let text = self.text();
        if text.len() > GRAMMAR_BYTES_MAX {
            return Err(GrammarError::TooLong(text.len()));
        }
        if nesting(text) > NESTING_MAX {
            return Err(GrammarError::TooDeep);
        }
        if matches!(self, Grammar::Lark(_)) && text.lines().count() > RULES_MAX {
            return Err(GrammarError::TooManyRules);
        }
        Ok(())
    }

    /// The schema of the JSON kinds, with our spaces unless it says its own.
    pub(super) fn schema(&self) -> Result<Option<Value>, GrammarError> {
        let mut schema = match self {
            Grammar::Json => Value::Object(serde_json::Map::new()),
            Grammar::JsonSchema(text) => {
                serde_json::from_str(text).map_err(|e| GrammarError::Malformed(format!("it is no JSON: {e}")))?
            }
            Grammar::Regex(_) | Grammar::Lark(_) => return Ok(None),
        };
        if schema == Value::Bool(true) {
            schema = Value::Object(serde_json::Map::new());
        }
        let Value::Object(fields) = &mut schema else {
            return Err(GrammarError::Malformed("a JSON schema is an object".to_owned()));
        };
        fields.entry("x-guidance").or_insert_with(|| serde_json::json!({ "whitespace_pattern": JSON_SPACE }));
        Ok(Some(schema))
    }
}

/// How deep brackets of any kind are nested.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
