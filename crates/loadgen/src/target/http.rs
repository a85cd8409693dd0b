//! OpenAI's `/v1/completions` and `/v1/chat/completions`, streamed, over HTTP/1.1 without TLS.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::sse::EventParser;
use super::{ANSWER_BYTES_MAX, Answer, Api, Failure, FailureKind, Listening, Reply, Wiring};
use crate::workload::{Job, Prompt};

/// Bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Bytes of a list of models.
const MODELS_BYTES_MAX: usize = 4 << 20;

#[derive(Debug)]
pub struct HttpTarget {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    api: Api,
    model: String,
}

impl HttpTarget {
    /// `base`: "http://host:port".
    ///
    /// # Errors
    /// When that is no address.
    pub fn new(base: &str, wiring: &Wiring) -> Result<Self, Failure> {
        let base = base.trim_end_matches('/').trim_end_matches("/v1").to_string();
        let uri: Uri = base.parse().map_err(|e| Failure::new(FailureKind::Connect, format!("{base}: {e}")))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            return Err(Failure::new(FailureKind::Connect, format!("{base}: not http://HOST:PORT")));
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_recv_buffer_size(wiring.window_bytes.map(|bytes| bytes as usize));
        // A connection for each request: one that is kept may be closed by the server just as we send on it, and the
        // request would count as lost.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { client, base, api: wiring.api, model: wiring.model.clone() })
    }

    /// From now on requests name the first model that the server lists, unless they were told another.
    ///
    /// # Errors
    /// When the server lists none.
    pub async fn choose_model(&mut self) -> Result<(), Failure> {
        if !self.model.is_empty() {
            return Ok(());
        }
        let response = self.send("GET", "/v1/models", Bytes::new()).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let protocol = |e: &dyn std::fmt::Display| Failure::new(FailureKind::Protocol, format!("/v1/models: {e}"));
        let body = Limited::new(response.into_body(), MODELS_BYTES_MAX).collect().await.map_err(|e| protocol(&e))?;
        let models: Value = serde_json::from_slice(&body.to_bytes()).map_err(|e| protocol(&e))?;
        let first = models["data"][0]["id"].as_str().ok_or_else(|| protocol(&"no model is listed"))?;
        self.model = first.to_string();
        Ok(())
    }

    pub async fn ask(&self, job: &Job, listening: &mut Listening) -> Result<Reply, Failure> {
        let (path, body) = request(job, self.api, &self.model);
        let mut response = self.send("POST", path, body.to_string().into()).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let mut parser = EventParser::default();
        let mut heard = Heard::default();
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|e| Failure::new(FailureKind::CutOff, format!("{e:?}")))?;
            let Some(bytes) = frame.data_ref() else { continue };
            let events = parser.push(bytes).map_err(|e| Failure::new(FailureKind::Protocol, format!("{e:?}")))?;
            for event in events {
                if event == "[DONE]" {
                    return heard.reply();
                }
                if heard.take(&event)? {
                    listening.heard(0).await?;
                }
            }
        }
        Err(Failure::new(FailureKind::CutOff, "the stream ended without [DONE]"))
    }

    /// One request with a body as it is.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn send(&self, method: &str, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| Failure::new(FailureKind::Protocol, e))?;
        self.client.request(request).await.map_err(|e| {
            let kind = if e.is_connect() { FailureKind::Connect } else { FailureKind::CutOff };
            Failure::new(kind, format!("{e:?}"))
        })
    }
}

/// The path and the body of a job's request.
fn request(job: &Job, api: Api, model: &str) -> (&'static str, Value) {
    let mut body = json!({
        "model": model,
        "max_tokens": job.max_tokens,
        "temperature": job.temperature,
        "seed": job.seed,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if job.ignore_eos {
        body["ignore_eos"] = true.into();
    }
    if let Some(schema) = &job.schema {
        body["response_format"] =
            json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": **schema}});
    }
    let path = match (&job.prompt, api) {
        (Prompt::Text { system, user }, Api::Chat) => {
            let mut messages = vec![json!({"role": "user", "content": user})];
            if !system.is_empty() {
                messages.insert(0, json!({"role": "system", "content": **system}));
            }
            body["messages"] = messages.into();
            "/v1/chat/completions"
        }
        (Prompt::Text { system, user }, Api::Completions) => {
            body["prompt"] = format!("{system}\n{user}\n").into();
            "/v1/completions"
        }
        (Prompt::Tokens(ids), _) => {
            body["prompt"] = ids.clone().into();
            "/v1/completions"
        }
    };
    (path, body)
}

async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => FailureKind::Refused,
        StatusCode::SERVICE_UNAVAILABLE => FailureKind::Unavailable,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => FailureKind::Timeout,
        _ if status.is_client_error() => FailureKind::Invalid,
        _ => FailureKind::Server,
    };
    let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
    Failure::new(kind, format!("{status}: {text}"))
}

/// What the events of a stream said so far.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    finish: Option<String>,
    usage: Option<Value>,
    parts: u32,
}

impl Heard {
    /// Takes an event; true when it carried a piece of the answer.
    fn take(&mut self, event: &str) -> Result<bool, Failure> {
        let value: Value = serde_json::from_str(event)
            .map_err(|e| Failure::new(FailureKind::Protocol, format!("an event that is no JSON: {e}")))?;
        if let Some(error) = value.get("error") {
            return Err(Failure::new(FailureKind::Server, error));
        }
        if value["usage"].is_object() {
            self.usage = Some(value["usage"].clone());
        }
        let choice = &value["choices"][0];
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_string());
        }
        let delta = &choice["delta"];
        let pieces = [&choice["text"], &delta["reasoning_content"], &delta["content"]];
        let before = self.text.len();
        pieces.iter().filter_map(|piece| piece.as_str()).for_each(|piece| self.text.push_str(piece));
        if let Some(calls) = delta["tool_calls"].as_array().filter(|calls| !calls.is_empty()) {
            self.text.push_str(&Value::from(calls.clone()).to_string());
        }
        if self.text.len() > ANSWER_BYTES_MAX {
            return Err(Failure::new(FailureKind::Protocol, "an endless answer"));
        }
        let has_piece = self.text.len() > before;
        self.parts += u32::from(has_piece);
        Ok(has_piece)
    }

    fn reply(self) -> Result<Reply, Failure> {
        let finish = self.finish.ok_or_else(|| Failure::new(FailureKind::CutOff, "no finish_reason"))?;
        let usage = self.usage.unwrap_or_default();
        let count = |name: &str| usage[name].as_u64().map(|n| n as u32);
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().map(|n| n as u32);
        Ok(Reply {
            answer: Answer::Text(self.text),
            prompt_tokens: count("prompt_tokens").unwrap_or(0),
            // A server that does not tell sends a part for each token, mostly.
            completion_tokens: count("completion_tokens").unwrap_or(self.parts),
            cached_tokens: cached,
            finish,
        })
    }
}
