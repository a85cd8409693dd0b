//! Grammars in the engine, with a real model: the form is kept, and nobody else's answer changes.

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use lingqu_backend::Backend;
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_engine::{Engine, EngineConfig, EngineHandle, Finished, TokenEvent};
use lingqu_grammar::{GrammarCompiler, GrammarSpec, GrammarStart};
use lingqu_model::{LoadOptions, Package, load};
use lingqu_tokenizer::EncodeOptions;
use lingqu_types::{FinishReason, GenerateRequest, Limits, SamplingParams, StopConditions, TokenId};
use serde_json::{Value, json};
use support::{conforms, root};

/// What a client hears.
type Answer = (Vec<TokenId>, Finished);

struct Served {
    handle: EngineHandle,
    compiler: GrammarCompiler,
}

impl Served {
    fn ask(&self, questions: &[Question]) -> Vec<Answer> {
        let streams: Vec<_> = questions
            .iter()
            .map(|question| {
                let compile = |spec| self.compiler.compile(spec, &GrammarStart::AtOnce).expect("a grammar");
                let constraint = question.spec.as_ref().map(compile);
                self.handle.submit_constrained(question.request.clone(), constraint).expect("taken")
            })
            .collect();
        let read = |mut stream: lingqu_engine::TokenStream| {
            let mut tokens = Vec::new();
            loop {
                match stream.blocking_recv().expect("it ends with an event") {
                    TokenEvent::Token(token) => tokens.push(token.token),
                    TokenEvent::Finished(finished) => return (tokens, finished),
                    other => panic!("{other:?}"),
                }
            }
        };
        streams.into_iter().map(read).collect()
    }
}

#[derive(Clone)]
struct Question {
    request: GenerateRequest,
    spec: Option<GrammarSpec>,
}

fn ticket() -> Value {
    json!({
        "type": "object",
        "properties": {
            "category": {"type": "string", "enum": ["供水", "供电", "噪声"]},
            "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
            "summary": {"type": "string", "maxLength": 16}
        },
        "required": ["category", "urgency", "summary"],
        "additionalProperties": false
    })
}

#[test]
fn constrained_and_free_answers_side_by_side() {
    let package = Package::open(&root().join("models/default")).expect("the default model");
    let limits = Limits::for_context(320, 12);
    let options = LoadOptions {
        batch_rows_max: limits.batch_rows_max,
        logit_rows_max: limits.logit_rows_max,
        context_tokens_max: limits.context_tokens_max,
        speculate: false,
    };
    let backend = CpuBackend::new(CpuConfig { threads: 2, ..CpuConfig::default() }).expect("a CPU");
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let model = load(&package, backend.clone(), &options, &mut |_| {}).expect("it loads");
    let vocab = package.config.vocab_size;
    let tokenizer = Arc::new(package.tokenizer.expect("a tokenizer"));
    let eos = tokenizer.eos_ids().to_vec();
    let engine = Engine::start(model, backend, EngineConfig::new(limits, eos.clone())).expect("it starts");
    let compiler = GrammarCompiler::new(tokenizer.clone(), &eos, vocab).expect("a vocabulary");
    let served = Served { handle: engine.handle(), compiler };

    let specs = [
        None,
        Some(GrammarSpec::JsonSchema(ticket())),
        Some(GrammarSpec::Choice(vec!["同意".into(), "不同意".into()])),
        None,
        Some(GrammarSpec::Regex("[0-9]{4}年[0-9]{1,2}月".into())),
    ];
    let questions: Vec<Question> = (0..10)
        .map(|i| {
            let prompt = tokenizer.encode("居民反映水管破裂，请登记：", EncodeOptions::PROMPT).expect("text");
            let temperature = if i % 4 == 0 { 0.0 } else { 1.0 };
            let sampling = SamplingParams { temperature, seed: Some(i as u64), ..SamplingParams::default() };
            let stop = StopConditions { max_tokens: Some(240), ..StopConditions::default() };
            let request = GenerateRequest { sampling, stop, ..GenerateRequest::new(prompt) };
            Question { request, spec: specs[i % specs.len()].clone() }
        })
        .collect();
    let together = served.ask(&questions);
    let mut ended = HashMap::new();
    for (i, (question, answer)) in questions.iter().zip(&together).enumerate() {
        assert_eq!(&served.ask(std::slice::from_ref(question))[0], answer, "question {i} alone");
        let (text, reason) = (tokenizer.decode(&answer.0, true), answer.1.reason);
        let Some(spec) = &question.spec else { continue };
        if reason == FinishReason::Length {
            continue; // Cut off.
        }
        assert_eq!(reason, FinishReason::Stop, "{spec:?}: {text:?}");
        *ended.entry(i % specs.len()).or_insert(0) += 1;
        let is_right = match spec {
            GrammarSpec::JsonSchema(schema) => {
                serde_json::from_str::<Value>(&text).is_ok_and(|value| conforms(&value, schema, schema))
            }
            GrammarSpec::Choice(choices) => choices.contains(&text),
            _ => text.ends_with('月') && text.chars().nth(4) == Some('年'),
        };
        assert!(is_right, "{spec:?}: {text:?}");
    }
    assert!(ended.len() == 3, "each kind of grammar came to an end: {ended:?}");
}
