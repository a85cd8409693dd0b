//! Where the server is in its life.

/// It only goes forward. Every front end follows the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Healthy; requests are taken.
    Serving,
    /// Health says no, so that clients go elsewhere. The ports stay open and what runs goes on; new generations are
    /// refused.
    Draining,
    /// The ports close; calls that have not ended soon are cut off.
    Stopping,
}
