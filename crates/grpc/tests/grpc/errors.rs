//! What clients and the server can do wrong, and what clients hear of it.

use lingqu_grpc::GrpcConfig;
use lingqu_proto::v1;
use lingqu_proto::v1::generate_request::Input;
use lingqu_testkit::toy::{TOY_VOCAB, ToyFaults};
use lingqu_types::Limits;
use tonic::Code;

use crate::server::{Options, TestServer, chat, prompt, token_ids, until};
use crate::toy;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_fields_are_named() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let check = async |field: &str, edit: fn(&mut v1::GenerateRequest)| {
        let mut request = prompt("x");
        edit(&mut request);
        let once = server.once(request.clone()).await.expect_err(field);
        let streamed = server.streamed(request).await.expect_err(field);
        for error in [once, streamed] {
            assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error}");
            assert!(error.message().starts_with(&format!("{field}:")), "{field}: {}", error.message());
        }
    };
    fn sampling(request: &mut v1::GenerateRequest) -> &mut v1::Sampling {
        request.sampling.get_or_insert_default()
    }
    check("input", |r| r.input = None).await;
    check("prompt", |r| (r.input, r.add_special_tokens) = (Some(Input::Prompt(String::new())), Some(false))).await;
    check("prompt", |r| r.input = Some(Input::Prompt("x".repeat(100)))).await;
    check("prompt", |r| r.input = Some(Input::Prompt("x".repeat((2 << 20) + 1)))).await;
    check("chat", |r| r.input = Some(Input::Chat(chat(&[("user", &"x".repeat(100))])))).await;
    check("chat.messages", |r| r.input = Some(Input::Chat(chat(&[])))).await;
    check("chat.messages", |r| r.input = Some(Input::Chat(chat(&[("user", "x"); 2049])))).await;
    check("chat", |r| r.input = Some(Input::Chat(chat(&[("tool", "42")])))).await;
    check("chat.messages[1].role", |r| r.input = Some(Input::Chat(chat(&[("user", "x"), ("robot", "y")])))).await;
    check("token_ids.ids", |r| r.input = token_ids(&[])).await;
    check("token_ids.ids", |r| r.input = token_ids(&[0, TOY_VOCAB as u32])).await;
    check("token_ids.ids", |r| r.input = token_ids(&[u32::MAX])).await;
    check("token_ids.ids", |r| r.input = token_ids(&[1; 101])).await;
    check("sampling.temperature", |r| sampling(r).temperature = Some(-0.5)).await;
    check("sampling.temperature", |r| sampling(r).temperature = Some(f32::NAN)).await;
    check("sampling.top_p", |r| sampling(r).top_p = Some(1.5)).await;
    check("sampling.min_p", |r| sampling(r).min_p = Some(-1.0)).await;
    check("sampling.repetition_penalty", |r| sampling(r).repetition_penalty = Some(0.0)).await;
    check("sampling.presence_penalty", |r| sampling(r).presence_penalty = Some(9.0)).await;
    check("sampling.frequency_penalty", |r| sampling(r).frequency_penalty = Some(-9.0)).await;
    check("sampling.logit_bias", |r| sampling(r).logit_bias = [(1, 101.0)].into()).await;
    check("sampling.logit_bias", |r| sampling(r).logit_bias = [(TOY_VOCAB as u32, 1.0)].into()).await;
    check("stop", |r| r.stop = vec!["x".into(); 17]).await;
    check("stop[0]", |r| r.stop = vec![String::new()]).await;
    check("stop[1]", |r| r.stop = vec!["x".into(), "x".repeat(257)]).await;
    check("stop_token_ids", |r| r.stop_token_ids = vec![1; 65]).await;
    check("stop_token_ids", |r| r.stop_token_ids = vec![TOY_VOCAB as u32]).await;
    check("logprobs", |r| r.logprobs = Some(6)).await;
    check("prompt_logprobs", |r| r.prompt_logprobs = Some(6)).await;
    server.until_idle().await;
    assert!(server.once(prompt("x")).await.is_ok(), "the server is none the worse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_models_are_not_found() {
    let (server, _) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    let model = "gpt-9".to_owned();
    let error = server.once(v1::GenerateRequest { model: model.clone(), ..prompt("x") }).await.expect_err("unknown");
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("toy"), "{}", error.message());
    let tokenize = v1::TokenizeRequest { model: model.clone(), ..Default::default() };
    assert_eq!(server.tokenizer().tokenize(tokenize).await.expect_err("unknown").code(), Code::NotFound);
    let detokenize = v1::DetokenizeRequest { model, ..Default::default() };
    assert_eq!(server.tokenizer().detokenize(detokenize).await.expect_err("unknown").code(), Code::NotFound);
    let named = v1::GenerateRequest { model: "toy".into(), ..prompt("x") };
    assert!(server.once(named).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_template_cannot_chat() {
    let options = Options { with_template: false, ..Options::default() };
    let (server, _) = TestServer::toy(options, ToyFaults::default()).await;
    let request = v1::GenerateRequest { input: Some(Input::Chat(chat(&[("user", "x")]))), ..prompt("") };
    let error = server.once(request).await.expect_err("no template");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("no chat template"), "{}", error.message());
    assert!(server.once(prompt("x")).await.is_ok(), "plain text is fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_resource_exhausted() {
    let limits = Limits { queue_requests_max: 2, ..Limits::for_context(100, 1) };
    let (server, control) = TestServer::toy(Options { limits, ..Options::default() }, ToyFaults::default()).await;
    control.hold();
    let mut streams = Vec::new();
    let refused = loop {
        match server.inference().generate(prompt("x")).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 10, "the queue has a bound");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(streams.len() >= 2);
    control.release();
    for stream in streams {
        let mut stream = stream.into_inner();
        while stream.message().await.expect("those that were taken are answered").is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_server_are_internal_and_have_an_id() {
    let [lost, nan, memory] = [0, 1, 2].map(|i| toy::ids("ABC")[i]);
    let faults = ToyFaults { nan: Some(nan), out_of_memory: Some(memory), ..ToyFaults::default() };
    let (server, _) = TestServer::toy(Options::default(), faults).await;
    for text in ["B", "C"] {
        let error = server.once(prompt(text)).await.expect_err("a fault");
        assert_eq!(error.code(), Code::Internal, "{error}");
        assert!(error.message().contains("req-"), "{}", error.message());
    }
    let bias = [nan, memory].map(|id| (id, -100.0)).into();
    let sampling = v1::Sampling { logit_bias: bias, ..Default::default() };
    let harmless = v1::GenerateRequest { sampling: Some(sampling), ..prompt("x") };
    assert!(server.once(harmless).await.is_ok(), "one request's fault is not another's");

    let faults = ToyFaults { device_lost: Some(lost), ..ToyFaults::default() };
    let (server, _) = TestServer::toy(Options::default(), faults).await;
    assert_eq!(server.once(prompt("A")).await.expect_err("a fault").code(), Code::Internal);
    let handle = server.engine.handle();
    until("ended engine", || handle.ended().is_some()).await;
    assert_eq!(server.once(prompt("x")).await.expect_err("no engine").code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_too_large_for_one_message_are_refused() {
    let config = GrpcConfig { reply_bytes_max: 200, ..GrpcConfig::default() };
    let (server, _) = TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await;
    let request = v1::GenerateRequest { logprobs: Some(5), ignore_eos: true, ..prompt("x") };
    let error = server.once(request.clone()).await.expect_err("too large");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("streaming"), "{}", error.message());
    assert!(server.streamed(request).await.is_ok(), "the stream has no such bound");
    server.until_idle().await;
}
