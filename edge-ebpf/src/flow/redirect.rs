//! Sends a packet out through another device, with or without a link header.

use core::ptr::null_mut;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    helpers::generated::{bpf_redirect_neigh, bpf_skb_change_head},
};
use edge_common::flow::FlowReason;
use edge_ebpf::headers::ETHERNET_HEADER;

use crate::maps::count;

/// Sends the packet out through `device`; the kernel finds the route and the neighbour.
#[inline(always)]
pub(crate) fn redirect<const L2: usize>(skb: *mut __sk_buff, device: u32) -> i32 {
    // The kernel removes an Ethernet header from every packet, and silently drops one that has none
    // (net/core/filter.c, __bpf_redirect_neigh).
    // SAFETY: a helper that checks its arguments.
    if L2 == 0 && unsafe { bpf_skb_change_head(skb, ETHERNET_HEADER as u32, 0) } != 0 {
        count(FlowReason::Refused);
        return TC_ACT_SHOT;
    }
    // SAFETY: as above. Without parameters the kernel looks up the next hop itself.
    unsafe { bpf_redirect_neigh(device, null_mut(), 0, 0) as i32 }
}
