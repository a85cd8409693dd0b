//! An engine over the toy model, and what it must answer.

#![allow(dead_code)] // Each test file uses a part.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_engine::{
    Engine, EngineConfig, EngineError, EngineHandle, Finished, PromptLogprobs, Speculation, TokenEvent, TokenStream,
};
use lingqu_sampler::{Draw, LogProbs, Sampler};
use lingqu_testkit::toy::{TOY_ADAPTERS, ToyBackend, ToyControl, ToyFaults, ToyModel, adapted_logits};
use lingqu_types::{
    AdapterId, FinishReason, GenerateRequest, Limits, SamplingParams, StopConditions, TokenId, TokenOutput, Usage,
};

pub const EOS: TokenId = 7;

/// Room for everything.
pub fn wide() -> Limits {
    Limits::for_context(200, 8)
}

/// Small blocks, few of them, few rows: chunks, queues and preemptions everywhere.
pub fn tight() -> Limits {
    let wide = wide();
    Limits { block_tokens: 3, blocks: 90, batch_rows_max: 19, logit_rows_max: 9, unread_tokens_max: 5, ..wide }
}

pub fn start(limits: &Limits, faults: ToyFaults) -> (Engine, EngineHandle, Arc<ToyControl>) {
    start_on(ToyBackend::default(), limits, faults)
}

pub fn start_on(backend: ToyBackend, limits: &Limits, faults: ToyFaults) -> (Engine, EngineHandle, Arc<ToyControl>) {
    let (model, control) = ToyModel::new(limits, faults);
    let config = EngineConfig::new(limits.clone(), vec![EOS]);
    let engine = Engine::start(Box::new(model), Arc::new(backend), config).expect("it starts");
    let handle = engine.handle();
    (engine, handle, control)
}

/// Guessing so many tokens ahead, however many sequences there are.
pub fn start_speculating(
    backend: ToyBackend,
    limits: &Limits,
    drafts: usize,
) -> (Engine, EngineHandle, Arc<ToyControl>) {
    let (model, control) = ToyModel::new(limits, ToyFaults::default());
    let speculation = Some(Speculation { drafts, sequences_max: usize::MAX });
    let config = EngineConfig { speculation, ..EngineConfig::new(limits.clone(), vec![EOS]) };
    let engine = Engine::start(Box::new(model.that_predicts()), Arc::new(backend), config).expect("it starts");
    let handle = engine.handle();
    (engine, handle, control)
}

pub fn request(prompt: &[TokenId], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams { seed: Some(1), ..SamplingParams::default() },
        stop: StopConditions { max_tokens: Some(max_tokens), ignore_eos: true, ..StopConditions::default() },
        ..GenerateRequest::new(prompt.to_vec())
    }
}

/// All that a client heard.
#[derive(Debug, Default)]
pub struct Reply {
    pub prompt: Option<PromptLogprobs>,
    pub tokens: Vec<TokenOutput>,
    pub finished: Option<Finished>,
    pub failed: Option<EngineError>,
}

pub fn collect(mut stream: TokenStream) -> Reply {
    let mut reply = Reply::default();
    while let Some(event) = stream.blocking_recv() {
        assert!(reply.finished.is_none() && reply.failed.is_none(), "an event after the end");
        match event {
            TokenEvent::Prompt(scores) => {
                assert!(reply.tokens.is_empty() && reply.prompt.is_none(), "prompt scores come once, first");
                reply.prompt = Some(scores);
            }
            TokenEvent::Token(token) => reply.tokens.push(token),
            TokenEvent::Finished(finished) => reply.finished = Some(finished),
            TokenEvent::Failed(error) => reply.failed = Some(error),
        }
    }
    reply
}

/// The answer by the definition: one sequence, no batch, no cache, no engine.
pub fn plainly(request: &GenerateRequest, limits: &Limits) -> Reply {
    let seed = request.sampling.seed.expect("tests name their seeds");
    let mut tokens = request.prompt.clone();
    let adapter = request
        .adapter
        .as_deref()
        .map(|name| AdapterId(TOY_ADAPTERS.iter().position(|known| *known == name).expect("a toy's adapter") as u32));
    let toy_logits = |tokens: &[TokenId]| adapted_logits(tokens, adapter);
    let mut reply = Reply::default();
    if let Some(k) = request.prompt_logprobs {
        let rows: Vec<Vec<f32>> = (1..=tokens.len()).map(|n| toy_logits(&tokens[..n])).collect();
        let rows: Vec<LogProbs<'_>> = rows.iter().map(|row| LogProbs::new(row).expect("numbers")).collect();
        let given = tokens[1..].iter().zip(&rows).map(|(&token, row)| Some(row.of(token).expect("known")));
        let logprobs = std::iter::once(None).chain(given).collect();
        let top = rows.iter().map(|row| row.top(k as usize)).collect();
        reply.prompt = Some(PromptLogprobs { logprobs, top });
    }
    let mut sampler = Sampler::new(&request.sampling, seed, &request.prompt);
    let room = limits.context_tokens_max - tokens.len();
    let outputs_max = request.stop.max_tokens.map_or(room, |max| room.min(max as usize));
    let mut reason = FinishReason::Length;
    let mut drawn = 0;
    while drawn < outputs_max {
        let mut logits = toy_logits(&tokens);
        let top = request.logprobs.map_or(Vec::new(), |k| LogProbs::new(&logits).expect("numbers").top(k as usize));
        let how = Draw { output_index: drawn as u64, report_logprob: request.logprobs.is_some(), allowed: None };
        let sampled = sampler.sample(&mut logits, how).expect("numbers");
        drawn += 1;
        let stop = &request.stop;
        if stop.stop_token_ids.contains(&sampled.token) || (sampled.token == EOS && !stop.ignore_eos) {
            reason = FinishReason::Stop;
            break;
        }
        tokens.push(sampled.token);
        reply.tokens.push(TokenOutput { token: sampled.token, logprob: sampled.logprob, top });
    }
    let prompt_tokens = request.prompt.len() as u32;
    let usage = Usage { prompt_tokens, completion_tokens: drawn as u32, ..Usage::default() };
    reply.finished = Some(Finished { reason, usage, seed });
    reply
}

pub fn assert_same(got: &Reply, want: &Reply, what: &str) {
    assert!(got.failed.is_none(), "{what}: {:?}", got.failed);
    assert_eq!(got.prompt, want.prompt, "{what}");
    assert_eq!(got.tokens, want.tokens, "{what}");
    assert_eq!(got.finished.map(computed), want.finished.map(computed), "{what}");
}

/// The end as it would be without a cache.
fn computed(finished: Finished) -> Finished {
    Finished { usage: Usage { cached_prompt_tokens: 0, ..finished.usage }, ..finished }
}

/// Waits for something that another thread brings about.
pub fn eventually(what: &str, happens: impl Fn() -> bool) {
    let began = Instant::now();
    while !happens() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
