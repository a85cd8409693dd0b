//! Drawing from the largest logits of a row, where a device has found them: the same token as from the whole row, or
//! none where that cannot be known.
//!
//! What is not listed is bounded: no such logit is above the last listed one, and none is raised (else we give up). So
//! no such weight is above that one's, but for the last bits of the exponential. A filter whose edge lies clearly above
//! that bound keeps listed tokens only, and then everything is computed as from the whole row. Where top_p acts on all
//! tokens their sum is known within [`SUM_ERROR`], which mostly suffices to tell at which token it is reached.

use lingqu_types::{SamplingParams, TokenId};

use crate::filter::{Candidate, by_weight, draw, drop_unlikely, least_weight, narrow, sorts, uniform, weight};
use crate::sampler::Sampler;

/// The most logits that are ever wanted.
pub const TOP_MAX: usize = 64;

/// Largest error of [`Top::weight_sum`] that draws allow for, as a share of it: twice what a device is allowed.
const SUM_ERROR: f64 = 2e-3;
/// More than the last bits of an exponential, as a share of it.
const ROUNDING: f64 = 1e-9;

/// The largest logits of one row.
#[derive(Clone, Copy, Debug)]
pub struct Top<'a> {
    /// Largest logit first, the lower id first where two are equal.
    pub tokens: &'a [TokenId],
    /// Their logits.
    pub logits: &'a [f32],
    /// Logits of the whole row.
    pub vocab: usize,
    /// Over the whole row, the sum of `e^((logit - largest) / temperature)`, within a thousandth; NaN if a logit is NaN
    /// or +inf, or none is above -inf. Where the temperature is 0, of any other.
    pub weight_sum: f32,
}

/// How many of the largest logits may decide draws with these parameters; `None`: none do.
pub fn top_wanted(params: &SamplingParams) -> Option<usize> {
    let p = params;
    let changes = p.repetition_penalty != 1.0
        || p.presence_penalty != 0.0
        || p.frequency_penalty != 0.0
        || !p.logit_bias.is_empty();
    let narrows = (1..TOP_MAX).contains(&(p.top_k as usize)) || p.top_p < 1.0 || p.min_p > 0.0;
    match p.temperature == 0.0 {
        true if !changes => Some(1),
        true => Some(TOP_MAX),
        false => narrows.then_some(TOP_MAX),
    }
}

impl Sampler {
    pub(crate) fn decide(&mut self, top: Top<'_>, output_index: u64) -> Option<TokenId> {
        assert_eq!(top.tokens.len(), top.logits.len(), "a logit for each token");
        let &last = top.logits.last()?;
        if !top.weight_sum.is_finite() {
            return None; // a sick row is for the whole path to tell
        }
        // No logit that is not listed is above it.
        let bound = if top.tokens.len() < top.vocab { last } else { f32::NEG_INFINITY };
        let is_changed = !self.seen.is_empty() || !self.params.logit_bias.is_empty();
        if !is_changed && self.params.temperature == 0.0 {
            return Some(top.tokens[0]);
        }
        let logits = self.changed(top)?;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max <= bound {
            return None;
        }
        if self.params.temperature == 0.0 {
            let equals = top.tokens.iter().zip(&logits).filter(|(_, logit)| **logit == max);
            return equals.map(|(token, _)| *token).min();
        }
        let of = |logit| weight(logit, max, self.params.temperature);
        self.candidates.clear();
        self.candidates.extend(top.tokens.iter().zip(&logits).map(|(t, l)| Candidate { token: *t, weight: of(*l) }));
        let others = Others {
            count: top.vocab - top.tokens.len(),
            weight_max: of(bound) * (1.0 + ROUNDING),
            weight_sum: if is_changed { None } else { Some(f64::from(top.weight_sum)) },
        };
        self.keep(top.vocab, &others)?;
        Some(draw(&self.candidates, uniform(self.seed, output_index)))
    }

    /// The listed logits after penalties and biases, or `None` if one that is not listed may have been raised, or one
    /// is no number any more.
    fn changed(&self, top: Top<'_>) -> Option<Vec<f32>> {
        let p = &self.params;
        let is_listed = |token: &TokenId| *token as usize >= top.vocab || top.tokens.contains(token);
        let raises = p.repetition_penalty < 1.0 || p.frequency_penalty < 0.0 || p.presence_penalty < 0.0;
        if raises && !self.seen.keys().all(is_listed) {
            return None;
        }
        if !p.logit_bias.iter().all(|(token, bias)| *bias <= 0.0 || is_listed(token)) {
            return None;
        }
        let change = |(token, logit): (&TokenId, &f32)| {
            let penalised = self.seen.get(token).map_or(*logit, |count| self.penalised(*logit, *count));
            p.logit_bias.iter().filter(|(biased, _)| biased == token).fold(penalised, |logit, (_, bias)| logit + bias)
        };
        let logits: Vec<f32> = top.tokens.iter().zip(top.logits).map(change).collect();
        logits.iter().all(|l| *l < f32::INFINITY).then_some(logits)
    }

