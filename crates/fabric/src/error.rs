//! Why a message did not come through.

use thiserror::Error;

#[derive(Debug, Error)]
pub enum FabricError {
    #[error("'{address}' is no address: {problem}")]
    Address { address: String, problem: String },
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("the peer closed the connection")]
    Closed,
    #[error("the deadline has passed")]
    TimedOut,
    /// Bytes that are no frame of ours, or not those that were sent.
    #[error("corrupt frame: {0}")]
    Corrupt(&'static str),
    #[error("the peer speaks version {found} of the protocol, not {expected}")]
    Version { found: u16, expected: u16 },
    #[error("a message of {bytes} bytes, more than {bytes_max}")]
    TooLong { bytes: usize, bytes_max: usize },
    /// The peer does not hold our secret; or it hung up in the handshake, as it does where we do not hold its own.
    #[error("the peer does not share our secret, or speaks another version")]
    Unauthenticated,
    /// A certificate of another authority, over its time or of another name; ours or the peer's.
    #[error("no trust: {0}")]
    Untrusted(String),
    #[error("TLS: {0}")]
    Tls(String),
    /// In the peer's words.
    #[error("the peer refuses us: {0}")]
    Refused(String),
    /// Of all processes that were started together; no more calls come.
    #[error("the job has ended")]
    Ended,
    #[error("the secret {0}")]
    Secret(String),
}

impl FabricError {
    /// Whether waiting does not make it better: the peer is there and does not want us, or we not it.
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unauthenticated | Self::Untrusted(_) | Self::Version { .. })
    }
}
