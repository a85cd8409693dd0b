//! Tiny models, fake clock, fake backend for tests.

#![forbid(unsafe_code)]

pub mod rng;
