//! Random packets into the shield by `BPF_PROG_TEST_RUN`: it passes or drops, changes nothing, and keeps its blocks.
//!
//! `EDGE_SEED=N` repeats a run; the seed is printed where the test fails.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

use std::{
    env,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, LpmTrie, lpm_trie::Key},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use caps::Capability;
use edge::kernel::capability;
use edge_common::shield::{Block, SynLimit};
use fastrand::Rng;

const OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/shield.bpf.o");
const PASS: u32 = 2;
const DROP: u32 = 1;
const TIME: Duration = Duration::from_secs(2);

#[test]
fn no_packet_breaks_the_shield() {
    if !capability::effective().unwrap().contains(&Capability::CAP_BPF) {
        eprintln!("skipped: loading a program takes {}", Capability::CAP_BPF);
        return;
    }
    let seed =
        env::var("EDGE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("EDGE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut ebpf = Ebpf::load(OBJECT).unwrap();
    let program: &mut Xdp = ebpf.program_mut("shield").unwrap().try_into().unwrap();
    program.load().unwrap();
    let blocked = block(&mut ebpf);
    limit(&mut ebpf);

    let program: &Xdp = ebpf.program("shield").unwrap().try_into().unwrap();
    let end = Instant::now() + TIME;
    let (mut passed, mut dropped) = (0_u64, 0_u64);
    while Instant::now() < end {
        for _ in 0..100 {
            let packet = packet(&mut random);
            let mut out = vec![0; packet.len()];
            let options = TestRunOptions {
                data_in: Some(&packet),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            };
            match program.test_run(options).unwrap().return_value {
                PASS => passed += 1,
                DROP => dropped += 1,
                other => panic!("the verdict {other} for {packet:02x?}"),
            }
            assert_eq!(out, packet, "the shield changes nothing");
        }
    }
    println!("{passed} passed, {dropped} dropped");
    // A generator whose packets all meet the same fate tries nothing.
    assert!(passed > 100 && dropped > 100, "{passed} passed, {dropped} dropped");

    let blocks: LpmTrie<_, [u8; 16], Block> = ebpf.map("BLOCKS").unwrap().try_into().unwrap();
    for (key, block) in blocked {
        assert_eq!(blocks.get(&key, 0).unwrap(), block, "a block was changed");
    }
}

/// Blocks a half of each family and narrower prefixes in it, one of which has expired.
fn block(ebpf: &mut Ebpf) -> Vec<(Key<[u8; 16]>, Block)> {
    let v4 = |a, length: u16| (Ipv4Addr::new(a, 0, 0, 0).to_ipv6_mapped().octets(), 96 + length);
    let v6 = |first, length| (Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).octets(), length);
    let mut blocks: LpmTrie<_, [u8; 16], Block> = ebpf.map_mut("BLOCKS").unwrap().try_into().unwrap();
    let prefixes =
        [(v4(0, 1), Block::FOREVER), (v4(10, 8), 1), (v6(0x8000, 1), Block::FOREVER), (v6(0xfd00, 8), 1)];
    let mut all = Vec::new();
    for (counter, ((octets, prefix_len), until)) in (1..).zip(prefixes) {
        let block = Block { until, counter, origins: Block::OPERATOR, prefix_len };
        let key = Key::new(prefix_len.into(), octets);
        blocks.insert(&key, block, 0).unwrap();
        all.push((key, block));
    }
    all
}

/// Limits new connections to a port.
fn limit(ebpf: &mut Ebpf) {
    let limit = SynLimit { interval: 1_000_000_000, tolerance: 0 };
    let mut map: Array<_, SynLimit> = ebpf.map_mut("SYN_LIMIT").unwrap().try_into().unwrap();
    map.set(0, limit, 0).unwrap();
    let mut ports: Array<_, u32> = ebpf.map_mut("SYN_PORTS").unwrap().try_into().unwrap();
    ports.set(443 / 32, 1 << (443 % 32), 0).unwrap();
}

/// A TCP, UDP or other packet of either family, its headers in part at random, cut somewhere.
fn packet(random: &mut Rng) -> Vec<u8> {
    let mut frame = vec![0; 12];
    random.fill(&mut frame);
    // VLAN tags in front, no, one or several.
    for _ in 0..random.usize(..4).saturating_sub(1) {
        frame.extend(if random.bool() { [0x81, 0] } else { [0x88, 0xa8] });
        frame.extend([random.u8(..), random.u8(..)]);
    }
    let protocol = [6, 6, 6, 17, 44, 0, 60, random.u8(..)][random.usize(..8)];
    if random.bool() {
        let options = if random.u8(..4) == 0 { random.u8(..16) } else { 5 };
        frame.extend([8, 0, 0x40 | options, 0]);
        frame.extend([random.u8(..), random.u8(..), 0, 0, random.u8(..) & random.u8(..), random.u8(..)]);
        frame.extend([64, protocol, 0, 0]);
        frame.extend((0..8 + 4 * usize::from(options.saturating_sub(5))).map(|_| random.u8(..)));
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, random.u8(..), random.u8(..), protocol, 64]);
        frame.extend((0..32).map(|_| random.u8(..)));
    }
    let mut rest = vec![0; random.usize(..80)];
    random.fill(&mut rest);
    if rest.len() >= 20 && random.bool() {
        rest[2..4].copy_from_slice(&443_u16.to_be_bytes());
        (rest[12], rest[13]) = (5 << 4, 2);
    }
    frame.extend(rest);
    for _ in 0..random.usize(..3) {
        let at = random.usize(..frame.len());
        frame[at] = random.u8(..);
    }
    // The kernel's test run takes no frame shorter than an Ethernet header.
    let least = 14;
    if random.u8(..4) == 0 {
        frame.truncate(random.usize(least..=frame.len()));
    }
    frame
}
