//! `lingqu serve` and `lingqu worker` that find each other in a real etcd; skipped where there is none.

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use lingqu_membership::{Address, Registry, Tls};
use lingqu_proto::v1::generate_event::Event;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_testkit::etcd::{CertificateFiles, Etcd};
use support::lingqu;
use support::server::{Server, request, stream};
use tonic::transport::Channel;

/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Long enough that a stream whose first tokens are read is in its middle.
const LONG: u32 = 100;

/// What hangs is found out soon; leases are short, but not so that a busy machine ends them all the time.
const SETTINGS: &str = "[placement]\nworkers_min = 2\n[deadlines]\nstep_ms = 5000\nconnect_ms = 10000\n\
                        recovery_ms = 90000\nlease_ms = 3000\n";

/// Nobody is lost, however busy the machine.
const PATIENT: &str = "[placement]\nworkers_min = 2\n[deadlines]\nstep_ms = 60000\nconnect_ms = 10000\n\
                       heartbeat_ms = 60000\nrecovery_ms = 90000\nlease_ms = 6000\n";
/// Longer than those leases live.
const AWAY: Duration = Duration::from_secs(10);

/// An etcd, and a folder with the files of one cluster in it.
struct Cluster {
    etcd: Etcd,
    folder: PathBuf,
    /// What its processes show etcd, and trust it by.
    certificates: Option<CertificateFiles>,
}

/// Those of the fabric's tests.
fn certificates_of(name: &str) -> CertificateFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fabric/tests/tls");
    let file = |name: &str| folder.join(name).canonicalize().expect("it is there");
    CertificateFiles {
        ca: file("ca.pem"),
        certificate: file(&format!("{name}.pem")),
        key: file(&format!("{name}.key")),
    }
}

fn args_of(certificates: &CertificateFiles) -> Vec<String> {
    let CertificateFiles { ca, certificate, key } = certificates;
    let flags = [("--etcd-ca", ca), ("--etcd-certificate", certificate), ("--etcd-key", key)];
    flags.into_iter().flat_map(|(flag, file)| [flag.into(), file.to_str().expect("UTF-8").into()]).collect()
}

impl Cluster {
    fn start(name: &str, settings: &str) -> Option<Self> {
        Self::start_as(name, settings, None)
    }

    fn start_as(name: &str, settings: &str, certificates: Option<CertificateFiles>) -> Option<Self> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("etcd-{name}"));
        std::fs::create_dir_all(&folder).expect("a folder for tests");
        std::fs::write(folder.join("secret"), "an open secret of tests").expect("written");
        std::fs::write(folder.join("settings.toml"), settings).expect("written");
        let etcd = Etcd::start_as(&folder.join("etcd"), "127.0.0.1", certificates.clone())?;
        Some(Self { etcd, folder, certificates })
    }

    fn address(&self) -> String {
        format!("etcd://{}/{}", self.etcd.endpoint(), "r1")
    }

    fn args(&self) -> Vec<String> {
        let path = |name: &str| self.folder.join(name).to_str().expect("a UTF-8 path").to_owned();
        let flags = ["--cluster", "--cluster-secret", "--cluster-config"].map(str::to_owned);
        let [cluster, secret, config] = flags;
        let mut args = vec![cluster, self.address(), secret, path("secret"), config, path("settings.toml")];
        args.extend(self.certificates.iter().flat_map(args_of));
        args
    }

    /// Ids and incarnations of those who are registered.
    async fn registered(&self) -> Vec<(u32, u64)> {
        let address: Address = self.address().parse().expect("sound");
        let read = |file: &Path| std::fs::read(file).expect("it is there");
        let tls = self.certificates.as_ref().map(|CertificateFiles { ca, certificate, key }| Tls {
            ca: read(ca),
            own: Some([read(certificate), read(key)]),
        });
        let registry = Registry::new(&address, tls.as_ref()).expect("sound");
        let (members, _) = registry.workers().await.expect("etcd is there");
        members.iter().map(|member| (member.id, member.incarnation)).collect()
    }

    async fn until(&self, what: &str, is: impl Fn(&[(u32, u64)]) -> bool) -> Vec<(u32, u64)> {
        let until = Instant::now() + PATIENCE;
        loop {
            let registered = self.registered().await;
            if is(&registered) {
                return registered;
            }
            assert!(Instant::now() < until, "{what}: {registered:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What a process says, line by line.
#[derive(Default)]
struct Said {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Said {
    fn listen(self: &Arc<Self>, stderr: ChildStderr) {
        let said = Arc::clone(self);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                said.lines.lock().expect("no panic").0.push(line);
                said.more.notify_all();
            }
            said.lines.lock().expect("no panic").1 = true;
            said.more.notify_all();
        });
    }

    fn count(&self, text: &str) -> usize {
        self.lines.lock().expect("no panic").0.iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for the `count`th line with `text` in it.
    fn wait(&self, text: &str, count: usize) -> String {
        let mut lines = self.lines.lock().expect("no panic");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = lines.0.iter().filter(|line| line.contains(text)).nth(count - 1) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!lines.1 && !left.is_zero(), "it does not say '{text}': {:#?}", lines.0);
            lines = self.more.wait_timeout(lines, left).expect("no panic").0;
        }
    }
}

