//! Decides when freed memory is returned to the system: after a flood of connections or of first bytes. Pure.

use std::time::{Duration, Instant};

/// The estimated size of a connection in bytes: its task while it opens.
const CONNECTION: usize = 4 << 10;
/// Less than this is not worth the walk through the heap.
const WORTH_IT: usize = 4 << 20;
/// Between two such walks: other threads may wait for them.
const PAUSE: Duration = Duration::from_secs(10);

/// The highest use since memory was given back.
#[derive(Debug, Default)]
pub(super) struct Ebb {
    high: usize,
    last: Option<Instant>,
}

impl Ebb {
    /// Takes note of what is in use now; `true` when it is time to give back what no longer is.
    pub(super) fn is_low(&mut self, connections: usize, first_bytes: usize, now: Instant) -> bool {
        let in_use = connections.saturating_mul(CONNECTION).saturating_add(first_bytes);
        self.high = self.high.max(in_use);
        let is_rested = self.last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        if self.high - in_use < WORTH_IT || in_use > self.high / 2 || !is_rested {
            return false;
        }
        (self.high, self.last) = (in_use, Some(now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_after_each_flood_and_not_too_often() {
        let (mut ebb, start) = (Ebb::default(), Instant::now());
        let mut at = |seconds, connections, bytes| {
            ebb.is_low(connections, bytes, start + Duration::from_secs(seconds))
        };
        assert!(!at(0, 100, 0) && !at(1, 0, 0), "little");
        assert!(!at(2, 10_000, 0) && !at(3, 6000, 0), "most of it is still there");
        assert!(at(4, 10, 0) && !at(5, 10, 0));
        assert!(!at(6, 0, 16 << 20) && !at(7, 0, 0), "too soon");
        assert!(at(14, 0, 0) && !at(30, 0, 0));
    }
}
