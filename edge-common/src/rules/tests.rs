//! Properties of the rules: honest connections are followed exactly, forged segments change nothing.

mod conversation;

use proptest::{prelude::*, test_runner::Config};

use super::{
    plain::{PlainEntry, PlainFlow},
    *,
};
use crate::flow::{DOWN, Flow};

use conversation::{Conversation, Opening, Turn};

/// Miri takes a thousand times as long, and has no directory for regressions.
fn config() -> Config {
    Config { cases: if cfg!(miri) { 4 } else { 512 }, failure_persistence: None, ..Config::default() }
}

const FAR: u32 = 1 << 20;

/// A segment that no honest peer of a conversation could send: farther from everything sent than any window reaches.
#[derive(Clone, Copy, Debug)]
struct Forgery {
    direction: u8,
    seq_offset: u32,
    ack_offset: u32,
    data: u32,
    window: u32,
    flags: u8,
    /// Whether the acknowledgement is what is impossible, or else the sequence number.
    is_ack: bool,
}

impl Forgery {
    fn segment(&self, flow: Flow, other: Flow) -> Segment {
        let (seq, flags) = if self.is_ack {
            // A RST is judged by its sequence number alone.
            (flow.sent(), TCP_ACK | (self.flags & TCP_FIN))
        } else {
            (flow.sent().wrapping_add(self.seq_offset), self.flags)
        };
        let received = other.sent().wrapping_add(other.seq_delta);
        let ack = received.wrapping_add(if self.is_ack { self.ack_offset } else { 0 });
        Segment { seq, ack, window: self.window, data: self.data, flags }
    }
}

fn forgery() -> impl Strategy<Value = Forgery> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(fin, rst, ack)| {
        [(fin, TCP_FIN), (rst, TCP_RST), (ack, TCP_ACK)]
            .iter()
            .filter(|(is_set, _)| *is_set)
            .map(|(_, flag)| flag)
            .sum()
    });
    // An acknowledgement far behind is late, not forged; only one far ahead is impossible.
    (0..2_u8, FAR..u32::MAX - FAR, FAR..FAR << 8, 0..1400_u32, 0..1_u32 << 30, flags, any::<bool>()).prop_map(
        |(direction, seq_offset, ack_offset, data, window, flags, is_ack)| Forgery {
            direction,
            seq_offset,
            ack_offset,
            data,
            window,
            flags,
            is_ack,
        },
    )
}

/// An entry without what it remembers of the other one, which any segment may refresh.
fn known(entry: PlainEntry<'_>) -> Flow {
    Flow { floor: 0, ceiling: 0, ack_ceiling: 0, ..entry.get() }
}

fn both(flow: &PlainFlow) -> [PlainEntry<'_>; 2] {
    [UP, DOWN].map(|direction| flow.entry(direction).unwrap())
}

/// A connection in which each side has sent `sent` bytes, all acknowledged, and announces a `window`.
fn resting(opening: &Opening, sent: [u64; 2], window: u32) -> PlainFlow {
    let [mut up, mut down] = opening.entries(window);
    for (flow, own) in [(&mut up, sent[0]), (&mut down, sent[1])] {
        flow.position = own;
    }
    (up.acked, down.acked) = (down.sent().wrapping_add(down.seq_delta), up.sent().wrapping_add(up.seq_delta));
    for flow in [&mut up, &mut down] {
        (flow.floor, flow.ceiling, flow.ack_ceiling) =
            (flow.sent(), flow.sent().wrapping_add(window), flow.acked);
    }
    PlainFlow::new(Some(up), Some(down))
}

