//! The tokens left by top_k, top_p and min_p, and the draw among them.

use std::cmp::Ordering;

use lingqu_types::{SamplingParams, TokenId};

use crate::exp::exp_nonpositive;

/// A token that may be drawn, with its probability times the same unknown factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub token: TokenId,
    /// In (0, 1]; the likeliest token has 1.
    pub weight: f64,
}

/// Likelier first, then the lower id.
pub(crate) fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.partial_cmp(&a.weight).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The weight of a logit; `max` is the largest logit, temperature is above 0.
pub(crate) fn weight(logit: f32, max: f32, temperature: f32) -> f64 {
    exp_nonpositive((f64::from(logit) - f64::from(max)) / f64::from(temperature))
}

/// Whether the filters of `params` need the candidates sorted.
pub(crate) fn sorts(params: &SamplingParams, vocab: usize) -> bool {
    let top_k = params.top_k as usize;
    (top_k > 0 && top_k < vocab) || params.top_p < 1.0
}

/// The weight below which a token is dropped whatever else holds; 0 is a token that cannot come.
pub(crate) fn least_weight(params: &SamplingParams) -> f64 {
    f64::from(params.min_p).max(f64::MIN_POSITIVE)
}

/// Leaves in `candidates` the tokens that the filters of `params` leave, in the order in which [`draw`] walks them:
/// by id if no filter sorts, else likeliest first. `max` is the largest logit; temperature is above 0.
///
/// The definitions are Hugging Face's: top_p acts on what top_k leaves, taken to sum to one.
pub(crate) fn filter(logits: &[f32], max: f32, params: &SamplingParams, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    // Where top_p counts, it must see what min_p will drop.
    let least = if sorts(params, logits.len()) { f64::MIN_POSITIVE } else { least_weight(params) };
    for (token, &logit) in logits.iter().enumerate() {
        let weight = weight(logit, max, params.temperature);
        if weight >= least {
            candidates.push(Candidate { token: token as TokenId, weight });
        }
    }
    if sorts(params, logits.len()) {
        narrow(params, candidates);
    }
}

/// The part of [`filter`] that sorts. `candidates` are all tokens that can come, or all that top_k leaves of them.
pub(crate) fn narrow(params: &SamplingParams, candidates: &mut Vec<Candidate>) {
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, by_weight);
        candidates.truncate(top_k);
        candidates.sort_unstable_by(by_weight);
    }
    if params.top_p < 1.0 {
        keep_top_p(candidates, f64::from(params.top_p));
    } else {
        candidates.sort_unstable_by(by_weight);
    }
    drop_unlikely(params, candidates);
}

/// Drops what min_p drops. `candidates` are sorted, so it is at their end.
pub(crate) fn drop_unlikely(params: &SamplingParams, candidates: &mut Vec<Candidate>) {
    let least = least_weight(params);
    let kept = candidates.partition_point(|c| c.weight >= least);
    candidates.truncate(kept.max(1));
}

/// The fewest likeliest candidates whose share of the weight reaches `top_p`, sorted. Sorts no more than about it must.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    // By id, so that the sum does not depend on how an earlier selection left the order.
    candidates.sort_unstable_by_key(|c| c.token);
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let (mut sorted, mut reached) = (0, 0.0);
    let mut take = 256;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let count = take.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, by_weight);
        }
        rest[..count].sort_unstable_by(by_weight);
        for _ in 0..count {
            reached += candidates[sorted].weight;
            sorted += 1;
            if reached >= top_p * total {
                candidates.truncate(sorted);
                return;
            }
        }
        take *= 8;
    }
}

/// The candidate at `u` in [0, 1) of the total weight. `candidates` is not empty.
pub(crate) fn draw(candidates: &[Candidate], u: f64) -> TokenId {
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let target = u * total;
    let mut reached = 0.0;
    for c in candidates {
        reached += c.weight;
        if reached > target {
            return c.token;
        }
    }
    // Rounding can leave the sum a hair below the total only if it was summed in another order; it is not.
    candidates.last().expect("the likeliest token is always a candidate").token
}

/// A number in [0, 1) from a seed and a counter: SplitMix64's output function (Steele, Lea, Flood 2014), on a seed that
/// went through it first so that neighbouring seeds share nothing.
pub(crate) fn uniform(seed: u64, counter: u64) -> f64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let start = mix(seed.wrapping_add(GAMMA));
    let bits = mix(start.wrapping_add(GAMMA.wrapping_mul(counter.wrapping_add(1))));
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
