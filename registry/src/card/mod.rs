//! Model cards: what a repo's `README.md` says of it, in the YAML between its first two lines of `---` and in its text.
//!
//! It is read as the ecosystem reads it: `language`, `tags`, `datasets` and `base_model` are a text or a list of texts, and keys that
//! mean nothing here are left alone. A card never makes a publication fail: what is wrong is told, with its line, the key and what was
//! expected, and left out.
//!
//! Invariant: any bytes give a [`Card`] whose facts fit a record's limits.

mod text;
mod yaml;

use std::fmt;

use cairn_protocol::{
    limits::{
        BASE_MODELS_MAX, CARD_TEXT_BYTES_MAX, DATASETS_MAX, LANGUAGES_MAX, NAMED_REPO_BYTES_MAX, TAGS_MAX,
        WORD_BYTES_MAX,
    },
    record::CardFacts,
};

use self::yaml::{Entry, Value, short};

/// Bytes of a card that are read: front matters with results on a hundred benchmarks have half of this.
pub const CARD_BYTES_MAX: u64 = 2 << 20;

/// Bytes of the front matter that are read.
const FRONT_BYTES_MAX: usize = 1 << 20;

/// Problems that are told; the first ones teach the rest.
const PROBLEMS_MAX: usize = 32;

/// What one made of the base model may be.
const RELATIONS: [&str; 4] = ["finetune", "adapter", "merge", "quantized"];

/// What a card says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// The licence; several are separated by commas.
    pub license: String,
    /// Free words.
    pub tags: Vec<String>,
    /// The rest that a catalogue is searched by.
    pub facts: CardFacts,
    /// What is wrong with it, by line.
    pub problems: Vec<CardProblem>,
}

/// Something wrong with a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardProblem {
    /// The line of the file, from 1.
    pub line: usize,
    /// The key; empty when it is about all of it.
    pub field: String,
    /// What was expected.
    pub what: String,
    /// Whether something was left out for it.
    pub is_error: bool,
}

impl fmt::Display for CardProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.field.is_empty() { "" } else { ": " };
        write!(f, "README.md:{}: {}{separator}{}", self.line, self.field, self.what)
    }
}

impl Card {
    /// Reads a card. Bytes that are no UTF-8 are replaced.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let mut reading = Reading::default();
        let body = match split(text) {
            Split::None => {
                reading.warn(1, "", "there is no front matter (keys and values between two lines of ---)");
                text
            }
            Split::Open => {
                reading.error(1, "", "the front matter does not end: a second line of --- is missing");
                ""
            }
            Split::Front { front, .. } if front.len() > FRONT_BYTES_MAX => {
                reading.error(1, "", &format!("the front matter has more than {FRONT_BYTES_MAX} bytes"));
                ""
            }
            Split::Front { front, first_line, body } => {
                reading.front(front, first_line);
                body
            }
        };
        reading.card.facts.text = text::plain(body, CARD_TEXT_BYTES_MAX);
        reading.card.problems.truncate(PROBLEMS_MAX);
        reading.card
    }
}

enum Split<'a> {
    None,
    Open,
    Front { front: &'a str, first_line: usize, body: &'a str },
}

/// The front matter, the line of the file where it begins, and what follows it.
fn split(text: &str) -> Split<'_> {
    let start = text.trim_start();
    let blank_lines = text[..text.len() - start.len()].matches('\n').count();
    let mut lines = start.split_inclusive('\n');
    if lines.next().is_none_or(|line| line.trim_end() != "---") {
        return Split::None;
    }
    let begin = start.find('\n').map_or(start.len(), |at| at + 1);
    let mut at = begin;
    for line in lines {
        if line.trim_end() == "---" {
            return Split::Front {
                front: &start[begin..at],
                first_line: blank_lines + 2,
                body: &start[at + line.len()..],
            };
        }
        at += line.len();
    }
    Split::Open
}

#[derive(Default)]
struct Reading {
    card: Card,
}

impl Reading {
    fn front(&mut self, front: &str, first_line: usize) {
        let line_of = |line: usize| line.max(1) + first_line - 1;
        let entries = match yaml::entries(front) {
            Ok(entries) => entries,
            Err(trouble) => return self.error(line_of(trouble.line), "", &trouble.what),
        };
        for mut entry in entries {
            entry.line = line_of(entry.line);
            if let Value::List(items) = &mut entry.value {
                items.iter_mut().for_each(|(line, _)| *line = line_of(*line));
            }
            self.entry(&entry);
        }
        if self.card.license.is_empty() {
            self.warn(first_line, "license", "none is named, so nobody knows what is permitted");
        }
    }