proptest! {
    #![proptest_config(config())]

    /// Whatever the network loses, repeats and reorders: every byte counts once, no number moves back, and the end is
    /// reported once.
    #[test]
    fn an_honest_connection_is_followed_to_its_end(opening in Opening::any(), script in Turn::script()) {
        let mut conversation = Conversation::new(&opening);
        for turn in &script {
            let before = both(conversation.flow()).map(PlainEntry::get);
            conversation.step(turn);
            for (before, entry) in before.iter().zip(both(conversation.flow())) {
                let now = entry.get();
                prop_assert!(now.position >= before.position);
                prop_assert!(!is_after(before.acked, now.acked));
                let edge = |flow: &Flow| flow.acked.wrapping_add(flow.window);
                prop_assert!(!is_after(edge(before), edge(&now)), "the window's right edge moved back");
            }
        }
        let lengths = conversation.finish();
        let [up, down] = both(conversation.flow());
        for (entry, length) in [(up, lengths[0]), (down, lengths[1])] {
            prop_assert_eq!(entry.get().position, length + 1, "every byte and the FIN, once");
            prop_assert_eq!(bytes(entry), length);
        }
        prop_assert!(has_ended(up, Some(down)));
        let (count, ending) = conversation.flow().reported();
        prop_assert_eq!(count, 1);
        let ending = ending.unwrap();
        prop_assert_eq!((ending.kind, ending.bytes), (CLOSED, lengths));
    }

    /// An attacker who does not see the connection and misses its windows changes neither numbers nor flags.
    #[test]
    fn forged_segments_change_nothing(
        opening in Opening::any(),
        script in Turn::script(),
        forgeries in proptest::collection::vec(forgery(), 1..20),
    ) {
        let mut conversation = Conversation::new(&opening);
        for (index, turn) in script.iter().enumerate() {
            conversation.step(turn);
            let forgery = &forgeries[index % forgeries.len()];
            let [up, down] = both(conversation.flow());
            let (target, other) = if forgery.direction == UP { (up, down) } else { (down, up) };
            let before = [known(up), known(down)];
            let segment = forgery.segment(target.get(), other.get());
            note(target, &segment);
            prop_assert_eq!(before, [known(up), known(down)], "{:?}", segment);
        }
        let refused = conversation.flow().counted(FlowReason::OutOfWindow)
            + conversation.flow().counted(FlowReason::ResetOutOfWindow);
        prop_assert!(refused >= script.len() as u64);
        prop_assert_eq!(conversation.flow().reported().0, 0);
    }

    /// A RST counts at exactly two numbers, ends the flow once, and is taken back when either side sends again.
    #[test]
    fn a_reset_counts_where_its_receiver_expects_it(
        opening in Opening::any(),
        sent in [0..1_u64 << 40, 0..1_u64 << 40],
        in_flight in 0..30_000_u32,
        direction in 0..2_u8,
        offset in prop_oneof![1..60_000_u32, 1..u32::MAX],
        is_sender in any::<bool>(),
    ) {
        let flow = resting(&opening, sent, 60_000);
        let (target, other) = (flow.entry(direction).unwrap(), flow.entry(direction ^ 1).unwrap());
        let acknowledged = target.get().sent();
        let data = Segment { seq: acknowledged, data: in_flight, ..Segment::default() };
        note(target, &data);
        let seq = acknowledged.wrapping_add(offset);
        let elsewhere = Segment { seq, flags: TCP_RST, ..data };
        if seq != acknowledged.wrapping_add(in_flight) {
            let before = [target.get(), other.get()];
            note(target, &elsewhere);
            prop_assert_eq!(before, [target.get(), other.get()], "neither numbers nor flags");
            prop_assert_eq!(flow.counted(FlowReason::ResetOutOfWindow), 1);
        }
        for seq in [acknowledged, acknowledged.wrapping_add(in_flight)] {
            note(target, &Segment { seq, data: 0, flags: TCP_RST, ..data });
            prop_assert!(target.has(RESET) && other.has(PEER_RESET));
            prop_assert!(has_ended(target, Some(other)) && has_ended(other, Some(target)));
        }
        let (count, ending) = flow.reported();
        prop_assert_eq!(count, 1);
        prop_assert_eq!(ending.map(|ending| (ending.kind, ending.direction)), Some((RESET_SEEN, direction)));
        // The alleged sender's keepalive, or its receiver's answer to a challenge.
        let alive = if is_sender { target } else { other };
        let keepalive = Segment { seq: alive.get().sent().wrapping_sub(1), ..Segment::default() };
        note(alive, &keepalive);
        prop_assert!(!target.has_flags() && !other.has_flags());
        prop_assert!(!has_ended(target, Some(other)));
    }

    /// A FIN that was forged inside the window counts only until its alleged sender sends more.
    #[test]
    fn data_behind_a_forged_fin_takes_it_back(
        opening in Opening::any(),
        sent in [0..1_u64 << 40, 0..1_u64 << 40],
        direction in 0..2_u8,
        gap in 0..20_000_u32,
    ) {
        let flow = resting(&opening, sent, 60_000);
        let (target, other) = (flow.entry(direction).unwrap(), flow.entry(direction ^ 1).unwrap());
        let seq = target.get().sent();
        note(target, &Segment { seq: seq.wrapping_add(gap), flags: TCP_FIN, ..Segment::default() });
        prop_assert!(target.has(FIN) && other.has(PEER_FIN));
        note(target, &Segment { seq, data: gap + 1400, ..Segment::default() });
        prop_assert!(!target.has(FIN) && !other.has(PEER_FIN) && !other.has(PEER_FIN_ACKED));
        prop_assert!(!has_ended(target, Some(other)) && !has_ended(other, Some(target)));
        prop_assert_eq!(bytes(target), sent[usize::from(direction)] + u64::from(gap + 1400));
    }

    /// Two processors that carry segments of one direction overwrite each other's position. The next segment with new
    /// data mends it, and so does the report of the end.
    #[test]
    fn a_lost_update_of_the_position_is_mended(
        opening in Opening::any(),
        sent in [0..1_u64 << 40, 0..1_u64 << 40],
        first in 1..20_000_u32,
        second in 1..20_000_u32,
    ) {
        let flow = resting(&opening, sent, 60_000);
        let [up, down] = both(&flow);
        let (start, before) = (up.get().sent(), up.get().position);
        note(up, &Segment { seq: start, data: first, ..Segment::default() });
        up.set_position(before);
        let seq = start.wrapping_add(first);
        note(up, &Segment { seq, data: second, ..Segment::default() });
        let truth = sent[0] + u64::from(first) + u64::from(second);
        prop_assert_eq!(bytes(up), truth);

        up.set_position(before);
        let ack = seq.wrapping_add(second).wrapping_add(up.get().seq_delta);
        down.set_acked(ack);
        note(down, &Segment { seq: down.get().sent(), flags: TCP_RST, ..Segment::default() });
        let (_, ending) = flow.reported();
        prop_assert_eq!(ending.unwrap().bytes, [truth, sent[1]]);
    }

    /// The forms for shared entries agree with those of [`Flow`], which user space uses for its copies.
    #[test]
    fn shared_entries_add_up_like_copies(
        opening in Opening::any(),
        positions in [0..1_u64 << 40, 0..1_u64 << 40],
        behind in -40_000..40_000_i32,
        fin in prop_oneof![Just(None), (-1..2_i32).prop_map(Some)],
    ) {
        let [mut up, mut down] = opening.entries(60_000);
        (up.position, down.position) = (positions[0], positions[1]);
        if let Some(offset) = fin {
            (up.fin, up.flags[FIN]) = (up.sent().wrapping_add_signed(offset), 1);
        }
        down.acked = up.sent().wrapping_add(up.seq_delta).wrapping_add_signed(behind);
        let flow = PlainFlow::new(Some(up), Some(down));
        let [shared, other] = both(&flow);
        prop_assert_eq!((sent(shared), bytes(shared)), (up.sent(), up.bytes()));
        settle(shared, other);
        up.settle(&down);
        prop_assert_eq!(shared.get(), up);
    }

    /// A backend that has forgotten the connection answers a forwarded SYN; only the number that acknowledges that SYN
    /// counts, and only until either side sends something else.
    #[test]
    fn a_syn_ack_to_a_forwarded_syn_ends_the_flow(
        opening in Opening::any(),
        sent in [0..1_u64 << 40, 0..1_u64 << 40],
        syn in any::<u32>(),
        wrong in 1..u32::MAX,
    ) {
        let flow = resting(&opening, sent, 60_000);
        let [up, down] = both(&flow);
        let expected = syn.wrapping_add(up.get().seq_delta).wrapping_add(1);
        note_syn_ack(down, expected);
        prop_assert!(!down.has_flags(), "no SYN was forwarded");
        // A backend's SYN is not followed: a client answers none.
        note_syn(down, syn);
        prop_assert!(!up.has_flags() && !down.has_flags());
        note_syn(up, syn);
        note_syn_ack(down, expected.wrapping_add(wrong));
        prop_assert!(!has_ended(up, Some(down)));
        note_syn_ack(down, expected);
        prop_assert!(has_ended(up, Some(down)) && has_ended(down, Some(up)));
        note(down, &Segment { seq: down.get().sent(), data: 1, ..Segment::default() });
        prop_assert!(!has_ended(up, Some(down)));
        note_syn_ack(down, expected);
        prop_assert!(!has_ended(up, Some(down)), "the backend has shown that it knows the connection");
    }

    /// Sequence numbers are ordered modulo 2³² (RFC 9293 §3.4).
    #[test]
    fn order_survives_the_wrap(number in any::<u32>(), distance in 1..1_u32 << 31) {
        let later = number.wrapping_add(distance);
        prop_assert!(is_after(later, number) && !is_after(number, later) && !is_after(number, number));
    }

    /// The socket hears bare acknowledgements of what it still has to deliver, and nothing else.
    #[test]
    fn only_bare_acknowledgements_are_for_the_socket(
        watch in any::<u32>(),
        below in 1..1_u32 << 30,
        data in 1..1400_u32,
    ) {
        let bare = Segment { ack: watch.wrapping_sub(below), flags: TCP_ACK, ..Segment::default() };
        prop_assert!(is_for_socket(&bare, watch));
        let others = [Segment { ack: watch, ..bare }, Segment { data, ..bare }]
            .into_iter()
            .chain([TCP_ACK | TCP_FIN, TCP_ACK | TCP_RST, TCP_RST, 0].map(|flags| Segment { flags, ..bare }));
        for other in others {
            prop_assert!(!is_for_socket(&other, watch), "{:?}", other);
        }
    }
}

