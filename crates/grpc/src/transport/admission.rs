//! Bounds on calls: how many at once, how long a request may take to arrive, how many bytes of requests are held.
//!
//! A call takes its place only when its request is there: calls that are begun and left keep nobody out, since the
//! oldest of them gives way to the next.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use lingqu_serving::{Arrival, Arrivals, Asking, NoRoom, Peer};

use crate::transport::connections::Caller;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::framing::Framing;
use super::response::ResponseBody;

/// A full server is still healthy, and its orchestrator must be able to hear so.
const ALWAYS_ADMITTED: &str = "/grpc.health.v1.Health/Check";

/// Calls whose requests are many, on a stream that may live long: KServe's and, by its end, reflection's.
const REQUEST_STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
const REFLECTION_STREAM: &str = "/ServerReflectionInfo";

/// Puts every call under the bounds.
#[derive(Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    arrivals: Arc<Arrivals>,
    read_timeout: Duration,
    stream_idle_timeout: Duration,
    write_stall_timeout: Duration,
}

/// What [`Admission`] allows.
pub struct AdmissionLimits {
    /// Calls of all clients at once, from the end of their (first) request to their last byte.
    pub calls_max: usize,
    /// Calls whose request is not whole.
    pub arriving_max: usize,
    /// Bytes of requests that have arrived but are not yet decoded, of all calls together.
    pub request_bytes_in_flight_max: usize,
    /// For a request to arrive whole.
    pub read_timeout: Duration,
    /// Between two requests of KServe's stream.
    pub stream_idle_timeout: Duration,
    /// For a client to take what is there of its reply.
    pub write_stall_timeout: Duration,
}

impl Admission {
    pub fn new(limits: &AdmissionLimits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.calls_max.min(Semaphore::MAX_PERMITS))),
            arrivals: Arc::new(Arrivals::new(limits.arriving_max, limits.request_bytes_in_flight_max)),
            read_timeout: limits.read_timeout,
            stream_idle_timeout: limits.stream_idle_timeout,
            write_stall_timeout: limits.write_stall_timeout,
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
        let Admission { places, arrivals, read_timeout, stream_idle_timeout, write_stall_timeout } = &self.admission;
        let call = Arc::new(Call {
            places: (request.uri().path() != ALWAYS_ADMITTED).then(|| Arc::clone(places)),
            peer: request.extensions().get().map(|caller: &Caller| caller.peer.clone()),
            place: OnceLock::new(),
        });
        let idle_timeout = match request.uri().path() {
            REQUEST_STREAM => Some(*stream_idle_timeout),
            path if path.ends_with(REFLECTION_STREAM) => Some(*read_timeout),
            _ => None,
        };
        let body = |inner| RequestBody {
            inner,
            call: Arc::clone(&call),
            arrival: Some(arrivals.begin()),
            arrivals: Arc::clone(arrivals),
            deadline: Box::pin(tokio::time::sleep(idle_timeout.unwrap_or(*read_timeout))),
            read_timeout: *read_timeout,
            messages: idle_timeout.map(|idle_timeout| Messages { framing: Framing::default(), idle_timeout }),
        };
        let request = request.map(|inner| Body::new(body(inner)));
        let response = self.inner.call(request);
        let stall_timeout = *write_stall_timeout;
        async move { Ok(response.await?.map(|inner| Body::new(ResponseBody::new(inner, call, stall_timeout)))) }.boxed()
    }
}

/// A call from its first byte to its last. Its place is free again when request and response are gone.
struct Call {
    /// None for a call that needs no place.
    places: Option<Arc<Semaphore>>,
    peer: Option<Peer>,
    place: OnceLock<Place>,
}

/// What a call has once its request is there.
struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _asking: Option<Asking>,
}

impl Call {
    /// Its request is there.
    fn admit(&self) -> Result<(), Status> {
        if self.place.get().is_some() {
            return Ok(());
        }
        let permit = self.places.as_ref().map(|places| Arc::clone(places).try_acquire_owned());
        let full = |_| Status::resource_exhausted("too many calls at once: try again later");
        let place = Place { _permit: permit.transpose().map_err(full)?, _asking: self.peer.as_ref().map(Peer::asking) };
        // Only the request's body comes here: nobody else has set it meanwhile.
        let _ = self.place.set(place);
        Ok(())
    }
}

/// A request on its way in: fails when it takes too long, when others need its room, or when there is no place for it.
struct RequestBody {
    inner: Body,
    call: Arc<Call>,
    arrivals: Arc<Arrivals>,
    /// None between the requests of a stream.
    arrival: Option<Arrival>,
    deadline: Pin<Box<Sleep>>,
    read_timeout: Duration,
    /// Of a stream of requests.
    messages: Option<Messages>,
}

/// A stream of requests: each has its own time to arrive, and its bytes are held until it has.
struct Messages {
    framing: Framing,
    idle_timeout: Duration,
}

fn no_room(why: NoRoom) -> Status {
    Status::resource_exhausted(why.to_string())
}

impl RequestBody {
    /// More has come. A stream's first request that is whole takes the call's place.
    fn receive(&mut self, data: &[u8]) -> Result<(), Status> {
        self.hold(data.len())?;
        let Some(Messages { framing, idle_timeout }) = &mut self.messages else { return Ok(()) };
        let was_within = framing.is_within();
        let is_whole = framing.advance(data) > 0;
        let begun = framing.bytes_within();
        match begun > 0 {
            true if was_within && !is_whole => {} // the same message: its time runs on
            true => self.deadline.as_mut().reset(Instant::now() + self.read_timeout),
            false => self.deadline.as_mut().reset(Instant::now() + *idle_timeout),
        }
        if is_whole {
            self.end()?;
            self.arrival = None;
        }
        match is_whole && begun > 0 {
            true => self.hold(begun),
            false => Ok(()),
        }
    }

    fn hold(&mut self, bytes: usize) -> Result<(), Status> {
        self.arrival.get_or_insert_with(|| self.arrivals.begin()).hold(bytes).map_err(no_room)
    }

    /// The request is there; of a stream, one request is, or nothing more comes.
    fn end(&mut self) -> Result<(), Status> {
        self.arrival.as_mut().map_or(Ok(()), Arrival::whole).map_err(no_room)?;
        self.call.admit()
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let checked = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref().cloned() {
                Some(data) => self.receive(&data).map(|()| Some(Ok(frame))),
                None => self.end().map(|()| Some(Ok(frame))),
            },
            Poll::Ready(Some(Err(error))) => Err(error),
            Poll::Ready(None) => self.end().map(|()| None),
            Poll::Pending => {
                let late = self
                    .deadline
                    .as_mut()
                    .poll(cx)
                    .map(|()| Status::deadline_exceeded("the request did not arrive in time"));
                let cut = self.arrival.as_ref().map_or(Poll::Pending, |arrival| arrival.poll_cut(cx)).map(no_room);
                match (late, cut) {
                    (Poll::Ready(status), _) | (_, Poll::Ready(status)) => Err(status),
                    (Poll::Pending, Poll::Pending) => return Poll::Pending,
                }
            }
        };
        Poll::Ready(checked.unwrap_or_else(|status| Some(Err(status))))
    }

    fn is_end_stream(&self) -> bool {
        // The end is to be polled: only then has the call its place.
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
