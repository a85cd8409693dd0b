//! Requests that break the rules: each must be refused, or cut off, and soon.

use lingqu_proto::v1;
use lingqu_proto::v1::generate_request::Input;
use prost::Message;

use super::raw::{Met, grpc_call, tcp};
use super::{Finding, Victim};
use crate::random::Random;

/// Random bodies of each kind.
const RANDOM_BODIES: usize = 24;
/// Beyond any sensible limit of a request.
const HUGE_BYTES: usize = 64 << 20;

/// What a bad request may lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Allowed {
    /// An error, or a closed connection.
    Error,
    /// Bytes that may happen to be a good request: any end.
    AnyEnd,
    /// A part of a request, for the rest of which the server may wait.
    Waiting,
}

pub async fn run(victim: &Victim, seed: u64) -> Finding {
    let mut finding = Finding::default();
    let mut random = Random::new(seed, 0);
    let mut asked = 0;
    let mut met_by = |name: &str, allowed: Allowed, met: Met| {
        asked += 1;
        let is_error = match met {
            // Any code: tonic tells a message that it cannot parse as INTERNAL.
            Met::Answered { grpc: Some(code), .. } => code != 0,
            Met::Answered { http, grpc: None } => (400..500).contains(&http) || http == 501 || http == 505,
            Met::CutOff => true,
            Met::Silent => allowed == Allowed::Waiting,
        };
        let is_well = is_error || (allowed == Allowed::AnyEnd && matches!(met, Met::Answered { http: 200, .. }));
        if !is_well {
            finding.problems.push(format!("{name}: {met:?}"));
        }
    };
    for (name, allowed, bytes) in on_the_wire(victim.is_http, &mut random) {
        met_by(&name, allowed, tcp(&victim.address, &bytes).await);
    }
    if !victim.is_http {
        for call in calls(&mut random) {
            let met = grpc_call(&victim.address, call.path, call.content_type, call.body).await;
            met_by(&call.name, call.allowed, met);
        }
    }
    finding.text = format!("{asked} bad requests, {} met wrongly", finding.problems.len());
    finding
}

fn noise(length: usize, random: &mut Random) -> Vec<u8> {
    (0..length).map(|_| random.next() as u8).collect()
}

