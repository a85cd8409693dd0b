//! An answer does not depend on who else is served: alone, batched, chunked, preempted, paused, always the same bits.

mod support;

use std::time::Duration;

use lingqu_testkit::rng::Rng;
use lingqu_testkit::toy::{TOY_ADAPTERS, TOY_VOCAB, ToyBackend, ToyFaults};
use lingqu_types::{GenerateRequest, Limits, SamplingParams, StopConditions, TokenId};
use support::{assert_same, collect, plainly, request, start, start_on, tight, wide};

/// A request with any of what a client may ask for.
fn random_request(rng: &mut Rng, context: usize) -> GenerateRequest {
    let long = rng.chance(20);
    let prompt = rng.between(1, if long { context - 1 } else { 30 });
    // Half of them begin with one of three documents, many with nothing else.
    let document = rng.below(6);
    let shared = if document > 2 || rng.chance(50) { rng.between(0, prompt) } else { prompt };
    let token = |i: usize| match document < 3 && i < shared {
        true => (i * 7 + document * 13) % TOY_VOCAB,
        false => rng.below(TOY_VOCAB),
    };
    let prompt: Vec<TokenId> = (0..prompt).map(token).map(|token| token as TokenId).collect();
    let temperature = if rng.chance(30) { 0.0 } else { rng.between(1, 20) as f32 / 10.0 };
    let penalty = if rng.chance(30) { 1.2 } else { 1.0 };
    let sampling = SamplingParams {
        temperature,
        top_k: rng.below(20) as u32,
        top_p: rng.between(5, 10) as f32 / 10.0,
        repetition_penalty: penalty,
        frequency_penalty: penalty - 1.0,
        seed: Some(rng.next_u64()),
        ..SamplingParams::default()
    };
    let stop = StopConditions {
        max_tokens: (!rng.chance(10)).then(|| rng.below(40) as u32),
        stop_token_ids: if rng.chance(20) { vec![rng.below(TOY_VOCAB) as TokenId] } else { Vec::new() },
        ignore_eos: rng.chance(50),
    };
    let logprobs = rng.chance(30).then(|| rng.below(5) as u32);
    let prompt_logprobs = rng.chance(25).then(|| rng.below(4) as u32);
    let adapter = rng.chance(40).then(|| TOY_ADAPTERS[rng.below(TOY_ADAPTERS.len())].into());
    GenerateRequest { sampling, stop, logprobs, prompt_logprobs, adapter, ..GenerateRequest::new(prompt) }
}

#[test]
fn one_request_at_a_time() {
    let check = |limits: &Limits, request: GenerateRequest, what: &str| {
        let (_engine, handle, _) = start(limits, ToyFaults::default());
        let got = collect(handle.submit(request.clone()).expect("taken"));
        assert_same(&got, &plainly(&request, limits), what);
    };
    let prompt: Vec<TokenId> = (0..100).map(|i| i % 60).collect();
    let adapted = GenerateRequest { adapter: Some("beta".into()), ..request(&prompt, 20) };
    check(&tight(), adapted, "an adapter");
    check(&wide(), request(&[3], 5), "one token of prompt");
    check(&tight(), request(&prompt, 20), "a prompt in chunks");
    check(&tight(), request(&prompt, 100), "the whole context");
    check(&tight(), request(&prompt, 5000), "more than the context");
    let scored = GenerateRequest { prompt_logprobs: Some(3), logprobs: Some(2), ..request(&prompt, 9) };
    check(&tight(), scored.clone(), "scores in chunks");
    check(&wide(), scored.clone(), "scores at once");
    let stop = StopConditions { max_tokens: Some(0), ..scored.stop.clone() };
    check(&tight(), GenerateRequest { stop: stop.clone(), ..scored.clone() }, "scores alone");
    check(&tight(), GenerateRequest { stop, prompt_logprobs: None, ..scored }, "nothing at all");
    let stop = StopConditions { max_tokens: None, stop_token_ids: vec![9, 3], ignore_eos: false };
    check(&wide(), GenerateRequest { stop, ..request(&prompt, 0) }, "until it stops");
}

