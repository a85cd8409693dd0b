//! What is generated, and how it arrives.

use lingqu_testkit::toy::{TOY_ADAPTERS, ToyFaults};
use serde_json::{Value, json};

use crate::server::{CHAT, COMPLETION, Options, TestServer, chat, completion};
use crate::toy;

async fn toy() -> TestServer {
    TestServer::toy(Options::default(), ToyFaults::default()).await.0
}

/// A choice as a stream tells it, put together.
#[derive(Debug, Default, PartialEq)]
struct Told {
    text: String,
    reasoning: String,
    logprobs: Vec<Value>,
    finish_reason: Value,
    seed: Value,
}

fn append(list: &mut Vec<Value>, more: &Value) {
    list.extend(more.as_array().into_iter().flatten().cloned());
}

fn told_by_stream(events: &[Value]) -> Vec<Told> {
    let mut all: Vec<Told> = Vec::new();
    for event in events {
        for choice in event["choices"].as_array().expect("choices") {
            let index = choice["index"].as_u64().expect("an index") as usize;
            all.resize_with(all.len().max(index + 1), Told::default);
            let told = &mut all[index];
            assert_eq!(told.finish_reason, Value::Null, "a chunk after the last");
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            told.text += text.unwrap_or_default();
            told.reasoning += choice["delta"]["reasoning_content"].as_str().unwrap_or_default();
            append(&mut told.logprobs, &choice["logprobs"]["content"]);
            append(&mut told.logprobs, &choice["logprobs"]["token_logprobs"]);
            told.finish_reason = choice["finish_reason"].clone();
            told.seed = choice["lingqu"]["seed"].clone();
        }
    }
    all
}

