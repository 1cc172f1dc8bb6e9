//! Finds special tokens in text that may hold them, and cuts the rest into runs.
//!
//! Not a tokenizer: the runs are encoded elsewhere, by a tokenizer that parses no specials. Invariant: a special is
//! found only where it begins at a byte that was not forbidden, so text whose beginnings are all forbidden yields none.

use std::collections::BTreeMap;

/// One special token.
#[derive(Clone, Debug)]
pub(super) struct Special {
    pub content: String,
    pub id: u32,
    /// It swallows white space before it.
    pub strip_left: bool,
    /// It swallows white space after it.
    pub strip_right: bool,
    /// It counts only between non-word characters.
    pub single_word: bool,
}

/// All special tokens of a tokenizer, by first byte, longest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Specials {
    by_first: BTreeMap<u8, Vec<Special>>,
}

/// A cut text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Run(&'a str),
    Special(u32),
}

impl Specials {
    pub(super) fn new(all: Vec<Special>) -> Specials {
        let mut by_first: BTreeMap<u8, Vec<Special>> = BTreeMap::new();
        for special in all {
            if let Some(first) = special.content.bytes().next() {
                by_first.entry(first).or_default().push(special);
            }
        }
        for bucket in by_first.values_mut() {
            bucket.sort_by(|a, b| b.content.len().cmp(&a.content.len()).then(a.id.cmp(&b.id)));
        }
        Specials { by_first }
    }

    /// Runs and specials in order; `forbidden` holds sorted byte offsets where none may begin.
    pub(super) fn cut<'a>(&self, text: &'a str, forbidden: &[usize]) -> Vec<Part<'a>> {
        let (mut parts, mut run_start, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            let found = if forbidden.binary_search(&at).is_ok() { None } else { self.at(text, at) };
            let Some(special) = found else {
                at += 1;
                continue;
            };
            let before = &text[run_start..at];
            push_run(&mut parts, if special.strip_left { before.trim_end() } else { before });
            parts.push(Part::Special(special.id));
            at += special.content.len();
            if special.strip_right {
                at += text[at..].len() - text[at..].trim_start().len();
            }
            run_start = at;
        }
        push_run(&mut parts, &text[run_start..]);
        parts
    }

    /// Byte offsets of `text` where a special begins, or could begin if the text went on.
    pub(super) fn beginnings(&self, text: &str) -> Vec<usize> {
        let begins = |at: &usize| {
            let rest = &text.as_bytes()[*at..];
            self.by_first.get(&rest[0]).is_some_and(|bucket| {
                bucket.iter().any(|s| rest.starts_with(s.content.as_bytes()) || s.content.as_bytes().starts_with(rest))
            })
        };
        (0..text.len()).filter(begins).collect()
    }

    fn at(&self, text: &str, at: usize) -> Option<&Special> {
        let bucket = self.by_first.get(&text.as_bytes()[at])?;
        bucket.iter().find(|s| {
            text.as_bytes()[at..].starts_with(s.content.as_bytes())
                && (!s.single_word || stands_alone(text, at, s.content.len()))
        })
    }
}

fn push_run<'a>(parts: &mut Vec<Part<'a>>, run: &'a str) {
    if !run.is_empty() {
        parts.push(Part::Run(run));
    }
}

fn stands_alone(text: &str, at: usize, length: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..at].chars().next_back().is_some_and(word) && !text[at + length..].chars().next().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(content: &str, id: u32) -> Special {
        Special { content: content.into(), id, strip_left: false, strip_right: false, single_word: false }
    }

    #[test]
    fn the_longest_special_at_the_leftmost_place_wins() {
        let specials = Specials::new(vec![special("<a>", 1), special("<a><b>", 2), special("b>", 3)]);
        assert_eq!(
            specials.cut("x<a><b>é<a>b>", &[]),
            [Part::Run("x"), Part::Special(2), Part::Run("é"), Part::Special(1), Part::Special(3)]
        );
    }

    #[test]
    fn a_special_that_strips_takes_the_white_space_beside_it() {
        let mut end = special("<end>", 1);
        (end.strip_left, end.strip_right) = (true, true);
        assert_eq!(
            Specials::new(vec![end]).cut("a \n<end>\t b", &[]),
            [Part::Run("a"), Part::Special(1), Part::Run("b")]
        );
    }

    #[test]
    fn forbidden_beginnings_yield_no_special() {
        let specials = Specials::new(vec![special("<s>", 1), special("s>x", 2)]);
        let text = "<s>x <s";
        let marks = specials.beginnings(text);
        assert_eq!(marks, [0, 1, 5, 6]);
        assert_eq!(specials.cut(text, &marks), [Part::Run(text)]);
    }

    #[test]
    fn a_single_word_special_inside_a_word_is_text() {
        let mut word = special("mask", 1);
        word.single_word = true;
        assert_eq!(Specials::new(vec![word]).cut("masks mask", &[]), [Part::Run("masks "), Part::Special(1)]);
    }
}
