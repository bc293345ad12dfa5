//! Path MTU: routers' messages translated inward, and the edge's own about what does not fit outward.

use std::net::{IpAddr, SocketAddr};

use edge_common::flow::{FlowKey, FlowReason};

use crate::{
    lab::{Arrival, LOOPBACK, Lab, Namespace, PASSED, Pair, REDIRECTED},
    packet::{
        ETHERNET, Packet, addresses, assert_checksums, checksum, framed, ipv4, ipv6, pseudo, transport,
    },
};

const FAMILIES: [(bool, bool); 4] = [(false, false), (true, true), (false, true), (true, false)];

/// The message of a router that finds the packet too big, with `kept` bytes of its TCP header.
pub(crate) fn too_big(packet: &Packet, mtu: u16, kept: usize) -> Vec<u8> {
    let frame = packet.frame();
    let inside = &frame[ETHERNET..transport(&frame) + kept];
    let is_v4 = packet.source.is_ipv4();
    let mut message = if is_v4 { vec![3, 4, 0, 0, 0, 0, 0, 0] } else { vec![2, 0, 0, 0, 0, 0, 0, 0] };
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message.extend(inside);
    match packet.source.ip() {
        IpAddr::V4(to) => {
            let sum = checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            framed(&ipv4([203, 0, 113, 9].into(), to, 1, message.len()), &message)
        }
        IpAddr::V6(to) => {
            let from = "2001:db8:ffff::9".parse().unwrap();
            let sum = checksum(&[&pseudo(IpAddr::V6(from), IpAddr::V6(to), message.len(), 58), &message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            framed(&ipv6(from, to, 58, message.len()), &message)
        }
    }
}

/// The contents of a message, for the sender of a packet.
#[derive(Debug, PartialEq)]
struct Told {
    from: IpAddr,
    to: IpAddr,
    mtu: u16,
    source: SocketAddr,
    destination: SocketAddr,
    seq: u32,
    length: usize,
}

/// Reads a message, every checksum of it verified.
fn read(frame: &[u8]) -> Told {
    assert_checksums(frame);
    let (from, to) = addresses(frame);
    let message = &frame[transport(frame)..];
    assert_eq!(message[..2], if from.is_ipv4() { [3, 4] } else { [2, 0] });
    let inside = [&[0; ETHERNET][..], &message[8..]].concat();
    let (source, destination) = addresses(&inside);
    let at = transport(&inside);
    let number = |at: usize| u16::from_be_bytes([inside[at], inside[at + 1]]);
    let length = if source.is_ipv4() {
        assert_eq!(checksum(&[&inside[ETHERNET..at]]), 0, "the header inside");
        number(ETHERNET + 2).into()
    } else {
        usize::from(number(ETHERNET + 4)) + 40
    };
    Told {
        from,
        to,
        mtu: u16::from_be_bytes([message[6], message[7]]),
        source: (source, number(at)).into(),
        destination: (destination, number(at + 2)).into(),
        seq: u32::from_be_bytes(inside[at + 4..at + 8].try_into().unwrap()),
        length,
    }
}

/// A packet of 1,400 bytes of data as the edge sent it on to the backend.
fn sent_on(pair: &Pair) -> Packet {
    let mut packet = Packet::new(pair.back, pair.backend);
    packet.seq = pair.up.sent().wrapping_add(pair.up.seq_delta);
    packet.data = vec![7; 1400];
    packet
}

#[test]
fn a_routers_word_reaches_who_really_sent() {
    let Some(mut lab) = Lab::new() else { return };
    for (client_v6, backend_v6) in FAMILIES {
        let pair = Pair::new(client_v6, backend_v6);
        lab.install(&pair);
        for kept in [8, 20, 60] {
            let packet = sent_on(&pair);
            let (verdict, frame) = lab.ingress(&too_big(&packet, 1400, kept));
            assert_eq!(verdict, REDIRECTED);
            // The families' headers differ by 20 bytes.
            let (mtu, length) = match (client_v6, backend_v6) {
                (false, true) => (1380, packet.frame().len() - ETHERNET - 20),
                (true, false) => (1420, packet.frame().len() - ETHERNET + 20),
                _ => (1400, packet.frame().len() - ETHERNET),
            };
            let told = Told {
                from: pair.front.ip(),
                to: pair.client.ip(),
                mtu,
                source: pair.client,
                destination: pair.front,
                seq: pair.up.sent(),
                length,
            };
            assert_eq!(read(&frame), told);
        }
    }
    assert_eq!(lab.count(FlowReason::TooBigTranslated), 12);
}

#[test]
fn an_old_routers_silence_about_the_mtu_is_understood() {
    let Some(mut lab) = Lab::new() else { return };
    for (client_v6, mtu) in [(false, 0), (true, 1280)] {
        let pair = Pair::new(client_v6, false);
        lab.install(&pair);
        let (verdict, frame) = lab.ingress(&too_big(&sent_on(&pair), 0, 8));
        assert_eq!((verdict, read(&frame).mtu), (REDIRECTED, mtu));
    }
}

#[test]
fn words_about_what_is_not_in_flight_are_left_to_the_stack() {
    let Some(mut lab) = Lab::new() else { return };
    for (client_v6, backend_v6) in FAMILIES {
        let pair = Pair::new(client_v6, backend_v6);
        lab.install(&pair);
        let mut old = sent_on(&pair);
        old.seq = old.seq.wrapping_sub(1);
        let mut future = sent_on(&pair);
        future.seq = future.seq.wrapping_add(crate::lab::WINDOW + 1);
        for packet in [old, future] {
            let frame = too_big(&packet, 1400, 8);
            assert_eq!(lab.ingress(&frame), (PASSED, frame));
        }
        // From another side than the backend's.
        let frame = too_big(&sent_on(&pair), 1400, 8);
        let arrival = Arrival { device: LOOPBACK + 1, ..Arrival::default() };
        assert_eq!(lab.ingress_from(&frame, arrival), (PASSED, frame));
        // About no flow, too short, and another message.
        let mut stranger = sent_on(&pair);
        stranger.source.set_port(3);
        let mut others = vec![too_big(&stranger, 1400, 8), too_big(&sent_on(&pair), 1400, 4)];
        let mut unreachable = too_big(&sent_on(&pair), 1400, 8);
        let at = transport(&unreachable);
        unreachable[at] = 1;
        others.push(unreachable);
        for frame in others {
            assert_eq!(lab.ingress(&frame), (PASSED, frame));
        }
    }
    assert_eq!(lab.count(FlowReason::TooBigDisbelieved), 12);
    assert_eq!(lab.count(FlowReason::TooBigTranslated), 0);
}

#[test]
fn what_does_not_fit_outward_is_answered() {
    let Some(mut lab) = Lab::new() else { return };
    let namespace = Namespace::enter("mtu");
    let narrow = namespace.device("narrow", 1400);
    for (client_v6, backend_v6) in FAMILIES {
        let mut pair = Pair::new(client_v6, backend_v6);
        pair.up.egress = narrow;
        lab.install(&pair);
        // As the client counts: its packets become 20 bytes longer or shorter.
        let mtu = match (client_v6, backend_v6) {
            (false, true) => 1380,
            (true, false) => 1420,
            _ => 1400,
        };
        let headers = if client_v6 { 60 } else { 40 };
        for (length, fits) in [(mtu - headers, true), (mtu - headers + 1, false), (2000, false)] {
            let mut packet = Packet::new(pair.client, pair.front);
            (packet.seq, packet.ack) = (pair.up.sent(), pair.up.acked);
            packet.data = vec![7; length];
            let (verdict, frame) = lab.ingress(&packet.frame());
            assert_eq!(verdict, REDIRECTED);
            if fits {
                assert_eq!(addresses(&frame).1, pair.backend.ip());
                continue;
            }
            let told = Told {
                from: pair.front.ip(),
                to: pair.client.ip(),
                mtu: u16::try_from(mtu).unwrap(),
                source: pair.client,
                destination: pair.front,
                seq: packet.seq,
                length: length + headers,
            };
            assert_eq!(read(&frame), told);
        }
        assert_eq!(lab.up(&pair).packets, 1, "what did not fit was not carried");
        lab.flows.remove(&FlowKey::new(pair.client, pair.front)).unwrap();
    }
    assert_eq!(lab.count(FlowReason::TooBig), 8);
}

#[test]
fn of_a_packet_put_together_each_segment_must_fit() {
    let Some(mut lab) = Lab::new() else { return };
    let namespace = Namespace::enter("gso");
    let narrow = namespace.device("narrow", 1400);
    for v6 in [false, true] {
        let mut pair = Pair::new(v6, v6);
        pair.up.egress = narrow;
        lab.install(&pair);
        let headers = if v6 { 60 } else { 40 };
        for (segment_size, fits) in [(1400 - headers, true), (1400 - headers + 1, false)] {
            let mut packet = Packet::new(pair.client, pair.front);
            (packet.seq, packet.ack) = (pair.up.sent(), pair.up.acked);
            packet.data = vec![7; 3000];
            let arrival = Arrival { segment_size, ..Arrival::default() };
            let (verdict, frame) = lab.ingress_from(&packet.frame(), arrival);
            assert_eq!(verdict, REDIRECTED);
            if fits {
                assert_eq!(addresses(&frame).1, pair.backend.ip());
            } else {
                assert_eq!(read(&frame).mtu, 1400);
            }
        }
    }
}
