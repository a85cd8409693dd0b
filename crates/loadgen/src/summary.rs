//! From records to figures: percentiles, throughput, goodput.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use crate::record::Record;
use crate::target::FailureKind;

/// Points of the distributions that plots draw.
const CDF_POINTS: usize = 101;

/// The value at or below which a share `p` of the values lies: the nearest rank, `ceil(p n)`, of the sorted values.
/// Sorts them. None of none.
pub fn percentile(values: &mut [f64], p: f64) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (p * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

/// What a goodput counts: requests answered within these.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Bounds {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
}

impl Bounds {
    fn hold(&self, ttft_ms: f64, tpot_ms: Option<f64>) -> bool {
        let within = |value: f64, bound: Option<f64>| bound.is_none_or(|bound| value <= bound);
        within(ttft_ms, self.ttft_ms) && tpot_ms.is_none_or(|tpot| within(tpot, self.tpot_ms))
    }
}

/// The figures of a run so far. Keeps a few numbers of each measured request, no text.
#[derive(Debug, Default)]
pub struct Tally {
    bounds: Bounds,
    ttft_ms: Vec<f64>,
    tpot_ms: Vec<f64>,
    gap_p99_ms: Vec<f64>,
    e2e_ms: Vec<f64>,
    errors: BTreeMap<FailureKind, u64>,
    examples: BTreeMap<FailureKind, String>,
    finishes: BTreeMap<String, u64>,
    measured: u64,
    answered: u64,
    good: u64,
    good_in_window: u64,
    warm_up: u64,
    ended_in_window: u64,
    tokens_in_window: f64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
}

impl Tally {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    pub fn add(&mut self, record: &Record) {
        self.tokens_in_window += record.tokens_in_window;
        let is_good =
            record.error.is_none() && record.ttft_ms.is_some_and(|ttft| self.bounds.hold(ttft, record.tpot_ms));
        if record.ended_in_window && record.error.is_none() {
            self.ended_in_window += 1;
            self.good_in_window += u64::from(is_good);
        }
        if !record.is_measured {
            self.warm_up += 1;
            return;
        }
        self.measured += 1;
        if let Some(error) = &record.error {
            *self.errors.entry(error.kind).or_default() += 1;
            self.examples.entry(error.kind).or_insert_with(|| error.message.clone());
            return;
        }
        self.answered += 1;
        self.prompt_tokens += u64::from(record.prompt_tokens);
        self.cached_tokens += u64::from(record.cached_tokens.unwrap_or(0));
        self.completion_tokens += u64::from(record.completion_tokens);
        *self.finishes.entry(record.finish.clone().unwrap_or_default()).or_default() += 1;
        self.ttft_ms.extend(record.ttft_ms);
        self.tpot_ms.extend(record.tpot_ms);
        self.gap_p99_ms.extend(record.gap_p99_ms);
        self.e2e_ms.extend(record.e2e_ms);
        self.good += u64::from(is_good);
    }

    pub fn answered(&self) -> u64 {
        self.answered
    }

    pub fn failed(&self) -> u64 {
        self.measured - self.answered
    }

    /// The figures, of a window of so many seconds.
    pub fn figures(&mut self, window_s: f64) -> Value {
        let per_s = |count: f64| if window_s > 0.0 { count / window_s } else { 0.0 };
        let cdf = |values: &mut [f64]| -> Vec<f64> {
            let at = |i: usize| percentile(values, i as f64 / (CDF_POINTS - 1) as f64);
            (0..CDF_POINTS).filter_map(at).collect()
        };
        json!({
            "window_s": window_s,
            "requests": {"warm_up": self.warm_up, "measured": self.measured, "answered": self.answered},
            "errors": by_name(&self.errors),
            "error_examples": by_name(&self.examples),
            "finishes": self.finishes,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "output_tokens_per_s": per_s(self.tokens_in_window),
            "requests_per_s": per_s(self.ended_in_window as f64),
            "goodput": {
                "bounds": self.bounds,
                "requests_per_s": per_s(self.good_in_window as f64),
                "share": if self.measured > 0 { self.good as f64 / self.measured as f64 } else { 0.0 },
            },
            "ttft_ms": distribution(&mut self.ttft_ms),
            "tpot_ms": distribution(&mut self.tpot_ms),
            "gap_p99_ms": distribution(&mut self.gap_p99_ms),
            "e2e_ms": distribution(&mut self.e2e_ms),
            "cdf": {"ttft_ms": cdf(&mut self.ttft_ms), "tpot_ms": cdf(&mut self.tpot_ms)},
        })
    }
}

