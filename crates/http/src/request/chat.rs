//! `/v1/chat/completions`.

use lingqu_serving::{Ask, Input, RequestError};
use lingqu_tokenizer::RenderOptions;

use super::{Context, Delivery, common, delivery, message, tools};
use crate::fields::Fields;

/// Likeliest tokens at a position, as OpenAI bounds them.
const TOP_LOGPROBS_MAX: u32 = 20;

/// A chat completion as it is asked for.
pub struct ChatRequest {
    pub ask: Ask,
    pub delivery: Delivery,
}

pub fn read(body: &[u8], context: Context) -> Result<ChatRequest, RequestError> {
    let mut fields = Fields::parse(body)?;
    let messages = message::messages(&mut fields)?;
    let (tools, listed) = tools::tools(&mut fields)?;
    let options = RenderOptions {
        add_generation_prompt: fields.flag("add_generation_prompt")?.unwrap_or(true),
        extra: fields.object("chat_template_kwargs")?.map(Fields::rest).unwrap_or_default(),
        tools: listed,
        ..RenderOptions::default()
    };
    let ask = Ask {
        input: Input::Chat { messages, options },
        tools,
        logprobs: logprobs(&mut fields)?,
        split_reasoning: fields.flag("separate_reasoning")?.unwrap_or(true),
        ..common(&mut fields, context, "messages")?
    };
    Ok(ChatRequest { ask, delivery: delivery(&mut fields)? })
}

/// `logprobs` says whether, `top_logprobs` how many.
fn logprobs(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    match fields.count("top_logprobs")? {
        Some(top) if !wanted && top > 0 => Err(fields.invalid("top_logprobs", "needs logprobs to be true")),
        Some(top) if top > TOP_LOGPROBS_MAX => {
            Err(fields.invalid("top_logprobs", format_args!("{top} is not in 0..={TOP_LOGPROBS_MAX}")))
        }
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}
