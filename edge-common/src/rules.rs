//! The rules of a flow: which segments count, how far each side has got, and whether the connection has ended.
//!
//! The packet programs forward every segment, whether the rules believe it or not: the receiver's own stack judges it,
//! as it would without the edge (RFC 9293 §3.10.7.4, RFC 5961). The rules keep forged segments from counting at the
//! edge. A segment outside the receiver's window changes nothing. A RST counts only at a sequence number that the
//! receiver may expect, and only until its supposed sender or receiver sends something else. A FIN counts until data
//! arrives behind it.
//!
//! Pure: no map, no packet, no pointer. An [`Entry`] is read and written field by field, because other processors
//! change the same entry at the same time. The packet programs implement it for map entries; [`plain`] implements it
//! for memory of one thread, for tests.

mod entry;
#[cfg(any(test, feature = "plain"))]
pub mod plain;
#[cfg(test)]
mod tests;

pub use entry::*;

use crate::flow::{
    ASKED, CLOSED, FIN, FlowReason, PEER_FIN, PEER_FIN_ACKED, PEER_RESET, REPORTED, RESET, RESET_SEEN, UP,
    WATCHED,
};

/// The FIN flag in byte 13 of a TCP header (RFC 9293 §3.1).
pub const TCP_FIN: u8 = 0x01;
/// The SYN flag.
pub const TCP_SYN: u8 = 0x02;
/// The RST flag.
pub const TCP_RST: u8 = 0x04;
/// The ACK flag.
pub const TCP_ACK: u8 = 0x10;

/// A TCP segment as its sender sent it. Numbers are in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The sequence number of the first byte.
    pub seq: u32,
    /// The acknowledgement number; valid with [`TCP_ACK`].
    pub ack: u32,
    /// The advertised window in bytes, with the sender's scale applied.
    pub window: u32,
    /// Bytes of payload.
    pub data: u32,
    /// [`TCP_FIN`], [`TCP_RST`], [`TCP_ACK`].
    pub flags: u8,
}

impl Segment {
    /// Whether a flag of the TCP header is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number behind the segment. A FIN occupies one number.
    #[inline(always)]
    #[must_use]
    pub fn end(&self) -> u32 {
        self.seq.wrapping_add(self.data).wrapping_add(u32::from(self.has(TCP_FIN)))
    }
}

/// Whether sequence number `a` is after `b`, modulo 2³² (RFC 9293 §3.4).
#[inline(always)]
#[must_use]
pub const fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Updates both entries for a segment without SYN that arrived for `flow`.
#[inline(always)]
pub fn note<E: Entry>(flow: E, segment: &Segment) {
    // A RST updates no numbers: its own number is compared with those known before it.
    let believed = !segment.has(TCP_RST) && update(flow, segment);
    if flow.has_flags() || segment.has(TCP_FIN | TCP_RST) {
        note_ending(flow, segment, believed);
    }
}

/// Whether a segment of a [`WATCHED`] flow is meant for the socket that the edge still has: a bare ACK below `watch`,
/// the end of what that socket must deliver ([`Pending::watch`](crate::flow::Pending::watch)).
#[inline(always)]
#[must_use]
pub const fn is_for_socket(segment: &Segment, watch: u32) -> bool {
    let is_bare = segment.data == 0 && segment.flags & (TCP_ACK | TCP_FIN | TCP_RST) == TCP_ACK;
    is_bare && is_after(watch, segment.ack)
}

/// Remembers the newest `TSval` that the receiver of a [`WATCHED`] flow was sent. The socket's retransmissions must not
/// carry an older one (RFC 7323 §5.3).
#[inline(always)]
pub fn note_timestamp<E: Entry>(flow: E, tsval: u32) {
    if !flow.has(WATCHED) {
        return;
    }
    let newest = flow.stamp();
    if newest == 0 || is_after(tsval, newest) {
        flow.set_stamp(tsval);
    }
}

