//! Answers that must have a form, calls of tools, adapters. The toy's answers are noise: what has a form got it by
//! force.

use lingqu_proto::v1;
use lingqu_proto::v1::generate_request::{Format, Input};
use lingqu_proto::v1::tokenize_request::Input as TokenizeInput;
use lingqu_testkit::toy::{TOY_ADAPTERS, ToyFaults};
use lingqu_types::Limits;
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::kserve::{self, Raw, raw_texts, with};
use crate::server::{Options, TestServer, chat, greedy, prompt};

async fn toy() -> TestServer {
    let options = Options { limits: Limits::for_context(400, 4), ..Options::default() };
    TestServer::toy(options, ToyFaults::default()).await.0
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"kind": {"enum": ["fire", "theft"]}, "urgent": {"type": "boolean"}},
        "required": ["kind", "urgent"],
        "additionalProperties": false,
    })
}

fn tool(name: &str) -> String {
    json!({"type": "function", "function": {"name": name, "parameters": schema()}}).to_string()
}

/// A chat of up to 300 tokens.
fn ask(seed: u64) -> v1::GenerateRequest {
    let sampling = v1::Sampling { seed: Some(seed), ..Default::default() };
    let input = Some(Input::Chat(chat(&[("user", "x")])));
    v1::GenerateRequest { input, sampling: Some(sampling), max_tokens: Some(300), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_have_their_form() {
    let server = toy().await;
    let check = async |format: Format, fits: fn(&str) -> bool| {
        for seed in 0..4 {
            let request = v1::GenerateRequest { format: Some(format.clone()), ..ask(seed) };
            let reply = server.once(request).await.expect("a reply");
            assert!(fits(&reply.text), "{format:?}: {}", reply.text);
            let end = reply.finished.expect("an end");
            assert_eq!(end.reason(), v1::FinishReason::Stop, "{format:?}: {}", reply.text);
        }
    };
    let is_report = |text: &str| {
        let value: Value = serde_json::from_str(text).expect("JSON");
        ["fire", "theft"].contains(&value["kind"].as_str().expect("a kind")) && value["urgent"].is_boolean()
    };
    check(Format::JsonSchema(schema().to_string()), is_report).await;
    let options = vec!["yes".to_owned(), "no".to_owned()];
    check(Format::Choice(v1::Choice { options }), |text| ["yes", "no"].contains(&text)).await;
    check(Format::Regex("[a-c]{3}".into()), |text| text.len() == 3 && text.bytes().all(|b| b"abc".contains(&b))).await;
    check(Format::Lark("start: \"a\" \"b\"+ \"c\"".into()), |t| t.starts_with("ab") && t.ends_with('c')).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kserve_takes_forms_by_vllms_names() {
    let server = toy().await;
    let json = r#"{"guided_choice": ["yes", "no"], "max_tokens": 20, "temperature": 1}"#;
    let parameters = Raw("BYTES", &[1], raw_texts(&[json]));
    let request = with(kserve::request("", "x"), "sampling_parameters", parameters);
    let response = kserve::client(&server).model_infer(request).await.expect("a response").into_inner();
    let text = &kserve::texts(&response, "text_output")[0];
    assert!(["yes", "no"].contains(&text.as_str()), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_calls_are_calls() {
    let server = toy().await;
    for seed in 0..4 {
        for (choice, function) in [("required", ""), ("", "forward")] {
            let request = v1::GenerateRequest {
                tools: vec![tool("report"), tool("forward")],
                tool_choice: choice.into(),
                tool_choice_function: function.into(),
                ..ask(seed)
            };
            let (reply, _) = server.streamed(request).await.expect("a reply");
            assert!(!reply.tool_calls.is_empty(), "{reply:?}");
            let cut_off = reply.finished.expect("an end").reason() == v1::FinishReason::Length;
            for (index, call) in reply.tool_calls.iter().enumerate() {
                assert_eq!(call.index as usize, index);
                assert!(!call.id.is_empty());
                assert!(call.name == "forward" || (call.name == "report" && choice == "required"), "{call:?}");
                if !(cut_off && index + 1 == reply.tool_calls.len()) {
                    let arguments: Value = serde_json::from_str(&call.arguments).expect("JSON");
                    assert!(arguments["urgent"].is_boolean(), "{call:?}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_the_models_own_will_come_as_deltas() {
    let call = r#"<tool_call>{"name": "look", "arguments": {"at": "door"}}</tool_call>"#;
    let server = TestServer::reciting(&format!("<bos>look<user>x<assistant>ok {call}")).await;
    let look = r#"{"type": "function", "function": {"name": "look"}}"#.to_owned();
    let input = Some(Input::Chat(chat(&[("user", "x")])));
    let request = v1::GenerateRequest { input, tools: vec![look], max_tokens: Some(90), ..greedy("") };
    let mut stream = server.inference().generate(request.clone()).await.expect("a stream").into_inner();
    let mut deltas = 0;
    while let Some(event) = stream.message().await.expect("no error") {
        let Some(v1::generate_event::Event::Delta(delta)) = event.event else { continue };
        deltas += usize::from(!delta.tool_calls.is_empty());
    }
    assert!(deltas > 1, "the arguments come as they are written");
    let (streamed, _) = server.streamed(request.clone()).await.expect("a reply");
    let once = server.once(request).await.expect("a reply");
    for reply in [streamed, once] {
        assert_eq!(reply.text.trim_end(), "ok");
        let [call] = reply.tool_calls.as_slice() else { panic!("{reply:?}") };
        assert_eq!((call.index, call.name.as_str(), call.id.is_empty()), (0, "look", false));
        let arguments: Value = serde_json::from_str(&call.arguments).expect("JSON");
        assert_eq!(arguments, json!({"at": "door"}));
        assert_eq!(reply.finished.expect("an end").reason(), v1::FinishReason::Stop);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn earlier_calls_and_their_results_reach_the_template() {
    let server = toy().await;
    let mut talk = chat(&[("user", "x"), ("assistant", ""), ("tool", "open")]);
    let call = json!({"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}});
    talk.messages[1].tool_calls = vec![call.to_string()];
    talk.messages[2].tool_call_id = Some("c1".into());
    let request = v1::TokenizeRequest { input: Some(TokenizeInput::Chat(talk)), ..Default::default() };
    let prompt = server.tokenizer().tokenize(request).await.expect("a prompt").into_inner().prompt;
    assert_eq!(prompt, "<bos><user>x<assistant><tool_call>look</tool_call><tool>open<assistant>");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused() {
    let server = toy().await;
    let check = async |code: Code, field: &str, edit: fn(&mut v1::GenerateRequest)| {
        let mut request = ask(0);
        edit(&mut request);
        let error = server.once(request).await.expect_err(field);
        assert_eq!(error.code(), code, "{field}: {error}");
        assert!(error.message().starts_with(&format!("{field}: ")), "{field}: {}", error.message());
    };
    let invalid = Code::InvalidArgument;
    check(invalid, "json_schema", |r| r.format = Some(Format::JsonSchema("{".into()))).await;
    check(invalid, "json_schema", |r| {
        r.format = Some(Format::JsonSchema(r#"{"type": "novelty"}"#.into()));
    })
    .await;
    check(invalid, "regex", |r| r.format = Some(Format::Regex("(".into()))).await;
    check(invalid, "choice", |r| r.format = Some(Format::Choice(v1::Choice::default()))).await;
    check(invalid, "lark", |r| r.format = Some(Format::Lark("start: nothing".into()))).await;
    check(invalid, "json_object", |r| {
        (r.tools, r.format) = (vec![tool("look")], Some(Format::JsonObject(true)));
    })
    .await;
    check(invalid, "tools[1]", |r| r.tools = vec![tool("look"), "{".into()]).await;
    check(invalid, "tool_choice", |r| (r.tools, r.tool_choice) = (vec![tool("look")], "maybe".into())).await;
    check(invalid, "tool_choice_function", |r| {
        (r.tools, r.tool_choice_function) = (vec![tool("look")], "fly".into());
    })
    .await;
    check(Code::NotFound, "adapter", |r| r.adapter = "gamma".into()).await;
    let error = {
        let mut request = Request::new(prompt("x"));
        request.metadata_mut().insert("x-lingqu-priority", "urgent".parse().expect("ascii"));
        server.inference().generate(request).await.expect_err("no priority")
    };
    assert_eq!((error.code(), error.message().split_once(':').expect("a field").0), (invalid, "x-lingqu-priority"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_answer_by_name() {
    let server = toy().await;
    let answer = async |adapter: &str| {
        let request = v1::GenerateRequest { adapter: adapter.into(), ignore_eos: true, ..greedy("hello") };
        server.once(request).await.expect("a reply").token_ids
    };
    let [alpha, beta] = TOY_ADAPTERS;
    let (base, first, second) = (answer("").await, answer(alpha).await, answer(beta).await);
    assert!(base != first && first != second && base != second);
    assert_eq!(answer(alpha).await, first);
}
