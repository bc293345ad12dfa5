//! What the code that aya-log's macros expand to needs. They look for it in the crate `aya_log_ebpf`, which is this one
//! under another name (see `lib.rs`), because the ring buffer of the real one has a legacy definition (section `maps`),
//! and libbpf 1.0 and later load no object with such a section.

use aya_ebpf::{btf_maps::RingBuf, macros::btf_map};
pub use aya_log_common::{
    Argument, DefaultFormatter, DisplayHint, Field, Header, IpFormatter, Level, LogValueLength,
};

/// Bytes of the ring buffer: room for a thousand lines.
pub const BYTES: usize = 1 << 18;

/// The lines, read by aya-log's `EbpfLogger`, which knows the map by this name. A line that finds no room is lost (`trace::has_room`).
#[btf_map]
pub static AYA_LOGS: RingBuf<(), BYTES> = RingBuf::new();

/// Whether lines of a level are written. The programs themselves decide that per client.
#[inline(always)]
#[must_use]
pub const fn level_enabled(_: Level) -> bool {
    true
}