/// Updates the sender's numbers, if the segment is believable; returns whether it is.
///
/// The right edge of the window never moves back: another processor may already have carried a newer segment, and the
/// receiver may send up to the edge that it announced.
#[inline(always)]
fn update<E: Entry>(flow: E, segment: &Segment) -> bool {
    let end = segment.end();
    if !is_believable(flow, end, segment) {
        refresh(flow);
        if !is_believable(flow, end, segment) {
            flow.count(FlowReason::OutOfWindow);
            return false;
        }
    }
    let position = flow.position();
    let sent = number(flow.start(), position);
    if is_after(end, sent) {
        flow.set_position(position.wrapping_add(u64::from(end.wrapping_sub(sent))));
    } else if segment.data != 0 {
        flow.count_repeated();
    }
    if segment.has(TCP_ACK) {
        let mut acked = flow.acked();
        let mut edge = acked.wrapping_add(flow.window());
        let offered = segment.ack.wrapping_add(segment.window);
        if is_after(offered, edge) {
            edge = offered;
        }
        if is_after(segment.ack, acked) {
            acked = segment.ack;
            flow.set_acked(acked);
        }
        flow.set_window(edge.wrapping_sub(acked));
    }
    true
}

/// Whether the segment ends inside the receiver's window and acknowledges only what the receiver has sent, by this
/// entry's copy of the receiver's numbers. Keepalives and window probes stand one byte before the window
/// (RFC 9293 §3.8.4, §3.8.6.1).
#[inline(always)]
fn is_believable<E: Entry>(flow: E, end: u32, segment: &Segment) -> bool {
    let start = flow.floor().wrapping_sub(1);
    end.wrapping_sub(start) <= flow.ceiling().wrapping_sub(start)
        && !(segment.has(TCP_ACK) && is_after(segment.ack, flow.ack_ceiling()))
}

/// Copies the receiver's numbers from the other entry: needed about once per window, not once per packet.
#[inline(always)]
fn refresh<E: Entry>(flow: E) {
    let Some(other) = flow.reverse() else { return };
    let floor = other.acked().wrapping_sub(flow.seq_delta());
    if is_after(floor, flow.floor()) {
        flow.set_floor(floor);
    }
    let ceiling = floor.wrapping_add(other.window());
    if is_after(ceiling, flow.ceiling()) {
        flow.set_ceiling(ceiling);
    }
    let ack_ceiling = sent(other).wrapping_add(other.seq_delta());
    if is_after(ack_ceiling, flow.ack_ceiling()) {
        flow.set_ack_ceiling(ack_ceiling);
    }
}

/// Handles a FIN, a RST, and every segment after one. A function of its own, to keep the common path short.
#[inline(never)]
fn note_ending<E: Entry>(flow: E, segment: &Segment, believed: bool) {
    if segment.has(TCP_RST) {
        note_reset(flow, segment);
        return;
    }
    if !believed {
        return;
    }
    flow.clear(ASKED);
    if flow.has(RESET) || flow.has(PEER_RESET) {
        disprove_reset(flow);
    }
    if segment.has(TCP_FIN) {
        if !flow.has(FIN) {
            note_fin(flow, segment.end());
        }
    } else if flow.has(FIN) && is_after(segment.end(), flow.fin()) {
        // Data behind the FIN: the FIN was forged.
        flow.clear(FIN);
        if let Some(other) = flow.reverse() {
            other.clear(PEER_FIN);
            other.clear(PEER_FIN_ACKED);
        }
    }
    if flow.has(PEER_FIN)
        && !flow.has(PEER_FIN_ACKED)
        && segment.has(TCP_ACK)
        && !is_after(flow.peer_fin(), segment.ack)
    {
        flow.set(PEER_FIN_ACKED);
        let Some(other) = flow.reverse() else { return };
        if other.has(PEER_FIN_ACKED) {
            end(flow, other, CLOSED);
        }
    }
}

