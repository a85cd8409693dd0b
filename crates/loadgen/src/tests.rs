//! Whole runs against servers that live in the test: known answers, known faults.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lingqu_proto::v1;
use lingqu_proto::v1::generate_event::Event;
use lingqu_proto::v1::inference_server::{Inference, InferenceServer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::driver::{Plan, drive};
use crate::schedule::Arrivals;
use crate::summary::{Bounds, Tally};
use crate::target::grpc::GrpcTarget;
use crate::target::http::HttpTarget;
use crate::target::{Answer, Api, FailureKind, Listening, Target, Wiring};
use crate::verify::Answers;
use crate::workload::tests::shape;
use crate::workload::{Kind, Shape, Workload};

/// What a server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// An answer depends on how many are open.
    MixesUp,
    /// Every third request is refused.
    RefusesSome,
    /// Answers end in the middle.
    CutsOff,
}

#[derive(Clone)]
struct Fake {
    fault: Fault,
    asked: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Fake {
    fn new(fault: Fault) -> Self {
        Self { fault, asked: Arc::default(), open: Arc::default() }
    }

    /// The tokens of an answer; none when the request is refused.
    async fn answer(&self, seed: u64, count: u32) -> Option<Vec<u32>> {
        if self.fault == Fault::RefusesSome && self.asked.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
            return None;
        }
        let open = self.open.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let shift = if self.fault == Fault::MixesUp && open > 0 { 1 } else { 0 };
        Some((0..count).map(|i| (seed % 1000) as u32 + i + shift).collect())
    }
}

type Events = Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::GenerateEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Inference for Fake {
    type GenerateStream = Events;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let seed = request.sampling.as_ref().and_then(|s| s.seed).unwrap_or(0);
        let Some(ids) = self.answer(seed, request.max_tokens()).await else {
            return Err(Status::resource_exhausted("full"));
        };
        let usage = v1::Usage { prompt_tokens: 7, completion_tokens: ids.len() as u32, ..Default::default() };
        let event = |event| Ok(v1::GenerateEvent { event: Some(event) });
        let delta = |id: &u32| event(Event::Delta(v1::Delta { token_ids: vec![*id], ..Default::default() }));
        let mut events: Vec<_> = ids.iter().map(delta).collect();
        if self.fault != Fault::CutsOff {
            let finished = v1::Finished { usage: Some(usage), ..Default::default() };
            events.push(event(Event::Finished(finished)));
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    async fn generate_once(&self, _: Request<v1::GenerateRequest>) -> Result<Response<v1::GenerateReply>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// One HTTP/1.1 request on a connection, as much of it as a client of ours sends.
async fn http_request(stream: &mut TcpStream) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let n = stream.read(&mut buffer).await.unwrap();
        bytes.extend_from_slice(&buffer[..n]);
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        if bytes.len() >= end + 4 + length.parse::<usize>().unwrap() {
            let path = head.split(' ').nth(1).unwrap().to_string();
            return (path, serde_json::from_slice(&bytes[end + 4..]).unwrap_or_default());
        }
    }
}

async fn http_answer(fake: Fake, mut stream: TcpStream) {
    let (path, body) = http_request(&mut stream).await;
    if path == "/v1/models" {
        let list = r#"{"data":[{"id":"toy"},{"id":"other"}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", list.len());
        stream.write_all((head + list).as_bytes()).await.unwrap();
        return;
    }
    assert_eq!(body["model"], "toy");
    let seed = body["seed"].as_u64().unwrap();
    let count = body["max_tokens"].as_u64().unwrap() as u32;
    let Some(ids) = fake.answer(seed, count).await else {
        let _ = stream.write_all(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull").await;
        return;
    };
    let mut text = String::from("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n");
    let mut event = |value: Value| text.push_str(&format!("data: {value}\n\n"));
    for id in &ids {
        let piece = format!("{id} ");
        let choice = if path.contains("chat") { json!({"delta": {"content": piece}}) } else { json!({"text": piece}) };
        event(json!({"choices": [choice]}));
    }
    event(json!({"choices": [{"text": "", "delta": {}, "finish_reason": "length"}]}));
    let usage =
        json!({"prompt_tokens": 7, "completion_tokens": ids.len(), "prompt_tokens_details": {"cached_tokens": 3}});
    event(json!({"choices": [], "usage": usage}));
    if fake.fault != Fault::CutsOff {
        text.push_str("data: [DONE]\n\n");
    }
    fake.open.fetch_sub(1, Ordering::SeqCst);
    for piece in text.as_bytes().chunks(11) {
        stream.write_all(piece).await.unwrap();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http(Api),
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Grpc, Protocol::Http(Api::Completions), Protocol::Http(Api::Chat)];

/// A target that such a server answers.
async fn target(protocol: Protocol, fault: Fault) -> Arc<Target> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let fake = Fake::new(fault);
    let wiring = |api| Wiring { api, connections: 2, window_bytes: None, model: String::new() };
    match protocol {
        Protocol::Grpc => {
            let service = InferenceServer::new(fake);
            let incoming = TcpListenerStream::new(listener);
            tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
            Arc::new(Target::Grpc(GrpcTarget::connect(&address, &wiring(Api::Completions)).await.unwrap()))
        }
        Protocol::Http(api) => {
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(http_answer(fake.clone(), stream));
                }
            });
            let mut target = HttpTarget::new(&format!("http://{address}"), &wiring(api)).unwrap();
            target.choose_model().await.unwrap();
            Arc::new(Target::Http(Box::new(target)))
        }
    }
}

