//! A communicator of two ranks, with deadlines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_fabric::{FabricError, Result};

use crate::library::{Handle, Library, Transfer, UniqueId, failed};
use crate::staging::{Address, Staging};

/// For so long a wait asks again at once; then it sleeps between.
const SPIN: Duration = Duration::from_micros(100);
const NAP: Duration = Duration::from_micros(50);

/// Bytes in the memory of a staging.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub at: Address,
    pub bytes: usize,
}

/// Puts a send or a receive on the stream.
type Put = fn(&Library, Handle, Transfer) -> Result<()>;

pub(crate) struct Communicator {
    library: Arc<Library>,
    /// Alive until it is aborted; none where making it failed without one, or after that.
    handle: Option<Handle>,
    /// Ours; the peer has the other.
    rank: i32,
}

// SAFETY: the library takes calls on a communicator from any thread, one at a time: all are through `&mut self`.
unsafe impl Send for Communicator {}

fn wait(deadline: Instant, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_done()? {
        let now = Instant::now();
        if now >= deadline {
            return Err(FabricError::TimedOut);
        }
        match now - began < SPIN {
            true => std::thread::yield_now(),
            false => std::thread::sleep(NAP.min(deadline - now)),
        }
    }
    Ok(())
}

impl Communicator {
    /// Waits for the peer to do the same with the same id and the other rank, 0 or 1.
    pub fn join(library: Arc<Library>, id: UniqueId, rank: i32, deadline: Instant) -> Result<Self> {
        let (handle, begun) = library.init(id, rank);
        let mut joined = Self { library, handle: (!handle.is_null()).then_some(handle), rank };
        if !begun? {
            joined.settle(deadline)?;
        }
        match joined.handle {
            Some(_) => Ok(joined),
            None => Err(failed("ncclCommInitRankConfig gave no communicator".into())),
        }
    }

    fn alive(&self) -> Result<Handle> {
        self.handle.ok_or(FabricError::Closed)
    }

    fn settle(&mut self, deadline: Instant) -> Result<()> {
        let handle = self.alive()?;
        wait(deadline, || self.library.is_settled(handle))
    }

    /// Sends what lies in the staging's memory. After an error the communicator is gone.
    pub fn send(&mut self, staging: &mut dyn Staging, piece: Piece, deadline: Instant) -> Result<()> {
        self.transfer(staging, piece, deadline, Library::send)
    }

    /// Fills the staging's memory. After an error the communicator is gone.
    pub fn receive(&mut self, staging: &mut dyn Staging, piece: Piece, deadline: Instant) -> Result<()> {
        self.transfer(staging, piece, deadline, Library::receive)
    }

    fn transfer(&mut self, staging: &mut dyn Staging, piece: Piece, deadline: Instant, put: Put) -> Result<()> {
        let outcome = self.try_transfer(staging, piece, deadline, put);
        if outcome.is_err() {
            // What lies on the stream ends with it, so that the memory is free for others.
            self.abort();
        }
        outcome
    }

    fn try_transfer(&mut self, staging: &mut dyn Staging, piece: Piece, deadline: Instant, put: Put) -> Result<()> {
        let handle = self.alive()?;
        let Piece { at: Address(at), bytes } = piece;
        put(&self.library, handle, Transfer { at, bytes, peer: 1 - self.rank, stream: staging.stream().0 })?;
        // First that it was put on the stream, then that the stream is done; an error may show in between.
        self.settle(deadline)?;
        wait(deadline, || {
            self.library.is_settled(handle)?;
            staging.is_done().map_err(failed)
        })
    }

    fn abort(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.library.abort(handle);
        }
    }
}

impl Drop for Communicator {
    /// Aborts, because destroying it would wait for a peer that may be gone.
    fn drop(&mut self) {
        self.abort();
    }
}
