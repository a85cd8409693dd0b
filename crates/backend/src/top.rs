//! The largest logits of each row: what sampling mostly needs, without the copy of whole rows to the host.

use std::cmp::Ordering;

use lingqu_types::TokenId;

/// The most values of a row that [`Backend::top_logits`](crate::Backend::top_logits) can be asked for.
pub const TOP_LOGITS_MAX: usize = 64;

/// Of each row its `k` largest values and a sum over all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogits {
    pub k: usize,
    /// `[rows, k]`, largest value first, the lower index first where two are equal.
    pub tokens: Vec<TokenId>,
    /// `[rows, k]`
    pub values: Vec<f32>,
    /// `[rows]`: over the whole row, the sum of `e^((value - largest) * scale)`, within [`TopLogits::SUM_ERROR`]. NaN
    /// for a row with NaN or +inf or with nothing above -inf; its other results mean nothing.
    pub sums: Vec<f32>,
}

impl TopLogits {
    /// Largest error of a sum, as a share of it.
    pub const SUM_ERROR: f64 = 1e-3;

    /// Of rows that the host has. `values` is `[rows, cols]`, with a scale for each row; `k` is at most `cols`.
    pub fn of(values: &[f32], cols: usize, scales: &[f32], k: usize) -> Self {
        assert!((1..=cols.min(TOP_LOGITS_MAX)).contains(&k), "the {k} largest of {cols}");
        assert_eq!(values.len(), cols * scales.len(), "a scale for each row");
        let mut top = Self { k, ..Self::default() };
        for (row, scale) in values.chunks_exact(cols).zip(scales) {
            let before = |a: &TokenId, b: &TokenId| {
                let [x, y] = [a, b].map(|token| row[*token as usize]);
                y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(b))
            };
            let mut best: Vec<TokenId> = Vec::with_capacity(k + 1);
            for token in 0..cols as TokenId {
                let at = best.partition_point(|other| before(other, &token).is_lt());
                if at < k {
                    best.truncate(k - 1);
                    best.insert(at, token);
                }
            }
            let largest = row[best[0] as usize];
            let sum: f64 = row.iter().map(|v| f64::from((v - largest) * scale).exp()).sum();
            let is_sick = row.iter().any(|v| v.is_nan()) || largest.is_infinite();
            top.values.extend(best.iter().map(|token| row[*token as usize]));
            top.tokens.extend(best);
            top.sums.push(if is_sick { f32::NAN } else { sum as f32 });
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_first_and_the_lower_index_of_equals() {
        let rows = [1.0, 3.0, -0.0, 3.0, f32::NEG_INFINITY, 0.0];
        let top = TopLogits::of(&rows, 6, &[1.0], 6);
        assert_eq!(top.tokens, [1, 3, 0, 2, 5, 4]);
        assert_eq!(top.values[..3], [3.0, 3.0, 1.0]);
        assert!((top.sums[0] - (2.0 + (-2f32).exp() + 2.0 * (-3f32).exp())).abs() < 1e-5);
        let top = TopLogits::of(&rows, 3, &[1.0, 1.0], 1);
        assert_eq!((&top.tokens[..], &top.values[..]), (&[1, 0][..], &[3.0, 3.0][..]));
    }

    #[test]
    fn sick_rows_have_no_sum() {
        for sick in [f32::NAN, f32::INFINITY] {
            assert!(TopLogits::of(&[0.0, sick, 1.0], 3, &[1.0], 2).sums[0].is_nan());
        }
        assert!(TopLogits::of(&[f32::NEG_INFINITY; 3], 3, &[1.0], 2).sums[0].is_nan());
    }
}
