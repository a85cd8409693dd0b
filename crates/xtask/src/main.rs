//! Checks of the house, run as `cargo xtask NAME`. Knows the folders and floors, not the code's meaning.

#![forbid(unsafe_code)]

mod layers;
mod source;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask <check>

  tidy     lengths of files, functions and lines; crate openings; unsafe without a reason
  layers   imports go strictly down the floors";

/// Looks at the workspace in a folder; every string is one problem found.
type Check = fn(&Path) -> Result<Vec<String>, String>;

fn main() -> ExitCode {
    let checks: [(&str, Check); 2] = [("tidy", tidy::check), ("layers", layers::check)];
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let Some((name, check)) = checks.iter().find(|(name, _)| *name == wanted) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match check(&root()) {
        Ok(problems) if problems.is_empty() => {
            println!("{name}: ok");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            problems.iter().for_each(|p| eprintln!("{p}"));
            eprintln!("{name}: {} problems", problems.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/xtask has two parents").to_path_buf()
}
