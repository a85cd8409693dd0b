//! OpenEngine: what its requests ask ([`ask`]), what comes back ([`generation`]), and which of them another call may
//! abort ([`registry`]).

pub mod ask;
pub mod event;
pub mod generation;
pub mod registry;
