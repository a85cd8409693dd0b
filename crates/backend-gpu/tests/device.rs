//! The conformance suite on a real device: `LINGQU_TEST_DEVICE=cuda cargo test -p lingqu-backend-gpu --test device`.

use lingqu_backend::conformance::{Options, run};
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_backend_gpu::{GpuBackend, GpuConfig, Row};

#[test]
fn conformance_on_the_device_asked_for() {
    let Ok(asked) = std::env::var("LINGQU_TEST_DEVICE") else {
        return println!("skipped: no LINGQU_TEST_DEVICE (cuda or dcu)");
    };
    let row = Row::ALL.into_iter().find(|row| row.name() == asked).expect("LINGQU_TEST_DEVICE is cuda, dcu or emu");
    let subject = GpuBackend::new(&GpuConfig::of(row)).expect("the device that was asked for");
    let oracle = CpuBackend::new(CpuConfig::default()).expect("the cpu");
    for seed in 1..=4 {
        let report = run(&subject, &oracle, &Options { seed, cases_per_op: 4 });
        assert!(report.passed(), "{report}");
    }
}
