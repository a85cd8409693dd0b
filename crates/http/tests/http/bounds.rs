//! Clients that take too much.

use std::time::Duration;

use lingqu_http::HttpConfig;
use lingqu_testkit::toy::{ToyControl, ToyFaults};
use lingqu_types::Limits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::server::{CHAT, COMPLETION, Options, PATIENCE, TestServer, chat, completion, post, whole};

async fn toy(config: HttpConfig) -> (TestServer, std::sync::Arc<ToyControl>) {
    TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await
}

/// What the server answers to these bytes, until it closes.
async fn noise(server: &TestServer, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.expect("a connection");
    stream.write_all(bytes).await.expect("taken");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("the server closes").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed_while_all_are_busy() {
    let (server, control) = toy(HttpConfig { connections_max: 1, ..HttpConfig::default() }).await;
    control.hold();
    let running = server.send(post(CHAT, chat("x", json!({"stream": true})).to_string())).await;
    let mut second = TcpStream::connect(server.address).await.expect("the backlog takes it");
    assert_eq!(second.read(&mut [0; 64]).await.expect("closed, not reset"), 0);
    control.release();
    assert!(whole(running).await.text.ends_with("data: [DONE]\n\n"), "the first goes on");
    server.ask(CHAT, &chat("x", json!({}))).await;
}

/// What is sent of a request before it is left.
const HALVES: [&str; 4] = [
    "",
    "POST /v1/completions HTTP/1.1\r\nhost: x\r\n",
    "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n",
    "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"mod",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_begun_and_left_keep_nobody_out() {
    let config = HttpConfig { connections_max: 16, requests_max: 4, ..HttpConfig::default() };
    let (server, _) = toy(config).await;
    let mut left = Vec::new();
    for i in 0..300 {
        let mut stream = TcpStream::connect(server.address).await.expect("the backlog takes it");
        stream.write_all(HALVES[i % HALVES.len()].as_bytes()).await.ok();
        left.push(stream);
        if i % 100 == 50 {
            server.ask(CHAT, &chat("x", json!({}))).await;
        }
    }
    server.ask(CHAT, &chat("x", json!({}))).await;
    for mut stream in left.drain(..300 - 16) {
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        end.expect("closed").ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_requests_that_were_left_keep_nobody_out() {
    let (server, _) = toy(HttpConfig { request_bytes_in_flight_max: 1000, ..HttpConfig::default() }).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let half = format!("{head}content-length: 900\r\nconnection: close\r\n\r\n{}", " ".repeat(400));
    let mut left = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(server.address).await.expect("a connection");
        stream.write_all(half.as_bytes()).await.expect("taken");
        left.push(stream);
        server.ask(CHAT, &chat("x", json!({}))).await;
    }
    for mut stream in left.drain(..18) {
        let mut answer = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        end.expect("closed").ok();
        assert!(answer.starts_with(b"HTTP/1.1 429"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_too_many_is_refused_but_health_answers() {
    let (server, control) = toy(HttpConfig { requests_max: 1, ..HttpConfig::default() }).await;
    control.hold();
    let running = server.send(post(CHAT, chat("x", json!({"stream": true})).to_string())).await;
    let refused = server.post(CHAT, &chat("x", json!({}))).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/metrics").await.status, 200);
    control.release();
    assert!(whole(running).await.text.ends_with("data: [DONE]\n\n"));
    server.ask(CHAT, &chat("x", json!({}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_never_arrive_are_given_up() {
    let config = HttpConfig {
        header_read_timeout: Duration::from_millis(50),
        request_read_timeout: Duration::from_millis(50),
        ..HttpConfig::default()
    };
    let (server, _) = toy(config).await;
    for silence in ["", "GET", "POST /v1/completions HTTP/1.1\r\nhost: x\r\n"] {
        noise(&server, silence.as_bytes()).await;
    }
    // Answered, then silent: closed too.
    assert!(noise(&server, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    for rest in ["content-length: 100\r\n\r\n{", "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"] {
        let answer = noise(&server, format!("{head}{rest}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    let slow = completion("x", json!({"ignore_eos": true, "max_tokens": 90}));
    server.ask(COMPLETION, &slow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_too_large_are_refused() {
    let large = || completion("", json!({"prompt": vec![1; 2000]}));
    let (server, _) = toy(HttpConfig { request_bytes_max: 1000, ..HttpConfig::default() }).await;
    assert_eq!(server.post(COMPLETION, &large()).await.status, 413);
    // Without saying so beforehand.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 900, "x".repeat(900));
    let chunked = format!("{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    let answer = noise(&server, chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let (server, _) = toy(HttpConfig { request_bytes_in_flight_max: 1000, ..HttpConfig::default() }).await;
    for _ in 0..3 {
        assert_eq!(server.post(COMPLETION, &large()).await.status, 429);
        server.ask(COMPLETION, &completion("x", json!({}))).await;
    }
    let (server, _) = toy(HttpConfig::default()).await;
    let headers = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(64 << 10));
    assert!(noise(&server, headers.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let headers = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert!(noise(&server, headers.as_bytes()).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_http_hurts_nobody() {
    let config = HttpConfig { header_read_timeout: Duration::from_millis(50), ..HttpConfig::default() };
    let (server, _) = toy(config).await;
    for bytes in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff"[..], b"\x16\x03\x01\x02\x00", &[0; 4096]] {
        noise(&server, bytes).await;
    }
    let doubled = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}";
    assert!(noise(&server, doubled.as_bytes()).await.starts_with("HTTP/1.1 400"));
    server.ask(CHAT, &chat("x", json!({}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_cut_off() {
    let config = HttpConfig { write_stall_timeout: Duration::from_millis(100), ..HttpConfig::default() };
    let options = Options { config, limits: Limits::for_context(1_000_000, 4), ..Options::default() };
    let (server, _) = TestServer::toy(options, ToyFaults::default()).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream = socket.connect(server.address).await.expect("a connection");
    let body = completion("x", json!({"stream": true, "ignore_eos": true, "max_tokens": 900_000})).to_string();
    let head = format!("POST {COMPLETION} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("taken");
    server.until_running(1).await;
    server.until_idle().await;
    server.ask(CHAT, &chat("x", json!({}))).await;
}
