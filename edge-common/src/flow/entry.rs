//! An entry of the flow map: how packets of one direction are rewritten, and what they told about the connection.

use super::{FlowKey, TCP, Tuple, UDP};

/// One direction of a flow: how its packets are rewritten, and what they told about the connection.
///
/// The "sender" sends the packets of this direction, the "receiver" gets them. Sequence and acknowledgement numbers are
/// those in the sender's packets as they arrive. Adding [`Self::seq_delta`] and [`Self::ack_delta`] gives the numbers
/// that the receiver sees.
///
/// With its key and bookkeeping an entry takes a 256-byte allocation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The addresses and ports to leave with.
    pub to: Tuple,
    /// Added to sequence numbers.
    pub seq_delta: u32,
    /// Added to acknowledgement numbers and to both edges of every SACK block (RFC 2018, 2883).
    pub ack_delta: u32,
    /// Added to the `TSval` of the timestamps option (RFC 7323 §3).
    pub tsval_delta: u32,
    /// Added to its `TSecr`.
    pub tsecr_delta: u32,
    /// The index of the only device on which packets of this direction may arrive.
    pub ingress: u32,
    /// The index of the device through which they leave.
    pub egress: u32,
    /// Both window scales (RFC 7323 §2), at most 14 each: see [`Self::with_scales`].
    pub scales: u8,
    /// [`UP`] or [`DOWN`].
    pub direction: u8,
    /// [`CHANGES_FAMILY`] and [`DATAGRAMS`], which never change.
    pub shape: u8,
    /// Unused; room for a ninth flag.
    pub reserved: u8,
    /// 1 if the flag is set, indexed by [`FIN`] … below. Each flag is a byte of its own, so that processors which write
    /// different flags at the same time do not overwrite each other's.
    pub flags: [u8; 8],
    /// With [`FIN`]: the sequence number behind the sender's FIN. With [`ASKED`]: the number that a SYN-ACK would
    /// acknowledge.
    pub fin: u32,
    /// With [`PEER_FIN`]: the acknowledgement that covers the receiver's FIN.
    pub peer_fin: u32,
    /// The sequence number of the first byte of the stream: [`Self::position`] counts from it.
    pub start: u32,
    /// The highest acknowledgement that the sender sent.
    pub acked: u32,
    /// The window that the sender has advertised, in bytes from there.
    pub window: u32,
    /// The receiver's acknowledgement when the rules last read the other entry.
    pub floor: u32,
    /// The right edge of the receiver's window then. A sequence number past it is not believed.
    pub ceiling: u32,
    /// The end of what the receiver had sent then. An acknowledgement past it is not believed.
    pub ack_ceiling: u32,
    /// Segments whose data had all been sent before: the sender's retransmissions. A statistic: two processors that
    /// count at the same moment may count one.
    pub repeated: u32,
    /// The key of its [`Label`](super::Label), the same in both directions. Only the daemon uses this and the next two.
    pub label: u32,
    /// The number of the flow, the same in both directions and never reused.
    pub id: u64,
    /// When the client's connection was accepted, `CLOCK_MONOTONIC` nanoseconds.
    pub accepted: u64,
    /// When this direction last carried a packet, nanoseconds of the coarse `CLOCK_MONOTONIC`.
    pub last_seen: u64,
    /// Packets carried, as the device delivered them: one that GRO assembled counts once. A statistic, like
    /// [`Self::repeated`].
    pub packets: u64,
    /// How far the sender has got: bytes of the stream, each counted once however often it was sent, and its FIN. It
    /// follows from sequence numbers and is not a sum of lengths: two processors that carry segments of one direction
    /// at the same moment may overwrite each other's value, and the next segment corrects it.
    pub position: u64,
    /// How long connecting to the backend took, in microseconds. Only the daemon uses it.
    pub connect_time: u32,
    /// With [`WATCHED`]: the latest `TSval` that was sent to the receiver; 0 before the first.
    pub stamp: u32,
}

impl Flow {
    /// The key of the other direction: its packets come from where these go.
    #[must_use]
    pub const fn reverse_key(&self) -> FlowKey {
        FlowKey::of(self.to.reversed(), self.protocol())
    }

    /// [`TCP`] or [`UDP`].
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        if self.shape & DATAGRAMS == 0 { TCP } else { UDP }
    }

    /// Whether the packets leave in another IP family than they arrive in.
    #[must_use]
    pub const fn changes_family(&self) -> bool {
        self.shape & CHANGES_FAMILY != 0
    }

    /// The value of [`Self::scales`]: the sender's scale, and the scale that the edge offered the receiver, which the
    /// receiver applies to the windows that it gets.
    #[must_use]
    pub const fn with_scales(sender: u8, offered: u8) -> u8 {
        (sender & 15) | (offered << 4)
    }

    /// The sender's window scale, at most 15.
    #[must_use]
    pub const fn sender_scale(&self) -> u8 {
        self.scales & 15
    }

    /// The scale that the edge offered the receiver, at most 15.
    #[must_use]
    pub const fn offered_scale(&self) -> u8 {
        self.scales >> 4
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

    /// Raises the position to what the receiver has acknowledged, according to the entry of the `other` direction.
    /// Another processor may have overwritten the position after the last segment.
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

    /// Whether either side has reset the connection, and neither has sent anything else since.
    #[must_use]
    pub const fn is_reset(&self) -> bool {
        self.has(RESET) || self.has(PEER_RESET)
    }

    /// Whether both sides have sent their FIN. With [`PEER_FIN_ACKED`] in both entries the FINs have also arrived.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.has(FIN) && self.has(PEER_FIN)
    }
}

/// [`Flow::direction`] of client → backend.
pub const UP: u8 = 0;
/// [`Flow::direction`] of backend → client.
pub const DOWN: u8 = 1;

/// [`Flow::shape`]: the packets leave in another IP family than they arrive in.
pub const CHANGES_FAMILY: u8 = 1;
/// The packets are UDP datagrams, not TCP segments.
pub const DATAGRAMS: u8 = 1 << 1;

/// [`Flow::flags`]: the sender has sent a FIN inside the window.
pub const FIN: usize = 0;
/// The receiver has sent one.
pub const PEER_FIN: usize = 1;
/// The sender has acknowledged the receiver's FIN.
pub const PEER_FIN_ACKED: usize = 2;
/// The sender has sent a believable RST, and nothing since.
pub const RESET: usize = 3;
/// The receiver has sent a believable RST, and the sender nothing since.
pub const PEER_RESET: usize = 4;
/// The end of the flow was reported.
pub const REPORTED: usize = 5;
/// The hand-over may still be under way: see [`Pending`](super::Pending).
pub const WATCHED: usize = 6;
/// A SYN of the receiver's was forwarded, and the sender has sent nothing since. Never set together with [`FIN`].
pub const ASKED: usize = 7;
