//! Byte ranges of a blob: plain arithmetic, in groups of [`GROUP_BYTES`] where proofs need it.

use std::ops::Range;

/// BLAKE3 proofs are kept for groups of 16 KiB, so pieces begin and end there (or at the blob's end).
pub const GROUP_BYTES: u64 = 16 * 1024;

/// Grows ranges to whole groups (or the blob's end) and joins what then touches.
pub fn whole_groups(ranges: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let grown: Vec<Range<u64>> = ranges
        .iter()
        .map(|range| range.start / GROUP_BYTES * GROUP_BYTES..range.end.next_multiple_of(GROUP_BYTES).min(size))
        .collect();
    joined(&grown, size)
}

/// The whole groups inside a range.
pub fn inner_groups(range: &Range<u64>, size: u64) -> Option<Range<u64>> {
    let start = range.start.checked_next_multiple_of(GROUP_BYTES)?;
    let end = if range.end >= size { size } else { range.end / GROUP_BYTES * GROUP_BYTES };
    (start < end).then_some(start..end)
}

/// Sorts, cuts at `size`, joins what touches.
pub fn joined(ranges: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges.iter().map(|range| range.start..range.end.min(size)).collect();
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

/// The first part of `range` that lies outside of `others` (sorted, not touching).
pub fn first_outside(range: &Range<u64>, others: &[Range<u64>]) -> Option<Range<u64>> {
    let mut start = range.start;
    for other in others.iter().filter(|other| other.end > range.start) {
        if other.start > start {
            return (start < range.end).then(|| start..other.start.min(range.end));
        }
        start = other.end;
    }
    (start < range.end).then_some(start..range.end)
}

/// How many bytes.
pub fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_grow_to_groups_and_holdings_shrink_to_them() {
        let group = GROUP_BYTES;
        assert_eq!(whole_groups(&[5..10, 20..group + 1], 10 * group), [0..2 * group]);
        assert_eq!(whole_groups(&[9 * group + 5..9 * group + 6], 9 * group + 7), [9 * group..9 * group + 7]);
        assert_eq!(inner_groups(&(1024..3 * group + 1024), 9 * group), Some(group..3 * group));
        assert_eq!(inner_groups(&(1024..group), 9 * group), None);
        assert_eq!(inner_groups(&(8 * group..8 * group + 9), 8 * group + 9), Some(8 * group..8 * group + 9));
        assert_eq!(inner_groups(&(u64::MAX - 1..u64::MAX), 9), None);
    }

    proptest! {
        #[test]
        fn what_lies_outside_of_others_is_found_from_the_left(
            (start, length) in (0..60u64, 1..30u64),
            others in proptest::collection::vec((0..90u64, 0..15u64), 0..6),
        ) {
            let range = start..start + length;
            let others: Vec<_> = others.into_iter().map(|(start, length)| start..start + length).collect();
            let others = joined(&others, u64::MAX);
            let is_outside = |at: &u64| !others.iter().any(|other| other.contains(at));
            let first = range.clone().find(is_outside);
            let expected = first.map(|first| first..(first..range.end).find(|at| !is_outside(at)).unwrap_or(range.end));
            prop_assert_eq!(first_outside(&range, &others), expected);
        }
    }
}
