//! The thread that speaks MPI.

use std::time::{Duration, Instant};

use crate::message::{CHUNK_BYTES, HEAD_BYTES};
use crate::state::{Over, Shared};
use crate::sys::{Mpi, Result, Transfer};

/// Messages on their way in; those after them wait at their senders.
const RECEIVING_MAX: usize = 64;
/// For so long after something happened the thread asks MPI again at once, letting others go first.
const SPIN: Duration = Duration::from_micros(200);
/// Then it sleeps between, so long; what comes then waits as long, and for the system to wake a thread.
const NAP: Duration = Duration::from_micros(50);
/// After this it sleeps longer.
const AWAKE: Duration = Duration::from_millis(20);
const LONG_NAP: Duration = Duration::from_micros(500);

pub(crate) struct Progress<'a> {
    mpi: Mpi,
    shared: &'a Shared,
    sending: Vec<Transfer>,
    receiving: Vec<Transfer>,
}

impl<'a> Progress<'a> {
    pub fn new(mpi: Mpi, shared: &'a Shared) -> Self {
        Self { mpi, shared, sending: Vec::new(), receiving: Vec::new() }
    }

    /// Until this process leaves or MPI fails.
    pub fn run(mut self) {
        let mut last = Instant::now();
        let outcome = loop {
            match self.turn() {
                Ok(true) => last = Instant::now(),
                Ok(false) => {}
                Err(words) => break Err(words),
            }
            let state = self.shared.lock();
            if state.leaves && state.outbox.is_empty() && self.sending.is_empty() {
                drop(state);
                break self.mpi.end();
            }
            let idle = last.elapsed();
            if !state.outbox.is_empty() {
                continue;
            }
            if idle < SPIN {
                drop(state);
                std::thread::yield_now();
            } else {
                let nap = if idle < AWAKE { NAP } else { LONG_NAP };
                drop(self.shared.wake.wait_timeout(state, nap).expect("no holder panics"));
            }
        };
        self.shared.end(outcome.err().map_or(Over::Ended, Over::Failed));
        self.shared.lock().gone = true;
        self.shared.changed.notify_all();
    }

    /// Moves all that moves; whether anything did.
    fn turn(&mut self) -> Result<bool> {
        let Self { mpi, shared, sending, receiving } = self;
        let messages = std::mem::take(&mut shared.lock().outbox);
        let mut moved = !messages.is_empty();
        for (rank, message) in messages {
            match mpi.send(message, rank) {
                Ok(transfer) => sending.push(transfer),
                Err(words) => shared.lose(rank, &words),
            }
        }
        sending.retain_mut(|transfer| match mpi.is_over(transfer) {
            Ok(is_over) => !is_over,
            Err(words) => {
                shared.lose(transfer.rank, &words);
                false
            }
        });
        while receiving.len() < RECEIVING_MAX
            && let Some(transfer) = mpi.receive(HEAD_BYTES + CHUNK_BYTES)?
        {
            receiving.push(transfer);
        }
        // In the order of each rank: one that is not over holds up those behind it.
        let mut held_up = Vec::new();
        for mut transfer in std::mem::take(receiving) {
            let rank = transfer.rank;
            if !held_up.contains(&rank) {
                match mpi.is_over(&mut transfer) {
                    Ok(true) => {
                        shared.deliver(rank, transfer.into_bytes());
                        moved = true;
                        continue;
                    }
                    Ok(false) => held_up.push(rank),
                    Err(words) => {
                        shared.lose(rank, &words);
                        continue;
                    }
                }
            }
            receiving.push(transfer);
        }
        Ok(moved)
    }
}
