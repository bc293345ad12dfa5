//! What a flow's packets say about the connection: how far each side is, and whether it has ended.
//!
//! Everything is sent on, whatever is thought of it here: the receiver's own stack judges, as it would without
//! the edge (RFC 9293 §3.10.7.4, RFC 5961). This only keeps a forged segment from counting: numbers outside
//! the receiver's window change nothing, a RST counts when it stands where its receiver may expect it and only
//! until its supposed victim speaks again, a FIN until data stands behind it.

use edge_common::flow::{
    ASKED, CLOSED, FIN, Flow, FlowKey, FlowReason, PEER_FIN, PEER_FIN_ACKED, PEER_RESET, REPLACED, REPORTED,
    RESET, RESET_SEEN, UP, WATCHED,
};

use crate::{
    frame::{TCP_ACK, TCP_FIN, TCP_RST},
    maps::{count, delete_flow, flow as find, pending, report},
};

/// A segment as the sender sent it; numbers in host order.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// In bytes.
    pub(crate) window: u32,
    /// Bytes of data.
    pub(crate) data: u32,
    pub(crate) flags: u8,
}

impl Segment {
    #[inline(always)]
    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number behind it.
    #[inline(always)]
    fn end(&self) -> u32 {
        self.seq.wrapping_add(self.data).wrapping_add(u32::from(self.is(TCP_FIN)))
    }
}

/// Whether `a` comes behind `b` (RFC 9293 §3.4).
#[inline(always)]
pub(crate) fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Whether any flag is set: one load for all.
#[inline(always)]
fn has_flags(flow: &Flow) -> bool {
    // SAFETY: eight bytes, aligned (asserted in edge-common).
    unsafe { *(&raw const flow.flags).cast::<u64>() != 0 }
}

#[inline(always)]
fn set(flow: &mut Flow, flag: usize) {
    flow.flags[flag] = 1;
}

#[inline(always)]
fn clear(flow: &mut Flow, flag: usize) {
    flow.flags[flag] = 0;
}

#[inline(never)]
fn reverse(flow: &Flow) -> Option<&'static mut Flow> {
    let key = flow.reverse_key();
    // SAFETY: valid until the program ends; see `maps::flow` for who else writes.
    find(&key).map(|entry| unsafe { &mut *entry })
}

/// Takes note of a segment without SYN.
#[inline(always)]
pub(crate) fn note(flow: &mut Flow, segment: &Segment) {
    // A RST moves nothing: its number is measured by what was known before it.
    let believed = !segment.is(TCP_RST) && follow(flow, segment);
    if has_flags(flow) || segment.flags & (TCP_FIN | TCP_RST) != 0 {
        turn(flow, segment, believed);
    }
}

/// Whether a segment is for the socket that the edge had, and for nobody else: a bare acknowledgement of some of what
/// that socket still has to bring over.
#[inline(always)]
pub(crate) fn is_for_socket(flow: &mut Flow, segment: &Segment) -> bool {
    if !flow.has(WATCHED) {
        return false;
    }
    let Some(pending) = pending(flow.id) else {
        // The hand-over is over.
        clear(flow, WATCHED);
        return false;
    };
    // SAFETY: valid until the program ends; the daemon replaces it as a whole.
    let pending = unsafe { &*pending };
    let direction = usize::from(flow.direction & 1);
    let is_bare = segment.data == 0 && segment.flags & (TCP_ACK | TCP_FIN | TCP_RST) == TCP_ACK;
    is_bare && is_after(pending.watch[direction], segment.ack)
}

/// Notes the timestamp that the receiver gets: what a socket still repeats to it has to be as young.
#[inline(always)]
pub(crate) fn stamp(flow: &mut Flow, tsval: u32) {
    if flow.has(WATCHED) && (flow.stamp == 0 || is_after(tsval, flow.stamp)) {
        flow.stamp = tsval;
    }
}

