//! Many requests on one stream, worked on at once; responses of one request keep their order.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use lingqu_proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use tonic::Status;

use super::infer::{Job, Pieces, head, job, set_final};
use crate::convert::service::FromHeaders;
use crate::service::kserve::Kserve;

/// A stream under way. Dropping it stops all its generations.
struct Session<R> {
    service: Arc<Kserve>,
    headers: FromHeaders,
    /// `None` once the client has said all.
    requests: Option<R>,
    /// The next response of each request.
    running: FuturesUnordered<BoxFuture<'static, (ModelStreamInferResponse, Option<Running>)>>,
    /// Why no more requests come; told when those that run have ended.
    error: Option<Status>,
}

/// Answers requests as they come. While as many run as may, no more are read, which holds the client back.
pub fn responses<R>(
    service: Arc<Kserve>,
    requests: R,
    headers: FromHeaders,
) -> impl Stream<Item = Result<ModelStreamInferResponse, Status>> + Send
where
    R: Stream<Item = Result<ModelInferRequest, Status>> + Send + Unpin,
{
    let session = Session { service, headers, requests: Some(requests), running: FuturesUnordered::new(), error: None };
    stream::unfold(session, |mut session| async move {
        let response = session.next().await?;
        Some((response, session))
    })
}

impl<R> Session<R>
where
    R: Stream<Item = Result<ModelInferRequest, Status>> + Send + Unpin,
{
    async fn next(&mut self) -> Option<Result<ModelStreamInferResponse, Status>> {
        loop {
            let Self { requests, running, service, .. } = self;
            let room = running.len() < service.stream_requests_max;
            tokio::select! {
                request = next_request(requests), if room && requests.is_some() => match request {
                    Some(Ok(request)) => self.start(request),
                    Some(Err(status)) => (self.requests, self.error) = (None, Some(status)),
                    None => self.requests = None,
                },
                Some((response, request)) = running.next(), if !running.is_empty() => {
                    running.extend(request.map(Running::next));
                    return Some(Ok(response));
                }
                else => return self.error.take().map(Err),
            }
        }
    }

    fn start(&mut self, request: ModelInferRequest) {
        let service = Arc::clone(&self.service);
        let began = Instant::now();
        let id = request.id.chars().take(ID_CHARS_MAX).collect();
        let (step, prompts) = match job(&service.served, request, &self.headers) {
            Ok(job) => {
                let prompts = job.prompt_count();
                (Step::Asked(job), prompts)
            }
            Err(status) => (Step::Refused(status), 0),
        };
        self.running.push(Running { service, id, began, prompts, step }.next());
    }
}

async fn next_request<R>(requests: &mut Option<R>) -> Option<Result<ModelInferRequest, Status>>
where
    R: Stream<Item = Result<ModelInferRequest, Status>> + Unpin,
{
    requests.as_mut()?.next().await
}

/// One request under way.
struct Running {
    service: Arc<Kserve>,
    id: String,
    began: Instant,
    prompts: usize,
    step: Step,
}

/// Where it is.
enum Step {
    Refused(Status),
    Asked(Job),
    Answering(Box<Pieces>),
}

/// More than an id may have: it comes back with the error that says so.
const ID_CHARS_MAX: usize = 256;

impl Running {
    /// The next response, an error being one too, and the request unless that was its last.
    fn next(self) -> BoxFuture<'static, (ModelStreamInferResponse, Option<Self>)> {
        Box::pin(async move {
            let Self { service, id, began, prompts, step } = self;
            let (result, step) = step.take(&service).await;
            match &result {
                Ok(_) if step.is_none() => service.statistics.succeeded(prompts, began.elapsed()),
                Ok(_) => {}
                Err(_) => service.statistics.failed(began.elapsed()),
            }
            let response = match result {
                Ok(response) => {
                    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                }
                Err(status) => failed(id.clone(), service.served.model.card.name.clone(), &status),
            };
            (response, step.map(|step| Self { service, id, began, prompts, step }))
        })
    }
}

impl Step {
    /// The next response and where the request is then; `None` for over.
    async fn take(self, service: &Kserve) -> (Result<ModelInferResponse, Status>, Option<Self>) {
        let mut pieces = match self {
            Self::Refused(status) => return (Err(status), None),
            Self::Asked(job) if !job.stream => {
                return (job.answer(&service.served, service.reply_bytes_max).await, None);
            }
            Self::Asked(job) => match job.pieces(&service.served).await {
                Ok(pieces) => Box::new(pieces),
                Err(status) => return (Err(status), None),
            },
            Self::Answering(pieces) => pieces,
        };
        let piece = pieces.next().await;
        let next = (!pieces.is_over()).then_some(Self::Answering(pieces));
        (piece, next)
    }
}

fn failed(id: String, model: String, status: &Status) -> ModelStreamInferResponse {
    let mut response = head(id, model);
    set_final(&mut response, true);
    let error_message = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    ModelStreamInferResponse { error_message, infer_response: Some(response) }
}
