//! The rules of a flow (`edge_common::rules`), and what they need beside its entries: hand-overs under way, events,
//! deletion.

pub(crate) use edge_common::rules::{Segment, is_after, note, note_timestamp};
use edge_common::{
    flow::{FlowKey, PEER_RESET, REPLACED, RESET, WATCHED},
    rules::{self, Entry as _},
};
use edge_ebpf::read;

use crate::{
    entry::FlowEntry,
    maps::{delete_flow, pending, report},
};

/// Whether a segment is meant for the socket that the edge still has: see [`rules::is_for_socket`].
#[inline(always)]
pub(crate) fn is_for_socket(flow: FlowEntry, segment: &Segment) -> bool {
    if !flow.has(WATCHED) {
        return false;
    }
    let Some(pending) = pending(read!(flow.0, id)) else {
        // The hand-over is over.
        flow.clear(WATCHED);
        return false;
    };
    let direction = usize::from(flow.direction() & 1);
    rules::is_for_socket(segment, read!(pending, watch[direction]))
}

// Functions of their own, to keep the common path short. A function of a program returns a number.

/// See [`rules::note_syn`].
#[inline(never)]
pub(crate) fn note_syn(flow: FlowEntry, seq: u32) -> i32 {
    rules::note_syn(flow, seq);
    0
}

/// See [`rules::note_syn_ack`].
#[inline(never)]
pub(crate) fn note_syn_ack(flow: FlowEntry, ack: u32) -> i32 {
    rules::note_syn_ack(flow, ack);
    0
}

/// See [`rules::note_fin_of_socket`].
#[inline(never)]
pub(crate) fn note_fin_of_socket(receiver: FlowEntry, end: u32) -> i32 {
    rules::note_fin_of_socket(receiver, end);
    0
}

/// Sends the event that the flow whose entry is at `key` has ended.
#[inline(always)]
pub(crate) fn report_end(flow: FlowEntry, key: &FlowKey, kind: u32, peer_bytes: u64) {
    report(|event| {
        // Field by field, or the compiler makes the whole on the stack first.
        event.id = read!(flow.0, id);
        event.bytes = rules::bytes(flow);
        event.peer_bytes = peer_bytes;
        event.accepted = read!(flow.0, accepted);
        event.last_seen = read!(flow.0, last_seen);
        event.key.tuple.source = key.tuple.source;
        event.key.tuple.destination = key.tuple.destination;
        event.key.tuple.ports = key.tuple.ports;
        event.key.protocol = key.protocol;
        event.to.tuple.source[0] = read!(flow.0, to.source[0]);
        event.to.tuple.source[1] = read!(flow.0, to.source[1]);
        event.to.tuple.source[2] = read!(flow.0, to.source[2]);
        event.to.tuple.source[3] = read!(flow.0, to.source[3]);
        event.to.tuple.destination[0] = read!(flow.0, to.destination[0]);
        event.to.tuple.destination[1] = read!(flow.0, to.destination[1]);
        event.to.tuple.destination[2] = read!(flow.0, to.destination[2]);
        event.to.tuple.destination[3] = read!(flow.0, to.destination[3]);
        event.to.tuple.ports = read!(flow.0, to.ports);
        event.to.protocol = key.protocol;
        event.kind = kind;
        event.direction = flow.direction().into();
        event.label = read!(flow.0, label);
        event.connect_time = read!(flow.0, connect_time);
        event.reserved = 0;
        event.resets = u32::from(flow.has(RESET)) | (u32::from(flow.has(PEER_RESET)) << 1);
    });
}

/// Whether a SYN that arrived takes over the addresses of a flow that has ended: then both entries are deleted, and the
/// SYN is the stack's.
#[inline(always)]
pub(crate) fn yields(flow: FlowEntry, key: &FlowKey) -> bool {
    let other = flow.reverse();
    if !rules::has_ended(flow, other) {
        return false;
    }
    report_end(flow, key, REPLACED, other.map_or(0, rules::bytes));
    delete_flow(&flow.reverse_key());
    delete_flow(key);
    true
}
