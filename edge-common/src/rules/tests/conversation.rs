//! Two honest TCP peers, and a network between them that loses, repeats and reorders segments before the edge sees
//! them.

use std::vec::Vec;

use proptest::{collection, prelude::*};

use super::{
    super::{Segment, TCP_ACK, TCP_FIN, note, plain::PlainFlow},
    Flow,
};

/// The numbers at the start of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Opening {
    /// The first sequence number of each side, client first.
    start: [u32; 2],
    seq_delta: u32,
    ack_delta: u32,
    window: u32,
}

impl Opening {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        // Often close to the wrap.
        let start = || prop_oneof![any::<u32>(), u32::MAX - 5000..=u32::MAX, 0x7fff_f000..0x8000_1000_u32];
        (start(), start(), any::<u32>(), any::<u32>(), 2000..60_000_u32).prop_map(
            |(client, backend, seq_delta, ack_delta, window)| Self {
                start: [client, backend],
                seq_delta,
                ack_delta,
                window,
            },
        )
    }

    /// Both entries before the first byte, client → backend first.
    pub(super) fn entries(&self, window: u32) -> [Flow; 2] {
        let [client, backend] = self.start;
        let entry = |start: u32, seq_delta: u32, acked: u32| Flow {
            start,
            seq_delta,
            acked,
            window,
            floor: start,
            ceiling: start.wrapping_add(window),
            ack_ceiling: acked,
            ..Flow::default()
        };
        [
            Flow {
                ack_delta: self.ack_delta,
                ..entry(client, self.seq_delta, backend.wrapping_sub(self.ack_delta))
            },
            Flow {
                ack_delta: self.seq_delta.wrapping_neg(),
                ..entry(backend, self.ack_delta.wrapping_neg(), client.wrapping_add(self.seq_delta))
            },
        ]
    }
}

/// The next event, at the side or in the direction of that number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// New data, as far as the window lets it.
    Send(u8, u32),
    /// A retransmission of what is not acknowledged.
    Repeat(u8),
    /// A bare acknowledgement.
    Acknowledge(u8),
    /// The segment of this index (modulo those in flight) arrives at the edge and then at its receiver.
    Arrive(u8, usize),
    Lose(u8, usize),
}

impl Turn {
    /// A script of a connection.
    pub(super) fn script() -> impl Strategy<Value = Vec<Self>> {
        let side = || 0..2_u8;
        let turn = prop_oneof![
            3 => (side(), 1..3000_u32).prop_map(|(side, bytes)| Self::Send(side, bytes)),
            1 => side().prop_map(Self::Repeat),
            2 => side().prop_map(Self::Acknowledge),
            5 => (side(), any::<usize>()).prop_map(|(side, index)| Self::Arrive(side, index)),
            1 => (side(), any::<usize>()).prop_map(|(side, index)| Self::Lose(side, index)),
        ];
        // Miri takes a second for each turn.
        collection::vec(turn, 1..if cfg!(miri) { 20 } else { 120 })
    }
}

/// A segment by positions in both streams.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    data: u32,
    fin: bool,
    /// How much of the other stream its sender has received.
    ack: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + u64::from(self.data) + u64::from(self.fin)
    }
}

/// One side: positions of its own stream, and of the other's.
#[derive(Clone, Debug, Default)]
struct Side {
    sent: u64,
    acknowledged: u64,
    /// The highest position that the other side's window allows.
    allowed: u64,
    received: u64,
    /// The highest acknowledgement that it has sent.
    announced: u64,
    /// The position of its FIN, once it has sent that.
    fin: Option<u64>,
    in_flight: Vec<Piece>,
}

/// The peers, and the flow that their segments pass.
pub(super) struct Conversation {
    opening: Opening,
    sides: [Side; 2],
    flow: PlainFlow,
}

impl Conversation {
    pub(super) fn new(opening: &Opening) -> Self {
        let [up, down] = opening.entries(opening.window);
        let side = Side { allowed: opening.window.into(), ..Side::default() };
        Self { opening: *opening, sides: [side.clone(), side], flow: PlainFlow::new(Some(up), Some(down)) }
    }

    pub(super) fn flow(&self) -> &PlainFlow {
        &self.flow
    }