#[test]
fn two_hundred_at_once_are_each_as_if_alone() {
    // The memory of the last two is not the host's: mostly the largest logits alone come from there.
    let far = ToyBackend::far;
    for (limits, seed, backend) in [
        (wide(), 1, ToyBackend::default()),
        (tight(), 2, ToyBackend::default()),
        (wide(), 3, far()),
        (tight(), 4, far()),
    ] {
        let (engine, handle, control) = start_on(backend, &limits, ToyFaults::default());
        let mut rng = Rng::new(seed);
        let requests: Vec<_> = (0..200).map(|_| random_request(&mut rng, limits.context_tokens_max)).collect();
        let streams = requests.iter().map(|r| handle.submit(r.clone()).expect("taken"));
        let streams: Vec<_> = requests.iter().zip(streams).collect();
        std::thread::scope(|scope| {
            // Each reader takes one stream after the other, so that the later ones fill up and pause meanwhile.
            let mut shares: Vec<Vec<_>> = (0..8).map(|_| Vec::new()).collect();
            streams.into_iter().enumerate().for_each(|(i, stream)| shares[i % 8].push(stream));
            for share in shares {
                scope.spawn(|| {
                    for (request, stream) in share {
                        assert_same(&collect(stream), &plainly(request, &limits), &format!("{request:?}"));
                    }
                });
            }
        });
        assert!(control.sequences_max() > 4, "they did not run together");
        let load = handle.load();
        assert!(limits != tight() || load.preemptions > 0, "blocks never ran out");
        assert!(limits != tight() || load.cached_tokens > 0, "nobody shared a block");
        let report = engine.drain(Duration::from_secs(10));
        assert_eq!((report.cut_off, report.stopped), (0, true));
        assert_eq!((handle.load().running, handle.load().waiting, handle.load().kv_blocks_used), (0, 0, 0));
    }
}

#[test]
fn the_engine_reports_a_seed_that_replays_the_answer() {
    let limits = wide();
    let (_engine, handle, _) = start(&limits, ToyFaults::default());
    let mut unseeded = request(&[1, 2, 3], 30);
    unseeded.sampling.seed = None;
    let (first, second) = (handle.submit(unseeded.clone()).unwrap(), handle.submit(unseeded.clone()).unwrap());
    assert_ne!(first.seed, second.seed);
    for stream in [first, second] {
        let seed = stream.seed;
        let reply = collect(stream);
        assert_eq!(reply.finished.expect("it ends").seed, seed);
        let sampling = SamplingParams { seed: Some(seed), ..unseeded.sampling.clone() };
        let replay = GenerateRequest { sampling, ..unseeded.clone() };
        assert_same(&reply, &plainly(&replay, &limits), "replayed");
    }
}

#[test]
fn what_is_in_the_cache_is_not_computed_again_and_says_so() {
    let limits = Limits { block_tokens: 4, blocks: 200, ..wide() };
    let (_engine, handle, _) = start(&limits, ToyFaults::default());
    let prompt: Vec<TokenId> = (0..40).map(|i| i % 60).collect();
    let check = |request: GenerateRequest, cached: u32| {
        let reply = collect(handle.submit(request.clone()).expect("taken"));
        assert_same(&reply, &plainly(&request, &limits), &format!("{request:?}"));
        assert_eq!(reply.finished.expect("it ends").usage.cached_prompt_tokens, cached, "{request:?}");
    };
    check(request(&prompt, 9), 0);
    // All but the last token, in a copy of the last block.
    check(request(&prompt, 9), 39);
    check(request(&prompt[..39], 9), 36);
    check(request(&[&prompt[..20], &[59, 1, 2]].concat(), 3), 20);
    check(request(&prompt[1..], 3), 0);
    // Scores are wanted for every row.
    check(GenerateRequest { prompt_logprobs: Some(1), ..request(&prompt, 3) }, 0);
    // Another adapter's blocks hold something else.
    let adapted = GenerateRequest { adapter: Some("beta".into()), ..request(&prompt, 3) };
    check(adapted.clone(), 0);
    check(adapted, 39);
}
