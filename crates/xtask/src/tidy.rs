//! Lengths, crate openings, and unsafe code that gives its reason.

use std::path::Path;
use std::process::Command;

use crate::source::{blank, functions};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 120;

/// A line in a file that lifts the length limits there, for straight-line kernels and forwards; it names the reason.
const EXEMPTION: &str = "// tidy: straight-line";

/// Crates that may hold unsafe code. Every other one forbids it.
const UNSAFE_CRATES: [&str; 6] =
    ["backend-cpu", "backend-gpu", "backend-reference", "checkpoint", "fabric-mpi", "fabric-nccl"];

pub fn check(root: &Path) -> Result<Vec<String>, String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("git ls-files: {e}"))?;
    let mut problems = Vec::new();
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut files = listing.lines().filter(|f| root.join(f).exists()).peekable();
    if files.peek().is_none() {
        return Err("git lists no source file".into());
    }
    for file in files {
        let source = std::fs::read_to_string(root.join(file)).map_err(|e| format!("{file}: {e}"))?;
        problems.extend(file_problems(file, &source));
    }
    Ok(problems)
}

fn file_problems(file: &str, source: &str) -> Vec<String> {
    let code = blank(source);
    let lines: Vec<&str> = source.lines().collect();
    let mut problems = Vec::new();
    let mut report = |line: usize, what: String| problems.push(format!("{file}:{}: {what}", line + 1));
    if !lines.iter().any(|l| l.trim_start().starts_with(EXEMPTION)) {
        if lines.len() > FILE_LINES_MAX {
            report(0, format!("{} lines, at most {FILE_LINES_MAX}", lines.len()));
        }
        for f in functions(&code).iter().filter(|f| f.lines > FUNCTION_LINES_MAX) {
            report(f.line, format!("fn {} has {} lines, at most {FUNCTION_LINES_MAX}", f.name, f.lines));
        }
    }
    for (i, line) in lines.iter().enumerate() {
        // Wide (Chinese) characters take two columns.
        let columns: usize = line.chars().map(|c| if c >= '\u{2e80}' { 2 } else { 1 }).sum();
        if columns > COLUMNS_MAX {
            report(i, format!("{columns} columns, at most {COLUMNS_MAX}"));
        }
    }
    for (i, line) in code.lines().enumerate() {
        let opens = line.contains("unsafe {") || line.contains("unsafe impl");
        let explained = (i.saturating_sub(8)..=i).any(|n| lines[n].contains("SAFETY"));
        if opens && !explained {
            report(i, "unsafe without a SAFETY comment above it".into());
        }
    }
    if file.ends_with("src/lib.rs") || file.ends_with("src/main.rs") {
        if !source.starts_with("//!") {
            report(0, "a crate opens with //! (its purpose, what it must not know)".into());
        }
        let is_free = !UNSAFE_CRATES.iter().any(|c| file.starts_with(&format!("crates/{c}/")));
        if is_free && !source.contains("#![forbid(unsafe_code)]") {
            report(0, "this crate must forbid unsafe code".into());
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_is_reported() {
        let check = |file: &str, source: &str, says: &str| {
            let problems = file_problems(file, source);
            assert!(problems.iter().any(|p| p.contains(says)), "{says}: {problems:?}");
        };
        check("a.rs", &"\n".repeat(501), "501 lines");
        check("a.rs", &format!("fn f() {{{}}}", "\n".repeat(70)), "fn f has 71 lines");
        check("a.rs", &"x".repeat(121), "121 columns");
        check("a.rs", &format!("// {}", "字".repeat(59)), "121 columns");
        check("a.rs", "let x = unsafe { 1 };", "SAFETY");
        check("crates/kv/src/lib.rs", "//! Doc.\n", "forbid unsafe");
        check("crates/checkpoint/src/lib.rs", "mod a;\n", "opens with //!");
        let kernel = format!("// tidy: straight-line kernel\nfn f() {{{}}}", "\n".repeat(600));
        assert_eq!(file_problems("a.rs", &kernel), Vec::<String>::new());
        assert_eq!(file_problems("crates/checkpoint/src/lib.rs", "//! Doc.\n"), Vec::<String>::new());
    }
}
