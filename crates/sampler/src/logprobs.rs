//! Log-probabilities under the model's own distribution: ln softmax of unchanged logits.

use lingqu_types::TokenId;
use lingqu_types::request::TopLogprobs;

use crate::SamplerError;
use crate::exp::exp_nonpositive;

/// Sums that run side by side; their order is part of the result.
const LANES: usize = 8;

/// The natural-log probabilities of one row of logits, read as they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct LogProbs<'a> {
    /// `[vocab]`
    logits: &'a [f32],
    /// ln of the sum of e^logit.
    log_sum: f64,
}

impl<'a> LogProbs<'a> {
    /// One pass over the logits, summed in f64 in a fixed order.
    ///
    /// # Errors
    /// NaN or +inf among the logits; none at all; nothing but -inf.
    pub fn new(logits: &'a [f32]) -> Result<Self, SamplerError> {
        let max = f64::from(check(logits)?);
        let mut sums = [0.0f64; LANES];
        let chunks = logits.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += exp_nonpositive(f64::from(chunk[lane]) - max);
            }
        }
        for (lane, &logit) in rest.iter().enumerate() {
            sums[lane] += exp_nonpositive(f64::from(logit) - max);
        }
        Ok(Self { logits, log_sum: max + sums.iter().sum::<f64>().ln() })
    }

    /// ln of the sum of e^logit.
    pub(crate) fn log_sum(&self) -> f64 {
        self.log_sum
    }

    /// ln p(token); -inf for a token that cannot come.
    ///
    /// # Errors
    /// A token past the logits.
    pub fn of(&self, token: TokenId) -> Result<f32, SamplerError> {
        let logit = self.logits.get(token as usize);
        let logit = logit.ok_or(SamplerError::UnknownToken { token, logits: self.logits.len() })?;
        Ok((f64::from(*logit) - self.log_sum) as f32)
    }

    /// The `k` likeliest tokens, likeliest first, the lower id first where two are equal. Fewer if the vocabulary is
    /// smaller.
    pub fn top(&self, k: usize) -> TopLogprobs {
        let k = k.min(self.logits.len());
        let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(k + 1);
        if k == 0 {
            return best;
        }
        for (token, &logit) in self.logits.iter().enumerate() {
            if best.len() == k && logit <= best[k - 1].1 {
                continue;
            }
            // Later ids go behind their equals.
            let at = best.partition_point(|&(_, other)| other >= logit);
            best.truncate(k - 1);
            best.insert(at, (token as TokenId, logit));
        }
        best.iter_mut().for_each(|(_, value)| *value = (f64::from(*value) - self.log_sum) as f32);
        best
    }
}

/// ln p(token) under softmax of these logits. See [`LogProbs`] for several.
///
/// # Errors
/// See [`LogProbs::new`] and [`LogProbs::of`].
pub fn logprob(logits: &[f32], token: TokenId) -> Result<f32, SamplerError> {
    LogProbs::new(logits)?.of(token)
}

/// The `k` likeliest tokens. See [`LogProbs::top`].
///
/// # Errors
/// See [`LogProbs::new`].
pub fn top_logprobs(logits: &[f32], k: usize) -> Result<TopLogprobs, SamplerError> {
    Ok(LogProbs::new(logits)?.top(k))
}

/// The largest logit, if every one is a number or -inf and one at least is finite.
pub(crate) fn check(logits: &[f32]) -> Result<f32, SamplerError> {
    if logits.is_empty() {
        return Err(SamplerError::Empty);
    }
    let mut max = f32::NEG_INFINITY;
    let mut sick = false;
    for &logit in logits {
        sick |= logit.is_nan() | (logit == f32::INFINITY);
        max = if logit > max { logit } else { max };
    }
    if sick {
        let (token, value) =
            logits.iter().enumerate().find(|(_, l)| l.is_nan() || **l == f32::INFINITY).expect("seen above");
        return Err(SamplerError::NotANumber { token: token as TokenId, value: value.to_string() });
    }
    if max == f32::NEG_INFINITY { Err(SamplerError::NoCandidate) } else { Ok(max) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agree_with_the_definition(logits in proptest::collection::vec(-30f32..30.0, 1..90), k in 0usize..12) {
            let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            let expected = |t: usize| (f64::from(logits[t]) - total.ln()) as f32;
            let lp = LogProbs::new(&logits).unwrap();
            for t in 0..logits.len() {
                prop_assert!((lp.of(t as TokenId).unwrap() - expected(t)).abs() <= 1e-5);
            }
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
            let top: Vec<usize> = lp.top(k).iter().map(|&(t, _)| t as usize).collect();
            prop_assert_eq!(top, order[..k.min(logits.len())].to_vec());
            prop_assert!(lp.top(k).iter().all(|&(t, v)| v == lp.of(t).unwrap()));
        }
    }

    #[test]
    fn ties_and_impossible_tokens() {
        let logits = [1.0, f32::NEG_INFINITY, 1.0, 0.0, 1.0];
        let top = top_logprobs(&logits, 9).unwrap();
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 2, 4, 3, 1]);
        assert_eq!(top[4].1, f32::NEG_INFINITY);
        assert_eq!(logprob(&[1000.0, 1000.0], 1).unwrap(), -std::f32::consts::LN_2);
        assert_eq!(logprob(&logits, 5), Err(SamplerError::UnknownToken { token: 5, logits: 5 }));
    }

    #[test]
    fn sick_logits_are_errors() {
        let check = |logits: &[f32], error: SamplerError| assert_eq!(LogProbs::new(logits).unwrap_err(), error);
        check(&[], SamplerError::Empty);
        check(&[0.0, f32::NAN], SamplerError::NotANumber { token: 1, value: "NaN".into() });
        check(&[0.0, f32::INFINITY, 1.0], SamplerError::NotANumber { token: 1, value: "inf".into() });
        check(&[f32::NEG_INFINITY; 3], SamplerError::NoCandidate);
    }
}
