//! Messages between the processes of a cluster: framed, checksummed, authenticated, each with a deadline.
//!
//! Must not know: what a message says, experts, models. Start with [`Fabric`], the seam: whoever sends knows addresses
//! and links, not sockets. [`TcpFabric`] is the plain way, without any service, `tls.rs` what encrypts it; `frame.rs`
//! has the bytes on the wire, `handshake.rs` how two processes prove that they hold the same secret before either says
//! anything else. Another fabric brings a [`Pipe`] and passes [`conformance`].
//!
//! # Contract
//! - No call waits beyond its deadline, whatever the peer does: also one that sends a byte now and then.
//! - After an error a link is of no more use, for a part of a frame may be on its way: drop it and connect again.
//! - A peer that has not proven the secret learns nothing but a random number.

#![forbid(unsafe_code)]

pub mod conformance;
mod error;
mod frame;
mod handshake;
mod hmac;
mod pipe;
mod secret;
mod tcp;
mod tls;

use std::time::Instant;

pub use error::FabricError;
pub use frame::{FRAME_BYTES_MAX, HEAD_BYTES, KIND_MAX, Tag};
pub use handshake::GREETING_BYTES_MAX;
pub use pipe::{Pipe, admit, join};
pub use secret::Secret;
pub use tcp::TcpFabric;
pub use tls::{CertificateFiles, Certificates};

pub type Result<T, E = FabricError> = std::result::Result<T, E>;

/// A way between processes.
pub trait Fabric: Send + Sync {
    /// Opens a link to who listens at `address`. Both sides prove that they hold the secret; then the other one judges
    /// `greeting` and answers it.
    ///
    /// # Errors
    /// [`FabricError::Refused`] with the reason of a peer that has the secret but does not want us.
    fn connect(&self, address: &str, greeting: &[u8], deadline: Instant) -> Result<Joined>;

    /// Takes calls at `address` from now on.
    fn listen(&self, address: &str) -> Result<Box<dyn Listener>>;
}

/// What a call came to.
pub struct Joined {
    pub link: Box<dyn Link>,
    /// The peer's answer to the greeting.
    pub answer: Vec<u8>,
}

/// Takes calls.
pub trait Listener: Send {
    /// Where it can be called: with the port that was found, if any would do.
    fn address(&self) -> String;

    /// Waits, without a deadline, for somebody to call.
    fn accept(&self) -> Result<Box<dyn Caller>>;
}

/// Somebody of whom nothing is known yet.
pub trait Caller: Send {
    /// Where the call came from, for the log.
    fn address(&self) -> String;

    /// Lets the caller prove the secret; then `judge` sees the greeting and gives the answer, or the reason of a
    /// refusal.
    fn admit(self: Box<Self>, judge: Judge<'_>, deadline: Instant) -> Result<Box<dyn Link>>;
}

/// Sees a greeting; the answer to it, or why its sender is not wanted.
pub type Judge<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Vec<u8>, String>;

/// An open way to one peer.
pub trait Link: Send {
    /// Sends one message, whose bytes are `parts` one after the other. Returns once it is on its way.
    fn send(&mut self, tag: Tag, parts: &[&[u8]], deadline: Instant) -> Result<()>;

    /// The next message, of `bytes_max` bytes at most. The bytes are the link's own memory, to be used again.
    fn receive(&mut self, bytes_max: usize, deadline: Instant) -> Result<(Tag, &[u8])>;
}
