//! What the programs did with the packet of this run, gathered while they run and written as one line when they end.

use aya_ebpf::{
    bindings::__sk_buff, btf_maps::PerCpuArray, helpers::generated::bpf_skb_load_bytes, macros::btf_map,
};
use aya_log_ebpf_macros::{debug, info};
use edge_common::flow::{DOWN, FlowKey, FlowReason, MAPPED};
use edge_ebpf::{
    headers::{IPV4_HEADER, IPV6_HEADER, TCP},
    read,
    trace::{has_room, is_traced},
};

use crate::{
    entry::FlowEntry,
    frame::{IPV4, IPV6},
};

/// The packet arrives: its source is the client, unless a flow says otherwise.
pub(crate) const ARRIVES: u32 = 0;
/// The local stack sends the packet: its destination is the client, unless a flow says otherwise.
pub(crate) const LEAVES: u32 = 1;

/// The flags of a TCP header are in its byte 13.
const TCP_START: u32 = 14;

/// The packet of this run, as it was before the programs changed it.
#[repr(C)]
struct Packet {
    client: [u32; 4],
    other: [u32; 4],
    /// Reasons noted, one bit each.
    reasons: u32,
    length: u32,
    client_port: u16,
    other_port: u16,
    flags: u8,
    is_tcp: u8,
    /// Whether the packet is one of a flow.
    has_flow: u8,
    /// Whether it is the first one of its direction that the flow carries.
    is_first: u8,
    header: [u8; IPV6_HEADER],
    tcp: [u8; TCP_START as usize],
}

#[btf_map]
static TRACE_PACKET: PerCpuArray<Packet, 1> = PerCpuArray::new();

#[inline(always)]
fn packet() -> Option<&'static mut Packet> {
    // SAFETY: the slot belongs to this CPU, on which tc programs do not interrupt each other; each program takes the
    // reference anew, and none is held across another's. Integers only: any bits are a value.
    TRACE_PACKET.get_ptr_mut(0).map(|found| unsafe { &mut *found })
}

#[inline(always)]
fn word(header: &[u8; IPV6_HEADER], at: usize) -> u32 {
    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// Notes the addresses of a packet. `link` is the length of its link header.
#[inline(never)]
pub(crate) fn begin(skb: *mut __sk_buff, link: u32, hook: u32) -> i32 {
    let Some(packet) = packet() else { return 0 };
    packet.reasons = 0;
    packet.has_flow = 0;
    packet.is_first = 0;
    packet.is_tcp = 0;
    packet.flags = 0;
    packet.client_port = 0;
    packet.other_port = 0;
    packet.client = [0; 4];
    packet.other = [0; 4];
    // SAFETY: the context of the program.
    let (protocol, length) = unsafe { ((*skb).protocol, (*skb).len) };
    packet.length = length.wrapping_sub(link);
    let header = packet.header.as_mut_ptr();
    let load = |offset: u32, into: *mut u8, bytes: u32| {
        // SAFETY: a helper that checks the offset; the buffers have the length that is asked for.
        unsafe { bpf_skb_load_bytes(skb.cast(), offset, into.cast(), bytes) == 0 }
    };
    let (source, destination, transport, next) = match protocol {
        IPV4 if load(link, header, IPV4_HEADER as u32) => {
            let address = |at: usize| [0, 0, MAPPED, word(&packet.header, at)];
            let length = u32::from(packet.header[0] & 15) * 4;
            (address(12), address(16), link + length, packet.header[9])
        }
        IPV6 if load(link, header, IPV6_HEADER as u32) => {
            let address = |at: usize| core::array::from_fn(|index| word(&packet.header, at + 4 * index));
            (address(8), address(24), link + IPV6_HEADER as u32, packet.header[6])
        }
        _ => return 0,
    };
    let mut ports = [0; 2];
    if next == TCP && load(transport, packet.tcp.as_mut_ptr(), TCP_START) {
        let tcp = &packet.tcp;
        ports = [u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]])];
        packet.flags = tcp[13];
        packet.is_tcp = 1;
    }
    if hook == ARRIVES {
        (packet.client, packet.other) = (source, destination);
        [packet.client_port, packet.other_port] = ports;
    } else {
        (packet.client, packet.other) = (destination, source);
        [packet.other_port, packet.client_port] = ports;
    }
    0
}

/// Notes the flow of the packet: the first one that is looked up in a run. It knows both ends.
#[inline(never)]
pub(crate) fn note_flow(key: &FlowKey, flow: FlowEntry) -> i32 {
    let Some(packet) = packet() else { return 0 };
    if packet.has_flow != 0 {
        return 0;
    }
    packet.has_flow = 1;
    packet.is_first = u8::from(read!(flow.0, packets) == 0);
    // The packet goes to `there`, and came from `here`.
    let to = flow.to();
    let here = (key.tuple.source, u16::from_be(key.tuple.ports as u16));
    let there = (to.destination, u16::from_be((to.ports >> 16) as u16));
    let (client, other) = if read!(flow.0, direction) == DOWN { (there, here) } else { (here, there) };
    (packet.client, packet.client_port) = client;
    (packet.other, packet.other_port) = other;
    0
}

