//! Clients that take too much.

use std::time::Duration;

use lingqu_grpc::GrpcConfig;
use lingqu_proto::v1;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_testkit::toy::ToyFaults;
use lingqu_types::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use crate::server::{Options, PATIENCE, TestServer, prompt, token_ids, until};

async fn toy(config: GrpcConfig) -> (TestServer, std::sync::Arc<lingqu_testkit::toy::ToyControl>) {
    TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed_while_all_are_busy() {
    let (server, control) = toy(GrpcConfig { connections_max: 1, ..GrpcConfig::default() }).await;
    control.hold();
    let mut running = server.inference().generate(prompt("x")).await.expect("room").into_inner();
    let mut second = TcpStream::connect(server.address).await.expect("the backlog takes it");
    assert_eq!(second.read(&mut [0; 64]).await.expect("closed, not reset"), 0);
    control.release();
    while running.message().await.expect("the first goes on").is_some() {}
    // Now it asks nothing: another takes its place.
    let channel = server.connect().await.expect("a place");
    assert!(InferenceClient::new(channel).generate_once(prompt("x")).await.is_ok());
}

/// What is sent of a connection before it is left, in turn: nothing, a part of the preface, all of it.
const HALVES: [&[u8]; 3] = [b"", b"PRI * HTTP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ask_nothing_keep_nobody_out() {
    let (server, _) = toy(GrpcConfig { connections_max: 16, ..GrpcConfig::default() }).await;
    assert!(server.once(prompt("x")).await.is_ok());
    let mut left = Vec::new();
    for i in 0..300 {
        let mut stream = TcpStream::connect(server.address).await.expect("the backlog takes it");
        stream.write_all(HALVES[i % HALVES.len()]).await.ok();
        left.push(stream);
        if i % 100 == 50 {
            let channel = server.connect().await.expect("a place");
            assert!(InferenceClient::new(channel).generate_once(prompt("x")).await.is_ok(), "among {i}");
        }
    }
    assert!(server.once(prompt("x")).await.is_ok(), "who has asked before stays longest");
    // All but the last are closed; what the server had sent of its own comes before that.
    for mut stream in left.drain(..300 - 16) {
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        end.expect("closed").ok();
    }
}

/// Begins a call as a client does, sends `requests`, and never ends it.
fn leave(server: &TestServer, path: &'static str, requests: usize) -> JoinHandle<Result<(), Status>> {
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    tokio::spawn(async move {
        client.ready().await.expect("a connection");
        let sent = tokio_stream::iter(std::iter::repeat_with(|| prompt("x")).take(requests));
        let request = Request::new(sent.chain(tokio_stream::pending()));
        let codec = ProstCodec::<v1::GenerateRequest, v1::GenerateReply>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let mut replies = client.streaming(request, path, codec).await?.into_inner();
        while replies.message().await?.is_some() {}
        Ok(())
    })
}

const ONCE: &str = "/lingqu.v1.Inference/GenerateOnce";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_begun_and_left_keep_nobody_out() {
    let config = GrpcConfig { calls_max: 4, arriving_max: 16, ..GrpcConfig::default() };
    let (server, _) = toy(config).await;
    // With no message, with one but no end, on a stream of requests, and where no place is needed.
    let mut left = Vec::new();
    for i in 0..300 {
        let (path, requests) = [(ONCE, 0), (ONCE, 1), (STREAM, 0), (HEALTH, 0)][i % 4];
        left.push(leave(&server, path, requests));
        if i % 100 == 99 {
            let hanging = || left.iter().filter(|call| !call.is_finished()).count();
            until("all but the last given up", || hanging() <= 16).await;
            server.once(prompt("x")).await.unwrap_or_else(|error| panic!("among {i}: {error}"));
        }
    }
    for call in left.into_iter().filter(JoinHandle::is_finished) {
        let end = call.await.expect("no panic").expect_err("given up");
        assert_eq!(end.code(), Code::ResourceExhausted, "{end}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_requests_that_were_left_keep_nobody_out() {
    let (server, _) = toy(GrpcConfig { request_bytes_in_flight_max: 400, ..GrpcConfig::default() }).await;
    let left: Vec<_> = (0..50).map(|_| leave(&server, ONCE, 10)).collect();
    until("most given up", || left.iter().filter(|call| !call.is_finished()).count() <= 4).await;
    for _ in 0..5 {
        server.once(prompt("x")).await.expect("room");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_too_many_is_refused_but_health_answers() {
    let (server, control) = toy(GrpcConfig { calls_max: 1, ..GrpcConfig::default() }).await;
    control.hold();
    let running = server.inference().generate(prompt("x")).await.expect("room");
    let error = server.once(prompt("x")).await.expect_err("no room");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let check = HealthCheckRequest { service: String::new() };
    assert!(HealthClient::new(server.channel.clone()).check(check).await.is_ok());
    control.release();
    let mut running = running.into_inner();
    while running.message().await.expect("no error").is_some() {}
    for _ in 0..200 {
        server.once(prompt("x")).await.expect("the place of the call before is free again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_never_arrive_are_given_up() {
    let config = GrpcConfig { request_read_timeout: Duration::from_millis(50), ..GrpcConfig::default() };
    let (server, _) = toy(config).await;
    // A call as a client makes it, but for its request, which never comes.
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.expect("a connection");
    let silence = Request::new(tokio_stream::pending::<v1::GenerateRequest>());
    let path = http::uri::PathAndQuery::from_static("/lingqu.v1.Inference/GenerateOnce");
    let codec = ProstCodec::<v1::GenerateRequest, v1::GenerateReply>::default();
    let ended = tokio::time::timeout(Duration::from_secs(30), client.client_streaming(silence, path, codec)).await;
    assert_eq!(ended.expect("an end").expect_err("given up").code(), Code::DeadlineExceeded);
    let slow = v1::GenerateRequest { ignore_eos: true, ..prompt("x") };
    assert!(server.once(slow).await.is_ok(), "only the request must be in time, not the reply");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_too_large_are_refused() {
    let request = || v1::GenerateRequest { input: token_ids(&[1; 2000]), ..prompt("") };
    let (server, _) = toy(GrpcConfig { request_bytes_max: 1000, ..GrpcConfig::default() }).await;
    let error = server.once(request()).await.expect_err("too large");
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    let (server, _) = toy(GrpcConfig { request_bytes_in_flight_max: 1000, ..GrpcConfig::default() }).await;
    for _ in 0..3 {
        let error = server.once(request()).await.expect_err("too large");
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(server.once(prompt("x")).await.is_ok(), "what was held is given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_given_up() {
    let config = GrpcConfig { calls_max: 1, write_stall_timeout: Duration::from_millis(100), ..GrpcConfig::default() };
    let options = Options { config, limits: Limits::for_context(1_000_000, 4), ..Options::default() };
    let (server, _) = TestServer::toy(options, ToyFaults::default()).await;
    let channel = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    let channel = channel.initial_stream_window_size(1024).connect().await.expect("a server");
    let long = v1::GenerateRequest { ignore_eos: true, max_tokens: Some(900_000), ..prompt("x") };
    let mut unread = InferenceClient::new(channel).generate(long).await.expect("room").into_inner();
    server.until_idle().await;
    server.once(prompt("x")).await.expect("its place is free again");
    let end = loop {
        match unread.message().await {
            Ok(event) => assert!(event.is_some(), "it was cut off"),
            Err(end) => break end,
        }
    };
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_grpc_hurts_nobody() {
    let (server, _) = toy(GrpcConfig::default()).await;
    for noise in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff", &[0; 4096]]
    {
        let mut stream = TcpStream::connect(server.address).await.expect("a connection");
        stream.write_all(noise).await.expect("taken");
        stream.shutdown().await.expect("half closed");
        let end = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut Vec::new())).await;
        end.expect("closed").ok();
    }
    assert!(server.once(prompt("x")).await.is_ok());
}
