//! Models, tokenizer, reflection.

use lingqu_proto::v1;
use lingqu_proto::v1::tokenize_request::Input;
use lingqu_testkit::toy::{TOY_ADAPTERS, TOY_VOCAB, ToyFaults};
use tokio_stream::once;
use tonic::Code;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::server::{Options, TestServer, chat};
use crate::toy;

async fn toy() -> TestServer {
    TestServer::toy(Options::default(), ToyFaults::default()).await.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_is_listed_with_its_adapters() {
    let reply = toy().await.models().list_models(v1::ListModelsRequest {}).await.expect("a list").into_inner();
    let [model, adapters @ ..] = &reply.models[..] else { panic!("no model") };
    let v1::Model { default_sampling, .. } = model.clone();
    let sampling = default_sampling.expect("defaults");
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (Some(0.6), Some(0.95), None));
    let expected = v1::Model {
        name: "toy".into(),
        architecture: "toy".into(),
        context_tokens_max: 100,
        vocabulary_size: TOY_VOCAB as u32,
        fingerprint: "f00d".into(),
        weight_formats: vec!["none".into()],
        default_sampling: Some(sampling),
        eos_token_ids: toy::ids("<eos>"),
        has_chat_template: true,
        parent: String::new(),
    };
    assert_eq!(*model, expected);
    let adapter = |name: &str| v1::Model { name: name.into(), parent: "toy".into(), ..expected.clone() };
    assert_eq!(adapters, TOY_ADAPTERS.map(adapter));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_goes_to_tokens_and_back() {
    let server = toy().await;
    let mut client = server.tokenizer();
    for text in ["", "hello", "你好 ab.", "<user>", "|</think>|"] {
        let tokenize = v1::TokenizeRequest {
            input: Some(Input::Text(text.into())),
            add_special_tokens: Some(false),
            ..Default::default()
        };
        let tokens = client.tokenize(tokenize).await.expect("tokens").into_inner();
        assert_eq!((&tokens.token_ids, tokens.prompt.as_str()), (&toy::ids(text), text));
        assert_eq!(tokens.tokens.len(), tokens.token_ids.len());
        let detokenize = v1::DetokenizeRequest { token_ids: tokens.token_ids, ..Default::default() };
        assert_eq!(client.detokenize(detokenize).await.expect("text").into_inner().text, text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokenizer_options_are_heeded() {
    let server = toy().await;
    let tokens = async |input: Input, add: Option<bool>, parse: Option<bool>| {
        let request = v1::TokenizeRequest {
            model: String::new(),
            input: Some(input),
            add_special_tokens: add,
            parse_special_tokens: parse,
        };
        let reply = server.tokenizer().tokenize(request).await.expect("tokens").into_inner();
        (reply.tokens.join(" "), reply.prompt)
    };
    let text = || Input::Text("a<eos>".into());
    assert_eq!(tokens(text(), None, None).await.0, "<bos> a <eos>");
    assert_eq!(tokens(text(), Some(false), Some(false)).await.0, "a < e o s >");
    let (pieces, prompt) = tokens(Input::Chat(chat(&[("user", "a")])), None, None).await;
    assert_eq!((pieces.as_str(), prompt.as_str()), ("<bos> <user> a <assistant>", "<bos><user>a<assistant>"));
    let text = async |skip_special_tokens: bool| {
        let request =
            v1::DetokenizeRequest { model: "toy".into(), token_ids: toy::ids("a<eos>b"), skip_special_tokens };
        server.tokenizer().detokenize(request).await.expect("text").into_inner().text
    };
    assert_eq!((text(false).await, text(true).await), ("a<eos>b".to_owned(), "ab".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_tokenizer_calls_are_named() {
    let server = toy().await;
    let check = |error: tonic::Status, field: &str| {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().starts_with(&format!("{field}:")), "{}", error.message());
    };
    let tokenize = async |input: Option<Input>| {
        let request = v1::TokenizeRequest { input, ..Default::default() };
        server.tokenizer().tokenize(request).await.expect_err("invalid")
    };
    check(tokenize(None).await, "input");
    check(tokenize(Some(Input::Chat(chat(&[])))).await, "chat.messages");
    check(tokenize(Some(Input::Text("x".repeat((2 << 20) + 1)))).await, "text");
    let detokenize = async |token_ids: Vec<u32>| {
        let request = v1::DetokenizeRequest { token_ids, ..Default::default() };
        server.tokenizer().detokenize(request).await.expect_err("invalid")
    };
    check(detokenize(vec![TOY_VOCAB as u32]).await, "token_ids");
    check(detokenize(vec![1; 262_145]).await, "token_ids");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_lists_and_describes_the_services() {
    let server = toy().await;
    let ask = async |message: MessageRequest| -> ServerReflectionResponse {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let mut client = ServerReflectionClient::new(server.channel.clone());
        let mut replies = client.server_reflection_info(once(request)).await.expect("reflection").into_inner();
        replies.message().await.expect("no error").expect("an answer")
    };
    let listed = ask(MessageRequest::ListServices(String::new())).await;
    let Some(MessageResponse::ListServicesResponse(list)) = listed.message_response else { panic!("{listed:?}") };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    for name in [
        "lingqu.v1.Inference",
        "lingqu.v1.Models",
        "lingqu.v1.Tokenizer",
        "inference.GRPCInferenceService",
        "openengine.v1.Inference",
        "openengine.v1.Control",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let described = ask(MessageRequest::FileContainingSymbol("lingqu.v1.Inference.Generate".into())).await;
    let Some(MessageResponse::FileDescriptorResponse(files)) = described.message_response else {
        panic!("{described:?}")
    };
    let bytes = files.file_descriptor_proto.concat();
    let comment = "Cancelling the call stops the generation";
    assert!(bytes.windows(comment.len()).any(|w| w == comment.as_bytes()), "comments are told too");
}
