//! Headers of packets: lengths without options, and the numbers that name what follows.

/// Bytes of an Ethernet header. The kernel keeps an 802.1Q tag beside the packet where it can.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of an IPv4 header without options (RFC 791 §3.1).
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header (RFC 8200 §3).
pub const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options (RFC 9293 §3.1).
pub const TCP_HEADER: usize = 20;
/// Bytes of the ICMP and ICMPv6 messages that announce an MTU, before the packet that they quote (RFC 1191 §4,
/// RFC 4443 §3.2).
pub const ICMP_HEADER: usize = 8;
/// By how many bytes a packet grows when IPv6 replaces IPv4.
pub const IPV6_GROWTH: u32 = IPV6_HEADER as u32 - IPV4_HEADER as u32;

/// `ETH_P_IP` (`linux/if_ether.h`).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// `ETH_P_IPV6`.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// `ETH_P_8021Q`: a VLAN tag.
pub const ETHERTYPE_8021Q: u16 = 0x8100;
/// `ETH_P_8021AD`: the outer of two VLAN tags.
pub const ETHERTYPE_8021AD: u16 = 0x88a8;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// The hop-by-hop options of IPv6 (RFC 8200 §4.3).
pub const HOP_BY_HOP: u8 = 0;
/// The routing header (RFC 8200 §4.4).
pub const ROUTING: u8 = 43;
/// The fragment header (RFC 8200 §4.5).
pub const FRAGMENT: u8 = 44;
/// The authentication header (RFC 4302 §2).
pub const AUTHENTICATION: u8 = 51;
/// The destination options (RFC 8200 §4.6).
pub const DESTINATION_OPTIONS: u8 = 60;
