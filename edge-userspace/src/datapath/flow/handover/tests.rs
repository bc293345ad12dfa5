//! The hand-over in a small model: two peers with TCP's rules, a network that loses, delays and repeats, the
//! kernel's path of packets through tc or into a socket, and a daemon that may die. In any order of events,
//! either everything arrives or both sides learn of the failure.
//!
//! The flow is no model: its entries are those of `agreement`, and what it believes of a segment, and which
//! acknowledgements it leaves to a socket, is decided by the rules that the packet programs run.

use edge_common::{
    flow::{DOWN, ESTABLISHED, Flow, Handshake, UP},
    rules::{
        self, TCP_ACK,
        plain::{PlainEntry, PlainFlow},
    },
};
use proptest::{collection::vec, prelude::*, test_runner::Config};

use super::*;
use crate::{
    datapath::flow::agreement::{Account, Leg, agree},
    kernel::tcp::TcpInfo,
};

/// The window that every receiver announces: more than is ever in flight.
const WINDOW: u32 = 1 << 20;

/// A piece of a stream, by position.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u32,
    end: u32,
}

/// One direction through the edge: a peer that sends, the socket that it sends to, the socket that forwards,
/// and the peer that receives. Positions count from the start of the stream; the flow's difference is zero.
#[derive(Debug, Default)]
struct Way {
    /// Of the flow's entry for the sender's segments.
    direction: u8,
    length: u32,
    /// Of the sender: first position without acknowledgement, next to send.
    unacknowledged: u32,
    next: u32,
    /// On the way to the edge.
    to_edge: Vec<Segment>,
    /// Past tc before the flow was there, not yet at the socket.
    in_path: Vec<Segment>,
    /// Of the socket: received in order, read by the daemon.
    received: u32,
    read: u32,
    /// Of the other socket: written, and acknowledged as far as it heard.
    written: u32,
    heard: u32,
    /// On the way to the receiver.
    to_receiver: Vec<Segment>,
    /// Of the receiver: in order, and the pieces beyond.
    arrived: u32,
    beyond: Vec<Segment>,
}

/// The network's next action for one direction.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u8),
    Repeat,
    /// Takes the segment of this index off the first list that it fits.
    EnterEdge(u8),
    ReachSocket(u8),
    SocketRepeats,
    Arrive(u8),
    LoseBeforeEdge(u8),
    LoseAfterEdge(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..100_u8).prop_map(Step::Send),
        Just(Step::Repeat),
        any::<u8>().prop_map(Step::EnterEdge),
        any::<u8>().prop_map(Step::ReachSocket),
        Just(Step::SocketRepeats),
        any::<u8>().prop_map(Step::Arrive),
        any::<u8>().prop_map(Step::LoseBeforeEdge),
        any::<u8>().prop_map(Step::LoseAfterEdge),
    ]
}

fn pick(list: &mut Vec<Segment>, index: u8) -> Option<Segment> {
    (!list.is_empty()).then(|| list.remove(usize::from(index) % list.len()))
}

/// An entry of an installed flow.
fn entry(flow: &PlainFlow, direction: u8) -> PlainEntry<'_> {
    flow.entry(direction).unwrap()
}

impl Way {
    fn step(&mut self, step: Step, flow: Option<&PlainFlow>, sockets: bool) {
        match step {
            Step::Send(length) => {
                let end = (self.next + u32::from(length)).min(self.length);
                if end > self.next {
                    self.to_edge.push(Segment { start: self.next, end });
                    self.next = end;
                }
            }
            Step::Repeat => {
                if self.next > self.unacknowledged {
                    let end = (self.unacknowledged + 50).min(self.next);
                    self.to_edge.push(Segment { start: self.unacknowledged, end });
                }
            }
            Step::EnterEdge(index) => {
                let Some(segment) = pick(&mut self.to_edge, index) else { return };
                let Some(flow) = flow else { return self.in_path.push(segment) };
                let Segment { start: seq, end } = segment;
                let data = end - seq;
                rules::note(entry(flow, self.direction), &rules::Segment { seq, data, ..Default::default() });
                self.to_receiver.push(segment);
            }
            Step::ReachSocket(index) => {
                let Some(segment) = pick(&mut self.in_path, index) else { return };
                if sockets && segment.start <= self.received {
                    self.received = self.received.max(segment.end);
                    self.unacknowledged = self.unacknowledged.max(self.received);
                }
            }
            Step::SocketRepeats => {
                // The first segment that was not acknowledged, and no other.
                if sockets && self.written > self.heard {
                    let end = (self.heard + 700).min(self.written);
                    self.to_receiver.push(Segment { start: self.heard, end });
                }
            }
            Step::Arrive(index) => {
                let Some(segment) = pick(&mut self.to_receiver, index) else { return };
                self.arrive(segment, flow, sockets);
            }
            Step::LoseBeforeEdge(index) => drop(pick(&mut self.to_edge, index)),
            Step::LoseAfterEdge(index) => drop(pick(&mut self.to_receiver, index)),
        }
    }

