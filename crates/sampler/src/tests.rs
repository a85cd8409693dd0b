use proptest::prelude::*;

use super::*;

fn sample(params: &SamplingParams, logits: &[f32], index: u64) -> Result<Sampled, SamplerError> {
    let how = Draw { output_index: index, report_logprob: true, allowed: None };
    Sampler::new(params, 7, &[]).sample(&mut logits.to_vec(), how)
}

/// The probabilities that the filters leave, by the plain definition: sort everything, renormalise after each step.
fn plainly(logits: &[f32], p: &SamplingParams) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / f64::from(p.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).filter(|&t| weights[t] > 0.0).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if p.top_k > 0 {
        order.truncate(p.top_k as usize);
    }
    let total: f64 = order.iter().map(|&t| weights[t]).sum();
    let mut reached = 0.0;
    let mut kept = Vec::new();
    for &t in &order {
        if reached >= f64::from(p.top_p) * total && !kept.is_empty() {
            break;
        }
        reached += weights[t];
        kept.push(t);
    }
    kept.retain(|&t| weights[t] >= f64::from(p.min_p) * weights[order[0]]);
    let total: f64 = kept.iter().map(|&t| weights[t]).sum();
    (0..logits.len()).map(|t| if kept.contains(&t) { weights[t] / total } else { 0.0 }).collect()
}

/// The probabilities that [`filter`] leaves.
fn filtered(logits: &[f32], p: &SamplingParams) -> Vec<f64> {
    let mut candidates = Vec::new();
    filter(logits, check(logits).unwrap(), p, &mut candidates);
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for c in candidates {
        probabilities[c.token as usize] += c.weight / total;
    }
    probabilities
}

proptest! {
    #[test]
    fn filters_agree_with_their_definitions(
        // Quarters, so that equal logits are common and sums are not at the edge of rounding by accident.
        quarters in proptest::collection::vec(-40i32..40, 1..60),
        temperature in proptest::sample::select(vec![0.3f32, 0.6, 1.0, 2.5]),
        top_k in proptest::sample::select(vec![0u32, 1, 2, 5, 17, 1000]),
        top_p in proptest::sample::select(vec![1.0f32, 0.999, 0.95, 0.61, 0.13, 1e-6]),
        min_p in proptest::sample::select(vec![0.0f32, 0.013, 0.21, 0.9]),
    ) {
        let logits: Vec<f32> = quarters.iter().map(|&q| q as f32 / 4.0).collect();
        let p = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        let (got, expected) = (filtered(&logits, &p), plainly(&logits, &p));
        for t in 0..logits.len() {
            prop_assert!((got[t] - expected[t]).abs() < 1e-9, "token {t}: {} {}", got[t], expected[t]);
        }
    }

    #[test]
    fn any_logits_give_a_token_or_an_error(
        logits in proptest::collection::vec(
            prop_oneof![any::<f32>(), Just(f32::NEG_INFINITY), Just(f32::NAN), -3f32..3.0], 0..20),
        temperature in proptest::sample::select(vec![0.0f32, 1e-30, 1.0, 100.0]),
        top_p in proptest::sample::select(vec![1.0f32, 0.5]),
        index in any::<u64>(),
    ) {
        let p = SamplingParams { temperature, top_p, ..SamplingParams::default() };
        if let Ok(s) = sample(&p, &logits, index) {
            prop_assert!(logits[s.token as usize] > f32::NEG_INFINITY);
            prop_assert!(!s.logprob.unwrap().is_nan());
        }
    }
}

#[test]
fn top_p_over_a_large_vocabulary() {
    // More than the first selection takes, so that it must go on.
    let logits: Vec<f32> = (0..20_000).map(|t| ((t * 7919) % 20_000) as f32 * 1e-4).collect();
    for top_p in [0.01, 0.5, 0.99] {
        let p = SamplingParams { top_p, ..SamplingParams::default() };
        let (got, expected) = (filtered(&logits, &p), plainly(&logits, &p));
        let differ = (0..logits.len()).filter(|&t| (got[t] - expected[t]).abs() > 1e-9).count();
        assert_eq!(differ, 0, "top_p {top_p}");
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0f32, 1.0, -1.0, 2.0, f32::NEG_INFINITY, 0.5];
    let check = |params: SamplingParams| {
        let expected = plainly(&logits, &params);
        let draws = 20_000u64;
        let mut counts = [0u64; 6];
        for index in 0..draws {
            counts[sample(&params, &logits, index).unwrap().token as usize] += 1;
        }
        // Pearson's statistic; 20.5 is the 0.1% point for 5 degrees of freedom.
        let mut statistic = 0.0;
        for t in 0..logits.len() {
            let mean = expected[t] * draws as f64;
            if mean == 0.0 {
                assert_eq!(counts[t], 0, "token {t} of {params:?}");
            } else {
                statistic += (counts[t] as f64 - mean).powi(2) / mean;
            }
        }
        assert!(statistic < 20.5, "{statistic} {counts:?} {params:?}");
    };
    check(SamplingParams::default());
    check(SamplingParams { temperature: 0.5, seed: Some(0), ..SamplingParams::default() });
    check(SamplingParams { top_k: 3, seed: Some(u64::MAX), ..SamplingParams::default() });
    check(SamplingParams { top_p: 0.8, ..SamplingParams::default() });
    check(SamplingParams { min_p: 0.2, temperature: 1.7, ..SamplingParams::default() });
}

