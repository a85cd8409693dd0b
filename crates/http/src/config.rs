//! The bounds of the HTTP server. Each says what it protects.

use std::time::Duration;

/// [`Default`] suits a server on an internal network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// TCP connections at once; one more takes the place of one that asks nothing, or is closed at once when all are
    /// busy. Bounds sockets and their buffers.
    pub connections_max: usize,
    /// Requests at once in all that have arrived whole; one more is answered 429. Bounds the memory of requests and
    /// replies.
    pub requests_max: usize,
    /// Bytes of one request line with its headers; more are answered 431. Also of what is buffered for a connection
    /// in each direction.
    pub header_bytes_max: usize,
    /// Bytes of one request's body; more are answered 413.
    pub request_bytes_max: usize,
    /// Bytes of all bodies that have arrived but are not yet read as JSON; when there are more, the body that has been
    /// arriving longest is answered 429.
    pub request_bytes_in_flight_max: usize,
    /// For a request's headers to arrive, counted from the opening of the connection or the end of the reply before:
    /// closes connections that are opened and left so.
    pub header_read_timeout: Duration,
    /// For a request's body to arrive whole after its headers; then 408.
    pub request_read_timeout: Duration,
    /// Bytes of one reply that is not streamed, before it is refused in favour of streaming.
    pub reply_bytes_max: usize,
    /// A client that has not read a byte for so long is cut off; its generation, paused long before, ends.
    pub write_stall_timeout: Duration,
    /// A stream that has nothing to tell sends a comment this often, so that nobody on the way takes it for dead.
    pub stream_comment_interval: Duration,
    /// For requests to end once the server stops ([`crate::Phase::Stopping`]); what is left is cut off.
    pub stop_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            requests_max: 4096,
            header_bytes_max: 32 << 10,
            request_bytes_max: 4 << 20,
            request_bytes_in_flight_max: 256 << 20,
            header_read_timeout: Duration::from_secs(30),
            request_read_timeout: Duration::from_secs(30),
            reply_bytes_max: 16 << 20,
            write_stall_timeout: Duration::from_secs(60),
            stream_comment_interval: Duration::from_secs(15),
            stop_timeout: Duration::from_secs(5),
        }
    }
}