    fn arrive(&mut self, segment: Segment, flow: Option<&PlainFlow>, sockets: bool) {
        self.beyond.push(segment);
        while let Some(at) =
            self.beyond.iter().position(|piece| piece.start <= self.arrived && piece.end > self.arrived)
        {
            self.arrived = self.beyond.remove(at).end;
        }
        // Its acknowledgement takes the packets' current path.
        let Some(flow) = flow else {
            if sockets {
                self.heard = self.heard.max(self.arrived);
            }
            return;
        };
        let receiver = entry(flow, self.direction ^ 1);
        let (seq, ack) = (rules::sent(receiver), self.arrived);
        let bare = rules::Segment { seq, ack, window: WINDOW, data: 0, flags: TCP_ACK };
        rules::note(receiver, &bare);
        if sockets && rules::is_for_socket(&bare, self.written) {
            self.heard = self.heard.max(ack);
        } else {
            self.unacknowledged = self.unacknowledged.max(ack);
        }
    }

    /// Reads the data that the socket holds, and writes it to the other.
    fn relay(&mut self) -> usize {
        let bytes = self.received - self.read;
        (self.read, self.written) = (self.received, self.written + bytes);
        bytes as usize
    }

    fn flush_path(&mut self, sockets: bool) {
        while !self.in_path.is_empty() {
            self.step(Step::ReachSocket(0), None, sockets);
        }
    }

    /// Everything in flight arrives and everybody repeats until nothing changes any more.
    fn settle(&mut self, flow: Option<&PlainFlow>, sockets: bool) {
        loop {
            let numbers = |way: &Self| (way.next, way.unacknowledged, way.received, way.heard, way.arrived);
            let before = numbers(self);
            self.step(Step::Send(100), flow, sockets);
            self.step(Step::Repeat, flow, sockets);
            while !self.to_edge.is_empty() {
                self.step(Step::EnterEdge(0), flow, sockets);
            }
            self.flush_path(sockets);
            self.step(Step::SocketRepeats, flow, sockets);
            while !self.to_receiver.is_empty() {
                self.step(Step::Arrive(0), flow, sockets);
            }
            if numbers(self) == before {
                return;
            }
        }
    }
}

/// The whole of it.
struct World {
    up: Way,
    down: Way,
    flow: Option<PlainFlow>,
    relays: u32,
}

impl World {
    /// A relay at some moment: what was sent before, `pending` bytes read and not yet written.
    fn new(sent: u32, length: u32, pending: u32) -> Self {
        let at_rest = |direction| Way {
            direction,
            length: sent + length,
            unacknowledged: sent,
            next: sent,
            received: sent,
            read: sent,
            written: sent,
            heard: sent,
            arrived: sent,
            ..Way::default()
        };
        let up = Way { heard: sent - pending, arrived: sent - pending, ..at_rest(UP) };
        Self { up, down: at_rest(DOWN), flow: None, relays: 0 }
    }

    /// The entries that the daemon would install now.
    fn agreed(&self) -> PlainFlow {
        let handshake = Handshake { flags: ESTABLISHED, ..Handshake::default() };
        let info = TcpInfo {
            state: TcpInfo::ESTABLISHED,
            announced_mss: 1400,
            path_mtu: 1500,
            ..TcpInfo::default()
        };
        // A leg's peer sends on one way, and what the socket sends to it comes from the other.
        let leg = |from: &Way, to: &Way, number: u16| Leg {
            local: ([192, 0, 2, 1], 443 + number).into(),
            peer: ([198, 51, 100, 1], 443 + number).into(),
            device: 1,
            handshake,
            info,
            clock: 0,
            read: from.read.into(),
            written: to.written.into(),
            unacknowledged: to.written - to.heard,
        };
        let (client, backend) = (leg(&self.up, &self.down, 0), leg(&self.down, &self.up, 1));
        let (bytes_up, bytes_down) = (self.up.read.into(), self.down.read.into());
        let account = Account { bytes_up, bytes_down, ..Account::default() };
        let pair = agree(&client, &backend, &account).unwrap();
        PlainFlow::new(Some(pair.up), Some(pair.down))
    }

