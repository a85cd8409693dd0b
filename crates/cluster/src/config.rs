//! `cluster.toml`: the one file that all processes of a cluster read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::{WireFormat, WorkerId};

/// Longest file: a cluster has hundreds of workers, a load table 61 * 256 numbers.
const FILE_BYTES_MAX: u64 = 4 << 20;
const WORKERS_MAX: usize = 1024;
const MILLISECONDS_MAX: u64 = 24 * 3600 * 1000;

#[derive(Debug, Error)]
#[error("{file}: {problem}")]
pub struct ConfigError {
    pub file: String,
    pub problem: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    #[serde(rename = "worker")]
    pub workers: Vec<WorkerConfig>,
    /// Of the secret that all processes share; relative to the configuration file.
    pub secret_file: PathBuf,
    /// How rows cross.
    #[serde(default)]
    pub wire: WireFormat,
    #[serde(default)]
    pub placement: PlacementConfig,
    #[serde(default)]
    pub deadlines: Deadlines,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    pub id: u32,
    /// `host:port`
    pub address: String,
    /// What it has for experts; unless said, enough.
    pub memory_gib: Option<f64>,
    /// Relative to the others.
    #[serde(default = "one")]
    pub speed: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementConfig {
    /// Copies beyond the first, as a share of the experts: 1.0 gives every expert a second copy.
    pub redundancy: f64,
    /// JSON `[layers][experts]` of measured rows; relative to the configuration file.
    pub load_file: Option<PathBuf>,
    /// Whether workers that are left load the experts of those that are gone.
    pub adopt: bool,
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self { redundancy: 0.0, load_file: None, adopt: true }
    }
}

/// How long each thing may take, in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// A worker's answer to a step; after that it is fenced.
    pub step_ms: u64,
    /// More of that for each row that each expert gets.
    pub row_ms: u64,
    /// A call and its handshake.
    pub connect_ms: u64,
    /// Experts of one layer loaded by a worker.
    pub load_ms: u64,
    /// Between looks at a worker that has nothing to do; it answers before the next one.
    pub heartbeat_ms: u64,
    /// How long a step waits for somebody to have an expert that nobody has, from when that was first found.
    pub recovery_ms: u64,
    /// How long a start waits for all workers; then it goes on with those that are there.
    pub start_ms: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            step_ms: 2000,
            row_ms: 20,
            connect_ms: 2000,
            load_ms: 120_000,
            heartbeat_ms: 1000,
            recovery_ms: 10_000,
            start_ms: 60_000,
        }
    }
}

impl Deadlines {
    /// For a message of `rows` rows.
    pub fn step(&self, rows: usize) -> Duration {
        Duration::from_millis(self.step_ms.saturating_add(self.row_ms.saturating_mul(rows as u64)))
    }
}

impl ClusterConfig {
    /// Reads and checks the file; paths in it become absolute or relative to this process.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let problem = |problem: String| ConfigError { file: path.display().to_string(), problem };
        let text = read_bounded(path).map_err(problem)?;
        let mut config = Self::parse(&text).map_err(problem)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.secret_file = folder.join(&config.secret_file);
        config.placement.load_file = config.placement.load_file.map(|file| folder.join(file));
        Ok(config)
    }

    /// What is wrong names the field.
    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        if config.workers.is_empty() || config.workers.len() > WORKERS_MAX {
            return Err(format!("worker: {} are not 1 to {WORKERS_MAX}", config.workers.len()));
        }
        for (at, worker) in config.workers.iter().enumerate() {
            if config.workers[..at].iter().any(|other| other.id == worker.id) {
                return Err(format!("worker: two have the id {}", worker.id));
            }
            let is_positive = |value: f64| value.is_finite() && value > 0.0;
            if !is_positive(worker.speed) || worker.memory_gib.is_some_and(|gib| !is_positive(gib)) {
                return Err(format!("worker {}: speed and memory_gib are numbers above 0", worker.id));
            }
        }
        let redundancy = config.placement.redundancy;
        if !(redundancy.is_finite() && redundancy >= 0.0) {
            return Err(format!("placement.redundancy: {redundancy} is not a number from 0 on"));
        }
        let Deadlines { step_ms, row_ms, connect_ms, load_ms, heartbeat_ms, recovery_ms, start_ms } = config.deadlines;
        for (name, value, least) in [
            ("step_ms", step_ms, 1),
            ("row_ms", row_ms, 0),
            ("connect_ms", connect_ms, 1),
            ("load_ms", load_ms, 1),
            ("heartbeat_ms", heartbeat_ms, 1),
            ("recovery_ms", recovery_ms, 0),
            ("start_ms", start_ms, 1),
        ] {
            if !(least..=MILLISECONDS_MAX).contains(&value) {
                return Err(format!("deadlines.{name}: {value} is not {least} to {MILLISECONDS_MAX}"));
            }
        }
        Ok(config)
    }

    pub fn worker(&self, id: WorkerId) -> Option<&WorkerConfig> {
        self.workers.iter().find(|worker| worker.id == id.0)
    }

    /// The measured load, if a file of it is named.
    pub fn load(&self) -> Result<Option<Vec<Vec<u64>>>, ConfigError> {
        self.placement.load_file.as_deref().map(read_load).transpose()
    }
}

/// Rows that each expert got, `[layers][experts]`, from a file of JSON.
pub fn read_load(path: &Path) -> Result<Vec<Vec<u64>>, ConfigError> {
    let problem = |problem: String| ConfigError { file: path.display().to_string(), problem };
    let text = read_bounded(path).map_err(problem)?;
    serde_json::from_str(&text).map_err(|e| problem(format!("not a list of lists of numbers: {e}")))
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let cannot = |e: std::io::Error| format!("cannot be read: {e}");
    let bytes = std::fs::metadata(path).map_err(cannot)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!("{bytes} bytes are more than {FILE_BYTES_MAX}"));
    }
    std::fs::read_to_string(path).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str =
        "secret_file = \"s\"\n[[worker]]\nid = 0\naddress = \"a:1\"\n[[worker]]\nid = 1\naddress = \"b:1\"\n";

    #[test]
    fn a_short_file_is_enough() {
        let config = ClusterConfig::parse(TWO).expect("sound");
        assert_eq!((config.workers.len(), config.wire, config.placement.adopt), (2, WireFormat::F32, true));
        assert_eq!(config.deadlines, Deadlines::default());
        let more = "wire = \"bf16\"\n".to_owned() + TWO + "memory_gib = 64\n[deadlines]\nstep_ms = 7\n";
        let config = ClusterConfig::parse(&more).expect("sound");
        assert_eq!((config.wire, config.deadlines.step_ms), (WireFormat::Bf16, 7));
        assert_eq!(config.worker(WorkerId(1)).expect("there").memory_gib, Some(64.0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, says: &str| {
            let problem = ClusterConfig::parse(text).expect_err(says);
            assert!(problem.contains(says), "{problem}");
        };
        check("worker = []\nsecret_file = \"s\"", "worker: 0 are not 1 to 1024");
        check(&TWO.replace("id = 1", "id = 0"), "two have the id 0");
        check(&TWO.replace("secret_file", "secrets_file"), "secrets_file");
        check(&(TWO.to_owned() + "speed = 0"), "worker 1: speed and memory_gib");
        check(&(TWO.to_owned() + "[placement]\nredundancy = -1.0"), "placement.redundancy: -1");
        check(&(TWO.to_owned() + "[deadlines]\nstep_ms = 0"), "deadlines.step_ms: 0 is not 1 to");
        check(&("wire = \"f64\"\n".to_owned() + TWO), "f64");
    }
}
