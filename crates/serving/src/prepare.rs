//! From a question to what the engine and its text side are given.

use lingqu_engine::text::{ReasoningMode, TextOptions};
use lingqu_tokenizer::{ReasoningSplitter, Tokenizer};
use lingqu_types::GenerateRequest;

use crate::ask::Ask;
use crate::model::Served;
use crate::{Encoded, RequestError};

/// A question in the engine's terms.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub request: GenerateRequest,
    pub text: TextOptions,
}

/// Checks all that can be told without the engine, cheapest first, then encodes the input.
pub(crate) async fn prepare(served: &Served, ask: Ask) -> Result<Prepared, RequestError> {
    served.check_name(&ask.model)?;
    ask.check(served.model.engine.limits().top_logprobs_max)?;
    let (input, field) = (ask.input, ask.names.input);
    let encoded = match input.is_encoded() {
        true => input.encode(&served.model.tokenizer, field)?,
        false => served.off_thread("tokenizing", move |t| input.encode(t, field)).await?,
    };
    let Encoded { ids, text: prompt } = encoded;
    let request = GenerateRequest {
        sampling: ask.sampling,
        stop: ask.stop,
        logprobs: ask.logprobs,
        prompt_logprobs: ask.prompt_logprobs,
        service: ask.service,
        ..GenerateRequest::new(ids)
    };
    let text = TextOptions {
        stop_strings: ask.stop_strings,
        skip_special_tokens: ask.skip_special_tokens,
        reasoning: reasoning(&served.model.tokenizer, &prompt, ask.split_reasoning),
        tools: None,
    };
    Ok(Prepared { request, text })
}

/// How the reply to this prompt is split. The model's template tells whether it thinks, however the prompt was made.
fn reasoning(tokenizer: &Tokenizer, prompt: &str, split: bool) -> ReasoningMode {
    match tokenizer.chat_template().filter(|_| split) {
        Some(template) => ReasoningMode::Split(ReasoningSplitter::for_chat(template, prompt)),
        None => ReasoningMode::Off,
    }
}
