//! What the sockmap tier and its programs exchange: the two legs of each connection that the kernel carries.
//!
//! A leg is one of the two sockets, named by its cookie. It is the source of one direction and the destination
//! of the other; user space writes it once, when it hands the connection over, and only reads it from then on.

/// Legs at most: two for each connection in this tier.
pub const MAX_LEGS: u32 = 65_536;

/// Octets of the ring of notices: every leg sends one at most, and it takes 16.
pub const NOTICES: u32 = MAX_LEGS * 16;

/// What one segment counts against the credit beyond its octets: about what the kernel spends on a small one,
/// so that a flood of single octets is bounded as well.
pub const SEGMENT_COST: u64 = 2048;

/// Round trips that a socket outside this tier is watched for, before the kernel is told to stop reporting them.
pub const MAX_MISSES: u32 = 16;

/// One socket of a connection that the kernel carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leg {
    /// The cookie of the socket that gets what this one receives.
    pub peer: u64,
    /// Octets received here that may be on their way to the peer and not acknowledged by it.
    pub credit: u64,
    /// Octets that user space had written to this socket before the hand-over.
    pub sent_before: u64,
    /// Octets sent by this socket and acknowledged; kept by `sock_ops`.
    pub acked: u64,
    /// Octets received here and redirected; kept by the verdict, as all that follows.
    pub redirected: u64,
    /// Octets received here and left to user space.
    pub passed: u64,
    /// [`Leg::redirected`] when the current epoch began.
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
    /// The credit was used up: what is received here is left to user space from now on.
    pub const SPILLED: u32 = 1;
    /// Octets went astray; the connection must be reset.
    pub const BROKEN: u32 = 2;
}

/// How a connection began: kept with each socket from the moment it is established.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// The sequence number of the first octet received.
    pub first: u32,
    /// Round trips reported while the socket was not in this tier; at [`MAX_MISSES`] it is watched no longer.
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
