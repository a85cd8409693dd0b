//! Who belongs to a cluster, as etcd has it: workers register under leases, servers watch them come and go.
//!
//! Must not know: experts, links between processes, what the settings of a cluster say (to this crate they are text).
//!
//! Start with [`Registry`]: one cluster in etcd. A worker calls [`Registry::register`] and [`Registry::keep`], a server
//! [`Registry::follow`]. Below it `client.rs` is the little of etcd's API (v3, over gRPC) that this needs, with its
//! messages in `messages.rs`; `roll.rs` is what a server makes of what it hears, without I/O.
//!
//! ```text
//! /lingqu/NAME/config         settings of the cluster, as text; put once
//! /lingqu/NAME/workers/ID     a registration, in JSON, under the worker's lease
//! ```
//!
//! The create revision of a registration is the worker's incarnation: whoever registers again, after its lease ended
//! or etcd lost its data, has another one. While etcd cannot be reached nothing changes for anybody.

#![forbid(unsafe_code)]

mod address;
mod client;
mod error;
mod messages;
mod pauses;
mod register;
mod registry;
mod roll;

pub use address::Address;
pub use client::{Client, Event, KeyValue, Lease, Put, Reading, Tls, Watch};
pub use error::{EtcdError, RegisterError};
pub use register::Registered;
pub use registry::{CONFIG_BYTES_MAX, Member, Registration, Registry, WORKERS_MAX};
