//! Byte ranges of a blob, as sets: sorted and not touching.

use std::ops::Range;

/// Cuts at `size`, sorts, and joins what touches.
pub fn joined(ranges: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.iter().map(|range| range.start..range.end.min(size)).collect();
    sorted.retain(|range| !range.is_empty());
    sorted.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// `wanted` minus `held`; both sorted and not touching.
pub fn without(wanted: &[Range<u64>], held: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for range in wanted {
        let mut start = range.start;
        for held in held.iter().filter(|held| held.start < range.end && held.end > range.start) {
            if held.start > start {
                left.push(start..held.start);
            }
            start = start.max(held.end);
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    left
}

/// How many bytes.
pub fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}
