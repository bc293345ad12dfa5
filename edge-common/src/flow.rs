//! The flow tier: connections whose packets the kernel rewrites into each other without a socket.
//!
//! A flow has two entries in one hash map, one a direction. An entry is found by the addresses and ports that
//! its packets *arrive* with, and says what they *leave* with. The other direction's key follows from it
//! ([`Flow::reverse_key`]), so neither needs a reference to the other.
//!
//! Everything that stands as it does on the wire says "network order"; all other numbers are in host order.

use core::net::{IpAddr, SocketAddr};

/// Entries of the flow map: two a flow, so half as many flows.
///
/// A plain hash without preallocation: what is not used costs 16 bytes of bucket, and a full map refuses the
/// next flow instead of evicting one. The loader may make it smaller.
pub const FLOW_ENTRIES: u32 = 1 << 19;

/// Bytes of the ring buffer of [`FlowEvent`]s: 8,000 of them, more than a second's worth of closes.
pub const FLOW_EVENT_BYTES: u32 = 1 << 20;

/// Hand-overs that may be under way at once. One takes some round trips; past the limit the next waits on its
/// sockets.
pub const PENDING_FLOWS: u32 = 1 << 14;

/// Different [`Label`]s that there may be at once.
pub const FLOW_LABELS: u32 = 1 << 16;

/// A packet no longer than this fits every device that flows are set up over, so its length is not compared
/// with the device's. It is the least that IPv6 asks of a link (RFC 8200 §5).
pub const ALWAYS_FITS: u32 = 1280;

/// An address of either family in network order: IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
pub type Address = [u32; 4];

/// The third word of an IPv4 address in an [`Address`].
pub const MAPPED: u32 = 0xffff_u32.to_be();

/// The addresses and ports of one direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Who sends.
    pub source: Address,
    /// Who receives.
    pub destination: Address,
    /// Both ports as the first word of a TCP header has them in memory: source, then destination.
    pub ports: u32,
}

impl FlowKey {
    /// The key of packets from `source` to `destination`. An IPv4-mapped IPv6 address is the IPv4 address.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let [a, b] = source.port().to_be_bytes();
        let [c, d] = destination.port().to_be_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        Self { source: address(source.ip()), destination: address(destination.ip()), ports }
    }

    /// Who sends.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        let [a, b, ..] = self.ports.to_ne_bytes();
        SocketAddr::new(ip(&self.source), u16::from_be_bytes([a, b]))
    }

    /// Who receives.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        let [.., c, d] = self.ports.to_ne_bytes();
        SocketAddr::new(ip(&self.destination), u16::from_be_bytes([c, d]))
    }

    /// The key of the answers to these packets.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { source: self.destination, destination: self.source, ports: self.ports.rotate_left(16) }
    }

    /// Whether the addresses are IPv4. They are of one family always.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.source[0] == 0 && self.source[1] == 0 && self.source[2] == MAPPED
    }
}

fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    core::array::from_fn(|word| {
        let at = 4 * word;
        u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    })
}

fn ip(address: &Address) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(address) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(octets).to_canonical()
}

