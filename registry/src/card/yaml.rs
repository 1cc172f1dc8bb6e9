//! The front matter's YAML, as far as a card needs it: one mapping whose values are texts or lists of texts.
//!
//! Not a YAML library: a well-kept parser makes events, and here is only what is kept of them. Values of keys that nobody asked for
//! are walked and forgotten, so that a benchmark's table of results costs no memory. An alias is refused, not followed: expanding
//! aliases is how a small file becomes a huge value.
//!
//! Invariant: any text gives values or one [`Trouble`] with its line, in time and memory that its length bounds.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// How deep values may nest: results of evaluations nest six deep.
const DEPTH_MAX: usize = 24;

/// Values, mappings and lists of one front matter: results on a hundred benchmarks are some ten thousand.
const EVENTS_MAX: usize = 500_000;

/// Texts that are kept of one list; a card names far fewer languages or tags.
const LIST_MAX: usize = 1024;

/// The value of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Nothing,
    /// A text, number or truth value, as it was written.
    Text(String),
    /// A list of texts, each with its line. What in it is no text is `None`.
    List(Vec<(usize, Option<String>)>),
    /// Keys and values.
    Mapping,
}

/// One key of the outermost mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: Value,
}

/// Why a front matter can't be read, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) line: usize,
    pub(super) what: String,
}

/// The entries of the outermost mapping, in their order. Lines count from 1.
pub(super) fn entries(text: &str) -> Result<Vec<Entry>, Trouble> {
    let last_line = text.lines().count().max(1);
    // What is missing at the end is told of the last line.
    read(text).map_err(|trouble| Trouble { line: trouble.line.clamp(1, last_line), ..trouble })
}

