//! The load generator. `run` sends a workload to a server by gRPC or HTTP and measures what users feel; `abuse` behaves
//! badly and checks that the server stands; `plot` draws.
//!
//! It knows a server by its interfaces alone, and must know nothing of the crates behind them. Start with `driver.rs`;
//! `workload.rs` says what is asked, `record.rs` and `summary.rs` what is measured.

#![forbid(unsafe_code)]

mod abuse;
mod cli;
mod driver;
mod plot;
mod process;
mod random;
mod record;
mod run;
mod schedule;
mod summary;
mod target;
mod verify;
mod workload;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use cli::{Cli, Command, PlotArgs};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: what it computes is taken from the server on the same machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match (cli.command, runtime) {
        (Command::Plot(args), _) => plot_all(&args),
        (_, Err(error)) => Err(format!("cannot start: {error}")),
        (Command::Run(args), Ok(runtime)) => runtime.block_on(run::run(&args)),
        (Command::Abuse(args), Ok(runtime)) => runtime.block_on(abuse::run(&args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("lingqu-loadgen: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn plot_all(args: &PlotArgs) -> Result<(), String> {
    let mut summaries: Vec<Value> = Vec::new();
    for path in &args.summaries {
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| named(&e))?;
        summaries.push(serde_json::from_str(&text).map_err(|e| named(&e))?);
    }
    let prefix = args.out.display();
    if let Some(folder) = args.out.parent() {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    for (name, chart) in plot::charts(&args.title, &summaries) {
        if chart.series.is_empty() {
            continue;
        }
        let path = format!("{prefix}-{name}");
        std::fs::write(&path, chart.to_svg()).map_err(|e| format!("{path}: {e}"))?;
        println!("{path}");
    }
    Ok(())
}