/// One direction of a flow: how its packets are rewritten, and what was seen of it.
///
/// "The sender" is who sends the packets of this direction, "the receiver" who gets them. Sequence numbers are
/// the sender's own (in its packets as they arrive), acknowledgements too; adding [`Self::seq_delta`] and
/// [`Self::ack_delta`] gives what the receiver sees.
///
/// With key and bookkeeping an entry takes a 256-byte allocation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The addresses and ports to leave with.
    pub to: FlowKey,
    /// Added to sequence numbers.
    pub seq_delta: u32,
    /// Added to acknowledgement numbers and to both edges of every SACK block (RFC 2018, 2883).
    pub ack_delta: u32,
    /// Added to the `TSval` of the timestamps option (RFC 7323 §3).
    pub tsval_delta: u32,
    /// Added to its `TSecr`.
    pub tsecr_delta: u32,
    /// The only device that packets of this direction may arrive on.
    pub ingress: u32,
    /// The device that they leave through.
    pub egress: u32,
    /// The sender's window scale (RFC 7323 §2), at most 14.
    pub window_left: u8,
    /// The scale that the edge offered the receiver, which the receiver applies to what it gets.
    pub window_right: u8,
    /// [`UP`] or [`DOWN`].
    pub direction: u8,
    /// 1 where the packets leave in the other IP family than they came in.
    pub changes_family: u8,
    /// 1 where it is so, by [`FIN`] … below. Each is a byte of its own: processors that set different ones
    /// at the same time do not undo each other's.
    pub flags: [u8; 8],
    /// With [`FIN`]: the sequence number behind the sender's FIN. With [`ASKED`]: what the answer to the SYN would
    /// acknowledge.
    pub fin: u32,
    /// With [`PEER_FIN`]: the acknowledgement that covers the receiver's FIN.
    pub peer_fin: u32,
    /// The sequence number of the first byte of the stream: [`Self::position`] counts from it.
    pub start: u32,
    /// The highest acknowledgement that the sender sent.
    pub acked: u32,
    /// From there, how far the window reaches that the sender has advertised, in bytes.
    pub window: u32,
    /// What the receiver had acknowledged when this entry last looked at the other one.
    pub floor: u32,
    /// The right edge of the receiver's window then: a sequence number past it is not believed.
    pub ceiling: u32,
    /// What the receiver had sent then: an acknowledgement past it is not believed.
    pub ack_ceiling: u32,
    /// Segments with data that had all been sent before: what the sender repeats.
    pub repeated: u32,
    /// The key of its [`Label`], the same in both directions. The daemon's own, as the two below.
    pub label: u32,
    /// The same in both directions, never given twice.
    pub id: u64,
    /// When the client's connection was accepted, `CLOCK_MONOTONIC` nanoseconds.
    pub accepted: u64,
    /// When this direction last carried a packet, the coarse `CLOCK_MONOTONIC` nanoseconds.
    pub last_seen: u64,
    /// Packets carried, as the device delivered them (one of GRO's counts once).
    pub packets: u64,
    /// How far the sender has got: bytes of the stream, each counted once however often it was sent, and its FIN.
    /// Not a sum of lengths: processors that carry segments of one direction at the same moment overwrite each other's
    /// word, and the next segment mends it.
    pub position: u64,
    /// How long connecting to the backend took, microseconds. The daemon's own.
    pub connect_time: u32,
    /// With [`WATCHED`]: the `TSval` that the receiver got last, 0 before the first.
    pub stamp: u32,
}

impl Default for Label {
    fn default() -> Self {
        Self { text: [0; LABEL_BYTES] }
    }
}

impl Flow {
    /// Where the entry of the other direction is: its packets come from where these go.
    #[must_use]
    pub const fn reverse_key(&self) -> FlowKey {
        self.to.reversed()
    }

    /// The sequence number behind the last byte (or FIN) that the sender sent.
    #[must_use]
    pub const fn sent(&self) -> u32 {
        self.number(self.position)
    }

    /// The sequence number at a position.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers count modulo 2³²")]
    const fn number(&self, position: u64) -> u32 {
        self.start.wrapping_add(position as u32)
    }

    /// Bytes of the stream that the sender has sent.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        let is_behind_fin = self.has(FIN) && self.fin == self.sent();
        self.position.wrapping_sub(is_behind_fin as u64)
    }

    /// Makes the position as far as the receiver has acknowledged, by the entry of the `other` direction: the last
    /// segment may have been overwritten by one that another processor carried at the same moment.
    #[inline]
    pub const fn settle(&mut self, other: &Self) {
        let missing = other.acked.wrapping_sub(self.seq_delta).wrapping_sub(self.sent());
        if missing.cast_signed() > 0 {
            self.position = self.position.wrapping_add(missing as u64);
        }
    }

    /// Whether `flag` is set.
    #[must_use]
    pub const fn has(&self, flag: usize) -> bool {
        self.flags[flag] != 0
    }

    /// Whether either side has reset the connection, and neither has belied it since.
    #[must_use]
    pub const fn is_reset(&self) -> bool {
        self.has(RESET) || self.has(PEER_RESET)
    }

    /// Whether both sides have sent their FIN. With [`PEER_FIN_ACKED`] in both entries they have arrived, too.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.has(FIN) && self.has(PEER_FIN)
    }
}