/// Keeps the numbers, where the segment may be believed. The end of a window does not move back: a segment with an
/// older one may have overtaken it on another processor, and what is sent by the newer one has to be believed.
#[inline(always)]
fn follow(flow: &mut Flow, segment: &Segment) -> bool {
    let end = segment.end();
    let acknowledges = segment.is(TCP_ACK);
    if !is_believable(flow, end, segment) {
        look_across(flow);
        if !is_believable(flow, end, segment) {
            count(FlowReason::OutOfWindow);
            return false;
        }
    }
    let sent = flow.sent();
    if is_after(end, sent) {
        flow.position += u64::from(end.wrapping_sub(sent));
    } else if segment.data != 0 {
        flow.repeated += 1;
    }
    if acknowledges {
        let (mut end, offered) =
            (flow.acked.wrapping_add(flow.window), segment.ack.wrapping_add(segment.window));
        if is_after(offered, end) {
            end = offered;
        }
        if is_after(segment.ack, flow.acked) {
            flow.acked = segment.ack;
        }
        flow.window = end.wrapping_sub(flow.acked);
    }
    true
}

/// Whether the segment ends in the receiver's window and acknowledges nothing that was not sent, by what is
/// known without looking at the other entry. One byte before the window is where keep-alives and window probes
/// stand (RFC 9293 §3.8.4).
#[inline(always)]
fn is_believable(flow: &Flow, end: u32, segment: &Segment) -> bool {
    let start = flow.floor.wrapping_sub(1);
    end.wrapping_sub(start) <= flow.ceiling.wrapping_sub(start)
        && !(segment.is(TCP_ACK) && is_after(segment.ack, flow.ack_ceiling))
}

/// Learns from the other entry how far the receiver is: needed about once a window, not once a packet.
#[inline(always)]
fn look_across(flow: &mut Flow) {
    let Some(other) = reverse(flow) else { return };
    let floor = other.acked.wrapping_sub(flow.seq_delta);
    if is_after(floor, flow.floor) {
        flow.floor = floor;
    }
    let ceiling = floor.wrapping_add(other.window);
    if is_after(ceiling, flow.ceiling) {
        flow.ceiling = ceiling;
    }
    let ack_ceiling = other.sent().wrapping_add(other.seq_delta);
    if is_after(ack_ceiling, flow.ack_ceiling) {
        flow.ack_ceiling = ack_ceiling;
    }
}

/// What is not everyday: a FIN, a RST, and everything after one of them. A function of its own, to
/// keep the common path short.
#[inline(never)]
fn turn(flow: &mut Flow, segment: &Segment, believed: bool) {
    if segment.is(TCP_RST) {
        reset(flow, segment);
        return;
    }
    if !believed {
        return;
    }
    clear(flow, ASKED);
    if flow.is_reset() {
        disprove_reset(flow);
    }
    if segment.is(TCP_FIN) {
        if !flow.has(FIN) {
            finish(flow, segment.end());
        }
    } else if flow.has(FIN) && is_after(segment.end(), flow.fin) {
        // Data behind the FIN: it was not the sender's.
        clear(flow, FIN);
        if let Some(other) = reverse(flow) {
            clear(other, PEER_FIN);
            clear(other, PEER_FIN_ACKED);
        }
    }
    if flow.has(PEER_FIN)
        && !flow.has(PEER_FIN_ACKED)
        && segment.is(TCP_ACK)
        && !is_after(flow.peer_fin, segment.ack)
    {
        set(flow, PEER_FIN_ACKED);
        let Some(other) = reverse(flow) else { return };
        if other.has(PEER_FIN_ACKED) {
            end(flow, other, CLOSED);
        }
    }
}

/// A RST counts when it stands at what the receiver has acknowledged or at what the sender has sent: two numbers of
/// four thousand million, and where the connection rests, one. One that stands elsewhere is either forged or will be
/// followed, after the receiver's challenge (RFC 5961 §3.2), by one that does not.
#[inline(always)]
fn reset(flow: &mut Flow, segment: &Segment) {
    let Some(other) = reverse(flow) else { return };
    let expected = other.acked.wrapping_sub(flow.seq_delta);
    if segment.seq != expected && segment.seq != flow.sent() {
        count(FlowReason::ResetOutOfWindow);
        return;
    }
    set(flow, RESET);
    set(other, PEER_RESET);
    end(flow, other, RESET_SEEN);
}

/// A client's SYN is sent on, to a backend that may know of no connection: what its answer to it would acknowledge.
#[inline(never)]
pub(crate) fn asks(flow: &Flow, seq: u32) -> i32 {
    if flow.direction == UP
        && let Some(other) = reverse(flow)
        && !other.has(FIN)
    {
        other.fin = seq.wrapping_add(flow.seq_delta).wrapping_add(1);
        set(other, ASKED);
    }
    0
}

