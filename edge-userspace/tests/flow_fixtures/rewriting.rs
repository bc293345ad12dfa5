//! The rewriter against the reference: options, windows, numbers, lengths, families.

use edge_common::flow::{Flow, FlowReason};

use crate::{
    lab::{Lab, Pair, REDIRECTED},
    packet::{ACK, Choice, FIN, PSH, Packet, SYN, assert_checksums, without_checksums},
};

/// The expected packet, by meaning.
pub(crate) fn reference(packet: &Packet, pair: &Pair, flow: &Flow) -> Packet {
    let is_up = packet.source == pair.client;
    let (source, destination) = if is_up { (pair.back, pair.backend) } else { (pair.front, pair.client) };
    let mut changed = packet.clone();
    (changed.source, changed.destination) = (source, destination);
    changed.hop_limit -= 1;
    changed.seq = packet.seq.wrapping_add(flow.seq_delta);
    if packet.flags & ACK != 0 {
        changed.ack = packet.ack.wrapping_add(flow.ack_delta);
    }
    if packet.flags & SYN == 0 {
        let bytes = u64::from(packet.window) << flow.sender_scale();
        changed.window = u16::try_from(bytes >> flow.offered_scale()).unwrap_or(u16::MAX);
    }
    for option in &mut changed.options {
        match option {
            Choice::Timestamps(value, echo) => {
                *value = value.wrapping_add(flow.tsval_delta);
                *echo = echo.wrapping_add(flow.tsecr_delta);
            }
            Choice::Sack(blocks) => {
                for (left, right) in blocks {
                    *left = left.wrapping_add(flow.ack_delta);
                    *right = right.wrapping_add(flow.ack_delta);
                }
            }
            Choice::End => break,
            Choice::Nop | Choice::Raw(_) => {}
        }
    }
    if source.is_ipv4() != packet.source.is_ipv4() {
        (changed.identification, changed.label) = (0, 0);
    }
    changed
}

/// Sends the packet through and compares.
fn check(lab: &Lab, pair: &Pair, flow: &Flow, packet: &Packet) {
    let (verdict, frame) = lab.ingress(&packet.frame());
    assert_eq!(verdict, REDIRECTED, "{packet:?}");
    assert_checksums(&frame);
    let expected = reference(packet, pair, flow).frame();
    assert_eq!(without_checksums(&frame), without_checksums(&expected), "{packet:?}");
}

fn pairs() -> [Pair; 4] {
    [(false, false), (true, true), (false, true), (true, false)].map(|(c, b)| Pair::new(c, b))
}

const STAMPS: Choice = Choice::Timestamps(0x1111_2222, 0xfeee_4444);

fn sack(blocks: u32) -> Choice {
    Choice::Sack(
        (0..blocks).map(|at| (0xffff_f000 + 1000 * at, 0xffff_f3e8_u32.wrapping_add(1000 * at))).collect(),
    )
}

/// Options as stacks send them, and as they may be sent.
fn option_lists() -> Vec<Vec<Choice>> {
    use Choice::{End, Nop, Raw};
    let mut lists = vec![
        vec![],
        vec![Nop, Nop, STAMPS],
        vec![STAMPS, Nop, Nop],
        vec![Nop, STAMPS, Nop],
        vec![Nop, STAMPS, End],
        vec![Nop; 4],
        vec![Nop; 40],
        // A handshake's, in Linux's order.
        vec![Raw(vec![2, 4, 5, 0xb4]), Raw(vec![4, 2]), STAMPS, Nop, Raw(vec![3, 3, 7])],
        // An option that nobody knows before one that matters.
        vec![Raw(vec![0xfe, 6, 1, 2, 3, 4]), STAMPS],
        // Nothing behind the end is an option.
        vec![End, Raw(vec![5, 10, 8])],
        // Lengths that are impossible, or reach past the header: the rest stays as it is.
        vec![Raw(vec![5, 1, 0, 0])],
        vec![Nop, Nop, Raw(vec![8, 40])],
        vec![Nop, Nop, Nop, Raw(vec![8])],
        [vec![Nop; 38], vec![Raw(vec![8, 10])]].concat(),
        // Timestamps and SACK of other lengths than theirs.
        vec![Raw(vec![8, 4, 1, 2])],
        vec![Raw(vec![5, 2]), Nop, Nop],
    ];
    for blocks in 1..=4 {
        lists.push(vec![Nop, Nop, sack(blocks)]);
        lists.push(vec![sack(blocks), Nop, Nop]);
    }
    for blocks in 1..=3 {
        lists.push(vec![Nop, Nop, STAMPS, Nop, Nop, sack(blocks)]);
        lists.push(vec![sack(blocks), STAMPS]);
        lists.push(vec![Nop, sack(blocks), Nop, STAMPS]);
    }
    // Options that do not fill words are not sent.
    let filled = |list: &Vec<Choice>| {
        let length: usize = list
            .iter()
            .map(|option| match option {
                End | Nop => 1,
                Choice::Timestamps(..) => 10,
                Choice::Sack(blocks) => 2 + 8 * blocks.len(),
                Raw(bytes) => bytes.len(),
            })
            .sum();
        length.is_multiple_of(4) && length <= 40
    };
    let count = lists.len();
    lists.retain(filled);
    assert!(lists.len() + 4 >= count, "most lists fill words");
    lists
}