fn by_name<T: Serialize>(map: &BTreeMap<FailureKind, T>) -> Value {
    let name = |kind: &FailureKind| json!(kind).as_str().unwrap_or_default().to_string();
    map.iter().map(|(kind, value)| (name(kind), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

fn distribution(values: &mut [f64]) -> Value {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    json!({
        "mean": if values.is_empty() { None } else { Some(mean) },
        "p50": percentile(values, 0.5),
        "p95": percentile(values, 0.95),
        "p99": percentile(values, 0.99),
        "max": percentile(values, 1.0),
    })
}

/// The figures as a table for people.
pub fn table(summary: &Value) -> String {
    let mut text = String::new();
    let requests = &summary["requests"];
    let _ = writeln!(
        text,
        "{} measured, {} answered, {} before the window; {:.1} s",
        requests["measured"],
        requests["answered"],
        requests["warm_up"],
        summary["window_s"].as_f64().unwrap_or(0.0)
    );
    for (kind, count) in summary["errors"].as_object().into_iter().flatten() {
        let example = summary["error_examples"][kind].as_str().unwrap_or_default();
        let _ = writeln!(text, "  {kind}: {count}, as {example}");
    }
    let number = |value: &Value| value.as_f64().map_or("-".into(), |v| format!("{v:.1}"));
    let _ = writeln!(
        text,
        "output {} tokens/s, {} requests/s; goodput {} requests/s ({}% of the measured)",
        number(&summary["output_tokens_per_s"]),
        summary["requests_per_s"].as_f64().map_or("-".into(), |v| format!("{v:.2}")),
        summary["goodput"]["requests_per_s"].as_f64().map_or("-".into(), |v| format!("{v:.2}")),
        number(&(100.0 * summary["goodput"]["share"].as_f64().unwrap_or(0.0)).into()),
    );
    let _ = writeln!(text, "{:16}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "mean", "p50", "p95", "p99", "max");
    let rows = [("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("gap p99", "gap_p99_ms"), ("end to end", "e2e_ms")];
    for (title, name) in rows {
        let cells = ["mean", "p50", "p95", "p99", "max"].map(|p| format!("{:>10}", number(&summary[name][p])));
        let _ = writeln!(text, "{title:16}{}", cells.concat());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Failure;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let check = |values: &[f64], p: f64, expected: Option<f64>| {
            assert_eq!(percentile(&mut values.to_vec(), p), expected, "{p} of {values:?}");
        };
        check(&[], 0.5, None);
        check(&[7.0], 0.0, Some(7.0));
        check(&[7.0], 1.0, Some(7.0));
        check(&[40.0, 10.0, 30.0, 20.0], 0.5, Some(20.0));
        check(&[40.0, 10.0, 30.0, 20.0], 0.51, Some(30.0));
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        check(&hundred, 0.95, Some(95.0));
        check(&hundred, 0.99, Some(99.0));
        check(&hundred, 1.0, Some(100.0));
    }

    fn record(ttft_ms: f64, tpot_ms: f64) -> Record {
        Record {
            request: 0,
            job: 0,
            is_measured: true,
            due_s: 0.0,
            sent_s: 0.0,
            ttft_ms: Some(ttft_ms),
            tpot_ms: Some(tpot_ms),
            gap_p99_ms: None,
            e2e_ms: Some(ttft_ms + 10.0 * tpot_ms),
            prompt_tokens: 3,
            cached_tokens: None,
            completion_tokens: 11,
            tokens_in_window: 11.0,
            ended_in_window: true,
            finish: Some("length".into()),
            error: None,
        }
    }

    #[test]
    fn goodput_counts_what_keeps_its_bounds() {
        let mut tally = Tally::new(Bounds { ttft_ms: Some(100.0), tpot_ms: Some(20.0) });
        tally.add(&record(90.0, 10.0));
        tally.add(&record(110.0, 10.0));
        tally.add(&record(90.0, 30.0));
        let error = Some(Failure::new(FailureKind::Refused, "full"));
        tally.add(&Record { error, ..record(1.0, 1.0) });
        tally.add(&Record { is_measured: false, ..record(1.0, 1.0) });
        let figures = tally.figures(2.0);
        assert_eq!(figures["requests"], json!({"warm_up": 1, "measured": 4, "answered": 3}));
        assert_eq!(figures["errors"], json!({"refused": 1}));
        // Rates count what ended in the window, shares what was due in it.
        assert_eq!(figures["goodput"]["requests_per_s"], 1.0);
        assert_eq!(figures["goodput"]["share"], 0.25);
        // Tokens count when they come, whenever their request was due.
        assert_eq!(figures["output_tokens_per_s"], 5.0 * 11.0 / 2.0);
        assert_eq!(figures["ttft_ms"]["p50"], 90.0);
        assert_eq!(figures["cdf"]["ttft_ms"].as_array().unwrap().len(), CDF_POINTS);
        assert!(table(&figures).contains("refused: 1, as full"), "{}", table(&figures));
    }
}
