//! Nouns of data: weight formats, shapes, bytes that may be memory-mapped, and the scalar decode of each format.
//!
//! Knows no file format, no device and no model. Start with [`Format`] and [`HostTensor`].

#![forbid(unsafe_code)]

mod bytes;
mod format;
mod host;
pub mod quant;
mod values;

pub use bytes::{Bytes, Owner};
pub use format::Format;
pub use host::{BlockScales, HostTensor, TensorError};
