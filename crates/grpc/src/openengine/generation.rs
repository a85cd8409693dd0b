//! One OpenEngine generation from its request to its last event.

use std::collections::VecDeque;
use std::sync::Arc;

use lingqu_proto::openengine as wire;
use lingqu_proto::openengine::generate_response::Event;
use lingqu_serving::reply::ReplyEvent;
use lingqu_serving::{Replies, RequestError, Served};
use lingqu_types::{FinishReason, RequestId};
use tonic::Status;

use super::ask::Question;
use super::event::{failed, finished, prompt_output, token_output};
use super::registry::Entry;
use crate::status::status;

/// The events of a generation. Dropping it before its end stops all its outputs.
pub struct Generation {
    served: Arc<Served>,
    replies: Replies,
    entry: Entry,
    prompt_start: usize,
    prompt_bytes_max: usize,
    prompt_tokens: u32,
    outputs: Vec<Output>,
    /// Told one by one.
    events: VecDeque<wire::GenerateResponse>,
    over: bool,
}

#[derive(Clone, Copy, Default)]
struct Output {
    over: bool,
    /// Generated so far.
    tokens: u32,
}

impl Generation {
    /// Checks and submits a request: once it is taken, errors are events.
    pub async fn start(
        served: Arc<Served>,
        question: Question,
        entry: Entry,
        prompt_bytes_max: usize,
    ) -> Result<Self, Status> {
        let Question { ask, prompt_start } = question;
        let choices = ask.choices as usize;
        let replies = Replies::start(&served, ask).await.map_err(status)?;
        Ok(Self {
            prompt_tokens: replies.prompt_tokens(),
            outputs: vec![Output::default(); choices],
            events: VecDeque::new(),
            over: false,
            served,
            replies,
            entry,
            prompt_start,
            prompt_bytes_max,
        })
    }

    /// The first output's id in the log.
    pub fn id(&self) -> RequestId {
        self.replies.ids()[0]
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<wire::GenerateResponse> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            tokio::select! {
                () = self.entry.aborted() => self.cancel(),
                event = self.replies.next() => match event {
                    Some((index, Ok(event))) => self.take(index, event).await,
                    Some((_, Err(error))) => self.fail(&error),
                    None => self.over = true,
                },
            }
        }
    }

    async fn take(&mut self, index: usize, event: ReplyEvent) {
        match event {
            ReplyEvent::Prompt { tokens, scores } => {
                let (start, bytes_max) = (self.prompt_start, self.prompt_bytes_max);
                let output = move |t: &_| prompt_output(t, (tokens, scores), start, bytes_max);
                match self.served.off_thread("telling a prompt", output).await {
                    Ok(prompt) => self.tell(Event::Prompt(prompt)),
                    Err(error) => self.fail(&error),
                }
            }
            ReplyEvent::Delta { text, tokens, .. } => {
                self.outputs[index].tokens += tokens.len() as u32;
                let output = token_output(&self.served.model.tokenizer, index, text, tokens);
                self.tell(Event::Token(output));
            }
            ReplyEvent::Finished(end) => {
                // A stop token is counted though no event told it.
                self.outputs[index].tokens = end.usage.completion_tokens;
                self.finish(index, end.reason);
            }
        }
    }

    fn finish(&mut self, index: usize, reason: FinishReason) {
        self.outputs[index].over = true;
        self.over = self.outputs.iter().all(|output| output.over);
        self.tell(Event::Finished(finished(index, reason)));
    }

    /// All outputs that have not ended, end.
    fn cancel(&mut self) {
        for index in 0..self.outputs.len() {
            if !self.outputs[index].over {
                self.finish(index, FinishReason::Abort);
            }
        }
    }

    fn fail(&mut self, error: &RequestError) {
        self.over = true;
        self.tell(Event::Error(failed(error)));
    }

    /// The last event has the usage.
    fn tell(&mut self, event: Event) {
        let completion_tokens = self.outputs.iter().map(|output| output.tokens).sum();
        let usage = self.over.then_some(wire::Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens + completion_tokens,
            ..wire::Usage::default()
        });
        let request_id = self.entry.name().to_owned();
        self.events.push_back(wire::GenerateResponse { request_id, event: Some(event), usage });
    }
}
