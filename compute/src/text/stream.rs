//! Ids to text as they come: whole characters only, and stop strings found wherever token borders fall.
//!
//! Not a judge of end-of-sequence ids, which the session knows. Invariants: everything that was handed out, joined, is
//! the decoded text of all ids up to the first stop string, however the text is cut into tokens; nothing that might
//! still become part of a stop string, and no half character, is ever handed out.

use super::decode::Pieces;
use std::sync::Arc;

/// An incremental decoder.
#[derive(Clone, Debug)]
pub struct Stream {
    pieces: Arc<Pieces>,
    stops: Vec<String>,
    /// Bytes that are no whole character yet.
    half: Vec<u8>,
    /// Text that may begin a stop string.
    held: String,
    strip_space: bool,
    stopped: bool,
}

/// What one id added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// May be empty.
    pub text: String,
    /// A stop string was met; nothing more will come, and the stop string itself is left out.
    pub stopped: bool,
}

impl Stream {
    pub(super) fn new(pieces: Arc<Pieces>, strip_space: bool, stops: Vec<String>) -> Stream {
        let stops = stops.into_iter().filter(|s| !s.is_empty()).collect();
        Stream { strip_space, pieces, stops, half: Vec::new(), held: String::new(), stopped: false }
    }

    /// Takes the next id.
    pub fn push(&mut self, id: u32) -> Piece {
        if self.stopped {
            return Piece { text: String::new(), stopped: true };
        }
        self.half.extend_from_slice(self.pieces.bytes(id));
        let text = whole_characters(&mut self.half);
        self.take(&text)
    }

    /// The end: what was held back, and U+FFFD for a character that never became whole.
    pub fn finish(mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let tail = if self.half.is_empty() { String::new() } else { "\u{FFFD}".to_string() };
        let Piece { mut text, stopped } = self.take(&tail);
        if !stopped {
            text += &self.held;
        }
        text
    }

    /// Whether a stop string was met.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn take(&mut self, text: &str) -> Piece {
        let mut text = text;
        if self.strip_space && !text.is_empty() {
            text = text.strip_prefix(' ').unwrap_or(text);
            self.strip_space = false;
        }
        let searched = self.held.len();
        self.held += text;
        if let Some(start) = first_stop(&self.held, searched, &self.stops) {
            self.stopped = true;
            self.held.truncate(start);
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = possible_stop(&self.held, &self.stops);
        let tail = self.held.split_off(self.held.len() - keep);
        Piece { text: std::mem::replace(&mut self.held, tail), stopped: false }
    }
}

/// Takes the whole characters out; what can't become one turns into U+FFFD, as `String::from_utf8_lossy` does it.
fn whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < bytes.len() {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(rest) => {
                text += rest;
                at = bytes.len();
            }
            Err(error) => {
                let good = at + error.valid_up_to();
                text += &String::from_utf8_lossy(&bytes[at..good]);
                at = good;
                let Some(bad) = error.error_len() else { break };
                text.push('\u{FFFD}');
                at += bad;
            }
        }
    }
    bytes.drain(..at);
    text
}

/// Where the stop string begins that is complete first; of several complete at one place the longest. Only ends after
/// `searched` are new.
fn first_stop(text: &str, searched: usize, stops: &[String]) -> Option<usize> {
    let ends_at = |end: usize| stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(|s| end - s.len()).min();
    (searched + 1..=text.len()).filter(|end| text.is_char_boundary(*end)).find_map(ends_at)
}

/// Bytes at the end that begin some stop string.
fn possible_stop(text: &str, stops: &[String]) -> usize {
    let longest = stops.iter().map(|s| s.len() - 1).max().unwrap_or(0).min(text.len());
    let starts = |length: &usize| {
        let at = text.len() - length;
        text.is_char_boundary(at) && stops.iter().any(|s| s.starts_with(&text[at..]))
    };
    (1..=longest).rev().find(starts).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ids are bytes.
    fn bytes_as_tokens() -> Arc<Pieces> {
        let mut pieces = Pieces::new(false);
        (0..=255u8).for_each(|b| pieces.push(&[b], false));
        Arc::new(pieces)
    }

    fn run(ids: &[u8], stops: &[&str]) -> (String, bool) {
        let mut stream = Stream::new(bytes_as_tokens(), false, stops.iter().map(|s| s.to_string()).collect());
        let mut text = String::new();
        for id in ids {
            text += &stream.push(u32::from(*id)).text;
        }
        let stopped = stream.is_stopped();
        (text + &stream.finish(), stopped)
    }

    #[test]
    fn a_stop_string_across_tokens_is_held_back_and_left_out() {
        let mut stream = Stream::new(bytes_as_tokens(), false, vec!["END".into()]);
        let pushed: Vec<Piece> = "xEEND!".bytes().map(|b| stream.push(u32::from(b))).collect();
        let texts: Vec<&str> = pushed.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(texts, ["x", "", "E", "", "", ""]);
        assert_eq!(pushed.iter().map(|p| p.stopped).collect::<Vec<_>>(), [false, false, false, false, true, true]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn half_characters_wait_and_broken_ones_are_replaced_at_the_end() {
        let mut stream = Stream::new(bytes_as_tokens(), false, vec![]);
        let snowman = "☃".as_bytes();
        assert_eq!(stream.push(u32::from(snowman[0])).text, "");
        assert_eq!(stream.push(u32::from(snowman[1])).text, "");
        assert_eq!(stream.push(u32::from(snowman[2])).text, "☃");
        stream.push(0xe2);
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    #[test]
    fn the_first_complete_stop_wins_whatever_the_order_of_the_list() {
        for stops in [["ab", "xabc"], ["xabc", "ab"]] {
            assert_eq!(run(b"--xabcd", &stops), ("--x".to_string(), true));
        }
        assert_eq!(run("aé".as_bytes(), &["é"]), ("a".to_string(), true));
    }

    proptest! {
        #[test]
        fn the_stream_is_the_lossy_decode_of_all(ids in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(run(&ids, &["never there \u{1}\u{2}"]).0, String::from_utf8_lossy(&ids).into_owned());
        }

        #[test]
        fn the_cut_into_tokens_does_not_matter(text in "[ab\u{e9}]{0,40}", cuts in prop::collection::vec(1usize..5, 1..40), stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..3)) {
            let bytewise = { let refs: Vec<&str> = stops.iter().map(String::as_str).collect(); run(text.as_bytes(), &refs) };
            let mut pieces = Pieces::new(false);
            let (mut rest, mut turn, mut count) = (text.as_bytes(), 0, 0);
            while !rest.is_empty() {
                let n = cuts[turn % cuts.len()].min(rest.len());
                pieces.push(&rest[..n], false);
                rest = &rest[n..];
                turn += 1;
                count += 1;
            }
            let mut stream = Stream::new(Arc::new(pieces), false, stops);
            let mut chunked = String::new();
            for id in 0..count { chunked += &stream.push(id).text; }
            let stopped = stream.is_stopped();
            chunked += &stream.finish();
            prop_assert_eq!((chunked, stopped), bytewise);
        }
    }
}
