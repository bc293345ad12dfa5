//! Events that the programs report to the daemon.

use super::FlowKey;

/// The end of a flow, reported through a ring buffer.
///
/// An event may come twice, or not at all if the buffer is full: the map is authoritative, and an event only says when
/// to read it. After [`REPLACED`] the entries are gone, so every event contains what the access log needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// [`Flow::id`](super::Flow::id).
    pub id: u64,
    /// [`Flow::bytes()`](super::Flow::bytes) of the entry that the event is about.
    pub bytes: u64,
    /// The same of the other direction.
    pub peer_bytes: u64,
    /// [`Flow::accepted`](super::Flow::accepted).
    pub accepted: u64,
    /// [`Flow::last_seen`](super::Flow::last_seen), from before the packet that caused the event.
    pub last_seen: u64,
    /// The key of the entry.
    pub key: FlowKey,
    /// The addresses and ports that the entry's packets leave with, [`Flow::to`](super::Flow::to), and their protocol.
    pub to: FlowKey,
    /// [`CLOSED`], [`RESET_SEEN`] or [`REPLACED`].
    pub kind: u32,
    /// [`UP`](super::UP) or [`DOWN`](super::DOWN): the direction of the packet that caused the event.
    pub direction: u32,
    /// [`Flow::label`](super::Flow::label).
    pub label: u32,
    /// The sides that have reset the connection: bit 0 for this direction's sender, bit 1 for its receiver.
    pub resets: u32,
    /// [`Flow::connect_time`](super::Flow::connect_time).
    pub connect_time: u32,
    /// Unused.
    pub reserved: u32,
}

/// [`FlowEvent::kind`]: both FINs are acknowledged.
pub const CLOSED: u32 = 1;
/// The sender reset the connection.
pub const RESET_SEEN: u32 = 2;
/// A SYN opened a new connection with the addresses of an ended flow, whose entries are deleted.
pub const REPLACED: u32 = 3;
