//! Checks of the house and files to measure with, run as `cargo xtask NAME`. The checks know the folders and floors,
//! not the code's meaning; `synth.rs` knows llama.cpp's file layout, no backend and no kernel.

#![forbid(unsafe_code)]

mod layers;
mod source;
mod synth;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask <command>

  tidy     lengths of files, functions and lines; crate openings; unsafe without a reason
  layers   imports go strictly down the floors
  synth    writes a GGUF file with a real model's shape and random weights; `synth` alone lists its arguments";

/// Looks at the workspace in a folder; every string is one problem found.
type Check = fn(&Path) -> Result<Vec<String>, String>;

fn main() -> ExitCode {
    let checks: [(&str, Check); 2] = [("tidy", tidy::check), ("layers", layers::check)];
    let wanted = std::env::args().nth(1).unwrap_or_default();
    if wanted == "synth" {
        return match synth::run(std::env::args().skip(2)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => {
                eprintln!("{problem}");
                ExitCode::FAILURE
            }
        };
    }
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
