//! A server that is asked, over gRPC (`lingqu.v1`) or HTTP (OpenAI's completions): both give the same measures.

pub mod grpc;
pub mod http;
pub mod sse;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::workload::{Job, Prompt, sample_text};

/// Bytes of one answer that are kept; more end the request.
const ANSWER_BYTES_MAX: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// Text or tokens, continued as they stand.
    Completions,
    /// A conversation in the model's chat template; token prompts go as they are.
    Chat,
}

/// Why a request got no whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No connection.
    Connect,
    /// The queue is full: 429, RESOURCE_EXHAUSTED.
    Refused,
    /// 503, UNAVAILABLE.
    Unavailable,
    /// 4xx, INVALID_ARGUMENT and their like.
    Invalid,
    /// 5xx, INTERNAL and their like.
    Server,
    /// The stream ended without saying how the generation ended.
    CutOff,
    /// No end within the time allowed.
    Timeout,
    /// What came is not what the interface promises.
    Protocol,
    /// We hung up, as we were told to.
    Left,
}

#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl std::fmt::Display) -> Self {
        let message: String = message.to_string().chars().take(300).collect();
        Self { kind, message }
    }
}

/// What came, to be compared: tokens where the interface tells them, else text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    Tokens(Vec<u32>),
    Text(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub answer: Answer,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    /// Of the prompt, those found in a cache, where the server tells.
    pub cached_tokens: Option<u32>,
    pub finish: String,
}

/// How one answer is listened to, and when its parts came.
#[derive(Debug, Default)]
pub struct Listening {
    /// Time of each part that carried something, and its tokens; 0 where the interface does not tell how many.
    pub parts: Vec<(Instant, u32)>,
    /// Wait this long after each part before reading on.
    pub pause: Option<Duration>,
    /// Hang up after this many parts.
    pub leave_after: Option<usize>,
}

impl Listening {
    async fn heard(&mut self, tokens: u32) -> Result<(), Failure> {
        self.parts.push((Instant::now(), tokens));
        if self.leave_after.is_some_and(|n| self.parts.len() >= n) {
            return Err(Failure::new(FailureKind::Left, "hung up"));
        }
        if let Some(pause) = self.pause {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }
}

/// How connections are made.
#[derive(Clone, Debug)]
pub struct Wiring {
    pub api: Api,
    /// gRPC connections that requests take turns on; HTTP/1.1 takes one for each open request.
    pub connections: usize,
    /// Flow-control window, so that a slow reader is felt by the server soon.
    pub window_bytes: Option<u32>,
    /// Name of the model to ask for; empty: the one that is served.
    pub model: String,
}

#[derive(Debug)]
pub enum Target {
    Grpc(grpc::GrpcTarget),
    Http(Box<http::HttpTarget>),
}

impl Target {
    /// Asks and listens to the end.
    ///
    /// # Errors
    /// Whatever came in place of a whole answer; what was heard until then is in `listening`.
    pub async fn ask(&self, job: &Job, listening: &mut Listening) -> Result<Reply, Failure> {
        match self {
            Target::Grpc(target) => target.ask(job, listening).await,
            Target::Http(target) => target.ask(job, listening).await,
        }
    }

    /// [`Target::ask`] within a time limit.
    pub async fn ask_within(&self, limit: Duration, job: &Job, listening: &mut Listening) -> Result<Reply, Failure> {
        let late = |_| Failure::new(FailureKind::Timeout, format!("no end within {limit:?}"));
        tokio::time::timeout(limit, self.ask(job, listening)).await.map_err(late).flatten()
    }

    /// Characters that one token of our texts holds, by the target's own count.
    ///
    /// # Errors
    /// When the target does not answer two short requests.
    pub async fn chars_per_token(&self) -> Result<f64, Failure> {
        const CHARS: [usize; 2] = [40, 240]; // the difference leaves out what a template adds
        let mut tokens = [0; 2];
        for (tokens, chars) in tokens.iter_mut().zip(CHARS) {
            let job = probe(sample_text(chars), 1);
            let reply = self.ask_within(Duration::from_secs(120), &job, &mut Listening::default()).await?;
            *tokens = reply.prompt_tokens;
        }
        if tokens[1] <= tokens[0] {
            let what = format!("{tokens:?} prompt tokens for {CHARS:?} characters");
            return Err(Failure::new(FailureKind::Protocol, what));
        }
        Ok((CHARS[1] - CHARS[0]) as f64 / f64::from(tokens[1] - tokens[0]))
    }
}

/// A plain greedy request of a known length.
pub fn probe(prompt: Prompt, max_tokens: u32) -> Job {
    Job { id: 0, prompt, max_tokens, ignore_eos: true, seed: 1, temperature: 0.0, schema: None }
}
