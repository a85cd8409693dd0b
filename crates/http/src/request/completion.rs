//! `/v1/completions`: plain prompts.

use lingqu_serving::{Ask, Input, RequestError};
use lingqu_tokenizer::EncodeOptions;
use lingqu_types::TokenId;
use serde_json::Value;

use super::{Context, Delivery, common, delivery};
use crate::fields::{self, Fields, wrong_type};

/// Prompts of one request.
const PROMPTS_MAX: usize = 128;
/// OpenAI's default, which clients count on.
const DEFAULT_TOKENS_MAX: u32 = 16;

/// A completion as it is asked for.
#[derive(Debug)]
pub struct CompletionRequest {
    /// One question for each prompt, alike but for their input.
    pub asks: Vec<Ask>,
    /// Tell the prompt before its completion.
    pub echo: bool,
    pub delivery: Delivery,
}

pub fn read(body: &[u8], context: Context) -> Result<CompletionRequest, RequestError> {
    let mut fields = Fields::parse(body)?;
    let inputs = prompts(&mut fields)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = fields.count("logprobs")?;
    let mut ask = Ask { logprobs, split_reasoning: false, ..common(&mut fields, context, "prompt")? };
    ask.stop.max_tokens.get_or_insert(DEFAULT_TOKENS_MAX);
    if echo {
        ask.prompt_logprobs = logprobs;
    }
    if echo && logprobs.is_some() && ask.choices > 1 {
        return Err(fields.invalid("echo", "together with logprobs n must be 1"));
    }
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(fields.invalid("suffix", "this server does not insert text"));
    }
    if fields.count("best_of")?.is_some_and(|best_of| best_of != ask.choices) {
        return Err(fields.invalid("best_of", "must be n: this server does not choose among samples"));
    }
    let asks = inputs.into_iter().map(|input| Ask { input, ..ask.clone() }).collect();
    Ok(CompletionRequest { asks, echo, delivery: delivery(&mut fields)? })
}

/// `prompt`: a string, several, token ids, or several lists of them.
fn prompts(fields: &mut Fields) -> Result<Vec<Input>, RequestError> {
    let options = EncodeOptions {
        add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(true),
        parse_special: fields.flag("parse_special_tokens")?.unwrap_or(true),
    };
    let text = |text: String| Input::Text { text, options };
    let items = match fields.take("prompt") {
        None => return Err(fields.invalid("prompt", "is needed")),
        Some(Value::String(prompt)) => return Ok(vec![text(prompt)]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type("prompt", "a string or an array", &other)),
    };
    if items.first().is_some_and(Value::is_number) {
        return Ok(vec![Input::Tokens(token_ids(items, "prompt")?)]);
    }
    if items.is_empty() || items.len() > PROMPTS_MAX {
        let problem = format!("{} prompts are not in 1..={PROMPTS_MAX}", items.len());
        return Err(fields.invalid("prompt", problem));
    }
    let read = |(index, item)| {
        let path = format!("prompt[{index}]");
        match item {
            Value::Array(ids) => Ok(Input::Tokens(token_ids(ids, &path)?)),
            other => fields::string(other, &path).map(text),
        }
    };
    items.into_iter().enumerate().map(read).collect()
}

fn token_ids(ids: Vec<Value>, path: &str) -> Result<Vec<TokenId>, RequestError> {
    ids.iter().map(|id| fields::count(id, path)).collect()
}
