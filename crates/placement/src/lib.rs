//! Placement: which worker holds which routed expert, and how to get from one placement to the next.
//!
//! Pure: no I/O, no clock, no random numbers; the same input gives the same placement on every machine. It must not
//! know models, networks or requests: experts are numbers of bytes and of rows, workers are memory and speed.
//!
//! The idea is that of DeepSeek's EPLB (V3 report, section 3.4): experts that get more rows than others have replicas
//! on several workers, and copies are packed so that in every layer the busiest worker has little more than the mean,
//! because a layer takes as long as its busiest worker.
//!
//! Start with [`PlacementInput`] and [`place`]; [`Placement`] is what everybody else reads. [`rebalance`] follows a
//! load that changes, with few moves; [`moves`] orders the loads and drops between two placements so that service goes
//! on; [`without`] says what to load where when workers are lost.

#![forbid(unsafe_code)]

mod budget;
mod input;
mod loss;
mod moves;
mod pack;
mod placement;
mod rebalance;
mod shares;

pub use input::{InputError, PlacementInput, Worker, WorkerId};
pub use loss::{Loss, without};
pub use moves::{Move, moves};
pub use pack::place;
pub use placement::{LayerPlacement, Placement, PlacementFault, SHARE_WHOLE, Spot};
pub use rebalance::{Rebalance, RebalanceGoal, rebalance};

/// Why there is no placement, or no way to it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlacementError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("the given placement is not one of this model on these workers: {0}")]
    Given(#[from] PlacementFault),
    #[error(
        "{needed_bytes} bytes of experts, {spare_bytes} of them extra copies, do not fit into {memory_bytes} bytes of \
         {workers} workers: {missing_bytes} bytes more are needed"
    )]
    TooLittleMemory {
        needed_bytes: u64,
        /// Of those, for the copies that redundancy asks for.
        spare_bytes: u64,
        memory_bytes: u64,
        workers: usize,
        /// Counted in whole experts: memory is in as many pieces as there are workers.
        missing_bytes: u64,
    },
    #[error("no order of loads and drops keeps every expert alive within the memory: {stuck} of them are left")]
    NoSafeOrder { stuck: usize },
}
