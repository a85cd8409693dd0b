//! Seeded failures of real processes: every stream has the tokens of one process, or ends in time with UNAVAILABLE
//! where no copy of an expert is left.
//!
//! A few runs by themselves; `scripts/failures.sh 100` for more, and for the table in `docs/failures.md`. A seed that
//! fails is run alone by `LINGQU_FAILURES_SEED`.

mod plan;
mod processes;
mod run;
mod site;
#[path = "../support/mod.rs"]
mod support;
mod table;

use plan::Plan;
use processes::Folder;
use site::enter;

/// Without further wishes: a restart and another secret, delay and a stop, a garbled frame, and nobody left.
const SEEDS: [u64; 4] = [1, 2, 8, 14];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn seeds() -> Vec<u64> {
    match (number("LINGQU_FAILURES_SEED"), number("LINGQU_FAILURES_RUNS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(runs)) => (0..runs).collect(),
        (None, None) => SEEDS.to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_failures() {
    let Some(site) = enter("streams_outlive_failures") else { return };
    let (folder, mut reports) = (Folder::new(), Vec::new());
    println!("{}", table::heading(&site));
    let expected = run::expected().await;
    for seed in seeds() {
        let plan = Plan::draw(seed);
        if let (true, Err(why)) = (plan.has_etcd(), &site.etcd) {
            println!("seed {seed:3}: skipped: no etcd: {why}");
            continue;
        }
        let report = run::run(&plan, &site, &folder, &expected).await;
        println!("{}", table::line(&plan, &report));
        reports.push(report);
    }
    println!("\n{}", table::table(&reports));
    let failed: Vec<String> = reports
        .iter()
        .flat_map(|r| r.problems.iter().map(move |problem| format!("seed {}: {problem}", r.seed)))
        .collect();
    assert!(failed.is_empty(), "LINGQU_FAILURES_SEED runs one alone:\n{}", failed.join("\n"));
}
