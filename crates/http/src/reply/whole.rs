//! Samples put together from their events, for replies that are not streamed.

use lingqu_engine::{Finished, PromptLogprobs};
use lingqu_serving::reply::ReplyEvent;
use lingqu_serving::{Replies, RequestError};
use lingqu_tokenizer::ToolCallDelta;
use lingqu_types::{TokenId, TokenOutput};

use super::UsageTotal;

/// Bytes of JSON that one log-probability takes, about.
const LOGPROB_BYTES: usize = 64;

/// One sample, whole.
#[derive(Default)]
pub struct Sample {
    pub text: String,
    pub reasoning: String,
    /// Each whole.
    pub tool_calls: Vec<ToolCallDelta>,
    pub tokens: Vec<TokenOutput>,
    pub prompt: Option<(Vec<TokenId>, PromptLogprobs)>,
    pub end: Option<Finished>,
}

impl Sample {
    /// Takes an event in; returns the bytes that it will add to the reply, about.
    fn add(&mut self, event: ReplyEvent) -> usize {
        match event {
            ReplyEvent::Prompt { tokens, scores } => {
                let entries = scores.top.iter().map(|top| top.len() + 1).sum::<usize>();
                self.prompt = Some((tokens, scores));
                entries * LOGPROB_BYTES
            }
            ReplyEvent::Delta { text, reasoning, tool_calls, tokens } => {
                self.text += &text;
                self.reasoning += &reasoning;
                let entries: usize = tokens.iter().filter(|t| t.logprob.is_some()).map(|t| t.top.len() + 1).sum();
                self.tokens.extend(tokens);
                let calls: usize = tool_calls.into_iter().map(|call| self.add_call(call)).sum();
                text.len() + reasoning.len() + calls + entries * LOGPROB_BYTES
            }
            ReplyEvent::Finished(end) => {
                self.end = Some(end);
                0
            }
        }
    }
}

impl Sample {
    /// Takes a piece of a call in; returns its bytes.
    fn add_call(&mut self, piece: ToolCallDelta) -> usize {
        let bytes = piece.arguments.len() + piece.name.as_ref().map_or(0, String::len);
        match self.tool_calls.last_mut().filter(|call| call.index == piece.index) {
            Some(call) => call.arguments += &piece.arguments,
            None => self.tool_calls.push(piece),
        }
        bytes
    }
}

/// Waits for all samples.
///
/// # Errors
/// The first that fails; or all of them together are larger than `bytes_max`. Either ends the others.
pub async fn collect(mut replies: Replies, bytes_max: usize) -> Result<Vec<Sample>, RequestError> {
    let mut samples: Vec<Sample> = replies.ids().iter().map(|_| Sample::default()).collect();
    let mut bytes = 0;
    while let Some((index, event)) = replies.next().await {
        bytes += samples[index].add(event?);
        if bytes > bytes_max {
            let problem = format!("the reply is larger than {bytes_max} bytes: stream it, or ask for fewer logprobs");
            return Err(RequestError::invalid("stream", problem));
        }
    }
    Ok(samples)
}

/// The usage of all samples.
pub fn usage(samples: &[Sample], samples_per_prompt: usize) -> UsageTotal {
    let mut total = UsageTotal::default();
    for (index, end) in samples.iter().enumerate().filter_map(|(index, sample)| Some((index, sample.end.as_ref()?))) {
        total.add(index, samples_per_prompt, &end.usage);
    }
    total
}
