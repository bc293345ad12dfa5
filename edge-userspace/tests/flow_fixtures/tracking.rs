//! The state that a flow learns from packets: bytes, ends, and which packets to believe.

use std::net::{TcpListener, TcpStream};

use edge::kernel::tcp::{self, Queue};
use edge_common::flow::{
    CLOSED, DOWN, FIN, Flow, FlowEvent, FlowReason, PEER_FIN, PEER_FIN_ACKED, PEER_RESET, Pending, REPLACED,
    RESET, RESET_SEEN, UP, WATCHED,
};

use crate::{
    lab::{BACKEND_SEQ, CLIENT_SEQ, DROPPED, Lab, PASSED, Pair, REDIRECTED, WINDOW},
    packet::{self, ACK, Packet, RST, SYN},
};

/// A flow with its ends, as stacks would drive it: numbers relative to where each side began.
struct Talk {
    lab: Lab,
    pair: Pair,
}

impl Talk {
    fn new() -> Option<Self> {
        Self::over(&Pair::new(false, true))
    }

    fn over(pair: &Pair) -> Option<Self> {
        let mut lab = Lab::new()?;
        lab.install(pair);
        Some(Self { lab, pair: *pair })
    }

    /// From the client: `sent` and `acked` count from the start of the fixture.
    fn up(&self, sent: u32, acked: u32, flags: u8, length: usize) -> u32 {
        let Pair { client, front, up, .. } = &self.pair;
        let mut packet = Packet::new(*client, *front);
        packet.seq = CLIENT_SEQ.wrapping_add(sent);
        packet.ack = up.acked.wrapping_add(acked);
        self.send(packet, flags, length)
    }

    fn down(&self, sent: u32, acked: u32, flags: u8, length: usize) -> u32 {
        let Pair { backend, back, down, .. } = &self.pair;
        let mut packet = Packet::new(*backend, *back);
        packet.seq = BACKEND_SEQ.wrapping_add(sent);
        packet.ack = down.acked.wrapping_add(acked);
        // 16,250 bytes, by the scale of 2.
        packet.window = u16::try_from(WINDOW / 4).unwrap();
        self.send(packet, flags, length)
    }

    fn send(&self, mut packet: Packet, flags: u8, length: usize) -> u32 {
        packet.flags = flags;
        packet.data = vec![b'x'; length];
        self.lab.ingress(&packet.frame()).0
    }

    fn flags(&self) -> (Flow, Flow) {
        (self.lab.up(&self.pair), self.lab.down(&self.pair))
    }

    fn kinds(&mut self) -> Vec<(u32, u8)> {
        let of = |event: &FlowEvent| (event.kind, u8::try_from(event.direction).unwrap());
        self.lab.events().iter().map(of).collect()
    }
}

#[test]
fn each_byte_counts_once() {
    let Some(talk) = Talk::new() else { return };
    for (sent, length) in [(0, 100), (0, 100), (50, 100), (150, 1), (1000, 10), (151, 849)] {
        assert_eq!(talk.up(sent, 0, ACK, length), REDIRECTED);
    }
    let up = talk.lab.up(&talk.pair);
    assert_eq!((up.bytes(), up.packets), (1010, 6));
    assert_eq!(up.repeated, 2, "the second, and the one that fills the gap");
    assert_eq!(up.sent(), CLIENT_SEQ.wrapping_add(1010));
    assert!(up.last_seen > 0);
    assert_eq!(talk.lab.down(&talk.pair).bytes(), 0);
}

