//! Keepalive of flows, without I/O: decides which peers to probe, and which are gone.
//!
//! A flow has no socket that would send keepalive probes, so the sweep sends them. The answer passes through
//! the flow and is counted there like any packet. It must not postpone `idle_timeout`, however. The state of
//! a flow before its probe is therefore remembered until it moves again.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use edge_common::flow::{FLOW_ENTRIES, Flow, FlowKey, REPORTED, UP};

use super::since;
use crate::kernel::FlowPair;

/// The silence of the client and of the backend, by direction, after which they are probed: the same as for
/// sockets.
const SILENCE: [Duration; 2] = [Duration::from_mins(4), Duration::from_mins(1)];
/// From one question to the next where none was answered.
const AGAIN: Duration = Duration::from_secs(15);
/// A peer that has been silent for so long is gone …
const GONE: Duration = Duration::from_mins(5);
/// … if so many questions in a row were not answered.
const QUESTIONS: u32 = 4;
/// The most probes per second. One takes about 30 µs of processor time. With more idle flows, each is probed
/// less often.
const RATE: u64 = 256;
/// Flows that are remembered, at most: all that there can be.
const REMEMBERED: usize = FLOW_ENTRIES as usize / 2;
/// Flows that are ended in one look because a peer is gone, at most: each takes two resets.
const ENDS: usize = 256;
/// Looks after which a flow that none of them has met is forgotten.
const FORGOTTEN: u32 = 16;
/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// State of the flows whose peers were probed.
#[derive(Debug, Default)]
pub(super) struct Keepalive {
    flows: HashMap<u64, Quiet>,
    /// Counts the looks at all flows.
    look: u32,
    /// When questions were last granted, `CLOCK_MONOTONIC` nanoseconds; 0 before the first time.
    granted: u64,
}

/// A flow of which at least one peer was asked.
#[derive(Debug)]
struct Quiet {
    /// When it last carried a packet that was no answer, `CLOCK_MONOTONIC` nanoseconds.
    active: u64,
    /// By direction.
    sides: [Side; 2],
    look: u32,
}

/// The sequence number that a peer had reached at the last look, and the probes sent since.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    packets: u64,
    position: u64,
    acked: u32,
    last_seen: u64,
    /// When it was asked last, `CLOCK_MONOTONIC` nanoseconds.
    request: u64,
    questions: u32,
}

/// A question to put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// Since when it is due, `CLOCK_MONOTONIC` nanoseconds.
    since: u64,
    /// Whom it is about.
    pub(super) peer: Peer,
}

/// One side of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Where the flow's client → backend entry is.
    pub(super) up_key: FlowKey,
    /// The flow.
    pub(super) id: u64,
    /// That of the packets that the peer sends.
    pub(super) direction: u8,
}

/// The result of one look at all flows.
#[derive(Debug)]
pub(super) struct Due {
    now: u64,
    /// How many questions may be put.
    room: usize,
    /// The longest overdue ones, the latest of them on top.
    questions: BinaryHeap<Question>,
    /// Peers that are gone, as many as are dealt with at once.
    pub(super) gone: Vec<Peer>,
}

impl Ord for Question {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = |question: &Self| (question.since, question.peer.id, question.peer.direction);
        order(self).cmp(&order(other))
    }
}

impl PartialOrd for Question {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Due {
    /// The questions, the longest overdue first.
    pub(super) fn questions(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions).into_sorted_vec()
    }
}

impl Side {
    const fn of(flow: &Flow) -> Self {
        let Flow { packets, position, acked, last_seen, .. } = *flow;
        Self { packets, position, acked, last_seen, request: 0, questions: 0 }
    }
}

impl Keepalive {
    /// Begins a look at all flows. Questions are granted by the time that has passed.
    pub(super) fn begin(&mut self, now: u64) -> Due {
        self.look = self.look.wrapping_add(1);
        let elapsed = if self.granted == 0 { 0 } else { now.saturating_sub(self.granted).min(SECOND) };
        let room = elapsed * RATE / SECOND;
        // A fraction of a probe is carried over to the next look.
        if room > 0 || self.granted == 0 {
            self.granted = now;
        }
        let room = usize::try_from(room).unwrap_or(0);
        Due { now, room, questions: BinaryHeap::with_capacity(room + 1), gone: Vec::new() }
    }

