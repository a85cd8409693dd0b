//! Nouns of control: what is asked for, and what one step of the engine runs.
//!
//! No I/O, no async, no tensor data. Start with [`request`] (what a client asks) and [`batch`] (what one step runs).

#![forbid(unsafe_code)]

pub mod batch;
pub mod ids;
pub mod limits;
pub mod request;
pub mod sampling;

pub use batch::{Batch, SequenceSlice};
pub use ids::{AdapterId, BlockId, RequestId, TokenId};
pub use limits::Limits;
pub use request::{FinishReason, GenerateRequest, Priority, Service, StopConditions, TokenOutput, Usage};
pub use sampling::SamplingParams;