    pub(super) fn step(&mut self, turn: &Turn) {
        match *turn {
            Turn::Send(side, bytes) => self.send(side, bytes),
            Turn::Repeat(side) => self.repeat(side),
            Turn::Acknowledge(side) => {
                let sent = self.sides[usize::from(side)].sent;
                self.push(side, sent, 0, false);
            }
            Turn::Arrive(side, index) => {
                if let Some(piece) = self.pick(side, index) {
                    self.arrive(side, piece);
                }
            }
            Turn::Lose(side, index) => drop(self.pick(side, index)),
        }
    }

    /// Both sides send their FIN, and everything arrives. Returns how many bytes each has sent.
    pub(super) fn finish(&mut self) -> [u64; 2] {
        let lengths = [self.sides[0].sent, self.sides[1].sent];
        for side in [0, 1] {
            // A FIN needs room in the window like a byte.
            while self.sides[usize::from(side)].allowed <= lengths[usize::from(side)] {
                self.settle(side);
            }
            let own = &mut self.sides[usize::from(side)];
            own.fin = Some(own.sent);
            own.sent += 1;
            self.settle(side);
        }
        // The last acknowledgement of each.
        for side in [0, 1, 0] {
            self.step(&Turn::Acknowledge(side));
            self.settle(side);
        }
        lengths
    }

    /// Repeats until the side's stream is acknowledged.
    fn settle(&mut self, side: u8) {
        loop {
            self.repeat(side);
            for each in [side, side ^ 1] {
                while let Some(piece) = self.pick(each, 0) {
                    self.arrive(each, piece);
                }
                self.step(&Turn::Acknowledge(each ^ 1));
            }
            while let Some(piece) = self.pick(side ^ 1, 0) {
                self.arrive(side ^ 1, piece);
            }
            let own = &self.sides[usize::from(side)];
            if own.acknowledged == own.sent {
                return;
            }
        }
    }

    fn send(&mut self, side: u8, bytes: u32) {
        let own = &mut self.sides[usize::from(side)];
        let room = u32::try_from(own.allowed.saturating_sub(own.sent)).unwrap_or(u32::MAX);
        let bytes = bytes.min(room);
        if bytes != 0 && own.fin.is_none() {
            let start = own.sent;
            own.sent += u64::from(bytes);
            self.push(side, start, bytes, false);
        }
    }

    fn repeat(&mut self, side: u8) {
        let own = &self.sides[usize::from(side)];
        let (start, end) = (own.acknowledged, own.fin.unwrap_or(own.sent));
        let bytes = u32::try_from(end.saturating_sub(start)).unwrap_or(u32::MAX);
        if own.sent > start {
            let with_fin = bytes <= 1400 && own.fin.is_some();
            self.push(side, start, bytes.min(1400), with_fin);
        }
    }

    fn push(&mut self, side: u8, start: u64, data: u32, fin: bool) {
        let own = &mut self.sides[usize::from(side)];
        let ack = own.received;
        own.announced = ack;
        own.in_flight.push(Piece { start, data, fin, ack });
    }

    fn pick(&mut self, side: u8, index: usize) -> Option<Piece> {
        let list = &mut self.sides[usize::from(side)].in_flight;
        let index = index.checked_rem(list.len())?;
        Some(list.remove(index))
    }

    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers count modulo 2³²")]
    fn arrive(&mut self, side: u8, piece: Piece) {
        let entries = self.opening.entries(self.opening.window);
        let (own, other) = (entries[usize::from(side)], entries[usize::from(side ^ 1)]);
        let segment = Segment {
            seq: own.start.wrapping_add(piece.start as u32),
            ack: other.start.wrapping_add(other.seq_delta).wrapping_add(piece.ack as u32),
            window: self.opening.window,
            data: piece.data,
            flags: TCP_ACK | if piece.fin { TCP_FIN } else { 0 },
        };
        let entry = self.flow.entry(side).unwrap();
        let is_new = piece.end() > entry.get().position;
        note(entry, &segment);
        assert!(!is_new || entry.get().position == piece.end(), "new data of an honest sender: {segment:?}");

        let receiver = &mut self.sides[usize::from(side ^ 1)];
        // Nothing in a segment counts that lies before the window, its acknowledgement neither (RFC 9293 §3.10.7.4;
        // `tcp_sequence` of `net/ipv4/tcp_input.c`).
        if piece.end() < receiver.announced {
            return;
        }
        if piece.start <= receiver.received {
            receiver.received = receiver.received.max(piece.end());
        }
        receiver.acknowledged = receiver.acknowledged.max(piece.ack);
        receiver.allowed = receiver.allowed.max(piece.ack + u64::from(self.opening.window));
    }
}
