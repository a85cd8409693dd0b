//! What is counted of all requests, whichever front end they came through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lingqu_types::{FinishReason, Usage};

use crate::RequestError;

/// Upper bounds of the histograms' buckets, in seconds; one more bucket holds what is above them all.
pub const BUCKETS_S: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The model or a stop string ended it.
    Stop,
    /// It reached its limit of tokens.
    Length,
    /// The client went away.
    Abort,
    Invalid,
    NotFound,
    Unsupported,
    Exhausted,
    Unavailable,
    DeadlineExceeded,
    Internal,
}

impl Outcome {
    pub const ALL: [Self; 10] = [
        Self::Stop,
        Self::Length,
        Self::Abort,
        Self::Invalid,
        Self::NotFound,
        Self::Unsupported,
        Self::Exhausted,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// As operators read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Unsupported => "unsupported",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Internal => "internal",
        }
    }
}

impl From<FinishReason> for Outcome {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Abort => Self::Abort,
        }
    }
}

impl From<&RequestError> for Outcome {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::Invalid { .. } => Self::Invalid,
            RequestError::NotFound(_) => Self::NotFound,
            RequestError::Unsupported(_) => Self::Unsupported,
            RequestError::Exhausted(_) => Self::Exhausted,
            RequestError::Unavailable(_) => Self::Unavailable,
            RequestError::DeadlineExceeded(_) => Self::DeadlineExceeded,
            RequestError::Internal(_) => Self::Internal,
        }
    }
}

/// Counts since the start. A question with several samples counts once for each; one that is refused counts once.
#[derive(Debug, Default)]
pub struct Metrics {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    /// From the engine's taking the question to its first step.
    pub queue: Histogram,
    /// From the question to its first token.
    pub first_token: Histogram,
    /// From one token to the next.
    pub inter_token: Histogram,
    /// From the question to its end; only those that ended well.
    pub end_to_end: Histogram,
}

impl Metrics {
    /// Requests that ended so.
    pub fn requests(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    /// Prompt tokens of the requests that ended well.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens.load(Ordering::Relaxed)
    }

    /// Generated tokens of the requests that ended well.
    pub fn completion_tokens(&self) -> u64 {
        self.completion_tokens.load(Ordering::Relaxed)
    }

    /// A request that was not taken. [`crate::Replies`] count what they refuse; this is for what a front end refuses.
    pub fn refused(&self, error: &RequestError) {
        self.count(error.into());
    }

    fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Durations by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_S.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS_S.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts up to and including each bucket of [`BUCKETS_S`], and then of all.
    pub fn cumulative(&self) -> [u64; BUCKETS_S.len() + 1] {
        let mut total = 0;
        self.buckets.each_ref().map(|bucket| {
            total += bucket.load(Ordering::Relaxed);
            total
        })
    }

    pub fn sum_s(&self) -> f64 {
        self.sum_us.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// Watches one sample. Dropped before its end, it counts as aborted.
pub(crate) struct Watch {
    metrics: Arc<Metrics>,
    began: Instant,
    last_token: Option<Instant>,
    has_begun: bool,
    ended: bool,
}

impl Watch {
    /// `began`: when the question came.
    pub fn new(metrics: Arc<Metrics>, began: Instant) -> Self {
        Self { metrics, began, last_token: None, has_begun: false, ended: false }
    }

    /// How long it was queued, once that is known; told again and again.
    pub fn queued(&mut self, queue_time: Option<Duration>) {
        if let (false, Some(time)) = (self.has_begun, queue_time) {
            self.has_begun = true;
            self.metrics.queue.observe(time);
        }
    }

    /// A token has come.
    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.metrics.first_token.observe(now - self.began),
            Some(last) => self.metrics.inter_token.observe(now - last),
        }
    }

    pub fn finished(&mut self, reason: FinishReason, usage: Usage) {
        self.metrics.end_to_end.observe(self.began.elapsed());
        self.metrics.prompt_tokens.fetch_add(u64::from(usage.prompt_tokens), Ordering::Relaxed);
        self.metrics.completion_tokens.fetch_add(u64::from(usage.completion_tokens), Ordering::Relaxed);
        self.end(reason.into());
    }

    pub fn failed(&mut self, error: &RequestError) {
        self.end(error.into());
    }

    fn end(&mut self, outcome: Outcome) {
        self.ended = true;
        self.metrics.count(outcome);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::Abort);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let check = |ms: f64, bucket: usize| {
            let histogram = Histogram::default();
            histogram.observe(Duration::from_secs_f64(ms / 1000.0));
            let counts = histogram.cumulative();
            assert_eq!(counts.iter().position(|&count| count == 1), Some(bucket), "{ms} ms: {counts:?}");
            assert_eq!(counts[BUCKETS_S.len()], 1);
            assert!((histogram.sum_s() - ms / 1000.0).abs() < 1e-6);
        };
        check(0.0, 0);
        check(0.5, 0);
        check(1.5, 1);
        check(40.0, 5);
        check(299_000.0, 16);
        check(301_000.0, 17);
    }

    #[test]
    fn every_sample_is_counted_once() {
        let metrics = Arc::new(Metrics::default());
        let watch = || Watch::new(Arc::clone(&metrics), Instant::now());
        let usage = Usage { prompt_tokens: 7, completion_tokens: 2, ..Usage::default() };
        let mut whole = watch();
        for time in [None, Some(Duration::ZERO), Some(Duration::ZERO)] {
            whole.queued(time);
        }
        whole.token();
        whole.token();
        whole.finished(FinishReason::Length, usage);
        drop(whole);
        watch().failed(&RequestError::Internal("x".into()));
        drop(watch());
        metrics.refused(&RequestError::NotFound("x".into()));
        let counted = |outcome| metrics.requests(outcome);
        for outcome in Outcome::ALL {
            let expected = match outcome {
                Outcome::Length | Outcome::Internal | Outcome::Abort | Outcome::NotFound => 1,
                _ => 0,
            };
            assert_eq!(counted(outcome), expected, "{}", outcome.name());
        }
        assert_eq!((metrics.prompt_tokens(), metrics.completion_tokens()), (7, 2));
        let all = |histogram: &Histogram| histogram.cumulative()[BUCKETS_S.len()];
        let histograms = [&metrics.queue, &metrics.first_token, &metrics.inter_token, &metrics.end_to_end];
        assert_eq!(histograms.map(all), [1; 4]);
    }
}
