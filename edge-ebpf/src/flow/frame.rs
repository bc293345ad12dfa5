//! Direct access to the headers of a packet, at constant offsets, so that one bounds check covers all of them.
//!
//! `L2` is the length of the link header, `V6` whether the packet is IPv6. Packet addresses are plain numbers here;
//! they are invalid after the first helper that moves packet data.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_pull_data};
use edge_common::flow::{FlowKey, MAPPED, Tuple};
pub(crate) use edge_common::rules::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use edge_ebpf::headers::{
    AUTHENTICATION, DESTINATION_OPTIONS, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT, HOP_BY_HOP, ROUTING,
};
pub(crate) use edge_ebpf::headers::{ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, TCP, TCP_HEADER};

/// `ETH_P_IP` and `ETH_P_IPV6` in network order, as `__sk_buff.protocol` has them.
pub(crate) const IPV4: u32 = ETHERTYPE_IPV4.to_be() as u32;
pub(crate) const IPV6: u32 = ETHERTYPE_IPV6.to_be() as u32;

/// Offset of the checksum in a TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;

/// The first option word of almost every segment: NOP, NOP, timestamps of 10 bytes (RFC 7323 appendix A).
const USUAL_OPTIONS: u32 = 0x0101_080a_u32.to_be();
/// Length of a TCP header with only these options.
pub(crate) const USUAL_HEADER: u32 = 32;

/// The length of an IP header.
pub(crate) const fn ip_header(v6: bool) -> usize {
    if v6 { IPV6_HEADER } else { IPV4_HEADER }
}

/// The header behind an IP header, as far as the programs distinguish it.
pub(crate) enum Payload {
    /// A whole TCP segment right behind the header.
    Tcp,
    /// ICMP of either version, whole.
    Icmp,
    Fragment,
    /// IPv4 options, or any IPv6 header that is neither TCP nor ICMP.
    Extended,
    Other,
}

/// The start of a packet, checked to hold the IP and TCP headers without options.
pub(crate) struct Frame<const L2: usize, const V6: bool> {
    data: usize,
    end: usize,
}

impl<const L2: usize, const V6: bool> Frame<L2, V6> {
    /// Offset of the header behind the IP header.
    pub(crate) const TRANSPORT: usize = L2 + ip_header(V6);

    /// `None` if the packet is shorter than those headers.
    #[inline(always)]
    pub(crate) fn of(skb: *mut __sk_buff) -> Option<Self> {
        let need = Self::TRANSPORT + TCP_HEADER;
        // SAFETY: the context of the program; the kernel rewrites these loads.
        let (mut data, mut end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        if data + need > end {
            // SAFETY: as above, and a helper that checks the length.
            unsafe {
                if ((*skb).len as usize) < need || bpf_skb_pull_data(skb, need as u32) != 0 {
                    return None;
                }
                (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
            }
            if data + need > end {
                return None;
            }
        }
        Some(Self { data, end })
    }

    /// The 32-bit word at `offset` from the start of the IP header, in memory order.
    ///
    /// A plain aligned load: `read_unaligned` becomes four loads of a byte on this target.
    #[inline(always)]
    pub(crate) fn ip_word(&self, offset: usize) -> u32 {
        debug_assert!(offset + 4 <= ip_header(V6));
        // SAFETY: inside what `of` checked.
        unsafe { *((self.data + L2 + offset) as *const u32) }
    }

    #[inline(always)]
    pub(crate) fn set_ip_word(&self, offset: usize, word: u32) {
        // SAFETY: inside what `of` checked.
        unsafe { *((self.data + L2 + offset) as *mut u32) = word }
    }

    #[inline(always)]
    pub(crate) fn ip_byte(&self, offset: usize) -> u8 {
        // SAFETY: inside what `of` checked.
        unsafe { *((self.data + L2 + offset) as *const u8) }
    }

    #[inline(always)]
    pub(crate) fn set_ip_byte(&self, offset: usize, byte: u8) {
        // SAFETY: inside what `of` checked.
        unsafe { *((self.data + L2 + offset) as *mut u8) = byte }
    }

    /// A number of the IP header, in host order.
    #[inline(always)]
    pub(crate) fn ip_number(&self, offset: usize) -> u16 {
        // SAFETY: inside what `of` checked.
        u16::from_be(unsafe { *((self.data + L2 + offset) as *const u16) })
    }

    /// The word at `offset` of the TCP header, in memory order.
    #[inline(always)]
    pub(crate) fn tcp_word(&self, offset: usize) -> u32 {
        // SAFETY: inside what `of` (or `holds_options`) checked.
        unsafe { *((self.data + Self::TRANSPORT + offset) as *const u32) }
    }

    #[inline(always)]
    pub(crate) fn set_tcp_word(&self, offset: usize, word: u32) {
        // SAFETY: inside what `of` (or `holds_options`) checked.
        unsafe { *((self.data + Self::TRANSPORT + offset) as *mut u32) = word }
    }

    /// Whether `bytes` of TCP options can be reached directly.
    #[inline(always)]
    pub(crate) fn holds_options(&self, bytes: usize) -> bool {
        self.data + Self::TRANSPORT + TCP_HEADER + bytes <= self.end
    }

    /// Whether timestamps are the first option of a TCP header of `header` bytes: then `TSval` is the word at 24 and
    /// `TSecr` the one at 28.
    #[inline(always)]
    pub(crate) fn has_timestamps(&self, header: u32) -> bool {
        header >= USUAL_HEADER && self.holds_options(12) && self.tcp_word(20) == USUAL_OPTIONS
    }

    #[inline(always)]
    pub(crate) fn payload(&self) -> Payload {
        if V6 {
            return match self.ip_byte(6) {
                TCP => Payload::Tcp,
                ICMPV6 => Payload::Icmp,
                FRAGMENT => Payload::Fragment,
                HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION_OPTIONS => Payload::Extended,
                _ => Payload::Other,
            };
        }
        let protocol = self.ip_byte(9);
        if protocol != TCP && protocol != ICMP {
            return Payload::Other;
        }
        // More fragments follow, or this is not the first one. The don't-fragment bit does not matter.
        if self.ip_word(4) & (0x3fff_u32.to_be()) != 0 {
            return Payload::Fragment;
        }
        if self.ip_byte(0) != 0x45 {
            return Payload::Extended;
        }
        if protocol == TCP { Payload::Tcp } else { Payload::Icmp }
    }

    /// Length of the IP packet in bytes, according to its header. The frame may be longer (Ethernet padding).
    ///
    /// A packet that the kernel assembled beyond 64 KiB has 0 in its header; then the frame's length counts.
    #[inline(always)]
    pub(crate) fn length(&self, skb: *mut __sk_buff) -> u32 {
        let (announced, header) =
            if V6 { (self.ip_number(4), IPV6_HEADER as u32) } else { (self.ip_number(2), 0) };
        // SAFETY: the context of the program.
        if announced == 0 { unsafe { (*skb).len - L2 as u32 } } else { u32::from(announced) + header }
    }

    /// The addresses and ports.
    #[inline(always)]
    pub(crate) fn key(&self) -> FlowKey {
        let ports = self.tcp_word(0);
        if V6 {
            let address = |at: usize| {
                [self.ip_word(at), self.ip_word(at + 4), self.ip_word(at + 8), self.ip_word(at + 12)]
            };
            FlowKey::of(Tuple { source: address(8), destination: address(24), ports }, TCP)
        } else {
            let address = |at: usize| [0, 0, MAPPED, self.ip_word(at)];
            FlowKey::of(Tuple { source: address(12), destination: address(16), ports }, TCP)
        }
    }
}
