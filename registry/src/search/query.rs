//! The query language: `tiny "chat model" -gguf license:mit parameters:>=1B`.
//!
//! Words (all of them must match), phrases in quotes, `-` before what must not match, `field:value`, `field:"two words"`, and ranges of
//! numbers: `>=7B`, `<8GiB`, `1B..3B`. It knows nothing of the index.
//!
//! Invariant: any text gives a [`Query`] or one [`QueryError`] with its place, in time that its bounded length bounds.

use super::words::{folded_value, words};

/// Bytes of a query; a page of text is not a query.
pub const QUERY_BYTES_MAX: usize = 1024;

/// Words, phrases and fields of one query: each costs a walk over the index.
const PARTS_MAX: usize = 32;

/// A field that repos are filtered by, and whose values can be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// model, dataset, adapter or space.
    Kind,
    /// What it is for.
    Task,
    /// What loads it.
    Library,
    /// As the card names it.
    License,
    /// A language's code.
    Language,
    /// Whose it is: a handle, or a key.
    Publisher,
    /// What it was made from, as the card names it.
    BaseModel,
    /// "llama", "qwen2".
    Architecture,
    /// "Q4_K", "BF16".
    Quantisation,
    /// What it was trained on, as the card names it.
    Dataset,
    /// A free word.
    Tag,
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 11] = [
        Self::Kind,
        Self::Task,
        Self::Library,
        Self::License,
        Self::Language,
        Self::Publisher,
        Self::BaseModel,
        Self::Architecture,
        Self::Quantisation,
        Self::Dataset,
        Self::Tag,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::Task => "task",
            Self::Library => "library",
            Self::License => "license",
            Self::Language => "language",
            Self::Publisher => "publisher",
            Self::BaseModel => "base_model",
            Self::Architecture => "architecture",
            Self::Quantisation => "quantisation",
            Self::Dataset => "dataset",
            Self::Tag => "tag",
        }
    }
}

impl std::str::FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text.to_lowercase().replace('-', "_").as_str() {
            "licence" => "license".to_owned(),
            "lang" => "language".to_owned(),
            "quantization" => "quantisation".to_owned(),
            "base" => "base_model".to_owned(),
            other => other
                .strip_suffix('s')
                .filter(|one| Self::ALL.iter().any(|field| field.name() == *one))
                .unwrap_or(other)
                .to_owned(),
        };
        Self::ALL.into_iter().find(|field| field.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|field| field.name()).collect();
            format!("no field is called `{}`; there are {}", cut(text), names.join(", "))
        })
    }
}

/// A number that repos are bounded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Parameters,
    Bytes,
}

/// One thing that must match, or must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// One word, wherever it stands.
    Word(String),
    /// Words that follow one another.
    Phrase(Vec<String>),
    /// A field's whole value.
    Is(Field, String),
    /// One of several.
    OneOf(Field, Vec<String>),
    /// Bounds, both included.
    Between(Number, u64, u64),
}

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) must: Vec<Part>,
    pub(super) must_not: Vec<Part>,
    /// The words that were asked for, as a name would be written.
    pub(super) name: String,
}

/// What is wrong with a query, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {what}")]
pub struct QueryError {
    /// The character, from 1.
    pub at: usize,
    /// What was expected.
    pub what: String,
}

/// Reads a query.
pub(super) fn parse(text: &str) -> Result<Query, QueryError> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(QueryError {
            at: 1,
            what: format!("a query has at most {QUERY_BYTES_MAX} bytes, this one {}", text.len()),
        });
    }
    let mut reader = Reader { text, at: 0 };
    let mut query = Query::default();
    let mut name = Vec::new();
    while let Some(token) = reader.token()? {
        let parts = if token.is_not { &mut query.must_not } else { &mut query.must };
        let found = reader.parts(&token)?;
        if !token.is_not && token.field.is_none() {
            name.extend(words(&token.value).into_iter().map(|word| word.text));
        }
        parts.extend(found);
        if query.must.len() + query.must_not.len() > PARTS_MAX {
            return Err(reader.error(token.start, format!("more than {PARTS_MAX} words and fields")));
        }
    }
    query.name = name.join("-");
    Ok(query)
}

