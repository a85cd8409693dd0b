//! HTTP: the endpoints that OpenAI's clients call, health and metrics, on one port.
//!
//! Knows wire formats and nothing of models, schedulers or devices: a JSON body becomes a question ([`request`]) for
//! `serving`, and the events that come back become JSON ([`reply`]), whole or as server-sent events. What clients can
//! do wrong is answered with OpenAI's error object naming the field; what they could do too much of is bounded
//! ([`HttpConfig`]).
//!
//! Start with [`serve`], then `endpoint/generate.rs` (one request from start to end).

#![forbid(unsafe_code)]

mod app;
mod body;
mod config;
mod connection;
mod endpoint;
mod error;
mod fields;
mod probe;
mod reply;
mod request;
mod server;
mod sse;

pub use config::HttpConfig;
pub use lingqu_serving::Phase;
pub use probe::serve_worker;
pub use server::serve;
