//! The binary `lingqu`: arguments -> validated config -> wiring -> shutdown.

fn main() {}