    /// Leaves in `candidates` what the filters leave of the whole row, in order, if that can be known.
    fn keep(&mut self, vocab: usize, others: &Others) -> Option<()> {
        let (p, candidates) = (&self.params, &mut self.candidates);
        let least = least_weight(p);
        if !sorts(p, vocab) {
            candidates.retain(|c| c.weight >= least);
            candidates.sort_unstable_by_key(|c| c.token);
            return (others.weight_max < least).then_some(());
        }
        candidates.retain(|c| c.weight >= f64::MIN_POSITIVE);
        candidates.sort_unstable_by(by_weight);
        let certain = candidates.partition_point(|c| c.weight > others.weight_max);
        let top_k = p.top_k as usize;
        if others.weight_max < f64::MIN_POSITIVE || (1..=certain).contains(&top_k) {
            narrow(p, candidates); // all that can come is listed, or all that top_k leaves
            return Some(());
        }
        if top_k > 0 && top_k < vocab {
            return None;
        }
        // top_p acts on everything.
        let [least_sum, most_sum] = others.sums(candidates)?;
        let (top_p, mut reached) = (f64::from(p.top_p), 0.0);
        for kept in 1..=certain {
            reached += candidates[kept - 1].weight;
            if reached >= top_p * most_sum {
                candidates.truncate(kept);
                drop_unlikely(p, candidates);
                return Some(());
            }
            if reached >= top_p * least_sum {
                return None;
            }
        }
        None
    }
}

/// What is known of the tokens that are not listed.
struct Others {
    count: usize,
    weight_max: f64,
    /// Of all tokens, listed or not, about; `None` if it is not known.
    weight_sum: Option<f64>,
}

impl Others {
    /// Between which numbers the sum of all weights lies.
    fn sums(&self, listed: &[Candidate]) -> Option<[f64; 2]> {
        let about = self.weight_sum?;
        let known: f64 = listed.iter().map(|c| c.weight).sum();
        let most = known + self.count as f64 * self.weight_max;
        let least = (about * (1.0 - SUM_ERROR)).max(known * (1.0 - ROUNDING));
        Some([least, (about * (1.0 + SUM_ERROR)).min(most * (1.0 + ROUNDING))])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Draw;

    struct Row {
        logits: Vec<f32>,
        tokens: Vec<TokenId>,
        tops: Vec<f32>,
        weight_sum: f32,
    }

    impl Row {
        /// What a device would say of it; `error` of the sum, as a share.
        fn new(logits: Vec<f32>, k: usize, temperature: f32, error: f64) -> Self {
            let mut tokens: Vec<TokenId> = (0..logits.len() as TokenId).collect();
            let of = |token: &TokenId| logits[*token as usize];
            tokens.sort_by(|a, b| of(b).partial_cmp(&of(a)).unwrap().then(a.cmp(b)));
            tokens.truncate(k);
            let scale = 1.0 / if temperature == 0.0 { 1.0 } else { f64::from(temperature) };
            let max = f64::from(of(&tokens[0]));
            let sum: f64 = logits.iter().map(|l| ((f64::from(*l) - max) * scale).exp()).sum();
            let tops = tokens.iter().map(of).collect();
            Self { tops, tokens, weight_sum: (sum * (1.0 + error)) as f32, logits }
        }

        fn top(&self) -> Top<'_> {
            let (tokens, logits) = (&self.tokens[..], &self.tops[..]);
            Top { tokens, logits, vocab: self.logits.len(), weight_sum: self.weight_sum }
        }
    }

    /// Both ways for several draws: the share that was decided from the top, which must agree.
    fn decided(row: &Row, params: &SamplingParams, history: &[TokenId]) -> Result<usize, TestCaseError> {
        let mut whole = Sampler::new(params, 7, history);
        history.iter().for_each(|token| whole.record(*token));
        let mut top = whole.clone();
        let mut count = 0;
        for output_index in 0..8 {
            let how = Draw { output_index, ..Draw::default() };
            let expected = whole.sample(&mut row.logits.clone(), how).unwrap();
            match top.sample_top(row.top(), how) {
                Some(sampled) => {
                    prop_assert_eq!(sampled, expected);
                    count += 1;
                }
                None => top.record(expected.token),
            }
        }
        Ok(count)
    }