/// [`Flow::direction`] of client → backend.
pub const UP: u8 = 0;
/// [`Flow::direction`] of backend → client.
pub const DOWN: u8 = 1;

/// [`Flow::flags`]: the sender has sent a FIN inside the window.
pub const FIN: usize = 0;
/// The receiver has.
pub const PEER_FIN: usize = 1;
/// And the sender has acknowledged it.
pub const PEER_FIN_ACKED: usize = 2;
/// The sender has sent a believable RST and nothing since.
pub const RESET: usize = 3;
/// The receiver has, and the sender has been silent since.
pub const PEER_RESET: usize = 4;
/// The end was reported.
pub const REPORTED: usize = 5;
/// The hand-over may not be over: see [`Pending`].
pub const WATCHED: usize = 6;
/// A SYN of the receiver's was sent on, and the sender has said nothing since. Never with [`FIN`].
pub const ASKED: usize = 7;

/// A hand-over under way. Only the daemon writes it; the programs look while a flow is [`WATCHED`].
///
/// Until what the sockets sent is acknowledged, a bare acknowledgement of some of it is the socket's to hear: it
/// has to repeat what is lost. The other side has no use for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The key of the client → backend entry.
    pub up_key: FlowKey,
    /// By the direction that acknowledges ([`UP`]: the client): the sequence number behind the last byte that the
    /// socket to it was given, in the numbers that the acknowledgement arrives with.
    pub watch: [u32; 2],
}

/// What is known of a connection beside its packets, as the daemon wrote it: for lists and the access log. Flows
/// of the same route, backend and host share one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Text, padded with zeros. With key and bookkeeping it fills a 512-byte allocation.
    pub text: [u8; LABEL_BYTES],
}

/// Bytes of a [`Label`].
pub const LABEL_BYTES: usize = 440;

/// What the kernel tells the daemon, through a ring buffer.
///
/// An event may come twice or, when the buffer is full, not at all: the map is the truth, this a hint when to
/// look at it. Only [`REPLACED`] speaks of entries that are gone; therefore every event brings along what the
/// last account needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// [`Flow::id`].
    pub id: u64,
    /// [`Flow::bytes()`] of the entry that the event is about.
    pub bytes: u64,
    /// Those of the other direction.
    pub peer_bytes: u64,
    /// [`Flow::accepted`].
    pub accepted: u64,
    /// When the direction last carried a packet before the one that caused it, as [`Flow::last_seen`].
    pub last_seen: u64,
    /// The key of the entry.
    pub key: FlowKey,
    /// [`Flow::to`].
    pub to: FlowKey,
    /// [`CLOSED`], [`RESET_SEEN`] or [`REPLACED`].
    pub kind: u32,
    /// [`UP`] or [`DOWN`]: whose packet caused it.
    pub direction: u32,
    /// [`Flow::label`].
    pub label: u32,
    /// Which side had reset the connection, if any: bit 0 this direction's sender, bit 1 the other's.
    pub resets: u32,
    /// [`Flow::connect_time`].
    pub connect_time: u32,
    /// Nothing.
    pub reserved: u32,
}

/// [`FlowEvent::kind`]: both FINs are acknowledged.
pub const CLOSED: u32 = 1;
/// The sender reset the connection.
pub const RESET_SEEN: u32 = 2;
/// A SYN began a new connection on a closed flow's addresses; its entries are deleted.
pub const REPLACED: u32 = 3;

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

/// What the kernel keeps beside a socket: the numbers at ESTABLISHED, and how its SYN should look.
///
/// The daemon writes [`Self::wishes`] before `connect`; the `sock_ops` program writes the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// Next sequence number to send, as it was at ESTABLISHED.
    pub snd_nxt: u32,
    /// Next sequence number expected.
    pub rcv_nxt: u32,
    /// The peer's timestamp, with [`HAS_TIMESTAMPS`].
    pub ts_recent: u32,
    /// [`ESTABLISHED`], [`HAS_TIMESTAMPS`], [`HAS_ECN`].
    pub flags: u32,
    /// [`NO_TIMESTAMPS`] … : changes to the SYN that this socket sends, [`MAY_FINISH`] and [`HANDING_OVER`].
    pub wishes: u32,
}

