//! What comes back, as OpenAI's objects.

pub mod chat;
pub mod completion;
mod logprobs;
pub mod whole;

use std::sync::Arc;

use lingqu_engine::Finished;
use lingqu_serving::Served;
use lingqu_serving::reply::ReplyEvent;
use lingqu_types::{FinishReason, RequestId, Usage};
use serde_json::{Value, json};

use whole::Sample;

/// How replies look on one endpoint.
pub trait Form: Send + 'static {
    /// Chunks that open a stream.
    fn opening(&mut self) -> Vec<Value>;

    /// The chunks that tell an event of a sample.
    fn chunks(&mut self, sample: usize, event: ReplyEvent) -> Vec<Value>;

    /// A chunk without choices: the last of a stream, for the usage.
    fn closing(&self) -> Value;

    /// The reply in one object.
    fn whole(&mut self, samples: Vec<Sample>) -> Value;
}

/// What all objects of one reply say.
pub struct Heading {
    pub served: Arc<Served>,
    /// Of the samples, in their order.
    pub ids: Vec<RequestId>,
    /// Which model answers, as the client called it.
    pub model: String,
    pub created_unix_s: u64,
    /// Samples of each prompt.
    pub samples_per_prompt: usize,
    /// Streams say in each chunk that the usage is still to come.
    pub usage_follows: bool,
}

impl Heading {
    /// An object with these choices. `kind` begins its id: `chatcmpl`.
    fn object(&self, kind: &str, object: &str, choices: Vec<Value>) -> Value {
        let mut value = json!({
            "id": format!("{kind}-{}", self.ids.first().map_or(String::new(), RequestId::to_string)),
            "object": object,
            "created": self.created_unix_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint(),
            "choices": choices,
        });
        if self.usage_follows {
            value["usage"] = Value::Null;
        }
        value
    }

    /// OpenAI's field for what the answer depends on besides the request: here, the weights.
    fn fingerprint(&self) -> String {
        format!("fp_{}", self.served.model.card.fingerprint)
    }

    /// With it and the same request, a sample comes again. No part of OpenAI's object.
    fn replay(&self, sample: usize, end: &Finished) -> Value {
        let id = self.ids.get(sample).map(RequestId::to_string);
        json!({"request_id": id, "seed": end.seed, "model_fingerprint": self.served.model.card.fingerprint})
    }
}

/// Usage of a whole reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageTotal(Usage);

impl UsageTotal {
    /// Counts a sample. Samples of one prompt share its tokens, so they count once.
    pub fn add(&mut self, sample: usize, samples_per_prompt: usize, usage: &Usage) {
        let total = &mut self.0;
        if sample.is_multiple_of(samples_per_prompt) {
            total.prompt_tokens += usage.prompt_tokens;
            total.cached_prompt_tokens += usage.cached_prompt_tokens;
        }
        total.completion_tokens += usage.completion_tokens;
        total.reasoning_tokens += usage.reasoning_tokens;
    }

    pub fn json(&self) -> Value {
        let Usage { prompt_tokens, completion_tokens, reasoning_tokens, cached_prompt_tokens } = self.0;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": u64::from(prompt_tokens) + u64::from(completion_tokens),
            "prompt_tokens_details": {"cached_tokens": cached_prompt_tokens},
            "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        })
    }
}

/// A reply that calls tools waits for their results.
fn finish_reason(reason: FinishReason, calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop if calls => "tool_calls",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
    }
}
