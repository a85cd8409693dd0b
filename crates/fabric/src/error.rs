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
    /// In the peer's words.
    #[error("the peer refuses us: {0}")]
    Refused(String),
    #[error("the secret {0}")]
    Secret(String),
}