#[test]
fn numbers_outside_the_window_are_sent_on_and_not_believed() {
    let Some(talk) = Talk::new() else { return };
    let before = talk.lab.up(&talk.pair);
    // Past the window; far before it; inside, but acknowledging what was never sent.
    let forged = [(WINDOW + 1, 0), (u32::MAX - 5000, 0), (0, 1), (0, 1 << 30)];
    for (sent, acked) in forged {
        assert_eq!(talk.up(sent, acked, ACK, 10), REDIRECTED);
    }
    assert_eq!(talk.lab.count(FlowReason::OutOfWindow), 4);
    let after = talk.lab.up(&talk.pair);
    let numbers = |flow: &Flow| (flow.sent(), flow.acked, flow.window, flow.bytes());
    assert_eq!(numbers(&after), numbers(&before));
    // A keep-alive stands one before the window.
    assert_eq!(talk.up(u32::MAX, 0, ACK, 1), REDIRECTED);
    assert_eq!(talk.lab.count(FlowReason::OutOfWindow), 4);
}

#[test]
fn the_window_moves_with_the_receivers_acknowledgements() {
    let Some(talk) = Talk::new() else { return };
    let mut sent = 0;
    for _ in 0..300 {
        assert_eq!(talk.up(sent, 0, ACK, 1000), REDIRECTED);
        sent += 1000;
        talk.down(0, sent, ACK, 0);
    }
    assert_eq!(talk.lab.count(FlowReason::OutOfWindow), 0, "300 kB through a window of 65 kB");
    assert_eq!(talk.lab.up(&talk.pair).bytes(), 300_000);
    // An acknowledgement by the client is believed only for data that was sent, which the other entry may
    // show.
    talk.down(0, sent, ACK, 500);
    talk.up(sent, 500, ACK, 0);
    talk.up(sent, 501, ACK, 0);
    assert_eq!(talk.lab.count(FlowReason::OutOfWindow), 1);
    assert_eq!(talk.lab.up(&talk.pair).acked, talk.pair.up.acked.wrapping_add(500));
}

#[test]
fn a_window_that_was_overtaken_does_not_count() {
    let Some(talk) = Talk::new() else { return };
    talk.up(0, 0, ACK, 1000);
    talk.down(0, 1000, ACK, 0);
    // The backend's earlier packets are processed by another CPU.
    let mut before = Packet::new(talk.pair.backend, talk.pair.back);
    (before.seq, before.ack, before.window) = (BACKEND_SEQ, talk.pair.down.acked, 1);
    talk.send(before, ACK, 0);
    assert_eq!(talk.up(1000 + WINDOW - 10, 0, ACK, 10), REDIRECTED);
    talk.down(0, 1000 + WINDOW, ACK, 0);
    assert_eq!(talk.lab.count(FlowReason::OutOfWindow), 0);
    assert_eq!(talk.lab.down(&talk.pair).acked, talk.pair.down.acked.wrapping_add(1000 + WINDOW));
}

#[test]
fn both_fins_acknowledged_end_it() {
    let Some(mut talk) = Talk::new() else { return };
    talk.up(0, 0, ACK, 10);
    talk.up(10, 0, ACK | packet::FIN, 5);
    let (up, down) = talk.flags();
    assert!(up.has(FIN) && down.has(PEER_FIN) && !down.has(PEER_FIN_ACKED));
    assert_eq!(up.bytes(), 15, "the FIN is no byte");
    // The other half goes on.
    talk.down(0, 15, ACK, 100);
    assert!(!talk.lab.down(&talk.pair).has(PEER_FIN_ACKED), "not the FIN itself");
    talk.down(100, 16, ACK, 100);
    assert!(talk.lab.down(&talk.pair).has(PEER_FIN_ACKED));
    talk.up(16, 200, ACK, 0);
    assert_eq!(talk.kinds(), []);
    talk.down(200, 16, ACK | packet::FIN, 0);
    // Repeated, as when the last acknowledgement was lost.
    talk.down(200, 16, ACK | packet::FIN, 0);
    assert_eq!(talk.kinds(), []);
    talk.up(16, 201, ACK, 0);
    talk.up(16, 201, ACK, 0);
    let events = talk.lab.events();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, events[0].bytes, events[0].peer_bytes), (CLOSED, 15, 200));
    let (up, down) = talk.flags();
    assert!(up.is_finished() && down.is_finished() && !up.is_reset());
}

