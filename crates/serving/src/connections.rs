//! TCP connections, at most so many at once. When one more comes, the one that has been asking nothing for longest is
//! cut off, those first that have never asked anything: clients who connect and leave it at that keep nobody out.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cut::Cut;

/// Wait before accepting again when the machine is out of file descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A listener that keeps no more than so many connections.
pub struct Connections {
    listener: TcpListener,
    places: Arc<Semaphore>,
    idle: Arc<Idle>,
    /// Accepted; it waits for the place of one that was cut off.
    next: Option<TcpStream>,
}

impl Connections {
    pub fn new(listener: TcpListener, connections_max: usize) -> Self {
        let places = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
        Self { listener, places, idle: Arc::default(), next: None }
    }

    /// The next connection, and its place: dropping that makes room for another. One that comes while all others are
    /// busy is closed at once, rather than left to wait in the backlog. Cancel safe.
    pub async fn next(&mut self) -> (TcpStream, Place) {
        loop {
            if self.next.is_none() {
                let Some(stream) = self.accept().await else { continue };
                if self.places.available_permits() == 0 && !self.idle.cut_first() {
                    tracing::debug!("refused: too many busy connections");
                    continue;
                }
                self.next = Some(stream);
            }
            let permit = Arc::clone(&self.places).acquire_owned().await.expect("never closed");
            if let Some(stream) = self.next.take() {
                return (stream, Place { peer: Peer::new(&self.idle), _permit: permit });
            }
        }
    }

    async fn accept(&self) -> Option<TcpStream> {
        match self.listener.accept().await {
            Ok((stream, peer)) => {
                let ready = stream.set_nodelay(true);
                ready.inspect_err(|error| tracing::debug!(%peer, %error, "connection already gone")).ok()?;
                Some(stream)
            }
            // A connection that died before it was accepted, or a shortage that may pass, the sooner for one
            // connection less: neither may end the server.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    self.idle.cut_first();
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
                None
            }
        }
    }
}

/// Who may be cut off: those who have never asked anything come first, then by turn.
type Rank = (bool, u64);

/// Connections that ask nothing now.
#[derive(Default)]
struct Idle(Mutex<Line>);

#[derive(Default)]
struct Line {
    turn: u64,
    idle: BTreeMap<Rank, Arc<Cut>>,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().expect("nothing panics under this lock")
    }

    /// False if there is none.
    fn cut_first(&self) -> bool {
        let first = self.lock().idle.pop_first();
        first.map(|(_, cut)| cut.give()).is_some()
    }
}

impl Line {
    fn enter(&mut self, has_asked: bool, cut: &Arc<Cut>) -> Rank {
        let rank = (has_asked, self.turn);
        self.turn += 1;
        self.idle.insert(rank, Arc::clone(cut));
        rank
    }
}

/// A connection's place.
pub struct Place {
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// For the requests that come over the connection.
    pub fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// An error when the connection is to be given up.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let cut = self.peer.0.cut.poll(cx);
        cut.map(|()| io::Error::new(io::ErrorKind::ConnectionAborted, "cut off for other connections"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut line = self.peer.0.idle.lock();
        let mut standing = self.peer.standing();
        standing.is_closed = true;
        if let Some(rank) = standing.idle_as.take() {
            line.idle.remove(&rank);
        }
    }
}

/// A connection as its requests know it.
#[derive(Clone)]
pub struct Peer(Arc<PeerState>);

struct PeerState {
    idle: Arc<Idle>,
    cut: Arc<Cut>,
    /// Locked after `idle`.
    standing: Mutex<Standing>,
}

struct Standing {
    asking: usize,
    idle_as: Option<Rank>,
    is_closed: bool,
}

impl Peer {
    fn new(idle: &Arc<Idle>) -> Self {
        let cut = Arc::new(Cut::default());
        let idle_as = Some(idle.lock().enter(false, &cut));
        let standing = Mutex::new(Standing { asking: 0, idle_as, is_closed: false });
        Self(Arc::new(PeerState { idle: Arc::clone(idle), cut, standing }))
    }

