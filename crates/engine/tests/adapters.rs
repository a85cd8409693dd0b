//! Several LoRA adapters and the base in one batch, with real forwards: each answer has the bits of its run alone.

mod support;

use std::path::Path;
use std::sync::Arc;

use lingqu_backend::Backend;
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_engine::{Engine, EngineConfig};
use lingqu_model::{Adapter, LoadOptions, Package, load};
use lingqu_testkit::rng::Rng;
use lingqu_types::{GenerateRequest, Limits, SamplingParams, TokenId};
use support::{Reply, assert_same, collect, request};

const CONTEXT: usize = 96;

fn start(package: &Package, backend: &Arc<dyn Backend>, limits: &Limits, adapters: &[&str]) -> Engine {
    let options = LoadOptions {
        batch_rows_max: limits.batch_rows_max,
        logit_rows_max: limits.logit_rows_max,
        context_tokens_max: limits.context_tokens_max,
        speculate: false,
    };
    let mut model = load(package, backend.clone(), &options, &mut |_| {}).expect("the golden model loads");
    for name in adapters {
        let adapter = Adapter::open(name, &golden("adapters", name)).expect("the golden adapter opens");
        model.load_adapter(&adapter).expect("it fits");
    }
    Engine::start(model, backend.clone(), EngineConfig::new(limits.clone(), Vec::new())).expect("it starts")
}

fn golden(kind: &str, name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden").join(kind).join(name)
}

fn requests(vocab: usize, adapters: &[&str]) -> Vec<GenerateRequest> {
    let mut rng = Rng::new(5);
    let shared: Vec<TokenId> = (0..20).map(|_| rng.below(vocab) as TokenId).collect();
    let one = |i: usize| {
        let mut prompt = shared.clone(); // the same beginning under every adapter
        let own = rng.between(1, 30);
        prompt.extend((0..own).map(|_| rng.below(vocab) as TokenId));
        let sampling = SamplingParams { temperature: 1.0, seed: Some(i as u64), ..SamplingParams::default() };
        let adapter = (i % (adapters.len() + 1)).checked_sub(1).map(|a| adapters[a].into());
        GenerateRequest { sampling, logprobs: Some(2), adapter, ..request(&prompt, 20) }
    };
    (0..12).map(one).collect()
}

#[test]
fn adapters_and_the_base_side_by_side() {
    let check = |model: &str, adapters: &[&str]| {
        let backend = CpuBackend::new(CpuConfig { threads: 2, ..CpuConfig::default() }).expect("a CPU");
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let wide = Limits::for_context(CONTEXT, 8);
        let narrow = Limits { block_tokens: 4, blocks: 60, batch_rows_max: 21, logit_rows_max: 8, ..wide.clone() };
        let package = Package::open(&golden("models", model)).expect("a golden model");
        let requests = requests(package.config.vocab_size, adapters);
        let crowd = start(&package, &backend, &narrow, adapters);
        assert_eq!(crowd.handle().adapters().iter().map(|name| &**name).collect::<Vec<_>>(), adapters);
        let streams: Vec<_> = requests.iter().map(|r| crowd.handle().submit(r.clone()).expect("taken")).collect();
        let replies: Vec<Reply> = streams.into_iter().map(collect).collect();
        let alone = start(&package, &backend, &wide, adapters);
        let without = start(&package, &backend, &wide, &[]);
        let mut others = 0;
        for (i, (request, got)) in requests.iter().zip(&replies).enumerate() {
            let want = collect(alone.handle().submit(request.clone()).expect("taken"));
            assert_same(got, &want, &format!("{model}, request {i}"));
            let base = GenerateRequest { adapter: None, ..request.clone() };
            let base = collect(without.handle().submit(base).expect("taken"));
            match request.adapter {
                None => assert_same(got, &base, &format!("{model}, request {i} of the base")),
                Some(_) => others += usize::from(got.tokens != base.tokens),
            }
        }
        assert!(others > 0, "{model}: no adapter has changed an answer");
        let unknown = GenerateRequest { adapter: Some("hotline".into()), ..requests[0].clone() };
        let error = without.handle().submit(unknown).err().expect("an unknown adapter").to_string();
        assert_eq!(error, "adapter: 'hotline' is not loaded");
    };
    check("llama-gqa-bf16", &["llama-all", "llama-attention"]);
    check("deepseek-v3-bf16", &["deepseek-v3"]);
}
