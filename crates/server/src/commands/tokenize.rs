//! `lingqu tokenize` and `lingqu detokenize`.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use lingqu_tokenizer::{EncodeOptions, Tokenizer};

use crate::cli::{DetokenizeArgs, TokenizeArgs};
use crate::wiring;

/// Longest text taken from standard input.
const TEXT_BYTES_MAX: u64 = 64 << 20;

pub fn encode(args: &TokenizeArgs) -> Result<()> {
    let tokenizer = tokenizer(args.model.as_deref())?;
    let mut text = args.text.clone();
    if text == "-" {
        text.clear();
        std::io::stdin().lock().take(TEXT_BYTES_MAX).read_to_string(&mut text).context("standard input")?;
    }
    let options = EncodeOptions { add_special_tokens: args.special, parse_special: true };
    let ids = tokenizer.encode(&text, options)?;
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    Ok(writeln!(std::io::stdout(), "{}", ids.join(" "))?)
}

pub fn decode(args: &DetokenizeArgs) -> Result<()> {
    let tokenizer = tokenizer(args.model.as_deref())?;
    if let Some(id) = args.ids.iter().find(|&&id| id as usize >= tokenizer.vocab_size()) {
        anyhow::bail!("token id {id} is not below the vocabulary size {}", tokenizer.vocab_size());
    }
    Ok(writeln!(std::io::stdout(), "{}", tokenizer.decode(&args.ids, args.skip_special))?)
}

fn tokenizer(path: Option<&Path>) -> Result<Tokenizer> {
    wiring::tokenizer(&mut wiring::open_package(path)?)
}
