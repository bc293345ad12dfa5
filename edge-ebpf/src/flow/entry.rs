//! Entries of the flow map, as `edge_common::rules` needs them.

use edge_common::{
    flow::{CHANGES_FAMILY, DATAGRAMS, Flow, FlowKey, FlowReason, TCP, Tuple, UDP},
    rules::{self, Entry},
};
use edge_ebpf::{read, shared::Shared, write};

use crate::{maps, state};

/// An entry of the flow map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct FlowEntry(pub(crate) Shared<Flow>);

impl FlowEntry {
    /// [`Flow::to`]. Nine loads: the common path reads the words that it needs instead.
    #[inline(always)]
    pub(crate) fn to(self) -> Tuple {
        macro_rules! address {
            ($end:ident) => {
                [
                    read!(self.0, to.$end[0]),
                    read!(self.0, to.$end[1]),
                    read!(self.0, to.$end[2]),
                    read!(self.0, to.$end[3]),
                ]
            };
        }
        Tuple { source: address!(source), destination: address!(destination), ports: read!(self.0, to.ports) }
    }

    /// [`Flow::reverse_key`].
    #[inline(always)]
    pub(crate) fn reverse_key(self) -> FlowKey {
        let protocol = if read!(self.0, shape) & DATAGRAMS == 0 { TCP } else { UDP };
        FlowKey::of(self.to().reversed(), protocol)
    }

    /// [`Flow::sender_scale`].
    #[inline(always)]
    pub(crate) fn sender_scale(self) -> u8 {
        read!(self.0, scales) & 15
    }

    /// [`Flow::offered_scale`].
    #[inline(always)]
    pub(crate) fn offered_scale(self) -> u8 {
        read!(self.0, scales) >> 4
    }

    /// [`Flow::changes_family`].
    #[inline(always)]
    pub(crate) fn changes_family(self) -> bool {
        read!(self.0, shape) & CHANGES_FAMILY != 0
    }
}

/// The key takes 40 bytes of stack, so it has a frame of its own.
#[inline(never)]
fn reverse(flow: FlowEntry) -> Option<FlowEntry> {
    maps::flow(&flow.reverse_key())
}

macro_rules! fields {
    ($($field:ident, $set:ident: $type:ty;)*) => { $(
        #[inline(always)]
        fn $field(self) -> $type {
            read!(self.0, $field)
        }

        #[inline(always)]
        fn $set(self, value: $type) {
            write!(self.0, $field = value);
        }
    )* };
}

/// Two processors may carry segments of one direction at the same moment, and one may overwrite what the other wrote.
/// Then a number that only grows is that of the older segment, until the next segment arrives or the end is reported;
/// the window may reach too far, by no more than the newer segment acknowledged; a retransmission may go uncounted.
/// Flags do not depend on their old value.
impl Entry for FlowEntry {
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

    #[inline(always)]
    fn seq_delta(self) -> u32 {
        read!(self.0, seq_delta)
    }

    #[inline(always)]
    fn start(self) -> u32 {
        read!(self.0, start)
    }

    #[inline(always)]
    fn direction(self) -> u8 {
        read!(self.0, direction)
    }

    #[inline(always)]
    fn count_repeated(self) {
        write!(self.0, repeated = read!(self.0, repeated).wrapping_add(1));
    }

    #[inline(always)]
    fn has(self, flag: usize) -> bool {
        read!(self.0, flags[flag]) != 0
    }

    #[inline(always)]
    fn has_flags(self) -> bool {
        let entry = self.0.as_ptr();
        // SAFETY: the eight flags, aligned as one number (asserted in edge-common), mapped until the program ends. Of a
        // byte that is being stored the load sees the old value or the new one, as a load of that byte would.
        unsafe { (&raw const (*entry).flags).cast::<u64>().read_volatile() != 0 }
    }

    #[inline(always)]
    fn set(self, flag: usize) {
        write!(self.0, flags[flag] = 1);
    }

    #[inline(always)]
    fn clear(self, flag: usize) {
        write!(self.0, flags[flag] = 0);
    }

    #[inline(always)]
    fn reverse(self) -> Option<Self> {
        reverse(self)
    }

    #[inline(always)]
    fn count(self, reason: FlowReason) {
        maps::count(reason);
    }

    #[inline(always)]
    fn report(self, other: Self, kind: u32) {
        state::report_end(self, &other.reverse_key(), kind, rules::bytes(other));
    }
}
