//! `lingqu score`: log-probabilities of given texts or token ids.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use lingqu_model::Package;
use lingqu_tokenizer::EncodeOptions;
use lingqu_types::{Limits, TokenId};
use serde_json::{Value, json};

use crate::cli::ScoreArgs;
use crate::scoring::{self, ScoreOptions};
use crate::wiring;

/// Longest line of the input: bounds memory for a file without line ends.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Rows whose logits are read at once.
const CHUNK_ROWS: usize = 64;

pub fn run(args: &ScoreArgs) -> Result<()> {
    let package = wiring::open_package(args.model.model.as_deref())?;
    let lines = read_input(&args.input, &package)?;
    let longest = lines.iter().map(Vec::len).max().unwrap_or(1);
    let mut limits = Limits::for_context(longest, 1);
    limits.logit_rows_max = CHUNK_ROWS;
    limits.batch_rows_max = CHUNK_ROWS;
    let backend = wiring::backend(&args.model, wiring::Weights::AtOnce)?;
    let mut model = wiring::load(&package, &backend, &args.model, &limits, None)?.model;
    let mut kv = wiring::alloc_kv(&*backend, &*model, &limits, wiring::kv_precision(&args.model))?;
    let options = ScoreOptions { chunk_rows: CHUNK_ROWS, top: args.top.min(package.config.vocab_size) };
    let mut out = std::io::stdout().lock();
    for ids in lines {
        let scored = scoring::score(&mut *model, &*backend, &mut kv, &ids, options)?;
        writeln!(out, "{}", json!({"token_ids": ids, "logprobs": scored.logprobs, "top": scored.top}))?;
    }
    Ok(out.flush()?)
}

/// Every line's token ids, all checked before anything is computed.
fn read_input(path: &Path, package: &Package) -> Result<Vec<Vec<TokenId>>> {
    let name = path.display();
    let mut reader: Box<dyn BufRead> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(BufReader::new(std::fs::File::open(path).with_context(|| format!("cannot open {name}"))?)),
    };
    let mut lines = Vec::new();
    for number in 1.. {
        let mut line = Vec::new();
        let at = || format!("{name}, line {number}");
        let length = std::io::Read::take(&mut reader, LINE_BYTES_MAX).read_until(b'\n', &mut line).with_context(at)?;
        if length as u64 == LINE_BYTES_MAX {
            bail!("{}: longer than {LINE_BYTES_MAX} bytes", at());
        }
        if length == 0 {
            break;
        }
        if !line.trim_ascii().is_empty() {
            lines.push(token_ids(&line, package).with_context(at)?);
        }
    }
    Ok(lines)
}

fn token_ids(line: &[u8], package: &Package) -> Result<Vec<TokenId>> {
    let object: Value = serde_json::from_slice(line).context("not a JSON object")?;
    let ids: Vec<TokenId> = match (object.get("token_ids"), object.get("text").and_then(Value::as_str)) {
        (Some(ids), None) => serde_json::from_value(ids.clone()).context("token_ids must be a list of token ids")?,
        (None, Some(text)) => {
            let why = package.tokenizer_missing.as_deref().unwrap_or("unknown");
            let missing = || format!("the model has no tokenizer, give token_ids: {why}");
            package.tokenizer.as_ref().with_context(missing)?.encode(text, EncodeOptions::PROMPT)?
        }
        _ => bail!("one of token_ids and text is needed"),
    };
    let config = &package.config;
    if ids.is_empty() {
        bail!("no token to score");
    }
    if ids.len() > config.context_tokens_max {
        bail!("{} tokens, but the model's context is {}", ids.len(), config.context_tokens_max);
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        bail!("token id {id} is not below the vocabulary size {}", config.vocab_size);
    }
    Ok(ids)
}
