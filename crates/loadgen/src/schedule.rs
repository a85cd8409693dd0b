//! When requests are sent, and for how long.

use std::time::{Duration, Instant};

use crate::random::Random;

/// Draws of arrivals have a stream of their own, so that requests stay the same at every rate.
const ARRIVALS_STREAM: u64 = u64::MAX - 1;

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Each user asks, hears the answer, thinks (seconds, exponentially distributed), asks again.
    Closed { users: usize, think_s: f64 },
    /// Requests come by a Poisson process, whatever the server does.
    Open { requests_per_s: f64 },
}

/// The times of a Poisson process, in seconds from the start.
#[derive(Debug)]
pub struct Poisson {
    random: Random,
    gap_s: f64,
    at_s: f64,
}

impl Poisson {
    pub fn new(requests_per_s: f64, seed: u64) -> Self {
        Self { random: Random::new(seed, ARRIVALS_STREAM), gap_s: 1.0 / requests_per_s, at_s: 0.0 }
    }
}

impl Iterator for Poisson {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        self.at_s += self.random.exponential(self.gap_s);
        Some(self.at_s)
    }
}

/// The time that is measured: it opens after the warm-up, and closes when no more requests are started.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub start: Instant,
    pub opens: Instant,
    /// None: with the last answer.
    pub closes: Option<Instant>,
    pub requests_max: u64,
}

impl Window {
    pub fn new(start: Instant, warm_up: Duration, length: Option<Duration>, requests_max: u64) -> Self {
        let opens = start + warm_up;
        Self { start, opens, closes: length.map(|length| opens + length), requests_max }
    }

    /// Whether request number `index`, counted from 0, may begin at this time.
    pub fn may_start(&self, index: u64, at: Instant) -> bool {
        index < self.requests_max && self.closes.is_none_or(|closes| at < closes)
    }

    pub fn holds(&self, at: Instant) -> bool {
        at >= self.opens && self.closes.is_none_or(|closes| at < closes)
    }

    pub fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.start).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_a_poisson_process_of_the_rate() {
        let times: Vec<f64> = Poisson::new(20.0, 9).take(100_000).collect();
        assert_eq!(times, Poisson::new(20.0, 9).take(100_000).collect::<Vec<_>>());
        assert_ne!(times[0], Poisson::new(20.0, 10).next().unwrap());
        assert!(times.is_sorted());
        assert!((times[99_999] - 5000.0).abs() < 50.0, "{}", times[99_999]);
        // Counts per second: mean and variance of a Poisson distribution are equal.
        let mut counts = vec![0f64; 4900];
        times.iter().filter(|t| **t < 4900.0).for_each(|t| counts[*t as usize] += 1.0);
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / counts.len() as f64;
        assert!((mean - 20.0).abs() < 0.3 && (variance - 20.0).abs() < 1.5, "{mean} {variance}");
    }

    #[test]
    fn a_window_opens_after_the_warm_up_and_closes_after_its_length() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let check = |window: &Window, s, index, may_start, holds| {
            assert_eq!((window.may_start(index, at(s)), window.holds(at(s))), (may_start, holds), "{s} {index}");
        };
        let timed = Window::new(start, Duration::from_secs(5), Some(Duration::from_secs(10)), u64::MAX);
        check(&timed, 0, 0, true, false);
        check(&timed, 5, 99, true, true);
        check(&timed, 14, 99, true, true);
        check(&timed, 15, 99, false, false);
        let counted = Window::new(start, Duration::ZERO, None, 3);
        check(&counted, 1000, 2, true, true);
        check(&counted, 1000, 3, false, true);
    }
}
