//! The PROXY protocol, versions 1 and 2: what both directions share, and the header that goes out.
//!
//! The header that comes in is read by [`crate::sniff::proxy_header`]. Section numbers are those of HAProxy's
//! `doc/proxy-protocol.txt`.
//!
//! Both directions are our own code. The `proxy-header` crate, which is the independent decoder of the tests, says
//! "too short" to a header whose length is too small for its addresses, so that such a peer would be waited for; it
//! takes anything for the space behind `PROXY`; and it does not give out the TLVs as they came, which we pass on.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

pub mod tlv;
mod write;

pub use write::{Header, Tlvs, write};

/// Whose connection a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxySource {
    /// The sender's own, a health check for example, or one whose addresses it cannot say: the addresses of the
    /// connection itself count.
    Local,
    /// A client's. IPv4-mapped addresses have become IPv4.
    Client {
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
}

/// The first bytes of version 2 (§2.2).
pub(crate) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
pub(crate) const V2_FIXED: usize = 16;
/// The longest header of version 2 that is read: what nginx takes since 1.23.2 (`NGX_PROXY_PROTOCOL_MAX_HEADER`). The
/// length field could say sixteen times as much.
pub const V2_MAX: usize = 4096;
/// The longest header of version 2 that is written, in bytes, padding aside. Apache's `mod_remoteip` takes 232 (the header and
/// the longest addresses, those of Unix sockets), go-proxyproto 256, HAProxy what its buffer holds. nginx before 1.23.2 takes
/// 107: enough for both families of addresses, a checksum and a unique id or a short name.
pub const V2_MAX_SENT: usize = 232;
/// The length of a header of version 2 without TLVs, for a client of IPv4 (§2.2), in bytes.
pub const V2_IPV4: usize = V2_FIXED + 12;
/// The same for a client of IPv6, or where the families differ.
pub const V2_IPV6: usize = V2_FIXED + 36;
/// The longest line of version 1, with its CRLF (§2.1).
pub const V1_MAX: usize = 107;

/// Version 2, command LOCAL.
pub(crate) const LOCAL: u8 = 0x20;
/// Version 2, command PROXY.
pub(crate) const PROXY: u8 = 0x21;
/// The combinations of family and transport (§2.2).
pub(crate) const UNSPECIFIED: u8 = 0x00;
pub(crate) const TCP4: u8 = 0x11;
pub(crate) const UDP4: u8 = 0x12;
pub(crate) const TCP6: u8 = 0x21;
pub(crate) const UDP6: u8 = 0x22;
pub(crate) const UNIX_STREAM: u8 = 0x31;
pub(crate) const UNIX_DATAGRAM: u8 = 0x32;
