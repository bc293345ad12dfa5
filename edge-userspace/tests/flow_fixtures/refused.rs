//! Packets that belong to no flow or are malformed are passed or dropped unchanged, and counted.

use edge_common::flow::FlowReason;

use crate::{
    lab::{Arrival, DROPPED, LOOPBACK, Lab, PASSED, Pair, REDIRECTED},
    packet::{ACK, Choice, ETHERNET, FIN, Packet, RST, SYN, framed, ipv4, ipv6, transport},
};

fn pairs() -> [Pair; 2] {
    [Pair::new(false, false), Pair::new(true, true)]
}

fn packet(pair: &Pair) -> Packet {
    let mut packet = Packet::new(pair.client, pair.front);
    (packet.seq, packet.ack) = (pair.up.sent(), pair.up.acked);
    packet.data = b"twelve bytes".to_vec();
    packet
}

/// Passed to the stack, unchanged.
fn assert_passed(lab: &Lab, frame: &[u8]) {
    assert_eq!(lab.ingress(frame), (PASSED, frame.to_vec()));
}

#[test]
fn strangers_pass() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        let ours = packet(&pair);
        let mut other_port = ours.clone();
        other_port.source.set_port(1);
        let mut back = ours.clone();
        std::mem::swap(&mut back.source, &mut back.destination);
        for stranger in [other_port, back] {
            assert_passed(&lab, &stranger.frame());
        }
        // For another machine, by its link address.
        let mut frame = ours.frame();
        frame[0] = 2;
        assert_passed(&lab, &frame);
        // Not TCP, and not IP.
        let mut frame = ours.frame();
        frame[ETHERNET + if pair.client.is_ipv4() { 9 } else { 6 }] = 17;
        assert_passed(&lab, &frame);
        let mut frame = ours.frame();
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_passed(&lab, &frame);
    }
    assert_eq!(lab.count(FlowReason::Forwarded), 0);
}

#[test]
fn only_the_flows_device_may_bring_its_packets() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        for device in [0, LOOPBACK + 1] {
            let arrival = Arrival { device, ..Arrival::default() };
            assert_eq!(lab.ingress_from(&packet(&pair).frame(), arrival).0, DROPPED);
        }
        assert_eq!(lab.up(&pair).packets, 0);
    }
    assert_eq!(lab.count(FlowReason::WrongDevice), 4);
}

#[test]
fn no_prefix_of_a_packet_is_rewritten() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        let mut whole = packet(&pair);
        whole.options =
            vec![Choice::Nop, Choice::Nop, Choice::Sack(vec![(1, 2), (3, 4)]), Choice::Nop, Choice::Nop];
        whole.options.extend([Choice::Timestamps(1, 2)]);
        let frame = whole.frame();
        // The test run itself takes no frame without an IP header.
        for length in transport(&frame)..frame.len() {
            let (verdict, out) = lab.ingress(&frame[..length]);
            assert_ne!(verdict, REDIRECTED, "{length} bytes of {}", frame.len());
            assert_eq!(out, frame[..length]);
        }
        assert_eq!(lab.ingress(&frame).0, REDIRECTED);
        assert_eq!(lab.up(&pair).packets, 1);
    }
    assert!(lab.count(FlowReason::Malformed) > 0);
}

#[test]
fn lengths_that_contradict_each_other_are_dropped() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        let frame = packet(&pair).frame();
        let is_v4 = pair.client.is_ipv4();
        let transport = ETHERNET + if is_v4 { 20 } else { 40 };
        // A TCP header shorter than it can be, and longer than the packet.
        for offset in [0x00, 0x40, 0xf0] {
            let mut frame = frame.clone();
            frame[transport + 12] = offset;
            assert_eq!(lab.ingress(&frame).0, DROPPED, "{offset:#x}");
        }
        // An IP packet too short for its TCP header.
        let mut frame = frame.clone();
        let (at, short) = if is_v4 { (ETHERNET + 2, 39_u16) } else { (ETHERNET + 4, 19) };
        frame[at..at + 2].copy_from_slice(&short.to_be_bytes());
        assert_eq!(lab.ingress(&frame).0, DROPPED);
        assert_eq!(lab.up(&pair).packets, 0);
    }
    assert_eq!(lab.count(FlowReason::Malformed), 8);
}

#[test]
fn a_used_up_hop_limit_ends_the_way() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        for hop_limit in [0, 1] {
            let mut packet = packet(&pair);
            packet.hop_limit = hop_limit;
            assert_eq!(lab.ingress(&packet.frame()).0, DROPPED);
        }
        let mut packet = packet(&pair);
        packet.hop_limit = 2;
        assert_eq!(lab.ingress(&packet.frame()).0, REDIRECTED);
    }
    assert_eq!(lab.count(FlowReason::HopLimit), 4);
}

#[test]
fn fragments_and_extended_headers_are_the_stacks() {
    let Some(mut lab) = Lab::new() else { return };
    let [v4, v6] = pairs();
    lab.install(&v4);
    lab.install(&v6);
    let frame = packet(&v4).frame();
    // More fragments; an offset; both.
    for word in [0x2000_u16, 0x0001, 0x3fff] {
        let mut frame = frame.clone();
        frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&word.to_be_bytes());
        assert_passed(&lab, &frame);
    }
    assert_eq!(lab.count(FlowReason::Fragment), 3);
    let segment = packet(&v4).segment();
    let (source, destination) = (v4.client.ip(), v4.front.ip());
    let (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) = (source, destination) else {
        panic!()
    };
    let mut header = ipv4(source, destination, 6, segment.len() + 4);
    header[0] = 0x46;
    header.extend([1, 1, 1, 0]);
    assert_passed(&lab, &framed(&header, &segment));
    assert_eq!(lab.count(FlowReason::ExtensionHeader), 1);

    let segment = packet(&v6).segment();
    let (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) = (v6.client.ip(), v6.front.ip())
    else {
        panic!()
    };
    for (next, reason) in [
        (0, FlowReason::ExtensionHeader),
        (43, FlowReason::ExtensionHeader),
        (44, FlowReason::Fragment),
        (51, FlowReason::ExtensionHeader),
        (60, FlowReason::ExtensionHeader),
    ] {
        let before = lab.count(reason);
        let mut header = ipv6(source, destination, next, segment.len() + 8);
        header.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        assert_passed(&lab, &framed(&header, &segment));
        assert_eq!(lab.count(reason), before + 1, "{next}");
    }
    assert_eq!(lab.count(FlowReason::Forwarded), 0);
}

#[test]
fn the_local_stack_ends_no_flow() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        // From the edge to either side.
        for (source, destination) in [(pair.front, pair.client), (pair.back, pair.backend)] {
            for flags in [RST, RST | ACK, FIN, FIN | ACK] {
                let mut answer = Packet::new(source, destination);
                answer.flags = flags;
                assert_eq!(lab.egress(&answer.frame()).0, DROPPED);
                // A stranger's end is its own.
                answer.source.set_port(9);
                assert_eq!(lab.egress(&answer.frame()).0, PASSED);
            }
            // The blind retransmitter, and a SYN that wants no change.
            for flags in [ACK, SYN] {
                let mut sent = Packet::new(source, destination);
                (sent.flags, sent.data) = (flags, b"hello".to_vec());
                assert_eq!(lab.egress(&sent.frame()), (PASSED, sent.frame()));
            }
        }
    }
    assert_eq!(lab.count(FlowReason::Guarded), 16);
}
