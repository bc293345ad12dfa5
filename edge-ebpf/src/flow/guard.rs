//! Packets that the local stack sends, on the devices that flows use.
//!
//! - A RST or FIN with the addresses of a flow is dropped. The connection no longer belongs to the stack, which would
//!   otherwise answer a stray segment with a RST, or send one when its socket is closed. A socket that must still send
//!   a FIN is marked in its [`Handshake`].
//! - A socket's retransmissions during the hand-over get the latest acknowledgement and timestamp of the flow.
//! - While the daemon compares connections with the wire, each packet is compared with its socket (see `wire`).
//! - A SYN to a backend offers what the client offered: other options become NOPs. The daemon orders this in the
//!   socket's [`Handshake`], because `skb->mark` belongs to the tunnels.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    helpers::generated::bpf_skb_store_bytes,
};
use edge_common::{
    flow::{
        ESTABLISHED, FlowKey, FlowReason, HANDING_OVER, Handshake, MAY_FINISH, NO_SACK, NO_TIMESTAMPS,
        NO_WINDOW_SCALE, WITH_ECN,
    },
    rules::Entry as _,
};
use edge_ebpf::{read, shared::Shared};

use crate::{
    PASS,
    checksum::{self, Sum},
    forward::is_of_vlan,
    frame::{
        Frame, IPV4, IPV6, Payload, TCP_ACK, TCP_CHECKSUM, TCP_FIN, TCP_HEADER, TCP_RST, TCP_SYN, ip_header,
    },
    maps::{self, count, flow as find, is_comparing},
    options, state, wire,
};

/// The flags ECE and CWR in the fourth word of a TCP header, in memory order: together with SYN they offer ECN
/// (RFC 3168 §6.1.1).
const OFFER_ECN: u32 = 0x00c0_0000_u32.to_be();

/// The wishes that change a SYN.
const SHAPES: u32 = NO_TIMESTAMPS | NO_SACK | NO_WINDOW_SCALE | WITH_ECN;

#[inline(always)]
pub(crate) fn egress<const L2: usize>(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context of the program.
    let (protocol, came_from) = unsafe { ((*skb).protocol, (*skb).ingress_ifindex) };
    // Only packets that start here have no ingress device; others are forwarded or belong to a flow. Packets with a
    // VLAN tag were handled on the VLAN's own device.
    if came_from != 0 || is_of_vlan(skb) {
        return PASS;
    }
    match protocol {
        IPV4 => guard::<L2, false>(skb),
        IPV6 => guard::<L2, true>(skb),
        _ => PASS,
    }
}

#[inline(always)]
fn guard<const L2: usize, const V6: bool>(skb: *mut __sk_buff) -> i32 {
    let Some(frame) = Frame::<L2, V6>::of(skb) else { return PASS };
    let Payload::Tcp = frame.payload() else { return PASS };
    let word = frame.tcp_word(12);
    let flags = (word >> 8) as u8;
    if flags & (TCP_RST | TCP_FIN) != 0
        && let Some(flow) = find(&frame.key().reversed())
    {
        if !is_wanted_fin(skb, flags) {
            count(FlowReason::Guarded);
            return TC_ACT_SHOT;
        }
        let headers = ip_header(V6) as u32 + ((word & 0xf0) >> 2);
        let data = frame.length(skb).wrapping_sub(headers);
        let end = u32::from_be(frame.tcp_word(4)).wrapping_add(data).wrapping_add(1);
        state::note_fin_of_socket(flow, end);
    }
    let is_syn = flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if !is_syn && flags & TCP_ACK == 0 {
        return PASS;
    }
    let noted = handshake(skb);
    if !is_syn
        && is_comparing()
        && let Some(noted) = noted
    {
        if read!(noted, flags) & ESTABLISHED != 0 && read!(noted, leaves_by) == 0 {
            let numbers = wire::Numbers {
                own: u32::from_be(frame.tcp_word(4)),
                theirs: u32::from_be(frame.tcp_word(8)),
            };
            wire::leaves::<V6>(skb, &frame.key().tuple.reversed(), numbers, noted);
        }
    }
    let wanted = noted.map_or(0, |noted| read!(noted, wishes));
    if is_syn && wanted & SHAPES != 0 {
        shape_syn::<L2, V6>(skb, word, wanted & SHAPES);
    } else if !is_syn && wanted & HANDING_OVER != 0 {
        let header = (word & 0xf0) >> 2;
        let stamp = if frame.has_timestamps(header) { frame.tcp_word(24) } else { 0 };
        renew::<L2, V6>(skb, &frame.key().reversed(), frame.tcp_word(8), stamp);
    }
    // A SYN that could not be changed leaves as it is; then the legs differ and the connection stays on sockets.
    PASS
}

