//! Half-open ranges of layers, `0..10` everywhere. Not a plan. Invariant: start ≤ end.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Layers `start..end`; `end` itself is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerRange {
    /// The first layer.
    pub start: u32,
    /// One after the last.
    pub end: u32,
}

impl LayerRange {
    /// `start..end`; `None` when end comes before start.
    pub const fn new(start: u32, end: u32) -> Option<Self> {
        match start <= end {
            true => Some(Self { start, end }),
            false => None,
        }
    }

    /// How many layers.
    pub const fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether the layer is among them.
    pub const fn contains(self, layer: u32) -> bool {
        self.start <= layer && layer < self.end
    }

    /// Each layer.
    pub fn iter(self) -> std::ops::Range<u32> {
        self.start..self.end
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A text that is not `A..B`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of layers such as 0..10")]
pub struct LayerRangeError(String);

impl FromStr for LayerRange {
    type Err = LayerRangeError;
    fn from_str(text: &str) -> Result<Self, LayerRangeError> {
        let range = text.split_once("..").and_then(|(start, end)| Self::new(start.parse().ok()?, end.parse().ok()?));
        range.ok_or_else(|| LayerRangeError(text.chars().take(100).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_reads_back_and_is_half_open() {
        let range: LayerRange = "2..5".parse().unwrap();
        assert_eq!((range.to_string().as_str(), range.len()), ("2..5", 3));
        assert!(range.contains(4) && !range.contains(5));
        for text in ["5..2", "2..=5", "2", "..", "-1..2", "1..4294967296"] {
            assert!(text.parse::<LayerRange>().is_err(), "{text} was accepted");
        }
    }
}
