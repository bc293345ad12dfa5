//! The values that the sockmap tier and its programs exchange: the two legs of each connection that the kernel carries.
//!
//! A leg is one of the two sockets, and its key is the socket's cookie. It is the source of one direction and the
//! destination of the other. User space writes it once, when it hands the connection over, and then only reads it.

/// Legs at most, two per connection in this tier.
pub const MAX_LEGS: u32 = 65_536;

/// Octets of the ring of notices: every leg sends at most one, which takes 16.
pub const NOTICES: u32 = MAX_LEGS * 16;

/// The credit that a segment costs beyond its octets: about the memory of a small one, so that a flood of single octets
/// is bounded as well.
pub const SEGMENT_COST: u64 = 2048;

/// Reports of round trips for a socket outside this tier, after which the program turns them off for it.
pub const MAX_MISSES: u32 = 16;

/// One socket of a connection that the kernel carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leg {
    /// The cookie of the socket to which this one's data is redirected.
    pub peer: u64,
    /// Octets received here that may be unacknowledged by the peer.
    pub credit: u64,
    /// Octets that user space had written to this socket before the hand-over.
    pub sent_before: u64,
    /// Octets sent by this socket and acknowledged; written by the `sock_ops` program.
    pub acked: u64,
    /// Octets received here and redirected. The verdict writes this field and all below.
    pub redirected: u64,
    /// Octets received here and left to user space.
    pub passed: u64,
    /// [`Leg::redirected`] at the start of the current epoch.
    pub mark: u64,
    /// Segments redirected in the current epoch.
    pub segments: u32,
    /// Segments redirected in the epoch before.
    pub segments_before: u32,
    /// The sequence number of the next octet to take.
    pub next: u32,
    /// [`Leg::SPILLED`] or [`Leg::BROKEN`].
    pub flags: u32,
}

impl Leg {
    /// The credit was used up: from now on user space carries what is received here.
    pub const SPILLED: u32 = 1;
    /// Octets were lost; the connection must be reset.
    pub const BROKEN: u32 = 2;
}

/// How a connection began; stored with each socket from the moment it is established.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// The sequence number of the first octet received.
    pub first: u32,
    /// Round trips reported while the socket was not in this tier. At [`MAX_MISSES`] the reports end.
    pub misses: u32,
}

const _: () = assert!(size_of::<Leg>() == 72 && align_of::<Leg>() == 8);
const _: () = assert!(size_of::<Beginning>() == 8);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "a promise about layouts that the assertions above hold to")]
mod user {
    use super::{Beginning, Leg};

    // SAFETY: repr(C), integers only, no padding (the sizes equal the sums of the fields), any bits valid.
    unsafe impl aya::Pod for Leg {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Beginning {}
}
