//! What the programs report.

use super::FlowKey;

/// What the kernel tells the daemon, through a ring buffer.
///
/// An event may come twice or, when the buffer is full, not at all: the map is the truth, this a hint when to
/// look at it. Only [`REPLACED`] speaks of entries that are gone; therefore every event brings along what the
/// last account needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// [`Flow::id`](super::Flow::id).
    pub id: u64,
    /// [`Flow::bytes()`](super::Flow::bytes) of the entry that the event is about.
    pub bytes: u64,
    /// Those of the other direction.
    pub peer_bytes: u64,
    /// [`Flow::accepted`](super::Flow::accepted).
    pub accepted: u64,
    /// When the direction last carried a packet before the one that caused it, as
    /// [`Flow::last_seen`](super::Flow::last_seen).
    pub last_seen: u64,
    /// The key of the entry.
    pub key: FlowKey,
    /// The addresses and ports that the entry's packets leave with, [`Flow::to`](super::Flow::to), and their protocol.
    pub to: FlowKey,
    /// [`CLOSED`], [`RESET_SEEN`] or [`REPLACED`].
    pub kind: u32,
    /// [`UP`](super::UP) or [`DOWN`](super::DOWN): whose packet caused it.
    pub direction: u32,
    /// [`Flow::label`](super::Flow::label).
    pub label: u32,
    /// Which side had reset the connection, if any: bit 0 this direction's sender, bit 1 the other's.
    pub resets: u32,
    /// [`Flow::connect_time`](super::Flow::connect_time).
    pub connect_time: u32,
    /// Nothing yet.
    pub reserved: u32,
}

/// [`FlowEvent::kind`]: both FINs are acknowledged.
pub const CLOSED: u32 = 1;
/// The sender reset the connection.
pub const RESET_SEEN: u32 = 2;
/// A SYN began a new connection on a closed flow's addresses; its entries are deleted.
pub const REPLACED: u32 = 3;
