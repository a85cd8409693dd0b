//! Plain completions.

use lingqu_serving::reply::ReplyEvent;
use serde_json::{Value, json};

use super::logprobs::Columns;
use super::whole::{Sample, usage};
use super::{Form, Heading, finish_reason};

/// Plain completions, whole and in chunks.
pub struct CompletionForm {
    heading: Heading,
    /// The text of each prompt, if it is to be told before its completions.
    echo: Option<Vec<String>>,
    /// Characters told in log-probabilities so far. `[samples]`
    offsets: Vec<usize>,
}

impl CompletionForm {
    pub fn new(heading: Heading, echo: Option<Vec<String>>) -> Self {
        let offsets = vec![0; heading.ids.len()];
        Self { heading, echo, offsets }
    }

    fn chunk(&self, sample: usize, text: String, logprobs: Value) -> Value {
        let choice = json!({"index": sample, "text": text, "logprobs": logprobs, "finish_reason": null});
        self.heading.object("cmpl", "text_completion", vec![choice])
    }

    /// The prompt of a sample, if it is to be told.
    fn echo(&self, sample: usize) -> String {
        let prompt = sample / self.heading.samples_per_prompt;
        self.echo.as_ref().and_then(|prompts| prompts.get(prompt)).cloned().unwrap_or_default()
    }
}

impl Form for CompletionForm {
    fn opening(&mut self) -> Vec<Value> {
        let samples = 0..self.heading.ids.len();
        match self.echo {
            Some(_) => samples.map(|sample| self.chunk(sample, self.echo(sample), Value::Null)).collect(),
            None => Vec::new(),
        }
    }

    fn chunks(&mut self, sample: usize, event: ReplyEvent) -> Vec<Value> {
        let tokenizer = &self.heading.served.model.tokenizer;
        let mut columns = Columns::default();
        let text = match event {
            ReplyEvent::Prompt { tokens, scores } => {
                columns.push_prompt(tokenizer, &tokens, &scores, &mut self.offsets[sample]);
                String::new()
            }
            ReplyEvent::Delta { text, tokens, .. } => {
                columns.push_outputs(tokenizer, &tokens, &mut self.offsets[sample]);
                text
            }
            ReplyEvent::Finished(end) => {
                let mut chunk = self.chunk(sample, String::new(), Value::Null);
                chunk["choices"][0]["finish_reason"] = finish_reason(end.reason, false).into();
                chunk["choices"][0]["lingqu"] = self.heading.replay(sample, &end);
                return vec![chunk];
            }
        };
        let logprobs = columns.json();
        match text.is_empty() && logprobs.is_null() {
            true => Vec::new(), // part of a character or of a stop string
            false => vec![self.chunk(sample, text, logprobs)],
        }
    }

    fn closing(&self) -> Value {
        self.heading.object("cmpl", "text_completion", Vec::new())
    }

    fn whole(&mut self, samples: Vec<Sample>) -> Value {
        let total = usage(&samples, self.heading.samples_per_prompt);
        let tokenizer = &self.heading.served.model.tokenizer;
        let choice = |(index, sample): (usize, Sample)| {
            let (mut columns, mut offset) = (Columns::default(), 0);
            if let Some((ids, scores)) = &sample.prompt {
                columns.push_prompt(tokenizer, ids, scores, &mut offset);
            }
            columns.push_outputs(tokenizer, &sample.tokens, &mut offset);
            json!({
                "index": index,
                "text": self.echo(index) + &sample.text,
                "logprobs": columns.json(),
                "finish_reason": sample.end.map(|end| finish_reason(end.reason, false)),
                "lingqu": sample.end.map(|end| self.heading.replay(index, &end)),
            })
        };
        let choices = samples.into_iter().enumerate().map(choice).collect();
        let mut reply = self.heading.object("cmpl", "text_completion", choices);
        reply["usage"] = total.json();
        reply
    }
}
