//! `lingqu bench`: prefill and decode speed of a model at several batch sizes, against the memory's own limit.

use std::io::Write;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::Result;
use lingqu_backend::{Backend, KvStore};
use lingqu_model::{Model, Summary};
use lingqu_types::{Batch, BlockId, Limits, SequenceSlice, TokenId};
use serde_json::{Value, json};

use crate::cli::{BackendName, BenchArgs};
use crate::figures::{Spread, bytes, peak_memory_bytes, reset_peak_memory};
use crate::{Usage, wiring};

/// Bytes streamed to measure the memory: well past any cache.
const BANDWIDTH_BYTES: usize = 1 << 30;

/// Bytes of one value in the cpu backend's KV cache.
const KV_VALUE_BYTES: u64 = 2;

/// How long weights settle at a time.
const SETTLE_SLICE: Duration = Duration::from_secs(1);

/// Figures at one batch size.
struct Figures {
    batch: usize,
    /// Tokens before the first generated one, of each sequence.
    context: usize,
    /// Prompt tokens a second, all sequences together; `None` where the context was copied, not computed.
    prefill: Option<Spread>,
    /// Generated tokens a second, all sequences together.
    decode: Spread,
    /// Bytes of weights and KV cache that a decode step reads, see [`StepBytes`].
    step_bytes: f64,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let backend = wiring::backend(&args.model, wiring::Weights::Settle)?;
    let bandwidth_before = bandwidth_gb_s(args, &*backend)?;
    // The buffer that was just read is none of the model's memory.
    let peak_is_known = bandwidth_before.is_none() || reset_peak_memory();
    let started = Instant::now();
    let package = wiring::open_package(args.model.model.as_deref())?;
    let (prompt, generate) = (args.prompt.get(), args.generate.get());
    let widest = args.batch.iter().map(|n| n.get()).max().unwrap_or(1);
    let longest = prompt.max(args.context.map_or(0, NonZeroUsize::get)) + generate;
    if longest > package.config.context_tokens_max {
        let context = package.config.context_tokens_max;
        let asked = format!("--prompt {prompt} (or --context) and --gen {generate}");
        return Err(Usage(format!("{asked} exceed the model's context {context}")).into());
    }
    let mut limits = Limits::for_context(longest, widest);
    let blocks_of = |tokens: usize| tokens.div_ceil(limits.block_tokens);
    limits.blocks = (widest * blocks_of(prompt + generate)).max(blocks_of(longest));
    let mut model = wiring::load(&package, &backend, &args.model, &limits, None)?.model;
    let load_s = started.elapsed().as_secs_f64();
    let mut kv = wiring::alloc_kv(&*backend, &*model, &limits, wiring::kv_precision(&args.model))?;

    let bytes = StepBytes::of(&lingqu_model::summary(&package));
    let mut run = Run { model: &mut *model, backend: &*backend, kv: &mut kv, limits: &limits, prompt, generate, bytes };
    run.decode(1, 0)?;
    let first_token_s = started.elapsed().as_secs_f64();
    while !backend.settle(SETTLE_SLICE)? {}
    let settled_s = started.elapsed().as_secs_f64();
    let mut figures = Vec::new();
    for &batch in &args.batch {
        figures.push(run.measure(batch.get(), args.repeat.get())?);
    }
    if let Some(context) = args.context {
        figures.push(run.measure_at(context.get(), args.repeat.get())?);
    }
    let peak_bytes = peak_memory_bytes().filter(|_| peak_is_known);
    let bandwidth_after = bandwidth_gb_s(args, &*backend)?;
    let bandwidth = bandwidth_before.zip(bandwidth_after).map(|(a, b)| Spread::of(vec![a, b]));

    let active_bytes = bytes.weights(1) as usize;
    let name = &backend.capabilities().name;
    let times = Times { load_s, first_token_s, settled_s };
    let report = Report { name, times, bandwidth, active_bytes, peak_bytes, figures: &figures };
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", report.json(prompt, generate))?,
        false => write!(out, "{}", report.table(prompt, generate))?,
    }
    Ok(())
}

/// What a step must read at least.
#[derive(Clone, Copy)]
struct StepBytes {
    /// Weights that every step reads: all but the routed experts and, where the head is not the embedding itself, the
    /// embedding.
    always: f64,
    /// All routed experts.
    routed: f64,
    /// Share of the routed experts that one token is sent to.
    share: f64,
    /// KV cache of one position, all layers.
    position: f64,
}

