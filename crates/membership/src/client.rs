//! A client of the little of etcd's API that a registry needs. Every call has a deadline; endpoints are tried in turn.

use std::error::Error;
use std::future::{Future, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, IntoRequest, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::messages::{
    Compare, EVENT_DELETE, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, PutRequest, RangeRequest, RangeResponse, RequestOp, TARGET_CREATE,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::{Address, EtcdError, messages};

pub use crate::messages::KeyValue;

type Result<T, E = EtcdError> = std::result::Result<T, E>;

/// One attempt at one endpoint.
const CALL: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(1);
/// Between looks at a connection on which an answer, or a watch's events, are awaited. etcd allows one each 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(5);
/// More than a full registry has.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

pub struct Client {
    endpoints: Vec<(String, Channel)>,
    /// The endpoint that answered last.
    current: AtomicUsize,
}

const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// What TLS towards etcd needs, all PEM.
#[derive(Clone)]
pub struct Tls {
    /// Certificates of the authorities by which etcd is trusted.
    pub ca: Vec<u8>,
    /// What etcd is shown, if anything: a certificate and its key.
    pub own: Option<[Vec<u8>; 2]>,
}

impl Tls {
    fn config(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca));
        match &self.own {
            Some([certificate, key]) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        }
    }
}

/// What was there, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Of the whole store; a watch from the next one on misses nothing.
    pub revision: i64,
    pub kvs: Vec<KeyValue>,
    /// There are more than were asked for.
    pub more: bool,
}

/// A key of one's own, or somebody else's.
#[derive(Clone, Debug, PartialEq)]
pub enum Put {
    Created { revision: i64 },
    Taken(KeyValue),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: i64,
    /// As granted: etcd has a least one.
    pub ttl: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Put(KeyValue),
    Deleted { key: Vec<u8> },
}

