//! `lingqu serve` as clients and operators meet it: calls over loopback, SIGTERM, exit status.

mod support;

use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use lingqu_proto::v1::generate_event::Event;
use support::server::{Server, request, stream};

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
