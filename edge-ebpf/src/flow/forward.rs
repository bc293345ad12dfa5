//! Forwarding: looks up the flow of a packet, checks the packet, rewrites it and redirects it.
//!
//! The common path accesses the packet directly and calls helpers last: after the first helper that may move packet
//! data, direct access is no longer allowed. Rare cases are behind branches.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    helpers::generated::{bpf_check_mtu, bpf_ktime_get_coarse_ns},
};
use edge_common::flow::{ALWAYS_FITS, FlowKey, FlowReason, Tuple};
use edge_ebpf::{headers::IPV6_GROWTH, read, write};

use crate::{
    PASS,
    checksum::{self, Sum},
    entry::FlowEntry,
    family,
    frame::{
        Frame, IPV4, IPV6, Payload, TCP_ACK, TCP_CHECKSUM, TCP_HEADER, TCP_SYN, USUAL_HEADER, ip_header,
    },
    maps::{count, flow as find, is_comparing},
    options,
    redirect::redirect,
    socket, state, too_big, wire,
};

/// `PACKET_HOST` (`linux/if_packet.h`): addressed to this machine.
const PACKET_HOST: u32 = 0;

/// The part of a VLAN tag that names the VLAN (`VLAN_VID_MASK`, `linux/if_vlan.h`).
const VLAN_ID: u32 = 0xfff;

/// Whether a packet is tagged for a VLAN, and so belongs to the VLAN's own device above this one. A tag with only a
/// priority (VLAN 0) does not count.
#[inline(always)]
pub(crate) fn is_of_vlan(skb: *mut __sk_buff) -> bool {
    // Before Linux 6.2 `vlan_tci` keeps its value when the kernel has removed the tag, for the VLAN's own device.
    // SAFETY: the context of a program.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN_ID != 0 }
}

#[inline(always)]
pub(crate) fn ingress<const L2: usize>(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context of the program.
    let (protocol, kind) = unsafe { ((*skb).protocol, (*skb).pkt_type) };
    match protocol {
        _ if kind != PACKET_HOST || is_of_vlan(skb) => PASS,
        IPV4 => look::<L2, false>(skb),
        IPV6 => look::<L2, true>(skb),
        _ => PASS,
    }
}

#[inline(always)]
fn look<const L2: usize, const V6: bool>(skb: *mut __sk_buff) -> i32 {
    let Some(frame) = Frame::<L2, V6>::of(skb) else { return PASS };
    match frame.payload() {
        Payload::Tcp => {
            let key = frame.key();
            match find(&key) {
                Some(flow) => carry(skb, &frame, &key, flow),
                None => {
                    if is_comparing() && (frame.tcp_word(12) >> 8) as u8 & (TCP_SYN | TCP_ACK) == TCP_ACK {
                        let (theirs, own) =
                            (u32::from_be(frame.tcp_word(4)), u32::from_be(frame.tcp_word(8)));
                        wire::arrives::<V6>(skb, &key.tuple, wire::Numbers { theirs, own });
                    }
                    PASS
                }
            }
        }
        Payload::Icmp => too_big::translate::<L2, V6>(skb),
        Payload::Fragment => {
            count(FlowReason::Fragment);
            PASS
        }
        Payload::Extended => {
            count(FlowReason::ExtensionHeader);
            PASS
        }
        Payload::Other => PASS,
    }
}

#[inline(always)]
fn drop_for(reason: FlowReason) -> i32 {
    count(reason);
    TC_ACT_SHOT
}

/// Adds to a number in network order.
#[inline(always)]
fn shift(number: u32, delta: u32) -> u32 {
    u32::from_be(number).wrapping_add(delta).to_be()
}

