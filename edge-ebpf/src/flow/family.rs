//! Translates between IPv4 and IPv6, for a flow whose legs differ: replaces the IP header and keeps the segment. After
//! RFC 7915 §4.1 and §5.1, for TCP without fragments.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_change_proto, bpf_skb_store_bytes},
};
use edge_common::flow::Tuple;

use crate::{
    checksum::Sum,
    frame::{Frame, IPV4, IPV4_HEADER, IPV6, IPV6_HEADER, TCP},
};

/// The word of identification, flags and fragment offset, with only don't-fragment set.
pub(crate) const ONLY_DF: u32 = 0x4000_u32.to_be();

/// The fields that are kept when an IP header is replaced.
#[derive(Clone, Copy)]
pub(crate) struct Outer {
    /// DSCP and ECN.
    traffic_class: u8,
    hop_limit: u8,
    /// Bytes behind the IP header. The kernel segments a packet for which 16 bits are not enough.
    payload: u32,
}

impl Outer {
    /// Those of the packet as it arrived.
    #[inline(always)]
    pub(crate) fn of<const L2: usize, const V6: bool>(frame: &Frame<L2, V6>, skb: *mut __sk_buff) -> Self {
        let length = frame.length(skb);
        if V6 {
            let first = u32::from_be(frame.ip_word(0));
            let traffic_class = (first >> 20) as u8;
            Self { traffic_class, hop_limit: frame.ip_byte(7), payload: length - IPV6_HEADER as u32 }
        } else {
            let payload = length - IPV4_HEADER as u32;
            Self { traffic_class: frame.ip_byte(1), hop_limit: frame.ip_byte(8), payload }
        }
    }
}

/// The difference in TCP's pseudo header. Length and protocol contribute the same in both families.
#[inline(always)]
pub(crate) fn pseudo_difference<const V6: bool>(from: &Tuple, to: &Tuple) -> Sum {
    if V6 {
        let sum = Sum::ZERO.remove_all(&from.source).remove_all(&from.destination);
        sum.add(to.source[3]).add(to.destination[3])
    } else {
        let sum = Sum::ZERO.remove(from.source[3]).remove(from.destination[3]);
        sum.add_all(&to.source).add_all(&to.destination)
    }
}

/// An IPv4 header for `payload` bytes.
#[inline(always)]
pub(crate) fn ipv4_header(
    traffic_class: u8,
    payload: u32,
    hop_limit: u8,
    protocol: u8,
    to: &Tuple,
) -> [u32; 5] {
    let length = payload.wrapping_add(IPV4_HEADER as u32) & 0xffff;
    let first = (0x4500_0000 | (u32::from(traffic_class) << 16) | length).to_be();
    let third = ((u32::from(hop_limit) << 24) | (u32::from(protocol) << 16)).to_be();
    let mut words = [first, ONLY_DF, third, to.source[3], to.destination[3]];
    words[2] |= u32::from(!Sum::ZERO.add_all(&words).folded()) << 16;
    words
}

/// An IPv6 header for `payload` bytes.
#[inline(always)]
pub(crate) fn ipv6_header(
    traffic_class: u8,
    payload: u32,
    hop_limit: u8,
    protocol: u8,
    to: &Tuple,
) -> [u32; 10] {
    let first = (0x6000_0000 | (u32::from(traffic_class) << 20)).to_be();
    let second = ((payload << 16) | (u32::from(protocol) << 8) | u32::from(hop_limit)).to_be();
    let (s, d) = (&to.source, &to.destination);
    [first, second, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]]
}

/// Replaces the IP header. The link header keeps the old EtherType; the redirect removes that header.
#[inline(always)]
pub(crate) fn change<const L2: usize, const V6: bool>(
    skb: *mut __sk_buff,
    outer: &Outer,
    to: &Tuple,
) -> Result<(), ()> {
    let Outer { traffic_class, hop_limit, payload } = *outer;
    let protocol = if V6 { IPV4 } else { IPV6 };
    // SAFETY: helpers that check their arguments.
    let failed = unsafe {
        if bpf_skb_change_proto(skb, protocol as u16, 0) != 0 {
            return Err(());
        }
        if V6 {
            let header = ipv4_header(traffic_class, payload, hop_limit - 1, TCP, to);
            bpf_skb_store_bytes(skb, L2 as u32, header.as_ptr().cast(), IPV4_HEADER as u32, 0)
        } else {
            let header = ipv6_header(traffic_class, payload, hop_limit - 1, TCP, to);
            bpf_skb_store_bytes(skb, L2 as u32, header.as_ptr().cast(), IPV6_HEADER as u32, 0)
        }
    };
    if failed != 0 { Err(()) } else { Ok(()) }
}
