//! Tiny models, fake clock, fake backend for tests.

#![forbid(unsafe_code)]

pub mod etcd;
pub mod gguf_writer;
pub mod proxy;
#[cfg(feature = "toy")]
pub mod reciting;
pub mod rng;
pub mod road;
pub mod safetensors_writer;
#[cfg(feature = "toy")]
pub mod toy;
