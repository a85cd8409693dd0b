//! `lingqu serve` and `lingqu worker` as processes on loopback: same tokens, and what happens when workers go.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lingqu_proto::v1::GenerateRequest;
use lingqu_proto::v1::generate_event::Event;
use support::server::{Server, get, request, stream};
use support::worker::{Worker, listed};
use support::{Run, golden_folder, lingqu, lingqu_with_input};
use tonic::Code;

/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough that a stream whose first tokens are read is in its middle, on a busy machine too.
const LONG: u32 = 300;

/// A folder for the files of one cluster.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster-{name}"));
        std::fs::create_dir_all(&folder).expect("a folder for tests");
        std::fs::write(folder.join("secret"), "an open secret of tests").expect("written");
        std::fs::write(folder.join("other-secret"), "another secret of tests").expect("written");
        Self(folder)
    }

    /// Writes a configuration and gives its path.
    fn write(&self, name: &str, addresses: &[String], rest: &str) -> String {
        let mut text = if rest.contains("secret_file") { String::new() } else { "secret_file = \"secret\"\n".into() };
        let (top, tables) = rest.split_once('[').map_or((rest, String::new()), |(top, rest)| (top, format!("[{rest}")));
        text += top;
        text += &listed(addresses);
        let path = self.0.join(format!("{name}.toml"));
        std::fs::write(&path, text + &tables).expect("written");
        path.to_str().expect("a UTF-8 path").to_owned()
    }
}

/// A busy machine is no failure.
const PATIENT: &str = "[deadlines]\nstep_ms = 60000\nconnect_ms = 10000\nheartbeat_ms = 60000\n";
/// What hangs is found out soon, and who is left has time to load.
const WATCHFUL: &str = "[deadlines]\nstep_ms = 3000\nconnect_ms = 5000\nrecovery_ms = 60000\n";
/// Where nobody is left, requests do not wait.
const HASTY: &str = "[deadlines]\nstep_ms = 5000\nconnect_ms = 5000\nrecovery_ms = 500\n";

/// `count` workers, and the file by which a server finds them.
fn start(folder: &Folder, count: usize, rest: &str) -> (Vec<Worker>, String) {
    let unknown = vec!["127.0.0.1:1".to_owned(); count];
    let file = folder.write("workers", &unknown, "");
    let workers: Vec<Worker> = (0..count).map(|id| Worker::start(&file, id, "127.0.0.1:0", &[])).collect();
    let addresses: Vec<String> = workers.iter().map(|worker| worker.address.clone()).collect();
    (workers, folder.write("serve", &addresses, rest))
}

fn generate(more: &[&str]) -> Run {
    let prompt = ["generate", "--prompt", "秋天", "--max-tokens", "40", "--seed", "11", "--temperature", "1"];
    lingqu(&[&prompt[..], more].concat())
}

#[test]
fn generate_says_the_same_with_workers() {
    let folder = Folder::new("same");
    let alone = generate(&[]);
    assert_eq!(alone.code, 0, "{}", alone.stderr);
    for count in [1, 2, 4] {
        let (_workers, file) = start(&folder, count, PATIENT);
        let together = generate(&["--cluster", &file]);
        assert_eq!((together.code, &together.stdout), (0, &alone.stdout), "{count}: {}", together.stderr);
        assert!(together.stderr.contains("exchange, for each row and layer: "), "{}", together.stderr);
        assert!(!together.stderr.contains("fenced"), "{}", together.stderr);
    }
    let rounded = generate(&["--exchange-wire", "bf16"]);
    let (_workers, file) = start(&folder, 2, &format!("wire = \"bf16\"\n{PATIENT}"));
    let together = generate(&["--cluster", &file]);
    assert_eq!((together.code, &together.stdout), (0, &rounded.stdout), "{}", together.stderr);
    // The prediction layer has experts of its own.
    let together = generate(&["--cluster", &file, "--speculate"]);
    assert_eq!((together.code, &together.stdout), (0, &rounded.stdout), "{}", together.stderr);
    assert!(together.stderr.contains("drafts "), "{}", together.stderr);
}

/// Token ids of an undisturbed server of one process.
async fn undisturbed() -> Vec<u32> {
    let server = Server::start(&[]);
    stream(&mut server.client().await, request(LONG)).await
}

/// Token ids of a stream in whose middle `disturb` happens.
async fn disturbed(server: &Server, disturb: impl FnOnce()) -> Vec<u32> {
    let mut events = server.client().await.generate(request(LONG)).await.expect("the call is taken").into_inner();
    let (mut ids, mut disturb) = (Vec::new(), Some(disturb));
    while let Some(event) = events.message().await.expect("the stream does not fail") {
        if let Some(Event::Delta(delta)) = event.event {
            ids.extend(delta.token_ids);
        }
        if ids.len() > 4
            && let Some(disturb) = disturb.take()
        {
            disturb();
        }
    }
    ids
}

#[tokio::test]
async fn a_stream_goes_on_when_a_worker_is_killed_or_stopped() {
    let folder = Folder::new("killed");
    let expected = undisturbed().await;
    assert_eq!(expected.len(), LONG as usize);
    // With a second copy of every expert, and with none: then the other worker loads them.
    for redundancy in ["1.0", "0.0"] {
        for signal in ["KILL", "STOP"] {
            let (workers, file) = start(&folder, 2, &format!("[placement]\nredundancy = {redundancy}\n{WATCHFUL}"));
            let server = Server::start(&["--cluster", &file]);
            let ids = disturbed(&server, || workers[1].signal(signal)).await;
            assert!(ids == expected, "SIG{signal}, redundancy {redundancy}");
            server.terminate();
            let (code, stderr) = tokio::task::spawn_blocking(move || server.wait()).await.expect("no panic");
            assert_eq!(code, Some(0), "{stderr}");
            assert!(stderr.contains("worker 1 at ") && stderr.contains(" is fenced: "), "{stderr}");
        }
    }
}