#[test]
fn options_in_every_order() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        for options in option_lists() {
            for flags in [ACK, ACK | PSH, SYN, 0] {
                for length in [0, 1, 1001] {
                    let mut packet = Packet::new(pair.client, pair.front);
                    (packet.flags, packet.options) = (flags, options.clone());
                    packet.data = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
                    packet.seq = pair.up.sent();
                    packet.ack = pair.up.acked;
                    check(&lab, &pair, &pair.up, &packet);
                }
            }
        }
    }
    assert!(lab.count(FlowReason::UnusualOptions) > 0);
}

#[test]
fn numbers_of_every_size_and_both_directions() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        let ways = [(pair.client, pair.front, &pair.up), (pair.backend, pair.back, &pair.down)];
        for (source, destination, flow) in ways {
            for number in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, flow.sent()] {
                for window in [0, 1, 255, 0x8000, 0xffff] {
                    for length in 0..8 {
                        let mut packet = Packet::new(source, destination);
                        (packet.seq, packet.ack, packet.window) = (number, !number, window);
                        packet.options = vec![Choice::Nop, Choice::Nop, Choice::Timestamps(number, !number)];
                        packet.data = vec![0xff; length];
                        check(&lab, &pair, flow, &packet);
                    }
                }
            }
        }
    }
}

#[test]
fn windows_at_every_pair_of_scales() {
    let Some(mut lab) = Lab::new() else { return };
    let mut pair = Pair::new(false, false);
    for left in 0..=14 {
        for right in 0..=14 {
            pair.up.scales = edge_common::flow::Flow::with_scales(left, right);
            lab.install(&pair);
            for window in [0, 1, 0x1234, 0xffff] {
                for flags in [ACK, SYN, ACK | FIN] {
                    let mut packet = Packet::new(pair.client, pair.front);
                    (packet.window, packet.flags) = (window, flags);
                    // A FIN far outside changes no state, so that every packet meets the same flow.
                    packet.seq = pair.up.sent().wrapping_sub(1 << 30);
                    check(&lab, &pair, &pair.up, &packet);
                }
            }
        }
    }
}

#[test]
fn every_sum_that_a_checksum_can_have() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        // The data is chosen so that the checksum before takes the values around its two zeros.
        for word in 0..=u16::MAX {
            if word % 1009 != 0 && word > 8 && word < u16::MAX - 8 {
                continue;
            }
            let mut packet = Packet::new(pair.client, pair.front);
            packet.data = word.to_be_bytes().to_vec();
            (packet.seq, packet.ack) = (pair.up.sent(), pair.up.acked);
            packet.traffic_class = word.to_be_bytes()[1];
            packet.hop_limit = word.to_be_bytes()[1] | 2;
            packet.identification = word;
            check(&lab, &pair, &pair.up, &packet);
        }
    }
}

#[test]
fn padding_of_a_short_frame_is_not_data() {
    let Some(mut lab) = Lab::new() else { return };
    for pair in pairs() {
        lab.install(&pair);
        let mut packet = Packet::new(pair.client, pair.front);
        (packet.seq, packet.ack) = (pair.up.sent(), pair.up.acked);
        let mut frame = packet.frame();
        frame.extend([0; 6]);
        let (verdict, mut out) = lab.ingress(&frame);
        assert_eq!(verdict, REDIRECTED);
        out.truncate(out.len() - 6);
        assert_checksums(&out);
        let expected = reference(&packet, &pair, &pair.up).frame();
        assert_eq!(without_checksums(&out), without_checksums(&expected));
        assert_eq!((lab.up(&pair).bytes(), lab.up(&pair).packets), (0, 1));
    }
}
