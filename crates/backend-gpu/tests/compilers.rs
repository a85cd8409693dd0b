//! Every kernel through the vendors' compilers, where their libraries are at hand: no device is needed.

use lingqu_backend_gpu::{DriverError, Environment, build_kernels};

fn check(arch: &str) {
    check_in("kernels", arch, Environment::read());
}

fn check_in(cache: &str, arch: &str, environment: Environment) {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(cache);
    let environment = Environment { kernel_cache: Some(folder), ..environment };
    match build_kernels(arch, &environment) {
        Ok(built) => assert!(std::fs::metadata(&built.file).unwrap().len() > 10_000, "{built:?}"),
        Err(error @ DriverError::NoLibrary { .. }) => println!("skipped {arch}: {error}"),
        Err(error) => panic!("{arch}: {error}"),
    }
}

#[test]
fn nvrtc() {
    check("sm_90");
}

#[test]
fn hiprtc() {
    check("gfx906");
}

#[test]
#[ignore = "takes minutes: for changes in /kernels"]
fn other_architectures() {
    check("sm_80");
    check("gfx90a");
}

/// The command, where the library is missing.
#[test]
fn hipcc() {
    check_in("kernels-hipcc", "gfx906", Environment { hiprtc: Some("/no/such/library".into()), ..Environment::read() });
}

#[test]
fn an_unknown_architecture_is_named() {
    let error = build_kernels("mp_31", &Environment::default()).unwrap_err();
    assert!(matches!(&error, DriverError::UnknownArch(arch) if arch == "mp_31"), "{error}");
}