fn read(text: &str) -> Result<Vec<Entry>, Trouble> {
    let mut reader = Reader { parser: Parser::new_from_str(text), events: 0 };
    let mut entries = Vec::new();
    loop {
        match reader.next()? {
            (line, Token::Start(Shape::Mapping)) => {
                reader.mapping(&mut entries)?;
                reader.refuse_more(line)?;
                return Ok(entries);
            }
            (_, Token::End) => return Ok(entries),
            (_, Token::Text(text, true)) if is_nothing(&text) => {}
            (line, _) => return Err(Trouble { line, what: "expected keys and values, such as `license: mit`".into() }),
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    events: usize,
}

enum Shape {
    Mapping,
    List,
}

enum Token {
    Start(Shape),
    Stop,
    /// With whether it was written plainly, without quotes.
    Text(String, bool),
    /// Of the text.
    End,
}

impl Reader<'_> {
    /// The next event that says something, and its line.
    fn next(&mut self) -> Result<(usize, Token), Trouble> {
        loop {
            self.events += 1;
            let (event, span) = match self.parser.next_event() {
                None => return Ok((0, Token::End)),
                Some(Err(error)) => {
                    return Err(Trouble { line: error.marker().line(), what: format!("not YAML: {}", error.info()) });
                }
                Some(Ok(event)) => event,
            };
            let line = span.start.line();
            if self.events > EVENTS_MAX {
                return Err(Trouble { line, what: format!("more than {EVENTS_MAX} values") });
            }
            let token = match event {
                Event::Alias(_) => {
                    return Err(Trouble { line, what: "an alias (`*name`); write the value out".into() });
                }
                Event::Scalar(text, style, ..) => Token::Text(text.into_owned(), style == ScalarStyle::Plain),
                Event::SequenceStart(..) => Token::Start(Shape::List),
                Event::MappingStart(..) => Token::Start(Shape::Mapping),
                Event::SequenceEnd | Event::MappingEnd => Token::Stop,
                Event::StreamEnd => Token::End,
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => continue,
            };
            return Ok((line, token));
        }
    }

    fn mapping(&mut self, entries: &mut Vec<Entry>) -> Result<(), Trouble> {
        loop {
            let (line, key) = match self.next()? {
                (_, Token::Stop) => return Ok(()),
                (line, Token::Text(key, _)) => (line, key),
                (line, _) => return Err(Trouble { line, what: "a key must be a text".into() }),
            };
            if entries.iter().any(|entry| entry.key == key) {
                return Err(Trouble { line, what: format!("the key `{}` stands there twice", short(&key)) });
            }
            if entries.len() == LIST_MAX {
                return Err(Trouble { line, what: format!("more than {LIST_MAX} keys") });
            }
            let value = self.value(line)?;
            entries.push(Entry { line, key, value });
        }
    }

    fn value(&mut self, line: usize) -> Result<Value, Trouble> {
        match self.next()?.1 {
            Token::Text(text, true) if is_nothing(&text) => Ok(Value::Nothing),
            Token::Text(text, _) => Ok(Value::Text(text)),
            Token::Start(Shape::Mapping) => self.skip(1).map(|()| Value::Mapping),
            Token::Start(Shape::List) => self.list().map(Value::List),
            Token::Stop | Token::End => Err(Trouble { line, what: "the value is missing".into() }),
        }
    }

    fn list(&mut self) -> Result<Vec<(usize, Option<String>)>, Trouble> {
        let mut items = Vec::new();
        loop {
            let (line, item) = match self.next()? {
                (_, Token::Stop) => return Ok(items),
                (line, Token::Text(text, is_plain)) => (line, (!is_plain || !is_nothing(&text)).then_some(text)),
                (line, Token::Start(_)) => {
                    self.skip(2)?;
                    (line, None)
                }
                (line, Token::End) => return Err(Trouble { line, what: "the list has no end".into() }),
            };
            if items.len() < LIST_MAX {
                items.push((line, item));
            }
        }
    }

    /// Walks to the end of the mapping or list that was just entered, which lies `depth` deep.
    fn skip(&mut self, depth: usize) -> Result<(), Trouble> {
        let mut open = 1;
        while open > 0 {
            match self.next()? {
                (line, Token::Start(_)) if depth + open >= DEPTH_MAX => {
                    return Err(Trouble { line, what: format!("values nest more than {DEPTH_MAX} deep") });
                }
                (_, Token::Start(_)) => open += 1,
                (_, Token::Stop) => open -= 1,
                (line, Token::End) => return Err(Trouble { line, what: "it ends inside a value".into() }),
                (_, Token::Text(..)) => {}
            }
        }
        Ok(())
    }

    fn refuse_more(&mut self, line: usize) -> Result<(), Trouble> {
        match self.next()? {
            (_, Token::End) => Ok(()),
            (at, _) => Err(Trouble { line: at.max(line), what: "more than one document".into() }),
        }
    }
}

fn is_nothing(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// A text from elsewhere, cut for a message.
pub(super) fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        entries(text).unwrap().remove(0).value
    }

    #[test]
    fn texts_and_lists_are_read_in_every_style() {
        for text in
            ["language: [en, 'fr', \"de\"]", "language:\n- en\n- fr\n- de", "language:\n  - en\n  - fr\n  - de\n"]
        {
            let Value::List(items) = value(text) else { panic!("{text} is no list") };
            assert_eq!(items.iter().filter_map(|(_, item)| item.as_deref()).collect::<Vec<_>>(), ["en", "fr", "de"]);
        }
        assert_eq!(value("license: apache-2.0 # a comment"), Value::Text("apache-2.0".into()));
        assert_eq!(value("language: no"), Value::Text("no".into()), "Norwegian is a language, not a truth value");
        assert_eq!(value("version: 1.10"), Value::Text("1.10".into()));
        assert_eq!(value("license: ~"), Value::Nothing);
        assert_eq!(value("license: '~'"), Value::Text("~".into()));
        assert_eq!(value("model-index:\n- name: x\n  results:\n  - task: {type: a}"), Value::List(vec![(2, None)]));
    }

    #[test]
    fn trouble_has_its_line() {
        for (text, line, part) in [
            ("license: mit\ntags: [a", 2, "not YAML"),
            ("license: mit\nlicense: gpl", 2, "twice"),
            ("a: &x [1]\nb: *x", 2, "alias"),
            ("- a\n- b", 1, "keys and values"),
            ("a: b: c", 1, "not YAML"),
        ] {
            let trouble = entries(text).unwrap_err();
            assert!(trouble.what.contains(part), "{text}: {trouble:?}");
            assert_eq!(trouble.line, line, "{text}: {trouble:?}");
        }
    }

    #[test]
    fn nesting_and_counts_are_bounded() {
        let deep = format!("a: {}", "{b: ".repeat(10_000));
        assert!(entries(&deep).unwrap_err().what.contains("deep"));
        let deep = format!("a:\n  {}", "- ".repeat(100_000));
        assert!(entries(&deep).is_err());
        let many = format!("a: [{}]", "x,".repeat(EVENTS_MAX));
        assert!(entries(&many).unwrap_err().what.contains("more than"));
        let keys: String = (0..2000).map(|n| format!("k{n}: v\n")).collect();
        assert!(entries(&keys).unwrap_err().what.contains("keys"));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused_at_its_first_alias() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            let inner = format!("*a{}, ", n - 1).repeat(8);
            bomb.push_str(&format!("a{n}: &a{n} [{inner}]\n"));
        }
        assert_eq!(
            entries(&bomb).unwrap_err(),
            Trouble { line: 2, what: "an alias (`*name`); write the value out".into() }
        );
    }

    #[test]
    fn anything_gives_entries_or_trouble() {
        use proptest::prelude::*;
        let pieces = [
            "a", ": ", "- ", "[", "]", "{", "}", "\n", "  ", "\t", "&x ", "*x", "!t ", "'", "\"", "|", ">", "?", "#",
            "---", "...", "\u{feff}", "é", "%", ",",
        ];
        proptest!(ProptestConfig::with_cases(3000), |(picks in proptest::collection::vec(0..pieces.len(), 0..60))| {
            let text: String = picks.iter().map(|pick| pieces[*pick]).collect();
            let _ = entries(&text);
        });
        proptest!(|(text in "\\PC{0,200}")| { let _ = entries(&text); });
    }
}
