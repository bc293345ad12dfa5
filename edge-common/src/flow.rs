//! The flow tier: connections whose packets the kernel rewrites into each other without a socket.
//!
//! A flow has two entries in one hash map, one per direction. Its key is the addresses and ports with which packets
//! *arrive*; the entry has those with which they *leave*. The key of the other direction follows from the entry
//! ([`Flow::reverse_key`]), so neither entry refers to the other.
//!
//! Numbers are in host order, unless their documentation says "network order".

mod entry;
mod event;
mod handover;
mod key;
mod label;
mod reason;

pub use entry::*;
pub use event::*;
pub use handover::*;
pub use key::*;
pub use label::*;
pub use reason::*;

/// Entries of the flow map, two per flow.
///
/// A plain hash without preallocation: an unused entry costs 16 bytes of bucket, and a full map refuses the next flow
/// instead of evicting one. The loader may make it smaller.
pub const FLOW_ENTRIES: u32 = 1 << 19;

/// Bytes of the ring buffer of [`FlowEvent`]s: room for 6,900, more than the flows that end within a second.
pub const FLOW_EVENT_BYTES: u32 = 1 << 20;

/// Hand-overs that may be under way at once. One takes a few round trips. Past the limit a connection keeps its
/// sockets until there is room.
pub const PENDING_FLOWS: u32 = 1 << 14;

/// Distinct [`Label`]s at once.
pub const FLOW_LABELS: u32 = 1 << 16;

/// A packet no longer than this fits every device that carries flows, so its length is not compared with the device's
/// MTU. It is the minimum MTU of IPv6 (RFC 8200 §5).
pub const ALWAYS_FITS: u32 = 1280;

const _: () = {
    // The length of `struct bpf_sock_tuple` for IPv6: a tuple is the key of a socket lookup.
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 160 && align_of::<Flow>() == 8);
    // Bookkeeping of a hash element (48 bytes), the key rounded up to 8, and the list node of the allocator
    // (8 bytes) share one 256-byte allocation with the value (kernel/bpf/hashtab.c, memalloc.c).
    assert!(48 + size_of::<FlowKey>().next_multiple_of(8) + size_of::<Flow>() + 8 <= 256);
    assert!(48 + 8 + size_of::<Label>() + 8 <= 512);
    assert!(size_of::<Handshake>() == 36);
    assert!(size_of::<FlowEvent>() == 144);
    assert!(size_of::<Pending>() == 56);
    assert!(FlowReason::COUNT <= FlowReason::ROOM);
    // Hidden padding would pass uninitialised bytes to the kernel.
    assert!(core::mem::offset_of!(Flow, id) == 112 && core::mem::offset_of!(Flow, flags) == 64);
};

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya asks for a promise that the types are plain bytes")]
mod user {
    use super::{Flow, FlowEvent, FlowKey, Handshake, Label, Pending};

    // SAFETY: `repr(C)`, integers only, and by the assertions above no padding: every bit pattern is a value.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Handshake {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Pending {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Label {}
}
