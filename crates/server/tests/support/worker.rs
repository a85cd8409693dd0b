//! A running worker, and how a configuration names those that run.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A running worker; killed when dropped.
pub struct Worker {
    child: Child,
    /// Where it listens.
    pub address: String,
    /// Where it says how it is; empty if nowhere.
    pub http: String,
}

impl Worker {
    /// Worker `id` of the configuration `file`, on loopback.
    pub fn start(file: &str, id: usize, listen: &str, more: &[&str]) -> Self {
        let mut command = Command::new(super::binary());
        command.args(["worker", "--cluster", file, "--id", &id.to_string(), "--listen", listen, "--threads", "1"]);
        command.args(more);
        Self::run(command, id)
    }

    /// By a command of the caller's, which starts worker `id`; returns when it listens.
    pub fn run(mut command: Command, id: usize) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let begin = format!("lingqu: worker {id} on ");
        let mut http = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).expect("stderr is text") > 0, "worker {id} ended before it listened");
            if let Some(address) = line.trim().strip_prefix(&begin) {
                break address.to_owned();
            }
            if let Some(address) = line.trim().strip_prefix("lingqu: HTTP on ") {
                http = address.to_owned();
            }
        };
        // Nobody who logs waits for us.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { child, address, http }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs").success());
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }
}

impl Drop for Worker {
    /// It is gone after this.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Workers 0, 1, … as `cluster.toml` lists them.
pub fn listed(addresses: &[String]) -> String {
    let worker = |(id, address)| format!("[[worker]]\nid = {id}\naddress = \"{address}\"\n");
    addresses.iter().enumerate().map(worker).collect()
}