    /// Both entries as user space reads them, or empty ones before the flow is there.
    fn entries(&self) -> Sides<Flow> {
        let Some(flow) = &self.flow else { return Sides::default() };
        let (mut up, mut down) = (entry(flow, UP).get(), entry(flow, DOWN).get());
        up.settle(&down);
        down.settle(&up);
        Sides { client: up, backend: down }
    }

    fn numbers(&self) -> Numbers {
        let Sides { client: up, backend: down } = self.entries();
        Numbers {
            received: Sides { client: self.up.received, backend: self.down.received },
            acknowledged: Sides {
                client: up.acked.max(self.down.heard),
                backend: down.acked.max(self.up.heard),
            },
            ended: up.is_reset() || down.is_reset(),
            gone: false,
        }
    }

    /// Does what the machine says, with `steps` happening between any two things.
    fn perform(&mut self, action: Action) -> Event {
        match action {
            Action::Install => {
                self.flow = Some(self.agreed());
                Event::Installed
            }
            Action::Relay => {
                // A socket may be full now and then.
                self.relays += 1;
                let more = self.relays % 3 == 1;
                Event::Relayed { up: self.up.relay(), down: self.down.relay(), more }
            }
            Action::Freeze => Event::Frozen,
            Action::Wait(time) => {
                assert!(time >= GRACE || self.relays % 3 == 1);
                // No path into a socket is longer.
                self.up.flush_path(true);
                self.down.flush_path(true);
                Event::Waited
            }
            Action::Look => Event::Seen(self.numbers()),
            Action::Thaw => Event::Thawed,
            Action::End(_) => unreachable!("the end is not performed"),
        }
    }
}

/// The amount of data still to be sent: often none, so that no later acknowledgement covers an earlier one.
fn length() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1..3000_u32]
}

type Script = Vec<Vec<(bool, Step)>>;

fn script() -> impl Strategy<Value = Script> {
    vec(vec((any::<bool>(), step()), 0..30), 1..40)
}

fn run(world: &mut World, machine: &mut Handover, script: &Script, actions: usize) -> Option<Outcome> {
    let mut action = machine.start();
    let calm = Vec::new();
    for turn in 0..actions {
        for &(is_up, step) in script.get(turn).unwrap_or(&calm) {
            let way = if is_up { &mut world.up } else { &mut world.down };
            way.step(step, world.flow.as_ref(), true);
        }
        if let Action::End(outcome) = action {
            return Some(outcome);
        }
        // Past the script nothing is lost any more.
        if turn >= script.len() {
            world.up.settle(world.flow.as_ref(), true);
            world.down.settle(world.flow.as_ref(), true);
        }
        let event = world.perform(action);
        action = machine.next(event);
    }
    None
}

fn machine(world: &World) -> Handover {
    let read = Sides { client: world.up.read, backend: world.down.read };
    let written = Sides { client: world.down.written, backend: world.up.written };
    Handover::new(read, written)
}

proptest! {
    #![proptest_config(Config::with_cases(400))]

    #[test]
    fn every_byte_arrives_once(script in script(), sent in 2000..5000_u32, length in length(),
                               pending in 0..2000_u32) {
        let mut world = World::new(sent, length, pending);
        let mut machine = machine(&world);
        let outcome = run(&mut world, &mut machine, &script, 200);
        prop_assert_eq!(outcome, Some(Outcome::Carried));
        // The sockets are gone; the peers alone must be able to finish.
        for way in [&mut world.up, &mut world.down] {
            prop_assert!(way.in_path.is_empty());
            way.settle(world.flow.as_ref(), false);
            prop_assert_eq!(way.arrived, way.length);
            prop_assert_eq!(way.unacknowledged, way.length);
        }
        // And the flow has counted every byte once.
        let Sides { client: up, backend: down } = world.entries();
        for (way, sender, receiver) in [(&world.up, up, down), (&world.down, down, up)] {
            prop_assert_eq!(sender.bytes(), u64::from(way.length));
            prop_assert_eq!(receiver.acked, way.length);
        }
    }

    #[test]
    fn a_death_harms_only_what_was_not_over(script in script(), sent in 2000..5000_u32,
                                            pending in 0..2000_u32, life in 1..40_usize) {
        let mut world = World::new(sent, 1000, pending);
        let mut machine = machine(&world);
        let outcome = run(&mut world, &mut machine, &script, life);
        // An unfinished hand-over is still recorded as begun: the next daemon resets both sides. A finished
        // one needs no daemon.
        if outcome == Some(Outcome::Carried) {
            for way in [&mut world.up, &mut world.down] {
                way.settle(world.flow.as_ref(), false);
                prop_assert_eq!(way.arrived, way.length);
            }
        } else {
            prop_assert_eq!(outcome, None);
        }
    }
}

