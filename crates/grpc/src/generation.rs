//! One generation of `lingqu.v1` from its request to its last event.

use std::sync::Arc;

use lingqu_engine::Finished;
use lingqu_proto::v1;
use lingqu_proto::v1::generate_event::Event;
use lingqu_serving::reply::ReplyEvent;
use lingqu_serving::{Reply, Served};
use lingqu_types::RequestId;
use tonic::{Request, Status};

use crate::convert::event::{Answered, PromptParts, delta, finished};
use crate::convert::generate::ask;
use crate::convert::service::FromHeaders;
use crate::status::status;

/// The events of a generation. Dropping it before its end stops the generation.
pub(crate) struct Events {
    served: Arc<Served>,
    reply: Reply,
    /// Parts of the prompt's log-probabilities that are still to be told.
    prompt_parts: Option<PromptParts>,
}

impl Events {
    /// Checks and submits a request.
    pub async fn start(served: Arc<Served>, request: Request<v1::GenerateRequest>) -> Result<Self, Status> {
        let headers = FromHeaders::read(request.metadata())?;
        let asked = ask(request.into_inner(), &headers, &served.model.default_sampling)?;
        let reply = Reply::start(&served, asked).await.map_err(status)?;
        Ok(Self { served, reply, prompt_parts: None })
    }

    /// The request's id in the log.
    pub fn id(&self) -> RequestId {
        self.reply.id()
    }

    /// The next event; `None` after `Finished` or an error.
    pub async fn next(&mut self) -> Option<Result<Event, Status>> {
        loop {
            let tokenizer = &self.served.model.tokenizer;
            if let Some(part) = self.prompt_parts.as_mut().and_then(|p| p.next(tokenizer)) {
                return Some(Ok(Event::PromptLogprobs(part)));
            }
            self.prompt_parts = None;
            match self.reply.next().await? {
                Ok(ReplyEvent::Prompt { tokens, scores }) => {
                    self.prompt_parts = Some(PromptParts::new(tokens, scores));
                }
                Ok(ReplyEvent::Delta { text, reasoning, tool_calls, tokens }) => {
                    return Some(Ok(Event::Delta(delta(tokenizer, text, reasoning, tool_calls, tokens))));
                }
                Ok(ReplyEvent::Finished(end)) => return Some(Ok(self.finish(end))),
                Err(error) => return Some(Err(status(error))),
            }
        }
    }

    /// All events in one reply of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED for a larger reply, besides what the events may hold.
    pub async fn reply(mut self, bytes_max: usize) -> Result<v1::GenerateReply, Status> {
        let mut reply = v1::GenerateReply::default();
        let mut bytes = 0;
        while let Some(event) = self.next().await {
            let event = event?;
            bytes += event.encoded_len();
            if bytes > bytes_max {
                return Err(Status::resource_exhausted(format!(
                    "the reply is larger than {bytes_max} bytes: use the streaming Generate, or ask for fewer logprobs"
                )));
            }
            append(&mut reply, event);
        }
        Ok(reply)
    }

    fn finish(&self, end: Finished) -> Event {
        let card = &self.served.model.card;
        Event::Finished(finished(Answered {
            finished: end,
            sampling: self.reply.sampling(),
            model: &card.name,
            model_fingerprint: &card.fingerprint,
            request_id: self.id().to_string(),
        }))
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
            for piece in part.tool_calls {
                match reply.tool_calls.last_mut().filter(|call| call.index == piece.index) {
                    Some(call) => call.arguments += &piece.arguments,
                    None => reply.tool_calls.push(piece),
                }
            }
        }
        Event::Finished(end) => reply.finished = Some(end),
    }
}
