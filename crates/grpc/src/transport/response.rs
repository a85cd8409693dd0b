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

/// Holds what a call has (`C`) until its end is on its way: a client that has seen the end of one call and begins the
/// next finds that room free again. When nothing more is taken of it for a while, that and the generation
/// behind it are let go; a client that reads on then finds the end of it.
pub struct ResponseBody<C> {
    outgoing: Arc<Mutex<Outgoing<C>>>,
    watch: AbortHandle,
}

struct Outgoing<C> {
    /// `None` once it was given up.
    under_way: Option<(Body, Option<C>)>,
    /// Since when the client has had something to take.
    offered_at: Option<Instant>,
    /// Its end was told.
    is_over: bool,
}

impl<C: Send + 'static> ResponseBody<C> {
    /// `stall_timeout`: for the client to take what is there.
    pub fn new(inner: Body, call: C, stall_timeout: Duration) -> Self {
        let held = (!inner.is_end_stream()).then_some(call);
        let outgoing = Outgoing { under_way: Some((inner, held)), offered_at: None, is_over: false };
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
        let Some((inner, held)) = &mut outgoing.under_way else {
            if std::mem::replace(&mut outgoing.is_over, true) {
                return Poll::Ready(None);
            }
            let mut trailers = HeaderMap::new();
            let told = Status::deadline_exceeded("the reply was not read in time").add_header(&mut trailers);
            return Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))));
        };
        let frame = Pin::new(inner).poll_frame(cx);
        let goes_on = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.is_data(),
            Poll::Ready(Some(Err(_)) | None) => false,
            Poll::Pending => true,
        };
        if !goes_on {
            *held = None;
        }
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

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Frames taken until what the call has is let go.
    async fn held_for(inner: Body) -> usize {
        let call = Arc::new(());
        let mut response = ResponseBody::new(inner, Arc::clone(&call), PATIENCE);
        let mut taken = 0;
        while Arc::strong_count(&call) > 1 {
            taken += 1;
            if response.frame().await.is_none() {
                break;
            }
        }
        taken
    }

    #[tokio::test]
    async fn a_call_has_its_place_until_its_last_frame_and_no_longer() {
        let data = || Frame::data(Bytes::from_static(b"x"));
        let frames = |frames: Vec<_>| Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let whole = frames(vec![Ok(data()), Ok(data()), Ok::<_, Status>(Frame::trailers(HeaderMap::new()))]);
        assert_eq!(held_for(whole).await, 3, "until the trailers");
        let broken = frames(vec![Ok(data()), Err(Status::internal("broken"))]);
        assert_eq!(held_for(broken).await, 2, "until the error");
        let bare = Body::new(Full::new(Bytes::from_static(b"x")));
        assert_eq!(held_for(bare).await, 2, "until the end");
        assert_eq!(held_for(Body::empty()).await, 0, "nothing to send");
    }
}
