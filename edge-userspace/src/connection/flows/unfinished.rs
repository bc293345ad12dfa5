//! Hand-overs that an earlier daemon began and did not finish. Their flows carry packets, but data that was
//! still in the sockets is lost. If there was none, nothing is lost and the flow continues.
//!
//! Both peers are probed. A peer's answer shows how much it has sent, including data that a socket received
//! and never passed on; if the other side acknowledges that much, there is no gap. There is none behind it
//! either, since a receiver acknowledges nothing beyond a gap (RFC 9293 §3.4). Data that a socket had written
//! and its peer does not acknowledge in its answer will never be retransmitted.

use std::time::Duration;

use edge_common::flow::{DOWN, Flow, Pending, UP};
use tokio::time::{Instant, sleep};

use super::{FlowEnd, Flows};
use crate::{kernel::FlowPair, lock::lock};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Between two questions: the kernel answers one each half second (`tcp_invalid_ratelimit`).
const ASK: Duration = Duration::from_millis(600);
/// How long to wait for answers, and for the other side to acknowledge the data that they show: a few round
/// trips of a long path.
const PATIENCE: Duration = Duration::from_secs(3);

/// A flow that may miss bytes.
#[derive(Debug)]
pub(super) struct Suspect {
    id: u64,
    pending: Pending,
    /// By direction.
    senders: [Sender; 2],
    /// The peer that was probed last, and when.
    request: Option<(u8, Instant)>,
    questions: u32,
}

/// The numbers that a peer has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sender {
    /// Packets of it that were seen before it was asked.
    before: u64,
    /// The end of the data that it has sent, in the other side's numbers; known once it has answered.
    reached: Option<u32>,
}

/// The state of a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It misses nothing.
    Whole,
    /// Bytes are lost, or a side has left.
    Lost,
    /// Not yet.
    Unknown,
}

impl Suspect {
    pub(super) fn new(id: u64, pending: Pending, pair: &FlowPair) -> Self {
        let sender = |flow: &Flow| Sender { before: flow.packets, reached: None };
        let senders = [sender(&pair.up), sender(&pair.down)];
        Self { id, pending, senders, request: None, questions: 0 }
    }

    /// The peer to probe now. They are probed one after the other, because the answer of one is passed on to
    /// the other, and a probe whose timestamp is older than an earlier packet's gets no answer (RFC 7323
    /// §5.3).
    fn whom_to_ask(&mut self) -> Option<u8> {
        let is_open = |direction: u8| self.senders[usize::from(direction)].reached.is_none();
        let next = match self.request {
            None => UP,
            Some((request, at)) if is_open(request) && at.elapsed() < ASK => return None,
            Some((request, _)) => opposite(request),
        };
        let whom = if is_open(next) { next } else { opposite(next) };
        is_open(whom).then(|| {
            self.request = Some((whom, Instant::now()));
            self.questions += 1;
            whom
        })
    }

    fn look(&mut self, pair: &FlowPair) -> Verdict {
        let FlowPair { up, down, .. } = pair;
        if pair.is_closed() {
            return Verdict::Whole;
        }
        if up.is_reset() || down.is_reset() {
            return Verdict::Lost;
        }
        let (mut written, mut acknowledged) = (true, true);
        for (direction, own, other) in [(UP, up, down), (DOWN, down, up)] {
            let direction = usize::from(direction);
            let sender = &mut self.senders[direction];
            if sender.reached.is_none() && own.packets > sender.before {
                sender.reached = Some(own.sent().wrapping_add(own.seq_delta));
            }
            let Some(reached) = sender.reached else { return Verdict::Unknown };
            written &= covers(own.acked, self.pending.watch[direction]);
            acknowledged &= covers(other.acked, reached);
        }
        match (written, acknowledged) {
            (false, _) => Verdict::Lost,
            (true, true) => Verdict::Whole,
            (true, false) => Verdict::Unknown,
        }
    }
}

const fn opposite(direction: u8) -> u8 {
    if direction == UP { DOWN } else { UP }
}

/// Whether an acknowledgement is of everything before `number`.
fn covers(acknowledged: u32, number: u32) -> bool {
    acknowledged.wrapping_sub(number).cast_signed() >= 0
}

