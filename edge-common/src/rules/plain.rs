//! A flow in the memory of one thread, so that tests run the rules without the kernel.

use core::cell::Cell;

use super::{Entry, bytes};
use crate::flow::{DOWN, Flow, FlowReason, UP};

/// Both entries of a flow, and what the rules counted and reported about it.
#[derive(Debug)]
pub struct PlainFlow {
    /// By [`UP`] and [`DOWN`]; `None` if the entry is not installed.
    entries: [Cell<Option<Flow>>; 2],
    counts: [Cell<u64>; FlowReason::COUNT as usize],
    reports: Cell<u32>,
    last: Cell<Option<Ending>>,
}

/// A report that a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// As [`FlowEvent::kind`](crate::flow::FlowEvent::kind).
    pub kind: u32,
    /// The direction whose segment ended the flow.
    pub direction: u8,
    /// Bytes that the client and the backend sent.
    pub bytes: [u64; 2],
}

impl PlainFlow {
    /// Of two entries; `None` where one is not installed.
    pub fn new(up: Option<Flow>, down: Option<Flow>) -> Self {
        let up = up.map(|flow| Flow { direction: UP, ..flow });
        let down = down.map(|flow| Flow { direction: DOWN, ..flow });
        Self {
            entries: [Cell::new(up), Cell::new(down)],
            counts: [const { Cell::new(0) }; FlowReason::COUNT as usize],
            reports: Cell::new(0),
            last: Cell::new(None),
        }
    }

    /// The entry of a direction ([`UP`] or [`DOWN`]), if it is installed.
    pub fn entry(&self, direction: u8) -> Option<PlainEntry<'_>> {
        let entry = PlainEntry { flow: self, direction };
        entry.cell().get().map(|_| entry)
    }

    /// How many segments were counted for this reason.
    pub fn counted(&self, reason: FlowReason) -> u64 {
        self.counts[reason as usize].get()
    }

    /// How many endings were reported, and the last one.
    pub fn reported(&self) -> (u32, Option<Ending>) {
        (self.reports.get(), self.last.get())
    }
}

/// An installed entry of a [`PlainFlow`].
#[derive(Clone, Copy, Debug)]
pub struct PlainEntry<'a> {
    flow: &'a PlainFlow,
    direction: u8,
}

impl PlainEntry<'_> {
    fn cell(&self) -> &Cell<Option<Flow>> {
        &self.flow.entries[usize::from(self.direction)]
    }

    /// A copy of the entry.
    pub fn get(self) -> Flow {
        self.cell().get().unwrap_or_default()
    }

    /// Overwrites the entry, as if another processor had done so.
    pub fn put(self, flow: Flow) {
        self.cell().set(Some(flow));
    }

    fn change(self, change: impl FnOnce(&mut Flow)) {
        let mut flow = self.get();
        change(&mut flow);
        self.put(flow);
    }
}

macro_rules! fields {
    ($($field:ident, $set:ident: $type:ty;)*) => { $(
        fn $field(self) -> $type {
            self.get().$field
        }

        fn $set(self, value: $type) {
            self.change(|flow| flow.$field = value);
        }
    )* };
}

impl Entry for PlainEntry<'_> {
    fields! {
        fin, set_fin: u32;
        peer_fin, set_peer_fin: u32;
        acked, set_acked: u32;
        window, set_window: u32;
        floor, set_floor: u32;
        ceiling, set_ceiling: u32;
        ack_ceiling, set_ack_ceiling: u32;
        position, set_position: u64;
        stamp, set_stamp: u32;
    }

    fn seq_delta(self) -> u32 {
        self.get().seq_delta
    }

    fn start(self) -> u32 {
        self.get().start
    }

    fn direction(self) -> u8 {
        self.direction
    }

    fn count_repeated(self) {
        self.change(|flow| flow.repeated = flow.repeated.wrapping_add(1));
    }

    fn has(self, flag: usize) -> bool {
        self.get().has(flag)
    }

    fn has_flags(self) -> bool {
        self.get().flags != [0; 8]
    }

    fn set(self, flag: usize) {
        self.change(|flow| flow.flags[flag] = 1);
    }

    fn clear(self, flag: usize) {
        self.change(|flow| flow.flags[flag] = 0);
    }

    fn reverse(self) -> Option<Self> {
        self.flow.entry(self.direction ^ 1)
    }

    fn count(self, reason: FlowReason) {
        let count = &self.flow.counts[reason as usize];
        count.set(count.get() + 1);
    }

    fn report(self, other: Self, kind: u32) {
        let mut sums = [0; 2];
        sums[usize::from(self.direction)] = bytes(self);
        sums[usize::from(other.direction)] = bytes(other);
        self.flow.reports.set(self.flow.reports.get() + 1);
        self.flow.last.set(Some(Ending { kind, direction: self.direction, bytes: sums }));
    }
}