struct Token {
    start: usize,
    is_not: bool,
    field: Option<String>,
    value: String,
    value_start: usize,
    is_quoted: bool,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn token(&mut self) -> Result<Option<Token>, QueryError> {
        self.skip(char::is_whitespace);
        let start = self.at;
        if self.rest().is_empty() {
            return Ok(None);
        }
        let is_not = self.rest().starts_with('-');
        if is_not {
            self.at += 1;
            if self.rest().is_empty() || self.rest().starts_with(char::is_whitespace) {
                return Err(self.error(start, "what must not match stands right behind the -".into()));
            }
        }
        let field = self.field();
        let value_start = self.at;
        let is_quoted = self.rest().starts_with('"');
        let value = if is_quoted { self.quoted()? } else { self.plain() };
        if field.is_some() && value.trim().is_empty() {
            return Err(self.error(value_start, "a value is missing after the colon".into()));
        }
        Ok(Some(Token { start, is_not, field, value, value_start, is_quoted }))
    }

    fn field(&mut self) -> Option<String> {
        let end = self.rest().find(|c: char| !(c.is_ascii_alphabetic() || c == '_'))?;
        if end == 0 || !self.rest()[end..].starts_with(':') {
            return None;
        }
        let name = self.rest()[..end].to_owned();
        self.at += end + 1;
        Some(name)
    }

    fn quoted(&mut self) -> Result<String, QueryError> {
        let start = self.at;
        let inner = &self.rest()[1..];
        let end = inner.find('"').ok_or_else(|| self.error(start, "the quotation mark has no partner".into()))?;
        let value = inner[..end].to_owned();
        self.at += end + 2;
        Ok(value)
    }

    fn plain(&mut self) -> String {
        let start = self.at;
        self.skip(|c| !c.is_whitespace());
        self.text[start..self.at].to_owned()
    }

    fn parts(&self, token: &Token) -> Result<Vec<Part>, QueryError> {
        let Some(name) = &token.field else { return Ok(free(token)) };
        let at = token.value_start;
        match name.to_lowercase().as_str() {
            "parameters" | "params" => self.between(Number::Parameters, token).map(|part| vec![part]),
            "size" | "bytes" => self.between(Number::Bytes, token).map(|part| vec![part]),
            "name" => Ok(free(token)),
            _ => match name.parse::<Field>() {
                Ok(field) => Ok(vec![Part::Is(field, folded_value(&token.value))]),
                Err(what) => Err(self.error(at - name.len() - 1, format!("{what}, parameters and size"))),
            },
        }
    }

    fn between(&self, number: Number, token: &Token) -> Result<Part, QueryError> {
        let example = if number == Number::Bytes { "<8GiB or 1GB..4GB" } else { ">=7B or 1B..3B" };
        let wrong = || {
            self.error(token.value_start, format!("`{}` is no range of numbers, such as {example}", cut(&token.value)))
        };
        let read = |text: &str| amount(text).ok_or_else(wrong);
        let value = token.value.trim();
        let (low, high) = if let Some(value) = value.strip_prefix(">=") {
            (read(value)?, u64::MAX)
        } else if let Some(value) = value.strip_prefix("<=") {
            (0, read(value)?)
        } else if let Some(value) = value.strip_prefix('>') {
            (read(value)?.checked_add(1).ok_or_else(wrong)?, u64::MAX)
        } else if let Some(value) = value.strip_prefix('<') {
            (0, read(value)?.checked_sub(1).ok_or_else(wrong)?)
        } else if let Some((low, high)) = value.split_once("..") {
            (if low.is_empty() { 0 } else { read(low)? }, if high.is_empty() { u64::MAX } else { read(high)? })
        } else {
            return Err(wrong());
        };
        if low > high {
            return Err(self.error(token.value_start, "the range ends before it begins".into()));
        }
        Ok(Part::Between(number, low, high))
    }

    fn skip(&mut self, is_skipped: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|c| !is_skipped(c)).unwrap_or(rest.len());
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn error(&self, at: usize, what: String) -> QueryError {
        QueryError { at: self.text[..at].chars().count() + 1, what }
    }
}

