//! What is kept of one request.

use std::time::Instant;

use serde::Serialize;

use crate::schedule::Window;
use crate::summary::percentile;
use crate::target::{Failure, Listening, Reply};

/// One line of `requests.jsonl`. Latencies count from the time at which the request was due, so that a server that
/// holds up its clients is charged for it.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub request: u64,
    pub job: u64,
    /// Due within the window.
    pub is_measured: bool,
    /// Seconds from the start of the run.
    pub due_s: f64,
    pub sent_s: f64,
    /// To the first part of the answer.
    pub ttft_ms: Option<f64>,
    /// Mean time of one more token: from the first part to the last, by the tokens after the first part.
    pub tpot_ms: Option<f64>,
    /// Between parts of the answer; a part is a token, or several that the server sent at once.
    pub gap_p99_ms: Option<f64>,
    pub e2e_ms: Option<f64>,
    pub prompt_tokens: u32,
    pub cached_tokens: Option<u32>,
    pub completion_tokens: u32,
    /// Output tokens that came while the window was open.
    pub tokens_in_window: f64,
    /// It ended while the window was open.
    pub ended_in_window: bool,
    pub finish: Option<String>,
    pub error: Option<Failure>,
}

/// Which request it was, and when.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub request: u64,
    pub job: u64,
    pub due: Instant,
    pub sent: Instant,
    pub ended: Instant,
}

impl Record {
    pub fn new(times: Times, listening: &Listening, reply: &Result<Reply, Failure>, window: &Window) -> Self {
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        let parts = &listening.parts;
        let known: u32 = parts.iter().map(|&(_, tokens)| tokens).sum();
        let (reply, error) = match reply {
            Ok(reply) => (Some(reply), None),
            Err(failure) => (None, Some(failure.clone())),
        };
        let completion_tokens = reply.map_or(known.max(parts.len() as u32), |r| r.completion_tokens);
        // Where parts do not tell their tokens, all but the first part share them evenly.
        let first_tokens = parts.first().map_or(0, |&(_, tokens)| tokens.max(1));
        let later_tokens = completion_tokens.saturating_sub(first_tokens);
        let span_ms = parts.first().zip(parts.last()).map(|(first, last)| ms(first.0, last.0));
        let mut gaps: Vec<f64> = parts.windows(2).map(|pair| ms(pair[0].0, pair[1].0)).collect();
        let tokens_in_window =
            parts.iter().enumerate().filter(|(_, part)| window.holds(part.0)).map(|(i, part)| match (known, i) {
                (0, 0) => f64::from(first_tokens),
                (0, _) => f64::from(later_tokens) / (parts.len() - 1) as f64,
                _ => f64::from(part.1),
            });
        Self {
            request: times.request,
            job: times.job,
            is_measured: window.holds(times.due),
            due_s: window.seconds(times.due),
            sent_s: window.seconds(times.sent),
            ttft_ms: parts.first().map(|part| ms(times.due, part.0)),
            tpot_ms: span_ms.filter(|_| parts.len() > 1 && later_tokens > 0).map(|ms| ms / f64::from(later_tokens)),
            gap_p99_ms: percentile(&mut gaps, 0.99),
            e2e_ms: reply.map(|_| ms(times.due, times.ended)),
            prompt_tokens: reply.map_or(0, |r| r.prompt_tokens),
            cached_tokens: reply.and_then(|r| r.cached_tokens),
            completion_tokens,
            tokens_in_window: tokens_in_window.fold(0.0, |sum, tokens| sum + tokens),
            ended_in_window: window.holds(times.ended),
            finish: reply.map(|r| r.finish.clone()),
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::target::{Answer, FailureKind};

    /// A request due at 1 s and sent at 1.5 s, in a window from 0 to 10 s; `parts`: (seconds, tokens).
    fn record(parts: &[(f64, u32)], reply: Result<u32, FailureKind>) -> Record {
        let start = Instant::now();
        let at = |s: f64| start + Duration::from_secs_f64(s);
        let window = Window::new(start, Duration::ZERO, Some(Duration::from_secs(10)), u64::MAX);
        let listening = Listening { parts: parts.iter().map(|&(s, n)| (at(s), n)).collect(), ..Default::default() };
        let reply = reply.map_err(|kind| Failure::new(kind, "")).map(|completion_tokens| Reply {
            answer: Answer::Tokens(vec![]),
            prompt_tokens: 5,
            completion_tokens,
            cached_tokens: None,
            finish: "length".into(),
        });
        let ended = at(parts.last().map_or(2.0, |part| part.0));
        let times = Times { request: 0, job: 0, due: at(1.0), sent: at(1.5), ended };
        Record::new(times, &listening, &reply, &window)
    }

    fn check(name: &str, value: Option<f64>, expected: Option<f64>) {
        let near = match (value, expected) {
            (Some(value), Some(expected)) => (value - expected).abs() < 0.01,
            (value, expected) => value == expected,
        };
        assert!(near, "{name}: {value:?}, expected {expected:?}");
    }

    #[test]
    fn latencies_count_from_when_a_request_was_due() {
        let whole = record(&[(2.0, 1), (2.2, 2), (2.6, 1)], Ok(4));
        check("ttft", whole.ttft_ms, Some(1000.0));
        check("tpot", whole.tpot_ms, Some(200.0));
        check("gap", whole.gap_p99_ms, Some(400.0));
        check("e2e", whole.e2e_ms, Some(1600.0));
        check("sent", Some(whole.sent_s), Some(1.5));
        check("tokens", Some(whole.tokens_in_window), Some(4.0));
    }

    #[test]
    fn tokens_are_shared_among_parts_that_do_not_tell_them() {
        let half = record(&[(8.0, 0), (9.0, 0), (11.0, 0)], Ok(9));
        check("tpot", half.tpot_ms, Some(375.0));
        check("tokens before the window closed", Some(half.tokens_in_window), Some(1.0 + 4.0));
        assert!(!half.ended_in_window);
    }

    #[test]
    fn what_has_not_come_has_no_latency() {
        let one = record(&[(2.0, 1)], Ok(1));
        check("tpot of one token", one.tpot_ms, None);
        check("gap of one part", one.gap_p99_ms, None);
        let cut = record(&[(2.0, 1), (3.0, 1)], Err(FailureKind::CutOff));
        check("ttft of a cut answer", cut.ttft_ms, Some(1000.0));
        check("e2e of a cut answer", cut.e2e_ms, None);
        check("tokens of a cut answer", Some(cut.tokens_in_window), Some(2.0));
        let refused = record(&[], Err(FailureKind::Refused));
        check("ttft of a refused request", refused.ttft_ms, None);
        assert!(refused.is_measured && refused.completion_tokens == 0);
    }
}
