//! Measured values in order, and the one at a place among them. No statistics beyond that.

/// From the least to the most.
pub fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which that part of all lies, 0.5 for the median; 0 of none.
pub fn at(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((part * last as f64).round() as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_from_the_least() {
        let values = sorted([3.0, 1.0, 2.0, 9.0, 5.0].into_iter());
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|part| at(&values, part)), [1.0, 3.0, 9.0, 9.0]);
        assert_eq!(at(&[], 0.5), 0.0);
    }
}
