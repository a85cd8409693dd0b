//! Answers that must have a form, and forced calls. The toy's answers are noise: what has a form got it by force.

use lingqu_testkit::toy::ToyFaults;
use lingqu_types::Limits;
use serde_json::{Value, json};

use crate::server::{CHAT, COMPLETION, Options, TestServer, chat, completion};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_have_their_form() {
    let server = toy().await;
    let check = async |form: Value, fits: fn(&str) -> bool| {
        for seed in 0..4 {
            let mut body = chat("x", json!({"seed": seed, "n": 2, "max_tokens": 200}));
            body.as_object_mut().expect("an object").extend(form.as_object().expect("an object").clone());
            let reply = server.ask(CHAT, &body).await;
            for choice in reply["choices"].as_array().expect("choices") {
                let text = choice["message"]["content"].as_str().expect("text");
                assert!(fits(text), "{form}: {text}");
                assert_eq!(choice["finish_reason"], "stop", "{form}: {text}");
            }
        }
    };
    let is_report = |text: &str| {
        let value: Value = serde_json::from_str(text).expect("JSON");
        ["fire", "theft"].contains(&value["kind"].as_str().expect("a kind")) && value["urgent"].is_boolean()
    };
    let named = json!({"type": "json_schema", "json_schema": {"name": "report", "schema": schema()}});
    check(json!({"response_format": named}), is_report).await;
    check(json!({"structured_outputs": {"json": schema()}}), is_report).await;
    check(json!({"guided_choice": ["yes", "no"]}), |text| ["yes", "no"].contains(&text)).await;
    let three = |text: &str| text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    check(json!({"guided_regex": "[0-9]{3}"}), three).await;
    check(json!({"guided_grammar": "start: \"a\" \"b\"+ \"c\""}), |t| t.starts_with("ab") && t.ends_with('c')).await;
    let body = completion("x", json!({"guided_choice": ["yes", "no"]}));
    let reply = server.ask(COMPLETION, &body).await;
    assert!(["yes", "no"].contains(&reply["choices"][0]["text"].as_str().expect("text")), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_calls_are_calls() {
    let server = toy().await;
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema()}});
    let ask = |choice: Value, seed: u64| {
        let tools = [tool("report"), tool("forward")];
        let more = json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "seed": seed});
        let mut body = chat("x", more);
        body["max_tokens"] = 300.into();
        body
    };
    for seed in 0..4 {
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "forward"}})] {
            let body = ask(choice.clone(), seed);
            let reply = server.ask(CHAT, &body).await;
            let told = &reply["choices"][0];
            assert_eq!((&told["finish_reason"], &told["message"]["content"]), (&json!("tool_calls"), &Value::Null));
            let [call] = told["message"]["tool_calls"].as_array().expect("calls").as_slice() else { panic!("{reply}") };
            let name = call["function"]["name"].as_str().expect("a name");
            assert!(name == "forward" || (name == "report" && choice == "required"), "{reply}");
            let arguments = call["function"]["arguments"].as_str().expect("text");
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            assert!(arguments["urgent"].is_boolean(), "{reply}");

            let (events, done) = server.stream(CHAT, &body).await;
            assert!(done);
            let (mut id, mut streamed) = (Value::Null, String::new());
            for piece in events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)) {
                if piece["id"].is_string() {
                    assert!(id.is_null(), "one call");
                    id = piece["id"].clone();
                }
                streamed += piece["function"]["arguments"].as_str().expect("text");
            }
            assert_eq!((&id, &json!(streamed)), (&call["id"], &call["function"]["arguments"]));
            assert_eq!(events.last().expect("an event")["choices"][0]["finish_reason"], "tool_calls");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forms_that_cannot_be_are_refused() {
    let server = toy().await;
    let check = async |fields: Value, param: Value| {
        let reply = server.post(CHAT, &chat("x", fields.clone())).await;
        assert_eq!((reply.status, reply.param()), (400, param), "{fields}: {}", reply.text);
    };
    check(json!({"guided_regex": "("}), json!("guided_regex")).await;
    check(json!({"guided_grammar": "start: nothing"}), json!("guided_grammar")).await;
    check(json!({"guided_json": {"type": "novelty"}}), json!("guided_json")).await;
    check(json!({"guided_choice": []}), json!("guided_choice")).await;
    let tool = json!({"type": "function", "function": {"name": "look"}});
    check(json!({"tools": [tool]}), Value::Null).await;
    check(json!({"tools": [tool], "tool_choice": {"function": {"name": "fly"}}}), json!("tool_choice")).await;
    check(json!({"tools": [tool], "response_format": {"type": "json_object"}}), json!("response_format")).await;
    server.ask(CHAT, &chat("x", json!({"tools": [tool], "tool_choice": "none"}))).await;
}
