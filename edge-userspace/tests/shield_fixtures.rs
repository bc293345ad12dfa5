//! Packets into the shield, verdicts out, through `BPF_PROG_TEST_RUN`: no network, but the rights to load a
//! program. Without them each test says so and ends.
#![expect(clippy::unwrap_used, reason = "fixtures end the test where they fail")]

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use caps::Capability;
use edge::kernel::{boot_time, capability};
use edge_common::shield::{Block, Counters, SynLimit};

const OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/shield.bpf.o");

const PASS: u32 = 2;
const DROP: u32 = 1;

struct Shield {
    ebpf: Ebpf,
    blocks: LpmTrie<MapData, [u8; 16], Block>,
}

impl Shield {
    /// `None`, with the reason printed, where programs cannot be loaded.
    fn load() -> Option<Self> {
        let lacking = Capability::CAP_BPF;
        if !capability::effective().unwrap().contains(&lacking) {
            eprintln!("skipped: loading a program takes {lacking}");
            return None;
        }
        let mut ebpf = Ebpf::load(OBJECT).unwrap();
        for name in ["shield", "shield_l3"] {
            let program: &mut Xdp = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        for name in ["shield_tc", "shield_tc_l3"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let blocks = ebpf.take_map("BLOCKS").unwrap().try_into().unwrap();
        Some(Self { ebpf, blocks })
    }

    fn block(&mut self, address: impl Into<Source>, length: u16, until: u64, origins: u16) {
        let Source(octets, family_bits) = address.into();
        let length = family_bits + length;
        let block = Block { until, counter: length.into(), origins, prefix_len: length };
        self.blocks.insert(&Key::new(length.into(), octets), block, 0).unwrap();
    }

    fn limit(&mut self, interval: Duration, burst: u32, ports: &[u16]) {
        let interval = u64::try_from(interval.as_nanos()).unwrap();
        let limit = SynLimit { interval, tolerance: interval * u64::from(burst - 1) };
        let mut map: Array<_, SynLimit> = self.ebpf.map_mut("SYN_LIMIT").unwrap().try_into().unwrap();
        map.set(0, limit, 0).unwrap();
        let mut map: Array<_, u32> = self.ebpf.map_mut("SYN_PORTS").unwrap().try_into().unwrap();
        for port in ports {
            let word = u32::from(*port / 32);
            let others = map.get(&word, 0).unwrap();
            map.set(word, others | 1 << (port % 32), 0).unwrap();
        }
    }

    /// The verdict on a packet. Also checks that the packet is unchanged.
    fn verdict(&self, packet: &[u8]) -> u32 {
        self.verdict_of("shield", packet)
    }

    /// The same by one of the programs in XDP.
    fn verdict_of(&self, program: &str, packet: &[u8]) -> u32 {
        let program: &Xdp = self.ebpf.program(program).unwrap().try_into().unwrap();
        let mut out = vec![0; packet.len()];
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = program.test_run(options).unwrap();
        assert_eq!(out, packet, "the shield changes nothing");
        result.return_value
    }

    fn counters(&self) -> Counters {
        let map: PerCpuArray<_, Counters> = self.ebpf.map("COUNTERS").unwrap().try_into().unwrap();
        map.get(&0, 0).unwrap().iter().fold(Counters::default(), |sum, cpu| Counters {
            seen: sum.seen + cpu.seen,
            blocked: sum.blocked + cpu.blocked,
            blocked_bytes: sum.blocked_bytes + cpu.blocked_bytes,
            limited: sum.limited + cpu.limited,
        })
    }

    fn packets(&self, counter: u32) -> u64 {
        let map: PerCpuArray<_, u64> = self.ebpf.map("BLOCK_PACKETS").unwrap().try_into().unwrap();
        map.get(&counter, 0).unwrap().iter().sum()
    }
}

/// An address as the trie holds it, and the bits that its family takes in front of a prefix's length.
struct Source([u8; 16], u16);

impl From<Ipv4Addr> for Source {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.to_ipv6_mapped().octets(), 96)
    }
}

impl From<Ipv6Addr> for Source {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.octets(), 0)
    }
}

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

fn tcp(port: u16, flags: u8) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    header
}

