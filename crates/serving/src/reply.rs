//! What comes back: the events of one sample, or of several side by side.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use lingqu_engine::text::{TextEvent, TextStream};
use lingqu_engine::{EngineError, Finished, PromptLogprobs};
use lingqu_tokenizer::ToolCallDelta;
use lingqu_types::{RequestId, SamplingParams, TokenId, TokenOutput};

use crate::RequestError;
use crate::ask::Ask;
use crate::metrics::Watch;
use crate::model::Served;
use crate::prepare::{Prepared, prepare};

/// Seeds stay exact in every number format a client may use.
const SEED_MASK: u64 = (1 << 53) - 1;

/// What a client hears of one sample, in this order: at most one `Prompt`, any number of `Delta`, one `Finished`.
#[derive(Clone, Debug)]
pub enum ReplyEvent {
    /// Only if it was asked for, and of the first sample alone.
    Prompt {
        tokens: Vec<TokenId>,
        scores: PromptLogprobs,
    },
    /// What one or a few tokens added.
    Delta {
        text: String,
        reasoning: String,
        tool_calls: Vec<ToolCallDelta>,
        tokens: Vec<TokenOutput>,
    },
    Finished(Finished),
}

/// One sample under way. Dropping it before its end stops the generation.
pub struct Reply {
    id: RequestId,
    text: TextStream,
    sampling: Arc<SamplingParams>,
    prompt_tokens: u32,
    /// Kept for the prompt's log-probabilities, if asked for.
    prompt: Vec<TokenId>,
    watch: Watch,
    ended: bool,
}

impl Reply {
    /// Asks for one sample.
    ///
    /// # Errors
    /// What is wrong with the question, or why the engine does not take it.
    pub async fn start(served: &Served, ask: Ask) -> Result<Self, RequestError> {
        let mut samples = start(served, Ask { choices: 1, ..ask }).await?;
        Ok(samples.pop().expect("one sample was asked for"))
    }

    /// The request's id in the log.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The sampling in effect, but for the seed, which [`Finished`] tells.
    pub fn sampling(&self) -> &SamplingParams {
        &self.sampling
    }

    /// Tokens of the input.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The next event; `None` after `Finished` or an error. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<ReplyEvent, RequestError>> {
        if self.ended {
            return None;
        }
        let event = self.text.next().await;
        self.watch.queued(self.text.queue_time());
        Some(match event {
            Some(TextEvent::Prompt(scores)) => {
                Ok(ReplyEvent::Prompt { tokens: std::mem::take(&mut self.prompt), scores })
            }
            Some(TextEvent::Delta { text, reasoning, tool_calls, tokens }) => {
                if !tokens.is_empty() {
                    self.watch.token();
                }
                Ok(ReplyEvent::Delta { text, reasoning, tool_calls, tokens })
            }
            Some(TextEvent::Finished(end)) => Ok(self.finish(end)),
            Some(TextEvent::Failed(error)) => Err(self.fail(&error)),
            None => Err(self.fail(&EngineError::Stopped)),
        })
    }

    fn finish(&mut self, end: Finished) -> ReplyEvent {
        self.ended = true;
        self.watch.finished(end.reason, end.usage);
        tracing::info!(
            request = %self.id,
            reason = ?end.reason,
            prompt_tokens = end.usage.prompt_tokens,
            completion_tokens = end.usage.completion_tokens,
            "finished"
        );
        ReplyEvent::Finished(end)
    }

    fn fail(&mut self, error: &EngineError) -> RequestError {
        self.ended = true;
        let error = RequestError::engine(self.id, error);
        self.watch.failed(&error);
        error
    }
}

/// Which sample, and what came of it.
type Indexed = (usize, Result<ReplyEvent, RequestError>);

/// All samples of one question. Dropping it stops those that have not ended.
pub struct Replies {
    ids: Vec<RequestId>,
    prompt_tokens: u32,
    events: SelectAll<Pin<Box<dyn Stream<Item = Indexed> + Send>>>,
}

impl Replies {
    /// # Errors
    /// As [`Reply::start`]; either every sample is taken or none.
    pub async fn start(served: &Served, ask: Ask) -> Result<Self, RequestError> {
        Self::start_all(served, vec![ask]).await
    }

    /// Several questions as one: the samples of the first, then those of the second, and so on.
    ///
    /// # Errors
    /// As [`Replies::start`].
    pub async fn start_all(served: &Served, asks: Vec<Ask>) -> Result<Self, RequestError> {
        let mut samples = Vec::new();
        for ask in asks {
            samples.extend(start(served, ask).await?);
        }
        let ids = samples.iter().map(Reply::id).collect();
        let prompt_tokens = samples.first().map_or(0, Reply::prompt_tokens);
        let events = samples.into_iter().enumerate().map(|(index, reply)| {
            let events = stream::unfold(reply, move |mut reply| async move {
                let event = reply.next().await?;
                Some(((index, event), reply))
            });
            Box::pin(events) as Pin<Box<dyn Stream<Item = Indexed> + Send>>
        });
        Ok(Self { ids, prompt_tokens, events: events.collect() })
    }

    /// The samples' ids in the log.
    pub fn ids(&self) -> &[RequestId] {
        &self.ids
    }

    /// Tokens of the input that they share.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The next event and which sample it is of; `None` after the last of all. Cancel safe.
    pub async fn next(&mut self) -> Option<Indexed> {
        self.events.next().await
    }
}

/// Submits every sample of a question, and counts it if it is refused.
async fn start(served: &Served, ask: Ask) -> Result<Vec<Reply>, RequestError> {
    let samples = submit(served, ask).await;
    samples.inspect_err(|error| served.metrics.refused(error))
}

async fn submit(served: &Served, ask: Ask) -> Result<Vec<Reply>, RequestError> {
    let began = Instant::now();
    let (choices, names) = (ask.choices, ask.names);
    let Prepared { request, text, mut constraints } = prepare(served, ask).await?;
    let sampling = Arc::new(request.sampling.clone());
    let mut samples: Vec<Reply> = Vec::with_capacity(choices as usize);
    for index in 0..u64::from(choices) {
        let mut request = request.clone();
        if index > 0 {
            request.prompt_logprobs = None;
            // The first sample's seed is the client's, or else the engine's choice.
            request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(index) & SEED_MASK);
        }
        let prompt = match request.prompt_logprobs {
            Some(_) => request.prompt.clone(),
            None => Vec::new(),
        };
        // Samples that are taken already are aborted if a later one is not.
        let tokens = served
            .model
            .engine
            .submit_constrained(request, constraints.pop())
            .map_err(|e| RequestError::submit(e, names))?;
        let (id, prompt_tokens) = (tokens.id, tokens.prompt_tokens);
        let tokenizer = Arc::clone(&served.model.tokenizer);
        let text = TextStream::new(tokens, tokenizer, text.clone()).map_err(|e| RequestError::invalid("stop", e))?;
        tracing::debug!(request = %id, "submitted");
        let watch = Watch::new(Arc::clone(&served.metrics), began);
        samples.push(Reply { id, text, sampling: Arc::clone(&sampling), prompt_tokens, prompt, watch, ended: false });
    }
    Ok(samples)
}