    /// Looks at one direction of a flow.
    pub(super) fn look_at(&mut self, key: &FlowKey, flow: &Flow, due: &mut Due) {
        let mut last_asked = (0, 0);
        if let Some(quiet) = self.flows.get_mut(&flow.id) {
            quiet.look = self.look;
            if quiet.note(flow) {
                self.flows.remove(&flow.id);
            } else {
                let side = quiet.sides[usize::from(flow.direction & 1)];
                last_asked = (side.request, side.questions);
            }
        }
        if flow.has(REPORTED) {
            return;
        }
        let (request, questions) = last_asked;
        let silence = since(due.now, flow.last_seen);
        let patience = SILENCE[usize::from(flow.direction & 1)];
        if silence < patience || (questions > 0 && since(due.now, request) < AGAIN) {
            return;
        }
        let up_key = if flow.direction == UP { *key } else { flow.reverse_key() };
        let peer = Peer { up_key, id: flow.id, direction: flow.direction };
        if silence >= GONE && questions >= QUESTIONS {
            if due.gone.len() < ENDS {
                due.gone.push(peer);
            }
            return;
        }
        let overdue = if questions > 0 { request + nanos(AGAIN) } else { flow.last_seen + nanos(patience) };
        due.questions.push(Question { since: overdue, peer });
        if due.questions.len() > due.room {
            due.questions.pop();
        }
    }

    /// A peer of this flow is being asked.
    pub(super) fn set_request(&mut self, pair: &FlowPair, direction: u8, now: u64) {
        if self.flows.len() >= REMEMBERED && !self.flows.contains_key(&pair.up.id) {
            // Of flows that are gone.
            self.forget(0);
        }
        let FlowPair { up, down, .. } = pair;
        let look = self.look;
        let quiet = self.flows.entry(up.id).or_insert_with(|| Quiet {
            active: up.last_seen.max(down.last_seen),
            sides: [Side::of(up), Side::of(down)],
            look,
        });
        let side = &mut quiet.sides[usize::from(direction & 1)];
        side.request = now;
        side.questions += 1;
    }

    /// How often in a row this peer was asked in vain.
    pub(super) fn unanswered(&self, id: u64, direction: u8) -> u32 {
        self.flows.get(&id).map_or(0, |quiet| quiet.sides[usize::from(direction & 1)].questions)
    }

    /// When a flow last carried a packet that was not an answer to a probe, if that differs from when it last
    /// carried any. `CLOCK_MONOTONIC` nanoseconds.
    pub(super) fn active(&self, id: u64) -> Option<u64> {
        self.flows.get(&id).map(|quiet| quiet.active)
    }

    /// Ends a look at all flows.
    pub(super) fn end(&mut self) {
        if self.look.is_multiple_of(FORGOTTEN) {
            self.forget(FORGOTTEN);
        }
    }

    /// Forgets flows that were not met within so many looks.
    fn forget(&mut self, looks: u32) {
        let look = self.look;
        self.flows.retain(|_, quiet| look.wrapping_sub(quiet.look) <= looks);
    }
}

impl Quiet {
    /// Records the packets of a direction. Returns whether the flow moves again, so that nothing needs to be
    /// remembered.
    fn note(&mut self, flow: &Flow) -> bool {
        let direction = usize::from(flow.direction & 1);
        let before = self.sides[direction];
        let came = flow.packets.wrapping_sub(before.packets);
        if came == 0 {
            return false;
        }
        // An answer to a probe repeats known numbers. More packets than probes mean that the peer had a
        // reason of its own to send.
        let has_moved = flow.position != before.position || flow.acked != before.acked;
        if has_moved || came > u64::from(before.questions) {
            self.active = self.active.max(flow.last_seen);
        }
        self.sides[direction] = Side::of(flow);
        let is_settled = |side: &Side| side.questions == 0 && side.last_seen <= self.active;
        self.sides.iter().all(is_settled)
    }
}

const fn nanos(time: Duration) -> u64 {
    time.as_secs() * SECOND
}

