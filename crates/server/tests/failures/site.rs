//! Where workers run: each in a network namespace of its own, with a link to the server's; or all on loopback.
//!
//! The test starts itself again in a namespace for the server, and holds one for each worker by a process that ends
//! when the test does, however it does. No namespace has a name, so that nothing has to be removed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Set in the process that runs in the server's namespace.
const INSIDE: &str = "LINGQU_FAILURES_INSIDE";
/// Where a worker listens in its namespace.
const PORT: u16 = 7001;

#[derive(Clone, Debug)]
pub struct Site {
    /// Why not, if not.
    pub namespaces: Result<(), String>,
    /// Whether the kernel delays and drops packets for us; why not, if not.
    pub netem: Result<(), String>,
    /// Whether there is a program of that name; why not, if not.
    pub etcd: Result<(), String>,
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let says = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {}: {}", args.join(" "), says.lines().next().unwrap_or("failed")))
        }
    }
}

/// Runs the test `name` in a namespace, where that is permitted; its site if this process is to run it.
pub fn enter(name: &str) -> Option<Site> {
    let etcd = run("etcd", &["--version"]);
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]).expect("a loopback");
        let netem = run("tc", &["qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms"]);
        if netem.is_ok() {
            run("tc", &["qdisc", "del", "dev", "lo", "root"]).expect("it was just added");
        }
        return Some(Site { namespaces: Ok(()), netem, etcd });
    }
    let two = "ip link add veth0 type veth peer name veth1 && unshare -n nsenter --version";
    if let Err(why) = run("unshare", &["-n", "sh", "-c", two]) {
        let netem = Err("loopback is everybody's".to_owned());
        return Some(Site { namespaces: Err(why), netem, etcd });
    }
    let this = std::env::current_exe().expect("a test");
    let mut inside = Command::new("unshare");
    inside.arg("-n").arg(this).args([name, "--exact", "--nocapture"]).env(INSIDE, "yes");
    let status = inside.status().expect("unshare was just there");
    assert!(status.success(), "the test fails in its namespace");
    None
}

/// Where one worker runs.
pub struct Place {
    /// Keeps the namespace; `None` on loopback.
    holder: Option<Child>,
    /// The server's end of the link.
    link: String,
    pub listen: String,
    /// The server's host, as it is called from here.
    pub home: String,
}

impl Place {
    /// Place `number` of run `run`.
    pub fn new(site: &Site, run_number: u64, number: usize) -> Self {
        let link = format!("w{run_number}x{number}");
        if site.namespaces.is_err() {
            return Self { holder: None, link, listen: "127.0.0.1:0".into(), home: "127.0.0.1".into() };
        }
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo there; read end"])
            .stdin(Stdio::piped()) // closed when this process ends
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare was there before");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("text");
        assert_eq!(line.trim(), "there", "a namespace");
        let pid = holder.id().to_string();
        let (listen, home) = (format!("10.99.{number}.2:{PORT}"), format!("10.99.{number}.1"));
        let place = Self { holder: Some(holder), link, listen, home };
        let [ours, theirs] = [1, 2].map(|side| format!("10.99.{number}.{side}/24"));
        let link = place.link.as_str();
        let inside = |args: &[&str]| run("nsenter", &[&["-t", &pid, "-n", "ip"], args].concat());
        let all = || {
            run("ip", &["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
            run("ip", &["addr", "add", &ours, "dev", link])?;
            run("ip", &["link", "set", link, "up"])?;
            inside(&["link", "set", "lo", "up"])?;
            inside(&["addr", "add", &theirs, "dev", "eth0"])?;
            inside(&["link", "set", "eth0", "up"])
        };
        all().unwrap_or_else(|problem| panic!("{problem}"));
        place
    }

    /// A command that runs `program` there.
    pub fn command(&self, program: &str) -> Command {
        let Some(holder) = &self.holder else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.args(["-t", &holder.id().to_string(), "-n", program]);
        command
    }

    /// Cuts the link, or joins it again. Only with namespaces.
    pub fn set_link(&self, state: &str) {
        run("ip", &["link", "set", &self.link, state]).unwrap_or_else(|problem| panic!("{problem}"));
    }

    /// Has the kernel treat packets to the worker as netem's `parameters` say; as usual if there are none.
    pub fn set_netem(&self, parameters: &[&str]) {
        let verb = if parameters.is_empty() { "del" } else { "replace" };
        let mut args = vec!["qdisc", verb, "dev", &self.link, "root"];
        if !parameters.is_empty() {
            args.push("netem");
            args.extend(parameters);
        }
        run("tc", &args).unwrap_or_else(|problem| panic!("{problem}"));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            let _ = run("ip", &["link", "del", &self.link]);
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