#[test]
fn a_forged_fin_ends_nothing() {
    let Some(mut talk) = Talk::new() else { return };
    talk.up(WINDOW + 100, 0, ACK | packet::FIN, 0);
    talk.up(u32::MAX - 100, 0, ACK | packet::FIN, 0);
    let (up, down) = talk.flags();
    assert!(!up.has(FIN) && !down.has(PEER_FIN));
    // One that hits the window is believed until data stands behind it.
    talk.up(20, 0, ACK | packet::FIN, 0);
    assert!(talk.lab.up(&talk.pair).has(FIN));
    talk.up(0, 0, ACK, 100);
    talk.down(0, 100, ACK, 0);
    let (up, down) = talk.flags();
    assert!(!up.has(FIN) && !down.has(PEER_FIN) && !down.has(PEER_FIN_ACKED));
    assert_eq!(talk.kinds(), []);
}

#[test]
fn a_reset_counts_where_the_receiver_expects_it() {
    for offset in [1, 5000, WINDOW, 1 << 31, u32::MAX] {
        let Some(mut talk) = Talk::new() else { return };
        assert_eq!(talk.up(offset, 0, RST, 0), REDIRECTED, "the receiver judges");
        assert!(!talk.lab.up(&talk.pair).is_reset(), "{offset}");
        assert_eq!(talk.lab.count(FlowReason::ResetOutOfWindow), 1);
        assert_eq!(talk.kinds(), []);
    }
    let Some(mut talk) = Talk::new() else { return };
    talk.up(0, 0, ACK, 300);
    // Somewhere in what is in flight is not where anybody expects it.
    assert_eq!(talk.up(150, 0, RST | ACK, 0), REDIRECTED);
    assert!(!talk.lab.up(&talk.pair).is_reset());
    // At its end, and once.
    assert_eq!(talk.up(300, 0, RST, 0), REDIRECTED);
    assert_eq!(talk.up(300, 0, RST, 0), REDIRECTED);
    let (up, down) = talk.flags();
    assert!(up.has(RESET) && down.has(PEER_RESET));
    assert_eq!(talk.kinds(), [(RESET_SEEN, UP)]);
    // And at its beginning.
    let Some(mut talk) = Talk::new() else { return };
    talk.up(0, 0, ACK, 300);
    talk.down(0, 100, ACK, 0);
    talk.up(100, 0, RST, 0);
    assert_eq!(talk.kinds(), [(RESET_SEEN, UP)]);
}

#[test]
fn a_reset_is_belied_by_either_side_speaking() {
    let Some(mut talk) = Talk::new() else { return };
    talk.up(0, 0, RST, 0);
    assert_eq!(talk.kinds(), [(RESET_SEEN, UP)]);
    // The challenge of RFC 5961 §3.2: it is alive.
    talk.down(0, 0, ACK, 0);
    let (up, down) = talk.flags();
    assert!(!up.is_reset() && !down.is_reset());
    talk.down(0, 0, RST, 0);
    assert_eq!(talk.kinds(), [(RESET_SEEN, DOWN)]);
    talk.down(0, 0, ACK, 10);
    let (up, down) = talk.flags();
    assert!(!up.is_reset() && !down.is_reset());
    // And counts again when it is meant.
    talk.down(10, 0, RST, 0);
    assert_eq!(talk.kinds(), [(RESET_SEEN, DOWN)]);
}

