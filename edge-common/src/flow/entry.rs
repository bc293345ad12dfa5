//! An entry: how packets of one direction are rewritten, and what was seen of them.

use super::{FlowKey, TCP, Tuple, UDP};

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
    pub to: Tuple,
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
    /// Both window scales (RFC 7323 §2), at most 14 each: see [`Self::with_scales`].
    pub scales: u8,
    /// [`UP`] or [`DOWN`].
    pub direction: u8,
    /// [`CHANGES_FAMILY`] and [`DATAGRAMS`], which never change.
    pub shape: u8,
    /// Nothing yet; room for a ninth flag.
    pub reserved: u8,
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
    /// The key of its [`Label`](super::Label), the same in both directions. The daemon's own, as the two below.
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

impl Flow {
    /// Where the entry of the other direction is: its packets come from where these go.
    #[must_use]
    pub const fn reverse_key(&self) -> FlowKey {
        FlowKey::of(self.to.reversed(), self.protocol())
    }

    /// [`TCP`] or [`UDP`].
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        if self.shape & DATAGRAMS == 0 { TCP } else { UDP }
    }

    /// Whether the packets leave in the other IP family than they came in.
    #[must_use]
    pub const fn changes_family(&self) -> bool {
        self.shape & CHANGES_FAMILY != 0
    }

    /// [`Self::scales`] of these two: the sender's, and the one that the edge offered the receiver, which the receiver
    /// applies to what it gets.
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

/// [`Flow::shape`]: the packets leave in the other IP family than they came in.
pub const CHANGES_FAMILY: u8 = 1;
/// The packets are UDP's, not TCP's.
pub const DATAGRAMS: u8 = 1 << 1;

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
/// The hand-over may not be over: see [`Pending`](super::Pending).
pub const WATCHED: usize = 6;
/// A SYN of the receiver's was sent on, and the sender has said nothing since. Never with [`FIN`].
pub const ASKED: usize = 7;