#[inline(always)]
fn carry<const L2: usize, const V6: bool>(
    skb: *mut __sk_buff,
    frame: &Frame<L2, V6>,
    key: &FlowKey,
    flow: FlowEntry,
) -> i32 {
    // SAFETY: the context of the program.
    let (frame_length, device, segment_size) =
        unsafe { ((*skb).len, (*skb).ingress_ifindex, (*skb).gso_size) };
    if device != read!(flow.0, ingress) {
        return drop_for(FlowReason::WrongDevice);
    }
    // In memory order: ports; sequence number; acknowledgement; data offset, flags and window.
    let words = [frame.tcp_word(0), frame.tcp_word(4), frame.tcp_word(8), frame.tcp_word(12)];
    let header = (words[3] & 0xf0) >> 2;
    let flags = (words[3] >> 8) as u8;
    let length = frame.length(skb);
    let headers = ip_header(V6) as u32 + header;
    if header < TCP_HEADER as u32 || length < headers || length + L2 as u32 > frame_length {
        return drop_for(FlowReason::Malformed);
    }
    if frame.ip_byte(if V6 { 7 } else { 8 }) <= 1 {
        return drop_for(FlowReason::HopLimit);
    }
    if flags & TCP_SYN != 0 {
        if flags & TCP_ACK != 0 {
            state::note_syn_ack(flow, u32::from_be(words[2]));
            return drop_for(FlowReason::SynAck);
        }
        if state::yields(flow, key) {
            count(FlowReason::SynOnClosed);
            return PASS;
        }
        state::note_syn(flow, u32::from_be(words[1]));
        count(FlowReason::SynOnLive);
    }
    let largest = if segment_size == 0 { length } else { headers + segment_size };
    if largest > ALWAYS_FITS
        && let Some(mtu) = exceeded_mtu::<V6>(skb, flow, largest)
    {
        count(FlowReason::TooBig);
        return too_big::answer::<L2, V6>(skb, &key.tuple, words[1], length, mtu);
    }

    // SAFETY: a helper without arguments.
    write!(flow.0, last_seen = unsafe { bpf_ktime_get_coarse_ns() });
    // A statistic: two processors at the same moment may count one.
    write!(flow.0, packets = read!(flow.0, packets).wrapping_add(1));
    let mut window = u32::from(u16::from_be((words[3] >> 16) as u16));
    if flags & TCP_SYN == 0 {
        window <<= flow.sender_scale();
        let (seq, ack) = (u32::from_be(words[1]), u32::from_be(words[2]));
        let segment = state::Segment { seq, ack, window, data: length - headers, flags };
        state::note(flow, &segment);
        if state::is_for_socket(flow, &segment)
            && let Some(numbers) = socket::Numbers::find::<V6>(skb, &key.tuple)
        {
            return to_socket(skb, frame, &words, &numbers, header);
        }
        // The window of a SYN is never scaled (RFC 7323 §2.2).
        window = (window >> flow.offered_scale()).min(0xffff);
    }
    rewrite(skb, frame, &key.tuple, flow, words, window)
}

/// Passes a bare ACK up to the socket that still retransmits. SEQ is rewritten to the socket's `rcv_nxt`, and ACK is
/// clamped to its `snd_nxt`; otherwise the stack would drop the ACK (RFC 9293 §3.10.7.4). The echoed timestamp is
/// cleared: if it were the other side's, the socket would take its retransmission for spurious (RFC 3522).
#[inline(always)]
fn to_socket<const L2: usize, const V6: bool>(
    skb: *mut __sk_buff,
    frame: &Frame<L2, V6>,
    words: &[u32; 4],
    numbers: &socket::Numbers,
    header: u32,
) -> i32 {
    count(FlowReason::ForSocket);
    let (seq, mut ack) = (numbers.expected.to_be(), words[2]);
    if state::is_after(u32::from_be(ack), numbers.sent) {
        ack = numbers.sent.to_be();
    }
    frame.set_tcp_word(4, seq);
    frame.set_tcp_word(8, ack);
    let mut sum = Sum::ZERO.replace(words[1], seq).replace(words[2], ack);
    if frame.has_timestamps(header) {
        sum = sum.replace(frame.tcp_word(28), 0);
        frame.set_tcp_word(28, 0);
    }
    checksum::correct(skb, Frame::<L2, V6>::TRANSPORT + TCP_CHECKSUM, sum);
    PASS
}

