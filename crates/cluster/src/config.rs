//! `cluster.toml`: the one file that all processes of a cluster read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lingqu_fabric::CertificateFiles;
use serde::Deserialize;
use thiserror::Error;

use crate::{WireFormat, WorkerId};

/// Longest file: a cluster has hundreds of workers, a load table 61 * 256 numbers.
const FILE_BYTES_MAX: u64 = 4 << 20;
pub(crate) const WORKERS_MAX: usize = 1024;
const MILLISECONDS_MAX: u64 = 24 * 3600 * 1000;
/// etcd's own.
const LEASE_MILLISECONDS_MIN: u64 = 2000;
const SECONDS_MAX: u64 = 7 * 24 * 3600;

#[derive(Debug, Error)]
#[error("{file}: {problem}")]
pub struct ConfigError {
    pub file: String,
    pub problem: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// None over MPI stands for all ranks but the first.
    #[serde(rename = "worker", default)]
    pub workers: Vec<WorkerConfig>,
    #[serde(default)]
    pub fabric: FabricName,
    /// Of the secret that all processes share; relative to the configuration file. Empty over MPI is a secret of the
    /// job's own.
    #[serde(default)]
    pub secret_file: PathBuf,
    /// Encrypts all that crosses, and has both sides show a certificate.
    pub tls: Option<TlsConfig>,
    /// How rows cross.
    #[serde(default)]
    pub wire: WireFormat,
    /// Steps of at least so many rows are computed in two halves, each while the experts of the other are away; 0:
    /// none. The same bits either way. It pays where waiting costs more than reading the weights of attention twice.
    #[serde(default)]
    pub overlap_rows: usize,
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
    /// Of its registration, where workers register: it is called as this one, and refuses as another one.
    #[serde(skip)]
    pub incarnation: u64,
}

/// The way between the processes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FabricName {
    #[default]
    Tcp,
    /// The processes are ranks that one `mpirun` started.
    Mpi,
}

/// PEM files of a process; relative to the configuration file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Authorities that the certificates of all processes come from.
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The name that the certificate of every worker bears; unless said, each the host of its own address.
    pub name: Option<String>,
}

impl TlsConfig {
    pub fn files(&self) -> CertificateFiles {
        let Self { ca, certificate, key, name } = self.clone();
        CertificateFiles { ca, certificate, key, name }
    }
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
    /// Where workers register: so many are there before a start goes on.
    pub workers_min: usize,
    /// Seconds between looks at the load, whether experts should move; 0: only when asked to.
    pub rebalance_s: u64,
    /// They move by themselves only if the busiest worker would have so much less to do: 0.1 is a tenth less.
    pub rebalance_gain: f64,
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self { redundancy: 0.0, load_file: None, adopt: true, workers_min: 1, rebalance_s: 0, rebalance_gain: 0.1 }
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
    /// Where workers register: one of which nothing is heard for so long has left.
    pub lease_ms: u64,
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
            lease_ms: 10_000,
        }
    }
}

impl Deadlines {
    /// For a message of `rows` rows.
    pub fn step(&self, rows: usize) -> Duration {
        Duration::from_millis(self.step_ms.saturating_add(self.row_ms.saturating_mul(rows as u64)))
    }
}

impl WorkerConfig {
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_gib.map_or(u64::MAX, |gib| (gib * (1u64 << 30) as f64) as u64)
    }
}

