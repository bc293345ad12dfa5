//! The shield: drops packets of blocked sources, and SYNs of sources that open connections too fast, before the stack
//! spends anything on them.
//!
//! Minimum kernel: 5.9 (`bpf_ktime_get_boot_ns` 5.8, XDP links 5.9).
//!
//! There are four programs, which differ only in where they find the packet. Two run in XDP, and two at tc ingress, for
//! devices whose XDP hook another application uses. Of each pair one is for devices with an Ethernet header, the other
//! for devices whose packets begin with the IP header (PPP, tun, WireGuard: generic XDP passes the packet from its mac
//! header on, which is the IP header there).
//!
//! A packet that cannot be parsed passes: refusing malformed packets is the stack's work, and a parser that drops by
//! mistake locks the operator out. Fragments of blocked sources are dropped like other packets. The limit applies to
//! first fragments only, since the others have no TCP header.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "packet bytes and map values are raw pointers; the verifier proves their bounds"
)]
#![expect(
    clippy::inline_always,
    reason = "a bounds check holds for the verifier in the function that made it"
)]

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    btf_maps::{Array, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use edge_common::{
    rules::{TCP_ACK, TCP_SYN},
    shield::{Block, Counters, MAX_BLOCKS, MAX_NESTED, MAX_SOURCES, PORT_WORDS, SynLimit},
};
use edge_ebpf::{
    headers::{
        DESTINATION_OPTIONS, ETHERNET_HEADER, ETHERTYPE_8021AD, ETHERTYPE_8021Q, ETHERTYPE_IPV4,
        ETHERTYPE_IPV6, FRAGMENT, HOP_BY_HOP, IPV4_HEADER, IPV6_HEADER, ROUTING, TCP,
    },
    read,
    shared::Shared,
    trace, write,
};

edge_ebpf::program!();

/// Blocked prefixes, by IPv4-mapped address.
#[btf_map]
static BLOCKS: LpmTrie<[u8; 16], Block, { MAX_BLOCKS as usize }> = LpmTrie::new();
/// Packets dropped per prefix, by [`Block::counter`].
#[btf_map]
static BLOCK_PACKETS: PerCpuArray<u64, { MAX_BLOCKS as usize }> = PerCpuArray::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
#[btf_map]
static SYN_LIMIT: Array<SynLimit, 1> = Array::new();
/// The ports that the limit applies to, one bit per port.
#[btf_map]
static SYN_PORTS: Array<u32, { PORT_WORDS as usize }> = Array::new();
/// When the next connection of a source is due, in nanoseconds of `CLOCK_MONOTONIC`.
#[btf_map]
static SOURCES: LruHashMap<u64, u64, { MAX_SOURCES as usize }> = LruHashMap::new();

/// Bytes of a VLAN tag.
const VLAN_TAG: usize = 4;
/// VLAN tags looked through: 802.1Q inside 802.1ad. Packets with more pass.
const MAX_TAGS: usize = 2;
/// IPv6 extension headers looked through for TCP. The limit does not apply to packets with more.
const MAX_EXTENSIONS: usize = 4;

/// The source of a packet, and the offset of its TCP header if it has one.
struct Packet {
    source: [u8; 16],
    tcp: Option<usize>,
}

/// A packet, as the programs of either hook get it: the addresses of its first octet and of the one behind its last.
#[derive(Clone, Copy)]
struct Octets {
    start: usize,
    end: usize,
}

/// Whether a device's packets begin with an Ethernet header.
const HEADER: bool = true;
const NO_HEADER: bool = false;

#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the attribute hands the context over so")]
fn shield(ctx: XdpContext) -> u32 {
    if drops::<HEADER>(Octets { start: ctx.data(), end: ctx.data_end() }) { XDP_DROP } else { XDP_PASS }
}

#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the attribute hands the context over so")]
fn shield_l3(ctx: XdpContext) -> u32 {
    if drops::<NO_HEADER>(Octets { start: ctx.data(), end: ctx.data_end() }) { XDP_DROP } else { XDP_PASS }
}

// Packets that are not dropped go to the next program at tc.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the attribute hands the context over so")]
fn shield_tc(ctx: TcContext) -> i32 {
    if drops::<HEADER>(Octets { start: ctx.data(), end: ctx.data_end() }) {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the attribute hands the context over so")]
fn shield_tc_l3(ctx: TcContext) -> i32 {
    if drops::<NO_HEADER>(Octets { start: ctx.data(), end: ctx.data_end() }) {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn drops<const HAS_HEADER: bool>(octets: Octets) -> bool {
    // SAFETY: a lookup of this run, in an array of counters.
    let counters = COUNTERS.get_ptr_mut(0).and_then(|found| unsafe { Shared::new(found) });
    let Some(counters) = counters else { return false };
    // The only writer: the value is this CPU's, and its programs do not interrupt each other, since both hooks are in
    // the receive path. User space reads it meanwhile.
    write!(counters, seen = read!(counters, seen).wrapping_add(1));
    let packet = if HAS_HEADER { parse(octets) } else { parse_ip(octets) };
    let Some(packet) = packet else { return false };
    if is_blocked(packet.source) {
        let bytes = (octets.end - octets.start) as u64;
        write!(counters, blocked = read!(counters, blocked).wrapping_add(1));
        write!(counters, blocked_bytes = read!(counters, blocked_bytes).wrapping_add(bytes));
        trace::blocked(&packet.source, bytes as u32);
        return true;
    }
    if packet.tcp.is_some_and(|tcp| is_too_fast(octets, packet.source, tcp)) {
        write!(counters, limited = read!(counters, limited).wrapping_add(1));
        trace::limited(&packet.source, (octets.end - octets.start) as u32);
        return true;
    }
    false
}

/// `N` octets at `offset`; `None` if the packet ends before.
#[inline(always)]
fn bytes<const N: usize>(octets: Octets, offset: usize) -> Option<[u8; N]> {
    let start = octets.start + offset;
    if start + N > octets.end {
        return None;
    }
    // SAFETY: within the packet, as just checked; octets need no alignment.
    Some(unsafe { *(start as *const [u8; N]) })
}

/// Parses a packet without a link header, by the version in its IP header.
#[inline(always)]
fn parse_ip(octets: Octets) -> Option<Packet> {
    // The length of the shorter header. The verifier learns nothing from a check of the first octet alone, which
    // compares the start itself with the end (`find_good_pkt_pointers`).
    let [version, ..]: [u8; IPV4_HEADER] = bytes(octets, 0)?;
    match version >> 4 {
        4 => ipv4(octets, 0),
        6 => ipv6(octets, 0),
        _ => None,
    }
}

#[inline(always)]
fn parse(octets: Octets) -> Option<Packet> {
    let mut network = ETHERNET_HEADER;
    let mut ethertype = u16::from_be_bytes(bytes(octets, ETHERNET_HEADER - 2)?);
    for _ in 0..MAX_TAGS {
        if ethertype != ETHERTYPE_8021Q && ethertype != ETHERTYPE_8021AD {
            break;
        }
        network += VLAN_TAG;
        ethertype = u16::from_be_bytes(bytes(octets, network - 2)?);
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(octets, network),
        ETHERTYPE_IPV6 => ipv6(octets, network),
        _ => None,
    }
}

/// RFC 791 §3.1.
#[inline(always)]
fn ipv4(octets: Octets, network: usize) -> Option<Packet> {
    let header: [u8; IPV4_HEADER] = bytes(octets, network)?;
    let (version, words) = (header[0] >> 4, header[0] & 0x0f);
    if version != 4 || words < 5 {
        return None;
    }
    let mut source = [0; 16];
    source[10] = 0xff;
    source[11] = 0xff;
    source[12] = header[12];
    source[13] = header[13];
    source[14] = header[14];
    source[15] = header[15];
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let tcp = (fragment_offset == 0 && header[9] == TCP).then_some(network + 4 * words as usize);
    Some(Packet { source, tcp })
}

/// RFC 8200 §3 and §4.
#[inline(always)]
fn ipv6(octets: Octets, network: usize) -> Option<Packet> {
    let [version, ..]: [u8; IPV6_HEADER] = bytes(octets, network)?;
    if version >> 4 != 6 {
        return None;
    }
    let [mut next]: [u8; 1] = bytes(octets, network + 6)?;
    let source = bytes(octets, network + 8)?;
    let mut offset = network + IPV6_HEADER;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let Some([following, eights]) = bytes(octets, offset) else { break };
                next = following;
                offset += 8 + 8 * eights as usize;
            }
            FRAGMENT => {
                let Some([following, _, high, low]) = bytes(octets, offset) else { break };
                if u16::from_be_bytes([high, low]) & !7 != 0 {
                    break;
                }
                next = following;
                offset += 8;
            }
            _ => break,
        }
    }
    Some(Packet { source, tcp: (next == TCP).then_some(offset) })
}

/// Whether the longest unexpired prefix of a source exists.
#[inline(always)]
fn is_blocked(source: [u8; 16]) -> bool {
    let mut key = Key::new(128, source);
    for _ in 0..MAX_NESTED {
        // A reference is right here: a node of the trie never changes once it is inserted, and its memory is not reused
        // before a grace period is over (`kernel/bpf/lpm_trie.c`).
        let Some(block) = BLOCKS.get(&key) else { return false };
        if block.origins & Block::LIST != 0 || holds(block) {
            if let Some(packets) = BLOCK_PACKETS.get_ptr_mut(block.counter) {
                // SAFETY: the value of this CPU.
                unsafe { *packets += 1 };
            }
            return true;
        }
        // This prefix has expired and waits for the daemon to remove it; a shorter one may still hold.
        let Some(shorter) = u32::from(block.prefix_len).checked_sub(1) else { return false };
        key.prefix_len = shorter;
    }
    false
}

#[inline(always)]
fn holds(block: &Block) -> bool {
    // SAFETY: a helper without arguments.
    block.until == Block::FOREVER || unsafe { bpf_ktime_get_boot_ns() } < block.until
}

/// Whether this is a SYN to a port of the edge, ahead of its source's schedule.
#[inline(always)]
fn is_too_fast(octets: Octets, source: [u8; 16], tcp: usize) -> bool {
    // SAFETY: a lookup of this run, in an array of limits.
    let limit = SYN_LIMIT.get_ptr_mut(0).and_then(|found| unsafe { Shared::<SynLimit>::new(found) });
    let Some(limit) = limit else { return false };
    // Each read once: the daemon may change the limit meanwhile.
    let (interval, tolerance) = (read!(limit, interval), read!(limit, tolerance));
    if interval == 0 {
        return false;
    }
    let Some(header) = bytes::<14>(octets, tcp) else { return false };
    if header[13] & (TCP_SYN | TCP_ACK) != TCP_SYN {
        return false;
    }
    let port = u32::from(u16::from_be_bytes([header[2], header[3]]));
    // SAFETY: a lookup of this run, in an array of words.
    let ports = SYN_PORTS.get_ptr_mut(port / 32).and_then(|found| unsafe { Shared::new(found) });
    if ports.is_none_or(|ports| ports.load() & (1 << (port % 32)) == 0) {
        return false;
    }
    let source = bucket(source);
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a lookup of this run, in a map of times.
    let due = SOURCES.get_ptr_mut(source).and_then(|found| unsafe { Shared::new(found) });
    // Two CPUs may read the same time, or another CPU may reuse the entry for another source, and one SYN more passes.
    // That is cheaper than a lock per packet.
    let due = due.map_or(now, Shared::load).max(now);
    if due - now > tolerance {
        return true;
    }
    // A full table forgets another source. If this source cannot be remembered, its SYN passes all the same.
    let _ = SOURCES.insert(source, due + interval, 0);
    false
}

/// The key of a source: an IPv4 address, or the /64 of an IPv6 address. Mapped addresses are in no routable /64.
#[inline(always)]
fn bucket(source: [u8; 16]) -> u64 {
    let upper = source.first_chunk().map_or(0, |octets| u64::from_be_bytes(*octets));
    let lower = source.last_chunk().map_or(0, |octets| u64::from_be_bytes(*octets));
    if upper == 0 && lower >> 32 == 0xffff { lower & 0xffff_ffff } else { upper }
}
