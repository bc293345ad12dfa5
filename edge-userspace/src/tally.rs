//! Counters of one route or backend: current connections, total connections, bytes.
//!
//! Connections on sockets report their bytes in increments. The kernel counts flows; their totals are entered
//! here from time to time.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of one place since the daemon started.
#[derive(Debug, Default)]
pub struct Tally {
    live: AtomicU64,
    total: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    flows: Flows,
    /// The most that was ever shown: while a flow goes from one count to the other, none may fall.
    shown_up: AtomicU64,
    shown_down: AtomicU64,
}

#[derive(Debug, Default)]
struct Flows {
    live: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

/// Connections that live as flows, and their bytes from the start of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowSum {
    /// How many.
    pub live: u64,
    /// Bytes from clients.
    pub up: u64,
    /// Bytes to clients.
    pub down: u64,
}

impl FlowSum {
    /// Adds another sum.
    pub fn add(&mut self, other: Self) {
        self.live += other.live;
        self.up += other.up;
        self.down += other.down;
    }
}

impl Tally {
    /// Connections now.
    pub fn live(&self) -> u64 {
        self.live.load(Relaxed) + self.flows.live.load(Relaxed)
    }

    /// Connections ever.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Bytes from clients.
    pub fn bytes_up(&self) -> u64 {
        shown(&self.up, &self.flows.up, &self.shown_up)
    }

    /// Bytes to clients.
    pub fn bytes_down(&self) -> u64 {
        shown(&self.down, &self.flows.down, &self.shown_down)
    }

    pub(crate) fn began(&self) {
        self.total.fetch_add(1, Relaxed);
    }

    pub(crate) fn entered(&self) {
        self.live.fetch_add(1, Relaxed);
    }

    pub(crate) fn left(&self) {
        self.live.fetch_sub(1, Relaxed);
    }

    pub(crate) fn carried(&self, up: u64, down: u64) {
        if up != 0 {
            self.up.fetch_add(up, Relaxed);
        }
        if down != 0 {
            self.down.fetch_add(down, Relaxed);
        }
    }

    /// A connection goes on as a flow; so many of its bytes were counted here.
    pub(crate) fn became_flow(&self, up: u64, down: u64) {
        self.flows.live.fetch_add(1, Relaxed);
        self.flows.up.fetch_add(up, Relaxed);
        self.flows.down.fetch_add(down, Relaxed);
        self.up.fetch_sub(up, Relaxed);
        self.down.fetch_sub(down, Relaxed);
    }

    /// Counts the flows anew.
    pub(crate) fn set_flows(&self, sum: FlowSum) {
        self.flows.live.store(sum.live, Relaxed);
        self.flows.up.store(sum.up, Relaxed);
        self.flows.down.store(sum.down, Relaxed);
    }
}

fn shown(settled: &AtomicU64, flows: &AtomicU64, most: &AtomicU64) -> u64 {
    let now = settled.load(Relaxed).wrapping_add(flows.load(Relaxed));
    most.fetch_max(now, Relaxed).max(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_becomes_a_flow_is_counted_once() {
        let tally = Tally::default();
        tally.began();
        tally.entered();
        tally.carried(100, 1000);
        tally.became_flow(100, 1000);
        tally.left();
        assert_eq!((tally.live(), tally.bytes_up(), tally.bytes_down()), (1, 100, 1000));
        tally.set_flows(FlowSum { live: 1, up: 150, down: 5000 });
        assert_eq!((tally.live(), tally.bytes_up(), tally.bytes_down()), (1, 150, 5000));
        // Its end is counted, in two steps.
        tally.set_flows(FlowSum::default());
        assert_eq!((tally.live(), tally.bytes_up(), tally.bytes_down()), (0, 150, 5000));
        tally.carried(160, 5001);
        assert_eq!((tally.total(), tally.bytes_up(), tally.bytes_down()), (1, 160, 5001));
    }
}
