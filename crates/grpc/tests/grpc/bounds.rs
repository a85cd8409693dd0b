//! Clients that take too much.

use std::time::Duration;

use lingqu_grpc::GrpcConfig;
use lingqu_proto::v1;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_testkit::toy::ToyFaults;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use crate::server::{Options, TestServer, prompt, token_ids};

async fn toy(config: GrpcConfig) -> (TestServer, std::sync::Arc<lingqu_testkit::toy::ToyControl>) {
    TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed() {
    let (server, _) = toy(GrpcConfig { connections_max: 1, ..GrpcConfig::default() }).await;
    let mut second = TcpStream::connect(server.address).await.expect("the backlog takes it");
    assert_eq!(second.read(&mut [0; 64]).await.expect("closed, not reset"), 0);
    assert!(server.once(prompt("x")).await.is_ok(), "the first goes on");
    let TestServer { channel, address, .. } = server;
    drop(channel);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let again = async {
        loop {
            if let Ok(channel) = endpoint.connect().await
                && InferenceClient::new(channel).generate_once(prompt("x")).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("its place is free again");
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
    assert!(server.once(prompt("x")).await.is_ok(), "its place is free again");
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