/// [`Handshake::flags`]: the numbers are there.
pub const ESTABLISHED: u32 = 1;
/// Both sides send timestamps.
pub const HAS_TIMESTAMPS: u32 = 1 << 1;
/// Explicit congestion notification was agreed (RFC 3168 §6.1.1); for a SYN changed by [`WITH_ECN`], by the
/// peer's answer.
pub const HAS_ECN: u32 = 1 << 2;

/// [`Handshake::wishes`]: do not offer timestamps.
pub const NO_TIMESTAMPS: u32 = 1;
/// Do not offer SACK.
pub const NO_SACK: u32 = 1 << 1;
/// Do not offer window scaling.
pub const NO_WINDOW_SCALE: u32 = 1 << 2;
/// Offer ECN, whatever `tcp_ecn` says.
pub const WITH_ECN: u32 = 1 << 3;
/// Let this socket send its FIN although its addresses are a flow's: it passes on one that it had received before
/// the flow was there.
pub const MAY_FINISH: u32 = 1 << 4;
/// The socket's connection is becoming a flow: what it repeats acknowledges what the flow saw acknowledged and is
/// as young as what the flow has carried, since an acknowledgement far behind or an older timestamp makes its receiver
/// drop the segment (RFC 5961 §5.2, RFC 7323 §5.3).
pub const HANDING_OVER: u32 = 1 << 5;

const _: () = {
    assert!(size_of::<FlowKey>() == 36);
    assert!(size_of::<Flow>() == 160 && align_of::<Flow>() == 8);
    // Bookkeeping of a hash element (48 bytes), the key rounded up to 8, and the list node of the allocator
    // (8 bytes) share one 256-byte allocation with the value (kernel/bpf/hashtab.c, memalloc.c).
    assert!(48 + size_of::<FlowKey>().next_multiple_of(8) + size_of::<Flow>() + 8 <= 256);
    assert!(48 + 8 + size_of::<Label>() + 8 <= 512);
    assert!(size_of::<FlowEvent>() == 136);
    assert!(size_of::<Pending>() == 44);
    assert!(size_of::<Handshake>() == 20);
    // Hidden padding would be uninitialised bytes given to the kernel.
    assert!(core::mem::offset_of!(Flow, id) == 112 && core::mem::offset_of!(Flow, flags) == 64);
};

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya asks for a promise that the types are plain bytes")]
mod user {
    use super::{Flow, FlowEvent, FlowKey, Handshake, Label, Pending};

    // SAFETY: `repr(C)`, integers only, and by the assertions above no padding: every bit pattern is a value.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Handshake {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Pending {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Label {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_addresses_and_ports() {
        for (source, destination, v4) in [
            ("198.51.100.7:50000", "192.0.2.1:443", true),
            ("[2001:db8::7]:1", "[2001:db8::1:0:1]:65535", false),
        ] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let key = FlowKey::new(source, destination);
            assert_eq!((key.source(), key.destination()), (source, destination));
            assert_eq!(key.reversed(), FlowKey::new(destination, source));
            assert_eq!(key.is_ipv4(), v4);
        }
    }

    #[test]
    fn a_mapped_address_is_the_address() {
        let plain = FlowKey::new("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        let mapped =
            FlowKey::new("[::ffff:192.0.2.1]:1".parse().unwrap(), "[::ffff:192.0.2.2]:2".parse().unwrap());
        assert_eq!(plain, mapped);
    }

    #[test]
    fn the_ports_are_in_the_order_of_the_wire() {
        let key = FlowKey::new("192.0.2.1:258".parse().unwrap(), "192.0.2.2:772".parse().unwrap());
        assert_eq!(key.ports.to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(key.source[3].to_ne_bytes(), [192, 0, 2, 1]);
    }
}
