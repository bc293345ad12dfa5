//! The PROXY protocol, versions 1 and 2: what both directions share, and outgoing headers.
//!
//! [`crate::sniff::proxy_header`] parses incoming headers. Section numbers refer to HAProxy's
//! `doc/proxy-protocol.txt`.
//!
//! Both directions are our own code. The `proxy-header` crate is the tests' independent decoder. We do not
//! use it here for three reasons: it reports "too short" for a header whose length is too small for its
//! addresses, so that we would wait for more; it accepts any bytes in place of the space after `PROXY`; and
//! it does not return the original TLVs, which we pass on.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

pub mod tlv;
mod write;

pub use write::{Header, Tlvs, write};

/// Whose connection a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxySource {
    /// A connection of the sender itself, such as a health check, or one whose addresses it does not know:
    /// the addresses of the connection itself apply.
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
/// The longest version 2 header that we read, the same as nginx since 1.23.2
/// (`NGX_PROXY_PROTOCOL_MAX_HEADER`). The length field would allow sixteen times as much.
pub const V2_MAX: usize = 4096;
/// The longest version 2 header that we write, in bytes, without padding. Apache's `mod_remoteip` accepts 232
/// (the header and the longest addresses, those of Unix sockets), go-proxyproto 256, HAProxy the size of its
/// buffer. nginx before 1.23.2 accepts 107: enough for the addresses of either family, a checksum, and a
/// unique id or a short name.
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
