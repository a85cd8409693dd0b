//! The conformance suite passes for the reference, and fails for whatever is broken on purpose.

mod broken;

use lingqu_backend::conformance::{self, Options, Report};
use lingqu_backend_reference::ReferenceBackend;

use broken::{Broken, Fault};

#[test]
fn the_reference_conforms() {
    let reference = ReferenceBackend::new();
    let report = conformance::run(&reference, &reference, &Options { seed: 1, cases_per_op: 3 });
    println!("{report}");
    assert!(report.passed(), "{report}");
}

fn report(fault: Fault) -> Report {
    conformance::run(&Broken::new(fault), &ReferenceBackend::new(), &Options { seed: 2, cases_per_op: 3 })
}

/// Every fault must show in just the op that has it, by the checks named at least.
#[test]
fn faults_are_found() {
    let check = |fault: Fault, op: &str, checks: &[&str]| {
        let report = report(fault);
        let failures = report.failures();
        let is_seen = |check: &&str| failures.iter().any(|line| line.check == *check);
        assert!(checks.iter().all(is_seen), "{fault:?} must fail {checks:?}: {report}");
        assert_eq!(checks.is_empty(), report.passed(), "{fault:?}: {report}");
        assert!(failures.iter().all(|line| line.op.starts_with(op)), "{fault:?}: {report}");
    };
    check(Fault::None, "", &[]);
    check(Fault::RmsNormForgetsEps, "rms_norm", &["values"]);
    check(Fault::LinearDropsOneInput, "linear", &["values"]);
    check(Fault::LinearDependsOnRows, "linear", &["rows"]);
    check(Fault::LinearChangesByCall, "linear", &["parts", "repeat", "rows"]);
    check(Fault::RopePairsWrongly, "rope (half)", &["values"]);
    check(Fault::AddWritesBeside, "add", &["values"]);
    check(Fault::AttentionLooksAhead, "attention", &["chunks", "rows", "values"]);
    check(Fault::AttentionDependsOnChunk, "attention", &["chunks"]);
    check(Fault::FfnSwapsGateAndUp, "ffn", &["values"]);
    check(Fault::FfnDropsOneValue, "ffn", &["values"]);
    check(Fault::RouteIgnoresBias, "route", &["values"]);
    check(Fault::ExpertsRoundOnce, "experts", &["shards"]);
    check(Fault::KvCopyInTurn, "attention", &["copy"]);
    check(Fault::TakesUnlistedFormat, "upload", &["refusal"]);
    check(Fault::LowRankForgetsScale, "", &["values"]);
    check(Fault::LowRankChangesOtherRows, "add_low_rank", &["values"]);
    check(Fault::FfnAdaptedRoundsOtherwise, "ffn_adapted", &["plain"]);
}
