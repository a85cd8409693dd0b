//! What the exchange costs.

use std::ops::AddAssign;

/// Counts since the start, over all layers; a row that passes three layers of experts counts three times.
///
/// `*_min` is what no exchange of this kind can go below with the copies that were asked: each worker that has one of
/// a row's experts must get the row once, and must give at least one row back (the sum over its experts). The sum over
/// all of a row's experts is taken here, in the order of one process, so every pair comes back: that is the price of
/// the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub rows: u64,
    /// Rows times experts that each of them meets.
    pub pairs: u64,
    /// Both ways; asked again after a failure counts again.
    pub messages: u64,
    pub messages_min: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub bytes_min: u64,
    /// Workers that were fenced.
    pub fenced: u64,
    /// Experts that were loaded by others than the placement says.
    pub adopted: u64,
    /// Experts that workers loaded because the placement has changed.
    pub moved: u64,
    /// Experts that workers gave up, because others have them.
    pub dropped: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.rows += more.rows;
        self.pairs += more.pairs;
        self.messages += more.messages;
        self.messages_min += more.messages_min;
        self.bytes_sent += more.bytes_sent;
        self.bytes_received += more.bytes_received;
        self.bytes_min += more.bytes_min;
        self.fenced += more.fenced;
        self.adopted += more.adopted;
        self.moved += more.moved;
        self.dropped += more.dropped;
    }
}
