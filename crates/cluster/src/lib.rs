//! Routed experts spread over processes: workers that hold them, and the exchange through which a model asks them.
//!
//! Must not know: models, files, requests, or which backend computes: a worker is given a way to load experts
//! ([`LoadExperts`]), a model sees an [`Exchange`](lingqu_backend::Exchange).
//!
//! Start with [`ClusterExchange`], the side of the model, and [`Worker`], the other one; `message.rs` is what they say
//! to each other. The serving side decides who is to hold what, by a [`Placement`] at first, then as
//! [`ClusterControl`] is told, and has workers load and drop until they do (`tasks.rs`, `keeper.rs`); workers keep no
//! state but the experts themselves, so that one that comes back, restarted or not, is told anew.
//!
//! # Same bits
//! Every pair of a row and an expert is computed as a row of its own and comes back unsummed; the sum is then
//! [`Backend::combine`](lingqu_backend::Backend::combine), which has the order and arithmetic of
//! [`Backend::experts`](lingqu_backend::Backend::experts). So it does not matter who computed which pair.

#![forbid(unsafe_code)]

mod balancer;
mod claims;
mod config;
mod control;
mod exchange;
mod experts;
mod keeper;
mod load;
mod machine;
mod members;
mod message;
mod pairs;
mod plan;
mod session;
mod shard;
#[cfg(test)]
mod simulation;
mod tasks;
mod traffic;
mod wire;
mod worker;

use lingqu_backend::{BackendError, ExpertWeights};
use lingqu_fabric::FabricError;
use thiserror::Error;

pub use config::{
    ClusterConfig, ConfigError, Deadlines, FabricName, PlacementConfig, TlsConfig, WorkerConfig, read_load,
};
pub use control::{
    ChangeState, ChangeStatus, ClusterControl, ClusterStatus, ControlError, RebalancePlan, WorkerState, WorkerStatus,
};
pub use exchange::{ClusterExchange, Model};
pub use lingqu_placement::{Move, Placement, RebalanceGoal, Spot, WorkerId};
pub use pairs::PairExchange;
pub use shard::Shard;
pub use traffic::Traffic;
pub use wire::WireFormat;
pub use worker::{Identity, Worker};

/// Puts experts of a layer on the worker's backend, in the given order; the error is for the log of the other side.
pub type LoadExperts = dyn Fn(usize, &[usize]) -> Result<ExpertWeights, String> + Send + Sync;

/// Why a cluster does not come together.
#[derive(Debug, Error)]
pub enum ClusterError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("placement: {0}")]
    Placement(#[from] lingqu_placement::PlacementError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// One that will not be better for waiting.
    #[error("{worker} at {address}: {problem}")]
    Refused { worker: WorkerId, address: String, problem: FabricError },
    #[error("no worker is there: {0}")]
    Nobody(String),
    #[error(
        "steps of {rows_max} rows need messages of {bytes} bytes, more than {bytes_max}: compute fewer rows together"
    )]
    LongSteps { rows_max: usize, bytes: usize, bytes_max: usize },
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}
