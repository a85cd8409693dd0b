//! Imports go strictly down a floor, never sideways; only the binary names a concrete backend.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Floor of every crate, without the `lingqu-` prefix. The binary is `lingqu` itself.
const FLOORS: [(&str, u32); 29] = [
    ("types", 0),
    ("tensor", 0),
    ("proto", 0),
    ("backend", 1),
    ("kv", 1),
    ("fabric", 1),
    ("placement", 1),
    ("membership", 1),
    ("sampler", 1),
    ("tokenizer", 1),
    ("checkpoint", 1),
    ("backend-reference", 2),
    ("backend-cpu", 2),
    ("backend-gpu", 2),
    ("model", 2),
    ("scheduler", 2),
    ("grammar", 2),
    ("cluster", 2),
    ("fabric-mpi", 2),
    ("fabric-nccl", 2),
    ("engine", 3),
    ("plan", 3),
    ("serving", 4),
    ("grpc", 5),
    ("http", 5),
    ("governance", 5),
    ("lingqu", 6),
    ("testkit", DEV),
    ("loadgen", DEV),
];

/// Crates for development: they may import anything, and only dev-dependencies may import them.
const DEV: u32 = 100;

pub fn check(root: &Path) -> Result<Vec<String>, String> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata = serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    Ok(problems(&metadata))
}

fn problems(metadata: &Value) -> Vec<String> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let mut problems = Vec::new();
    for package in list(&metadata["packages"]) {
        let name = short(&package["name"]);
        if name == "xtask" {
            continue;
        }
        let Some(floor) = floor(&name) else {
            problems.push(format!("{name}: has no floor in xtask/src/layers.rs"));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            // Crates from a registry may bear the names of our rooms.
            let is_ours = dependency["source"].is_null();
            let is_dev = dependency["kind"] == "dev";
            let on = short(&dependency["name"]);
            let Some(below) = self::floor(&on).filter(|_| is_ours && !is_dev && floor != DEV) else { continue };
            let implements_seam = name == "cluster" && on == "backend";
            if below >= floor && !implements_seam {
                problems.push(format!("{name} (floor {floor}) imports {on} (floor {below})"));
            }
            if on.starts_with("backend-") && name != "lingqu" {
                problems.push(format!("{name} names the concrete backend {on}: only the binary may"));
            }
        }
    }
    problems
}

fn short(name: &Value) -> String {
    let name = name.as_str().unwrap_or_default();
    name.strip_prefix("lingqu-").unwrap_or(name).to_string()
}

fn floor(name: &str) -> Option<u32> {
    FLOORS.iter().find(|(n, _)| *n == name).map(|&(_, floor)| floor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_downward_imports_pass() {
        let check = |from: &str, on: &str, kind: Option<&str>, ok: bool| {
            let metadata = json!({"packages": [{"name": from, "dependencies": [{"name": on, "kind": kind}]}]});
            assert_eq!(problems(&metadata).is_empty(), ok, "{from} -> {on}: {:?}", problems(&metadata));
        };
        check("lingqu-model", "lingqu-backend", None, true);
        check("lingqu-backend", "lingqu-model", None, false);
        check("lingqu-kv", "lingqu-backend", None, false);
        check("lingqu-model", "lingqu-backend-cpu", None, false);
        check("lingqu-model", "lingqu-backend-cpu", Some("dev"), true);
        check("lingqu-engine", "lingqu-testkit", None, false);
        check("lingqu", "lingqu-backend-cpu", None, true);
        check("lingqu-engine", "lingqu-backend-cpu", None, false);
        check("lingqu-novelty", "serde", None, false);
    }
}
