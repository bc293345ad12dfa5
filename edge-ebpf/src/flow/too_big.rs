//! Path MTU: "fragmentation needed" (RFC 792, 1191) and "packet too big" (RFC 4443 §3.2).
//!
//! - [`answer`]: a packet does not fit its egress device. Its sender gets the message that a router would send.
//! - [`translate`]: a router beyond the edge reports a packet that the edge rewrote. The message is forwarded to the
//!   original sender, with that sender's addresses and numbers.
//!
//! Messages are built from scratch: they come from the edge's address that the sender knows, and quote the first 20
//! bytes of its segment. Other ICMP errors about flows go to the stack, which has no socket for them; TCP may ignore
//! such errors (RFC 5461).

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{
        bpf_skb_adjust_room, bpf_skb_change_proto, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
};
use edge_common::flow::{FlowKey, FlowReason, MAPPED, Tuple};
use edge_ebpf::{
    headers::{ICMP_HEADER, IPV4_HEADER, IPV6_GROWTH, IPV6_HEADER},
    read,
};

use crate::{
    PASS,
    checksum::Sum,
    family::{ipv4_header, ipv6_header},
    frame::{ICMP, ICMPV6, IPV4, IPV6, TCP, TCP_HEADER, ip_header},
    maps::{count, flow as find},
    redirect::redirect,
};

/// Type and code, in the first half of the first ICMP word.
const FRAGMENTATION_NEEDED: u32 = 0x0304_0000_u32.to_be();
const PACKET_TOO_BIG: u32 = 0x0200_0000_u32.to_be();
const TYPE_AND_CODE: u32 = 0xffff_0000_u32.to_be();

/// DSCP CS6, network control, like the kernel's own ICMP errors.
const NETWORK_CONTROL: u8 = 0xc0;
const HOP_LIMIT: u8 = 64;
/// The minimum MTU of IPv6, announced if an old router announces none (RFC 7915 §4.2).
const LEAST_IPV6: u32 = 1280;

/// Length of the whole message.
const fn message(v6: bool) -> usize {
    2 * ip_header(v6) + ICMP_HEADER + TCP_HEADER
}

/// A whole message, in network order.
#[repr(C)]
struct Message<const IP_WORDS: usize> {
    outer: [u32; IP_WORDS],
    icmp: [u32; 2],
    inner: [u32; IP_WORDS],
    segment: [u32; 5],
}

/// The packet that was too big, as its sender sent it.
struct Offender {
    tuple: Tuple,
    /// Network order.
    seq: u32,
    /// Bytes of the whole packet.
    length: u32,
    mtu: u32,
}

impl Offender {
    /// The first 20 bytes of its TCP header.
    ///
    /// The checksum in it is chosen, not copied. A packet from a local interface may be marked for its checksum
    /// to be completed on the way out, and still is when it has become an ICMP message: the sum over the segment
    /// is then written where this header's checksum is. With S the sum of the other words and v the checksum,
    /// the segment sums to S + v before and to ~v after completion. v = -S/2 makes both the same, so that the
    /// ICMP checksum holds either way. Modulo 65535, to halve is to rotate by one bit.
    #[inline(always)]
    fn segment(&self) -> [u32; 5] {
        let mut words = [self.tuple.ports, self.seq, 0, 0x5010_0000_u32.to_be(), 0];
        let checksum = (!Sum::ZERO.add_all(&words).folded()).rotate_right(1);
        words[4] = u32::from(checksum);
        words
    }

    #[inline(always)]
    fn message_v4(&self) -> Message<5> {
        let inner = ipv4_header(0, self.length.wrapping_sub(IPV4_HEADER as u32), HOP_LIMIT, TCP, &self.tuple);
        let segment = self.segment();
        let mut icmp = [FRAGMENTATION_NEEDED, self.mtu.to_be()];
        let sum = Sum::ZERO.add_all(&icmp).add_all(&inner).add_all(&segment).folded();
        icmp[0] |= u32::from(!sum) << 16;
        let payload = (message(false) - ip_header(false)) as u32;
        let outer = ipv4_header(NETWORK_CONTROL, payload, HOP_LIMIT, ICMP, &self.tuple.reversed());
        Message { outer, icmp, inner, segment }
    }

    #[inline(always)]
    fn message_v6(&self) -> Message<10> {
        let inner = ipv6_header(0, self.length.wrapping_sub(IPV6_HEADER as u32), HOP_LIMIT, TCP, &self.tuple);
        let segment = self.segment();
        let mut icmp = [PACKET_TOO_BIG, self.mtu.to_be()];
        let payload = (message(true) - ip_header(true)) as u32;
        let pseudo = Sum::ZERO.add_all(&self.tuple.source).add_all(&self.tuple.destination);
        let pseudo = pseudo.add(payload.to_be()).add(u32::from(ICMPV6).to_be());
        let sum = pseudo.add_all(&icmp).add_all(&inner).add_all(&segment).folded();
        icmp[0] |= u32::from(!sum) << 16;
        let outer = ipv6_header(NETWORK_CONTROL, payload, HOP_LIMIT, ICMPV6, &self.tuple.reversed());
        Message { outer, icmp, inner, segment }
    }

    /// Writes the message over a packet that has its length already.
    #[inline(always)]
    fn store<const L2: usize>(&self, skb: *mut __sk_buff, v6: bool) -> bool {
        let (offset, length) = (L2 as u32, message(v6) as u32);
        // SAFETY: a helper that checks its arguments; each buffer is as long as said.
        unsafe {
            if v6 {
                let message = self.message_v6();
                bpf_skb_store_bytes(skb, offset, (&raw const message).cast(), length, 0) == 0
            } else {
                let message = self.message_v4();
                bpf_skb_store_bytes(skb, offset, (&raw const message).cast(), length, 0) == 0
            }
        }
    }
}

