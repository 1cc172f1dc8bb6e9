//! Hidden states of a text's tokens to one vector. Every token counts, the special ones too, as in the library.

use super::super::encoder::Hidden;

/// One way to pool; several are set one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    Cls,
    /// The largest of each dimension.
    Max,
    /// The mean.
    Mean,
    /// The sum over the square root of their number.
    MeanSqrtLen,
    /// The mean, later tokens counting more: the first once, the second twice.
    WeightedMean,
    /// The last token's.
    LastToken,
}

impl Pooling {
    /// All, in the order in which the library sets them one after the other, with their names in its configuration.
    pub const ALL: [(Pooling, &'static str); 6] = [
        (Pooling::Cls, "pooling_mode_cls_token"),
        (Pooling::Max, "pooling_mode_max_tokens"),
        (Pooling::Mean, "pooling_mode_mean_tokens"),
        (Pooling::MeanSqrtLen, "pooling_mode_mean_sqrt_len_tokens"),
        (Pooling::WeightedMean, "pooling_mode_weightedmean_tokens"),
        (Pooling::LastToken, "pooling_mode_lasttoken"),
    ];

    /// Pools the tokens `from..from + count` of a pass; `count` is at least one.
    pub fn of(self, hidden: &Hidden, from: usize, count: usize, to: &mut Vec<f32>) {
        let token = |at: usize| &hidden.values[at * hidden.stride..][..hidden.width];
        let begin = to.len();
        let (first, last) = (from, from + count - 1);
        if matches!(self, Pooling::Cls | Pooling::LastToken) {
            to.extend_from_slice(token(if self == Pooling::Cls { first } else { last }));
            return;
        }
        to.extend_from_slice(token(first));
        let sums = &mut to[begin..];
        for (nth, at) in (2..).zip(first + 1..=last) {
            for (sum, x) in sums.iter_mut().zip(token(at)) {
                *sum = match self {
                    Pooling::Max => sum.max(*x),
                    Pooling::WeightedMean => *sum + nth as f32 * x,
                    _ => *sum + x,
                };
            }
        }
        let count = count as f32;
        let divisor = match self {
            Pooling::Mean => count,
            Pooling::MeanSqrtLen => count.sqrt(),
            Pooling::WeightedMean => count * (count + 1.0) / 2.0,
            Pooling::Cls | Pooling::Max | Pooling::LastToken => 1.0,
        };
        sums.iter_mut().for_each(|sum| *sum /= divisor);
    }
}

/// To length 1; a vector of zeros stays so.
pub fn normalise(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let length = (square.sqrt() as f32).max(1e-12);
    vector.iter_mut().for_each(|x| *x /= length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_pools_the_tokens_of_its_text_only() {
        let values = vec![9.0, 9.0, 0.0, 1.0, -4.0, 0.0, 3.0, 2.0, 0.0, 2.0, 8.0, 0.0, 9.0, 9.0, 0.0];
        let hidden = Hidden { values, stride: 3, width: 2 };
        for (pooling, expected) in [
            (Pooling::Cls, [1.0, -4.0]),
            (Pooling::LastToken, [2.0, 8.0]),
            (Pooling::Max, [3.0, 8.0]),
            (Pooling::Mean, [2.0, 2.0]),
            (Pooling::MeanSqrtLen, [6.0 / 3f32.sqrt(), 6.0 / 3f32.sqrt()]),
            (Pooling::WeightedMean, [13.0 / 6.0, 24.0 / 6.0]),
        ] {
            let mut to = vec![7.0];
            pooling.of(&hidden, 1, 3, &mut to);
            assert_eq!(to, [7.0, expected[0], expected[1]], "{pooling:?}");
        }
    }

    #[test]
    fn nothing_has_no_direction() {
        let (mut some, mut none) = ([3.0, 4.0], [0.0, 0.0]);
        normalise(&mut some);
        normalise(&mut none);
        assert_eq!((some, none), ([0.6, 0.8], [0.0, 0.0]));
    }
}
