//! What lies under the services: connections and calls, within bounds.

pub mod admission;
pub mod connections;
pub mod framing;
pub mod response;