#[tokio::test]
async fn with_no_copy_left_requests_are_unavailable_until_workers_are_back() {
    let folder = Folder::new("unavailable");
    let expected = undisturbed().await;
    let (mut workers, file) = start(&folder, 2, HASTY);
    let server = Server::start(&["--cluster", &file]);
    let mut client = server.client().await;
    let mut events = client.generate(request(LONG)).await.expect("the call is taken").into_inner();
    assert!(events.message().await.expect("it begins").is_some());
    workers.iter_mut().for_each(Worker::kill);
    let began = Instant::now();
    let status = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well without experts"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    let status = client.generate_once(request(1)).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    let file = folder.write("workers", &["127.0.0.1:1".to_owned(), "127.0.0.1:1".to_owned()], "");
    let again: Vec<Worker> =
        workers.iter().enumerate().map(|(id, worker)| Worker::start(&file, id, &worker.address, &[])).collect();
    let until = Instant::now() + PATIENCE;
    let once = |max_tokens| GenerateRequest { ..request(max_tokens) };
    while let Err(status) = client.generate_once(once(1)).await {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(Instant::now() < until, "the workers are not taken up again: {status}");
        tokio::task::yield_now().await;
    }
    assert!(stream(&mut client, request(LONG)).await == expected);
    drop(again);
}

/// The default model with another byte in its configuration.
fn other_model(folder: &Folder) -> String {
    let (from, to) = (golden_folder().join("../../../models/default"), folder.0.join("model"));
    let _ = std::fs::remove_dir_all(&to);
    std::fs::create_dir_all(&to).expect("a folder for tests");
    for entry in std::fs::read_dir(&from).expect("the default model") {
        let path = entry.expect("a file").path();
        let copy = to.join(path.file_name().expect("a file"));
        if path.ends_with("config.json") {
            std::fs::write(copy, std::fs::read_to_string(path).expect("text") + " ").expect("written");
        } else {
            std::os::unix::fs::symlink(path.canonicalize().expect("it is there"), copy).expect("linked");
        }
    }
    to.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn who_does_not_belong_is_refused() {
    let folder = Folder::new("refused");
    let check = |args: &[&str], code: i32, says: &str| {
        let run = generate(args);
        assert_eq!(run.code, code, "{}", run.stderr);
        assert!(run.stderr.contains(says), "{}", run.stderr);
    };
    let (workers, file) = start(&folder, 1, "");
    let address = [workers[0].address.clone()];
    let other = folder.write("other", &address, "secret_file = \"other-secret\"\n");
    check(&["--cluster", &other], 1, "the peer does not share our secret");
    check(&["--cluster", &file, "--model", &other_model(&folder)], 1, "the peer refuses us: another checkpoint");
    let nobody = folder.write("nobody", &["127.0.0.1:1".to_owned()], "[deadlines]\nstart_ms = 300\n");
    check(&["--cluster", &nobody], 1, "no worker is there: worker 0 at 127.0.0.1:1");
    check(&["--cluster", "nowhere.toml"], 1, "nowhere.toml");
    check(&["--cluster", &file, "--experts", "cpu"], 2, "cannot be used with");
    let dense = golden_folder().join("llama-q8_0.gguf");
    let dense = ["score", "--input", "-", "--cluster", &file, "--model", dense.to_str().expect("a UTF-8 path")];
    let dense = lingqu_with_input(&dense, "{\"token_ids\": [1]}");
    assert!(dense.code == 2 && dense.stderr.contains("has no routed experts"), "{}", dense.stderr);
    let worker = |args: &[&str]| lingqu(&[&["worker"], args].concat());
    let unknown = worker(&["--cluster", &file, "--id", "9"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("no worker with the id 9"), "{}", unknown.stderr);
    let without = worker(&["--id", "0"]);
    assert!(without.code == 2 && without.stderr.contains("--cluster"), "{}", without.stderr);
    workers[0].signal("TERM");
}

#[test]
fn a_worker_is_ready_while_a_server_has_it_work() {
    let folder = Folder::new("ready");
    let file = folder.write("workers", &["127.0.0.1:1".to_owned()], "");
    let worker = Worker::start(&file, 0, "127.0.0.1:0", &["--http-addr", "127.0.0.1:0"]);
    let code = |path: &str| get(&worker.http, path).split(' ').nth(1).expect("a code").to_owned();
    let until = |expected: &str| {
        let until = Instant::now() + Duration::from_secs(60);
        while code("/ready") != expected {
            assert!(Instant::now() < until, "{}", get(&worker.http, "/ready"));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert_eq!([code("/health"), code("/ready"), code("/nothing")], ["200", "503", "404"]);
    let serve = folder.write("serve", std::slice::from_ref(&worker.address), "[deadlines]\nheartbeat_ms = 100\n");
    let server = Server::start(&["--cluster", &serve]);
    until("200");
    let metrics = get(&worker.http, "/metrics");
    assert!(metrics.contains("\nlingqu_worker_ready 1\n"), "{metrics}");
    assert!(!metrics.contains("\nlingqu_worker_experts 0\n"), "{metrics}");
    drop(server);
    until("503");
    assert_eq!(code("/health"), "200");
}
