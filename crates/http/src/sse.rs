//! Server-sent events: one line of JSON for each chunk, then `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use lingqu_serving::Replies;
use lingqu_serving::reply::ReplyEvent;
use serde_json::Value;

use crate::app::Admitted;
use crate::error::ApiError;
use crate::reply::{Form, UsageTotal};

/// A comment, which clients pass over.
const COMMENT: Bytes = Bytes::from_static(b": still here\n\n");
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// A reply on its way out. Dropping it, as when its client goes away, stops its generations.
pub struct Streaming<F> {
    pub replies: Replies,
    pub form: F,
    pub samples_per_prompt: usize,
    pub include_usage: bool,
    pub comment_interval: Duration,
    /// The request's place, kept until the last frame is on its way: clients that stop reading at `[DONE]` and ask
    /// again find it free.
    pub place: Option<Admitted>,
}

/// What is left to tell.
struct State<F> {
    streaming: Streaming<F>,
    usage: UsageTotal,
    ready: VecDeque<Bytes>,
    ended: bool,
}

impl<F: Form> Streaming<F> {
    pub fn into_response(mut self) -> Response {
        let ready = self.form.opening().iter().map(event).collect();
        let state = State { streaming: self, usage: UsageTotal::default(), ready, ended: false };
        let frames = stream::unfold(state, |mut state| async move {
            let frame = state.next().await?;
            Some((Ok::<_, Infallible>(frame), state))
        });
        // Proxies that gather what they pass on would hold back a slow stream.
        let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
        (headers, [("x-accel-buffering", "no")], Body::from_stream(frames)).into_response()
    }
}

impl<F: Form> State<F> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                if self.ended && self.ready.is_empty() {
                    self.streaming.place = None;
                }
                return Some(frame);
            }
            if self.ended {
                return None;
            }
            match tokio::time::timeout(self.streaming.comment_interval, self.streaming.replies.next()).await {
                Err(_) => return Some(COMMENT),
                Ok(Some((sample, Ok(event)))) => self.tell(sample, event),
                Ok(Some((_, Err(error)))) => {
                    // Without [DONE]: what came is not whole.
                    self.ready.push_back(event(&ApiError::from(error).json()));
                    self.ended = true;
                }
                Ok(None) => self.close(),
            }
        }
    }

    fn tell(&mut self, sample: usize, reply: ReplyEvent) {
        if let ReplyEvent::Finished(end) = &reply {
            self.usage.add(sample, self.streaming.samples_per_prompt, &end.usage);
        }
        self.ready.extend(self.streaming.form.chunks(sample, reply).iter().map(event));
    }

    fn close(&mut self) {
        if self.streaming.include_usage {
            let mut last = self.streaming.form.closing();
            last["usage"] = self.usage.json();
            self.ready.push_back(event(&last));
        }
        self.ready.push_back(DONE);
        self.ended = true;
    }
}

fn event(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}
