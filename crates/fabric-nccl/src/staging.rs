//! The device's side of a link.

use std::ffi::c_void;

/// An address in device memory, or a stream, as the vendor's library takes it. The host does not read there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub *mut c_void);

// SAFETY: it is a number to us; what may be done with it, and where, is the vendor's library's to say.
unsafe impl Send for Address {}

/// Memory of a device and a stream on it, of one link. Errors are the driver's words.
pub trait Staging: Send {
    /// Memory of at least `bytes`, whose contents may be lost. It stays until the next call and as long as `self`.
    fn reserve(&mut self, bytes: usize) -> Result<Address, String>;

    /// Copies all parts, one after the other, to the beginning of the memory, in the order of the stream. The parts
    /// may be gone when it returns.
    fn upload(&mut self, parts: &[&[u8]]) -> Result<(), String>;

    /// Copies from the beginning of the memory; done when it returns.
    fn download(&mut self, bytes: &mut [u8]) -> Result<(), String>;

    /// The stream on which messages are sent and received.
    fn stream(&self) -> Address;

    /// Whether all that was put on the stream is done. Does not wait.
    fn is_done(&mut self) -> Result<bool, String>;
}