/// Words without a field: each by itself, in quotes one after the other. What must not match is all of them together.
fn free(token: &Token) -> Vec<Part> {
    let mut found: Vec<String> = words(&token.value).into_iter().map(|word| word.text).collect();
    match found.len() {
        0 => Vec::new(),
        1 => vec![Part::Word(found.remove(0))],
        _ if token.is_quoted || token.is_not => vec![Part::Phrase(found)],
        _ => found.into_iter().map(Part::Word).collect(),
    }
}

/// "7B", "1.5M", "400", "8GiB".
pub(super) fn amount(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "b" | "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    if digits.len() > 20 || digits.starts_with(['-', '+']) {
        return None;
    }
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if part.is_empty() {
        return (!digits.ends_with('.')).then_some(whole);
    }
    let parts: u64 =
        part.get(..part.len().min(9)).filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    let share = u128::from(parts) * u128::from(scale) / 10u128.pow(part.len().min(9) as u32);
    whole.checked_add(u64::try_from(share).ok()?)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Part {
        Part::Word(text.to_owned())
    }

    #[test]
    fn words_phrases_fields_and_their_opposites_are_read() {
        let query =
            parse(r#"SmolLM2-135M "chat model" -gguf -"not this" license:Apache-2.0 -publisher:acme tag:"two words""#)
                .unwrap();
        let phrase = |words: [&str; 2]| Part::Phrase(words.map(str::to_owned).to_vec());
        assert_eq!(
            query.must,
            [
                word("smollm2"),
                word("135m"),
                phrase(["chat", "model"]),
                Part::Is(Field::License, "apache-2.0".into()),
                Part::Is(Field::Tag, "two words".into()),
            ]
        );
        assert_eq!(query.must_not, [word("gguf"), phrase(["not", "this"]), Part::Is(Field::Publisher, "acme".into())]);
        assert_eq!(query.name, "smollm2-135m-chat-model");
        assert_eq!(parse("  ").unwrap(), Query::default());
        assert_eq!(parse("-a-b").unwrap().must_not, [phrase(["a", "b"])]);
    }

    #[test]
    fn ranges_of_numbers_have_units() {
        for (text, number, low, high) in [
            ("parameters:>=7B", Number::Parameters, 7_000_000_000, u64::MAX),
            ("params:>1.5m", Number::Parameters, 1_500_001, u64::MAX),
            ("parameters:1b..3B", Number::Parameters, 1_000_000_000, 3_000_000_000),
            ("size:<8GiB", Number::Bytes, 0, (8 << 30) - 1),
            ("size:..4GB", Number::Bytes, 0, 4_000_000_000),
        ] {
            assert_eq!(parse(text).unwrap().must, [Part::Between(number, low, high)], "{text}");
        }
    }

    #[test]
    fn a_query_that_can_not_be_read_says_where_and_why() {
        for (text, at, part) in [
            ("tiny \"chat", 6, "no partner"),
            ("tiny - chat", 6, "right behind"),
            ("a ü license:", 13, "missing"),
            ("licens:mit", 1, "no field is called `licens`"),
            ("x parameters:7B", 14, "no range"),
            ("size:9..1", 6, "before it begins"),
            ("size:<0", 6, "no range"),
            ("size:>99999999999TB", 6, "no range"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.at == at && error.what.contains(part), "{text}: {error}");
        }
        assert!(parse(&"a ".repeat(400)).unwrap_err().what.contains("more than 32"));
        assert!(parse(&"a".repeat(2000)).unwrap_err().what.contains("1024"));
    }

    #[test]
    fn fields_have_their_usual_names() {
        for (text, field) in [
            ("licence", Field::License),
            ("languages", Field::Language),
            ("base-model", Field::BaseModel),
            ("tags", Field::Tag),
        ] {
            assert_eq!(text.parse(), Ok(field));
        }
    }

    #[test]
    fn any_text_is_a_query_or_an_error() {
        use proptest::prelude::*;
        proptest!(|(text in "[a-z:\"\\-. <>=0-9é日_]{0,60}")| { let _ = parse(&text); });
        proptest!(|(text in "\\PC{0,60}")| { let _ = parse(&text); });
        proptest!(|(text in "[0-9.]{0,24}[a-zA-Z]{0,3}")| { let _ = amount(&text); });
    }
}