impl ClusterConfig {
    /// Reads and checks the file; paths in it become absolute or relative to this process.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let problem = |problem: String| ConfigError { file: path.display().to_string(), problem };
        let text = read_bounded(path, FILE_BYTES_MAX).map_err(problem)?;
        let mut config = Self::parse(&text).map_err(problem)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        if !config.secret_file.as_os_str().is_empty() {
            config.secret_file = folder.join(&config.secret_file);
        }
        if let Some(TlsConfig { ca, certificate, key, .. }) = &mut config.tls {
            for file in [ca, certificate, key] {
                *file = folder.join(&file);
            }
        }
        config.placement.load_file = config.placement.load_file.map(|file| folder.join(file));
        Ok(config)
    }

    /// The ranks of an MPI job, without a file.
    pub fn of_ranks() -> Self {
        Self::parse("fabric = \"mpi\"").expect("it is all that must be said")
    }

    /// Reads a file as [`ClusterConfig::parse_settings`] takes it, with its text.
    pub fn read_settings(path: &Path, bytes_max: usize) -> Result<(Self, String), ConfigError> {
        let file = path.display().to_string();
        match read_bounded(path, bytes_max as u64) {
            Ok(text) => Self::parse_settings(&text, &file).map(|config| (config, text)),
            Err(problem) => Err(ConfigError { file, problem }),
        }
    }

    /// Settings of a cluster whose workers register themselves, and whose secret is elsewhere. `from` is for errors.
    pub fn parse_settings(text: &str, from: &str) -> Result<Self, ConfigError> {
        let problem = |problem: String| ConfigError { file: from.to_owned(), problem };
        let config: Self = toml::from_str(text).map_err(|e| problem(e.to_string().trim_end().to_owned()))?;
        if !config.workers.is_empty() || !config.secret_file.as_os_str().is_empty() {
            return Err(problem("worker: workers register themselves; secret_file: it is named elsewhere".into()));
        }
        if config.fabric != FabricName::Tcp {
            return Err(problem("fabric: workers that register are called over TCP".into()));
        }
        let files = config.tls.iter().flat_map(|tls| [&tls.ca, &tls.certificate, &tls.key]);
        if files.into_iter().any(|file| file.is_relative()) {
            return Err(problem("tls: each process reads files of its own, by absolute paths".into()));
        }
        config.check_settings().map_err(problem)?;
        Ok(config)
    }

    /// What is wrong names the field.
    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        let is_mpi = config.fabric == FabricName::Mpi;
        if (config.workers.is_empty() && !is_mpi) || config.workers.len() > WORKERS_MAX {
            return Err(format!("worker: {} are not 1 to {WORKERS_MAX}", config.workers.len()));
        }
        if config.secret_file.as_os_str().is_empty() && !is_mpi {
            return Err("secret_file: it is missing".into());
        }
        if config.tls.is_some() && is_mpi {
            return Err("tls: MPI does not carry it".into());
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
        config.check_settings()?;
        Ok(config)
    }

    fn check_settings(&self) -> Result<(), String> {
        let workers_min = self.placement.workers_min;
        if !(1..=WORKERS_MAX).contains(&workers_min) {
            return Err(format!("placement.workers_min: {workers_min} is not 1 to {WORKERS_MAX}"));
        }
        let redundancy = self.placement.redundancy;
        if !(redundancy.is_finite() && redundancy >= 0.0) {
            return Err(format!("placement.redundancy: {redundancy} is not a number from 0 on"));
        }
        let PlacementConfig { rebalance_s, rebalance_gain, .. } = self.placement;
        if rebalance_s > SECONDS_MAX {
            return Err(format!("placement.rebalance_s: {rebalance_s} is not 0 to {SECONDS_MAX}"));
        }
        if !(0.0..1.0).contains(&rebalance_gain) {
            return Err(format!("placement.rebalance_gain: {rebalance_gain} is not in [0, 1)"));
        }
        let Deadlines { step_ms, row_ms, connect_ms, load_ms, heartbeat_ms, recovery_ms, start_ms, lease_ms } =
            self.deadlines;
        for (name, value, least) in [
            ("step_ms", step_ms, 1),
            ("row_ms", row_ms, 0),
            ("connect_ms", connect_ms, 1),
            ("load_ms", load_ms, 1),
            ("heartbeat_ms", heartbeat_ms, 1),
            ("recovery_ms", recovery_ms, 0),
            ("start_ms", start_ms, 1),
            ("lease_ms", lease_ms, LEASE_MILLISECONDS_MIN),
        ] {
            if !(least..=MILLISECONDS_MAX).contains(&value) {
                return Err(format!("deadlines.{name}: {value} is not {least} to {MILLISECONDS_MAX}"));
            }
        }
        Ok(())
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
    let text = read_bounded(path, FILE_BYTES_MAX).map_err(problem)?;
    serde_json::from_str(&text).map_err(|e| problem(format!("not a list of lists of numbers: {e}")))
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<String, String> {
    let cannot = |e: std::io::Error| format!("cannot be read: {e}");
    let bytes = std::fs::metadata(path).map_err(cannot)?.len();
    if bytes > bytes_max {
        return Err(format!("{bytes} bytes are more than {bytes_max}"));
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
        let ranks = ClusterConfig::of_ranks();
        assert!(ranks.fabric == FabricName::Mpi && ranks.workers.is_empty() && ranks.secret_file == Path::new(""));
    }

    #[test]
    fn settings_name_no_workers() {
        let check = |text: &str, says: Option<&str>| match (ClusterConfig::parse_settings(text, "here"), says) {
            (Ok(config), None) => assert!(config.workers.is_empty()),
            (Err(problem), Some(says)) => assert!(problem.to_string().contains(says), "{problem}"),
            (outcome, _) => panic!("{text}: {outcome:?}"),
        };
        check("", None);
        check("wire = \"bf16\"\n[placement]\nworkers_min = 3\n[deadlines]\nlease_ms = 5000\n", None);
        check("[tls]\nca = \"/ca\"\ncertificate = \"/c\"\nkey = \"/k\"\n", None);
        check("[tls]\nca = \"ca\"\ncertificate = \"/c\"\nkey = \"/k\"\n", Some("tls: each process reads"));
        check("fabric = \"mpi\"", Some("fabric: workers that register"));
        check(TWO, Some("here: worker: workers register themselves"));
        check("secret_file = \"s\"", Some("secret_file: it is named elsewhere"));
        check("[placement]\nworkers_min = 0", Some("placement.workers_min: 0 is not 1 to 1024"));
        check("[deadlines]\nlease_ms = 500", Some("deadlines.lease_ms: 500 is not 2000 to"));
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
        check(&TWO.replace("secret_file = \"s\"", ""), "secret_file: it is missing");
        check(&(TWO.to_owned() + "speed = 0"), "worker 1: speed and memory_gib");
        check(&(TWO.to_owned() + "[placement]\nredundancy = -1.0"), "placement.redundancy: -1");
        check(&(TWO.to_owned() + "[placement]\nrebalance_gain = 1.0"), "placement.rebalance_gain: 1 is");
        check(&(TWO.to_owned() + "[placement]\nrebalance_s = 9999999"), "placement.rebalance_s: 9999999 is");
        check(&(TWO.to_owned() + "[deadlines]\nstep_ms = 0"), "deadlines.step_ms: 0 is not 1 to");
        check(&("wire = \"f64\"\n".to_owned() + TWO), "f64");
        check("worker = []", "worker: 0 are not 1 to 1024");
        check(&TWO.replace("secret_file = \"s\"\n", ""), "secret_file: it is missing");
        check("fabric = \"mpi\"\n[tls]\nca = \"a\"\ncertificate = \"b\"\nkey = \"c\"", "tls: MPI");
        check(&("fabric = \"udp\"\n".to_owned() + TWO), "udp");
        check(&(TWO.to_owned() + "[tls]\nca = \"a\"\nkey = \"b\""), "certificate");
    }
}