fn told_by_whole(reply: &Value) -> Vec<Told> {
    let told = |choice: &Value| {
        let mut logprobs = Vec::new();
        append(&mut logprobs, &choice["logprobs"]["content"]);
        append(&mut logprobs, &choice["logprobs"]["token_logprobs"]);
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
        Told {
            text: text.unwrap_or_default().into(),
            reasoning: choice["message"]["reasoning_content"].as_str().unwrap_or_default().into(),
            logprobs,
            finish_reason: choice["finish_reason"].clone(),
            seed: choice["lingqu"]["seed"].clone(),
        }
    };
    reply["choices"].as_array().expect("choices").iter().map(told).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_equal_whole_replies() {
    let server = toy().await;
    let check = async |path: &str, body: Value| {
        let whole = server.ask(path, &body).await;
        let mut streamed = body.clone();
        streamed["stream_options"] = json!({"include_usage": true});
        let (events, done) = server.stream(path, &streamed).await;
        assert!(done, "{body}");
        assert_eq!(told_by_stream(&events), told_by_whole(&whole), "{body}");
        let (last, others) = events.split_last().expect("events");
        assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])), "{body}");
        for event in others {
            assert_eq!(event["usage"], Value::Null);
            assert_eq!((&event["model"], &event["system_fingerprint"]), (&json!("toy"), &json!("fp_f00d")));
            assert_eq!(event["id"], last["id"]);
        }
    };
    for seed in 0..4 {
        check(CHAT, chat("hello 你好", json!({"seed": seed, "ignore_eos": true}))).await;
        check(CHAT, chat("hello", json!({"seed": seed, "logprobs": true, "top_logprobs": 2, "n": 3}))).await;
        check(COMPLETION, completion("hello 你好", json!({"seed": seed, "ignore_eos": true, "echo": true}))).await;
        check(COMPLETION, completion("ab", json!({"seed": seed, "logprobs": 3, "echo": true}))).await;
        check(COMPLETION, completion("", json!({"seed": seed, "prompt": ["a", "b"], "n": 2}))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_have_openais_fields() {
    let server = TestServer::reciting("<bos><user>hi<assistant>yes").await;
    let reply = server.post(CHAT, &chat("hi", json!({"logprobs": true, "top_logprobs": 1}))).await;
    let id = reply.headers["x-request-id"].to_str().expect("text").to_owned();
    let mut reply = reply.json();
    assert_eq!(reply["id"], format!("chatcmpl-{id}"));
    assert!(reply["created"].as_u64().is_some_and(|created| created > 1_700_000_000));
    assert!(reply["choices"][0]["lingqu"]["seed"].is_u64());
    let logprobs = reply["choices"][0]["logprobs"].take();
    let y = json!({"token": "y", "logprob": 0.0, "bytes": [121]});
    let mut first = y.clone();
    first["top_logprobs"] = json!([y]);
    assert_eq!(logprobs["content"][0], first);
    assert_eq!(logprobs["content"].as_array().map(Vec::len), Some(3));
    for key in ["id", "created", "choices/0/lingqu"] {
        reply.pointer_mut(&format!("/{key}")).map(Value::take).expect(key);
    }
    let expected = json!({
        "id": null, "object": "chat.completion", "created": null, "model": "toy", "system_fingerprint": "fp_f00d",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "yes", "refusal": null}, "logprobs": null,
            "finish_reason": "stop", "lingqu": null,
        }],
        "usage": {
            "prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
        },
    });
    assert_eq!(reply, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reported_seed_replays_the_reply() {
    let server = toy().await;
    let body = chat("replay", json!({"ignore_eos": true, "n": 2}));
    let first = told_by_whole(&server.ask(CHAT, &body).await);
    assert_ne!(first[0].text, first[1].text, "samples differ");
    for sample in first {
        let body = chat("replay", json!({"ignore_eos": true, "seed": sample.seed}));
        assert_eq!(told_by_whole(&server.ask(CHAT, &body).await), [sample]);
    }
}

/// A script that the model recites, what is asked of it beside the message `x`, and what must arrive.
struct Row {
    script: &'static str,
    fields: Value,
    reasoning: &'static str,
    text: &'static str,
    reason: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |script, fields, reasoning, text, reason| Row { script, fields, reasoning, text, reason };
    vec![
        row("<think>hm 你</think>yes 好.", json!({}), "hm 你", "yes 好.", "stop"),
        row("<think>hm</thin", json!({}), "hm</thin", "", "stop"),
        row("<think>hm</think>yes", json!({"separate_reasoning": false}), "", "<think>hm</think>yes", "stop"),
        row("<think>hm</think>one two", json!({"stop": ["four", " t"]}), "hm", "one", "stop"),
        row("你好你好", json!({"stop": "好"}), "", "你", "stop"),
        row("abcd", json!({"max_tokens": 2}), "", "ab", "length"),
        row("abcd", json!({"max_completion_tokens": 3, "max_tokens": 1}), "", "abc", "length"),
        row("abcd", json!({"stop_token_ids": toy::ids("c")}), "", "ab", "stop"),
        row("ab<eos>cd<user>e", json!({"ignore_eos": true, "max_tokens": 7}), "", "abcde", "length"),
        row("ab<user>c", json!({"skip_special_tokens": false}), "", "ab<user>c", "stop"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_and_text_come_apart_and_whole() {
    for Row { script, fields, reasoning, text, reason } in rows() {
        let server = TestServer::reciting(&format!("<bos><user>x<assistant>{script}")).await;
        let mut body = chat("x", json!({"max_tokens": 60}));
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let whole = told_by_whole(&server.ask(CHAT, &body).await);
        let told = (whole[0].reasoning.as_str(), whole[0].text.as_str(), whole[0].finish_reason.as_str());
        assert_eq!(told, (reasoning, text, Some(reason)), "{script} {fields}");
        body["seed"] = whole[0].seed.clone();
        let (events, done) = server.stream(CHAT, &body).await;
        assert!(done);
        assert_eq!(told_by_stream(&events), whole, "{script} {fields}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_mean_the_same_tokens() {
    let server = toy().await;
    let reply = async |path: &str, mut body: Value| {
        body["seed"] = 3.into();
        body["ignore_eos"] = true.into();
        let reply = server.ask(path, &body).await;
        let told = told_by_whole(&reply).into_iter().map(|told| told.text).collect::<Vec<_>>();
        (told, reply["usage"]["prompt_tokens"].as_u64())
    };
    let text = reply(COMPLETION, completion("ab", json!({}))).await;
    assert_eq!(text.1, Some(3));
    assert_eq!(reply(COMPLETION, completion("", json!({"prompt": toy::ids("<bos>ab")}))).await, text);
    let both = reply(COMPLETION, completion("", json!({"prompt": ["ab", "cd"]}))).await;
    assert_eq!((&both.0[0], both.1), (&text.0[0], Some(6)));
    let ids = json!({"prompt": [toy::ids("<bos>ab"), toy::ids("<bos>cd")]});
    assert_eq!(reply(COMPLETION, completion("", ids)).await, both);
    let talk = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "ab"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]});
    let written = toy::ids("<bos><user>ab<assistant>c<user>d<assistant>");
    let written = reply(COMPLETION, completion("", json!({"prompt": written}))).await;
    assert_eq!(reply(CHAT, chat("", talk)).await, written);
    let written = reply(COMPLETION, completion("", json!({"prompt": toy::ids("<bos><user>ab")}))).await;
    assert_eq!(reply(CHAT, chat("ab", json!({"add_generation_prompt": false}))).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_echo_and_score_their_prompts() {
    let server = TestServer::reciting("<bos>ab你cd").await;
    let body = completion("ab你", json!({"echo": true, "logprobs": 1, "max_tokens": 1}));
    let reply = server.ask(COMPLETION, &body).await;
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "ab你c");
    let logprobs = &choice["logprobs"];
    let tokens = json!(["<bos>", "a", "b", "bytes:\\xe4", "bytes:\\xbd", "bytes:\\xa0", "c"]);
    assert_eq!(logprobs["tokens"], tokens);
    assert_eq!(logprobs["token_logprobs"], json!([null, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
    assert_eq!(logprobs["top_logprobs"][1], json!({"a": 0.0}));
    assert_eq!(logprobs["text_offset"][2], 6);
    // Scores without a completion, as evaluations ask for.
    let body = completion("ab", json!({"echo": true, "logprobs": 0, "max_tokens": 0}));
    let choice = &server.ask(COMPLETION, &body).await["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["<bos>", "a", "b"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_health_and_metrics_are_told() {
    let server = toy().await;
    let list = server.get("/v1/models").await.json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("toy")));
    assert_eq!(list["data"][0]["max_model_len"], 100);
    assert_eq!(server.get("/v1/models/toy").await.json(), list["data"][0]);
    for (adapter, listed) in TOY_ADAPTERS.into_iter().zip(1..) {
        let listed = &list["data"][listed];
        assert_eq!((&listed["id"], &listed["parent"]), (&json!(adapter), &json!("toy")));
        assert_eq!(server.get(&format!("/v1/models/{adapter}")).await.json(), *listed);
    }
    assert_eq!(server.get("/v1/models/gpt-9").await.status, 404);
    assert_eq!(server.get("/v1/models/some/other").await.status, 404);
    assert_eq!(server.get("/health").await.status, 200);
    server.ask(CHAT, &chat("x", json!({"ignore_eos": true}))).await;
    assert_eq!(server.post(CHAT, &chat("x", json!({"top_p": 7}))).await.status, 400);
    assert_eq!(server.post(CHAT, &chat("x", json!({"top_p": "x"}))).await.status, 400);
    let page = server.get("/metrics").await;
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        "lingqu_requests_total{outcome=\"length\"} 1",
        "lingqu_requests_total{outcome=\"invalid\"} 2",
        "lingqu_generation_tokens_total 12",
        "lingqu_prompt_tokens_total 4",
        "lingqu_request_queue_time_seconds_count 1",
        "lingqu_time_to_first_token_seconds_count 1",
        "lingqu_inter_token_latency_seconds_count 11",
        "lingqu_engine_up 1",
    ] {
        assert!(page.text.lines().any(|l| l == line), "{line}\n{}", page.text);
    }
}
