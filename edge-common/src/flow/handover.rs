//! What daemon and programs tell each other of sockets, before they connect and while their connection becomes a flow.

use super::FlowKey;

/// A hand-over under way. Only the daemon writes it; the programs look while a flow is
/// [`WATCHED`](super::WATCHED).
///
/// Until what the sockets sent is acknowledged, a bare acknowledgement of some of it is the socket's to hear: it
/// has to repeat what is lost. The other side has no use for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The key of the client → backend entry.
    pub up_key: FlowKey,
    /// By the direction that acknowledges ([`UP`](super::UP): the client): the sequence number behind the last byte
    /// that the socket to it was given, in the numbers that the acknowledgement arrives with.
    pub watch: [u32; 2],
    /// Nothing yet.
    pub reserved: [u32; 2],
}

/// What the kernel keeps beside a socket: the numbers at ESTABLISHED, how its SYN should look, and what its packets
/// look like on the wire.
///
/// The daemon writes [`Self::wishes`] before `connect`; the programs write the rest. What the wire shows is noted only
/// while the daemon compares (`FLOW_COMPARING`). Each of these fields is a word of its own: processors that note
/// different things at the same time do not undo each other's.
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
    /// The index of the device on which a packet arrived with the socket's own addresses, and with numbers that it may
    /// expect; 0 before.
    pub arrives_by: u32,
    /// The index of the device through which a packet left in the same way; 0 before.
    pub leaves_by: u32,
    /// The mark (`skb->mark`) of that packet.
    pub mark: u32,
    /// 1 once a packet of this socket left with other addresses or sequence numbers than the socket's: NAT or
    /// SYNPROXY.
    pub translated: u32,
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
