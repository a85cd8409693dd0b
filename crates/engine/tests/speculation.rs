//! With guesses or without, the same answers, bit for bit.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lingqu_backend::Backend;
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_engine::{Engine, EngineConfig, EngineLoad, Speculation};
use lingqu_model::{LoadOptions, Package, load};
use lingqu_sampler::{Constraint, TokenMask};
use lingqu_testkit::rng::Rng;
use lingqu_testkit::toy::{TOY_VOCAB, ToyBackend, ToyFaults, ToyModel};
use lingqu_types::{GenerateRequest, Limits, SamplingParams, TokenId};
use support::{Reply, assert_same, collect, plainly, request, start_speculating, tight, wide};

/// As many prompts and wishes as there are numbers.
fn requests(count: usize, vocab: usize, prompt_max: usize, tokens: u32) -> Vec<GenerateRequest> {
    let mut rng = Rng::new(11);
    let one = |i: usize| {
        let prompt: Vec<TokenId> = (0..rng.between(1, prompt_max)).map(|_| rng.below(vocab) as TokenId).collect();
        let sampling = SamplingParams {
            temperature: if i.is_multiple_of(2) { 0.0 } else { 0.8 },
            top_p: if i.is_multiple_of(3) { 0.9 } else { 1.0 },
            repetition_penalty: if i % 5 == 1 { 1.2 } else { 1.0 },
            seed: Some(i as u64),
            ..SamplingParams::default()
        };
        let logprobs = (i % 3 == 1).then_some(2);
        let prompt_logprobs = (i % 4 == 1).then_some(2);
        GenerateRequest { sampling, logprobs, prompt_logprobs, ..request(&prompt, tokens) }
    };
    (0..count).map(one).collect()
}

/// Guesses are right about as often as the toy's layer is, in a crowd that is chunked, preempted and paused too.
#[test]
fn toys_answer_as_without() {
    let check = |limits: Limits, drafts: usize, backend: ToyBackend| {
        let (engine, handle, _) = start_speculating(backend, &limits, drafts);
        let requests = requests(100, TOY_VOCAB, 60, 35);
        let streams: Vec<_> = requests.iter().map(|r| handle.submit(r.clone()).expect("taken")).collect();
        for (i, (request, stream)) in requests.iter().zip(streams).enumerate() {
            assert_same(&collect(stream), &plainly(request, &limits), &format!("{drafts} drafts, request {i}"));
        }
        let EngineLoad { drafted, accepted, .. } = handle.load();
        assert!(drafted > 1000 && accepted * 4 > drafted, "{accepted} of {drafted} drafts were right");
        assert_eq!(engine.drain(Duration::from_secs(10)).cut_off, 0);
        assert_eq!(handle.load().kv_blocks_used, 0);
    };
    check(wide(), 1, ToyBackend::default());
    check(wide(), 3, ToyBackend::default());
    check(tight(), 1, ToyBackend::default());
    check(tight(), 4, ToyBackend::default());
    check(wide(), 2, ToyBackend::far());
}

/// Allows every third token, another third after each, and ends by itself after some.
struct Thirds {
    accepted: Vec<TokenId>,
    tokens_max: usize,
}

impl Constraint for Thirds {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        (0..TOY_VOCAB as TokenId).filter(|t| self.is_next(*t)).for_each(|t| mask.allow(t));
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.is_next(token).then(|| self.accepted.push(token)).ok_or_else(|| format!("{token} is not allowed"))
    }

    fn is_over(&self) -> bool {
        self.accepted.len() == self.tokens_max
    }

    fn roll_back(&mut self, tokens: usize) -> Result<(), String> {
        self.accepted.truncate(self.accepted.len() - tokens);
        Ok(())
    }
}

impl Thirds {
    fn is_next(&self, token: TokenId) -> bool {
        token as usize % 3 == self.accepted.len() % 3
    }
}

#[test]
fn grammars_hold_for_guessed_tokens() {
    let answers = |drafts: usize| -> Vec<Reply> {
        let limits = wide();
        let (engine, handle, _) = match drafts {
            0 => support::start(&limits, ToyFaults::default()),
            drafts => start_speculating(ToyBackend::default(), &limits, drafts),
        };
        let submit = |r: GenerateRequest| {
            let grammar = Thirds { accepted: Vec::new(), tokens_max: 13 };
            handle.submit_constrained(r, Some(Box::new(grammar))).expect("taken")
        };
        let streams: Vec<_> = requests(20, TOY_VOCAB, 20, 30).into_iter().map(submit).collect();
        let replies = streams.into_iter().map(collect).collect();
        let load = handle.load();
        assert!(drafts == 0 || load.accepted * 5 > load.drafted, "{} of {}", load.accepted, load.drafted);
        drop(engine);
        replies
    };
    let want = answers(0);
    assert!(want.iter().all(|reply| reply.tokens.len() == 13));
    for drafts in [1, 3] {
        for (i, (got, want)) in answers(drafts).iter().zip(&want).enumerate() {
            assert_same(got, want, &format!("{drafts} drafts, request {i}"));
        }
    }
}

