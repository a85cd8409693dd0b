//! OpenEngine: generation and control.

use lingqu_proto::openengine as wire;
use lingqu_proto::openengine::abort_request::Target;
use lingqu_proto::openengine::candidate_token_selection::Selection;
use lingqu_proto::openengine::control_client::ControlClient;
use lingqu_proto::openengine::generate_request::Input;
use lingqu_proto::openengine::generate_response::Event;
use lingqu_proto::openengine::inference_client::InferenceClient;
use lingqu_testkit::toy::{TOY_ADAPTERS, TOY_VOCAB, ToyFaults};
use lingqu_types::Limits;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::server::{Options, TestServer, greedy, until};
use crate::toy;

fn inference(server: &TestServer) -> InferenceClient<Channel> {
    InferenceClient::new(server.channel.clone())
}

fn control(server: &TestServer) -> ControlClient<Channel> {
    ControlClient::new(server.channel.clone())
}

/// Up to 60 tokens, always the likeliest.
fn request(id: &str, text: &str) -> wire::GenerateRequest {
    wire::GenerateRequest {
        request_id: id.into(),
        model: "toy".into(),
        input: Some(Input::Prompt(text.into())),
        sampling: Some(wire::SamplingParams { temperature: Some(0.0), ..Default::default() }),
        stopping: Some(wire::StoppingOptions { max_tokens: Some(60), ..Default::default() }),
        ..Default::default()
    }
}

fn endless(id: &str) -> wire::GenerateRequest {
    let stopping = wire::StoppingOptions { ignore_eos: Some(true), ..Default::default() };
    wire::GenerateRequest { stopping: Some(stopping), ..request(id, "x") }
}

fn long() -> Options {
    Options { limits: Limits::for_context(1_000_000, 4), ..Options::default() }
}

/// All events; only the last may have usage.
async fn events(mut stream: Streaming<wire::GenerateResponse>) -> Result<Vec<wire::GenerateResponse>, Status> {
    let mut events: Vec<wire::GenerateResponse> = Vec::new();
    while let Some(event) = stream.message().await? {
        assert!(events.last().is_none_or(|last| last.usage.is_none()), "usage comes with the last event");
        events.push(event);
    }
    assert!(events.last().is_some_and(|last| last.usage.is_some()), "{events:?}");
    Ok(events)
}

