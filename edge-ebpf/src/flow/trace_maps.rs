//! The maps of the flow tier for the tracing objects: those of `maps.rs`, and what goes through them is noted.

#[path = "maps.rs"]
mod ordinary;

use edge_common::flow::{FlowKey, FlowReason};
pub(crate) use ordinary::{delete_flow, handshake, is_comparing, pending, report};

use crate::{entry::FlowEntry, trace};

/// The entry for packets with this key.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<FlowEntry> {
    let found = ordinary::flow(key);
    if let Some(flow) = found {
        trace::note_flow(key, flow);
    }
    found
}

#[inline(always)]
pub(crate) fn count(reason: FlowReason) {
    ordinary::count(reason);
    trace::note(reason);
}
