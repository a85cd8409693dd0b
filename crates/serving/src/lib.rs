//! What every front end does alike: a question, already out of its wire format, is checked, encoded, submitted to the
//! engine, and comes back as replies.
//!
//! Knows tokens, templates and the engine; must not know wire formats or status codes: errors are [`RequestError`]s,
//! which each protocol spells in its own way.
//!
//! Start with [`ask`] (what may be asked), then [`reply`] (what comes back).

#![forbid(unsafe_code)]

mod arrivals;
pub mod ask;
mod connections;
mod cut;
mod error;
mod input;
pub mod metrics;
mod model;
mod phase;
mod prepare;
pub mod reply;
mod tools;

pub use arrivals::{Arrival, Arrivals, NoRoom};
pub use ask::{Ask, FieldNames};
pub use connections::{Asking, Connections, Peer, Place};
pub use error::RequestError;
pub use input::{Encoded, Input};
pub use metrics::Metrics;
pub use model::{ModelCard, Served, ServedModel};
pub use phase::Phase;
pub use reply::{Replies, Reply};
pub use tools::{Format, ToolChoice, Tools, check_call, tool_function};
