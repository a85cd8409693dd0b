//! What clients and the server can do wrong, and what clients hear of it.

use http::{Method, Request};
use lingqu_http::HttpConfig;
use lingqu_testkit::toy::{TOY_VOCAB, ToyFaults};
use lingqu_types::Limits;
use serde_json::{Value, json};

use crate::server::{CHAT, COMPLETION, Options, TestServer, chat, completion, next, post, until, whole};
use crate::toy;

async fn toy() -> TestServer {
    TestServer::toy(Options::default(), ToyFaults::default()).await.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_fields_are_named() {
    let server = toy().await;
    let check = async |path: &str, field: &str, mut body: Value| {
        for stream in [false, true] {
            body["stream"] = stream.into();
            let reply = server.post(path, &body).await;
            assert_eq!(reply.status, 400, "{body}: {}", reply.text);
            let error = reply.json()["error"].take();
            assert_eq!((&error["param"], &error["type"]), (&json!(field), &json!("invalid_request_error")), "{body}");
            let message = error["message"].as_str().expect("a message");
            assert!(message.starts_with(&format!("{field}: ")), "{message}");
        }
    };
    check(CHAT, "messages", json!({})).await;
    check(CHAT, "messages", chat("", json!({"messages": "hello"}))).await;
    check(CHAT, "messages", chat(&"x".repeat(100), json!({}))).await;
    check(CHAT, "messages", chat(&"x".repeat((2 << 20) + 1), json!({}))).await;
    check(CHAT, "messages", chat("", json!({"messages": [{"role": "tool", "content": "42"}]}))).await;
    check(CHAT, "messages[0].role", chat("", json!({"messages": [{"role": "robot", "content": "x"}]}))).await;
    for (name, value) in [
        ("temperature", json!(-0.5)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(-1)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(9)),
        ("frequency_penalty", json!(-9)),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!({TOY_VOCAB.to_string(): 1})),
        ("seed", json!(0.5)),
        ("stop", json!(vec!["x"; 17])),
        ("stop[0]", json!("")),
        ("stop[1]", json!(["x", "x".repeat(257)])),
        ("stop_token_ids", json!(vec![1; 65])),
        ("stop_token_ids", json!([TOY_VOCAB])),
        ("max_tokens", json!(-1)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("tenant", json!("x".repeat(129))),
        ("priority", json!("urgent")),
        ("timeout_ms", json!("soon")),
    ] {
        let field = name.split('[').next().expect("a name");
        check(CHAT, name, chat("x", json!({field: value}))).await;
        check(COMPLETION, name, completion("x", json!({field: value}))).await;
    }
    check(CHAT, "top_logprobs", chat("x", json!({"top_logprobs": 2}))).await;
    check(CHAT, "top_logprobs", chat("x", json!({"logprobs": true, "top_logprobs": 21}))).await;
    check(CHAT, "logprobs", chat("x", json!({"logprobs": true, "top_logprobs": 6}))).await;
    check(CHAT, "logprobs", chat("x", json!({"logprobs": 3}))).await;
    check(CHAT, "stream_options.include_usage", chat("x", json!({"stream_options": {"include_usage": 1}}))).await;
    check(CHAT, "chat_template_kwargs", chat("x", json!({"chat_template_kwargs": []}))).await;
    check(COMPLETION, "logprobs", completion("x", json!({"logprobs": 6}))).await;
    check(COMPLETION, "logprobs", completion("x", json!({"logprobs": true}))).await;
    check(COMPLETION, "prompt", json!({})).await;
    check(COMPLETION, "prompt", completion("", json!({"prompt": {}}))).await;
    check(COMPLETION, "prompt", completion("", json!({"prompt": []}))).await;
    check(COMPLETION, "prompt", completion("", json!({"prompt": vec!["x"; 129]}))).await;
    check(COMPLETION, "prompt", completion("", json!({"prompt": [0, -1]}))).await;
    check(COMPLETION, "prompt", completion("", json!({"prompt": [0, TOY_VOCAB]}))).await;
    check(COMPLETION, "prompt[1]", completion("", json!({"prompt": ["x", 7]}))).await;
    check(COMPLETION, "prompt[1]", completion("", json!({"prompt": [[1], ["x"]]}))).await;
    check(COMPLETION, "echo", completion("x", json!({"echo": true, "logprobs": 1, "n": 2}))).await;
    check(COMPLETION, "suffix", completion("x", json!({"suffix": "y"}))).await;
    check(COMPLETION, "best_of", completion("x", json!({"best_of": 2}))).await;
    server.until_idle().await;
    server.ask(CHAT, &chat("x", json!({"novelty": {"of": "tomorrow"}, "user": "li"}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_no_such_thing_are_refused() {
    let server = toy().await;
    let check = async |request: Request<axum::body::Body>, status: u16| {
        let reply = whole(server.send(request).await).await;
        assert_eq!(reply.status, status, "{}", reply.text);
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
        reply
    };
    for body in ["", "{", "[]", "7", "{\"messages\": [}", "\u{0}", "{\"prompt\": \"\\ud800\"}"] {
        assert_eq!(check(post(CHAT, body), 400).await.param(), "body");
    }
    for bomb in ["[", "{\"a\":", "{\"messages\":["] {
        assert_eq!(check(post(CHAT, bomb.repeat(200_000)), 400).await.param(), "body");
    }
    check(post("/v1/embeddings", "{}"), 404).await;
    let request = |method: Method, path: &str| Request::builder().method(method).uri(path).header("host", "toy");
    check(request(Method::GET, CHAT).body(Default::default()).expect("valid"), 405).await;
    check(request(Method::DELETE, "/health").body(Default::default()).expect("valid"), 405).await;
    let body = chat("x", json!({})).to_string();
    check(request(Method::POST, CHAT).body(body.clone().into()).expect("valid"), 415).await;
    let plain = request(Method::POST, CHAT).header("content-type", "text/plain");
    check(plain.body(body.clone().into()).expect("valid"), 415).await;
    let late = request(Method::POST, CHAT).header("content-type", "application/json; charset=utf-8");
    let late = late.header("x-request-timeout-ms", "soon").body(body.into()).expect("valid");
    assert_eq!(check(late, 400).await.param(), "x-request-timeout-ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_models_are_not_found() {
    let server = toy().await;
    let reply = server.post(CHAT, &chat("x", json!({"model": "gpt-9"}))).await;
    assert_eq!((reply.status, reply.param()), (404, json!("model")));
    assert!(reply.text.contains("toy"), "{}", reply.text);
    server.ask(CHAT, &chat("x", json!({"model": "toy"}))).await;
    server.ask(CHAT, &chat("x", json!({"model": null}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_template_cannot_chat() {
    let options = Options { with_template: false, ..Options::default() };
    let (server, _) = TestServer::toy(options, ToyFaults::default()).await;
    let reply = server.post(CHAT, &chat("x", json!({}))).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text.contains("no chat template"), "{}", reply.text);
    server.ask(COMPLETION, &completion("x", json!({}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_429() {
    let limits = Limits { queue_requests_max: 2, ..Limits::for_context(100, 1) };
    let (server, control) = TestServer::toy(Options { limits, ..Options::default() }, ToyFaults::default()).await;
    control.hold();
    let mut streams = Vec::new();
    let refused = loop {
        let response = server.send(post(CHAT, chat("x", json!({"stream": true})).to_string())).await;
        match response.status().as_u16() {
            200 => streams.push(response),
            _ => break whole(response).await,
        }
        assert!(streams.len() < 10, "the queue has a bound");
    };
    assert_eq!((refused.status, &refused.headers["retry-after"]), (429, &"1".parse().expect("valid")));
    assert!(streams.len() >= 2);
    let several = server.post(COMPLETION, &completion("", json!({"prompt": ["a", "b", "c", "d"]}))).await;
    assert_eq!(several.status, 429, "all prompts or none");
    control.release();
    for stream in streams {
        assert!(whole(stream).await.text.ends_with("data: [DONE]\n\n"), "those that were taken are answered");
    }
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_server_have_an_id() {
    let [lost, nan, memory] = [0, 1, 2].map(|i| toy::ids("012")[i]);
    let faults = ToyFaults { nan: Some(nan), out_of_memory: Some(memory), ..ToyFaults::default() };
    let (server, _) = TestServer::toy(Options::default(), faults).await;
    let harmless = json!({"logit_bias": {nan.to_string(): -100, memory.to_string(): -100}});
    for text in ["1", "2"] {
        let reply = server.post(COMPLETION, &completion(text, json!({}))).await;
        assert_eq!((reply.status, &reply.json()["error"]["type"]), (500, &json!("server_error")));
        assert!(reply.text.contains("req-"), "{}", reply.text);
        let (events, done) = server.stream(COMPLETION, &completion(text, json!({}))).await;
        assert!(!done, "a fault is no end");
        assert_eq!(events.last().expect("an event")["error"]["type"], "server_error");
    }
    server.ask(CHAT, &chat("x", harmless)).await;

    let faults = ToyFaults { device_lost: Some(lost), ..ToyFaults::default() };
    let (server, _) = TestServer::toy(Options::default(), faults).await;
    assert_eq!(server.post(CHAT, &chat("0", json!({}))).await.status, 500);
    let handle = server.engine.handle();
    until("ended engine", || handle.ended().is_some()).await;
    assert_eq!(server.post(CHAT, &chat("x", json!({}))).await.status, 503);
    assert_eq!(server.get("/health").await.status, 503);
    assert!(server.get("/metrics").await.text.contains("lingqu_engine_up 0\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_too_large_for_one_object_are_refused() {
    let config = HttpConfig { reply_bytes_max: 200, ..HttpConfig::default() };
    let (server, _) = TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await;
    let body = chat("x", json!({"logprobs": true, "top_logprobs": 5, "ignore_eos": true}));
    let reply = server.post(CHAT, &body).await;
    assert_eq!((reply.status, reply.param()), (400, json!("stream")));
    assert!(server.stream(CHAT, &body).await.1, "the stream has no such bound");
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_begin_before_the_first_token() {
    let config = HttpConfig { stream_comment_interval: std::time::Duration::from_millis(5), ..HttpConfig::default() };
    let (server, control) = TestServer::toy(Options { config, ..Options::default() }, ToyFaults::default()).await;
    control.hold();
    let response = server.send(post(CHAT, chat("x", json!({"stream": true})).to_string())).await;
    let mut body = response.into_body();
    let mut told = String::new();
    while !told.contains(": still here\n\n") {
        told += &String::from_utf8_lossy(&next(&mut body).await.expect("open").expect("no error"));
    }
    assert!(told.starts_with("data: {"), "{told}");
    control.release();
    while let Some(bytes) = next(&mut body).await {
        told += &String::from_utf8_lossy(&bytes.expect("no error"));
    }
    assert!(told.ends_with("data: [DONE]\n\n"), "{told}");
}
