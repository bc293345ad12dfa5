//! What the shield in XDP and the daemon exchange: blocked prefixes, the limit on new connections, counters.
//!
//! Addresses are 16 octets in network order; IPv4 is mapped into `::ffff:0:0/96`, so one trie holds both
//! families and a prefix of n bits of IPv4 has a length of 96 + n.

/// Blocked prefixes at most: a large public feed twice over.
pub const MAX_BLOCKS: u32 = 262_144;

/// Sources whose rate is remembered; past it the least recently seen one is forgotten and starts afresh.
pub const MAX_SOURCES: u32 = 65_536;

/// Lengths that the program tries when a longer prefix has expired, before it lets the packet pass.
pub const MAX_NESTED: u32 = 8;

/// Words of the set of ports that the limit applies to: one bit a port.
pub const PORT_WORDS: u32 = 65_536 / 32;

/// A blocked prefix: the value of the trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Nanoseconds of `CLOCK_BOOTTIME` until which [`Block::OPERATOR`]'s wish holds.
    pub until: u64,
    /// The slot of this prefix's packet counter.
    pub counter: u32,
    /// Who wants it blocked: [`Block::OPERATOR`], [`Block::LIST`], or both.
    pub origins: u16,
    /// The prefix's length in bits of the mapped address, so that the program can try a shorter one.
    pub prefix_len: u16,
}

impl Block {
    /// Asked for by the operator, perhaps for a time.
    pub const OPERATOR: u16 = 1;
    /// Named by a list; holds until the list changes.
    pub const LIST: u16 = 2;
    /// An `until` that never comes.
    pub const FOREVER: u64 = u64::MAX;
}

/// The limit on new connections of a source, as a virtual schedule (the generic cell rate algorithm,
/// ITU-T I.371 annex A): equal to a token bucket, but with one number a source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynLimit {
    /// Nanoseconds that one connection costs; 0 means no limit.
    pub interval: u64,
    /// Nanoseconds that a source may be ahead of its schedule: the depth of the bucket less one.
    pub tolerance: u64,
}

/// What the program counts, a set for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets looked at.
    pub seen: u64,
    /// Packets dropped because their source is blocked.
    pub blocked: u64,
    /// Octets of those.
    pub blocked_bytes: u64,
    /// SYNs dropped because their source opens connections too fast.
    pub limited: u64,
}

const _: () = assert!(size_of::<Block>() == 16 && align_of::<Block>() == 8);
const _: () = assert!(size_of::<SynLimit>() == 16);
const _: () = assert!(size_of::<Counters>() == 32);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "a promise about layouts that the assertions above hold to")]
mod user {
    use super::{Block, Counters, SynLimit};

    // SAFETY: repr(C), integers only, no padding (the sizes equal the sums of the fields), any bits valid.
    unsafe impl aya::Pod for Block {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SynLimit {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counters {}
}
