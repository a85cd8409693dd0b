//! A real etcd of one member, for tests: in a folder of its own, on ports that were free, killed when dropped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A busy machine is no failure.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Somebody else may take a port between the look for it and its use.
const ATTEMPTS_MAX: usize = 5;

pub struct Etcd {
    child: Option<Child>,
    folder: PathBuf,
    /// Of clients, and of other members, which there are none of.
    ports: [u16; 2],
}

impl Etcd {
    /// Starts one without data in `folder`, whose contents it replaces, and waits until it serves. None, with the
    /// reason on stderr, where there is no program `etcd`.
    pub fn start(folder: &Path) -> Option<Self> {
        if let Err(error) = Command::new("etcd").arg("--version").stdout(Stdio::null()).status() {
            eprintln!("skipped: etcd cannot be run ({error}); Debian has it in etcd-server");
            return None;
        }
        let mut etcd = Self { child: None, folder: folder.to_owned(), ports: [0; 2] };
        for _ in 0..ATTEMPTS_MAX {
            etcd.ports = free_ports();
            etcd.lose_data();
            if etcd.launch() {
                return Some(etcd);
            }
        }
        panic!("etcd does not start: see {}", etcd.folder.join("log").display());
    }

    /// `HOST:PORT` for clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it if it runs, and starts it where it was, with what data it has.
    pub fn restart(&mut self) {
        self.kill();
        let is_up = (0..ATTEMPTS_MAX).any(|_| self.launch());
        assert!(is_up, "etcd does not start again: see {}", self.folder.join("log").display());
    }

    /// Kills it if it runs, and removes its data.
    pub fn lose_data(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
        std::fs::create_dir_all(&self.folder).expect("a folder for tests");
    }

    /// Asks etcd's gateway for JSON, such as `/v3/kv/compaction`: another way than that of the client under test.
    pub fn post(&self, path: &str, json: &str) -> String {
        let head = format!("POST {path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}", json.len());
        let answer = self.ask(&format!("{head}\r\n\r\n{json}")).expect("etcd answers");
        assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{path} {json}: {answer}");
        answer
    }

    fn ask(&self, request: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.endpoint())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Whether it serves, in the end.
    fn launch(&mut self) -> bool {
        let log = std::fs::File::create(self.folder.join("log")).expect("a log");
        let [client, peer] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new("etcd");
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
            command.env_remove(variable);
        }
        command.args(["--name", "test", "--data-dir"]).arg(self.folder.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}"), "--logger", "zap", "--log-level", "error"]);
        let errors = log.try_clone().expect("a log");
        let mut child = command.stdout(log).stderr(errors).spawn().expect("etcd runs");
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && child.try_wait().expect("it is ours").is_none() {
            if self.ask("GET /health HTTP/1.0\r\n\r\n").is_ok_and(|answer| answer.contains("\"health\":\"true\"")) {
                self.child = Some(child);
                return true;
            }
            std::thread::sleep(POLL);
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_ports() -> [u16; 2] {
    let listeners = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("it listens").port())
}