#[test]
fn speculation_needs_the_layer() {
    let limits = wide();
    let (model, _) = ToyModel::new(&limits, ToyFaults::default());
    let config = EngineConfig { speculation: Some(Speculation::new(1)), ..EngineConfig::new(limits, Vec::new()) };
    let error = Engine::start(Box::new(model), Arc::new(ToyBackend::default()), config).err().expect("no layer");
    assert!(error.to_string().contains("prediction layer"), "{error}");
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn start(package: &Package, limits: &Limits, drafts: usize) -> Engine {
    let backend = CpuBackend::new(CpuConfig { threads: 2, ..CpuConfig::default() }).expect("a CPU");
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let options = LoadOptions {
        batch_rows_max: limits.batch_rows_max,
        logit_rows_max: limits.logit_rows_max,
        context_tokens_max: limits.context_tokens_max,
        speculate: drafts > 0,
    };
    let model = load(package, backend.clone(), &options, &mut |_| {}).expect("the model loads");
    let speculation = (drafts > 0).then_some(Speculation { drafts, sequences_max: usize::MAX });
    let config = EngineConfig { speculation, ..EngineConfig::new(limits.clone(), Vec::new()) };
    Engine::start(model, backend, config).expect("it starts")
}

/// Also where the prediction layer holds nonsense, as the tiny FP8 model's does.
#[test]
fn models_answer_as_without() {
    let wide = Limits::for_context(96, 8);
    let narrow = Limits { block_tokens: 4, blocks: 40, batch_rows_max: 21, logit_rows_max: 8, ..wide.clone() };
    for path in ["models/default", "testdata/golden/models/deepseek-v3-fp8"] {
        let package = Package::open(&folder().join(path)).expect("a model");
        let requests = requests(12, package.config.vocab_size, 60, 24);
        let plain = start(&package, &wide, 0);
        let want: Vec<Reply> = requests.iter().map(|r| collect(plain.handle().submit(r.clone()).unwrap())).collect();
        for (limits, drafts) in [(&wide, 1), (&wide, 3), (&narrow, 1)] {
            let engine = start(&package, limits, drafts);
            let handle = engine.handle();
            let streams: Vec<_> = requests.iter().map(|r| handle.submit(r.clone()).expect("taken")).collect();
            for (i, (stream, want)) in streams.into_iter().zip(&want).enumerate() {
                assert_same(&collect(stream), want, &format!("{path}, {drafts} drafts, request {i}"));
            }
            assert!(handle.load().drafted > 0, "{path}: nothing was guessed");
        }
    }
}

/// The default model's layer on text of its own kind.
#[test]
fn the_default_model_guesses_well() {
    let package = Package::open(&folder().join("models/default")).expect("the default model");
    let tokenizer = package.tokenizer.as_ref().expect("its tokenizer");
    let template = tokenizer.chat_template().expect("its template");
    let options = lingqu_tokenizer::RenderOptions { add_generation_prompt: true, ..Default::default() };
    let engine = start(&package, &Limits::for_context(256, 4), 1);
    for prompt in ["写一首关于秋天的诗", "第十条", "续写：床前明月光"] {
        let text = template.render(&[lingqu_tokenizer::ChatMessage::new("user", prompt)], &options).expect("a chat");
        let ids = tokenizer.encode(&text, lingqu_tokenizer::EncodeOptions::CHAT).expect("tokens");
        for temperature in [0.0, 1.0] {
            let before = engine.handle().load();
            let mut greedy = request(&ids, 100);
            greedy.sampling.temperature = temperature;
            collect(engine.handle().submit(greedy).expect("taken"));
            let load = engine.handle().load();
            println!(
                "{prompt}, temperature {temperature}: {} of {}",
                load.accepted - before.accepted,
                load.drafted - before.drafted
            );
        }
    }
    let load = engine.handle().load();
    assert!(load.accepted * 5 > load.drafted, "{} of {} drafts were right", load.accepted, load.drafted);
}
