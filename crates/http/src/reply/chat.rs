//! Chat completions.

use lingqu_serving::reply::ReplyEvent;
use lingqu_tokenizer::ToolCallDelta;
use serde_json::{Value, json};

use super::whole::{Sample, usage};
use super::{Form, Heading, finish_reason, logprobs};

/// Chat completions, whole and in chunks.
pub struct ChatForm {
    heading: Heading,
    /// Which samples have called a tool.
    calls: Vec<bool>,
}

impl ChatForm {
    pub fn new(heading: Heading) -> Self {
        let calls = vec![false; heading.ids.len()];
        Self { heading, calls }
    }

    fn chunk(&self, sample: usize, delta: Value) -> Value {
        self.heading.object("chatcmpl", "chat.completion.chunk", vec![choice(sample, delta)])
    }
}

/// A choice of a chunk that does not end it.
fn choice(sample: usize, delta: Value) -> Value {
    json!({"index": sample, "delta": delta, "logprobs": null, "finish_reason": null})
}

/// A piece of a call; the first has its id and name.
fn piece_of_call(call: &ToolCallDelta) -> Value {
    let mut value = json!({"index": call.index, "function": {"arguments": call.arguments}});
    if let (Some(id), Some(name)) = (&call.id, &call.name) {
        value["id"] = id.as_str().into();
        value["type"] = "function".into();
        value["function"]["name"] = name.as_str().into();
    }
    value
}

fn whole_call(call: &ToolCallDelta) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

impl Form for ChatForm {
    fn opening(&mut self) -> Vec<Value> {
        let samples = 0..self.heading.ids.len();
        samples.map(|sample| self.chunk(sample, json!({"role": "assistant", "content": ""}))).collect()
    }

    fn chunks(&mut self, sample: usize, event: ReplyEvent) -> Vec<Value> {
        match event {
            ReplyEvent::Prompt { .. } => Vec::new(),
            ReplyEvent::Delta { text, reasoning, tool_calls, tokens } => {
                let mut delta = json!({});
                if !reasoning.is_empty() {
                    delta["reasoning_content"] = reasoning.into();
                }
                if !text.is_empty() {
                    delta["content"] = text.into();
                }
                if !tool_calls.is_empty() {
                    self.calls[sample] = true;
                    delta["tool_calls"] = tool_calls.iter().map(piece_of_call).collect();
                }
                let logprobs = logprobs::of_chat(&self.heading.served.model.tokenizer, &tokens);
                if delta.as_object().is_some_and(|delta| delta.is_empty()) && logprobs.is_null() {
                    return Vec::new(); // part of a character, of a tag or of a stop string
                }
                let mut chunk = self.chunk(sample, delta);
                chunk["choices"][0]["logprobs"] = logprobs;
                vec![chunk]
            }
            ReplyEvent::Finished(end) => {
                let mut chunk = self.chunk(sample, json!({}));
                chunk["choices"][0]["finish_reason"] = finish_reason(end.reason, self.calls[sample]).into();
                chunk["choices"][0]["lingqu"] = self.heading.replay(sample, &end);
                vec![chunk]
            }
        }
    }

    fn closing(&self) -> Value {
        self.heading.object("chatcmpl", "chat.completion.chunk", Vec::new())
    }

    fn whole(&mut self, samples: Vec<Sample>) -> Value {
        let total = usage(&samples, self.heading.samples_per_prompt);
        let tokenizer = &self.heading.served.model.tokenizer;
        let choice = |(index, sample): (usize, Sample)| {
            let Sample { text, reasoning, tool_calls, tokens, end, .. } = sample;
            let calls = !tool_calls.is_empty();
            let mut message = json!({"role": "assistant", "content": &text, "refusal": null});
            if calls {
                message["content"] = if text.is_empty() { Value::Null } else { text.into() };
                message["tool_calls"] = tool_calls.iter().map(whole_call).collect();
            }
            if !reasoning.is_empty() {
                message["reasoning_content"] = reasoning.into();
            }
            json!({
                "index": index,
                "message": message,
                "logprobs": logprobs::of_chat(tokenizer, &tokens),
                "finish_reason": end.map(|end| finish_reason(end.reason, calls)),
                "lingqu": end.map(|end| self.heading.replay(index, &end)),
            })
        };
        let choices = samples.into_iter().enumerate().map(choice).collect();
        let mut reply = self.heading.object("chatcmpl", "chat.completion", choices);
        reply["usage"] = total.json();
        reply
    }
}
