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
    /// Where it listens for clients: an IP address.
    host: String,
    /// Who speaks to it shows a certificate.
    certificates: Option<CertificateFiles>,
    /// Of clients, of other members, which there are none of, and of those who look after it.
    ports: [u16; 3],
}

/// PEM, of the authority by which clients are trusted and of the server.
#[derive(Clone)]
pub struct CertificateFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Etcd {
    /// Starts one without data in `folder`, whose contents it replaces, and waits until it serves clients of this
    /// machine. None, with the reason on stderr, where there is no program `etcd`.
    pub fn start(folder: &Path) -> Option<Self> {
        Self::start_as(folder, "127.0.0.1", None)
    }

    /// … clients who reach the IP address `host`, which is of this machine or says that all of its own are meant; over
    /// TLS where there are certificates.
    pub fn start_as(folder: &Path, host: &str, certificates: Option<CertificateFiles>) -> Option<Self> {
        if let Err(error) = Command::new("etcd").arg("--version").stdout(Stdio::null()).status() {
            eprintln!("skipped: etcd cannot be run ({error}); Debian has it in etcd-server");
            return None;
        }
        let mut etcd = Self { child: None, folder: folder.to_owned(), host: host.into(), certificates, ports: [0; 3] };
        for _ in 0..ATTEMPTS_MAX {
            etcd.ports = free_ports();
            etcd.lose_data();
            if etcd.launch() {
                return Some(etcd);
            }
        }
        panic!("etcd does not start: see {}", etcd.folder.join("log").display());
    }

    /// Of clients.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// `HOST:PORT` for clients of this machine.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port())
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
        let answer = ask(self.port(), &format!("{head}\r\n\r\n{json}")).expect("etcd answers");
        assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{path} {json}: {answer}");
        answer
    }

    /// Whether it serves, in the end.
    fn launch(&mut self) -> bool {
        let log = std::fs::File::create(self.folder.join("log")).expect("a log");
        let [_, peer, watch] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        let [client, listens] = ["127.0.0.1", &self.host].map(|host| format!("{scheme}://{host}:{}", self.port()));
        let mut command = Command::new("etcd");
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
            command.env_remove(variable);
        }
        command.args(["--name", "test", "--data-dir"]).arg(self.folder.join("data"));
        command.args(["--listen-client-urls", &listens, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}"), "--logger", "zap", "--log-level", "error"]);
        command.args(["--listen-metrics-urls", &watch]);
        if let Some(CertificateFiles { ca, certificate, key }) = &self.certificates {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        let errors = log.try_clone().expect("a log");
        let mut child = command.stdout(log).stderr(errors).spawn().expect("etcd runs");
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && child.try_wait().expect("it is ours").is_none() {
            if ask(self.ports[2], "GET /health HTTP/1.0\r\n\r\n")
                .is_ok_and(|answer| answer.contains("\"health\":\"true\""))
            {
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

fn ask(port: u16, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn free_ports() -> [u16; 3] {
    let listeners = [0, 0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("it listens").port())
}
