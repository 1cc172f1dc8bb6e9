//! Texts to the words that are searched for.
//!
//! A word is a run of letters and digits, folded: `SmolLM2` and `smollm2` are one word, `é` is `e`. Scripts that write no spaces give a
//! word for each character, which phrases put together again. A name is split further, as people search it: at changes of case and
//! between letters and digits, so that `TinyLlama` is found by `llama`.
//!
//! Invariant: what is indexed and what is asked go through the same function, so a word finds itself.

use tantivy::tokenizer::{AsciiFoldingFilter, RawTokenizer, TextAnalyzer, TokenStream};

/// Bytes of a word that count; what is longer is cut, on both sides.
const WORD_MAX: usize = 64;

/// Characters of the beginnings by which a name's word is found, at least and at most.
pub(super) const PREFIX_MIN: usize = 2;
pub(super) const PREFIX_MAX: usize = 16;

/// A word and its place in the text; parts of a word have its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) at: usize,
}

/// The words of a text.
pub(super) fn words(text: &str) -> Vec<Word> {
    let runs = runs(text).into_iter().enumerate();
    runs.map(|(at, run)| Word { text: fold(run), at }).filter(|word| !word.text.is_empty()).collect()
}

/// The words of a name, and their parts.
pub(super) fn name_words(name: &str) -> Vec<Word> {
    let mut words = Vec::new();
    for (at, run) in runs(name).into_iter().enumerate() {
        words.push(Word { text: fold(run), at });
        let parts = parts(run);
        if parts.len() > 1 {
            words.extend(parts.into_iter().map(|part| Word { text: fold(part), at }));
        }
    }
    words.retain(|word| !word.text.is_empty());
    words
}

/// The beginnings by which a word is found before it is typed whole.
pub(super) fn prefixes(word: &str) -> impl Iterator<Item = &str> {
    let ends = word.char_indices().map(|(at, _)| at).enumerate().skip(PREFIX_MIN).take(PREFIX_MAX + 1 - PREFIX_MIN);
    ends.map(|(_, end)| &word[..end])
}

/// One value of a field as it is filtered by: without regard to case.
pub(super) fn folded_value(value: &str) -> String {
    value.trim().to_lowercase()
}

fn fold(word: &str) -> String {
    let mut folded = if word.is_ascii() { word.to_ascii_lowercase() } else { unaccented(&word.to_lowercase()) };
    folded.truncate(folded.floor_char_boundary(WORD_MAX));
    folded
}

fn unaccented(word: &str) -> String {
    let mut analyzer = TextAnalyzer::builder(RawTokenizer::default()).filter(AsciiFoldingFilter).build();
    let mut stream = analyzer.token_stream(word);
    // Some letters fold to capital ones.
    if stream.advance() { stream.token().text.to_lowercase() } else { String::new() }
}

fn runs(text: &str) -> Vec<&str> {
    let (mut runs, mut start) = (Vec::new(), None);
    for (at, c) in text.char_indices() {
        if is_word_alone(c) {
            runs.extend(start.take().map(|start: usize| &text[start..at]));
            runs.push(&text[at..at + c.len_utf8()]);
        } else if is_in_word(c) {
            start.get_or_insert(at);
        } else {
            runs.extend(start.take().map(|start| &text[start..at]));
        }
    }
    runs.extend(start.map(|start| &text[start..]));
    runs
}

/// Letters, digits, and marks that belong to the letter before them.
fn is_in_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '\u{300}'..='\u{36f}' | '\u{93c}'..='\u{94d}')
}

/// Characters of scripts that write no spaces between words: Thai to Khmer, kana, Chinese.
fn is_word_alone(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// `SmolLM2` is smol, lm, 2; `Q4` is q, 4.
fn parts(run: &str) -> Vec<&str> {
    let chars: Vec<(usize, char)> = run.char_indices().collect();
    let (mut parts, mut start) = (Vec::new(), 0);
    for at in 1..chars.len() {
        let (before, here) = (chars[at - 1].1, chars[at].1);
        let next_is_lower = chars.get(at + 1).is_some_and(|(_, next)| next.is_lowercase());
        let is_edge = before.is_numeric() != here.is_numeric()
            || (before.is_lowercase() && here.is_uppercase())
            || (before.is_uppercase() && here.is_uppercase() && next_is_lower);
        if is_edge {
            parts.push(&run[start..chars[at].0]);
            start = chars[at].0;
        }
    }
    parts.push(&run[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(words: Vec<Word>) -> Vec<String> {
        words.into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn words_are_folded_runs_of_letters_and_digits() {
        assert_eq!(texts(words("SmolLM2-135M_Instruct, Café!")), ["smollm2", "135m", "instruct", "cafe"]);
        assert_eq!(texts(words("日本語 model")), ["日", "本", "語", "model"]);
        assert_eq!(texts(words("ÅNGSTRÖM Straße")), ["angstrom", "strasse"]);
        assert!(words("-- / !").is_empty());
    }

    #[test]
    fn a_name_is_found_by_its_parts() {
        assert_eq!(texts(name_words("TinyLlama-1.1B")), ["tinyllama", "tiny", "llama", "1", "1b", "1", "b"]);
        assert_eq!(texts(name_words("SmolLM2")), ["smollm2", "smol", "lm", "2"]);
        assert!(name_words("Llama3").iter().all(|word| word.at == 0));
    }

    #[test]
    fn beginnings_are_proper_ones() {
        assert_eq!(prefixes("llama").collect::<Vec<_>>(), ["ll", "lla", "llam"]);
        assert_eq!(prefixes("ab").count(), 0);
        assert_eq!(prefixes(&"x".repeat(40)).last().map(str::len), Some(PREFIX_MAX));
        assert_eq!(prefixes("äöü").collect::<Vec<_>>(), ["äö"]);
    }

    #[test]
    fn any_text_gives_words_that_give_themselves() {
        use proptest::prelude::*;
        proptest!(|(text in "\\PC{0,60}")| {
            name_words(&text);
            for word in words(&text) {
                prefixes(&word.text).count();
                let again = words(&word.text);
                prop_assert!(again.iter().any(|w| w.text == word.text) || again.len() != 1 || !word.text.is_ascii(), "{:?} {:?}", word, again);
            }
        });
    }
}
