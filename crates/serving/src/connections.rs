//! TCP connections, at most so many at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Wait before accepting again when the machine is out of file descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A listener that keeps no more than so many connections.
pub struct Connections {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Connections {
    pub fn new(listener: TcpListener, connections_max: usize) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))) }
    }

    /// The next connection, and its place: dropping that makes room for another. One that comes while all places are
    /// taken is closed at once, rather than left to wait in the backlog. Cancel safe.
    pub async fn next(&mut self) -> (TcpStream, OwnedSemaphorePermit) {
        loop {
            // An error here is a connection that died before it was accepted or a shortage that may pass: neither
            // may end the server.
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                tracing::debug!(%peer, "refused: too many connections");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "connection already gone");
                continue;
            }
            return (stream, place);
        }
    }
}