#[test]
fn a_syn_on_a_live_flow_is_left_to_the_receiver() {
    let Some(mut talk) = Talk::new() else { return };
    let before = talk.lab.up(&talk.pair);
    assert_eq!(talk.up(123_456, 0, SYN, 0), REDIRECTED);
    assert_eq!(talk.lab.count(FlowReason::SynOnLive), 1);
    let after = talk.lab.up(&talk.pair);
    let numbers = |flow: &Flow| (flow.sent(), flow.acked, flow.window, flow.bytes(), flow.flags);
    assert_eq!(numbers(&after), numbers(&before));
    // Half closed is alive.
    talk.up(0, 0, ACK | packet::FIN, 0);
    assert_eq!(talk.up(123_456, 0, SYN, 0), REDIRECTED);
    assert_eq!(talk.up(0, 0, SYN | ACK, 0), DROPPED);
    assert_eq!(talk.lab.count(FlowReason::SynAck), 1);
    assert_eq!(talk.kinds(), []);
}

#[test]
fn a_syn_on_an_ended_flow_takes_its_place() {
    let Some(talk) = Talk::new() else { return };
    talk.up(0, 0, ACK, 100);
    talk.down(0, 100, ACK, 2000);
    talk.up(100, 2000, ACK | packet::FIN, 0);
    talk.down(2000, 101, ACK | packet::FIN, 0);
    // Only what is acknowledged has certainly been said.
    assert_eq!(talk.up(0x4000_0000, 0, SYN, 0), REDIRECTED);
    talk.up(101, 2001, ACK, 0);
    replaced(talk, 100, 2000);
    let Some(talk) = Talk::new() else { return };
    talk.up(0, 0, RST, 0);
    replaced(talk, 0, 0);
    let Some(talk) = Talk::new() else { return };
    talk.down(0, 0, RST, 0);
    replaced(talk, 0, 0);
}

fn replaced(mut talk: Talk, bytes: u64, peer_bytes: u64) {
    talk.lab.events();
    assert_eq!(talk.up(0x4000_0000, 0, SYN, 0), PASSED);
    let events = talk.lab.events();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, events[0].bytes, events[0].peer_bytes), (REPLACED, bytes, peer_bytes));
    assert_eq!(talk.lab.flows.keys().count(), 0, "both entries are gone");
    assert_eq!(talk.lab.count(FlowReason::SynOnClosed), 1);
    assert_eq!(talk.up(0, 0, ACK, 0), PASSED);
}

fn a_socket_hears_what_it_still_owes(address: &str) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let backend = listener.local_addr().unwrap();
    let socket = TcpStream::connect(backend).unwrap();
    let back = socket.local_addr().unwrap();
    let Pair { client, front, .. } = Pair::new(false, false);
    let Some(mut talk) = Talk::over(&Pair::of([client, front, back, backend])) else { return };
    let number = |queue| {
        tcp::enter_repair(&socket).unwrap();
        let number = tcp::sequence(&socket, queue).unwrap();
        tcp::leave_repair(&socket).unwrap();
        number
    };
    let (expected, sent) = (number(Queue::Receive), number(Queue::Send));
    let (mut up, mut down) = talk.flags();
    (up.flags[WATCHED], down.flags[WATCHED]) = (1, 1);
    (up.position, up.seq_delta, down.acked) = (200, sent.wrapping_sub(CLIENT_SEQ), sent);
    (talk.pair.up, talk.pair.down) = (up, down);
    talk.lab.install(&talk.pair);
    // The socket to the backend has sent nothing of what it was given.
    let watch = |owed: u32| Pending {
        up_key: talk.pair.up_key(),
        watch: [up.acked, down.acked.wrapping_add(owed)],
        ..Pending::default()
    };
    let id = up.id;
    talk.lab.pending.insert(id, watch(100), 0).unwrap();
    let mut acknowledgement = Packet::new(backend, back);
    (acknowledgement.seq, acknowledgement.ack) = (BACKEND_SEQ, down.acked.wrapping_add(40));
    acknowledgement.flags = ACK;
    let (verdict, frame) = talk.lab.ingress(&acknowledgement.frame());
    // For the socket the backend has sent nothing beyond what the socket has, nor got any more than that.
    (acknowledgement.seq, acknowledgement.ack) = (expected, sent);
    assert_eq!((verdict, frame), (PASSED, acknowledgement.frame()));
    assert_eq!(talk.lab.count(FlowReason::ForSocket), 1);
    assert_eq!(talk.lab.down(&talk.pair).acked, down.acked.wrapping_add(40), "seen all the same");
    // Data is the client's, whatever it acknowledges, and so is what covers everything.
    assert_eq!(talk.down(0, 40, ACK, 10), REDIRECTED);
    assert_eq!(talk.down(10, 100, ACK, 0), REDIRECTED);
    assert_eq!(talk.up(0, 0, ACK, 0), REDIRECTED);
    // It owes more than was thought.
    talk.lab.pending.insert(id, watch(150), 0).unwrap();
    assert_eq!(talk.down(10, 149, ACK, 0), PASSED);
    talk.lab.pending.remove(&id).unwrap();
    assert_eq!(talk.down(10, 149, ACK, 0), REDIRECTED);
    assert!(!talk.lab.down(&talk.pair).has(WATCHED));
}

