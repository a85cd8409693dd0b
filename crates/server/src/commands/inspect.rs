//! `lingqu inspect`: what a checkpoint is and what it needs, from its headers alone.

use std::io::Write;

use anyhow::Result;
use lingqu_model::{AttentionConfig, ModelConfig, Summary};
use lingqu_types::Limits;
use serde_json::{Value, json};

use crate::cli::InspectArgs;
use crate::figures::bytes;
use crate::wiring;

/// Bytes of one value in the cpu backend's KV cache.
const KV_VALUE_BYTES: u64 = 2;

pub fn run(args: &InspectArgs) -> Result<()> {
    let package = wiring::open_package(args.path.as_deref())?;
    let summary = lingqu_model::summary(&package);
    let context = wiring::context_tokens_max(&package, None)?;
    let tokenizer = match (&package.tokenizer, &package.tokenizer_missing) {
        (Some(t), _) if t.chat_template().is_some() => format!("{} tokens, with a chat template", t.vocab_size()),
        (Some(t), _) => format!("{} tokens, no chat template", t.vocab_size()),
        (None, why) => format!("none: {}", why.as_deref().unwrap_or("unknown")),
    };
    let needs = Needs::of(&summary, context);
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", json(&summary, &needs, &tokenizer))?,
        false => write!(out, "{}", table(&summary, &needs, &tokenizer))?,
    }
    Ok(())
}

/// Memory for serving with default settings.
struct Needs {
    weights: u64,
    kv: u64,
    context_tokens: usize,
    sequences: usize,
}

impl Needs {
    /// As `lingqu serve` would run it.
    fn of(summary: &Summary, context_tokens: usize) -> Self {
        let sequences = crate::cli::DEFAULT_SEQUENCES;
        let limits = Limits::for_context(context_tokens, sequences);
        let kv = summary.kv_bytes_per_token(KV_VALUE_BYTES) * (limits.blocks * limits.block_tokens) as u64;
        let unused: u64 = summary.weights.iter().filter(|w| w.group == "unused").map(|w| w.bytes).sum();
        Self { weights: summary.weight_bytes - unused, kv, context_tokens, sequences }
    }
}

/// `(name, value)` of every line about the configuration.
fn facts(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("model", config.name.clone()),
        ("architecture", config.architecture.to_string()),
        ("layers", config.layers.to_string()),
        ("hidden size", config.hidden.to_string()),
        ("vocabulary", config.vocab_size.to_string()),
        ("context", format!("{} tokens", config.context_tokens_max)),
    ];
    facts.push(match &config.attention {
        AttentionConfig::Gqa(a) => {
            ("attention", format!("GQA: {} heads of {}, {} kv heads", a.heads, a.head_dim, a.kv_heads))
        }
        AttentionConfig::Mla(a) => {
            let query = a.q_lora_rank.map_or("no query latent".into(), |rank| format!("query latent {rank}"));
            let (heads, nope, rope) = (a.heads, a.nope_dim, a.rope_dim);
            let kv = a.kv_lora_rank;
            ("attention", format!("MLA: {heads} heads of {nope} + {rope} (rope), {query}, key-value latent {kv}"))
        }
    });
    if let Some(moe) = &config.moe {
        let route = &moe.route;
        let groups = route.groups.map_or(String::new(), |g| format!(", from {} of {} groups", g.top_groups, g.groups));
        let scoring = format!("{:?}", route.scoring).to_lowercase();
        facts.push(("experts", format!("{} of {} a token{groups}, {scoring}", route.top_k, route.experts)));
        facts.push(("expert width", format!("{}, and {} shared", moe.intermediate, moe.shared_experts)));
        facts.push(("dense layers", format!("the first {}", moe.first_moe_layer)));
    }
    facts
}

fn table(summary: &Summary, needs: &Needs, tokenizer: &str) -> String {
    let mut lines = facts(&summary.config);
    lines.push(("tokenizer", tokenizer.to_string()));
    let billions = |n: u64| format!("{:.3} billion", n as f64 / 1e9);
    let active = billions(summary.active_parameters);
    lines.push(("parameters", format!("{}, of which a token passes {active}", billions(summary.parameters))));
    let kv = summary.kv_bytes_per_token(KV_VALUE_BYTES);
    lines.push(("KV cache", format!("{kv} bytes a token ({KV_VALUE_BYTES} bytes a value)")));
    let (weights, cache) = (bytes(needs.weights as usize), bytes(needs.kv as usize));
    let total = bytes((needs.weights + needs.kv) as usize);
    let setting = format!("{} sequences, context {}", needs.sequences, needs.context_tokens);
    lines.push(("memory", format!("{total}: weights {weights}, KV cache {cache} ({setting})")));

    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect();
    text += &format!("\n{:<16}{:<12}{:>8}{:>16}{:>12}\n", "weights", "format", "tensors", "parameters", "bytes");
    for w in &summary.weights {
        let size = bytes(w.bytes as usize);
        text += &format!("{:<16}{:<12}{:>8}{:>16}{size:>12}\n", w.group, w.format, w.tensors, w.parameters);
    }
    text
}

fn json(summary: &Summary, needs: &Needs, tokenizer: &str) -> Value {
    let facts: serde_json::Map<String, Value> =
        facts(&summary.config).into_iter().map(|(name, value)| (name.replace(' ', "_"), value.into())).collect();
    let weights: Vec<Value> = summary
        .weights
        .iter()
        .map(|w| {
            json!({"group": w.group, "format": w.format, "tensors": w.tensors, "parameters": w.parameters,
                "bytes": w.bytes})
        })
        .collect();
    json!({"config": facts, "tokenizer": tokenizer, "weights": weights, "parameters": summary.parameters,
        "active_parameters": summary.active_parameters, "weight_bytes": summary.weight_bytes,
        "kv_bytes_per_token": summary.kv_bytes_per_token(KV_VALUE_BYTES),
        "memory": {"weight_bytes": needs.weights, "kv_bytes": needs.kv, "context_tokens": needs.context_tokens,
            "sequences": needs.sequences}})
}
