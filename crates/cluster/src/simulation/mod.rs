//! The cluster under faults, a thousand times or more: its own code, with simulated time, threads and network.
//!
//! A seed gives the cluster, the faults and the order in which threads run (`plan.rs`, `network.rs`, `turns.rs`); the
//! same seed is the same run, message for message. What must hold is in `run.rs`:
//! - a step has the bits of one process, or fails because for as long as it may wait nobody could have its experts;
//! - it ends within its deadlines, and every thread ends when the cluster does;
//! - no epoch comes twice, and no worker is asked for an expert that it does not have;
//! - when nothing is wrong any more every worker is there again, with all that is its own.
//!
//! `LINGQU_SIMULATION_SEED=7 cargo test -p lingqu-cluster simulation` runs one seed alone, and says what it does;
//! `LINGQU_SIMULATION_RUNS` is the number of runs.

mod network;
mod plan;
mod run;
mod turns;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plan::Plan;
use run::{Bench, Outcome, run};

const RUNS: u64 = 2_000;
/// Then there is enough to look at.
const FAILURES_MAX: usize = 5;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn runs_keep_the_bits_or_fail_in_time() {
    if let Some(seed) = number("LINGQU_SIMULATION_SEED") {
        println!("{:#?}", Plan::draw(seed));
        println!(
            "{:#?}",
            run(seed, &Arc::new(Bench::new())).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"))
        );
        return;
    }
    let runs = number("LINGQU_SIMULATION_RUNS").unwrap_or(RUNS);
    let next = AtomicU64::new(0);
    let (sum, failures) = (Mutex::new(Outcome::default()), Mutex::new(Vec::new()));
    let work = || {
        let bench = Arc::new(Bench::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs || failures.lock().expect("no panic").len() >= FAILURES_MAX {
                return;
            }
            match run(seed, &bench) {
                Ok(outcome) => add(&mut sum.lock().expect("no panic"), &outcome),
                Err(problem) => failures.lock().expect("no panic").push(format!("seed {seed}: {problem}")),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "LINGQU_SIMULATION_SEED runs one alone:\n{}", failures.join("\n"));
    let sum = sum.into_inner().expect("no panic");
    println!("{runs} runs: {sum:?}");
    // What was to be seen was seen.
    let some = runs / 20;
    assert!(sum.fenced > some && sum.adopted > some && sum.unavailable > some / 2, "{sum:?}");
    assert!(sum.steps - sum.unavailable > 4 * runs, "{sum:?}");
}

fn add(sum: &mut Outcome, one: &Outcome) {
    sum.messages += one.messages;
    sum.steps += one.steps;
    sum.unavailable += one.unavailable;
    sum.fenced += one.fenced;
    sum.adopted += one.adopted;
    sum.longest = sum.longest.max(one.longest);
    sum.time += one.time;
}

#[test]
fn a_seed_is_one_run() {
    let bench = Arc::new(Bench::new());
    for seed in 0..20 {
        let [first, second] =
            [0, 1].map(|_| run(seed, &bench).unwrap_or_else(|problem| panic!("seed {seed}: {problem}")));
        assert_eq!(first, second, "seed {seed}");
        assert!(first.messages > 0 && first.time > Duration::ZERO);
    }
}