/// Notes what is done with the packet.
#[inline(always)]
pub(crate) fn note(reason: FlowReason) {
    if let Some(packet) = packet() {
        packet.reasons |= bit(reason);
    }
}

const fn bit(reason: FlowReason) -> u32 {
    1 << reason as u32
}

#[inline(always)]
fn octets(address: [u32; 4]) -> [u8; 16] {
    let mut octets = [0; 16];
    for (word, bytes) in address.iter().zip(octets.as_chunks_mut::<4>().0) {
        *bytes = word.to_ne_bytes();
    }
    octets
}

/// Functions of their own, each with a line: the stack of the programs has no room for several at once.
macro_rules! lines {
    ($($level:ident $name:ident = $words:literal;)*) => { $(
        #[inline(never)]
        fn $name(packet: &Packet) -> i32 {
            if !has_room() {
                return 0;
            }
            $level!(
                (), target: "flow", "{:i} {} {:i} {} {} {} {}",
                octets(packet.client), packet.client_port, octets(packet.other), packet.other_port,
                packet.flags, packet.length, $words
            );
            0
        }
    )* };
}

lines! {
    info handed_over = "handed over: the kernel carries this direction, this is its first packet";
    info syn_ack = "dropped: a SYN-ACK on a live flow";
    info wrong_device = "dropped: it arrived on another device than its flow's";
    info malformed = "dropped: its headers contradict each other";
    info hop_limit = "dropped: its hop limit is used up";
    info too_big = "dropped: longer than the MTU of the way out; its sender gets a message";
    info refused = "refused: the kernel did not change the packet, or the device is gone";
    info guarded = "dropped: a RST or FIN of the local stack for a flow";
    info new_client = "passed to the stack: a SYN on an ended flow, which is deleted";
    debug for_socket = "passed to the stack: its socket still retransmits";
    debug syn = "forwarded: a SYN on a live flow, for its receiver to challenge";
    debug reset = "forwarded, and not believed: a RST at a number that its receiver does not expect";
    debug window = "forwarded, and not believed: outside the receiver's window";
    debug forwarded = "forwarded";
    debug translated = "translated: a router's message that a packet was too big";
    debug disbelieved = "passed to the stack: a message about a packet that is not in flight";
    debug fragment = "passed to the stack: a fragment";
    debug extended = "passed to the stack: IP options or extension headers";
    debug shaped = "changed: a SYN to a backend, which now offers what the client offered";
    debug no_flow = "passed to the stack: no flow";
}

/// Writes the line about the packet, if there is one to write. Each packet of a traced client has a line; of the
/// others those that are dropped or refused, and the first one of a flow.
#[inline(never)]
pub(crate) fn end(hook: u32) -> i32 {
    let Some(packet) = packet() else { return 0 };
    let packet = &*packet;
    let reasons = packet.reasons;
    let has = |reason| reasons & bit(reason) != 0;
    match () {
        () if has(FlowReason::Malformed) => return malformed(packet),
        () if has(FlowReason::Refused) => return refused(packet),
        () if has(FlowReason::TooBig) => return too_big(packet),
        () if has(FlowReason::WrongDevice) => return wrong_device(packet),
        () if has(FlowReason::HopLimit) => return hop_limit(packet),
        () if has(FlowReason::SynAck) => return syn_ack(packet),
        () if has(FlowReason::Guarded) => return guarded(packet),
        () if has(FlowReason::SynOnClosed) => return new_client(packet),
        () if has(FlowReason::Forwarded) && packet.is_first != 0 => return handed_over(packet),
        () => {}
    }
    if !is_traced(octets(packet.client)) {
        return 0;
    }
    match () {
        () if has(FlowReason::ForSocket) => for_socket(packet),
        () if has(FlowReason::SynOnLive) => syn(packet),
        () if has(FlowReason::ResetOutOfWindow) => reset(packet),
        () if has(FlowReason::OutOfWindow) => window(packet),
        () if has(FlowReason::Forwarded) => forwarded(packet),
        () if has(FlowReason::TooBigTranslated) => translated(packet),
        () if has(FlowReason::TooBigDisbelieved) => disbelieved(packet),
        () if has(FlowReason::Fragment) => fragment(packet),
        () if has(FlowReason::ExtensionHeader) => extended(packet),
        () if has(FlowReason::SynRewritten) => shaped(packet),
        () if hook == ARRIVES && packet.is_tcp != 0 && packet.has_flow == 0 => no_flow(packet),
        () => 0,
    }
}
