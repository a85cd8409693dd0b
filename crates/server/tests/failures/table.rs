//! What runs came to, for people.

use std::fmt::Write;
use std::time::Duration;

use crate::plan::{Event, FAULTS, Plan};
use crate::run::Report;
use crate::site::Site;

pub fn heading(site: &Site) -> String {
    let place = match &site.namespaces {
        Ok(()) => "every worker in a network namespace of its own, joined by veth".to_owned(),
        Err(why) => format!("all on loopback; no network namespaces: {why}"),
    };
    let packets = match &site.netem {
        Ok(()) => "delayed and dropped by netem".to_owned(),
        Err(why) => format!("delayed and dropped by a proxy; no netem: {why}"),
    };
    format!("{place}\npackets are {packets}")
}

pub fn line(plan: &Plan, report: &Report) -> String {
    let event = |event: &Event| match event.fault {
        fault if fault.is_of_all() || fault.is_of_etcd() => fault.to_string(),
        fault => format!("worker {}: {fault}", event.worker),
    };
    let events: Vec<String> = plan.events.iter().map(event).collect();
    let mut line = format!(
        "seed {:3}: {} workers, redundancy {}, {} streams; {}: {} exact, {} unavailable, recovery {} ms",
        plan.seed,
        plan.workers,
        plan.redundancy,
        plan.streams.len(),
        events.join(", "),
        report.exact,
        report.unavailable,
        report.recovery.as_millis(),
    );
    if let Some(back) = report.back {
        let _ = write!(line, ", served again {} ms after the workers were back", back.as_millis());
    }
    for problem in &report.problems {
        let _ = write!(line, "\n  FAILED: {problem}");
    }
    line
}

/// The value below which `percent` of `sorted` lie.
fn percentile(sorted: &[Duration], percent: usize) -> u128 {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).map_or(0, Duration::as_millis)
}

fn cells(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    [50, 95, 100].map(|percent| percentile(&times, percent).to_string()).join(" | ")
}

/// Markdown, by the first fault of each run.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::from(
        "| first fault | runs | with others | exact | UNAVAILABLE | other | recovery ms: median | 95% | most |\n",
    );
    text.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for fault in FAULTS {
        let of: Vec<&Report> = reports.iter().filter(|report| report.faults[0] == fault).collect();
        let sum = |count: fn(&Report) -> usize| of.iter().map(|report| count(report)).sum::<usize>();
        let (more, exact) = (sum(|r| usize::from(r.faults.len() > 1)), sum(|r| r.exact));
        let (unavailable, other) = (sum(|r| r.unavailable), sum(|r| r.problems.len()));
        let times = cells(of.iter().map(|report| report.recovery).collect());
        let _ = writeln!(text, "| {fault} | {} | {more} | {exact} | {unavailable} | {other} | {times} |", of.len());
    }
    let back: Vec<Duration> = reports.iter().filter_map(|report| report.back).collect();
    let _ = write!(text, "\nServed again after all workers were gone and are back, ms (median, p95, most): ");
    let _ = writeln!(text, "{}", cells(back).replace(" | ", ", "));
    text
}