impl StepBytes {
    fn of(summary: &Summary) -> Self {
        let config = &summary.config;
        let is_read = |group: &str| group != "unused" && (group != "embedding" || config.tied_embeddings);
        let bytes = |wanted: fn(&str) -> bool| {
            summary.weights.iter().filter(|w| is_read(w.group) && wanted(w.group)).map(|w| w.bytes as f64).sum()
        };
        Self {
            always: bytes(|group| group != "routed experts"),
            routed: bytes(|group| group == "routed experts"),
            share: config.moe.as_ref().map_or(0.0, |moe| moe.route.top_k as f64 / moe.route.experts as f64),
            position: summary.kv_bytes_per_token(KV_VALUE_BYTES) as f64,
        }
    }

    /// Bytes of weights for so many tokens, where each expert is as likely as any other: the expected number of
    /// distinct ones.
    fn weights(&self, tokens: usize) -> f64 {
        self.always + self.routed * (1.0 - (1.0 - self.share).powi(tokens as i32))
    }

    /// With the KV cache of sequences that are so long.
    fn step(&self, sequences: usize, context: f64) -> f64 {
        self.weights(sequences) + self.position * context * sequences as f64
    }
}

/// GB/s of plain reading by all threads; `None` where the backend is not the one that reads this memory.
fn bandwidth_gb_s(args: &BenchArgs, backend: &dyn Backend) -> Result<Option<f64>> {
    if !backend.capabilities().host_memory || args.model.backend == Some(BackendName::Reference) {
        return Ok(None);
    }
    Ok(Some(wiring::cpu_backend(&args.model, wiring::Weights::AtOnce)?.measure_read_bandwidth(BANDWIDTH_BYTES)?))
}

struct Run<'a> {
    model: &'a mut dyn Model,
    backend: &'a dyn Backend,
    kv: &'a mut KvStore,
    limits: &'a Limits,
    prompt: usize,
    generate: usize,
    bytes: StepBytes,
}

impl Run<'_> {
    fn measure(&mut self, batch: usize, repeat: usize) -> Result<Figures> {
        let mut prefill = Vec::new();
        let mut decode = Vec::new();
        // One round that is not counted warms caches and page tables.
        for round in 0..=repeat {
            let start = Instant::now();
            for sequence in 0..batch {
                self.prefill(sequence)?;
            }
            let prefill_s = start.elapsed().as_secs_f64();
            let start = Instant::now();
            for step in 0..self.generate {
                self.decode(batch, self.prompt + step)?;
            }
            if round > 0 {
                prefill.push((batch * self.prompt) as f64 / prefill_s);
                decode.push((batch * self.generate) as f64 / start.elapsed().as_secs_f64());
            }
        }
        Ok(self.figures(batch, self.prompt, Some(Spread::of(prefill)), Spread::of(decode)))
    }

    /// One sequence after `context` tokens. Its blocks are copies of the prompt's: to compute them all would take many
    /// times longer than what is measured, and attention reads them all the same.
    fn measure_at(&mut self, context: usize, repeat: usize) -> Result<Figures> {
        self.prefill(0)?;
        let filled = (self.prompt / self.limits.block_tokens).max(1) as u32;
        let blocks = (context + self.generate).div_ceil(self.limits.block_tokens) as u32;
        let copies: Vec<_> = (filled..blocks).map(|to| (BlockId(to % filled), BlockId(to))).collect();
        self.backend.kv_copy(self.kv, &copies)?;
        let mut decode = Vec::new();
        for round in 0..=repeat {
            let start = Instant::now();
            for step in 0..self.generate {
                self.decode(1, context + step)?;
            }
            if round > 0 {
                decode.push(self.generate as f64 / start.elapsed().as_secs_f64());
            }
        }
        Ok(self.figures(1, context, None, Spread::of(decode)))
    }

    fn figures(&self, batch: usize, context: usize, prefill: Option<Spread>, decode: Spread) -> Figures {
        let step_bytes = self.bytes.step(batch, context as f64 + self.generate as f64 / 2.0);
        Figures { batch, context, prefill, decode, step_bytes }
    }

    /// A whole prompt in chunks, asking for the last token's logits as a server does.
    fn prefill(&mut self, sequence: usize) -> Result<()> {
        let chunk_rows = self.limits.batch_rows_max;
        for context in (0..self.prompt).step_by(chunk_rows) {
            let rows = chunk_rows.min(self.prompt - context);
            let is_last = context + rows == self.prompt;
            let batch = Batch {
                tokens: (0..rows).map(|i| self.token(sequence, context + i)).collect(),
                sequences: vec![SequenceSlice {
                    rows: 0..rows,
                    context,
                    blocks: self.blocks(sequence, context + rows),
                    adapter: None,
                }],
                logit_rows: if is_last { vec![rows as u32 - 1] } else { vec![] },
            };
            self.forward(&batch)?;
        }
        Ok(())
    }

    fn decode(&mut self, sequences: usize, context: usize) -> Result<()> {
        let slice = |s| SequenceSlice { rows: s..s + 1, context, blocks: self.blocks(s, context + 1), adapter: None };
        let batch = Batch {
            tokens: (0..sequences).map(|s| self.token(s, context)).collect(),
            sequences: (0..sequences).map(slice).collect(),
            logit_rows: (0..sequences as u32).collect(),
        };
        self.forward(&batch)
    }

    fn forward(&mut self, batch: &Batch) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let mut logits = vec![0.0; batch.logit_rows.len() * vocab];
        let view = self.model.forward(batch, self.kv)?;
        Ok(self.backend.read(view, &mut logits)?)
    }

    /// A token that differs from its neighbours, so that experts are chosen as variedly as in real text.
    fn token(&self, sequence: usize, position: usize) -> TokenId {
        let mixed = (sequence as u64 * 1_000_003 + position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 33) % self.model.config().vocab_size as u64) as TokenId
    }

    /// The blocks of the first `tokens` positions. Each sequence has room for its prompt and output; the first one,
    /// when it is alone, for as much as the cache holds.
    fn blocks(&self, sequence: usize, tokens: usize) -> Vec<BlockId> {
        let blocks_of = |tokens: usize| tokens.div_ceil(self.limits.block_tokens);
        let first = sequence * blocks_of(self.prompt + self.generate);
        (first..first + blocks_of(tokens)).map(|b| BlockId(b as u32)).collect()
    }
}

