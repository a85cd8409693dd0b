//! What `/deploy` says, held against what the binary takes: every command line goes through the real parser, every
//! cluster.toml through the real reader, every Kubernetes object through the schema of its kind; and ports, names, ids
//! and times agree with each other.

mod kubernetes;
mod processes;
mod schema;
mod yaml;

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::cli::{Cli, Command, ServeArgs};
use crate::commands::worker::WorkerArgs;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The command that these words, after `lingqu`, ask for.
fn command(words: &[String]) -> Command {
    let all = std::iter::once("lingqu").chain(words.iter().map(String::as_str));
    Cli::try_parse_from(all).unwrap_or_else(|e| panic!("lingqu {}: {e}", words.join(" "))).command
}

/// The value of an option, written as one word or as two.
fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let together = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let at = words.iter().position(|word| word == name);
    together.or_else(|| at.and_then(|at| words.get(at + 1)).map(String::as_str))
}

fn serve(words: &[String]) -> ServeArgs {
    match command(words) {
        Command::Serve(args) => args,
        other => panic!("not serve: {other:?}"),
    }
}

fn worker(words: &[String]) -> WorkerArgs {
    match command(words) {
        Command::Worker(args) => args,
        other => panic!("not worker: {other:?}"),
    }
}
