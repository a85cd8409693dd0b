//! One generation from its request to its last event.

use std::sync::Arc;

use lingqu_engine::text::{TextEvent, TextStream};
use lingqu_engine::{EngineError, Finished};
use lingqu_proto::v1;
use lingqu_proto::v1::generate_event::Event;
use lingqu_types::{RequestId, SamplingParams, TokenId};
use tonic::Status;

use crate::convert::event::{Answered, PromptParts, delta, finished};
use crate::convert::generate::{generation, submit_error};
use crate::model::Served;
use crate::status::{internal, invalid};

/// The events of a generation. Dropping it before its end stops the generation.
pub(crate) struct Events {
    served: Arc<Served>,
    id: RequestId,
    text: TextStream,
    /// Parts of the prompt's log-probabilities that are still to be told.
    prompt_parts: Option<PromptParts>,
    /// Kept for the prompt's log-probabilities, if asked for.
    prompt: Vec<TokenId>,
    sampling: SamplingParams,
    ended: bool,
}

impl Events {
    /// Checks and submits a request.
    pub async fn start(served: Arc<Served>, wire: v1::GenerateRequest) -> Result<Self, Status> {
        let asked = generation(&served, wire).await?;
        let sampling = asked.request.sampling.clone();
        let prompt = match asked.request.prompt_logprobs {
            Some(_) => asked.request.prompt.clone(),
            None => Vec::new(),
        };
        let tokens = served.model.engine.submit(asked.request).map_err(|e| submit_error(e, asked.input_field))?;
        let id = tokens.id;
        let tokenizer = Arc::clone(&served.model.tokenizer);
        let text = TextStream::new(tokens, tokenizer, asked.text).map_err(|e| invalid("stop", e))?;
        tracing::debug!(request = %id, "submitted");
        Ok(Self { served, id, text, prompt_parts: None, prompt, sampling, ended: false })
    }

    /// The request's id in the log.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after `Finished` or an error.
    pub async fn next(&mut self) -> Option<Result<Event, Status>> {
        loop {
            if let Some(part) = self.prompt_parts.as_mut().and_then(|p| p.next(&self.served.model.tokenizer)) {
                return Some(Ok(Event::PromptLogprobs(part)));
            }
            self.prompt_parts = None;
            if self.ended {
                return None;
            }
            match self.text.next().await {
                Some(TextEvent::Prompt(scores)) => {
                    self.prompt_parts = Some(PromptParts::new(std::mem::take(&mut self.prompt), scores));
                }
                Some(TextEvent::Delta { text, reasoning, tokens }) => {
                    return Some(Ok(Event::Delta(delta(&self.served.model.tokenizer, text, reasoning, tokens))));
                }
                Some(TextEvent::Finished(end)) => return Some(Ok(self.finish(end))),
                Some(TextEvent::Failed(error)) => return Some(Err(self.fail(&error))),
                None => return Some(Err(self.fail(&EngineError::Stopped))),
            }
        }
    }

    /// All events in one reply.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED for a reply larger than the server's bound, besides what the events may hold.
    pub async fn reply(mut self) -> Result<v1::GenerateReply, Status> {
        let mut reply = v1::GenerateReply::default();
        let mut bytes = 0;
        while let Some(event) = self.next().await {
            let event = event?;
            bytes += event.encoded_len();
            if bytes > self.served.reply_bytes_max {
                let max = self.served.reply_bytes_max;
                return Err(Status::resource_exhausted(format!(
                    "the reply is larger than {max} bytes: use the streaming Generate, or ask for fewer logprobs"
                )));
            }
            append(&mut reply, event);
        }
        Ok(reply)
    }

    fn finish(&mut self, end: Finished) -> Event {
        self.ended = true;
        let Finished { reason, usage, .. } = end;
        tracing::info!(
            request = %self.id,
            ?reason,
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            "finished"
        );
        let card = &self.served.model.card;
        Event::Finished(finished(Answered {
            finished: end,
            sampling: &self.sampling,
            model: &card.name,
            model_fingerprint: &card.fingerprint,
            request_id: self.id.to_string(),
        }))
    }

    fn fail(&mut self, error: &EngineError) -> Status {
        self.ended = true;
        match error {
            EngineError::Stopped => Status::unavailable(format!("request {} was cut off: the server stops", self.id)),
            error => internal(self.id, error),
        }
    }
}

/// Appends an event to the reply that holds them all.
fn append(reply: &mut v1::GenerateReply, event: Event) {
    match event {
        Event::PromptLogprobs(part) => {
            let all = reply.prompt_logprobs.get_or_insert_default();
            all.tokens.extend(part.tokens);
            all.next_top = part.next_top;
        }
        Event::Delta(part) => {
            reply.text += &part.text;
            reply.reasoning += &part.reasoning;
            reply.token_ids.extend(part.token_ids);
            reply.logprobs.extend(part.logprobs);
        }
        Event::Finished(end) => reply.finished = Some(end),
    }
}
