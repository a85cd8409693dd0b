//! A running server and its clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lingqu_proto::v1::generate_event::Event;
use lingqu_proto::v1::generate_request::Input;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_proto::v1::{GenerateRequest, Sampling};
use tonic::transport::Channel;

/// A running server; killed when dropped, so that a failed test leaves nothing behind.
pub struct Server {
    child: Child,
    /// Reads what it says to the end: nobody who logs waits for us.
    stderr: Option<JoinHandle<String>>,
    url: String,
    /// Address of the HTTP port.
    http: String,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let mut child = Command::new(super::binary())
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
        let stderr = std::thread::spawn(move || {
            let mut rest = String::new();
            let _ = stderr.read_to_string(&mut rest);
            rest
        });
        Self { child, stderr: Some(stderr), url, http }
    }

    pub async fn client(&self) -> InferenceClient<Channel> {
        InferenceClient::connect(self.url.clone()).await.expect("the port is open")
    }

    /// Of the gRPC port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Response to a GET, head and all.
    pub fn get(&self, path: &str) -> String {
        get(&self.http, path)
    }

    /// Sends a POST and reads the response until `enough`, or to its end.
    pub fn post(&self, body: &str, enough: &str) -> (TcpStream, String) {
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

    pub fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    }

    /// Waits for the end, bounded; returns the exit status and what was still written.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                let rest = self.stderr.take().expect("nobody waits twice").join().expect("no panic");
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

/// Response to a GET, head and all.
pub fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("taken");
    let mut told = String::new();
    stream.read_to_string(&mut told).expect("text");
    told
}

pub fn request(max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::Prompt("秋天".into())),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        sampling: Some(Sampling { seed: Some(11), temperature: Some(1.0), ..Default::default() }),
        ..Default::default()
    }
}

/// Token ids of a streamed generation that must end well.
pub async fn stream(client: &mut InferenceClient<Channel>, request: GenerateRequest) -> Vec<u32> {
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
