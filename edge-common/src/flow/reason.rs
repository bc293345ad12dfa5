//! Counters of packets.

/// The fate of a packet. There is one counter per reason.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowReason {
    /// Rewritten and forwarded.
    Forwarded,
    /// One of these, with options other than the usual timestamps: the slow path.
    UnusualOptions,
    /// Passed to the stack: a fragment.
    Fragment,
    /// Passed to the stack: IPv4 options or an IPv6 extension header.
    ExtensionHeader,
    /// Passed to the stack: a SYN on an ended flow, which is deleted.
    SynOnClosed,
    /// Forwarded: a SYN on a live flow, for the receiver to challenge (RFC 5961 §4).
    SynOnLive,
    /// Dropped: a SYN-ACK; the handshake is long over.
    SynAck,
    /// Dropped: arrived on a device that is not the flow's.
    WrongDevice,
    /// Dropped: lengths in the headers that contradict each other.
    Malformed,
    /// Dropped: hop limit used up.
    HopLimit,
    /// Dropped: longer than the MTU of the egress device; the sender gets a message (RFC 1191, 8201).
    TooBig,
    /// Dropped: the kernel refused to change the packet or the device is gone.
    Refused,
    /// Forwarded, but not believed: outside the receiver's window.
    OutOfWindow,
    /// Forwarded, but not believed: a RST at a number that its receiver does not expect.
    ResetOutOfWindow,
    /// Translated: a router's message that a packet was too big.
    TooBigTranslated,
    /// Passed to the stack: such a message about a packet that is not in flight, or on another device.
    TooBigDisbelieved,
    /// Dropped on egress: a RST or FIN that the local stack sent for a flow.
    Guarded,
    /// Changed on egress: a SYN, which now offers what the client offered.
    SynRewritten,
    /// Passed to the stack: an acknowledgement of data that a socket must still deliver.
    ForSocket,
    /// Events that found the ring buffer full.
    EventLost,
}

impl FlowReason {
    /// Counters in the kernel: more than there are reasons, so that a new reason does not change the layout.
    pub const ROOM: u32 = 64;

    /// The number of reasons.
    pub const COUNT: u32 = Self::EventLost as u32 + 1;

    /// All reasons, in the order of their numbers.
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