/// Seconds from the start of loading.
#[derive(Clone, Copy)]
struct Times {
    load_s: f64,
    /// To the logits after one token.
    first_token_s: f64,
    /// To where weights are as they stay, and all is measured that follows.
    settled_s: f64,
}

struct Report<'a> {
    name: &'a str,
    times: Times,
    /// GB/s read by all threads, before and after the runs.
    bandwidth: Option<Spread>,
    /// Bytes of weights that one token of one sequence reads.
    active_bytes: usize,
    /// Most memory held from the start of loading to the last run.
    peak_bytes: Option<usize>,
    figures: &'a [Figures],
}

impl Report<'_> {
    /// Share of the memory bandwidth at which decode reads what it must.
    fn bandwidth_share(&self, figures: &Figures) -> Option<f64> {
        let steps_per_s = figures.decode.median / figures.batch as f64;
        self.bandwidth.map(|bandwidth| steps_per_s * figures.step_bytes / (bandwidth.median * 1e9))
    }

    fn json(&self, prompt: usize, generate: usize) -> Value {
        let rows: Vec<Value> = self
            .figures
            .iter()
            .map(|f| {
                json!({"batch": f.batch, "context_tokens": f.context,
                    "prefill_tokens_per_s": f.prefill.map(Spread::json), "decode_tokens_per_s": f.decode.json(),
                    "expected_bytes_per_step": f.step_bytes, "share_of_bandwidth": self.bandwidth_share(f)})
            })
            .collect();
        let Times { load_s, first_token_s, settled_s } = self.times;
        json!({"backend": self.name, "prompt_tokens": prompt, "generated_tokens": generate, "load_s": load_s,
            "first_token_s": first_token_s, "settled_s": settled_s,
            "read_bandwidth_gb_per_s": self.bandwidth.map(Spread::json),
            "active_bytes_per_token": self.active_bytes, "peak_memory_bytes": self.peak_bytes, "results": rows})
    }

    fn table(&self, prompt: usize, generate: usize) -> String {
        let mut text = format!("backend         {}\nload            {:.2} s\n", self.name, self.times.load_s);
        text += &format!("first token     {:.2} s\n", self.times.first_token_s);
        text += &format!("weights settled {:.2} s\n", self.times.settled_s);
        if let Some(bandwidth) = self.bandwidth {
            text += &format!("read bandwidth  {bandwidth} GB/s\n");
        }
        text += &format!("active weights  {} a token\n", bytes(self.active_bytes));
        text +=
            &format!("prompt {prompt}, generated {generate}; tokens/s of all sequences, median (lowest-highest)\n\n");
        let title = ["context", "prefill", "decode", "share of bandwidth"];
        text += &format!("{:>5}  {:>7}  {:>26}  {:>26}  {:>18}\n", "batch", title[0], title[1], title[2], title[3]);
        for f in self.figures {
            let share = self.bandwidth_share(f).map_or("-".into(), |s| format!("{:.0}%", s * 100.0));
            let prefill = f.prefill.map_or("-".into(), |p| p.to_string());
            let (batch, context, decode) = (f.batch, f.context, f.decode.to_string());
            text += &format!("{batch:>5}  {context:>7}  {prefill:>26}  {decode:>26}  {share:>18}\n");
        }
        if let Some(peak) = self.peak_bytes {
            text += &format!("\npeak memory     {}\n", bytes(peak));
        }
        text
    }
}
