//! Clients that go away, health, draining, the end.

use std::time::Duration;

use lingqu_grpc::{GrpcConfig, Phase};
use lingqu_proto::v1;
use lingqu_testkit::toy::ToyFaults;
use lingqu_types::Limits;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::server::{Options, TestServer, prompt, until};
use crate::toy;

/// A generation that does not end by itself for long.
fn endless() -> v1::GenerateRequest {
    v1::GenerateRequest { max_tokens: None, ignore_eos: true, ..prompt("x") }
}

/// Long enough that no generation ends while a test looks on.
fn long() -> Options {
    Options { limits: Limits::for_context(1_000_000, 4), ..Options::default() }
}

async fn health(server: &TestServer, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    let reply = HealthClient::new(server.channel.clone()).check(request).await.expect("a known service");
    reply.into_inner().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_streams_stop_their_generations() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = server.inference().generate(endless()).await.expect("room").into_inner();
        stream.message().await.expect("no error").expect("an event");
        streams.push(stream);
    }
    assert_eq!(server.engine.handle().load().running, 3);
    streams.pop();
    let handle = server.engine.handle();
    until("two", || handle.load().running == 2).await;
    drop(streams);
    server.until_idle().await;
    assert_eq!(server.engine.handle().load().kv_blocks_used, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_unary_calls_stop_their_generations() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let mut client = server.inference();
    let call = tokio::spawn(async move { client.generate_once(endless()).await });
    let handle = server.engine.handle();
    until("one", || handle.load().running == 1).await;
    call.abort();
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_stop_their_generations() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    let own = endpoint.connect().await.expect("a server");
    let mut client = v1::inference_client::InferenceClient::new(own);
    let stream = client.generate(endless()).await.expect("room");
    let handle = server.engine.handle();
    until("one", || handle.load().running == 1).await;
    drop((client, stream));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let (server, control) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    for service in ["", "lingqu.v1.Inference", "inference.GRPCInferenceService", "openengine.v1.Control"] {
        assert_eq!(health(&server, service).await, ServingStatus::Serving, "{service}");
    }
    let watched = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(server.channel.clone()).watch(watched).await.expect("a watch").into_inner();
    assert_eq!(watch.message().await.expect("no error").expect("a status").status(), ServingStatus::Serving);

    control.hold();
    let request = v1::GenerateRequest { ignore_eos: true, ..prompt("x") };
    let mut running = server.inference().generate(request).await.expect("room").into_inner();
    server.phase.send_replace(Phase::Draining);
    assert_eq!(watch.message().await.expect("no error").expect("a status").status(), ServingStatus::NotServing);
    let engine = server.engine.clone();
    let drain = tokio::task::spawn_blocking(move || engine.drain(Duration::from_secs(30)));
    let refused = loop {
        // The drain begins a moment after it is asked for.
        match server.inference().generate(prompt("x")).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(health(&server, "lingqu.v1.Inference").await, ServingStatus::NotServing);
    control.release();
    let mut tokens = 0;
    while let Some(event) = running.message().await.expect("it is finished, not cut off") {
        if let Some(v1::generate_event::Event::Delta(delta)) = event.event {
            tokens += delta.token_ids.len();
        }
    }
    assert_eq!(tokens, 12);
    assert_eq!(drain.await.expect("no panic").cut_off, 0);
    // A watch that is still open holds nothing up.
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_drain_cuts_off_is_told_so() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let mut running = server.inference().generate(endless()).await.expect("room").into_inner();
    running.message().await.expect("no error").expect("an event");
    let engine = server.engine.clone();
    tokio::task::spawn_blocking(move || engine.drain(Duration::from_millis(10))).await.expect("no panic");
    let end = loop {
        match running.message().await {
            Ok(Some(event)) => {
                if let Some(v1::generate_event::Event::Finished(end)) = event.event {
                    break Ok(end.reason());
                }
            }
            Ok(None) => panic!("a stream without an end"),
            Err(error) => break Err(error.code()),
        }
    };
    assert!(matches!(end, Ok(v1::FinishReason::Abort) | Err(Code::Unavailable)), "{end:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_cannot_hold_up_the_end() {
    let config = GrpcConfig { stop_timeout: Duration::from_millis(100), ..GrpcConfig::default() };
    let (server, _) = TestServer::toy(Options { config, ..long() }, ToyFaults::default()).await;
    let stream = server.inference().generate(endless()).await.expect("room").into_inner();
    server.stop().await;
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_tells_of_an_engine_that_has_ended() {
    let faults = ToyFaults { device_lost: Some(toy::ids("A")[0]), ..ToyFaults::default() };
    let (server, _) = TestServer::toy(Options::default(), faults).await;
    let watched = HealthCheckRequest { service: "lingqu.v1.Inference".into() };
    let mut watch = HealthClient::new(server.channel.clone()).watch(watched).await.expect("a watch").into_inner();
    assert_eq!(watch.message().await.expect("no error").expect("a status").status(), ServingStatus::Serving);
    assert!(server.once(prompt("A")).await.is_err());
    assert_eq!(watch.message().await.expect("no error").expect("a status").status(), ServingStatus::NotServing);
}