fn started() -> Handover {
    let sides = Sides { client: u32::MAX - 10, backend: 100 };
    let mut machine = Handover::new(sides, sides);
    assert_eq!(machine.start(), Action::Install);
    assert_eq!(machine.next(Event::Installed), Action::Relay);
    machine
}

#[test]
fn nothing_happens_before_the_flow_is_there() {
    let mut machine = Handover::new(Sides::default(), Sides::default());
    assert_eq!(machine.next(Event::Refused), Action::End(Outcome::OnSockets));
}

#[test]
fn a_full_socket_is_written_to_again_before_anything_else() {
    let mut machine = started();
    let more = Event::Relayed { up: 700, down: 0, more: true };
    assert_eq!(machine.next(more), Action::Wait(FULL_PAUSE));
    assert_eq!(machine.next(Event::Waited), Action::Relay);
    assert_eq!(machine.next(Event::Relayed { up: 5, down: 7, more: false }), Action::Freeze);
    assert_eq!(machine.written(), Sides { client: u32::MAX - 3, backend: 805 });
}

#[test]
fn what_is_not_acknowledged_in_time_is_cut() {
    let mut machine = started();
    let mut action = machine.next(Event::Relayed { up: 0, down: 0, more: false });
    let mut waited = Duration::ZERO;
    let received = Sides { client: u32::MAX - 10, backend: 100 };
    let acknowledged = Sides { client: received.client, backend: 99 };
    let numbers = Numbers { received, acknowledged, ended: false, gone: false };
    loop {
        action = machine.next(match action {
            Action::Freeze => Event::Frozen,
            Action::Wait(time) => {
                waited += time;
                Event::Waited
            }
            Action::Look => Event::Seen(numbers),
            other => {
                assert_eq!(other, cut(Failure::Unacknowledged));
                break;
            }
        });
    }
    assert!(waited >= PATIENCE && waited < PATIENCE + LONGEST_PAUSE);
}

#[test]
fn progress_renews_the_patience() {
    let mut machine = started();
    let mut action = machine.next(Event::Relayed { up: 10_000, down: 0, more: false });
    let received = Sides { client: (u32::MAX - 10).wrapping_add(10_000), backend: 100 };
    let mut acknowledged = 100;
    let mut waited = Duration::ZERO;
    while waited < 3 * PATIENCE {
        action = machine.next(match action {
            Action::Freeze => Event::Frozen,
            Action::Wait(time) => {
                waited += time;
                Event::Waited
            }
            Action::Look => {
                acknowledged += 1;
                let acknowledged = Sides { client: u32::MAX - 10, backend: acknowledged };
                Event::Seen(Numbers { received, acknowledged, ended: false, gone: false })
            }
            other => panic!("{other:?} after {waited:?}"),
        });
    }
}

#[test]
fn a_reset_before_everything_arrived_is_passed_on() {
    for (backend, outcome) in [(99, Outcome::Cut(Failure::Reset)), (100, Outcome::Carried)] {
        let mut machine = started();
        machine.next(Event::Relayed { up: 0, down: 0, more: false });
        machine.next(Event::Frozen);
        machine.next(Event::Waited);
        let received = Sides { client: u32::MAX - 10, backend: 100 };
        let acknowledged = Sides { client: received.client, backend };
        let seen = Event::Seen(Numbers { received, acknowledged, ended: true, gone: false });
        assert_eq!(machine.next(seen), Action::End(outcome));
    }
}

#[test]
fn a_flow_that_has_given_way_to_another_is_left_alone() {
    let mut machine = started();
    machine.next(Event::Relayed { up: 0, down: 0, more: false });
    machine.next(Event::Frozen);
    machine.next(Event::Waited);
    let seen = Event::Seen(Numbers { gone: true, ..Numbers::default() });
    assert_eq!(machine.next(seen), Action::End(Outcome::Carried));
}