#[cfg(test)]
mod tests {
    use edge_common::flow::{DOWN, Tuple};

    use super::*;

    const START: u64 = 1000 * SECOND;

    fn address(port: u16) -> std::net::SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    /// An idle flow.
    fn idle(id: u16) -> FlowPair {
        let (client, edge) = (address(id), address(443));
        let common = Flow { id: id.into(), last_seen: START, packets: 7, position: 900, ..Flow::default() };
        let up = Flow { to: Tuple::new(address(id), address(8443)), direction: UP, ..common };
        let down = Flow { to: Tuple::new(edge, client), direction: DOWN, ..common };
        FlowPair { up_key: FlowKey::new(client, edge), up, down }
    }

    /// The clock, the flows, and what is asked each second.
    struct Model {
        keepalive: Keepalive,
        flows: Vec<FlowPair>,
        now: u64,
        gone: Vec<Peer>,
        most: usize,
    }

    impl Model {
        fn new(flows: impl IntoIterator<Item = FlowPair>) -> Self {
            let (flows, gone) = (flows.into_iter().collect(), Vec::new());
            Self { keepalive: Keepalive::default(), flows, now: START, gone, most: 0 }
        }

        /// Lets seconds pass; says who was asked in which of them. `answers` says who answers.
        fn pass(&mut self, seconds: u64, answers: impl Fn(&Peer) -> bool) -> Vec<(u64, u8)> {
            let mut request = Vec::new();
            for _ in 0..seconds {
                self.now += SECOND;
                let mut due = self.keepalive.begin(self.now);
                for pair in &self.flows {
                    self.keepalive.look_at(&pair.up_key, &pair.up, &mut due);
                    self.keepalive.look_at(&pair.down_key(), &pair.down, &mut due);
                }
                self.keepalive.end();
                self.gone.extend(&due.gone);
                let questions = due.questions();
                self.most = self.most.max(questions.len());
                for Question { peer, .. } in questions {
                    let pair = self.flows.iter_mut().find(|pair| pair.up_key == peer.up_key).unwrap();
                    self.keepalive.set_request(pair, peer.direction, self.now);
                    request.push(((self.now - START) / SECOND, peer.direction));
                    if answers(&peer) {
                        let flow = if peer.direction == UP { &mut pair.up } else { &mut pair.down };
                        flow.packets += 1;
                        flow.last_seen = self.now;
                    }
                }
            }
            request
        }

        fn idle(&self) -> u64 {
            let FlowPair { up, down, .. } = self.flows[0];
            let active = self.keepalive.active(up.id).unwrap_or(up.last_seen.max(down.last_seen));
            (self.now - active) / SECOND
        }
    }

    #[test]
    fn answers_keep_a_flow_alive_and_are_no_activity() {
        let mut model = Model::new([idle(1)]);
        let request = model.pass(600, |_| true);
        let of = |direction| request.iter().filter(move |(_, of)| *of == direction).map(|(at, _)| *at);
        assert_eq!(of(UP).collect::<Vec<_>>(), [240, 480]);
        assert_eq!(of(DOWN).collect::<Vec<_>>(), [60, 120, 180, 240, 300, 360, 420, 480, 540, 600]);
        assert_eq!((model.idle(), model.gone.len()), (600, 0));
    }

    #[test]
    fn what_is_said_unasked_is_activity() {
        for says in [|flow: &mut Flow| flow.position += 1, |flow: &mut Flow| flow.packets += 1] {
            let mut model = Model::new([idle(1)]);
            // At 240 both have just answered.
            model.pass(240, |_| true);
            assert_eq!(model.idle(), 240);
            let up = &mut model.flows[0].up;
            up.last_seen = model.now + SECOND / 2;
            says(up);
            model.pass(10, |_| true);
            assert_eq!(model.idle(), 9);
            assert!(model.keepalive.flows.is_empty(), "nothing to remember of it");
        }
    }