/// Raises the acknowledgement and the timestamp of a socket's segment to the latest that the flow has carried. `key` is
/// that of the packets which the segment's receiver sends. `ack` and `stamp` (0: none) are in network order.
#[inline(never)]
fn renew<const L2: usize, const V6: bool>(skb: *mut __sk_buff, key: &FlowKey, ack: u32, stamp: u32) -> i32 {
    let Some(flow) = find(key) else { return 0 };
    let Some(other) = find(&flow.reverse_key()) else { return 0 };
    let (acknowledged, last) = (other.acked().wrapping_add(read!(other.0, ack_delta)), other.stamp());
    raise::<L2, V6>(skb, 8, ack, acknowledged);
    if stamp != 0 && last != 0 {
        raise::<L2, V6>(skb, 24, stamp, last);
    }
    0
}

/// Raises a number of the TCP header to `least`, if it is lower. `word` is its present value in network order.
#[inline(always)]
fn raise<const L2: usize, const V6: bool>(skb: *mut __sk_buff, offset: usize, word: u32, least: u32) {
    if !state::is_after(least, u32::from_be(word)) {
        return;
    }
    let new = least.to_be();
    let transport = Frame::<L2, V6>::TRANSPORT;
    // SAFETY: a helper that checks the offset.
    if unsafe { bpf_skb_store_bytes(skb, (transport + offset) as u32, (&raw const new).cast(), 4, 0) } == 0 {
        checksum::correct(skb, transport + TCP_CHECKSUM, Sum::ZERO.replace(word, new));
    }
}

#[inline(always)]
fn is_wanted_fin(skb: *mut __sk_buff, flags: u8) -> bool {
    flags & TCP_RST == 0 && handshake(skb).is_some_and(|noted| read!(noted, wishes) & MAY_FINISH != 0)
}

/// The record of the socket that sends the packet.
#[inline(always)]
fn handshake(skb: *mut __sk_buff) -> Option<Shared<Handshake>> {
    // SAFETY: the context of the program.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the socket of the context.
    unsafe { maps::handshake(socket.cast(), 0) }
}

#[inline(always)]
fn shape_syn<const L2: usize, const V6: bool>(skb: *mut __sk_buff, word: u32, wanted: u32) {
    let transport = Frame::<L2, V6>::TRANSPORT;
    let mut sum = Sum::ZERO;
    let length = ((word & 0xf0) >> 2).wrapping_sub(TCP_HEADER as u32);
    let blank = wanted & !WITH_ECN;
    if blank != 0 && length != 0 {
        let change = options::Change { tsval: 0, tsecr: 0, ack: 0, blank };
        if options::rewrite(skb, transport + TCP_HEADER, length, change, &mut sum).is_err() {
            return;
        }
    }
    if wanted & WITH_ECN != 0 {
        let new = word | OFFER_ECN;
        // SAFETY: a helper that checks the offset.
        if unsafe { bpf_skb_store_bytes(skb, (transport + 12) as u32, (&raw const new).cast(), 4, 0) } == 0 {
            sum = sum.replace(word, new);
        }
    }
    checksum::correct(skb, transport + TCP_CHECKSUM, sum);
    count(FlowReason::SynRewritten);
}