impl Flows {
    /// Finds out about the hand-overs that an earlier daemon did not finish; ends those whose bytes are lost.
    pub async fn finish_handovers(&self) {
        let mut suspects = std::mem::take(&mut *lock(&self.suspects));
        if suspects.is_empty() {
            return;
        }
        let (began, all) = (Instant::now(), suspects.len());
        let mut lost = 0;
        while !suspects.is_empty() {
            let is_late = began.elapsed() >= PATIENCE;
            suspects.retain_mut(|suspect| {
                let pair = self.tier.pair(&suspect.pending.up_key, suspect.id).unwrap_or_default();
                let Some(pair) = pair else {
                    // It has ended meanwhile.
                    self.finish_handover(suspect.id);
                    return false;
                };
                match suspect.look(&pair) {
                    Verdict::Unknown if !is_late => {
                        if let Some(whom) = suspect.whom_to_ask() {
                            // Some peers drop segments without a timestamp if timestamps are in use, and some
                            // drop those older than the sockets' last.
                            self.tier.ask(&pair, whom, suspect.questions % 4 < 3);
                        }
                        return true;
                    }
                    Verdict::Whole => {}
                    Verdict::Lost | Verdict::Unknown => {
                        lost += 1;
                        self.end(&pair, FlowEnd::Unfinished);
                    }
                }
                self.finish_handover(suspect.id);
                false
            });
            sleep(LOOK).await;
        }
        tracing::info!(all, lost, "hand-overs of an earlier daemon are finished");
    }

    pub(super) fn finish_handover(&self, id: u64) {
        if let Err(error) = self.tier.finish(id) {
            tracing::warn!(
                error = error.words(),
                "a hand-over stays noted as begun: the next start looks at it again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_common::flow::{PEER_FIN_ACKED, RESET};

    use super::{super::example::pair, *};

    fn suspect(pair: &FlowPair) -> Suspect {
        let pending = Pending { watch: [pair.up.acked, pair.down.acked], ..Pending::default() };
        Suspect::new(1, pending, pair)
    }

    fn answers(pair: &mut FlowPair) {
        pair.up.packets += 1;
        pair.down.packets += 1;
    }

    #[test]
    fn what_both_have_acknowledged_is_whole_once_both_have_answered() {
        let mut pair = pair();
        let mut suspect = suspect(&pair);
        assert_eq!(suspect.look(&pair), Verdict::Unknown, "nobody has answered");
        pair.up.packets += 1;
        assert_eq!(suspect.look(&pair), Verdict::Unknown, "one has not");
        pair.down.packets += 1;
        assert_eq!(suspect.look(&pair), Verdict::Whole);
    }

    #[test]
    fn what_only_a_socket_took_is_a_gap() {
        for direction in [UP, DOWN] {
            let mut pair = pair();
            let mut suspect = suspect(&pair);
            answers(&mut pair);
            // The answer stands behind what was sent to the socket.
            let own = if direction == UP { &mut pair.up } else { &mut pair.down };
            own.position += 1;
            assert_eq!(suspect.look(&pair), Verdict::Unknown);
            // It goes on, and the other side has not got beyond the gap.
            let own = if direction == UP { &mut pair.up } else { &mut pair.down };
            own.position += 1000;
            assert_eq!(suspect.look(&pair), Verdict::Unknown);
        }
    }

    #[test]
    fn what_a_socket_wrote_has_to_be_in_the_answer() {
        let mut pair = pair();
        let mut suspect = suspect(&pair);
        suspect.pending.watch[usize::from(UP)] = pair.up.acked.wrapping_add(10);
        assert_eq!(suspect.look(&pair), Verdict::Unknown);
        answers(&mut pair);
        assert_eq!(suspect.look(&pair), Verdict::Lost);
        pair.up.acked = pair.up.acked.wrapping_add(10);
        assert_eq!(suspect.look(&pair), Verdict::Whole);
    }

    #[test]
    fn a_stream_that_goes_on_is_whole_when_the_answer_is_acknowledged() {
        let mut pair = pair();
        let mut suspect = suspect(&pair);
        answers(&mut pair);
        pair.up.position += 500;
        assert_eq!(suspect.look(&pair), Verdict::Unknown);
        pair.down.acked = pair.down.acked.wrapping_add(500);
        pair.up.position += 100_000;
        assert_eq!(suspect.look(&pair), Verdict::Whole, "what came later does not count");
    }

    #[test]
    fn who_has_left_is_not_asked() {
        let mut pair = pair();
        let mut suspect = suspect(&pair);
        pair.up.flags[PEER_FIN_ACKED] = 1;
        assert_eq!(suspect.look(&pair), Verdict::Unknown);
        pair.down.flags[PEER_FIN_ACKED] = 1;
        assert_eq!(suspect.look(&pair), Verdict::Whole);
        let mut suspect = self::suspect(&pair);
        pair = self::pair();
        pair.down.flags[RESET] = 1;
        assert_eq!(suspect.look(&pair), Verdict::Lost);
    }
}