/// The sender answers a SYN that was sent on as if it knew of no connection: then there is none any more, until either
/// side belies it. Otherwise its addresses would be of no use before the flow is idle for too long. Who has not seen
/// the SYN does not know what to acknowledge. Of backends alone: a client answers no SYN.
#[inline(never)]
pub(crate) fn is_forgotten(flow: &mut Flow, ack: u32) -> i32 {
    if flow.has(ASKED)
        && flow.fin == ack
        && let Some(other) = reverse(flow)
    {
        set(flow, RESET);
        set(other, PEER_RESET);
        end(flow, other, RESET_SEEN);
    }
    0
}

/// A side that sends anything but RST has neither sent nor believed one.
#[inline(always)]
fn disprove_reset(flow: &mut Flow) {
    forget_reset(flow);
    if let Some(other) = reverse(flow) {
        forget_reset(other);
    }
}

#[inline(always)]
fn forget_reset(flow: &mut Flow) {
    clear(flow, RESET);
    clear(flow, PEER_RESET);
    clear(flow, REPORTED);
}

#[inline(always)]
fn finish(flow: &mut Flow, end: u32) {
    flow.fin = end;
    clear(flow, ASKED);
    set(flow, FIN);
    if let Some(other) = reverse(flow) {
        other.peer_fin = end.wrapping_add(flow.seq_delta);
        set(other, PEER_FIN);
        // The other side's FIN may have come when this entry was not there yet to be told.
        if other.has(FIN) && !flow.has(PEER_FIN) {
            flow.peer_fin = other.fin.wrapping_add(other.seq_delta);
            set(flow, PEER_FIN);
        }
    }
}

/// A socket passes a FIN on that came before the flow: `receiver` is the entry of whom it goes to, `end` the number
/// behind it.
#[inline(never)]
pub(crate) fn finish_by_socket(receiver: &mut Flow, end: u32) -> i32 {
    if let Some(sender) = reverse(receiver) {
        sender.fin = end.wrapping_sub(sender.seq_delta);
        clear(sender, ASKED);
        set(sender, FIN);
        receiver.peer_fin = end;
        set(receiver, PEER_FIN);
    }
    0
}

#[inline(always)]
fn end(flow: &mut Flow, other: &mut Flow, kind: u32) {
    if !flow.has(REPORTED) {
        set(flow, REPORTED);
        set(other, REPORTED);
        flow.settle(other);
        other.settle(flow);
        tell(flow, &other.reverse_key(), kind, other.bytes());
    }
}

#[inline(always)]
fn tell(flow: &Flow, key: &FlowKey, kind: u32, peer_bytes: u64) {
    report(|event| {
        // Field by field, or the compiler makes the whole on the stack first.
        event.id = flow.id;
        event.bytes = flow.bytes();
        event.peer_bytes = peer_bytes;
        event.accepted = flow.accepted;
        event.last_seen = flow.last_seen;
        event.key.tuple.source = key.tuple.source;
        event.key.tuple.destination = key.tuple.destination;
        event.key.tuple.ports = key.tuple.ports;
        event.key.protocol = key.protocol;
        event.to.tuple.source = flow.to.source;
        event.to.tuple.destination = flow.to.destination;
        event.to.tuple.ports = flow.to.ports;
        event.to.protocol = key.protocol;
        event.kind = kind;
        event.direction = flow.direction.into();
        event.label = flow.label;
        event.connect_time = flow.connect_time;
        event.reserved = 0;
        event.resets = u32::from(flow.flags[RESET]) | (u32::from(flow.flags[PEER_RESET]) << 1);
    });
}

/// A SYN arrived: whether the flow has ended, as far as nobody but its two sides can have said, and its addresses are
/// free for a new connection. Then both entries are deleted, and the stack may have the SYN.
#[inline(always)]
pub(crate) fn yields(flow: &Flow, key: &FlowKey) -> bool {
    let other = reverse(flow);
    let is_closed = flow.has(PEER_FIN_ACKED) && other.as_ref().is_none_or(|other| other.has(PEER_FIN_ACKED));
    if !flow.is_reset() && !is_closed {
        return false;
    }
    tell(flow, key, REPLACED, other.map_or(0, |other| other.bytes()));
    delete_flow(&flow.reverse_key());
    delete_flow(key);
    true
}
