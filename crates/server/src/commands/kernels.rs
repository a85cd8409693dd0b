//! `lingqu kernels build`: fills the kernel cache ahead of time.

use std::io::Write;

use anyhow::{Context, Result};
use lingqu_backend_gpu::{Environment, build_kernels};

use crate::cli::{KernelsArgs, KernelsCommand};

pub fn run(args: &KernelsArgs) -> Result<()> {
    let KernelsCommand::Build(args) = &args.command;
    let environment = Environment::read();
    for arch in &args.arch {
        let built = build_kernels(arch, &environment).with_context(|| format!("--arch {arch}"))?;
        let how = if built.was_cached { "was there" } else { "compiled" };
        writeln!(std::io::stdout(), "{arch:<12} {how:<9} {}", built.file.display())?;
    }
    Ok(())
}
