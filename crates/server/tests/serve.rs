//! `lingqu serve` as clients and operators meet it: calls over loopback, SIGTERM, exit status.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use lingqu_proto::v1::generate_event::Event;
use lingqu_proto::v1::generate_request::Input;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_proto::v1::{GenerateRequest, Sampling};
use tonic::transport::Channel;

/// A running server; killed when dropped, so that a failed test leaves nothing behind.
struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    url: String,
    /// Address of the HTTP port.
    http: String,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lingqu"))
            .args(["serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut address = |of: &str| loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).expect("stderr is text") > 0, "the server ended before it served");
            if let Some(address) = line.trim().strip_prefix(of) {
                break address.to_owned();
            }
        };
        let url = format!("http://{}", address("lingqu: gRPC on "));
        let http = address("lingqu: HTTP on ");
        Self { child, stderr, url, http }
    }

    async fn client(&self) -> InferenceClient<Channel> {
        InferenceClient::connect(self.url.clone()).await.expect("the port is open")
    }

    /// Sends a POST and reads the response until `enough`, or to its end.
    fn post(&self, body: &str, enough: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(&self.http).expect("the port is open");
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json";
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("taken");
        let (mut told, mut bytes) = (Vec::new(), [0; 4096]);
        loop {
            let count = stream.read(&mut bytes).expect("no reset");
            told.extend_from_slice(&bytes[..count]);
            let text = String::from_utf8_lossy(&told).into_owned();
            if count == 0 || (!enough.is_empty() && text.contains(enough)) {
                return (stream, text);
            }
        }
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    }

    /// Waits for the end, bounded; returns the exit status and what was still written.
    fn wait(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                let mut rest = String::new();
                std::io::Read::read_to_string(&mut self.stderr, &mut rest).expect("stderr is text");
                return (status.code(), rest);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server did not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::Prompt("秋天".into())),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        sampling: Some(Sampling { seed: Some(11), temperature: Some(1.0), ..Default::default() }),
        ..Default::default()
    }
}

/// Token ids of a streamed generation that must end well.
async fn stream(client: &mut InferenceClient<Channel>, request: GenerateRequest) -> Vec<u32> {
    let mut events = client.generate(request).await.expect("the call is taken").into_inner();
    let (mut ids, mut finished) = (Vec::new(), false);
    while let Some(event) = events.message().await.expect("the stream does not fail") {
        match event.event.expect("an event") {
            Event::Delta(delta) => ids.extend(delta.token_ids),
            Event::Finished(end) => {
                finished = true;
                assert_eq!(end.usage.expect("usage").completion_tokens as usize, ids.len());
            }
            Event::PromptLogprobs(_) => panic!("nobody asked"),
        }
    }
    assert!(finished, "a stream ends with finished");
    ids
}

#[tokio::test]
async fn streams_equal_whole_replies_and_each_other() {
    let server = Server::start(&[]);
    let mut client = server.client().await;
    let alone = stream(&mut client, request(24)).await;
    assert_eq!(alone.len(), 24);
    let whole = client.generate_once(request(24)).await.expect("a reply").into_inner();
    assert_eq!(whole.token_ids, alone);
    // Eight at once: each the same bits as alone.
    let together: Vec<_> = (0..8)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { stream(&mut client, request(24)).await })
        })
        .collect();
    for task in together {
        assert_eq!(task.await.expect("no panic"), alone);
    }
}

#[tokio::test]
async fn sigterm_finishes_what_runs_and_exits_0() {
    let server = Server::start(&[]);
    let mut client = server.client().await;
    let mut events = client.generate(request(64)).await.expect("the call is taken").into_inner();
    let first = events.message().await.expect("the stream does not fail");
    assert!(first.is_some());
    server.terminate();
    let mut ends = 0;
    while let Some(event) = events.message().await.expect("a drained stream still ends well") {
        ends += usize::from(matches!(event.event, Some(Event::Finished(_))));
    }
    assert_eq!(ends, 1, "the running request was finished");
    drop((events, client));
    let (code, stderr) = tokio::task::spawn_blocking(move || server.wait()).await.expect("no panic");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("draining"), "{stderr}");
}

#[test]
fn sigterm_finishes_http_streams_too() {
    let server = Server::start(&[]);
    let body = r#"{"prompt": "秋天", "max_tokens": 64, "ignore_eos": true, "stream": true}"#;
    let (mut stream, _) = server.post(body, "data: ");
    server.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("a drained stream still ends well");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let (code, stderr) = server.wait();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn http_and_grpc_are_one_server() {
    let server = Server::start(&[]);
    let body = r#"{"prompt": "秋天", "max_tokens": 8, "seed": 3}"#;
    let (_, reply) = server.post(body, "");
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("\"text_completion\""), "{reply}");
    let (_, refused) = server.post("{}", "");
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("\"param\":\"prompt\""), "{refused}");
}

#[tokio::test]
async fn an_idle_server_ends_at_once() {
    let server = Server::start(&["--drain-timeout", "30"]);
    let started = Instant::now();
    server.terminate();
    let (code, stderr) = tokio::task::spawn_blocking(move || server.wait()).await.expect("no panic");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(started.elapsed() < Duration::from_secs(20), "it waited for nothing");
}

#[test]
fn a_taken_port_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_lingqu"))
        .args(["serve", "--grpc-addr", &address, "--no-http"])
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("cannot listen on") && stderr.contains(&address), "{stderr}");
}
