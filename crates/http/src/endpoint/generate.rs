//! Completions: a request from its body to its last byte.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use lingqu_serving::{Ask, Input, Replies, RequestError};

use crate::app::{Admitted, App, now_unix_s};
use crate::body;
use crate::error::{ApiError, json_response};
use crate::reply::chat::ChatForm;
use crate::reply::completion::CompletionForm;
use crate::reply::{Form, Heading, whole};
use crate::request::chat::{self, ChatRequest};
use crate::request::completion::{self, CompletionRequest};
use crate::request::service::FromHeaders;
use crate::request::{Context, Delivery};
use crate::sse::Streaming;

/// Header of a reply: the first sample's id in the server's log.
const REQUEST_ID_HEADER: &str = "x-request-id";
/// A body of more bytes is read as JSON off the threads that serve connections.
const SMALL_BODY_BYTES: usize = 64 << 10;

/// `/v1/chat/completions`
pub async fn chat(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    let (place, ChatRequest { ask, delivery }) = receive(&app, request, chat::read).await?;
    let question = Question { asks: vec![ask], delivery, place };
    question.answer(&app, ChatForm::new).await
}

/// `/v1/completions`
pub async fn completion(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    let (place, CompletionRequest { asks, echo, delivery }) = receive(&app, request, completion::read).await?;
    let prompts = echo.then(|| asks.iter().map(|ask| prompt_text(&app, ask)).collect());
    let question = Question { asks, delivery, place };
    question.answer(&app, |heading| CompletionForm::new(heading, prompts)).await
}

/// Takes a request in, within bounds.
async fn receive<T: Send + 'static>(
    app: &App,
    request: Request<Body>,
    read: fn(&[u8], Context) -> Result<T, RequestError>,
) -> Result<(Admitted, T), ApiError> {
    let arrived = Instant::now();
    let refused = |error: &RequestError| app.served.metrics.refused(error);
    app.check_open().inspect_err(refused)?;
    let (parts, body) = request.into_parts();
    check_content_type(&parts.headers)?;
    let headers = FromHeaders::read(&parts.headers)?;
    let context = Context { default_sampling: app.served.model.default_sampling.clone(), headers, arrived };
    let body = body::read(app, &parts.headers, body).await?;
    // Only now: whoever begins requests and leaves them takes nobody's place.
    let place = app.admit(parts.extensions.get()).inspect_err(refused)?;
    let asked = match body.bytes.len() <= SMALL_BODY_BYTES {
        true => read(&body.bytes, context),
        false => app.served.off_thread("reading a request", move |_| read(&body.bytes, context)).await,
    };
    Ok((place, asked.inspect_err(refused)?))
}

/// A browser's page may send other types to a server on its own machine without asking.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = given.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ApiError::of(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")),
    }
}

/// A plain prompt as its echo tells it.
fn prompt_text(app: &App, ask: &Ask) -> String {
    match &ask.input {
        Input::Text { text, .. } => text.clone(),
        Input::Tokens(ids) => app.served.model.tokenizer.decode(ids, ask.skip_special_tokens),
        Input::Chat { .. } => String::new(),
    }
}

/// What was asked, and how the reply is wanted.
struct Question {
    /// One for each prompt.
    asks: Vec<Ask>,
    delivery: Delivery,
    place: Admitted,
}

impl Question {
    /// Submits it, and answers as it was wanted.
    async fn answer<F: Form>(self, app: &App, form: impl FnOnce(Heading) -> F) -> Result<Response, ApiError> {
        let Self { asks, delivery: Delivery { stream, include_usage }, place } = self;
        let samples_per_prompt = asks.first().map_or(1, |ask| ask.choices as usize);
        let model = asks.first().map(|ask| ask.model.clone()).filter(|model| !model.is_empty());
        let replies = Replies::start_all(&app.served, asks).await?;
        let id = replies.ids().first().map(|id| id.to_string()).unwrap_or_default();
        let mut form = form(Heading {
            served: Arc::clone(&app.served),
            ids: replies.ids().to_vec(),
            model: model.unwrap_or_else(|| app.served.model.card.name.clone()),
            created_unix_s: now_unix_s(),
            samples_per_prompt,
            usage_follows: stream && include_usage,
        });
        let mut response = match stream {
            true => {
                let comment_interval = app.config.stream_comment_interval;
                Streaming { replies, form, samples_per_prompt, include_usage, comment_interval, place: Some(place) }
                    .into_response()
            }
            false => {
                let samples = whole::collect(replies, app.config.reply_bytes_max).await?;
                json_response(StatusCode::OK, &form.whole(samples))
            }
        };
        if let Ok(id) = HeaderValue::try_from(id) {
            response.headers_mut().insert(REQUEST_ID_HEADER, id);
        }
        Ok(response)
    }
}