    #[test]
    fn who_does_not_answer_is_gone_after_five_minutes() {
        for (gone, first) in [(UP, 240), (DOWN, 60)] {
            let mut model = Model::new([idle(1)]);
            let request = model.pass(299, |peer| peer.direction != gone);
            let expected: Vec<_> = (first..300).step_by(15).map(|at| (at, gone)).collect();
            assert_eq!(request.into_iter().filter(|(_, of)| *of == gone).collect::<Vec<_>>(), expected);
            assert!(model.gone.is_empty());
            model.pass(1, |_| false);
            assert_eq!(model.gone.len(), 1);
            assert_eq!((model.gone[0].direction, model.gone[0].id), (gone, 1));
        }
    }

    #[test]
    fn what_the_other_side_repeats_does_not_hide_that_a_peer_is_gone() {
        let mut model = Model::new([idle(1)]);
        for _ in 0..300 {
            model.flows[0].up.packets += 3;
            model.flows[0].up.last_seen = model.now;
            model.pass(1, |_| false);
        }
        assert_eq!(model.gone.first().map(|peer| peer.direction), Some(DOWN));
    }

    #[test]
    fn one_answer_begins_the_count_anew() {
        let mut model = Model::new([idle(1)]);
        model.pass(280, |_| false);
        let down = &mut model.flows[0].down;
        (down.packets, down.last_seen) = (down.packets + 1, model.now);
        let up = &mut model.flows[0].up;
        (up.packets, up.last_seen) = (up.packets + 1, model.now);
        model.pass(299, |_| false);
        assert!(model.gone.is_empty());
        model.pass(1, |_| false);
        assert_eq!(model.gone.len(), 2);
        assert_eq!(model.idle(), 580, "both were answers, late ones");
    }

    #[test]
    fn a_peer_is_asked_before_it_is_given_up_by_a_daemon_that_starts() {
        let mut model = Model::new([idle(1)]);
        model.now = START + 3600 * SECOND;
        let request = model.pass(60, |_| false);
        assert!(model.gone.is_empty() && request.len() == 2 * 4, "{request:?}");
        model.pass(3, |_| false);
        assert_eq!(model.gone.iter().filter(|peer| peer.direction == UP).count(), 2, "{:?}", model.gone);
    }

    #[test]
    fn a_hundred_thousand_idle_flows_make_no_burst_and_each_gets_its_turn() {
        // Scaled down: more than can be asked in the time after which the first are due again.
        let count = u16::try_from(RATE * 80).unwrap();
        let mut model = Model::new((1..=count).map(idle));
        model.flows.iter_mut().for_each(|pair| pair.up.last_seen += 10_000 * SECOND);
        model.keepalive.begin(START);
        model.now += 3600 * SECOND;
        let before = model.now;
        let mut request = HashMap::<u64, u32>::new();
        for _ in 0..160 {
            model.now += SECOND;
            let mut due = model.keepalive.begin(model.now);
            for pair in &model.flows {
                model.keepalive.look_at(&pair.down_key(), &pair.down, &mut due);
            }
            let questions = due.questions();
            assert!(questions.len() <= usize::try_from(RATE).unwrap());
            for Question { peer, .. } in questions {
                *request.entry(peer.id).or_insert(0) += 1;
                let pair = &mut model.flows[usize::try_from(peer.id).unwrap() - 1];
                model.keepalive.set_request(pair, DOWN, model.now);
                (pair.down.packets, pair.down.last_seen) = (pair.down.packets + 1, model.now);
            }
        }
        assert!(model.now > before && request.len() == usize::from(count));
        assert!(request.values().all(|times| *times == 2), "each twice, after 80 seconds again");
    }

    #[test]
    fn flows_that_are_gone_are_forgotten() {
        let mut model = Model::new((1..=100).map(idle));
        model.pass(70, |_| true);
        assert_eq!(model.keepalive.flows.len(), 100);
        model.flows.truncate(1);
        model.pass(2 * u64::from(FORGOTTEN), |_| true);
        assert_eq!(model.keepalive.flows.len(), 1);
    }

    #[test]
    fn what_has_ended_is_not_asked() {
        let mut pair = idle(1);
        pair.up.flags[REPORTED] = 1;
        pair.down.flags[REPORTED] = 1;
        let mut model = Model::new([pair]);
        assert!(model.pass(3600, |_| false).is_empty() && model.gone.is_empty());
    }
}
