//! The binary `lingqu`: arguments -> validated config -> wiring -> shutdown.
//!
//! The only crate that names concrete backends (in [`wiring`]) and the only one that prints. Exit status: 0 done,
//! 1 failed, 2 wrong usage; an error is one clear line on stderr.

#![forbid(unsafe_code)]

mod cli;
mod cluster;
mod commands;
#[cfg(test)]
mod deploy;
mod embedded;
mod figures;
mod membership;
mod mpi;
mod scoring;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Serve(args) => commands::serve::run(&args),
        Command::Worker(args) => commands::worker::run(&args),
        Command::Cluster(args) => commands::cluster::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Kernels(args) => commands::kernels::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Tokenize(args) => commands::tokenize::encode(&args),
        Command::Detokenize(args) => commands::tokenize::decode(&args),
    };
    match outcome {
        Ok(()) => {
            mpi::leave();
            ExitCode::SUCCESS
        }
        // The reader of our output went away: nothing is left to say, and nothing went wrong.
        Err(error) if is_broken_pipe(&error) => {
            mpi::leave();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Wrong usage that only shows after parsing, such as a forced instruction set that the machine lacks.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
