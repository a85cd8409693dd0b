//! Growing pauses between attempts.

use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Twice as long each time.
pub struct Pauses {
    next: Duration,
    max: Duration,
}

impl Pauses {
    pub fn new(max: Duration) -> Self {
        Self { next: PAUSE_MIN.min(max), max }
    }

    pub fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause
    }

    /// Something went well.
    pub fn reset(&mut self) {
        self.next = PAUSE_MIN.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut pauses = Pauses::new(Duration::from_millis(700));
        let taken: Vec<u128> = (0..5).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(taken, [100, 200, 400, 700, 700]);
        pauses.reset();
        assert_eq!(pauses.next(), PAUSE_MIN);
        assert_eq!(Pauses::new(Duration::from_millis(7)).next(), Duration::from_millis(7));
    }
}
