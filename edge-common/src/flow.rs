//! The flow tier: connections whose packets the kernel rewrites into each other without a socket.
//!
//! A flow has two entries in one hash map, one a direction. An entry is found by the addresses and ports that
//! its packets *arrive* with, and says what they *leave* with. The other direction's key follows from it
//! ([`Flow::reverse_key`]), so neither needs a reference to the other.
//!
//! Everything that stands as it does on the wire says "network order"; all other numbers are in host order.

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

/// Entries of the flow map: two a flow, so half as many flows.
///
/// A plain hash without preallocation: what is not used costs 16 bytes of bucket, and a full map refuses the
/// next flow instead of evicting one. The loader may make it smaller.
pub const FLOW_ENTRIES: u32 = 1 << 19;

/// Bytes of the ring buffer of [`FlowEvent`]s: 8,000 of them, more than a second's worth of closes.
pub const FLOW_EVENT_BYTES: u32 = 1 << 20;

/// Hand-overs that may be under way at once. One takes some round trips; past the limit the next waits on its
/// sockets.
pub const PENDING_FLOWS: u32 = 1 << 14;

/// Different [`Label`]s that there may be at once.
pub const FLOW_LABELS: u32 = 1 << 16;

/// A packet no longer than this fits every device that flows are set up over, so its length is not compared
/// with the device's. It is the least that IPv6 asks of a link (RFC 8200 §5).
pub const ALWAYS_FITS: u32 = 1280;

const _: () = {
    // As long as `struct bpf_sock_tuple` for IPv6, as which it is looked up.
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
    // Hidden padding would be uninitialised bytes given to the kernel.
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
