//! The conformance suite at every instruction set of this machine, against the reference backend.

use lingqu_backend::conformance::{Options, run};
use lingqu_backend_cpu::{CpuBackend, CpuConfig, Isa, Precision};
use lingqu_backend_reference::ReferenceBackend;

fn check(isa: Isa, threads: usize, precision: Precision) {
    if !isa.available() {
        return println!("{isa} is not tested: this machine lacks it");
    }
    let subject = CpuBackend::new(CpuConfig { threads, isa: Some(isa), precision, later: false }).unwrap();
    // The portable kernels call a function for each fused product where the build has no such instruction: fewer cases.
    let cases_per_op = if isa == Isa::Portable { 2 } else { 4 };
    let options = Options { seed: 3 + threads as u64, cases_per_op };
    let report = run(&subject, &ReferenceBackend::new(), &options);
    assert!(report.passed(), "{report}");
}

#[test]
fn portable() {
    check(Isa::Portable, 2, Precision::Int8);
}

#[test]
fn avx2() {
    check(Isa::Avx2, 1, Precision::Int16);
}

#[test]
fn avx512() {
    check(Isa::Avx512, 3, Precision::Int8);
}

#[test]
fn amx() {
    check(Isa::Amx, 2, Precision::Int8);
    check(Isa::Amx, 2, Precision::Int16);
}