#[inline(always)]
fn rewrite<const L2: usize, const V6: bool>(
    skb: *mut __sk_buff,
    frame: &Frame<L2, V6>,
    key: &Tuple,
    flow: FlowEntry,
    words: [u32; 4],
    window: u32,
) -> i32 {
    let header = (words[3] & 0xf0) >> 2;
    let acknowledges = (words[3] >> 8) & u32::from(TCP_ACK) != 0;
    let ports = read!(flow.0, to.ports);
    let seq = shift(words[1], read!(flow.0, seq_delta));
    let ack = if acknowledges { shift(words[2], read!(flow.0, ack_delta)) } else { words[2] };
    let last = (words[3] & 0xffff) | (u32::from((window as u16).to_be()) << 16);
    frame.set_tcp_word(0, ports);
    frame.set_tcp_word(4, seq);
    frame.set_tcp_word(8, ack);
    frame.set_tcp_word(12, last);
    let mut sum = Sum::ZERO
        .replace(words[0], ports)
        .replace(words[1], seq)
        .replace(words[2], ack)
        .replace(words[3], last);

    let mut unusual = header > TCP_HEADER as u32;
    if frame.has_timestamps(header) {
        let tsval = frame.tcp_word(24);
        let new_tsval = shift(tsval, read!(flow.0, tsval_delta));
        state::note_timestamp(flow, u32::from_be(new_tsval));
        if header == USUAL_HEADER {
            unusual = false;
            let tsecr = frame.tcp_word(28);
            let new_tsecr = shift(tsecr, read!(flow.0, tsecr_delta));
            frame.set_tcp_word(24, new_tsval);
            frame.set_tcp_word(28, new_tsecr);
            sum = sum.replace(tsval, new_tsval).replace(tsecr, new_tsecr);
        }
    }

    let changes_family = flow.changes_family();
    let addresses = if changes_family {
        family::pseudo_difference::<V6>(key, &flow.to())
    } else {
        readdress(frame, key, flow)
    };
    let egress = read!(flow.0, egress);
    let outer = family::Outer::of(frame, skb);
    // Helpers move packet data from here on, so `frame` must not be used any more.

    if unusual {
        count(FlowReason::UnusualOptions);
        let change = options::Change {
            tsval: read!(flow.0, tsval_delta),
            tsecr: read!(flow.0, tsecr_delta),
            ack: read!(flow.0, ack_delta),
            blank: 0,
        };
        let offset = Frame::<L2, V6>::TRANSPORT + TCP_HEADER;
        if options::rewrite(skb, offset, header - TCP_HEADER as u32, change, &mut sum).is_err() {
            return drop_for(FlowReason::Malformed);
        }
    }
    let checksum_at = Frame::<L2, V6>::TRANSPORT + TCP_CHECKSUM;
    if changes_family {
        checksum::correct_tcp::<false>(skb, checksum_at, sum, addresses);
        if family::change::<L2, V6>(skb, &outer, &flow.to()).is_err() {
            return drop_for(FlowReason::Refused);
        }
    } else {
        checksum::correct_tcp::<V6>(skb, checksum_at, sum, addresses);
    }
    count(FlowReason::Forwarded);
    redirect::<L2>(skb, egress)
}

/// Writes the new addresses and decrements the hop limit; returns the checksum difference of the addresses.
#[inline(always)]
fn readdress<const L2: usize, const V6: bool>(frame: &Frame<L2, V6>, key: &Tuple, flow: FlowEntry) -> Sum {
    let mut sum = Sum::ZERO;
    if V6 {
        macro_rules! each {
            ($($at:literal)*) => { $(
                let (source, destination) = (read!(flow.0, to.source[$at]), read!(flow.0, to.destination[$at]));
                sum = sum.replace(key.source[$at], source).replace(key.destination[$at], destination);
                frame.set_ip_word(8 + 4 * $at, source);
                frame.set_ip_word(24 + 4 * $at, destination);
            )* };
        }
        each!(0 1 2 3);
        frame.set_ip_byte(7, frame.ip_byte(7) - 1);
    } else {
        let (source, destination) = (read!(flow.0, to.source[3]), read!(flow.0, to.destination[3]));
        sum = sum.replace(key.source[3], source).replace(key.destination[3], destination);
        // TTL, protocol and checksum. The TTL is the low byte of this little-endian word, so subtracting one from the
        // word decrements it.
        let word = frame.ip_word(8);
        let (old, new) = (word & 0xffff, (word & 0xffff) - 1);
        let checksum = !sum.replace(old, new).add(!(word >> 16) & 0xffff).folded();
        frame.set_ip_word(8, new | (u32::from(checksum) << 16));
        frame.set_ip_word(12, source);
        frame.set_ip_word(16, destination);
    }
    sum
}

/// The MTU that the packet exceeds, as its sender would measure it; `None` if it fits. `largest` is the length of the
/// packet, or of the largest segment in it, from the IP header on.
#[inline(always)]
fn exceeded_mtu<const V6: bool>(skb: *mut __sk_buff, flow: FlowEntry, largest: u32) -> Option<u32> {
    let mut mtu = largest;
    // SAFETY: the helper checks its arguments. It stores the device's MTU whatever it returns, unless there is no such
    // device; then the redirect fails.
    if unsafe { bpf_check_mtu(skb.cast(), read!(flow.0, egress), &raw mut mtu, 0, 0) } < 0 {
        return None;
    }
    if flow.changes_family() {
        mtu = if V6 { mtu + IPV6_GROWTH } else { mtu.saturating_sub(IPV6_GROWTH) };
    }
    (largest > mtu).then_some(mtu)
}