/// `options` in words of four octets; `fragment` as in the header: flags and the offset in eights.
fn ipv4_with(source: Ipv4Addr, options: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x40 | (5 + options), 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet.extend(source.octets());
    packet.extend([192, 0, 2, 1]);
    packet.extend(vec![1; usize::from(options) * 4]);
    packet.extend(payload);
    packet
}

fn ipv4(source: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    ipv4_with(source, 0, 0, payload)
}

/// `extensions`: type and content of each, from the first to the last.
fn ipv6_with(source: Ipv6Addr, extensions: &[(u8, Vec<u8>)], payload: &[u8]) -> Vec<u8> {
    let types: Vec<u8> = extensions.iter().map(|extension| extension.0).chain([6]).collect();
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, types[0], 64];
    packet.extend(source.octets());
    packet.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    for ((_, content), next) in extensions.iter().zip(&types[1..]) {
        packet.push(*next);
        packet.extend(content);
    }
    packet.extend(payload);
    packet
}

fn ipv6(source: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    ipv6_with(source, &[], payload)
}

/// An Ethernet frame with these tags in front of the packet.
fn frame(tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet);
    frame
}

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn blocked_prefixes_of_both_families_are_dropped_and_counted() {
    let Some(mut shield) = Shield::load() else { return };
    let payload = tcp(443, ACK);
    let bad = [
        frame(&[], &ipv4(v4("198.51.100.77"), &payload)),
        frame(&[], &ipv6(v6("2001:db8:bad::9"), &payload)),
    ];
    let good =
        [frame(&[], &ipv4(v4("198.51.101.1"), &payload)), frame(&[], &ipv6(v6("2001:db8:bae::"), &payload))];
    for packet in bad.iter().chain(&good) {
        assert_eq!(shield.verdict(packet), PASS, "nothing is blocked yet");
    }
    shield.block(v4("198.51.100.0"), 24, Block::FOREVER, Block::OPERATOR);
    shield.block(v6("2001:db8:bad::"), 48, 0, Block::LIST);
    for packet in &bad {
        assert_eq!(shield.verdict(packet), DROP);
    }
    for packet in &good {
        assert_eq!(shield.verdict(packet), PASS);
    }
    assert_eq!((shield.packets(96 + 24), shield.packets(48)), (1, 1));
    let bytes: usize = bad.iter().map(Vec::len).sum();
    let expected = Counters { seen: 8, blocked: 2, blocked_bytes: bytes as u64, limited: 0 };
    assert_eq!(shield.counters(), expected);
}

#[test]
fn tags_options_fragments_and_other_protocols_do_not_hide_a_source() {
    let Some(mut shield) = Shield::load() else { return };
    let (four, six) = (v4("203.0.113.5"), v6("2001:db8:5::5"));
    shield.block(four, 32, Block::FOREVER, Block::OPERATOR);
    shield.block(six, 128, Block::FOREVER, Block::OPERATOR);
    let segment = tcp(443, SYN);
    let mut udp = ipv4(four, &segment);
    udp[9] = 17;
    let packets = [
        ipv4(four, &segment),
        ipv4(four, &[]),
        ipv4_with(four, 10, 0, &segment),
        ipv4_with(four, 0, 0x2000, &segment), // the first fragment
        ipv4_with(four, 0, 185, &segment),    // a later one
        udp,
        ipv6(six, &segment),
        ipv6(six, &[]),
        ipv6_with(six, &[(44, vec![0, 5, 200, 0, 0, 0, 0])], &segment),
        ipv6_with(
            six,
            &[(0, vec![0; 7]), (60, vec![0; 7]), (43, vec![0; 7]), (60, vec![0; 7]), (60, vec![0; 7])],
            &segment,
        ),
    ];
    for packet in &packets {
        for tags in [&[][..], &[VLAN], &[SERVICE_VLAN], &[SERVICE_VLAN, VLAN]] {
            assert_eq!(shield.verdict(&frame(tags, packet)), DROP, "{tags:x?} {packet:x?}");
        }
    }
}

