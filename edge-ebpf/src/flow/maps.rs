//! The maps of the flow tier: lookups, counters and events.

use core::{ffi::c_void, ptr::null_mut};

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SkStorage},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use edge_common::flow::{
    FLOW_ENTRIES, FLOW_EVENT_BYTES, FLOW_LABELS as LABELS, Flow, FlowEvent, FlowKey, FlowReason, Handshake,
    Label, PENDING_FLOWS, Pending,
};
use edge_ebpf::shared::Shared;

use crate::entry::FlowEntry;

/// Both directions of every flow.
#[btf_map]
static FLOWS: HashMap<FlowKey, Flow, { FLOW_ENTRIES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
static FLOW_EVENTS: RingBuf<(), { FLOW_EVENT_BYTES as usize }> = RingBuf::new();

/// Packet counts by [`FlowReason`].
#[btf_map]
static FLOW_REASONS: PerCpuArray<u64, { FlowReason::ROOM as usize }> = PerCpuArray::new();

/// The programs' record of a socket, stored with the socket.
#[btf_map]
static HANDSHAKES: SkStorage<Handshake> = SkStorage::new();

/// How many connections the daemon compares with the wire right now. While it is 0, packets of no flow are not
/// inspected.
#[btf_map]
static FLOW_COMPARING: Array<u32, 1> = Array::new();

/// Unfinished hand-overs by flow id, written by the daemon. A daemon that finds one at its start knows that its
/// predecessor died in the middle of it.
#[btf_map]
static FLOWS_PENDING: HashMap<u64, Pending, { PENDING_FLOWS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Descriptions of flows for lists and the access log, by [`Flow::label`]. Only the daemon reads and writes them.
#[btf_map]
static FLOW_LABELS: HashMap<u32, Label, { LABELS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The entry for packets with this key.
///
/// Only programs change an entry; the daemon inserts and deletes whole ones. A program may still work with an entry
/// when another processor deletes it, and even when its memory has become another flow's (see [`Shared`]). Its packet
/// can then leave with addresses and numbers of both flows, which a receiver accepts no sooner than a forged one, and a
/// number or flag can land in the wrong flow. That takes a deletion and an insertion within one run of the program, for
/// a flow whose packets still arrive; but flows are deleted when they have ended, or when the operator says so.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<FlowEntry> {
    // SAFETY: a lookup of this run, in a map of flows.
    FLOWS.get_ptr_mut(key).and_then(|found| unsafe { Shared::new(found) }).map(FlowEntry)
}

/// The hand-over of a flow, while it is under way. The daemon replaces it as a whole.
#[inline(always)]
pub(crate) fn pending(id: u64) -> Option<Shared<Pending>> {
    // SAFETY: a lookup of this run, in a map of hand-overs.
    FLOWS_PENDING.get_ptr_mut(id).and_then(|found| unsafe { Shared::new(found) })
}

/// Whether the daemon compares connections with the wire.
#[inline(always)]
pub(crate) fn is_comparing() -> bool {
    // SAFETY: a lookup of this run, in an array of numbers.
    let connections = FLOW_COMPARING.get_ptr_mut(0).and_then(|found| unsafe { Shared::new(found) });
    connections.is_some_and(|connections| connections.load() != 0)
}

#[inline(always)]
pub(crate) fn delete_flow(key: &FlowKey) {
    // An entry that is gone already is no error.
    let _ = FLOWS.remove(key);
}

#[inline(always)]
pub(crate) fn count(reason: FlowReason) {
    if let Some(counter) = FLOW_REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot belongs to this CPU, and tc programs do not interrupt each other.
        unsafe { *counter += 1 }
    }
}

/// Sends an event. It is written in the ring buffer itself: the stack has no room for it.
#[inline(always)]
pub(crate) fn report(write: impl FnOnce(&mut FlowEvent)) {
    match FLOW_EVENTS.reserve_untyped::<FlowEvent>(0) {
        Some(mut entry) => {
            // SAFETY: reserved with this size; `write` sets every field, and nobody reads one before.
            write(unsafe { entry.assume_init_mut() });
            entry.submit(0);
        }
        None => count(FlowReason::EventLost),
    }
}

/// The record of a socket. `flags` are those of `bpf_sk_storage_get`.
///
/// # Safety
///
/// `socket` is one that the helper takes (of the context, or looked up and not released), and is not null.
#[inline(always)]
pub(crate) unsafe fn handshake(socket: *mut c_void, flags: u32) -> Option<Shared<Handshake>> {
    let map = (&raw const HANDSHAKES).cast_mut().cast();
    // SAFETY: promised by the caller; the values of this map are handshakes, and the storage lives as long as the
    // socket.
    unsafe { Shared::new(bpf_sk_storage_get(map, socket, null_mut(), flags.into()).cast()) }
}
