//! `lingqu.v1.Inference/Generate`.

use std::sync::atomic::{AtomicUsize, Ordering};

use lingqu_proto::v1;
use lingqu_proto::v1::generate_event::Event;
use lingqu_proto::v1::generate_request::Input;
use lingqu_proto::v1::inference_client::InferenceClient;
use lingqu_proto::v1::models_client::ModelsClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{ANSWER_BYTES_MAX, Answer, Api, Failure, FailureKind, Listening, Reply, Wiring};
use crate::workload::{Job, Prompt};

#[derive(Debug)]
pub struct GrpcTarget {
    channels: Vec<Channel>,
    next: AtomicUsize,
    api: Api,
    model: String,
}

impl GrpcTarget {
    /// # Errors
    /// When the address is none, or nobody listens there.
    pub async fn connect(address: &str, wiring: &Wiring) -> Result<Self, Failure> {
        let refused = |e| Failure::new(FailureKind::Connect, format!("{address}: {e:?}"));
        let mut endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(refused)?.tcp_nodelay(true);
        if let Some(bytes) = wiring.window_bytes {
            endpoint = endpoint.initial_stream_window_size(bytes).initial_connection_window_size(bytes);
        }
        let mut channels = Vec::new();
        for _ in 0..wiring.connections.max(1) {
            channels.push(endpoint.connect().await.map_err(refused)?);
        }
        Ok(Self { channels, next: AtomicUsize::new(0), api: wiring.api, model: wiring.model.clone() })
    }

    fn channel(&self) -> Channel {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }

    /// The model that requests go to: its context, its vocabulary.
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn model(&self) -> Result<v1::Model, Failure> {
        let reply = ModelsClient::new(self.channel()).list_models(v1::ListModelsRequest {}).await.map_err(failure)?;
        let mut models = reply.into_inner().models.into_iter();
        let found = models.find(|m| self.model.is_empty() || m.name == self.model);
        found.ok_or_else(|| Failure::new(FailureKind::Protocol, "the server lists no such model"))
    }

    pub async fn ask(&self, job: &Job, listening: &mut Listening) -> Result<Reply, Failure> {
        let request = request(job, self.api, &self.model);
        let mut client = InferenceClient::new(self.channel());
        let mut stream = client.generate(request).await.map_err(failure)?.into_inner();
        let mut ids = Vec::new();
        while let Some(event) = stream.message().await.map_err(failure)? {
            match event.event {
                Some(Event::Delta(delta)) => {
                    ids.extend_from_slice(&delta.token_ids);
                    if ids.len() * 4 > ANSWER_BYTES_MAX {
                        return Err(Failure::new(FailureKind::Protocol, "an endless answer"));
                    }
                    if !delta.token_ids.is_empty() {
                        listening.heard(delta.token_ids.len() as u32).await?;
                    }
                }
                Some(Event::Finished(finished)) => return Ok(reply(ids, &finished)),
                Some(Event::PromptLogprobs(_)) | None => {}
            }
        }
        Err(Failure::new(FailureKind::CutOff, "the stream ended without `finished`"))
    }
}

fn request(job: &Job, api: Api, model: &str) -> v1::GenerateRequest {
    let input = match &job.prompt {
        Prompt::Tokens(ids) => Input::TokenIds(v1::TokenIds { ids: ids.clone() }),
        Prompt::Text { system, user } => match api {
            Api::Completions => Input::Prompt(format!("{system}\n{user}\n")),
            Api::Chat => {
                let message = |role: &str, content: &str| v1::ChatMessage {
                    role: role.into(),
                    content: content.into(),
                    ..Default::default()
                };
                let mut messages = vec![message("user", user)];
                if !system.is_empty() {
                    messages.insert(0, message("system", system));
                }
                Input::Chat(v1::Chat { messages, ..Default::default() })
            }
        },
    };
    let sampling = v1::Sampling { temperature: Some(job.temperature), seed: Some(job.seed), ..Default::default() };
    v1::GenerateRequest {
        model: model.into(),
        input: Some(input),
        sampling: Some(sampling),
        max_tokens: Some(job.max_tokens),
        ignore_eos: job.ignore_eos,
        ..Default::default()
    }
}

fn reply(ids: Vec<u32>, finished: &v1::Finished) -> Reply {
    let usage = finished.usage.unwrap_or_default();
    Reply {
        answer: Answer::Tokens(ids),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cached_tokens: None,
        finish: finished.reason().as_str_name().trim_start_matches("FINISH_REASON_").to_lowercase(),
    }
}

fn failure(status: Status) -> Failure {
    let kind = match status.code() {
        Code::ResourceExhausted => FailureKind::Refused,
        Code::Unavailable => FailureKind::Unavailable,
        Code::DeadlineExceeded => FailureKind::Timeout,
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => FailureKind::Invalid,
        _ => FailureKind::Server,
    };
    Failure::new(kind, format!("{:?}: {}", status.code(), status.message()))
}