#[test]
fn what_cannot_be_parsed_passes() {
    let Some(mut shield) = Shield::load() else { return };
    let (four, six) = (v4("203.0.113.5"), v6("2001:db8:5::5"));
    shield.block(v4("0.0.0.0"), 0, Block::FOREVER, Block::OPERATOR);
    shield.block(v6("2000::"), 3, Block::FOREVER, Block::OPERATOR);
    shield.limit(Duration::from_hours(1), 1, &[443]);
    let segment = tcp(443, SYN);
    for tags in [&[][..], &[VLAN], &[SERVICE_VLAN, VLAN]] {
        let link = 14 + 4 * tags.len();
        for (packet, header) in [(ipv4(four, &segment), 20), (ipv6(six, &segment), 40)] {
            let whole = frame(tags, &packet);
            // The kernel takes no frame shorter than an Ethernet header.
            for length in 14..=whole.len() {
                let expected = if length < link + header { PASS } else { DROP };
                assert_eq!(shield.verdict(&whole[..length]), expected, "{length} octets of {whole:x?}");
            }
        }
    }
    let strange = |change: fn(&mut Vec<u8>)| {
        let mut packet = frame(&[], &ipv4(four, &segment));
        change(&mut packet);
        packet
    };
    for packet in [
        strange(|p| p[12..14].copy_from_slice(&[0x08, 0x06])), // ARP
        strange(|p| p[12..14].copy_from_slice(&[0x86, 0xdd])), // says IPv6, is IPv4
        strange(|p| p[14] = 0x44),                             // a header of 16 octets
        strange(|p| p[14] = 0x65),                             // version 6
        frame(&[SERVICE_VLAN, VLAN, VLAN], &ipv4(four, &segment)),
    ] {
        assert_eq!(shield.verdict(&packet), PASS, "{packet:x?}");
    }
}

#[test]
fn a_block_ends_when_its_time_is_over_and_does_not_hide_a_wider_one() {
    let Some(mut shield) = Shield::load() else { return };
    let packet = frame(&[], &ipv4(v4("10.1.2.3"), &tcp(443, ACK)));
    let (past, future) = (boot_time(), boot_time() + 3_600_000_000_000);
    shield.block(v4("10.1.2.3"), 32, past, Block::OPERATOR);
    assert_eq!(shield.verdict(&packet), PASS, "over");
    shield.block(v4("10.1.2.3"), 32, past, Block::OPERATOR | Block::LIST);
    assert_eq!(shield.verdict(&packet), DROP, "a list names it still");
    shield.block(v4("10.1.2.3"), 32, future, Block::OPERATOR);
    assert_eq!(shield.verdict(&packet), DROP, "its time lasts");
    shield.block(v4("10.1.2.3"), 32, past, Block::OPERATOR);
    shield.block(v4("10.1.2.0"), 24, past, Block::OPERATOR);
    shield.block(v4("10.0.0.0"), 8, future, Block::OPERATOR);
    assert_eq!(shield.verdict(&packet), DROP, "the /8 holds behind two that are over");
    assert_eq!(shield.packets(96 + 8), 1);
    shield.block(v4("10.0.0.0"), 8, past, Block::OPERATOR);
    assert_eq!(shield.verdict(&packet), PASS);
    shield.block(v4("0.0.0.0"), 0, past, Block::OPERATOR);
    shield.block(v6("::"), 0, past, Block::OPERATOR);
    assert_eq!(shield.verdict(&packet), PASS, "the search ends at the root");
}

#[test]
fn a_source_that_connects_too_fast_loses_its_syns_alone() {
    let Some(mut shield) = Shield::load() else { return };
    let syn = |source: &str, port| frame(&[], &ipv4(v4(source), &tcp(port, SYN)));
    for _ in 0..10 {
        assert_eq!(shield.verdict(&syn("192.0.2.7", 443)), PASS, "no limit is set");
    }
    shield.limit(Duration::from_hours(1), 3, &[443, 65_535]);
    for _ in 0..3 {
        assert_eq!(shield.verdict(&syn("192.0.2.7", 443)), PASS);
    }
    for port in [443, 65_535] {
        assert_eq!(shield.verdict(&syn("192.0.2.7", port)), DROP);
        assert_eq!(
            shield.verdict(&frame(&[VLAN], &ipv4_with(v4("192.0.2.7"), 10, 0, &tcp(port, SYN)))),
            DROP
        );
    }
    assert_eq!(shield.counters().limited, 4);
    let from = |segment: &[u8]| frame(&[], &ipv4(v4("192.0.2.7"), segment));
    for packet in [
        syn("192.0.2.7", 22),
        syn("192.0.2.8", 443),
        from(&tcp(443, ACK)),
        from(&tcp(443, SYN_ACK)),
        from(&tcp(443, SYN)[..13]),
        frame(&[], &ipv4_with(v4("192.0.2.7"), 0, 3, &tcp(443, SYN))),
    ] {
        assert_eq!(shield.verdict(&packet), PASS, "{packet:x?}");
    }
}