#[test]
fn uniform_covers_and_replays() {
    let mut deciles = [0u32; 10];
    for seed in 0..100 {
        for counter in 0..100 {
            let u = uniform(seed, counter);
            assert!((0.0..1.0).contains(&u));
            assert_eq!(u, uniform(seed, counter));
            deciles[(u * 10.0) as usize] += 1;
        }
    }
    assert!(deciles.iter().all(|&n| (880..1120).contains(&n)), "{deciles:?}");
    // Fixed for good: a recorded reply must replay on later versions.
    assert_eq!(uniform(0, 0).to_bits(), 0x3FE4_E0DB_A5E9_A32F, "{:#X}", uniform(0, 0).to_bits());
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let check = |logits: &[f32], token: TokenId| {
        let p = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        assert_eq!(sample(&p, logits, 0).unwrap().token, token, "{logits:?}");
        let p = SamplingParams { top_k: 1, ..SamplingParams::default() };
        assert_eq!(sample(&p, logits, 3).unwrap().token, token, "{logits:?} by top_k");
    };
    check(&[0.0, 3.0, 3.0, 1.0], 1);
    check(&[-0.0, 0.0], 0);
    check(&[f32::NEG_INFINITY, -1e30], 1);
}

#[test]
fn penalties_by_hand() {
    // [prompt], [generated], logits, the logits that are left.
    let check = |params: SamplingParams, left: [f32; 4]| {
        let mut sampler = Sampler::new(&params, 0, &[0, 1, 1, 9]);
        [1, 2, 2].iter().for_each(|&t| sampler.record(t));
        let mut logits = [2.0, -2.0, 1.0, 4.0];
        let sampled = sampler.sample(&mut logits, Draw { report_logprob: true, ..Draw::default() }).unwrap();
        assert_eq!(logits, left, "{params:?}");
        let own = crate::logprob(&[2.0, -2.0, 1.0, 4.0], sampled.token).unwrap();
        assert_eq!(sampled.logprob, Some(own), "the model's own log-probability");
    };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    check(greedy.clone(), [2.0, -2.0, 1.0, 4.0]);
    check(SamplingParams { repetition_penalty: 2.0, ..greedy.clone() }, [1.0, -4.0, 0.5, 4.0]);
    check(SamplingParams { presence_penalty: 0.5, ..greedy.clone() }, [2.0, -2.5, 0.5, 4.0]);
    check(SamplingParams { frequency_penalty: 0.25, ..greedy.clone() }, [2.0, -2.25, 0.5, 4.0]);
    check(
        SamplingParams { logit_bias: vec![(3, -5.0), (0, 1.0), (77, 1.0)], ..greedy.clone() },
        [3.0, -2.0, 1.0, -1.0],
    );
    let all = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        frequency_penalty: 0.5,
        logit_bias: vec![(2, 10.0)],
        ..greedy
    };
    check(all, [1.0, -5.5, 8.5, 4.0]);
}

#[test]
fn drawn_tokens_are_counted() {
    let params = SamplingParams { temperature: 0.0, presence_penalty: 2.0, ..SamplingParams::default() };
    let mut sampler = Sampler::new(&params, 0, &[]);
    let tokens: Vec<TokenId> = (0..4)
        .map(|i| sampler.sample(&mut [3.0, 2.0, 1.5], Draw { output_index: i, ..Draw::default() }).unwrap().token)
        .collect();
    assert_eq!(tokens, [0, 1, 2, 0]);
}

#[test]
fn masks_hold() {
    let mut mask = TokenMask::new(5);
    let logits = [9.0f32, 1.0, 1.0, 1.0, 9.0];
    let draw = |mask: &TokenMask, index: u64| {
        let how = Draw { output_index: index, report_logprob: true, allowed: Some(mask) };
        Sampler::new(&SamplingParams::default(), 0, &[]).sample(&mut logits.to_vec(), how)
    };
    assert_eq!(draw(&mask, 0).unwrap_err(), SamplerError::NoCandidate);
    mask.allow(1);
    mask.allow(3);
    for index in 0..200 {
        let sampled = draw(&mask, index).unwrap();
        assert!(mask.allows(sampled.token));
        assert_eq!(sampled.logprob, Some(crate::logprob(&logits, sampled.token).unwrap()));
    }
}

#[test]
fn the_result_depends_on_seed_and_index_alone() {
    let logits: Vec<f32> = (0..1000).map(|t| ((t * 37) % 101) as f32 * 0.05).collect();
    let run = |seed: u64, indices: &[u64]| -> Vec<TokenId> {
        let mut sampler = Sampler::new(&SamplingParams { top_p: 0.9, ..SamplingParams::default() }, seed, &[]);
        let mut draw =
            |i: &u64| sampler.sample(&mut logits.clone(), Draw { output_index: *i, ..Draw::default() }).unwrap().token;
        indices.iter().map(&mut draw).collect()
    };
    let forward = run(5, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let mut backward = run(5, &[7, 6, 5, 4, 3, 2, 1, 0]);
    backward.reverse();
    assert_eq!(forward, backward);
    assert_ne!(forward, run(6, &[0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!(Sampler::new(&SamplingParams { seed: Some(3), ..SamplingParams::default() }, 5, &[]).seed(), 3);
}
