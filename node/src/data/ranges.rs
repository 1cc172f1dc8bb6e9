//! Byte ranges of a blob in groups of [`GROUP_BYTES`], as proofs need them; plain sets are [`cairn_registry::ranges`]'s.

use std::ops::Range;

use cairn_registry::ranges::joined;

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

#[cfg(test)]
mod tests {
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
}
