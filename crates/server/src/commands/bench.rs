//! `lingqu bench`: prefill and decode speed of a model at several batch sizes, against the memory's own limit.

use std::io::Write;
use std::time::Instant;

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

/// Figures at one batch size.
struct Figures {
    batch: usize,
    /// Prompt tokens a second, all sequences together.
    prefill: Spread,
    /// Generated tokens a second, all sequences together.
    decode: Spread,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let backend = wiring::backend(&args.model)?;
    let bandwidth_before = bandwidth_gb_s(args, &*backend)?;
    // The buffer that was just read is none of the model's memory.
    let peak_is_known = bandwidth_before.is_none() || reset_peak_memory();
    let started = Instant::now();
    let package = wiring::open_package(args.model.model.as_deref())?;
    let (prompt, generate) = (args.prompt.get(), args.generate.get());
    let widest = args.batch.iter().map(|n| n.get()).max().unwrap_or(1);
    if prompt + generate > package.config.context_tokens_max {
        let context = package.config.context_tokens_max;
        return Err(
            Usage(format!("--prompt {prompt} and --gen {generate} exceed the model's context {context}")).into()
        );
    }
    let mut limits = Limits::for_context(prompt + generate, widest);
    limits.blocks = widest * (prompt + generate).div_ceil(limits.block_tokens);
    let mut model = wiring::load(&package, &backend, &args.model, &limits)?;
    let load_s = started.elapsed().as_secs_f64();
    let mut kv = wiring::alloc_kv(&*backend, &*model, &limits)?;

    let mut run = Run { model: &mut *model, backend: &*backend, kv: &mut kv, limits: &limits, prompt, generate };
    let mut figures = Vec::new();
    for &batch in &args.batch {
        figures.push(run.measure(batch.get(), args.repeat.get())?);
    }
    let peak_bytes = peak_memory_bytes().filter(|_| peak_is_known);
    let bandwidth_after = bandwidth_gb_s(args, &*backend)?;
    let bandwidth = bandwidth_before.zip(bandwidth_after).map(|(a, b)| Spread::of(vec![a, b]));

    let active_bytes = active_bytes(&lingqu_model::summary(&package));
    let name = &backend.capabilities().name;
    let report = Report { name, load_s, bandwidth, active_bytes, peak_bytes, figures: &figures };
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", report.json(prompt, generate))?,
        false => write!(out, "{}", report.table(prompt, generate))?,
    }
    Ok(())
}

/// Bytes of weights that one token of one sequence reads: all but the experts it is not sent to and, where the head
/// is not the embedding itself, the embedding.
fn active_bytes(summary: &Summary) -> usize {
    let config = &summary.config;
    let share = |group: &str| match (group, &config.moe) {
        ("routed experts", Some(moe)) => moe.route.top_k as f64 / moe.route.experts as f64,
        ("embedding", _) if !config.tied_embeddings => 0.0,
        ("unused", _) => 0.0,
        _ => 1.0,
    };
    summary.weights.iter().map(|w| w.bytes as f64 * share(w.group)).sum::<f64>() as usize
}

/// GB/s of plain reading by all threads; `None` where the backend is not the one that reads this memory.
fn bandwidth_gb_s(args: &BenchArgs, backend: &dyn Backend) -> Result<Option<f64>> {
    if !backend.capabilities().host_memory || args.model.backend == Some(BackendName::Reference) {
        return Ok(None);
    }
    Ok(Some(wiring::cpu_backend(&args.model)?.measure_read_bandwidth(BANDWIDTH_BYTES)?))
}

struct Run<'a> {
    model: &'a mut dyn Model,
    backend: &'a dyn Backend,
    kv: &'a mut KvStore,
    limits: &'a Limits,
    prompt: usize,
    generate: usize,
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
        Ok(Figures { batch, prefill: Spread::of(prefill), decode: Spread::of(decode) })
    }

    /// A whole prompt in chunks, asking for the last token's logits as a server does.
    fn prefill(&mut self, sequence: usize) -> Result<()> {
        let chunk_rows = self.limits.batch_rows_max;
        for context in (0..self.prompt).step_by(chunk_rows) {
            let rows = chunk_rows.min(self.prompt - context);
            let is_last = context + rows == self.prompt;
            let batch = Batch {
                tokens: (0..rows).map(|i| self.token(sequence, context + i)).collect(),
                sequences: vec![SequenceSlice { rows: 0..rows, context, blocks: self.blocks(sequence) }],
                logit_rows: if is_last { vec![rows as u32 - 1] } else { vec![] },
            };
            self.forward(&batch)?;
        }
        Ok(())
    }

    fn decode(&mut self, sequences: usize, context: usize) -> Result<()> {
        let slice = |s| SequenceSlice { rows: s..s + 1, context, blocks: self.blocks(s) };
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

    fn blocks(&self, sequence: usize) -> Vec<BlockId> {
        let each = (self.prompt + self.generate).div_ceil(self.limits.block_tokens);
        (sequence * each..(sequence + 1) * each).map(|b| BlockId(b as u32)).collect()
    }
}

struct Report<'a> {
    name: &'a str,
    load_s: f64,
    /// GB/s read by all threads, before and after the runs.
    bandwidth: Option<Spread>,
    /// Bytes of weights that one token of one sequence reads.
    active_bytes: usize,
    /// Most memory held from the start of loading to the last run.
    peak_bytes: Option<usize>,
    figures: &'a [Figures],
}

impl Report<'_> {
    /// Share of the memory bandwidth that single-stream decode reads weights at.
    fn bandwidth_share(&self, figures: &Figures) -> Option<f64> {
        let limit = self.bandwidth?.median * 1e9;
        (figures.batch == 1).then(|| figures.decode.median * self.active_bytes as f64 / limit)
    }

    fn json(&self, prompt: usize, generate: usize) -> Value {
        let rows: Vec<Value> = self
            .figures
            .iter()
            .map(|f| {
                json!({"batch": f.batch, "prefill_tokens_per_s": f.prefill.json(),
                    "decode_tokens_per_s": f.decode.json(), "share_of_bandwidth": self.bandwidth_share(f)})
            })
            .collect();
        json!({"backend": self.name, "prompt_tokens": prompt, "generated_tokens": generate, "load_s": self.load_s,
            "read_bandwidth_gb_per_s": self.bandwidth.map(Spread::json), "active_bytes_per_token": self.active_bytes,
            "peak_memory_bytes": self.peak_bytes, "results": rows})
    }

    fn table(&self, prompt: usize, generate: usize) -> String {
        let mut text = format!("backend         {}\nload            {:.2} s\n", self.name, self.load_s);
        if let Some(bandwidth) = self.bandwidth {
            text += &format!("read bandwidth  {bandwidth} GB/s\n");
        }
        text += &format!("active weights  {} a token\n", bytes(self.active_bytes));
        text +=
            &format!("prompt {prompt}, generated {generate}; tokens/s of all sequences, median (lowest-highest)\n\n");
        text += &format!("{:>5}  {:>26}  {:>26}  {:>18}\n", "batch", "prefill", "decode", "share of bandwidth");
        for f in self.figures {
            let share = self.bandwidth_share(f).map_or("-".into(), |s| format!("{:.0}%", s * 100.0));
            let (prefill, decode) = (f.prefill.to_string(), f.decode.to_string());
            text += &format!("{:>5}  {prefill:>26}  {decode:>26}  {share:>18}\n", f.batch);
        }
        if let Some(peak) = self.peak_bytes {
            text += &format!("\npeak memory     {}\n", bytes(peak));
        }
        text
    }
}