    fn entry(&mut self, entry: &Entry) {
        match entry.key.as_str() {
            "license" => self.card.license = self.licence(entry),
            "language" | "languages" => self.card.facts.languages = self.languages(entry),
            "tags" => {
                let tags = self.words(entry, TAGS_MAX, WORD_BYTES_MAX);
                self.add_tags(tags);
            }
            "pipeline_tag" => self.card.facts.task = self.word(entry),
            "task_categories" => {
                let mut tasks = self.words(entry, TAGS_MAX, WORD_BYTES_MAX).into_iter();
                self.card.facts.task = tasks.next().unwrap_or_default();
                self.add_tags(tasks.collect());
            }
            "library_name" => self.card.facts.library = self.word(entry),
            "datasets" => self.card.facts.datasets = self.words(entry, DATASETS_MAX, NAMED_REPO_BYTES_MAX),
            "base_model" => self.card.facts.base_models = self.words(entry, BASE_MODELS_MAX, NAMED_REPO_BYTES_MAX),
            "base_model_relation" => self.card.facts.base_model_relation = self.relation(entry),
            "model-index" if !matches!(entry.value, Value::List(_) | Value::Nothing) => {
                self.error(entry.line, &entry.key, "expected a list of results");
            }
            _ => {}
        }
    }

    fn licence(&mut self, entry: &Entry) -> String {
        let names = self.words(entry, TAGS_MAX, WORD_BYTES_MAX);
        let mut joined = names.join(",").to_lowercase();
        if joined.len() > WORD_BYTES_MAX {
            self.error(entry.line, &entry.key, &format!("more than {WORD_BYTES_MAX} bytes"));
            joined.truncate(joined.floor_char_boundary(WORD_BYTES_MAX));
        }
        joined
    }

    fn languages(&mut self, entry: &Entry) -> Vec<String> {
        let named = self.words(entry, LANGUAGES_MAX, WORD_BYTES_MAX);
        let (codes, others): (Vec<String>, Vec<String>) = named.into_iter().partition(|name| is_language(name));
        if let Some(other) = others.first() {
            self.error(
                entry.line,
                &entry.key,
                &format!("`{}` is no code of a language, such as en or pt-BR", short(other)),
            );
        }
        codes.into_iter().map(|code| code.to_lowercase()).collect()
    }

    fn relation(&mut self, entry: &Entry) -> String {
        let word = self.word(entry);
        if !word.is_empty() && !RELATIONS.contains(&word.as_str()) {
            self.error(entry.line, &entry.key, &format!("`{}` is none of {}", short(&word), RELATIONS.join(", ")));
            return String::new();
        }
        word
    }

    /// One text.
    fn word(&mut self, entry: &Entry) -> String {
        match &entry.value {
            Value::Nothing => String::new(),
            Value::Text(text) if text.len() <= WORD_BYTES_MAX => text.trim().to_owned(),
            Value::Text(_) => {
                self.error(entry.line, &entry.key, &format!("more than {WORD_BYTES_MAX} bytes"));
                String::new()
            }
            Value::List(_) => {
                self.error(entry.line, &entry.key, "expected one text, found a list");
                String::new()
            }
            Value::Mapping => {
                self.error(entry.line, &entry.key, "expected one text, found keys and values");
                String::new()
            }
        }
    }

    /// A text or a list of texts, each once.
    fn words(&mut self, entry: &Entry, count_max: usize, bytes_max: usize) -> Vec<String> {
        let items = match &entry.value {
            Value::Nothing => return Vec::new(),
            Value::Text(text) => vec![(entry.line, Some(text.clone()))],
            Value::List(items) => items.clone(),
            Value::Mapping => {
                self.error(entry.line, &entry.key, "expected a text or a list of texts, found keys and values");
                return Vec::new();
            }
        };
        let mut words: Vec<String> = Vec::new();
        for (line, item) in items {
            let Some(word) = item.map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()) else {
                self.error(line, &entry.key, "expected a text here");
                continue;
            };
            if word.len() > bytes_max {
                self.error(line, &entry.key, &format!("`{}…` has more than {bytes_max} bytes", short(&word)));
            } else if words.len() == count_max {
                self.error(line, &entry.key, &format!("only the first {count_max} are kept"));
                break;
            } else if !words.contains(&word) {
                words.push(word);
            }
        }
        words
    }

    fn add_tags(&mut self, tags: Vec<String>) {
        for tag in tags {
            if self.card.tags.len() < TAGS_MAX && !self.card.tags.contains(&tag) {
                self.card.tags.push(tag);
            }
        }
    }

    fn error(&mut self, line: usize, field: &str, what: &str) {
        self.problem(line, field, what, true);
    }

    fn warn(&mut self, line: usize, field: &str, what: &str) {
        self.problem(line, field, what, false);
    }

    fn problem(&mut self, line: usize, field: &str, what: &str, is_error: bool) {
        if self.card.problems.len() < PROBLEMS_MAX {
            let (field, what) = (field.to_owned(), what.to_owned());
            self.card.problems.push(CardProblem { line, field, what, is_error });
        }
    }
}