/// Turns a packet that has not been rewritten yet into the message to its sender.
#[inline(never)]
pub(crate) fn answer<const L2: usize, const V6: bool>(
    skb: *mut __sk_buff,
    tuple: &Tuple,
    seq: u32,
    length: u32,
    mtu: u32,
) -> i32 {
    let offender = Offender { tuple: *tuple, seq, length, mtu };
    let kept = (L2 + ip_header(V6) + TCP_HEADER) as u32;
    let room = (ip_header(V6) + ICMP_HEADER) as i32;
    // The kernel remembers where the checksum to be completed is, relative to the segment: cut behind it, grow before
    // it. SAFETY: helpers that check their arguments, and the context of the program.
    let device = unsafe {
        if bpf_skb_change_tail(skb, kept, 0) != 0 || bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0) != 0
        {
            return TC_ACT_SHOT;
        }
        (*skb).ingress_ifindex
    };
    if !offender.store::<L2>(skb, V6) {
        return TC_ACT_SHOT;
    }
    redirect::<L2>(skb, device)
}

/// Every router's message contains two ICMP words, the IP header of the packet that it reports, and eight bytes
/// of that packet's payload.
#[repr(C)]
struct Report<const IP_WORDS: usize> {
    icmp: [u32; 2],
    ip: [u32; IP_WORDS],
    ports: u32,
    seq: u32,
}

impl<const IP_WORDS: usize> Report<IP_WORDS> {
    /// `None` if the packet is too short or of another kind.
    #[inline(always)]
    fn load(skb: *mut __sk_buff, offset: u32, kind: u32) -> Option<Self> {
        let mut report = MaybeUninit::<Self>::uninit();
        let bytes = size_of::<Self>() as u32;
        // SAFETY: a helper that fills the whole buffer or fails; any bytes are a report.
        let report = unsafe {
            if bpf_skb_load_bytes(skb.cast(), offset, report.as_mut_ptr().cast(), bytes) != 0 {
                return None;
            }
            report.assume_init()
        };
        (report.icmp[0] & TYPE_AND_CODE == kind).then_some(report)
    }
}

/// Forwards a message from a router beyond the edge. The checksum is not verified: a damaged message counts only if it
/// names a flow and a number in flight, and its receiver verifies both again.
#[inline(never)]
pub(crate) fn translate<const L2: usize, const V6: bool>(skb: *mut __sk_buff) -> i32 {
    let offset = (L2 + ip_header(V6)) as u32;
    // The packet that did not fit, as it left the edge.
    let (sent, seq, length, mtu) = if V6 {
        let Some(report) = Report::<10>::load(skb, offset, PACKET_TOO_BIG) else { return PASS };
        let ip = &report.ip;
        let second = u32::from_be(ip[1]);
        if (second >> 8) as u8 != TCP {
            return PASS;
        }
        let source = [ip[2], ip[3], ip[4], ip[5]];
        let destination = [ip[6], ip[7], ip[8], ip[9]];
        let tuple = Tuple { source, destination, ports: report.ports };
        (tuple, report.seq, (second >> 16) + IPV6_HEADER as u32, u32::from_be(report.icmp[1]))
    } else {
        let Some(report) = Report::<5>::load(skb, offset, FRAGMENTATION_NEEDED) else { return PASS };
        let ip = &report.ip;
        let first = u32::from_be(ip[0]);
        // The edge sends no IPv4 options.
        if first >> 24 != 0x45 || (u32::from_be(ip[2]) >> 16) as u8 != TCP {
            return PASS;
        }
        let source = [0, 0, MAPPED, ip[3]];
        let destination = [0, 0, MAPPED, ip[4]];
        let tuple = Tuple { source, destination, ports: report.ports };
        (tuple, report.seq, first & 0xffff, u32::from_be(report.icmp[1]) & 0xffff)
    };
    // The entry of the other direction leads to its sender.
    let Some(flow) = find(&FlowKey::of(sent.reversed(), TCP)) else { return PASS };
    let number = u32::from_be(seq);
    // SAFETY: the context of the program.
    let device = unsafe { (*skb).ingress_ifindex };
    if device != read!(flow.0, ingress) || number.wrapping_sub(read!(flow.0, acked)) > read!(flow.0, window) {
        count(FlowReason::TooBigDisbelieved);
        return PASS;
    }
    let to_v6 = V6 != flow.changes_family();
    let mut offender = Offender {
        tuple: flow.to().reversed(),
        seq: number.wrapping_add(read!(flow.0, ack_delta)).to_be(),
        length,
        mtu,
    };
    if to_v6 && !V6 {
        offender.length += IPV6_GROWTH;
        offender.mtu = (mtu + IPV6_GROWTH).max(LEAST_IPV6);
    } else if V6 && !to_v6 {
        offender.length = offender.length.wrapping_sub(IPV6_GROWTH);
        offender.mtu = mtu.saturating_sub(IPV6_GROWTH);
    }
    let egress = read!(flow.0, egress);
    let (protocol, total) =
        if to_v6 { (IPV6, (L2 + message(true)) as u32) } else { (IPV4, (L2 + message(false)) as u32) };
    // SAFETY: helpers that check their arguments.
    let refused = unsafe {
        (to_v6 != V6 && bpf_skb_change_proto(skb, protocol as u16, 0) != 0)
            || bpf_skb_change_tail(skb, total, 0) != 0
    };
    if refused || !offender.store::<L2>(skb, to_v6) {
        count(FlowReason::Refused);
        return TC_ACT_SHOT;
    }
    count(FlowReason::TooBigTranslated);
    redirect::<L2>(skb, egress)
}
