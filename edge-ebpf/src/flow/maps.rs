//! The maps of the flow tier, and what is said through them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use edge_common::flow::{
    FLOW_ENTRIES, FLOW_EVENT_BYTES, FLOW_LABELS as LABELS, Flow, FlowEvent, FlowKey, FlowReason, Handshake,
    Label, PENDING_FLOWS, Pending,
};

/// Both directions of every flow.
#[btf_map]
static FLOWS: HashMap<FlowKey, Flow, { FLOW_ENTRIES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
static FLOW_EVENTS: RingBuf<(), { FLOW_EVENT_BYTES as usize }> = RingBuf::new();

/// Packets by [`FlowReason`].
#[btf_map]
static FLOW_REASONS: PerCpuArray<u64, { FlowReason::ROOM as usize }> = PerCpuArray::new();

/// What is known of a socket's handshake, kept with the socket.
#[btf_map]
static HANDSHAKES: SkStorage<Handshake> = SkStorage::new();

/// How many connections the daemon compares with the wire just now. Packets are looked at only while it is not 0.
#[btf_map]
static FLOW_COMPARING: Array<u32, 1> = Array::new();

/// Flows whose hand-over is not finished, by id, written by the daemon and pinned with the rest. A daemon that finds
/// one at its start knows that the other died in the middle of it.
#[btf_map]
static FLOWS_PENDING: HashMap<u64, Pending, { PENDING_FLOWS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// What the daemon knows of flows beside their packets, by [`Flow::label`]; pinned with the rest.
#[btf_map]
static FLOW_LABELS: HashMap<u32, Label, { LABELS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The entry for packets with this key.
///
/// An entry lives at least until the program ends, even if it is deleted meanwhile; other CPUs may change it at
/// the same time, hence a pointer.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(key)
}

/// The hand-over of a flow, while it is under way.
#[inline(always)]
pub(crate) fn pending(id: u64) -> Option<*mut Pending> {
    FLOWS_PENDING.get_ptr_mut(id)
}

/// Whether the daemon compares connections with the wire.
#[inline(always)]
pub(crate) fn is_comparing() -> bool {
    FLOW_COMPARING.get(0).is_some_and(|connections| *connections != 0)
}

#[inline(always)]
pub(crate) fn delete_flow(key: &FlowKey) {
    // That it is gone already is as good.
    let _ = FLOWS.remove(key);
}

#[inline(always)]
pub(crate) fn count(reason: FlowReason) {
    if let Some(counter) = FLOW_REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot is this CPU's own, and tc programs are not interrupted by one another.
        unsafe { *counter += 1 }
    }
}

/// Sends an event, written where it goes: the stack has no room for it.
#[inline(always)]
pub(crate) fn report(write: impl FnOnce(&mut FlowEvent)) {
    match FLOW_EVENTS.reserve_untyped::<FlowEvent>(0) {
        Some(mut entry) => {
            // SAFETY: reserved with this size; `write` sets every field before anybody reads one.
            write(unsafe { entry.assume_init_mut() });
            entry.submit(0);
        }
        None => count(FlowReason::EventLost),
    }
}

/// The map itself, for helpers that take it with a socket.
#[inline(always)]
pub(crate) fn handshakes() -> *mut core::ffi::c_void {
    (&raw const HANDSHAKES).cast_mut().cast()
}
