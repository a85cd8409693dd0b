//! The fabric of accelerators: NCCL (NVIDIA) or RCCL (AMD, Hygon), opened at run time, by one table of `nccl*` names.
//!
//! Must not know: what messages say, which backend computes. Start with [`NcclFabric`]: it opens a link of another
//! fabric, over which both sides prove the secret, and makes a communicator of two ranks beside it, whose id crosses
//! that link. From then on
//! - short messages go over the first link whole: they are sooner there than an accelerator's stream is asked;
//! - of a long one the head goes over it (kind, length, checksum), the bytes go by `ncclSend` and `ncclRecv` between
//!   two memories of devices, which a [`Staging`] owns.
//!
//! So nothing waits on an accelerator for a message that may not come: a receiver waits for the head, with the
//! deadlines of the first link, and a peer that is gone is known by it.
//!
//! # Deadlines
//! Communicators are made non-blocking, and every wait asks again and again until the deadline. Where it passes the
//! communicator is aborted, which also ends what lies on the stream, and the link is of no more use.

mod communicator;
mod fabric;
mod library;
mod staging;

pub use fabric::{MakeStaging, NcclFabric, SHORT_BYTES_MAX};
pub use library::{Library, NCCL, RCCL};
pub use staging::{Address, Staging};