/// A RST counts at two of the 2³² sequence numbers: what the receiver has acknowledged, and the end of what the sender
/// has sent. On an idle connection both are the same. A RST elsewhere is forged, or its sender follows up with one that
/// counts, after the receiver's challenge ACK (RFC 5961 §3.2).
#[inline(always)]
fn note_reset<E: Entry>(flow: E, segment: &Segment) {
    let Some(other) = flow.reverse() else { return };
    let expected = other.acked().wrapping_sub(flow.seq_delta());
    if segment.seq != expected && segment.seq != sent(flow) {
        flow.count(FlowReason::ResetOutOfWindow);
        return;
    }
    reset(flow, other);
}

#[inline(always)]
fn reset<E: Entry>(flow: E, other: E) {
    flow.set(RESET);
    other.set(PEER_RESET);
    end(flow, other, RESET_SEEN);
}

/// A SYN of the client's is forwarded to a backend that may know no such connection any more. Remembers which number a
/// SYN-ACK would acknowledge, for [`note_syn_ack`].
#[inline(always)]
pub fn note_syn<E: Entry>(flow: E, seq: u32) {
    if flow.direction() == UP
        && let Some(other) = flow.reverse()
        && !other.has(FIN)
    {
        other.set_fin(seq.wrapping_add(flow.seq_delta()).wrapping_add(1));
        other.set(ASKED);
    }
}

/// The backend answered a forwarded SYN with a SYN-ACK: it has forgotten the old connection, so that one counts as
/// reset until either side sends something else. Otherwise its addresses would stay unusable until the idle limit. An
/// off-path attacker does not know which number to acknowledge. Only for backends: a client answers no SYN.
#[inline(always)]
pub fn note_syn_ack<E: Entry>(flow: E, ack: u32) {
    if flow.has(ASKED)
        && flow.fin() == ack
        && let Some(other) = flow.reverse()
    {
        reset(flow, other);
    }
}

/// A side that sends anything but RST has neither sent nor accepted a RST.
#[inline(always)]
fn disprove_reset<E: Entry>(flow: E) {
    forget_reset(flow);
    if let Some(other) = flow.reverse() {
        forget_reset(other);
    }
}

#[inline(always)]
fn forget_reset<E: Entry>(flow: E) {
    flow.clear(RESET);
    flow.clear(PEER_RESET);
    flow.clear(REPORTED);
}

#[inline(always)]
fn note_fin<E: Entry>(flow: E, end: u32) {
    flow.set_fin(end);
    flow.clear(ASKED);
    flow.set(FIN);
    if let Some(other) = flow.reverse() {
        other.set_peer_fin(end.wrapping_add(flow.seq_delta()));
        other.set(PEER_FIN);
        // The other side's FIN may have come before this entry was installed.
        if other.has(FIN) && !flow.has(PEER_FIN) {
            flow.set_peer_fin(other.fin().wrapping_add(other.seq_delta()));
            flow.set(PEER_FIN);
        }
    }
}

/// A socket of the edge forwards a FIN that it received before the hand-over. `receiver` is the entry whose sender gets
/// that FIN; `end` is the sequence number behind it, as the socket sends it.
#[inline(always)]
pub fn note_fin_of_socket<E: Entry>(receiver: E, end: u32) {
    if let Some(sender) = receiver.reverse() {
        sender.set_fin(end.wrapping_sub(sender.seq_delta()));
        sender.clear(ASKED);
        sender.set(FIN);
        receiver.set_peer_fin(end);
        receiver.set(PEER_FIN);
    }
}

/// Reports the end once, with both byte counts brought up to what the receivers have acknowledged.
#[inline(always)]
fn end<E: Entry>(flow: E, other: E, kind: u32) {
    if !flow.has(REPORTED) {
        flow.set(REPORTED);
        other.set(REPORTED);
        settle(flow, other);
        settle(other, flow);
        flow.report(other, kind);
    }
}

/// Whether a SYN may take over the flow's addresses: the flow has ended as far as the rules know. `other` is the entry
/// of the other direction, if it is there.
#[inline(always)]
pub fn has_ended<E: Entry>(flow: E, other: Option<E>) -> bool {
    let is_closed = flow.has(PEER_FIN_ACKED) && other.is_none_or(|other| other.has(PEER_FIN_ACKED));
    is_closed || flow.has(RESET) || flow.has(PEER_RESET)
}
