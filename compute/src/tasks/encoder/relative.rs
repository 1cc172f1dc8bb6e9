//! MPNet's bias of attention scores by distance: which bucket a distance falls into.
//!
//! Buckets as in Raffel et al. 2020 (T5), section 2.1, both directions: half of them for what stands before, near ones one
//! by one, then wider with the logarithm up to a distance of 128.

/// From this distance on there is one bucket.
const FAR: f64 = 128.0;

/// The bucket for a key that stands `offset` after its query (before it, if negative), of `buckets`.
pub fn bucket(offset: isize, buckets: usize) -> usize {
    let half = buckets / 2;
    let (side, distance) = (if offset > 0 { half } else { 0 }, offset.unsigned_abs());
    let near = half / 2;
    if distance < near {
        return side + distance;
    }
    // The sum keeps a logarithm that falls just short of an integer in that integer's bucket.
    let wide = (distance as f64 / near as f64).ln() / (FAR / near as f64).ln() * (half - near) as f64 + 1e-6;
    side + (near + wide as usize).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_those_of_the_library() {
        // transformers 4.35.2, `MPNetEncoder.relative_position_bucket`, 32 buckets.
        let offsets = [
            -300, -128, -127, -64, -33, -32, -16, -12, -9, -8, -7, -1, 0, 1, 7, 8, 11, 12, 15, 16, 23, 31, 32, 90, 127,
            128, 999,
        ];
        let buckets =
            [15, 15, 15, 14, 12, 12, 10, 9, 8, 8, 7, 1, 0, 17, 23, 24, 24, 25, 25, 26, 27, 27, 28, 30, 31, 31, 31];
        for (offset, expected) in offsets.into_iter().zip(buckets) {
            assert_eq!(bucket(offset, 32), expected, "{offset}");
        }
    }
}
