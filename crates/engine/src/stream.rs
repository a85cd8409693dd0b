//! One request's events on their way to its client: a bounded channel that pauses the sequence when it fills up.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lingqu_types::request::TopLogprobs;
use lingqu_types::{FinishReason, RequestId, TokenOutput, Usage};
use tokio::sync::mpsc;

use crate::EngineError;
use crate::mailbox::Mailbox;

/// Events that one step may add for one request beyond the token itself: the prompt's scores, and the end.
const EVENTS_BEYOND_TOKEN: usize = 2;

/// What a client hears, in this order: at most one `Prompt`, any number of `Token`, then one `Finished` or `Failed`.
#[derive(Clone, Debug)]
pub enum TokenEvent {
    /// Only if `prompt_logprobs` was asked for; after the whole prompt is scored.
    Prompt(PromptLogprobs),
    Token(TokenOutput),
    Finished(Finished),
    Failed(EngineError),
}

/// The model's own distribution over the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptLogprobs {
    /// `logprobs[t]` is ln p(prompt[t] given prompt[..t]); `None` for the first. `[prompt]`
    pub logprobs: Vec<Option<f32>>,
    /// `top[t]` are the likeliest tokens after prompt[..=t]. `[prompt]`
    pub top: Vec<TopLogprobs>,
}

/// The end of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub reason: FinishReason,
    /// A stop token counts among the completion tokens though no `Token` event tells it.
    pub usage: Usage,
    /// With it and the same request, the same answer comes again.
    pub seed: u64,
}

/// The events of one request. Dropping it before its end aborts the request.
pub struct TokenStream {
    pub id: RequestId,
    pub prompt_tokens: u32,
    pub seed: u64,
    events: mpsc::Receiver<TokenEvent>,
    flow: Arc<Flow>,
    mailbox: Arc<Mailbox>,
    ended: bool,
}

/// The engine's end of it.
pub(crate) struct EventSender {
    events: mpsc::Sender<TokenEvent>,
    flow: Arc<Flow>,
}

/// What both ends know: the reader's pace, and how long the request waited.
struct Flow {
    submitted: Instant,
    queue_time: OnceLock<Duration>,
    /// The engine has paused the sequence; the reader says when it has caught up.
    paused: AtomicBool,
    unread_tokens_max: usize,
}

impl Flow {
    /// Unread events at which a paused sequence goes on.
    fn resume_at(&self) -> usize {
        self.unread_tokens_max / 2
    }
}

/// What a stream and its sender share from the start.
pub(crate) struct StreamStart {
    pub id: RequestId,
    pub prompt_tokens: u32,
    pub seed: u64,
    /// Tokens that one step may add beyond the first.
    pub drafts_max: usize,
}

pub(crate) fn channel(start: StreamStart, unread_max: usize, mailbox: Arc<Mailbox>) -> (EventSender, TokenStream) {
    let StreamStart { id, prompt_tokens, seed, drafts_max } = start;
    let (sender, events) = mpsc::channel(unread_max + drafts_max + EVENTS_BEYOND_TOKEN);
    let flow = Arc::new(Flow {
        submitted: Instant::now(),
        queue_time: OnceLock::new(),
        paused: AtomicBool::new(false),
        unread_tokens_max: unread_max,
    });
    let stream = TokenStream { id, prompt_tokens, seed, events, flow: flow.clone(), mailbox, ended: false };
    (EventSender { events: sender, flow }, stream)
}

impl TokenStream {
    /// From the request's submission to its first step; `None` before that.
    pub fn queue_time(&self) -> Option<Duration> {
        self.flow.queue_time.get().copied()
    }

    /// The next event; `None` after the last one. Cancel safe.
    pub async fn recv(&mut self) -> Option<TokenEvent> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await;
        Some(self.received(event))
    }

    /// The same for a thread that may block; panics inside an async runtime.
    pub fn blocking_recv(&mut self) -> Option<TokenEvent> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.received(event))
    }

    fn received(&mut self, event: Option<TokenEvent>) -> TokenEvent {
        // An engine that vanished without a word is still an answer.
        let event = event.unwrap_or(TokenEvent::Failed(EngineError::Stopped));
        self.ended = matches!(event, TokenEvent::Finished(_) | TokenEvent::Failed(_));
        // Pairs with the fence in `EventSender::pause`: either we see its flag, or it sees what we have read.
        fence(Ordering::SeqCst);
        let caught_up = self.events.len() <= self.flow.resume_at();
        if !self.ended && caught_up && self.flow.paused.swap(false, Ordering::SeqCst) {
            self.mailbox.resume(self.id);
        }
        event
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.ended {
            self.mailbox.abort(self.id);
        }
    }
}

impl EventSender {
    /// The request's first step begins.
    pub fn begin(&self) {
        self.flow.queue_time.get_or_init(|| self.flow.submitted.elapsed());
    }

    /// False if the client is gone. Never waits: a sequence whose channel is full is paused, so there is always room.
    pub fn send(&self, event: TokenEvent) -> bool {
        match self.events.try_send(event) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => panic!("a paused sequence was run"),
        }
    }

    /// The last word after something broke, whatever state the channel is in.
    pub fn fail(&self, error: EngineError) {
        // A reader that finds the channel closed without a last word makes up one of its own.
        let _ = self.events.try_send(TokenEvent::Failed(error));
    }

    /// Whether the sequence must leave the batch because its reader is slow; the reader will then say
    /// [`Mailbox::resume`].
    pub fn pause(&self) -> bool {
        if self.unread() < self.flow.unread_tokens_max {
            return false;
        }
        self.flow.paused.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // The reader may have caught up before it could see the flag.
        if self.unread() <= self.flow.resume_at() {
            self.flow.paused.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    fn unread(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
    }
}