    fn eighths(numbers: Vec<i32>) -> Vec<f32> {
        numbers.iter().map(|q| *q as f32 / 8.0).collect()
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let close = prop_oneof![Just(1e-30f32), Just(1.0), Just(-0.0), Just(0.0), Just(f32::NEG_INFINITY)];
        prop_oneof![
            // Eighths, so that equal logits are common.
            3 => proptest::collection::vec(-100i32..100, 1..300).prop_map(eighths),
            3 => proptest::collection::vec(-20f32..20.0, 1..300),
            1 => proptest::collection::vec(prop_oneof![close, -1e-3f32..1e-3], 1..200),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_is_decided_is_what_the_whole_row_gives(
            mut logits in logits(),
            k in 1usize..=TOP_MAX,
            temperature in proptest::sample::select(vec![0.0f32, 1e-3, 0.3, 0.7, 1.0, 2.5, 100.0]),
            top_k in proptest::sample::select(vec![0u32, 0, 1, 2, 5, 17, 40, 63, 64, 1000]),
            top_p in proptest::sample::select(vec![1.0f32, 1.0, 0.999, 0.95, 0.61, 0.13, 1e-6]),
            min_p in proptest::sample::select(vec![0.0f32, 0.0, 0.013, 0.21, 0.9]),
            penalties in proptest::sample::select(vec![
                (1.0f32, 0.0f32, 0.0f32), (1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (1.0, 0.4, 0.2), (0.8, 0.0, 0.0),
                (1.1, -0.5, 0.0),
            ]),
            bias in proptest::sample::select(vec![
                vec![], vec![], vec![(3, -4.0f32)], vec![(5, 6.0), (5, -1.0), (900, 1.0)],
            ]),
            history in proptest::collection::vec(0u32..320, 0..12),
            error in -1e-3f64..1e-3,
        ) {
            logits[0] = logits[0].max(-50.0); // something can come
            let (repetition_penalty, presence_penalty, frequency_penalty) = penalties;
            let params = SamplingParams {
                temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
                logit_bias: bias, ..SamplingParams::default()
            };
            let row = Row::new(logits, k, temperature, error);
            decided(&row, &params, &history)?;
        }
    }

    /// Logits as a model gives them: few likely tokens among many.
    fn likely_row(temperature: f32) -> Row {
        let spread = |t: usize| (((t * 7919 + 13) % 30_011) as f32 / 30_011.0).powi(6);
        Row::new(
            (0..30_000).map(|t| 12.0 * spread(t) - 6.0 + 9.0 * spread(t).powi(40)).collect(),
            TOP_MAX,
            temperature,
            1e-3,
        )
    }

    #[test]
    fn usual_requests_are_decided() {
        let check = |params: SamplingParams, wanted: Option<usize>, all: bool| {
            assert_eq!(top_wanted(&params), wanted, "{params:?}");
            let count = decided(&likely_row(params.temperature), &params, &[5, 100, 29_000]).unwrap();
            assert_eq!(count == 8, all, "{count} of 8 for {params:?}");
        };
        let usual = SamplingParams::default;
        let greedy = SamplingParams { temperature: 0.0, ..usual() };
        check(greedy.clone(), Some(1), true);
        check(SamplingParams { presence_penalty: 0.5, ..greedy.clone() }, Some(TOP_MAX), true);
        check(SamplingParams { logit_bias: vec![(3, -100.0)], ..greedy.clone() }, Some(TOP_MAX), true);
        check(SamplingParams { logit_bias: vec![(3, 100.0)], ..greedy }, Some(TOP_MAX), false);
        check(SamplingParams { top_k: 40, ..usual() }, Some(TOP_MAX), true);
        check(SamplingParams { top_k: 20, top_p: 0.8, temperature: 0.7, ..usual() }, Some(TOP_MAX), true);
        check(SamplingParams { top_k: 20, repetition_penalty: 1.05, ..usual() }, Some(TOP_MAX), true);
        check(SamplingParams { top_p: 0.9, temperature: 0.4, ..usual() }, Some(TOP_MAX), true);
        check(SamplingParams { min_p: 0.1, temperature: 0.4, ..usual() }, Some(TOP_MAX), true);
        check(usual(), None, false);
        check(SamplingParams { top_k: 64, ..usual() }, None, false);
        check(SamplingParams { top_p: 0.9999, temperature: 1.5, ..usual() }, Some(TOP_MAX), false);
    }

    #[test]
    fn sick_rows_and_what_must_be_told_are_left_to_the_whole_path() {
        let mut sampler = Sampler::new(&SamplingParams { temperature: 0.0, ..SamplingParams::default() }, 0, &[]);
        let row = Row::new(vec![1.0, 3.0, 2.0], 2, 0.0, 0.0);
        let sick = Top { weight_sum: f32::NAN, ..row.top() };
        assert_eq!(sampler.sample_top(sick, Draw::default()), None);
        assert_eq!(sampler.sample_top(row.top(), Draw { report_logprob: true, ..Draw::default() }), None);
        assert_eq!(sampler.sample_top(row.top(), Draw::default()).map(|s| s.token), Some(1));
        assert_eq!(sampler.sample_top(Top { tokens: &[], logits: &[], ..row.top() }, Draw::default()), None);
    }
}
