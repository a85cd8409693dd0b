//! `lingqu generate`: one prompt, streamed to stdout.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use lingqu_engine::text::{TextEvent, TextOptions, TextStream};
use lingqu_engine::{Engine, EngineConfig, EngineLoad, Finished};
use lingqu_model::Package;
use lingqu_tokenizer::{ChatMessage, EncodeOptions, RenderOptions, Tokenizer};
use lingqu_types::{GenerateRequest, Limits, SamplingParams, StopConditions, TokenId};

use crate::cli::GenerateArgs;
use crate::wiring::Loaded;
use crate::{Usage, cluster, wiring};

/// What the one adapter is called here.
const ADAPTER: &str = "adapter";

pub fn run(args: &GenerateArgs) -> Result<()> {
    if args.model.cluster.is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    }
    let started = Instant::now();
    let mut package = wiring::open_package(args.model.model.as_deref())?;
    let context = wiring::context_tokens_max(&package, args.max_context.map(|n| n.get()))?;
    let limits = Limits::for_context(context, 1);
    let sampling = sampling(args, &package);
    sampling.validate().map_err(|e| Usage(format!("--{}", e.to_string().replace('_', "-"))))?;
    let tokenizer = wiring::tokenizer(&mut package)?;
    let prompt = prompt_ids(args, &tokenizer)?;

    let backend = wiring::backend(&args.model, wiring::Weights::Settle)?;
    let speculation = args.speculation.speculation(1);
    let Loaded { mut model, cluster } = wiring::load(&package, &backend, &args.model, &limits, speculation.as_ref())?;
    wiring::load_adapters(&mut *model, args.adapter.iter().map(|path| (ADAPTER, &**path)))?;
    let mut config = EngineConfig::new(limits, package.generation.eos_token_ids.clone());
    config.kv_precision = wiring::kv_precision(&args.model);
    config.speculation = speculation;
    let engine = Engine::start(model, backend, config)?;
    let loaded_s = started.elapsed().as_secs_f64();

    let request = GenerateRequest {
        sampling,
        stop: StopConditions { max_tokens: Some(args.max_tokens), ..Default::default() },
        adapter: args.adapter.as_ref().map(|_| ADAPTER.into()),
        ..GenerateRequest::new(prompt)
    };
    let began = Instant::now();
    let stream = engine.handle().submit(request).map_err(|e| anyhow!("{e}"))?;
    let tokenizer = Arc::new(tokenizer);
    // Never freed: string by string that takes about as long as to read it, and the process ends anyway.
    std::mem::forget(Arc::clone(&tokenizer));
    // Thinking is shown as the model wrote it: this is a look at the raw reply.
    let mut text = TextStream::new(stream, tokenizer, TextOptions::default())?;
    let mut first_token_s = None;
    let mut out = std::io::stdout().lock();
    while let Some(event) = text.blocking_next() {
        match event {
            TextEvent::Delta { text, .. } => {
                first_token_s.get_or_insert_with(|| began.elapsed().as_secs_f64());
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            TextEvent::Finished(finished) => {
                writeln!(out)?;
                let times = Times { load_s: loaded_s, first_token_s, total_s: began.elapsed().as_secs_f64() };
                eprintln!("{}{}", times.figures(&finished), drafts(&engine.handle().load()));
                if let Some(exchange) = &cluster {
                    eprintln!("{}", cluster::figures(&exchange.traffic()));
                }
            }
            TextEvent::Prompt(_) => {}
            TextEvent::Failed(error) => return Err(anyhow!("{error}")),
        }
    }
    Ok(())
}

/// Arguments over the model's own defaults.
fn sampling(args: &GenerateArgs, package: &Package) -> SamplingParams {
    let own = wiring::default_sampling(package);
    SamplingParams {
        temperature: args.temperature.unwrap_or(own.temperature),
        top_p: args.top_p.unwrap_or(own.top_p),
        top_k: args.top_k.unwrap_or(own.top_k),
        seed: args.seed,
        ..own
    }
}

fn prompt_ids(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<Vec<TokenId>> {
    if !args.chat {
        return Ok(tokenizer.encode(&args.prompt, EncodeOptions::PROMPT)?);
    }
    let template = tokenizer.chat_template().context("the model has no chat template: leave out --chat")?;
    let options = RenderOptions { add_generation_prompt: true, ..Default::default() };
    let text = template.render(&[ChatMessage::new("user", &args.prompt)], &options)?;
    // The template itself writes the tokens that open a text.
    Ok(tokenizer.encode(&text, EncodeOptions::CHAT)?)
}

/// How the guesses went, where any were checked.
fn drafts(load: &EngineLoad) -> String {
    let (accepted, drafted) = (load.accepted, load.drafted);
    match drafted {
        0 => String::new(),
        _ => format!(" | drafts {accepted} of {drafted} right ({:.0}%)", 100.0 * accepted as f64 / drafted as f64),
    }
}

struct Times {
    load_s: f64,
    first_token_s: Option<f64>,
    total_s: f64,
}

impl Times {
    fn figures(&self, finished: &Finished) -> String {
        let usage = finished.usage;
        let first = self.first_token_s.unwrap_or(self.total_s);
        let mut text = format!(
            "load {:.2} s | prompt {} tokens, first text after {:.3} s | generated {} tokens in {:.2} s",
            self.load_s, usage.prompt_tokens, first, usage.completion_tokens, self.total_s
        );
        let decode_s = self.total_s - first;
        if usage.completion_tokens > 1 && decode_s > 0.0 {
            text += &format!(" ({:.1} tokens/s)", f64::from(usage.completion_tokens - 1) / decode_s);
        }
        text + &format!(" | {:?} | seed {}", finished.reason, finished.seed).to_lowercase()
    }
}
