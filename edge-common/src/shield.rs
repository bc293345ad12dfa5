//! Data that the shield and the daemon exchange: blocked prefixes, the limit on new connections, counters.
//!
//! Addresses are 16 octets in network order. IPv4 is mapped into `::ffff:0:0/96`, so that one trie holds both families;
//! an IPv4 prefix of n bits has a length of 96 + n.

/// Blocked prefixes at most: twice a large public feed.
pub const MAX_BLOCKS: u32 = 262_144;

/// Sources whose rate is remembered. Beyond that the least recently seen one is forgotten and starts afresh.
pub const MAX_SOURCES: u32 = 65_536;

/// Prefix lengths that the program tries, when longer prefixes have expired, before it lets the packet pass.
pub const MAX_NESTED: u32 = 8;

/// Words of the set of ports that the limit applies to, one bit per port.
pub const PORT_WORDS: u32 = 65_536 / 32;

/// A blocked prefix: the value of the trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Nanoseconds of `CLOCK_BOOTTIME` until which the operator's block holds ([`Block::OPERATOR`]).
    pub until: u64,
    /// The slot of this prefix's packet counter.
    pub counter: u32,
    /// The origins of the block: [`Block::OPERATOR`], [`Block::LIST`], or both.
    pub origins: u16,
    /// The prefix's length in bits of the mapped address, so that the program can try a shorter one.
    pub prefix_len: u16,
}

impl Block {
    /// The operator, perhaps for a limited time.
    pub const OPERATOR: u16 = 1;
    /// A list; the block holds until the list changes.
    pub const LIST: u16 = 2;
    /// An `until` that is never reached.
    pub const FOREVER: u64 = u64::MAX;
}

/// The limit on new connections per source, as a virtual schedule (the generic cell rate algorithm, ITU-T I.371 annex
/// A): equivalent to a token bucket, but with one number per source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynLimit {
    /// Nanoseconds per connection; 0 means no limit.
    pub interval: u64,
    /// Nanoseconds that a source may be ahead of its schedule: the depth of the bucket minus one.
    pub tolerance: u64,
}

/// The program's counters, one set per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets examined.
    pub seen: u64,
    /// Packets dropped because their source is blocked.
    pub blocked: u64,
    /// Octets of those.
    pub blocked_bytes: u64,
    /// SYNs dropped because their source opened connections too fast.
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