fn plan(arrivals: Arrivals, requests_max: u64) -> Plan {
    Plan {
        arrivals,
        warm_up: Duration::ZERO,
        length: None,
        requests_max,
        in_flight_max: 8,
        request_timeout: Duration::from_secs(60),
        seed: 1,
    }
}

const REQUESTS: u64 = 40;

/// Figures of a run, and whether its answers were verified.
async fn run(protocol: Protocol, fault: Fault, arrivals: Arrivals) -> (Value, bool) {
    let target = target(protocol, fault).await;
    let distinct = Some(10);
    let workload = Arc::new(Workload::new(Shape { distinct, ..shape(Kind::Hotline) }));
    let mut tally = Tally::new(Bounds::default());
    let mut answers = Answers::new(1.0);
    let plan = plan(arrivals, REQUESTS);
    let outcome = drive(target.clone(), workload.clone(), &plan, |done| {
        tally.add(&done.record);
        if let Some(answer) = done.answer {
            answers.add(done.record.request, done.record.job, answer);
        }
    });
    let window_s = outcome.await.window_s;
    let verdict = answers.verify(&target, &workload, plan.request_timeout).await;
    (tally.figures(window_s), verdict.is_good())
}

const CLOSED: Arrivals = Arrivals::Closed { users: 8, think_s: 0.0 };
const OPEN: Arrivals = Arrivals::Open { requests_per_s: 2000.0 };

#[tokio::test]
async fn every_request_is_answered_and_verified() {
    for protocol in PROTOCOLS {
        for arrivals in [CLOSED, OPEN] {
            let (figures, is_verified) = run(protocol, Fault::None, arrivals).await;
            let all = json!({"warm_up": 0, "measured": REQUESTS, "answered": REQUESTS});
            assert_eq!(figures["requests"], all, "{protocol:?} {arrivals:?}: {figures}");
            assert!(is_verified, "{protocol:?} {arrivals:?}");
            assert_eq!(figures["prompt_tokens"], 7 * REQUESTS);
            assert!(figures["ttft_ms"]["p50"].as_f64().is_some() && figures["tpot_ms"]["p50"].as_f64().is_some());
            let cached = if protocol == Protocol::Grpc { 0 } else { 3 * REQUESTS };
            assert_eq!(figures["cached_tokens"], cached, "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn answers_that_depend_on_others_are_found() {
    for protocol in PROTOCOLS {
        let (_, is_verified) = run(protocol, Fault::MixesUp, CLOSED).await;
        assert!(!is_verified, "{protocol:?}");
    }
}

#[tokio::test]
async fn failures_are_counted_by_kind() {
    for protocol in PROTOCOLS {
        let (figures, is_verified) = run(protocol, Fault::RefusesSome, CLOSED).await;
        assert_eq!(figures["errors"], json!({"refused": REQUESTS / 3}), "{protocol:?}");
        assert!(is_verified, "{protocol:?}: what was answered was answered rightly");
        let (figures, _) = run(protocol, Fault::CutsOff, OPEN).await;
        assert_eq!(figures["errors"], json!({"cut_off": REQUESTS}), "{protocol:?}");
    }
}

#[tokio::test]
async fn a_listener_may_hang_up() {
    for protocol in PROTOCOLS {
        let target = target(protocol, Fault::None).await;
        let mut listening = Listening { leave_after: Some(2), ..Listening::default() };
        let job = Workload::new(shape(Kind::Hotline)).job(0);
        let failure = target.ask(&job, &mut listening).await.unwrap_err();
        assert_eq!((failure.kind, listening.parts.len()), (FailureKind::Left, 2), "{protocol:?}");
    }
}

#[tokio::test]
async fn answers_are_tokens_over_grpc_and_text_over_http() {
    let job = Workload::new(Shape { output_tokens: 2, ..shape(Kind::Fixed) }).job(0);
    let first = (job.seed % 1000) as u32;
    for protocol in PROTOCOLS {
        let reply = target(protocol, Fault::None).await.ask(&job, &mut Listening::default()).await.unwrap();
        let expected = match protocol {
            Protocol::Grpc => Answer::Tokens(vec![first, first + 1]),
            Protocol::Http(_) => Answer::Text(format!("{first} {} ", first + 1)),
        };
        assert_eq!(reply.answer, expected, "{protocol:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_a_failure_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let wiring = Wiring { api: Api::Completions, connections: 1, window_bytes: None, model: String::new() };
    let grpc = GrpcTarget::connect(&address, &wiring).await.unwrap_err();
    assert_eq!(grpc.kind, FailureKind::Connect);
    let http = HttpTarget::new(&format!("http://{address}"), &wiring).unwrap();
    let job = Workload::new(shape(Kind::Fixed)).job(0);
    let failure = http.ask(&job, &mut Listening::default()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Connect);
    assert!(HttpTarget::new("https://x", &wiring).is_err());
}
