//! Bounds on calls: how many at once, how long a request may take to arrive, how many bytes of requests are held.
//!
//! Without them a client could open streams and never finish its requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::framing::Framing;

/// A full server is still healthy, and its orchestrator must be able to hear so.
const ALWAYS_ADMITTED: &str = "/grpc.health.v1.Health/Check";

/// The call whose requests are many, on a stream that may live long.
const REQUEST_STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Puts every call under the bounds.
#[derive(Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    bytes: Arc<ByteBudget>,
    read_timeout: Duration,
    stream_idle_timeout: Duration,
}

/// What [`Admission`] allows.
pub struct AdmissionLimits {
    /// Calls of all clients at once, from their first byte to their last.
    pub calls_max: usize,
    /// Bytes of requests that have arrived but are not yet decoded, of all calls together.
    pub request_bytes_in_flight_max: usize,
    /// For a request to arrive whole.
    pub read_timeout: Duration,
    /// Between two requests of one stream.
    pub stream_idle_timeout: Duration,
}

struct ByteBudget {
    used: AtomicUsize,
    max: usize,
}

impl Admission {
    pub fn new(limits: &AdmissionLimits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.calls_max.min(Semaphore::MAX_PERMITS))),
            bytes: Arc::new(ByteBudget { used: AtomicUsize::new(0), max: limits.request_bytes_in_flight_max }),
            read_timeout: limits.read_timeout,
            stream_idle_timeout: limits.stream_idle_timeout,
        }
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { admission: self.clone(), inner }
    }
}

/// A service under the bounds.
#[derive(Clone)]
pub struct Admitting<S> {
    admission: Admission,
    inner: S,
}

impl<S> Service<Request<Body>> for Admitting<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let place = Arc::clone(&self.admission.places).try_acquire_owned().ok();
        if place.is_none() && request.uri().path() != ALWAYS_ADMITTED {
            let refusal = Status::resource_exhausted("too many calls at once: try again later");
            return std::future::ready(Ok(refusal.into_http())).boxed();
        }
        let Admission { bytes, read_timeout, stream_idle_timeout, .. } = &self.admission;
        let messages = (request.uri().path() == REQUEST_STREAM).then(|| Messages {
            framing: Framing::default(),
            read_timeout: *read_timeout,
            idle_timeout: *stream_idle_timeout,
        });
        let first = if messages.is_some() { *stream_idle_timeout } else { *read_timeout };
        let deadline = Box::pin(tokio::time::sleep(first));
        let budget = Arc::clone(bytes);
        let request = request.map(|inner| Body::new(RequestBody { inner, budget, bytes_held: 0, deadline, messages }));
        let response = self.inner.call(request);
        async move { Ok(response.await?.map(|inner| Body::new(ResponseBody { inner, _place: place }))) }.boxed()
    }
}

/// A request on its way in: fails when it takes too long, or when too much of all requests is held at once.
struct RequestBody {
    inner: Body,
    budget: Arc<ByteBudget>,
    bytes_held: usize,
    deadline: Pin<Box<Sleep>>,
    /// Of a stream of requests.
    messages: Option<Messages>,
}

/// A stream of requests: each has its own time to arrive, and its bytes are held until it has.
struct Messages {
    framing: Framing,
    read_timeout: Duration,
    idle_timeout: Duration,
}

impl RequestBody {
    /// Follows a stream's messages: lets go of those that are whole, and sets the time for what comes next.
    fn follow(&mut self, data: &[u8]) {
        let Some(Messages { framing, read_timeout, idle_timeout }) = &mut self.messages else { return };
        let was_within = framing.is_within();
        let whole = framing.advance(data);
        let now = tokio::time::Instant::now();
        match framing.is_within() {
            true if was_within && whole == 0 => {} // the same message: its time runs on
            true => self.deadline.as_mut().reset(now + *read_timeout),
            false => self.deadline.as_mut().reset(now + *idle_timeout),
        }
        self.bytes_held -= whole;
        self.budget.used.fetch_sub(whole, Ordering::Relaxed);
    }

    fn hold(&mut self, bytes: usize) -> Result<(), Status> {
        self.bytes_held += bytes;
        let used = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match used > self.budget.max {
            true => Err(Status::resource_exhausted("too many requests are arriving at once: try again later")),
            false => Ok(()),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes_held, Ordering::Relaxed);
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let data = frame.data_ref().cloned().unwrap_or_default();
                let held = self.hold(data.len());
                self.follow(&data);
                Poll::Ready(Some(held.map(|()| frame)))
            }
            Poll::Pending => self
                .deadline
                .as_mut()
                .poll(cx)
                .map(|()| Some(Err(Status::deadline_exceeded("the request did not arrive in time")))),
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response on its way out: holds the call's place until it is over.
struct ResponseBody {
    inner: Body,
    _place: Option<OwnedSemaphorePermit>,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
