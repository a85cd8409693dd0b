//! Plans of a cluster: where every expert goes, what each node holds and sends, and how fast it will be.
//!
//! A plan is made from a model's configuration (a `config.json` is enough) and figures of devices, with no weights and
//! no devices at hand. It must not know requests, schedules or sockets; the speed is a roofline over what
//! [`lingqu_placement`] places, nothing is run.
//!
//! Start with [`Plan::make`]. `inventory.rs` counts weights, `weights.rs` says in which formats they come, `nodes.rs`
//! reads the devices, `memory.rs` and `traffic.rs` count bytes, `speed.rs` is the prediction; `docs/plan.md` says how
//! far it was from what was measured.

#![forbid(unsafe_code)]

mod error;
mod inventory;
mod memory;
mod nodes;
mod plan;
mod report;
mod speed;
mod traffic;
mod weights;
mod workload;

pub use error::PlanError;
pub use inventory::{Inventory, Layer, Part, Piece};
pub use memory::NodeMemory;
pub use nodes::{Device, Duty, Fleet};
pub use plan::Plan;
pub use report::{json, text};
pub use speed::{Prediction, Spent};
pub use traffic::Traffic;
pub use weights::Weights;
pub use workload::{Wire, Workload};
