//! A response on its way out, given up when its client does not take it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

/// Holds what a call has (`C`) until it is over. When nothing more is taken of it for a while, that and the generation
/// behind it are let go; a client that reads on then finds the end of it.
pub struct ResponseBody<C> {
    outgoing: Arc<Mutex<Outgoing<C>>>,
    watch: AbortHandle,
}

struct Outgoing<C> {
    /// `None` once it was given up.
    under_way: Option<(Body, C)>,
    /// Since when the client has had something to take.
    offered_at: Option<Instant>,
    /// Its end was told.
    is_over: bool,
}

impl<C: Send + 'static> ResponseBody<C> {
    /// `stall_timeout`: for the client to take what is there.
    pub fn new(inner: Body, call: C, stall_timeout: Duration) -> Self {
        let outgoing = Outgoing { under_way: Some((inner, call)), offered_at: None, is_over: false };
        let outgoing = Arc::new(Mutex::new(outgoing));
        let watch = tokio::spawn(watch(Arc::downgrade(&outgoing), stall_timeout)).abort_handle();
        Self { outgoing, watch }
    }
}

impl<C> Drop for ResponseBody<C> {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

fn lock<C>(outgoing: &Mutex<Outgoing<C>>) -> MutexGuard<'_, Outgoing<C>> {
    outgoing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Gives a response up when it stalls; ends when it is gone.
async fn watch<C>(response: Weak<Mutex<Outgoing<C>>>, stall_timeout: Duration) {
    let mut until = Instant::now() + stall_timeout;
    loop {
        tokio::time::sleep_until(until).await;
        let Some(response) = response.upgrade() else { return };
        let mut outgoing = lock(&response);
        let now = Instant::now();
        until = outgoing.offered_at.unwrap_or(now) + stall_timeout;
        if until <= now {
            let given_up = outgoing.under_way.take();
            drop(outgoing);
            drop(given_up); // the engine is told to stop, which needs no lock of ours
            return;
        }
    }
}

impl<C: Send + Unpin + 'static> HttpBody for ResponseBody<C> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut outgoing = lock(&self.outgoing);
        let Some((inner, _)) = &mut outgoing.under_way else {
            if std::mem::replace(&mut outgoing.is_over, true) {
                return Poll::Ready(None);
            }
            let mut trailers = HeaderMap::new();
            let told = Status::deadline_exceeded("the reply was not read in time").add_header(&mut trailers);
            return Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))));
        };
        let frame = Pin::new(inner).poll_frame(cx);
        outgoing.offered_at = frame.is_ready().then(Instant::now);
        frame
    }

    fn is_end_stream(&self) -> bool {
        let outgoing = lock(&self.outgoing);
        outgoing.under_way.as_ref().map_or(outgoing.is_over, |(inner, _)| inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.outgoing).under_way.as_ref().map_or_else(SizeHint::default, |(inner, _)| inner.size_hint())
    }
}
