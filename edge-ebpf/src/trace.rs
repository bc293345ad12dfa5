//! Lines about packets, which only the tracing objects write; in the ordinary objects this is nothing.
//!
//! A line's message is `client port other port flags length words`, for `kernel/trace` of the daemon: addresses are
//! IPv6 or IPv4-mapped, `::` is none; flags are byte 13 of the TCP header; the length is in bytes from the IP header on.

#[cfg(feature = "trace")]
mod enabled {
    use aya_ebpf::{
        bindings::BPF_RB_AVAIL_DATA,
        btf_maps::{LpmTrie, PerCpuArray, lpm_trie::Key},
        helpers::generated::bpf_ringbuf_query,
        macros::btf_map,
    };
    use aya_log_ebpf_macros::info;

    use crate::macro_support::{AYA_LOGS, BYTES};

    /// Clients whose every packet is reported, by IPv4-mapped prefix. More than the daemon traces at once.
    #[btf_map]
    static TRACED: LpmTrie<[u8; 16], u8, 64> = LpmTrie::new();
    /// Lines that were not written because the ring buffer was full.
    #[btf_map]
    static TRACE_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

    /// Bytes of the ring buffer that stay free: a line takes 520 at most, and each processor may write one now.
    const SPARE: u64 = 16 << 10;

    const NOBODY: [u8; 16] = [0; 16];

    /// Whether each packet of a client is to be reported.
    #[inline(always)]
    #[must_use]
    pub fn is_traced(client: [u8; 16]) -> bool {
        TRACED.get(&Key::new(128, client)).is_some()
    }

    /// Whether there is room for a line; counts it as lost if not. aya-log's macros do not say so.
    #[inline(always)]
    #[must_use]
    pub fn has_room() -> bool {
        let ring = (&raw const AYA_LOGS).cast_mut().cast();
        // SAFETY: a helper that takes any ring buffer.
        let waiting = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) };
        if waiting + SPARE <= BYTES as u64 {
            return true;
        }
        if let Some(lost) = TRACE_LOST.get_ptr_mut(0) {
            // SAFETY: the slot belongs to this CPU, and programs of the receive path do not interrupt each other.
            unsafe { *lost += 1 }
        }
        false
    }

    /// The shield drops a packet of a blocked source; `length` includes the link header.
    #[inline(never)]
    pub fn blocked(source: &[u8; 16], length: u32) -> i32 {
        if !has_room() {
            return 0;
        }
        info!(
            (), target: "shield", "{:i} {} {:i} {} {} {} {}",
            *source, 0_u16, NOBODY, 0_u16, 0_u8, length, "dropped: its source is blocked"
        );
        0
    }

    /// The shield drops a SYN because of `syn_rate`.
    #[inline(never)]
    pub fn limited(source: &[u8; 16], length: u32) -> i32 {
        if !has_room() {
            return 0;
        }
        info!(
            (), target: "shield", "{:i} {} {:i} {} {} {} {}",
            *source, 0_u16, NOBODY, 0_u16, 2_u8, length, "dropped: its source opens connections faster than syn_rate"
        );
        0
    }
}

#[cfg(not(feature = "trace"))]
mod disabled {
    /// Nothing.
    #[inline(always)]
    pub fn blocked(_source: &[u8; 16], _length: u32) {}

    /// Nothing.
    #[inline(always)]
    pub fn limited(_source: &[u8; 16], _length: u32) {}
}

#[cfg(not(feature = "trace"))]
pub use disabled::*;
#[cfg(feature = "trace")]
pub use enabled::*;
