//! The conformance suite on the emulator, at both warps, under several schedules, with and without matrix units,
//! against the reference backend.

use lingqu_backend::conformance::{Options, run};
use lingqu_backend_gpu::{Emulation, Environment, GpuBackend, GpuConfig, MatrixUnits, Row, Schedule};
use lingqu_backend_reference::ReferenceBackend;

/// A kernel cache of this build: tests leave nothing in the user's.
fn environment() -> Environment {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    Environment { kernel_cache: Some(folder), ..Environment::read() }
}

fn check(warp: usize, schedule: Schedule, matrix_units: MatrixUnits, seed: u64) {
    let emulation = Emulation { warp, schedule, ..Emulation::default() };
    let config = GpuConfig { emulation, environment: environment(), matrix_units, ..GpuConfig::of(Row::Emu) };
    let subject = match GpuBackend::new(&config) {
        Ok(subject) => subject,
        Err(error) if error.to_string().contains("can be opened") => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    let options = Options { seed, cases_per_op: 2 };
    let report = run(&subject, &ReferenceBackend::new(), &options);
    println!("{report}");
    assert!(report.passed(), "{report}");
}

#[test]
fn warp_32_forward() {
    check(32, Schedule::Forward, MatrixUnits::Checked, 1);
}

#[test]
fn warp_32_shuffled() {
    check(32, Schedule::Shuffled(7), MatrixUnits::Off, 2);
}

#[test]
fn warp_64_reverse() {
    check(64, Schedule::Reverse, MatrixUnits::Off, 3);
}

#[test]
fn warp_64_shuffled() {
    check(64, Schedule::Shuffled(11), MatrixUnits::Checked, 4);
}
