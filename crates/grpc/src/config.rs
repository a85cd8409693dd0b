//! The bounds of the gRPC server. Each says what it protects.

use std::net::IpAddr;
use std::time::Duration;

/// [`Default`] suits a server on an internal network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcConfig {
    /// TCP connections at once; one more takes the place of one that asks nothing, or is closed at once when all are
    /// busy. Bounds sockets and their buffers.
    pub connections_max: usize,
    /// Calls at once on one connection; a client's further calls wait on its own side.
    pub streams_per_connection_max: u32,
    /// Calls at once in all whose request has arrived; one more is answered RESOURCE_EXHAUSTED. Bounds the memory of
    /// calls.
    pub calls_max: usize,
    /// Calls at once in all whose request has not arrived whole; with one more, the one that has been arriving longest
    /// is answered RESOURCE_EXHAUSTED.
    pub arriving_max: usize,
    /// Bytes of one request.
    pub request_bytes_max: usize,
    /// Bytes of all requests that are still arriving; when there are more, the one that has been arriving longest is
    /// answered RESOURCE_EXHAUSTED.
    pub request_bytes_in_flight_max: usize,
    /// For a request to arrive whole: clears streams that are opened and left so. Also between two requests of a
    /// reflection stream.
    pub request_read_timeout: Duration,
    /// KServe's stream of requests takes no more of them once its client has sent nothing for so long.
    pub stream_idle_timeout: Duration,
    /// Requests of one such stream that run at once; further ones wait on the client's side.
    pub stream_requests_max: usize,
    /// Bytes of one unary reply, before it is refused in favour of the streaming call. Clients take 4 MiB by default.
    pub reply_bytes_max: usize,
    /// A client that has not taken a byte of a reply for so long gets no more of it; its generation, paused long
    /// before, ends.
    pub write_stall_timeout: Duration,
    /// A silent connection is asked for a sign of life this often, and closed when it gives none for as long again.
    pub keepalive_interval: Duration,
    /// Who may drain workers and move experts.
    pub cluster_changes_from: ChangesFrom,
    /// For calls to end once the server stops ([`crate::Phase::Stopping`]); what is left is cut off.
    pub stop_timeout: Duration,
}

/// Whose changes of the cluster are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangesFrom {
    /// Of callers on this machine.
    Loopback,
    /// Of everybody who reaches the port.
    Any,
}

impl ChangesFrom {
    /// Whether a change is taken from there; of some callers the address is not known.
    pub(crate) fn allows(self, caller: Option<IpAddr>) -> bool {
        self == Self::Any || caller.is_some_and(|address| address.to_canonical().is_loopback())
    }
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            streams_per_connection_max: 1024,
            calls_max: 4096,
            arriving_max: 4096,
            request_bytes_max: 4 << 20,
            request_bytes_in_flight_max: 256 << 20,
            request_read_timeout: Duration::from_secs(30),
            stream_idle_timeout: Duration::from_secs(600),
            stream_requests_max: 64,
            reply_bytes_max: 4 << 20,
            write_stall_timeout: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(30),
            cluster_changes_from: ChangesFrom::Loopback,
            stop_timeout: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_taken_from_near_or_from_all() {
        let check = |caller: &str, is_near: bool| {
            let caller = caller.parse().ok();
            assert_eq!(ChangesFrom::Loopback.allows(caller), is_near, "{caller:?}");
            assert!(ChangesFrom::Any.allows(caller), "{caller:?}");
        };
        for near in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            check(near, true);
        }
        for far in ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "0.0.0.0", "nowhere"] {
            check(far, false);
        }
    }
}
