//! The same promise with real forwards: on the CPU backend, a request's tokens and log-probabilities have the same bits
//! alone and in a crowd that is chunked, preempted and paused.

mod support;

use std::path::Path;
use std::sync::Arc;

use lingqu_backend::Backend;
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_engine::{Engine, EngineConfig};
use lingqu_model::{LoadOptions, Package, load};
use lingqu_testkit::rng::Rng;
use lingqu_types::{GenerateRequest, Limits, SamplingParams, TokenId};
use support::{assert_same, collect, request};

const CONTEXT: usize = 96;

fn start(package: &Package, backend: &Arc<dyn Backend>, limits: &Limits) -> Engine {
    let options = LoadOptions {
        batch_rows_max: limits.batch_rows_max,
        logit_rows_max: limits.logit_rows_max,
        context_tokens_max: limits.context_tokens_max,
        speculate: false,
    };
    let model = load(package, backend.clone(), &options, &mut |_| {}).expect("the golden model loads");
    let config = EngineConfig::new(limits.clone(), Vec::new());
    Engine::start(model, backend.clone(), config).expect("it starts")
}

fn requests(vocab: usize) -> Vec<GenerateRequest> {
    let mut rng = Rng::new(3);
    let one = |i: usize| {
        let prompt = rng.between(1, 60);
        let prompt: Vec<TokenId> = (0..prompt).map(|_| rng.below(vocab) as TokenId).collect();
        let temperature = if i.is_multiple_of(3) { 0.0 } else { 1.0 };
        let sampling = SamplingParams { temperature, seed: Some(i as u64), ..SamplingParams::default() };
        let prompt_logprobs = (i % 4 == 1).then_some(2);
        GenerateRequest { sampling, logprobs: Some(2), prompt_logprobs, ..request(&prompt, 24) }
    };
    (0..12).map(one).collect()
}

#[test]
fn alone_and_in_a_crowd() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/models");
    let backend = CpuBackend::new(CpuConfig { threads: 2, ..CpuConfig::default() }).expect("a CPU");
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let wide = Limits::for_context(CONTEXT, 8);
    let narrow = Limits { block_tokens: 4, blocks: 40, batch_rows_max: 21, logit_rows_max: 8, ..wide.clone() };
    for name in ["deepseek-v3-fp8", "deepseek2-v2-lite-q4_k_m.gguf", "qwen2-tied-bf16", "llama-bf16.gguf"] {
        let package = Package::open(&folder.join(name)).expect("a golden model");
        let requests = requests(package.config.vocab_size);
        let (alone, crowd) = (start(&package, &backend, &wide), start(&package, &backend, &narrow));
        let (alone, crowd_handle) = (alone.handle(), crowd.handle());
        let streams: Vec<_> = requests.iter().map(|r| crowd_handle.submit(r.clone()).expect("taken")).collect();
        let crowd: Vec<_> = streams.into_iter().map(collect).collect();
        assert!(crowd_handle.load().preemptions > 0, "{name}: blocks never ran out");
        for (i, (request, got)) in requests.iter().zip(&crowd).enumerate() {
            let want = collect(alone.submit(request.clone()).expect("taken"));
            assert!(want.tokens.len() == 24 && want.tokens[0].logprob.is_some(), "{name}");
            assert_same(got, &want, &format!("{name}, request {i}"));
        }
    }
}