#[test]
fn addresses_of_one_ipv6_subnet_share_a_limit_whatever_stands_before_tcp() {
    let Some(mut shield) = Shield::load() else { return };
    shield.limit(Duration::from_hours(1), 1, &[443]);
    let syn = tcp(443, SYN);
    assert_eq!(shield.verdict(&frame(&[], &ipv6(v6("2001:db8:1:2::3"), &syn))), PASS);
    let same = v6("2001:db8:1:2:ffff::4");
    let options = |length: u8| {
        let mut content = vec![length];
        content.extend(vec![0; 6 + 8 * usize::from(length)]);
        content
    };
    for extensions in [
        vec![],
        vec![(0, options(0))],
        vec![(0, options(2)), (60, options(1)), (43, options(0))],
        vec![(44, vec![0, 0, 1, 0, 0, 0, 9])],
    ] {
        assert_eq!(shield.verdict(&frame(&[], &ipv6_with(same, &extensions, &syn))), DROP, "{extensions:?}");
    }
    for extensions in
        [vec![(44, vec![0, 0, 8, 0, 0, 0, 9])], vec![(51, options(0))], vec![(60, options(0)); 5]]
    {
        let packet = frame(&[], &ipv6_with(same, &extensions, &syn));
        assert_eq!(shield.verdict(&packet), PASS, "no TCP header is in sight: {extensions:?}");
    }
    assert_eq!(shield.verdict(&frame(&[], &ipv6(v6("2001:db8:1:3::3"), &syn))), PASS);
}

#[test]
fn the_limit_refills_with_time() {
    let Some(mut shield) = Shield::load() else { return };
    let syn = frame(&[], &ipv4(v4("192.0.2.9"), &tcp(80, SYN)));
    let interval = Duration::from_millis(30);
    shield.limit(interval, 1, &[80]);
    let start = Instant::now();
    assert_eq!(shield.verdict(&syn), PASS);
    let mut passed = 1;
    while start.elapsed() < interval * 4 {
        passed += u32::from(shield.verdict(&syn) == PASS);
    }
    let elapsed = start.elapsed();
    // Never more than the schedule has room for; fewer where this thread was kept waiting.
    let room = elapsed.as_nanos() / interval.as_nanos() + 1;
    assert!(passed >= 2 && u128::from(passed) <= room, "{passed} SYNs passed in {elapsed:?}");
}

#[test]
fn packets_without_a_link_header_are_told_by_their_version() {
    let Some(mut shield) = Shield::load() else { return };
    let (four, six) = (v4("203.0.113.5"), v6("2001:db8:5::5"));
    shield.block(four, 32, Block::FOREVER, Block::OPERATOR);
    shield.block(six, 128, Block::FOREVER, Block::OPERATOR);
    let segment = tcp(443, ACK);
    for packet in [ipv4(four, &segment), ipv4_with(four, 10, 0, &segment), ipv6(six, &segment)] {
        assert_eq!(shield.verdict_of("shield_l3", &packet), DROP, "{packet:x?}");
        assert_eq!(shield.verdict_of("shield_l3", &frame(&[], &packet)), PASS, "that is no IP header");
        assert_eq!(shield.verdict(&packet), PASS, "and this no Ethernet header");
    }
    let other = ipv4(v4("203.0.113.6"), &segment);
    assert_eq!(shield.verdict_of("shield_l3", &other), PASS);
    shield.limit(Duration::from_hours(1), 1, &[443]);
    let syn = ipv4(v4("203.0.113.7"), &tcp(443, SYN));
    assert_eq!(shield.verdict_of("shield_l3", &syn), PASS);
    assert_eq!(shield.verdict_of("shield_l3", &syn), DROP, "the second within an hour");
}