async fn generate(server: &TestServer, request: wire::GenerateRequest) -> Result<Vec<wire::GenerateResponse>, Status> {
    events(inference(server).generate(request).await?.into_inner()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_that_of_our_own_protocol() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let own = server.once(greedy("hello")).await.expect("a reply");
    let own_end = own.finished.expect("an end");
    let top_n = |n| Some(wire::CandidateTokenSelection { selection: Some(Selection::TopN(n)) });
    let response = wire::ResponseOptions {
        return_prompt_logprobs: Some(true),
        prompt_candidates: top_n(2),
        output_candidates: top_n(3),
        ..Default::default()
    };
    let asked = wire::GenerateRequest { response: Some(response), ..request("r1", "hello") };
    let events = generate(&server, asked).await.expect("events");
    assert!(events.iter().all(|event| event.request_id == "r1"));
    let Some(Event::Prompt(prompt)) = &events[0].event else { panic!("{:?}", events[0]) };
    assert_eq!(prompt.tokens.iter().map(|t| t.token.as_str()).collect::<String>(), "<bos>hello");
    assert_eq!((prompt.tokens[0].logprob, prompt.tokens[0].candidates.len()), (None, 0));
    assert_eq!(prompt.tokens[1].candidates.len(), 2);
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for event in &events[1..events.len() - 1] {
        let Some(Event::Token(output)) = &event.event else { panic!("{event:?}") };
        assert_eq!(output.output_index, Some(0));
        text += &output.text;
        for token in &output.tokens {
            // The likeliest token leads the candidates.
            assert_eq!((token.rank, token.candidates.len()), (Some(1), 3));
            assert_eq!(token.candidates[0].token_id, token.token_id);
            tokens.push(token.token_id);
        }
    }
    assert_eq!((text, tokens), (own.text, own.token_ids));
    let last = events.last().expect("an end");
    let Some(Event::Finished(end)) = &last.event else { panic!("{last:?}") };
    assert_eq!((end.output_index, end.reason), (Some(0), own_end.reason));
    let (usage, own) = (last.usage.expect("usage"), own_end.usage.expect("usage"));
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (own.prompt_tokens, own.completion_tokens));
    assert_eq!(usage.total_tokens, own.prompt_tokens + own.completion_tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_are_told_apart() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let sampling =
        wire::SamplingParams { seed: Some(5), temperature: Some(1.0), num_sequences: Some(3), ..Default::default() };
    let input = Some(Input::TokenIds(wire::TokenIds { ids: toy::ids("<bos>ab") }));
    let asked = wire::GenerateRequest { sampling: Some(sampling), input, ..request("", "") };
    let events = generate(&server, asked).await.expect("events");
    let mut ends = [0; 3];
    for event in &events {
        match event.event.as_ref().expect("an event") {
            Event::Token(output) => assert_eq!(ends[output.output_index.expect("which") as usize], 0),
            Event::Finished(end) => ends[end.output_index.expect("which") as usize] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ends, [1; 3]);
    assert!(!events[0].request_id.is_empty(), "the server names what the client does not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_requests_are_refused_before_they_are_taken() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let check = async |code: Code, field: &str, edit: fn(&mut wire::GenerateRequest)| {
        let mut asked = request("", "x");
        edit(&mut asked);
        let error = generate(&server, asked).await.expect_err(field);
        assert_eq!(error.code(), code, "{field}: {error}");
        assert!(error.message().starts_with(&format!("{field}:")), "{field}: {}", error.message());
    };
    let invalid = Code::InvalidArgument;
    check(invalid, "input", |r| r.input = None).await;
    check(invalid, "prompt", |r| r.input = Some(Input::Prompt("x".repeat(100)))).await;
    check(invalid, "token_ids.ids", |r| {
        r.input = Some(Input::TokenIds(wire::TokenIds { ids: vec![TOY_VOCAB as u32] }));
    })
    .await;
    check(invalid, "sampling.top_p", |r| r.sampling.get_or_insert_default().top_p = Some(f64::INFINITY)).await;
    check(invalid, "n", |r| r.sampling.get_or_insert_default().num_sequences = Some(1000)).await;
    check(invalid, "media", |r| r.media = vec![wire::MediaItem::default()]).await;
    check(invalid, "request_id", |r| r.request_id = "x".repeat(257)).await;
    check(Code::FailedPrecondition, "kv.session", |r| {
        r.kv.get_or_insert_default().session = Some(wire::KvSessionRef::default());
    })
    .await;
    check(Code::NotFound, "model", |r| r.model = "gpt".into()).await;
    check(Code::NotFound, "lora_name", |r| r.lora_name = "gamma".into()).await;
    let guided = |text: &str| wire::GuidedDecoding {
        guide: Some(wire::guided_decoding::Guide::Regex(text.into())),
        ..Default::default()
    };
    let error = generate(&server, wire::GenerateRequest { guided: Some(guided("(")), ..request("", "x") }).await;
    let error = error.expect_err("no regex");
    assert!(error.message().starts_with("guided.regex: "), "{error}");
    let events = generate(&server, wire::GenerateRequest { guided: Some(guided("abc")), ..request("", "x") }).await;
    let text = events.expect("events").into_iter().map(|event| match event.event {
        Some(Event::Token(output)) => output.text,
        _ => String::new(),
    });
    assert_eq!(text.collect::<String>(), "abc");
    let mut urgent = Request::new(request("", "x"));
    urgent.metadata_mut().insert("openengine-priority", "very".parse().expect("ascii"));
    let error = inference(&server).generate(urgent).await.expect_err("no number");
    assert!(error.message().starts_with("openengine-priority: "), "{error}");
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_aborted_by_name() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let abort = async |target: Option<Target>| {
        let reply = control(&server).abort(wire::AbortRequest { target }).await;
        reply.map(|reply| reply.into_inner().status())
    };
    let by_name = |name: &str| Some(Target::RequestId(name.into()));
    let mut a = inference(&server).generate(endless("a")).await.expect("room").into_inner();
    a.message().await.expect("no error").expect("an event");
    let b = inference(&server).generate(endless("b")).await.expect("room").into_inner();
    let twice = inference(&server).generate(endless("a")).await.expect_err("its name is taken");
    assert_eq!(twice.code(), Code::AlreadyExists);
    assert_eq!(abort(None).await.expect_err("no target").code(), Code::InvalidArgument);
    assert_eq!(abort(by_name("c")).await.expect_err("unknown").code(), Code::NotFound);
    assert_eq!(abort(by_name("a")).await.expect("known"), wire::AbortStatus::Aborted);
    let ended = events(a).await.expect("an end");
    let Some(Event::Finished(end)) = &ended.last().expect("one").event else { panic!("{ended:?}") };
    assert_eq!(end.reason(), wire::FinishReason::Cancelled);
    let handle = server.engine.handle();
    until("one", || handle.load().running == 1).await;
    assert_eq!(abort(by_name("a")).await.expect("known"), wire::AbortStatus::AlreadyFinished);
    assert_eq!(abort(Some(Target::AllRequests(wire::AllRequests {}))).await.expect("all"), wire::AbortStatus::Aborted);
    events(b).await.expect("an end");
    server.until_idle().await;
    let mut dropped = inference(&server).generate(endless("d")).await.expect("room").into_inner();
    dropped.message().await.expect("no error").expect("an event");
    drop(dropped);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_after_a_request_is_taken_are_events() {
    let faults = ToyFaults { nan: Some(toy::ids("A")[0]), ..ToyFaults::default() };
    let (server, _) = TestServer::toy(Options::default(), faults).await;
    let events = generate(&server, request("r", "A")).await.expect("the stream itself is well");
    let Some(Event::Error(error)) = &events.last().expect("one").event else { panic!("{events:?}") };
    assert_eq!((error.code(), error.retryable), (wire::ErrorCode::Internal, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_tells_of_itself() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let mut control = control(&server);
    let info = control.get_server_info(wire::GetServerInfoRequest {}).await.expect("information").into_inner();
    assert_eq!((info.schema_revision, info.supported_models), (1, vec!["toy".to_owned()]));
    assert_eq!(info.engine_role, i32::from(wire::EngineRole::Aggregated));
    assert!(info.capacity.expect("capacity").total_kv_blocks.expect("known") > 0);
    let asked = wire::GetModelInfoRequest { model: "toy".into() };
    let model = control.get_model_info(asked).await.expect("information").into_inner();
    assert_eq!(model.max_context_length, Some(100));
    assert_eq!(model.generation.expect("abilities").output_logprobs.expect("some").max_top_n, Some(5));
    let asked = wire::GetModelInfoRequest { model: "gpt".into() };
    assert_eq!(control.get_model_info(asked).await.expect_err("unknown").code(), Code::NotFound);
    let load = control.get_load(wire::GetLoadRequest { include_per_rank: true }).await.expect("a load").into_inner();
    assert_eq!((load.running_requests, load.queued_requests, load.ranks.len()), (Some(0), Some(0), 1));
    for (role, probe, expected) in [
        (wire::EngineRole::Unspecified, false, wire::HealthState::Ready),
        (wire::EngineRole::Aggregated, true, wire::HealthState::Ready),
        (wire::EngineRole::Decode, true, wire::HealthState::NotReady),
    ] {
        let asked = wire::HealthRequest { include_inference_probe: probe, model: String::new(), role: role.into() };
        let health = control.health(asked).await.expect("health").into_inner();
        assert_eq!(health.state(), expected, "{health:?}");
    }
    let loras = control.list_loras(wire::ListLorasRequest {}).await.expect("a list").into_inner();
    let names: Vec<&str> = loras.adapters.iter().map(|adapter| adapter.lora_name.as_str()).collect();
    assert_eq!(names, TOY_ADAPTERS);
    let error = control.load_lora(wire::LoadLoraRequest::default()).await.expect_err("not here");
    assert_eq!(error.code(), Code::Unimplemented);
    let sources = control.get_kv_event_sources(wire::GetKvEventSourcesRequest::default()).await.expect("a list");
    assert!(sources.into_inner().sources.is_empty());
    let error = control.subscribe_kv_events(wire::SubscribeKvEventsRequest::default()).await.expect_err("not here");
    assert_eq!(error.code(), Code::Unimplemented);
}
