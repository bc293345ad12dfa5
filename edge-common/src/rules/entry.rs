//! An entry as the rules see it: fields that are read and written one by one.

use crate::flow::{FIN, FlowReason};

/// One direction of a flow that other processors may change at any time. It is a handle: copies denote the same entry.
///
/// Each method reads or writes one field of [`Flow`](crate::flow::Flow) once, at that moment. Two reads may differ, so
/// a rule that needs the same value twice keeps it in a variable.
pub trait Entry: Copy {
    /// [`Flow::seq_delta`](crate::flow::Flow::seq_delta).
    fn seq_delta(self) -> u32;
    /// [`Flow::start`](crate::flow::Flow::start).
    fn start(self) -> u32;
    /// [`Flow::direction`](crate::flow::Flow::direction).
    fn direction(self) -> u8;

    /// [`Flow::fin`](crate::flow::Flow::fin).
    fn fin(self) -> u32;
    /// Writes [`Flow::fin`](crate::flow::Flow::fin).
    fn set_fin(self, number: u32);
    /// [`Flow::peer_fin`](crate::flow::Flow::peer_fin).
    fn peer_fin(self) -> u32;
    /// Writes [`Flow::peer_fin`](crate::flow::Flow::peer_fin).
    fn set_peer_fin(self, number: u32);
    /// [`Flow::acked`](crate::flow::Flow::acked).
    fn acked(self) -> u32;
    /// Writes [`Flow::acked`](crate::flow::Flow::acked).
    fn set_acked(self, number: u32);
    /// [`Flow::window`](crate::flow::Flow::window), in bytes.
    fn window(self) -> u32;
    /// Writes [`Flow::window`](crate::flow::Flow::window).
    fn set_window(self, bytes: u32);
    /// [`Flow::floor`](crate::flow::Flow::floor).
    fn floor(self) -> u32;
    /// Writes [`Flow::floor`](crate::flow::Flow::floor).
    fn set_floor(self, number: u32);
    /// [`Flow::ceiling`](crate::flow::Flow::ceiling).
    fn ceiling(self) -> u32;
    /// Writes [`Flow::ceiling`](crate::flow::Flow::ceiling).
    fn set_ceiling(self, number: u32);
    /// [`Flow::ack_ceiling`](crate::flow::Flow::ack_ceiling).
    fn ack_ceiling(self) -> u32;
    /// Writes [`Flow::ack_ceiling`](crate::flow::Flow::ack_ceiling).
    fn set_ack_ceiling(self, number: u32);
    /// [`Flow::position`](crate::flow::Flow::position), in bytes.
    fn position(self) -> u64;
    /// Writes [`Flow::position`](crate::flow::Flow::position).
    fn set_position(self, bytes: u64);
    /// [`Flow::stamp`](crate::flow::Flow::stamp).
    fn stamp(self) -> u32;
    /// Writes [`Flow::stamp`](crate::flow::Flow::stamp).
    fn set_stamp(self, tsval: u32);
    /// Adds one to [`Flow::repeated`](crate::flow::Flow::repeated).
    fn count_repeated(self);

    /// Whether a flag of [`Flow::flags`](crate::flow::Flow::flags) is set.
    fn has(self, flag: usize) -> bool;
    /// Whether any flag is set.
    fn has_flags(self) -> bool;
    /// Sets a flag.
    fn set(self, flag: usize);
    /// Clears a flag.
    fn clear(self, flag: usize);

    /// The entry of the other direction; `None` if it is not installed.
    fn reverse(self) -> Option<Self>;
    /// Counts a segment.
    fn count(self, reason: FlowReason);
    /// Reports the end of the flow. `kind` is that of a [`FlowEvent`](crate::flow::FlowEvent).
    fn report(self, other: Self, kind: u32);
}

/// The sequence number at a position of the stream.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "sequence numbers count modulo 2³²")]
pub(super) const fn number(start: u32, position: u64) -> u32 {
    start.wrapping_add(position as u32)
}

/// [`Flow::sent`](crate::flow::Flow::sent) of an entry that others may change.
#[inline(always)]
pub fn sent<E: Entry>(flow: E) -> u32 {
    number(flow.start(), flow.position())
}

/// [`Flow::bytes`](crate::flow::Flow::bytes) of an entry that others may change.
#[inline(always)]
pub fn bytes<E: Entry>(flow: E) -> u64 {
    let position = flow.position();
    let is_behind_fin = flow.has(FIN) && flow.fin() == number(flow.start(), position);
    position.wrapping_sub(u64::from(is_behind_fin))
}

/// [`Flow::settle`](crate::flow::Flow::settle) of an entry that others may change.
#[inline(always)]
pub(super) fn settle<E: Entry>(flow: E, other: E) {
    let position = flow.position();
    let acknowledged = other.acked().wrapping_sub(flow.seq_delta());
    let missing = acknowledged.wrapping_sub(number(flow.start(), position));
    if missing.cast_signed() > 0 {
        flow.set_position(position.wrapping_add(u64::from(missing)));
    }
}
