//! Random packets: whatever arrives, the programs end with one of their verdicts, leave the daemon's part of an entry
//! alone, and what they send on has right checksums where it arrived with right ones.
//!
//! `EDGE_SEED=N` repeats a run; the seed is printed where the test fails.

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use edge_common::flow::{Flow, Pending, WATCHED};
use fastrand::Rng;

use crate::{
    lab::{Arrival, DROPPED, LOOPBACK, Lab, PASSED, Pair, REDIRECTED, WINDOW},
    packet::{ACK, Choice, ETHERNET, FIN, PSH, Packet, RST, SYN, assert_checksums},
    path_mtu::too_big,
};

/// How long each combination of families is tried.
const TIME: Duration = Duration::from_millis(800);
const FAMILIES: [(bool, bool); 4] = [(false, false), (true, true), (false, true), (true, false)];
const INGRESS: [&str; 2] = ["ingress_l2", "ingress_l3"];
const EGRESS: [&str; 2] = ["egress_l2", "egress_l3"];

/// A random frame.
struct Frame {
    bytes: Vec<u8>,
    /// Whether its checksums and lengths are right, so that what is made of it has to have right ones too.
    is_sound: bool,
    is_tcp: bool,
}

#[test]
fn no_packet_breaks_a_flow() {
    let Some(mut lab) = Lab::new() else { return };
    let seed =
        env::var("EDGE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("EDGE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut verdicts: BTreeMap<u32, u64> = BTreeMap::new();
    for (client_v6, backend_v6) in FAMILIES {
        let pair = Pair::new(client_v6, backend_v6);
        let end = Instant::now() + TIME;
        while Instant::now() < end {
            install(&mut lab, &pair, &mut random);
            // A flow changes with what it carries; some packets later a new one takes its place.
            for _ in 0..random.usize(1..200) {
                let verdict = send(&lab, &pair, &mut random);
                *verdicts.entry(verdict).or_default() += 1;
            }
            lab.events();
        }
        let _ = (lab.flows.remove(&pair.up_key()), lab.flows.remove(&pair.down_key()));
    }
    println!("verdicts: {verdicts:?}");
    // A generator whose packets all meet the same fate tries nothing.
    for verdict in [PASSED, DROPPED, REDIRECTED] {
        let count = verdicts.get(&verdict).copied().unwrap_or(0);
        assert!(count > 100, "too few packets with the verdict {verdict}: {verdicts:?}");
    }
}

/// Installs the pair anew, sometimes as a hand-over that is not finished.
fn install(lab: &mut Lab, pair: &Pair, random: &mut Rng) {
    let mut pair = *pair;
    if random.u8(..4) == 0 {
        pair.up.flags[WATCHED] = 1;
        pair.down.flags[WATCHED] = 1;
        let near = |number: u32, random: &mut Rng| number.wrapping_add(random.u32(..1000));
        let watch = [near(pair.up.acked, random), near(pair.down.acked, random)];
        let pending = Pending { up_key: pair.up_key(), watch, ..Pending::default() };
        lab.pending.insert(pair.up.id, pending, 0).unwrap();
    }
    lab.install(&pair);
}

/// Sends one packet through one of the programs and checks what has to hold.
fn send(lab: &Lab, pair: &Pair, random: &mut Rng) -> u32 {
    let frame = frame(pair, random);
    let program = match random.u8(..10) {
        0..8 => INGRESS[0],
        8 => INGRESS[1],
        _ => EGRESS[random.usize(..2)],
    };
    let is_ingress = INGRESS.contains(&program);
    let device = if random.u8(..16) == 0 { random.u32(..4) } else { LOOPBACK };
    let segment_size = if random.u8(..8) == 0 { random.u32(1..1500) } else { 0 };
    let arrival = Arrival { device: if is_ingress { device } else { 0 }, segment_size };
    let (verdict, out) = lab.through(program, &frame.bytes, arrival);
    match verdict {
        // Messages of routers are translated, and a socket's segments changed on egress.
        PASSED if frame.is_tcp && is_ingress => {
            assert_eq!(out, frame.bytes, "{program}: passed, but changed");
        }
        REDIRECTED if frame.is_sound && program == INGRESS[0] && segment_size == 0 => assert_checksums(&out),
        PASSED | DROPPED | REDIRECTED => {}
        other => panic!("{program}: the verdict {other} for {:02x?}", frame.bytes),
    }
    for (key, installed) in [(pair.up_key(), &pair.up), (pair.down_key(), &pair.down)] {
        // A SYN on a closed flow removes it.
        if let Ok(now) = lab.flows.get(&key, 0) {
            assert_eq!(
                written_by_the_daemon(&now),
                written_by_the_daemon(installed),
                "after {:02x?}",
                frame.bytes
            );
        }
    }
    verdict
}

/// An entry without what the programs note in it.
fn written_by_the_daemon(flow: &Flow) -> Flow {
    Flow {
        to: flow.to,
        seq_delta: flow.seq_delta,
        ack_delta: flow.ack_delta,
        tsval_delta: flow.tsval_delta,
        tsecr_delta: flow.tsecr_delta,
        ingress: flow.ingress,
        egress: flow.egress,
        scales: flow.scales,
        direction: flow.direction,
        shape: flow.shape,
        start: flow.start,
        label: flow.label,
        id: flow.id,
        accepted: flow.accepted,
        connect_time: flow.connect_time,
        ..Flow::default()
    }
}

fn frame(pair: &Pair, random: &mut Rng) -> Frame {
    let packet = packet(pair, random);
    let (mut bytes, is_tcp) = if random.u8(..12) == 0 {
        // A router speaks of what the edge sent on, so of the other leg's addresses.
        let kept = [8, 20][random.usize(..2)];
        (too_big(&packet, random.u16(..), kept), false)
    } else {
        (packet.frame(), true)
    };
    if random.u8(..3) != 0 {
        return Frame { bytes, is_sound: true, is_tcp };
    }
    // The kernel's test run takes no frame without an IP header.
    let least = ETHERNET + 40;
    match random.u8(..4) {
        0 => bytes.truncate(random.usize(least..=bytes.len().max(least))),
        1 => bytes.extend((0..random.usize(..64)).map(|_| random.u8(..))),
        2 => random.fill(&mut bytes[ETHERNET..]),
        _ => {}
    }
    for _ in 0..random.usize(..6) {
        let at = random.usize(..bytes.len());
        bytes[at] = if random.bool() { random.u8(..) } else { bytes[at] ^ 1 << random.u8(..8) };
    }
    Frame { bytes, is_sound: false, is_tcp: false }
}

/// A packet of either direction, or of the edge's own on either leg; its numbers mostly near those of the flow.
fn packet(pair: &Pair, random: &mut Rng) -> Packet {
    let (source, destination, flow) = match random.u8(..16) {
        0..7 => (pair.client, pair.front, &pair.up),
        7..14 => (pair.backend, pair.back, &pair.down),
        14 => (pair.front, pair.client, &pair.down),
        _ => (pair.back, pair.backend, &pair.up),
    };
    let mut packet = Packet::new(source, destination);
    let near = |number: u32, random: &mut Rng| match random.u8(..8) {
        0 => random.u32(..),
        1 => number.wrapping_add(random.u32(..2 * WINDOW)).wrapping_sub(WINDOW),
        _ => number.wrapping_add(random.u32(..3000)),
    };
    (packet.seq, packet.ack) = (near(flow.sent(), random), near(flow.acked, random));
    packet.flags = match random.u8(..16) {
        0 => random.u8(..),
        1 => SYN,
        2 => SYN | ACK,
        3 => FIN | ACK,
        4 => RST | ACK,
        5 => RST,
        6 => PSH | ACK,
        _ => ACK,
    };
    packet.window = random.u16(..);
    packet.traffic_class = random.u8(..);
    packet.hop_limit = [64, 64, 64, 2, 1, 0][random.usize(..6)];
    packet.data = (0..[0, 0, 12, 1400][random.usize(..4)]).map(|_| random.u8(..)).collect();
    options(&mut packet.options, random);
    packet
}

/// Options that fill words, 40 bytes at most.
fn options(options: &mut Vec<Choice>, random: &mut Rng) {
    let mut room = 40;
    while room >= 4 && random.u8(..3) != 0 {
        let sack = random.usize(1..=4);
        let (option, length) = match random.u8(..5) {
            0 | 1 => (Choice::Timestamps(random.u32(..), random.u32(..)), 10),
            2 => {
                let blocks = (0..sack).map(|_| (random.u32(..), random.u32(..))).collect();
                (Choice::Sack(blocks), 2 + 8 * sack)
            }
            // A kind and a length that may reach beyond what is there.
            3 => (Choice::Raw(vec![random.u8(..), random.u8(..), random.u8(..)]), 3),
            _ => (Choice::Nop, 1),
        };
        if length > room {
            break;
        }
        options.push(option);
        room -= length;
    }
    let padding = room % 4;
    let filler = if random.bool() { Choice::Nop } else { Choice::End };
    options.extend(std::iter::repeat_n(filler, padding));
}