/// `lingqu serve` or `lingqu worker`; killed when dropped.
struct Process {
    child: Child,
    said: Arc<Said>,
}

impl Process {
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lingqu"))
            .args(args)
            .args(cluster.args())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let said = Arc::<Said>::default();
        said.listen(child.stderr.take().expect("piped"));
        Self { child, said }
    }

    fn worker(cluster: &Cluster, id: u32) -> Self {
        Self::start(cluster, &["worker", "--id", &id.to_string(), "--listen", "127.0.0.1:0", "--threads", "1"])
    }

    fn serve(cluster: &Cluster) -> Self {
        Self::start(cluster, &["serve", "--grpc-addr", "127.0.0.1:0", "--no-http"])
    }

    /// Of a server.
    async fn client(&self) -> InferenceClient<Channel> {
        let line = self.said.wait("lingqu: gRPC on ", 1);
        let address = line.rsplit(' ').next().expect("an address");
        InferenceClient::connect(format!("http://{address}")).await.expect("the port is open")
    }

    /// Of a worker that registers for the `count`th time.
    fn incarnation(&self, count: usize) -> u64 {
        let line = self.said.wait("is registered, as incarnation ", count);
        line.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Token ids of an undisturbed server of one process.
async fn undisturbed() -> Vec<u32> {
    let server = Server::start(&[]);
    stream(&mut server.client().await, request(LONG)).await
}

#[tokio::test]
async fn workers_are_found_come_and_go() {
    let Some(cluster) = Cluster::start("come-and-go", SETTINGS) else { return };
    let expected = undisturbed().await;
    let mut workers: Vec<Process> = (0..2).map(|id| Process::worker(&cluster, id)).collect();
    let server = Process::serve(&cluster);
    let mut client = server.client().await;
    assert!(stream(&mut client, request(LONG)).await == expected, "with two workers");

    // A third one comes while streams run, and gets work.
    workers.push(Process::worker(&cluster, 2));
    workers[2].incarnation(1);
    until_there(&server, &mut client, 3, &expected).await;

    // One is killed in a stream; its registration ends with its lease.
    let mut events = Events::begin(&mut client).await;
    events.some().await;
    workers[1].signal("KILL");
    assert!(events.rest().await == expected, "while one is killed");
    cluster.until("the killed worker is registered", |there| there.iter().all(|(id, _)| *id != 1)).await;
    assert!(stream(&mut client, request(LONG)).await == expected, "after one was killed");

    // It comes again, under another incarnation.
    let again = Process::worker(&cluster, 1);
    let incarnation = again.incarnation(1);
    assert!(incarnation > workers[1].incarnation(1));
    cluster.until("it is registered", |there| there.contains(&(1, incarnation))).await;
    assert!(stream(&mut client, request(LONG)).await == expected, "after it is back");

    // Another process of the same number is refused.
    let second = Process::worker(&cluster, 0);
    second.said.wait("error: worker 0 is there already, at 127.0.0.1:", 1);
    assert!(stream(&mut client, request(LONG)).await == expected, "beside a second one");
}

/// Streams until the server has taken workers in so many times.
async fn until_there(server: &Process, client: &mut InferenceClient<Channel>, times: usize, expected: &[u32]) {
    let until = Instant::now() + PATIENCE;
    while server.said.count(" is there, with ") < times {
        assert!(stream(client, request(LONG)).await == expected, "before {times} are there");
        assert!(Instant::now() < until, "{times} are never there");
    }
    assert!(stream(client, request(LONG)).await == expected, "with {times} there");
}

/// A stream on its way.
struct Events(tonic::Streaming<lingqu_proto::v1::GenerateEvent>, Vec<u32>);

impl Events {
    async fn begin(client: &mut InferenceClient<Channel>) -> Self {
        let events = client.generate(request(LONG)).await.expect("the call is taken");
        Self(events.into_inner(), Vec::new())
    }

    /// False at the end.
    async fn next(&mut self) -> bool {
        let Some(event) = self.0.message().await.expect("the stream does not fail") else { return false };
        if let Some(Event::Delta(delta)) = event.event {
            self.1.extend(delta.token_ids);
        }
        true
    }

    async fn some(&mut self) {
        while self.1.len() < 5 {
            assert!(self.next().await, "it ends early");
        }
    }

    async fn rest(mut self) -> Vec<u32> {
        while self.next().await {}
        self.1
    }
}

#[tokio::test]
async fn one_that_was_stopped_comes_back_as_another() {
    let Some(cluster) = Cluster::start("stopped", SETTINGS) else { return };
    let expected = undisturbed().await;
    let workers: Vec<Process> = (0..2).map(|id| Process::worker(&cluster, id)).collect();
    let server = Process::serve(&cluster);
    let mut client = server.client().await;
    let before = workers[1].incarnation(1);
    let mut events = Events::begin(&mut client).await;
    events.some().await;
    workers[1].signal("STOP");
    assert!(events.rest().await == expected, "while it is stopped");
    cluster.until("the stopped worker is registered", |there| there.iter().all(|(id, _)| *id != 1)).await;
    workers[1].signal("CONT");
    workers[1].said.wait("answers nobody until it is", 1);
    let after = workers[1].incarnation(2);
    assert!(after > before);
    until_there(&server, &mut client, 3, &expected).await;
}

#[tokio::test]
async fn without_etcd_all_goes_on() {
    let Some(mut cluster) = Cluster::start("away", PATIENT) else { return };
    let expected = undisturbed().await;
    let mut workers: Vec<Process> = (0..2).map(|id| Process::worker(&cluster, id)).collect();
    let server = Process::serve(&cluster);
    let mut client = server.client().await;
    let mut events = Events::begin(&mut client).await;
    events.some().await;
    cluster.etcd.kill();
    assert!(events.rest().await == expected, "while etcd is killed");
    let until = Instant::now() + AWAY;
    while Instant::now() < until {
        assert!(stream(&mut client, request(LONG)).await == expected, "without etcd");
    }
    assert_eq!(server.said.count(" is fenced"), 0, "nobody was lost");
    assert!(workers.iter().all(|worker| worker.said.count("is registered") == 1), "nobody registered anew");

    // It is back, with its data: members come again.
    cluster.etcd.restart();
    workers.push(Process::worker(&cluster, 2));
    workers[2].incarnation(1);
    until_there(&server, &mut client, 3, &expected).await;

    // It comes back empty: everybody registers again, and no answer is lost.
    let mut events = Events::begin(&mut client).await;
    events.some().await;
    cluster.etcd.lose_data();
    cluster.etcd.restart();
    cluster.until("all register again", |there| there.len() == 3).await;
    assert!(events.rest().await == expected, "while etcd loses its data");
    assert!(stream(&mut client, request(LONG)).await == expected, "after etcd lost its data");
}

/// etcd, and workers by what etcd says, take those alone who show a certificate of the cluster's authority.
#[tokio::test]
async fn certificates_on_every_way() {
    let node = certificates_of("node");
    let [ca, certificate, key] = [&node.ca, &node.certificate, &node.key].map(|file| file.display());
    let tls = format!("[tls]\nca = \"{ca}\"\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n");
    let Some(cluster) = Cluster::start_as("tls", &(SETTINGS.to_owned() + &tls), Some(node)) else { return };
    let expected = undisturbed().await;
    let workers: Vec<Process> = (0..2).map(|id| Process::worker(&cluster, id)).collect();
    let server = Process::serve(&cluster);
    assert!(stream(&mut server.client().await, request(LONG)).await == expected);
    assert_eq!(cluster.registered().await.len(), workers.len());

    let short = cluster.folder.join("short.toml");
    std::fs::write(&short, "[deadlines]\nstart_ms = 300\n").expect("written");
    let address = cluster.address();
    let secret = cluster.folder.join("secret");
    let [short, secret] = [&short, &secret].map(|file| file.to_str().expect("UTF-8"));
    let call = ["generate", "--prompt", "x", "--cluster", &address, "--cluster-secret", secret];
    let check = |more: &[String], says: &str| {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let run = lingqu(&[&call[..], &["--cluster-config", short], &more].concat());
        assert!(run.code == 1 && run.stderr.contains(says), "{}: {}", run.code, run.stderr);
    };
    check(&[], "does not answer");
    check(&args_of(&certificates_of("stranger")), "does not answer");
    let mut other = certificates_of("node");
    other.ca.set_file_name("other-ca.pem");
    check(&args_of(&other), "UnknownIssuer");
    other.ca.set_file_name("node.key");
    check(&args_of(&other), "certificates for etcd: ");
    other.ca.set_file_name("nobody.pem");
    check(&args_of(&other), "nobody.pem");
}

#[test]
fn what_is_missing_is_said() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("etcd-missing");
    std::fs::create_dir_all(&folder).expect("a folder for tests");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).expect("written");
        folder.join(name).to_str().expect("a UTF-8 path").to_owned()
    };
    let (secret, short) =
        (write("secret", "an open secret of tests"), write("short.toml", "[deadlines]\nstart_ms = 300\n"));
    let bad = write("bad.toml", "[[worker]]\nid = 0\naddress = \"a:1\"\n");
    let check = |args: &[&str], code: i32, says: &str| {
        let run = lingqu(args);
        assert_eq!(run.code, code, "{}", run.stderr);
        assert!(run.stderr.contains(says), "{}", run.stderr);
    };
    let at = ["--cluster", "etcd://127.0.0.1:1/r1"];
    let generate = |more: &[&str], code: i32, says: &str| {
        check(&[&["generate", "--prompt", "x", "--max-tokens", "1"], &at[..], more].concat(), code, says);
    };
    generate(&["--cluster-secret", &secret, "--cluster-config", &short], 1, "etcd at 127.0.0.1:1 does not answer");
    generate(&["--cluster-secret", &secret, "--cluster-config", &bad], 1, "worker: workers register themselves");
    generate(&["--cluster-config", &short], 2, "needs --cluster-secret FILE");
    check(&["generate", "--prompt", "x", "--cluster", "etcd://a/b"], 2, "write etcd://HOST:PORT");
    check(
        &["generate", "--prompt", "x", "--cluster", &bad, "--cluster-secret", &secret],
        2,
        "are for --cluster etcd://",
    );
    let worker = |more: &[&str], code: i32, says: &str| {
        check(&[&["worker", "--id", "0", "--cluster-secret", &secret], &at[..], more].concat(), code, says);
    };
    worker(&[], 2, "needs --listen");
    worker(&["--listen", "0.0.0.0:0", "--cluster-config", &short], 2, "say with --advertise HOST:PORT");
    worker(&["--listen", "127.0.0.1:0", "--cluster-config", &short], 1, "etcd at 127.0.0.1:1 does not answer");
    worker(&["--listen", "127.0.0.1:0", "--speed", "0"], 2, "speed and memory_gib are numbers above 0");
}