#[test]
fn a_segment_is_judged_while_the_other_entry_is_missing() {
    let opening = Opening::default();
    let [up, _] = opening.entries(1000);
    let flow = PlainFlow::new(Some(up), None);
    let entry = flow.entry(UP).unwrap();
    for (seq, data) in [(up.sent(), 1000), (up.sent(), 1001)] {
        note(entry, &Segment { seq, data, flags: TCP_FIN, ..Segment::default() });
        note(entry, &Segment { seq, data: 0, flags: TCP_RST, ..Segment::default() });
    }
    assert!(!entry.has_flags(), "a FIN behind the window, and a RST that nothing can be compared with");
    note(entry, &Segment { seq: up.sent(), data: 999, flags: TCP_FIN, ..Segment::default() });
    assert!(entry.has(FIN));
    assert!(!has_ended(entry, None));
}

#[test]
fn a_fin_that_a_socket_forwards_counts_as_its_senders() {
    let opening = Opening::default();
    let flow = resting(&opening, [5000, 7000], 60_000);
    let [up, down] = both(&flow);
    // The client's FIN came before the hand-over; the socket sends it to the backend.
    let end = up.get().sent().wrapping_add(up.get().seq_delta).wrapping_add(1);
    note_fin_of_socket(down, end);
    assert!(up.has(FIN) && down.has(PEER_FIN) && !down.has(PEER_FIN_ACKED));
    note(
        down,
        &Segment { seq: down.get().sent(), ack: end.wrapping_sub(1), flags: TCP_ACK, ..Segment::default() },
    );
    assert!(!down.has(PEER_FIN_ACKED));
}

#[test]
fn timestamps_are_kept_only_while_watched_and_never_move_back() {
    let opening = Opening::default();
    let flow = resting(&opening, [0, 0], 60_000);
    let [up, _] = both(&flow);
    note_timestamp(up, 9);
    assert_eq!(up.stamp(), 0);
    up.set(WATCHED);
    for (tsval, newest) in [(u32::MAX - 1, u32::MAX - 1), (u32::MAX - 2, u32::MAX - 1), (3, 3), (1, 3)] {
        note_timestamp(up, tsval);
        assert_eq!(up.stamp(), newest);
    }
}
