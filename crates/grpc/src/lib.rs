//! gRPC: `lingqu.v1`, the KServe v2 protocol, `openengine.v1`, `grpc.health.v1` and server reflection, on one port.
//!
//! Knows wire formats and nothing of models, schedulers or devices: a message becomes a question ([`convert`]) for
//! `serving`, and the events that come back become messages. What clients can do wrong comes back as
//! INVALID_ARGUMENT naming the field; what they could do too much of is bounded ([`GrpcConfig`]).
//!
//! Start with [`serve`], then `generation.rs` (one request from start to end), then `service/` (one file per protocol),
//! then [`kserve`] and [`openengine`] (what those need beside).

#![forbid(unsafe_code)]

mod config;
mod convert;
mod generation;
mod kserve;
mod openengine;
mod server;
mod service;
mod status;
mod transport;

pub use config::{ChangesFrom, GrpcConfig};
pub use lingqu_serving::Phase;
pub use server::{ServeError, serve};
