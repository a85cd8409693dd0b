//! Accelerators as a user meets them on a machine that may have none.

mod support;

use support::lingqu;

/// Every row is listed, with its devices or with what is missing.
#[test]
fn devices_lists_every_row() {
    let run = lingqu(&["devices"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for row in ["cpu", "cuda", "dcu", "emu"] {
        assert!(run.stdout.lines().any(|line| line.starts_with(row)), "{row}: {}", run.stdout);
    }
}

/// Without an accelerator `auto` computes on the cpu and says why.
#[test]
fn auto_says_what_it_found() {
    let run = lingqu(&["generate", "--backend", "auto", "--prompt", "x", "--max-tokens", "1"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("lingqu: found "), "{}", run.stderr);
}

#[test]
fn kernels_are_built_for_known_architectures() {
    let run = lingqu(&["kernels", "build", "--arch", "mp_31"]);
    assert!(run.code == 1 && run.stderr.contains("mp_31"), "{}", run.stderr);
    assert_eq!(lingqu(&["kernels", "build"]).code, 2);
}