/// As BCP 47 writes them, and the words that the ecosystem uses beside: `multilingual`, `code`.
fn is_language(name: &str) -> bool {
    (2..=24).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(card: &str) -> Vec<String> {
        Card::parse(card.as_bytes()).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_card_is_read_as_the_ecosystem_reads_it() {
        let card = "---\nlicense: Apache-2.0\nlanguage:\n- en\n- pt-BR\ntags: [chat, chat, safetensors]\npipeline_tag: text-generation\n\
            library_name: transformers\nbase_model: acme/base\nbase_model_relation: quantized\ndatasets:\n  - acme/poems\n\
            model-index:\n- name: x\n  results: []\nwidget:\n- text: hi\n---\n\n# Tiny\nWrites *poems*.\n";
        let card = Card::parse(card.as_bytes());
        assert_eq!(card.problems, []);
        assert_eq!(
            (card.license.as_str(), card.tags),
            ("apache-2.0", vec!["chat".to_owned(), "safetensors".to_owned()])
        );
        let facts = card.facts;
        assert_eq!((facts.task.as_str(), facts.library.as_str()), ("text-generation", "transformers"));
        assert_eq!(facts.languages, ["en", "pt-br"]);
        assert_eq!(
            (facts.base_models, facts.base_model_relation.as_str()),
            (vec!["acme/base".to_owned()], "quantized")
        );
        assert_eq!((facts.datasets, facts.text.as_str()), (vec!["acme/poems".to_owned()], "Tiny Writes poems."));
    }

    #[test]
    fn one_text_stands_for_a_list_and_windows_lines_are_lines() {
        let card = Card::parse(
            b"\xef\xbb\xbf---\r\nlicense: mit\r\nlanguage: en\r\ntags: chat\r\ndatasets: a/b\r\n---\r\nText\r\n",
        );
        assert_eq!(card.problems, []);
        assert_eq!((card.facts.languages, card.tags), (vec!["en".to_owned()], vec!["chat".to_owned()]));
        assert_eq!((card.facts.datasets, card.facts.text.as_str()), (vec!["a/b".to_owned()], "Text"));
    }

    #[test]
    fn a_problem_says_line_field_and_what_was_expected() {
        for (card, expected) in [
            ("Text", "README.md:1: there is no front matter (keys and values between two lines of ---)"),
            ("---\nlicense: mit\n", "README.md:1: the front matter does not end: a second line of --- is missing"),
            (
                "---\nlicense: mit\npipeline_tag: [a, b]\n---\n",
                "README.md:3: pipeline_tag: expected one text, found a list",
            ),
            ("---\nlicense: mit\ntags:\n- a\n- {b: c}\n---\n", "README.md:5: tags: expected a text here"),
            (
                "---\nlicense: mit\nlanguage: English language\n---\n",
                "README.md:3: language: `English language` is no code of a language, such as en or pt-BR",
            ),
            (
                "---\nlicense: mit\nbase_model_relation: child\n---\n",
                "README.md:3: base_model_relation: `child` is none of finetune, adapter, merge, quantized",
            ),
            ("---\nlicense: mit\nmodel-index: x\n---\n", "README.md:3: model-index: expected a list of results"),
            ("---\ntags: [a]\n---\n", "README.md:2: license: none is named, so nobody knows what is permitted"),
            ("\n\n---\nlicense: mit\nb: *x\n---\n", "README.md:5: "),
        ] {
            let problems = problems(card);
            assert!(problems.len() == 1 && problems[0].starts_with(expected), "{card:?}: {problems:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_left_out_and_the_rest_stays() {
        let card = Card::parse(b"---\nlicense: {a: b}\npipeline_tag: fill-mask\nlanguage: [en, 'x y']\n---\nText");
        assert_eq!((card.license.as_str(), card.facts.task.as_str()), ("", "fill-mask"));
        assert_eq!((card.facts.languages, card.facts.text.as_str()), (vec!["en".to_owned()], "Text"));
    }

    #[test]
    fn every_fact_fits_a_record() {
        let long = "x".repeat(5000);
        let tags: String = (0..500).map(|n| format!("- tag{n}-{}\n", "y".repeat(100))).collect();
        let languages: String = (0..300).map(|n| format!("- l{n}\n")).collect();
        let card = format!(
            "---\nlicense: {long}\npipeline_tag: {long}\ntags:\n{tags}language:\n{languages}---\n{}",
            "é ".repeat(9000)
        );
        let card = Card::parse(card.as_bytes());
        assert_eq!((card.tags.len(), card.facts.languages.len()), (TAGS_MAX, LANGUAGES_MAX));
        assert!(card.license.is_empty() && card.facts.task.is_empty());
        assert!(card.facts.text.len() <= CARD_TEXT_BYTES_MAX && card.problems.len() <= PROBLEMS_MAX);
        assert!(card.problems.iter().any(|problem| problem.what.contains("only the first 64")));
    }

    #[test]
    fn any_bytes_give_a_card() {
        use proptest::prelude::*;
        proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..300))| {
            Card::parse(&bytes);
            Card::parse(&[b"---\n".as_slice(), &bytes, b"\n---\n"].concat());
        });
    }
}
