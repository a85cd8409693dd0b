//! A server on a free port of the loopback, and its clients.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use http::{HeaderMap, Method, Request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lingqu_engine::{Engine, EngineConfig};
use lingqu_http::{HttpConfig, Phase, serve};
use lingqu_model::Model;
use lingqu_serving::{ModelCard, Served, ServedModel};
use lingqu_testkit::toy::{TOY_VOCAB, ToyControl, ToyFaults, ToyModel};
use lingqu_types::{Limits, SamplingParams};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::toy;

/// Long enough for a busy machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETION: &str = "/v1/completions";

pub struct TestServer {
    pub address: SocketAddr,
    pub engine: Arc<Engine>,
    pub phase: watch::Sender<Phase>,
    pub serving: JoinHandle<()>,
}

/// What a test may want otherwise.
pub struct Options {
    pub limits: Limits,
    pub config: HttpConfig,
    pub default_sampling: SamplingParams,
    pub with_template: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits { top_logprobs_max: 5, ..Limits::for_context(100, 4) },
            config: HttpConfig::default(),
            default_sampling: SamplingParams { temperature: 0.6, top_p: 0.95, ..SamplingParams::default() },
            with_template: true,
        }
    }
}

/// A whole response.
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Of an error.
    pub fn param(&self) -> Value {
        self.json()["error"]["param"].clone()
    }
}

impl TestServer {
    /// On the toy model, whose answers are noise.
    pub async fn toy(options: Options, faults: ToyFaults) -> (Self, Arc<ToyControl>) {
        let (model, control) = ToyModel::new(&options.limits, faults);
        (Self::start(options, Box::new(model)).await, control)
    }

    /// On a model that recites `script`, whose beginning is the prompt.
    pub async fn reciting(script: &str) -> Self {
        let options = Options::default();
        let model = toy::reciting(script, &options.limits);
        Self::start(options, Box::new(model)).await
    }

    async fn start(options: Options, model: Box<dyn Model>) -> Self {
        let Options { limits, config, default_sampling, with_template } = options;
        let tokenizer = Arc::new(toy::tokenizer(with_template));
        let eos_token_ids = tokenizer.eos_ids().to_vec();
        let engine_config = EngineConfig::new(limits, eos_token_ids.clone());
        let engine = Arc::new(Engine::start(model, toy::backend(), engine_config).expect("an engine"));
        let card = ModelCard {
            name: "toy".into(),
            architecture: "toy".into(),
            vocabulary_size: TOY_VOCAB as u32,
            fingerprint: "f00d".into(),
            weight_formats: vec!["none".into()],
            eos_token_ids,
        };
        let model = ServedModel { engine: engine.handle(), tokenizer, card, default_sampling };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (phase, phases) = watch::channel(Phase::Serving);
        let serving = tokio::spawn(serve(config, Arc::new(Served::new(model, 2)), listener, phases));
        Self { address, engine, phase, serving }
    }

    /// Sends a request over a connection of its own; returns when the headers of the response have come.
    pub async fn send(&self, request: Request<Body>) -> http::Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.expect("a server");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        sender.send_request(request).await.expect("a response")
    }

    pub async fn get(&self, path: &str) -> Reply {
        let request = Request::builder().uri(path).header("host", "toy").body(Body::empty()).expect("valid");
        whole(self.send(request).await).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        whole(self.send(post(path, body.to_string())).await).await
    }

    /// The reply's object; it must be there.
    pub async fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.text);
        reply.json()
    }

    /// The data of a stream's events, and whether it ended with `[DONE]`.
    pub async fn stream(&self, path: &str, body: &Value) -> (Vec<Value>, bool) {
        let mut body = body.clone();
        body["stream"] = true.into();
        let reply = self.post(path, &body).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.text);
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        events(&reply.text)
    }

    /// Waits until the engine has nothing to do.
    pub async fn until_idle(&self) {
        let handle = self.engine.handle();
        until("an idle engine", || {
            let load = handle.load();
            load.running + load.waiting == 0
        })
        .await;
    }

    /// Waits until so many requests run.
    pub async fn until_running(&self, count: usize) {
        let handle = self.engine.handle();
        until("that many running", || handle.load().running == count).await;
    }

    /// As the binary does on SIGTERM.
    pub async fn stop(self) {
        self.phase.send_replace(Phase::Stopping);
        tokio::time::timeout(PATIENCE, self.serving).await.expect("the server ends").expect("no panic");
    }
}

/// A POST of JSON.
pub fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::builder().method(Method::POST).uri(path).header("host", "toy");
    request.header("content-type", "application/json").body(body.into()).expect("valid")
}

/// Reads a response to its end.
pub async fn whole(response: http::Response<Incoming>) -> Reply {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(frame) = next(&mut body).await {
        bytes.extend_from_slice(&frame.expect("whole"));
    }
    let text = String::from_utf8(bytes).expect("text");
    Reply { status: parts.status.as_u16(), headers: parts.headers, text }
}

/// The next bytes of a body; an error if it breaks off.
pub async fn next(body: &mut Incoming) -> Option<hyper::Result<bytes::Bytes>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

/// The data of events as a stream writes them, and whether `[DONE]` came last.
pub fn events(text: &str) -> (Vec<Value>, bool) {
    let mut values = Vec::new();
    let mut done = false;
    for event in text.split_terminator("\n\n").filter(|event| !event.starts_with(':')) {
        assert!(!done, "an event after the last");
        match event.strip_prefix("data: ").expect("data") {
            "[DONE]" => done = true,
            data => values.push(serde_json::from_str(data).expect("JSON")),
        }
    }
    (values, done)
}

/// Polls until `done`.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "still no {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Up to 12 tokens after a text, with further fields.
pub fn completion(prompt: &str, fields: Value) -> Value {
    with(json!({"model": "toy", "prompt": prompt, "max_tokens": 12}), fields)
}

/// Up to 12 tokens in answer to a text, with further fields.
pub fn chat(user: &str, fields: Value) -> Value {
    with(json!({"messages": [{"role": "user", "content": user}], "max_tokens": 12}), fields)
}

fn with(mut body: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    body.as_object_mut().expect("an object").extend(fields);
    body
}