impl Client {
    /// Connects when it is first asked something. To be called in the context of a runtime.
    pub fn new(address: &Address, tls: Option<&Tls>) -> Result<Self> {
        if tls.is_some_and(|tls| !tls.ca.windows(PEM_CERTIFICATE.len()).any(|part| part == PEM_CERTIFICATE)) {
            return Err(EtcdError::Tls("there is none of an authority, in PEM".into()));
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = |at: &String| {
            let url = format!("{scheme}://{at}");
            let mut endpoint = Endpoint::from_shared(url).map_err(|_| EtcdError::Address(at.clone()))?;
            if let Some(tls) = tls {
                let problem = |error: tonic::transport::Error| EtcdError::Tls(innermost(&error));
                endpoint = endpoint.tls_config(tls.config()).map_err(problem)?;
            }
            let endpoint = endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(PING_INTERVAL);
            Ok((at.clone(), endpoint.keep_alive_timeout(PING).connect_lazy()))
        };
        let endpoints = address.endpoints.iter().map(endpoint).collect::<Result<Vec<_>>>()?;
        Ok(Self { endpoints, current: AtomicUsize::new(0) })
    }

    /// A key, or with `range_end` all from there to before it; `limit` at most.
    pub async fn range(&self, key: &str, range_end: &str, limit: usize) -> Result<Reading> {
        let request = RangeRequest { key: key.into(), range_end: range_end.into(), limit: limit as i64 };
        let RangeResponse { header, kvs, more } = self.unary("/etcdserverpb.KV/Range", request).await?;
        let revision = header.ok_or(EtcdError::Malformed("a range without a revision"))?.revision;
        Ok(Reading { revision, kvs, more })
    }

    /// Puts a key that is not there yet, under a lease unless that is 0.
    pub async fn create(&self, key: &str, value: &str, lease: i64) -> Result<Put> {
        let is_new = Compare { target: TARGET_CREATE, key: key.into(), create_revision: Some(0), ..Compare::default() };
        let put = messages::Request::Put(PutRequest { key: key.into(), value: value.into(), lease });
        let look = messages::Request::Range(RangeRequest { key: key.into(), ..RangeRequest::default() });
        let only = |request| vec![RequestOp { request: Some(request) }];
        let request = TxnRequest { compare: vec![is_new], success: only(put), failure: only(look) };
        let TxnResponse { header, succeeded, responses } = self.unary("/etcdserverpb.KV/Txn", request).await?;
        if succeeded {
            let revision = header.ok_or(EtcdError::Malformed("a put without a revision"))?.revision;
            return Ok(Put::Created { revision });
        }
        let found = responses.into_iter().find_map(|op| match op.response? {
            messages::Response::Range(range) => range.kvs.into_iter().next(),
            messages::Response::Put(_) => None,
        });
        found.map(Put::Taken).ok_or(EtcdError::Malformed("a key that is there and is not"))
    }

    pub async fn grant(&self, ttl: Duration) -> Result<Lease> {
        let seconds = ttl.as_millis().div_ceil(1000) as i64;
        let granted: LeaseGrantResponse =
            self.unary("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl: seconds }).await?;
        match (granted.id, u64::try_from(granted.ttl)) {
            (id, Ok(ttl @ 1..)) if id != 0 && granted.error.is_empty() => {
                Ok(Lease { id, ttl: Duration::from_secs(ttl) })
            }
            _ => Err(EtcdError::Malformed("a lease without a time to live")),
        }
    }

    /// Begins the lease's time anew; false if etcd knows no such lease.
    pub async fn keep_alive(&self, lease: i64) -> Result<bool> {
        let answer: Option<LeaseKeepAliveResponse> = self
            .each(async |mut grpc| {
                let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
                let (once, codec) = (stream::iter([LeaseKeepAliveRequest { id: lease }]), ProstCodec::default());
                grpc.streaming(Request::new(once), path, codec).await?.into_inner().message().await
            })
            .await?;
        Ok(answer.ok_or(EtcdError::Malformed("no answer to a keep-alive"))?.ttl > 0)
    }

    /// Ends a lease, and what was put under it. One that is not there is none to end.
    pub async fn revoke(&self, lease: i64) -> Result<()> {
        let request = LeaseRevokeRequest { id: lease };
        match self.unary::<_, LeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", request).await {
            Ok(_) | Err(EtcdError::Refused { code: Code::NotFound, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Events of all keys from `key` to before `range_end`, from a revision on.
    pub async fn watch(&self, key: &str, range_end: &str, from: i64) -> Result<Watch> {
        let create = WatchCreateRequest { key: key.into(), range_end: range_end.into(), start_revision: from };
        let request = WatchRequest { create: Some(create) };
        let (stream, first) = self
            .each(async |mut grpc| {
                // The side of the questions stays open as long as the watch.
                let questions = stream::once(ready(request.clone())).chain(stream::pending());
                let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
                let answer = grpc.streaming(Request::new(questions), path, ProstCodec::default()).await?;
                let mut stream: Streaming<WatchResponse> = answer.into_inner();
                let first = stream.message().await?;
                Ok((stream, first))
            })
            .await?;
        let endpoint = self.endpoints[self.current.load(Ordering::Relaxed)].0.clone();
        let mut watch = Watch { endpoint, stream, waiting: Vec::new() };
        watch.waiting = watch.take(first)?;
        Ok(watch)
    }

    async fn unary<Q, A>(&self, path: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.each(async |mut grpc| {
            let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::<Q, A>::default());
            Ok(grpc.unary(request.clone().into_request(), path, codec).await?.into_inner())
        })
        .await
    }

    /// Asks endpoints one after the other, beginning with the one that answered last, until one answers.
    async fn each<T, F>(&self, attempt: impl Fn(Grpc<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let (first, count) = (self.current.load(Ordering::Relaxed), self.endpoints.len());
        let mut last = EtcdError::Malformed("no endpoints");
        for at in (first..first + count).map(|at| at % count) {
            let (endpoint, channel) = &self.endpoints[at];
            let endpoint = endpoint.clone();
            let ask = async {
                let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
                grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
                attempt(grpc).await
            };
            last = match timeout(CALL, ask).await {
                Ok(Ok(answer)) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(status)) if is_verdict(status.code()) => {
                    let (code, message) = (status.code(), status.message().to_owned());
                    return Err(EtcdError::Refused { endpoint, code, message });
                }
                Ok(Err(status)) => EtcdError::Away { endpoint, problem: describe(&status) },
                Err(_) => EtcdError::Away { endpoint, problem: format!("nothing within {CALL:?}") },
            };
        }
        Err(last)
    }
}

/// Whether another endpoint would say the same.
fn is_verdict(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    )
}

/// The status, and the innermost reason: for a connection that is the telling one.
fn describe(status: &Status) -> String {
    let said = status.message();
    match status.source().map(innermost) {
        Some(reason) if reason != said => format!("{said}: {reason}"),
        _ => said.to_owned(),
    }
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

/// Events as they happen.
pub struct Watch {
    endpoint: String,
    stream: Streaming<WatchResponse>,
    /// Came with the answer to the question.
    waiting: Vec<Event>,
}

impl Watch {
    /// The next ones, in their order; waits for them without a deadline, but not on a connection that is dead. May be
    /// dropped while it waits.
    ///
    /// # Errors
    /// The watch has ended: read again, and watch from there. That is also so where etcd has forgotten (compacted)
    /// what happened since.
    pub async fn next(&mut self) -> Result<Vec<Event>> {
        loop {
            if !self.waiting.is_empty() {
                return Ok(std::mem::take(&mut self.waiting));
            }
            let message = self.stream.message().await.map_err(|status| self.ended(describe(&status)))?;
            self.waiting = self.take(message)?;
        }
    }

    fn take(&self, message: Option<WatchResponse>) -> Result<Vec<Event>> {
        let message = message.ok_or_else(|| self.ended("it closed the stream".into()))?;
        if message.compact_revision != 0 {
            return Err(self.ended(format!("compacted at revision {}", message.compact_revision)));
        }
        if message.canceled {
            return Err(self.ended(message.cancel_reason));
        }
        let event = |event: messages::Event| {
            let kv = event.kv?;
            Some(if event.kind == EVENT_DELETE { Event::Deleted { key: kv.key } } else { Event::Put(kv) })
        };
        Ok(message.events.into_iter().filter_map(event).collect())
    }

    fn ended(&self, reason: String) -> EtcdError {
        EtcdError::WatchEnded { endpoint: self.endpoint.clone(), reason }
    }
}