/// Bytes for a TCP connection.
fn on_the_wire(is_http: bool, random: &mut Random) -> Vec<(String, Allowed, Vec<u8>)> {
    let mut cases: Vec<(String, Allowed, Vec<u8>)> = Vec::new();
    for i in 0..RANDOM_BODIES / 4 {
        // An HTTP/2 server waits for a preface that it can still become.
        cases.push((format!("noise {i}"), Allowed::Waiting, noise(1 << (4 + 2 * i), random)));
    }
    if !is_http {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        cases.push((
            "HTTP/1.1 on an HTTP/2 port".into(),
            Allowed::Waiting,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".into(),
        ));
        cases.push(("noise after the preface".into(), Allowed::Waiting, [&preface[..], &noise(4096, random)].concat()));
        let frame = [&preface[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat();
        cases.push(("a frame of 16 MiB".into(), Allowed::Waiting, frame));
        return cases;
    }
    let head = |path: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
    };
    for (name, body) in http_bodies(random) {
        for path in ["/v1/completions", "/v1/chat/completions"] {
            let bytes = [head(path, body.len()).as_bytes(), &body].concat();
            cases.push((format!("{name}, {path}"), Allowed::Error, bytes));
        }
    }
    let mut plain = |name: &str, text: String| cases.push((name.into(), Allowed::Error, text.into_bytes()));
    plain("no such path", "GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n".into());
    plain("no such method", "BREW /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n".into());
    plain("a path of 1 MiB", format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20)));
    plain("a header of 1 MiB", format!("GET /v1/models HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(1 << 20)));
    plain("10,000 headers", format!("GET /v1/models HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(10_000)));
    plain("a length below 0", head("/v1/completions", 0).replace(": 0\r\n", ": -1\r\n"));
    plain(
        "a length beyond 64 bits",
        head("/v1/completions", 0).replace(": 0\r\n", &format!(": {}\r\n", "9".repeat(30))),
    );
    let chunked = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    plain("a chunk of no length", format!("{chunked}zz\r\n"));
    plain("a chunk beyond 64 bits", format!("{chunked}{}\r\n", "f".repeat(20)));
    cases
}

/// Bodies that no completions endpoint may take.
fn http_bodies(random: &mut Random) -> Vec<(String, Vec<u8>)> {
    let deep = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let long = format!("{{\"prompt\":\"{}\"}}", "长".repeat(HUGE_BYTES / 3));
    let texts: Vec<(&str, String)> = vec![
        ("an empty body", String::new()),
        ("half an object", "{\"prompt\":\"".into()),
        ("an array", "[]".into()),
        ("a number", "1e999".into()),
        ("no input", "{}".into()),
        ("an input of the wrong kind", "{\"prompt\":{\"a\":1},\"messages\":7}".into()),
        ("a role that is none", "{\"prompt\":null,\"messages\":[{\"role\":\"emperor\",\"content\":\"x\"}]}".into()),
        ("100,000 open brackets", "[".repeat(100_000)),
        ("100,000 nested arrays", format!("{{\"prompt\":{}}}", deep("[", "]", 100_000))),
        ("100,000 nested objects", format!("{{\"messages\":{}1{}}}", "{\"a\":".repeat(100_000), "}".repeat(100_000))),
        ("a temperature beyond floats", "{\"prompt\":\"a\",\"messages\":[],\"temperature\":1e999}".into()),
        ("a prompt beyond every limit", long),
    ];
    let mut bodies: Vec<(String, Vec<u8>)> = texts.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
    bodies.push(("text that is not UTF-8".into(), b"{\"prompt\":\"\xff\xfe\xc0\",\"messages\":\"\xff\"}".into()));
    for i in 0..RANDOM_BODIES {
        bodies.push((format!("random body {i}"), noise(1 + random.below(2000), random)));
    }
    bodies
}

/// A gRPC call with a body as it is.
struct Call {
    name: String,
    allowed: Allowed,
    path: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
}

const GENERATE: &str = "/lingqu.v1.Inference/Generate";

/// A gRPC message: a flag, a length, the bytes.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

fn calls(random: &mut Random) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut add = |name: &str, allowed, body: Vec<u8>| {
        calls.push(Call { name: name.into(), allowed, path: GENERATE, content_type: "application/grpc", body });
    };
    for i in 0..RANDOM_BODIES {
        // The parser may find a message in noise, as fields that it does not know.
        add(&format!("random message {i}"), Allowed::AnyEnd, framed(&noise(1 + random.below(2000), random)));
        add(&format!("random body {i}"), Allowed::AnyEnd, noise(1 + random.below(2000), random));
    }
    add("an empty body", Allowed::Error, vec![]);
    add("half a head", Allowed::Error, vec![0, 0]);
    add("a length of 4 GiB", Allowed::Error, vec![0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    add("less than its length", Allowed::Error, vec![0, 0, 0, 0, 50, 1, 2, 3]);
    add("compressed by nothing", Allowed::Error, [&[1, 0, 0, 0, 4][..], b"data"].concat());
    add("text that is not UTF-8", Allowed::Error, framed(b"\x12\x03\xff\xfe\xc0"));
    add("a field beyond its message", Allowed::Error, framed(b"\x12\xff\xff\xff\xff\x0f"));
    add("groups in groups", Allowed::Error, framed(&b"\xa3\x06".repeat(100_000)));
    for (name, message) in messages() {
        add(&name, Allowed::Error, framed(&message.encode_to_vec()));
    }
    let body = framed(b"");
    let no_such = "/lingqu.v1.Inference/Nothing";
    calls.push(Call { name: "no such method".into(), path: no_such, body: body.clone(), ..template() });
    calls.push(Call { name: "no gRPC".into(), content_type: "text/plain", body, ..template() });
    calls
}

fn template() -> Call {
    let (path, content_type) = (GENERATE, "application/grpc");
    Call { name: String::new(), allowed: Allowed::Error, path, content_type, body: vec![] }
}

/// Well-formed messages with fields that no server may take.
fn messages() -> Vec<(String, v1::GenerateRequest)> {
    let asked = || v1::GenerateRequest { input: Some(Input::Prompt("你好".into())), ..Default::default() };
    let sampled = |sampling: v1::Sampling| v1::GenerateRequest { sampling: Some(sampling), ..asked() };
    let sampling = v1::Sampling::default;
    let ids = |ids: Vec<u32>| v1::GenerateRequest {
        input: Some(Input::TokenIds(v1::TokenIds { ids })),
        ..Default::default()
    };
    let chat = v1::Chat {
        messages: vec![v1::ChatMessage { role: "emperor".into(), content: "x".into(), ..Default::default() }],
        ..Default::default()
    };
    [
        ("no input", v1::GenerateRequest::default()),
        ("an empty prompt of tokens", ids(vec![])),
        ("tokens beyond the vocabulary", ids(vec![u32::MAX])),
        ("a million tokens", ids(vec![1; 1_000_000])),
        ("3 MiB of text", v1::GenerateRequest { input: Some(Input::Prompt("a".repeat(3 << 20))), ..asked() }),
        ("another model", v1::GenerateRequest { model: "nothing".into(), ..asked() }),
        ("a role that is none", v1::GenerateRequest { input: Some(Input::Chat(chat)), ..asked() }),
        ("a temperature that is no number", sampled(v1::Sampling { temperature: Some(f32::NAN), ..sampling() })),
        ("an endless temperature", sampled(v1::Sampling { temperature: Some(f32::INFINITY), ..sampling() })),
        ("a top_p below 0", sampled(v1::Sampling { top_p: Some(-1.0), ..sampling() })),
        ("100 stop strings", v1::GenerateRequest { stop: vec!["x".into(); 100], ..asked() }),
        ("a stop string of nothing", v1::GenerateRequest { stop: vec![String::new()], ..asked() }),
        ("logprobs of all", v1::GenerateRequest { logprobs: Some(u32::MAX), ..asked() }),
    ]
    .map(|(name, message)| (name.to_string(), message))
    .into()
}
