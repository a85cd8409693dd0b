//! The fabric over MPI: for clusters whose launcher is `mpirun` or Slurm, and whose network MPI knows best.
//!
//! Must not know: what messages say, who serves and who works. Start with [`Job`]: the ranks that one `mpirun` started,
//! of which this process is one; [`MpiFabric`] makes links between them. The bytes on the links are those of TCP:
//! frames with checksums, proofs of the secret first.
//!
//! # One thread speaks MPI
//! All calls to MPI come from one thread (`progress.rs`), the others talk to it through queues: so it does not matter
//! how well an MPI takes calls from several threads, no wait for a peer is a wait in MPI, and a transfer that never
//! ends holds up nobody: its bytes belong to that thread. MPI has no way to sleep until something arrives, so the
//! thread asks again and again, ever more seldom where nothing comes.
//!
//! # Bounds
//! A sender has [`WINDOW_BYTES`] at most on their way on a link, until the receiver has read of them; a rank that
//! answers no calls gets `UNANSWERED_MAX` at most. So a rank that was stopped costs bounded memory, and is found as it
//! was when it goes on.
//!
//! # What MPI can not do
//! A rank that dies takes the job with it: that is what `mpirun` does, and what most MPI libraries do to themselves. A
//! rank that is stopped or stuck is like a worker that stalls: deadlines hold. Where workers should come and go, use
//! TCP.
#![cfg(feature = "mpi")]

mod fabric;
mod message;
mod progress;
mod state;
mod sys;

pub use fabric::{Job, MpiFabric};
pub use message::WINDOW_BYTES;