#[test]
fn a_socket_hears_acknowledgements_of_what_it_still_owes() {
    a_socket_hears_what_it_still_owes("127.0.0.1");
    a_socket_hears_what_it_still_owes("::1");
}

#[test]
fn without_a_socket_an_acknowledgement_is_the_other_sides() {
    let Some(mut talk) = Talk::new() else { return };
    let (mut up, mut down) = talk.flags();
    (up.flags[WATCHED], down.flags[WATCHED]) = (1, 1);
    (talk.pair.up, talk.pair.down) = (up, down);
    talk.lab.install(&talk.pair);
    let watch = [up.acked, down.acked.wrapping_add(100)];
    talk.lab
        .pending
        .insert(up.id, Pending { up_key: talk.pair.up_key(), watch, ..Pending::default() }, 0)
        .unwrap();
    assert_eq!(talk.down(0, 0, ACK, 0), REDIRECTED);
}

#[test]
fn what_was_overwritten_is_settled_by_the_acknowledgement() {
    let Some(talk) = Talk::new() else { return };
    let (mut up, down) = (talk.pair.up, talk.pair.down);
    assert_eq!((up.bytes(), up.sent()), (0, CLIENT_SEQ));
    up.settle(&Flow { acked: down.acked.wrapping_add(700), ..down });
    assert_eq!((up.bytes(), up.sent()), (700, CLIENT_SEQ.wrapping_add(700)));
    up.settle(&down);
    assert_eq!(up.bytes(), 700, "an old acknowledgement takes nothing back");
}

#[test]
fn a_backend_that_knows_of_nothing_frees_the_addresses() {
    let Some(mut talk) = Talk::new() else { return };
    assert_eq!(talk.down(0, 5001, SYN | ACK, 0), DROPPED, "nobody has asked");
    assert_eq!(talk.up(5000, 0, SYN, 0), REDIRECTED, "the backend may challenge it");
    assert_eq!(talk.down(0, 5002, SYN | ACK, 0), DROPPED, "not by who has seen the question");
    assert_eq!(talk.kinds(), []);
    assert_eq!(talk.down(0, 5001, SYN | ACK, 0), DROPPED);
    assert_eq!(talk.kinds(), [(RESET_SEEN, DOWN)]);
    // Belied, it counts for nothing.
    assert_eq!(talk.down(0, 0, ACK, 10), REDIRECTED);
    assert_eq!(talk.down(0, 5001, SYN | ACK, 0), DROPPED);
    assert_eq!(talk.kinds(), []);
    assert_eq!(talk.up(5000, 0, SYN, 0), REDIRECTED);
    assert_eq!(talk.down(0, 5001, SYN | ACK, 0), DROPPED);
    assert_eq!(talk.up(5000, 0, SYN, 0), PASSED, "a new connection may begin");
    assert_eq!(talk.lab.count(FlowReason::SynOnClosed), 1);
}
