//! The values that daemon and programs exchange about sockets, before they connect and during the hand-over.

use super::FlowKey;

/// A hand-over under way. Only the daemon writes it; the programs read it while a flow is [`WATCHED`](super::WATCHED).
///
/// Until the data of a socket is acknowledged, bare acknowledgements of part of it are passed to that socket, which
/// must retransmit lost segments. The other side needs none of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The key of the client → backend entry.
    pub up_key: FlowKey,
    /// By the direction of the acknowledgements ([`UP`](super::UP): the client's): the number behind the last byte that
    /// was written to the socket of that side, as the acknowledgements count.
    pub watch: [u32; 2],
    /// Unused.
    pub reserved: [u32; 2],
}

/// The record that the kernel stores with a socket: its initial numbers, changes to its SYN, and how its packets look
/// on the wire.
///
/// The daemon writes [`Self::wishes`]; the programs write the rest. They record packets on the wire only while the
/// daemon compares (`FLOW_COMPARING`). Each field is a word of its own, so that processors which write different fields
/// at the same time do not overwrite each other's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// The next sequence number to send, when the connection was established.
    pub snd_nxt: u32,
    /// The next sequence number expected, at that time.
    pub rcv_nxt: u32,
    /// The peer's timestamp, with [`HAS_TIMESTAMPS`].
    pub ts_recent: u32,
    /// [`ESTABLISHED`], [`HAS_TIMESTAMPS`], [`HAS_ECN`].
    pub flags: u32,
    /// [`NO_TIMESTAMPS`] …: changes to the socket's SYN; [`MAY_FINISH`] and [`HANDING_OVER`].
    pub wishes: u32,
    /// The index of the device on which a packet arrived with the socket's addresses and with numbers that it may
    /// expect; 0 before the first such packet.
    pub arrives_by: u32,
    /// The index of the device through which such a packet left; 0 before the first.
    pub leaves_by: u32,
    /// The mark (`skb->mark`) of that packet.
    pub mark: u32,
    /// 1 once a packet of this socket left with other addresses or sequence numbers than the socket's, because of NAT
    /// or SYNPROXY.
    pub translated: u32,
}

/// [`Handshake::flags`]: the initial numbers are recorded.
pub const ESTABLISHED: u32 = 1;
/// Both sides send timestamps.
pub const HAS_TIMESTAMPS: u32 = 1 << 1;
/// Explicit congestion notification was negotiated (RFC 3168 §6.1.1); after [`WITH_ECN`], according to the peer's
/// answer.
pub const HAS_ECN: u32 = 1 << 2;

/// [`Handshake::wishes`]: do not offer timestamps.
pub const NO_TIMESTAMPS: u32 = 1;
/// Do not offer SACK.
pub const NO_SACK: u32 = 1 << 1;
/// Do not offer window scaling.
pub const NO_WINDOW_SCALE: u32 = 1 << 2;
/// Offer ECN, whatever the sysctl `tcp_ecn` says.
pub const WITH_ECN: u32 = 1 << 3;
/// Let this socket send its FIN although a flow has its addresses: it forwards a FIN that arrived before the flow was
/// installed.
pub const MAY_FINISH: u32 = 1 << 4;
/// The socket's connection is being handed over: its retransmissions get the latest acknowledgement and timestamp that
/// the flow has carried. The receiver would drop a segment whose acknowledgement is far behind or whose timestamp is
/// older (RFC 5961 §5.2, RFC 7323 §5.3).
pub const HANDING_OVER: u32 = 1 << 5;
