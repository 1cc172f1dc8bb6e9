//! SentencePiece's byte-pair encoding as GGUF files carry it: pieces with scores, no merge list.
//!
//! Not the unigram algorithm. The best-scored adjacent pair that is a piece is merged until none is left, the leftmost
//! of equals first; a character that is no piece falls back to its bytes (Kudo & Richardson 2018; the order of merges
//! as in llama2.c and llama.cpp). Invariant: control, byte and unknown tokens are never the result of merging text.

use super::specials::{Part, Specials};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// The pieces and what to do with the rest.
#[derive(Debug, Default)]
pub(super) struct Spm {
    /// Text of mergeable pieces → (id, score).
    pub pieces: HashMap<String, (u32, f32)>,
    /// Ids of the 256 byte tokens, where there are any.
    pub bytes: Vec<Option<u32>>,
    /// For bytes without a token.
    pub unknown: Option<u32>,
    /// Tokens that are matched before any merging.
    pub user_defined: Specials,
    /// A space goes before a text.
    pub adds_space: bool,
}

/// A run of bytes in a doubly linked list; empty when merged away.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// A possible merge. The greatest has the best score; of equals the leftmost.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Spm {
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        for part in self.user_defined.cut(text, &[]) {
            match part {
                Part::Special(id) => ids.push(id),
                Part::Run(run) => self.encode_run(run, ids),
            }
        }
    }

    fn encode_run(&self, run: &str, ids: &mut Vec<u32>) {
        let prefix = if self.adds_space { "\u{2581}" } else { "" };
        let text = format!("{prefix}{}", run.replace(' ', "\u{2581}"));
        let mut symbols = characters(&text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.offer(&text, &symbols, right - 1, right, &mut queue);
        }
        while let Some(merge) = queue.pop() {
            self.merge(&text, &mut symbols, merge, &mut queue);
        }
        for symbol in symbols.iter().filter(|s| s.start < s.end) {
            self.emit(&text[symbol.start..symbol.end], ids);
        }
    }

    fn offer(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, queue: &mut BinaryHeap<Merge>) {
        let (start, end) = (symbols[left].start, symbols[right].end);
        if let Some((_, score)) = self.pieces.get(&text[start..end]) {
            queue.push(Merge { score: *score, left, right, bytes: end - start });
        }
    }

    fn merge(&self, text: &str, symbols: &mut [Symbol], merge: Merge, queue: &mut BinaryHeap<Merge>) {
        let (left, right) = (symbols[merge.left], symbols[merge.right]);
        let alive = |s: &Symbol| s.start < s.end;
        if !alive(&left) || !alive(&right) || right.end - left.start != merge.bytes || left.end != right.start {
            return;
        }
        symbols[merge.left].end = right.end;
        symbols[merge.left].next = right.next;
        symbols[merge.right].start = right.end;
        if let Some(next) = right.next {
            symbols[next].previous = Some(merge.left);
            self.offer(text, symbols, merge.left, next, queue);
        }
        if let Some(previous) = left.previous {
            self.offer(text, symbols, previous, merge.left, queue);
        }
    }

    fn emit(&self, piece: &str, ids: &mut Vec<u32>) {
        if let Some((id, _)) = self.pieces.get(piece) {
            return ids.push(*id);
        }
        let byte = |b: u8| self.bytes.get(b as usize).copied().flatten();
        if piece.bytes().all(|b| byte(b).is_some()) {
            ids.extend(piece.bytes().filter_map(byte));
        } else {
            ids.extend(self.unknown);
        }
    }
}

fn characters(text: &str) -> Vec<Symbol> {
    let count = text.chars().count();
    let symbol = |(i, (start, c)): (usize, (usize, char))| Symbol {
        start,
        end: start + c.len_utf8(),
        previous: i.checked_sub(1),
        next: (i + 1 < count).then_some(i + 1),
    };
    text.char_indices().enumerate().map(symbol).collect()
}

impl Ord for Merge {
    fn cmp(&self, other: &Merge) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Merge) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Merge) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm() -> Spm {
        let pieces = [
            ("\u{2581}", -9.0),
            ("a", -8.0),
            ("b", -7.0),
            ("ab", -2.0),
            ("ba", -1.0),
            ("\u{2581}a", -3.0),
            ("abab", 0.0),
        ];
        let table =
            pieces.iter().enumerate().map(|(i, (text, score))| (text.to_string(), (i as u32, *score))).collect();
        let bytes = (0..256).map(|b| Some(1000 + b)).collect();
        Spm { pieces: table, bytes, adds_space: true, ..Spm::default() }
    }

    fn ids(text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        spm().encode(text, &mut ids);
        ids
    }

    #[test]
    fn the_best_score_merges_first_and_the_leftmost_of_equals() {
        assert_eq!(ids("abab"), [5, 4, 2], "ba before ab, then the space with a");
        assert_eq!(ids("bb"), [0, 2, 2]);
        assert_eq!(ids(""), Vec::<u32>::new());
    }

    #[test]
    fn a_character_without_a_piece_becomes_its_bytes() {
        assert_eq!(ids("é"), [0, 1000 + 0xc3, 1000 + 0xa9]);
    }
}