    /// A request has arrived whole: while any of its requests is held so, the connection is not cut off.
    pub fn asking(&self) -> Asking {
        let mut line = self.0.idle.lock();
        let mut standing = self.standing();
        standing.asking += 1;
        if let Some(rank) = standing.idle_as.take() {
            line.idle.remove(&rank);
        }
        drop(standing);
        Asking(self.clone())
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.standing.lock().expect("nothing panics under this lock")
    }
}

/// A request that is being answered.
pub struct Asking(Peer);

impl Drop for Asking {
    fn drop(&mut self) {
        let mut line = self.0.0.idle.lock();
        let mut standing = self.0.standing();
        standing.asking -= 1;
        if standing.asking == 0 && !standing.is_closed {
            standing.idle_as = Some(line.enter(true, &self.0.0.cut));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Who of four is cut off, in this order, when there are so many more; `asked`: have asked something in this order.
    fn check(asked: &[usize], asking: &[usize], more: usize, cut: &[usize]) {
        let idle = Arc::<Idle>::default();
        let peers: Vec<Peer> = (0..4).map(|_| Peer::new(&idle)).collect();
        for &peer in asked {
            drop(peers[peer].asking());
        }
        let _asking: Vec<Asking> = asking.iter().map(|&peer| peers[peer].asking()).collect();
        let mut order = Vec::new();
        for _ in 0..more {
            idle.cut_first();
            let new = |&peer: &usize| peers[peer].0.cut.is_given() && !order.contains(&peer);
            order.extend((0..4).find(new));
        }
        assert_eq!(order, cut, "{asked:?} {asking:?}");
    }

    #[test]
    fn who_asks_nothing_is_cut_off_first() {
        check(&[], &[], 2, &[0, 1]);
        check(&[0], &[], 4, &[1, 2, 3, 0]);
        check(&[3, 0], &[], 4, &[1, 2, 3, 0]);
        check(&[3, 0, 3], &[], 4, &[1, 2, 0, 3]);
        check(&[], &[0, 2], 4, &[1, 3]);
        check(&[2], &[0, 2, 1, 3], 4, &[]);
    }

    #[test]
    fn a_closed_connection_leaves_the_line() {
        let idle = Arc::<Idle>::default();
        let permit = || Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one");
        let place = Place { peer: Peer::new(&idle), _permit: permit() };
        let asking = place.peer().asking();
        drop(place);
        drop(asking);
        assert!(idle.lock().idle.is_empty(), "closed while it asked");
        drop(Place { peer: Peer::new(&idle), _permit: permit() });
        assert!(idle.lock().idle.is_empty(), "closed while it was idle");
    }

    #[tokio::test]
    async fn one_too_many_takes_the_place_of_an_idle_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut connections = Connections::new(listener, 2);
        let connect = || TcpStream::connect(address);
        let _clients = (connect().await.expect("taken"), connect().await.expect("taken"));
        let (_first, first) = connections.next().await;
        let (_second, _place) = connections.next().await;
        let third = connect().await.expect("the backlog takes it");
        // It gets a place only once the first has left its own.
        {
            let next = connections.next();
            tokio::pin!(next);
            let cut = std::future::poll_fn(|cx| {
                assert!(next.as_mut().poll(cx).is_pending());
                first.poll_cut(cx)
            });
            assert_eq!(cut.await.kind(), io::ErrorKind::ConnectionAborted);
        }
        drop(first);
        let (stream, place) = connections.next().await;
        assert_eq!(stream.peer_addr().expect("connected"), third.local_addr().expect("connected"));
        // All busy: closed at once.
        let _busy = (place.peer().asking(), _place.peer().asking());
        let mut fourth = connect().await.expect("the backlog takes it");
        let mut bytes = [0; 8];
        tokio::select! {
            _ = connections.next() => panic!("there is no place"),
            read = fourth.read(&mut bytes) => assert_eq!(read.expect("closed, not reset"), 0),
        }
    }
}
