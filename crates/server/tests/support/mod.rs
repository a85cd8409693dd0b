//! Running the binary, and the golden models it is run on.

#![allow(dead_code)] // each test file uses a part

pub mod server;
pub mod worker;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The binary under test. `scripts/failures.sh` names an optimised one.
pub fn binary() -> String {
    std::env::var("LINGQU_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_lingqu").to_owned())
}

/// How a run of the binary ended.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn lingqu(args: &[&str]) -> Run {
    lingqu_with_input(args, "")
}

pub fn lingqu_with_input(args: &[&str], input: &str) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lingqu"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that fails early does not read its input.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("the binary ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    let code = output.status.code().expect("the binary is not killed");
    Run { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/models")
}

/// Path of a golden model, and what it should say.
pub fn golden(model: &str, expected: &str) -> (String, Value) {
    let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let expected = serde_json::from_str(&read(golden_folder().join(expected))).expect("a golden file is JSON");
    (golden_folder().join(model).to_str().expect("a UTF-8 path").to_string(), expected)
}
