//! What goes wrong with etcd.

use std::time::Duration;

use thiserror::Error;
use tonic::Code;

#[derive(Clone, Debug, Error)]
pub enum EtcdError {
    #[error("'{0}' is no address of etcd: write etcd://HOST:PORT[,HOST:PORT]/NAME")]
    Address(String),
    #[error("certificates for etcd: {0}")]
    Tls(String),
    /// No endpoint answers; what the last of them said.
    #[error("etcd at {endpoint} does not answer: {problem}")]
    Away { endpoint: String, problem: String },
    /// In etcd's words.
    #[error("etcd at {endpoint} refuses: {message}")]
    Refused { endpoint: String, code: Code, message: String },
    #[error("etcd answers in another form: {0}")]
    Malformed(&'static str),
    /// A watch that cannot go on: read again what was watched.
    #[error("etcd at {endpoint} ended a watch: {reason}")]
    WatchEnded { endpoint: String, reason: String },
    #[error("{key} in etcd: {problem}")]
    Value { key: String, problem: String },
    #[error("under {prefix} in etcd are more than {max} workers")]
    TooMany { prefix: String, max: usize },
}

/// Why a worker is not registered.
#[derive(Clone, Debug, Error)]
pub enum RegisterError {
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error("worker {id} is there already, at {address}, and was not gone after {waited:?}")]
    Taken { id: u32, address: String, waited: Duration },
}
