//! The kernels under the address sanitizer: a conformance run over a module built with it, in a process of its own, as
//! the sanitizer's library must be the first that a process loads.

use std::path::PathBuf;
use std::process::Command;

use lingqu_backend::conformance::{Options, run};
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_backend_gpu::{Emulation, Environment, GpuBackend, GpuConfig, Row, Schedule};

/// The sanitizer's library, where the compiler is GCC and brings it.
fn library(cxx: &str) -> Option<PathBuf> {
    let output = Command::new(cxx).arg("-print-file-name=libasan.so").output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_absolute().then_some(path)
}

#[test]
fn kernels_stay_within_their_memory() {
    let Some(library) = library("g++") else {
        return println!("skipped: g++ or its libasan is missing");
    };
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", "under_the_sanitizer", "--ignored", "--nocapture", "--test-threads=1"]);
    // Threads and libraries of the process live to its end, and fibers are on stacks that it does not know.
    child.env("LD_PRELOAD", library).env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0");
    let output = child.output().expect("this test again");
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
#[ignore = "started by the other test, with the sanitizer loaded"]
fn under_the_sanitizer() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let environment = Environment {
        kernel_cache: Some(folder),
        cxx: Some("g++".into()),
        emu_flags: ["-fsanitize=address", "-O1", "-g1"].map(String::from).to_vec(),
        ..Environment::default()
    };
    let emulation = Emulation { warp: 32, schedule: Schedule::Shuffled(3), ..Emulation::default() };
    let config = GpuConfig { emulation, environment, ..GpuConfig::of(Row::Emu) };
    let subject = GpuBackend::new(&config).expect("g++ is there");
    let oracle = CpuBackend::new(CpuConfig::default()).expect("the cpu");
    let report = run(&subject, &oracle, &Options { seed: 5, cases_per_op: 1 });
    assert!(report.passed(), "{report}");
}
