//! gRPC: `lingqu.v1`, `grpc.health.v1` and server reflection, on one port.
//!
//! Knows wire formats and nothing of models, schedulers or devices: a request is checked and encoded ([`convert`]),
//! submitted to the engine, and its text events become messages. What clients can do wrong comes back as
//! INVALID_ARGUMENT naming the field; what they could do too much of is bounded ([`GrpcConfig`]).
//!
//! Start with [`serve`], then `generation.rs` (one request from start to end), then `service/` (one file per service).

#![forbid(unsafe_code)]

mod config;
mod convert;
mod generation;
mod model;
mod server;
mod service;
mod status;
mod transport;

pub use config::GrpcConfig;
pub use model::{ModelCard, ServedModel};
pub use server::{Phase, ServeError, serve};
