//! TCP connections, at most so many at once.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use lingqu_serving::{Connections, Peer, Place};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

/// An accepted connection; dropping it makes room for another.
pub struct Connection {
    stream: TcpStream,
    place: Place,
}

/// Accepts connections for ever. One too many takes the place of one that asks nothing, or is closed at once when all
/// are busy; the one closed hears UNAVAILABLE.
pub fn connections(listener: TcpListener, connections_max: usize) -> impl Stream<Item = io::Result<Connection>> {
    futures_util::stream::unfold(Connections::new(listener, connections_max), |mut connections| async move {
        let (stream, place) = connections.next().await;
        Some((Ok(Connection { stream, place }), connections))
    })
}

/// Who calls, as requests know it.
#[derive(Clone)]
pub struct Caller {
    pub peer: Peer,
    /// None if the connection is gone already.
    pub address: Option<SocketAddr>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller { peer: self.place.peer(), address: self.stream.peer_addr().ok() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.place.poll_cut(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Pin::new(&mut self.stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
