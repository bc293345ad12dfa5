//! What the programs count.

/// What became of packets, one counter a reason.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowReason {
    /// Rewritten and sent on.
    Forwarded,
    /// Of these, with options other than the usual timestamps: the slow path.
    UnusualOptions,
    /// Passed to the stack: a fragment.
    Fragment,
    /// Passed to the stack: IPv4 options or an IPv6 extension header.
    ExtensionHeader,
    /// Passed to the stack: a SYN on a closed flow, which is deleted.
    SynOnClosed,
    /// Sent on: a SYN on a live flow, for the receiver to challenge (RFC 5961 §4).
    SynOnLive,
    /// Dropped: a SYN-ACK, of a handshake that is long over.
    SynAck,
    /// Dropped: arrived on another device than the flow's.
    WrongDevice,
    /// Dropped: lengths in the headers that contradict each other.
    Malformed,
    /// Dropped: hop limit used up.
    HopLimit,
    /// Dropped: longer than the egress device takes; the sender is told (RFC 1191, 8201).
    TooBig,
    /// Dropped: the kernel refused to change the packet or the device is gone.
    Refused,
    /// Sent on, but not believed: outside the receiver's window.
    OutOfWindow,
    /// Sent on, but not believed: a RST outside what is in flight.
    ResetOutOfWindow,
    /// Translated: a router's word that a packet was too big.
    TooBigTranslated,
    /// Passed to the stack: the same about a packet that is not in flight, or from another device.
    TooBigDisbelieved,
    /// Dropped on egress: a RST or FIN that the local stack made for a flow.
    Guarded,
    /// Changed on egress: a SYN that offers what its client offered.
    SynRewritten,
    /// Passed to the stack: acknowledges what a socket still has to bring over.
    ForSocket,
    /// Events that found the ring buffer full.
    EventLost,
}

impl FlowReason {
    /// How many there may be: the counters in the kernel, so that a new reason needs no other layout.
    pub const ROOM: u32 = 64;

    /// How many there are.
    pub const COUNT: u32 = Self::EventLost as u32 + 1;

    /// All, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Forwarded,
        Self::UnusualOptions,
        Self::Fragment,
        Self::ExtensionHeader,
        Self::SynOnClosed,
        Self::SynOnLive,
        Self::SynAck,
        Self::WrongDevice,
        Self::Malformed,
        Self::HopLimit,
        Self::TooBig,
        Self::Refused,
        Self::OutOfWindow,
        Self::ResetOutOfWindow,
        Self::TooBigTranslated,
        Self::TooBigDisbelieved,
        Self::Guarded,
        Self::SynRewritten,
        Self::ForSocket,
        Self::EventLost,
    ];
}
