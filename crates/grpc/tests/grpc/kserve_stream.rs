//! Many requests on one KServe stream.

use std::collections::BTreeMap;
use std::time::Duration;

use lingqu_grpc::GrpcConfig;
use lingqu_proto::inference as wire;
use lingqu_proto::inference::infer_parameter::ParameterChoice;
use lingqu_testkit::toy::ToyFaults;
use lingqu_types::Limits;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

use crate::kserve::{Raw, client, max_tokens, parameter, request, texts, uints, with};
use crate::server::{Options, TestServer, greedy, until};

type Requests = mpsc::UnboundedSender<wire::ModelInferRequest>;
type Responses = Streaming<wire::ModelStreamInferResponse>;

/// The client's two ends of a stream.
async fn open(server: &TestServer) -> (Requests, Responses) {
    let (requests, receiver) = mpsc::unbounded_channel();
    let responses = client(server).model_stream_infer(UnboundedReceiverStream::new(receiver)).await;
    (requests, responses.expect("a stream").into_inner())
}

fn streaming(request: wire::ModelInferRequest) -> wire::ModelInferRequest {
    with(request, "stream", Raw("BOOL", &[1], vec![1]))
}

fn endless(id: &str) -> wire::ModelInferRequest {
    streaming(with(request(id, "x"), "ignore_eos", Raw("BOOL", &[1], vec![1])))
}

fn is_final(response: &wire::ModelInferResponse) -> bool {
    parameter(response, "triton_final_response") == ParameterChoice::BoolParam(true)
}

fn long() -> Options {
    Options { limits: Limits::for_context(1_000_000, 4), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_stream_are_answered_side_by_side() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let prompts = ["hello", "x", "yz", "abc", "q", "lingqu"];
    let (requests, mut responses) = open(&server).await;
    for (index, prompt) in prompts.iter().enumerate() {
        let request = max_tokens(request(&format!("r{index}"), prompt), 60);
        // Every second one wants its answer at once.
        let request = if index % 2 == 0 { streaming(request) } else { request };
        requests.send(request).expect("open");
    }
    drop(requests);
    let mut answers: BTreeMap<String, (String, u32, bool)> = BTreeMap::new();
    while let Some(response) = responses.message().await.expect("no error") {
        assert_eq!(response.error_message, "");
        let response = response.infer_response.expect("a response");
        let (text, tokens, over) = answers.entry(response.id.clone()).or_default();
        assert!(!*over, "nothing comes after the last");
        *text += &texts(&response, "text_output")[0];
        *tokens += uints(&response, "num_output_tokens")[0];
        *over = is_final(&response);
        assert_eq!(texts(&response, "finish_reason")[0].is_empty(), !*over);
    }
    assert_eq!(answers.len(), prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        let own = server.once(greedy(prompt)).await.expect("a reply");
        let expected = (own.text, own.token_ids.len() as u32, true);
        assert_eq!(answers[&format!("r{index}")], expected, "{prompt}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_ends_its_request_alone() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let (requests, mut responses) = open(&server).await;
    requests.send(streaming(max_tokens(request("bad", "x"), -1))).expect("open");
    let response = responses.message().await.expect("no error").expect("a response");
    assert!(response.error_message.starts_with("max_tokens: "), "{}", response.error_message);
    let named = response.infer_response.expect("whose it is");
    assert_eq!((named.id.as_str(), is_final(&named)), ("bad", true));
    requests.send(max_tokens(request("good", "x"), 2)).expect("the stream is still open");
    let response = responses.message().await.expect("no error").expect("a response");
    assert_eq!((response.error_message.as_str(), response.infer_response.expect("one").id.as_str()), ("", "good"));
    drop(requests);
    assert!(responses.message().await.expect("no error").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_stops_all_its_requests() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let (requests, mut responses) = open(&server).await;
    for id in ["a", "b", "c"] {
        requests.send(endless(id)).expect("open");
    }
    let mut seen: Vec<String> = Vec::new();
    while seen.len() < 3 {
        let response = responses.message().await.expect("no error").expect("a response");
        let id = response.infer_response.expect("one").id;
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    drop((requests, responses));
    server.until_idle().await;
    assert_eq!(server.engine.handle().load().kv_blocks_used, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_requests_of_a_stream_run_at_once() {
    let config = GrpcConfig { stream_requests_max: 2, ..GrpcConfig::default() };
    let (server, control) = TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await;
    control.hold();
    let (requests, mut responses) = open(&server).await;
    for index in 0..6 {
        requests.send(max_tokens(request(&format!("{index}"), "x"), 2)).expect("open");
    }
    let handle = server.engine.handle();
    until("two", || handle.load().running + handle.load().waiting == 2).await;
    // Another client's request comes after them, and still only two of the stream's are in the engine.
    let other = server.inference().generate(greedy("x")).await.expect("room");
    assert_eq!(handle.load().running + handle.load().waiting, 3);
    control.release();
    drop((requests, other));
    let mut answered = 0;
    while let Some(response) = responses.message().await.expect("no error") {
        assert_eq!(response.error_message, "");
        answered += 1;
    }
    assert_eq!(answered, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_is_closed_and_a_long_answer_is_not() {
    let config = GrpcConfig {
        stream_idle_timeout: Duration::from_millis(100),
        request_read_timeout: Duration::from_millis(50),
        ..GrpcConfig::default()
    };
    let (server, control) = TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await;
    control.hold();
    let (requests, mut responses) = open(&server).await;
    requests.send(max_tokens(request("slow", "x"), 3)).expect("open");
    let handle = server.engine.handle();
    until("one", || handle.load().running + handle.load().waiting == 1).await;
    let closed = tokio::time::timeout(Duration::from_millis(300), responses.message()).await;
    assert!(closed.is_err(), "its request runs on: {closed:?}");
    control.release();
    let response = responses.message().await.expect("no error").expect("a response");
    assert_eq!(response.infer_response.expect("one").id, "slow");
    let end = responses.message().await.expect_err("the stream was silent for too long");
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end}");
    drop(requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streams_requests_are_held_only_while_they_arrive() {
    let config = GrpcConfig { request_bytes_in_flight_max: 1000, ..GrpcConfig::default() };
    let (server, _) = TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await;
    let (requests, mut responses) = open(&server).await;
    for index in 0..20 {
        requests.send(max_tokens(request(&format!("{index}"), &"x".repeat(80)), 1)).expect("open");
        let response = responses.message().await.expect("within the budget").expect("a response");
        assert_eq!(response.error_message, "");
    }
}
