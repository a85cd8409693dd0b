//! Messages of the wire to and from the nouns of the engine.

pub mod event;
pub mod format;
pub mod generate;
pub mod input;
pub mod sampling;
pub mod service;
pub mod tools;
