//! Decides whether packets on the wire match the sockets' view of a connection. Pure: its input is the
//! programs' record, its output a verdict.
//!
//! A flow is looked up by the addresses on the wire, and leaves by the route without ports and marks. If NAT,
//! SYNPROXY or a firewall rule intervenes, a flow with the sockets' addresses would carry nothing, and the
//! sockets would be gone. Both legs must therefore show a packet in each direction first.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use edge_common::flow::Handshake;

/// How long a difference is remembered: as long an operator waits who has changed a rule.
const MEMORY: Duration = Duration::from_mins(10);
/// How many are remembered at most.
const MOST: usize = 1024;
/// Segments that the socket has sent or received meanwhile but the programs have not seen: one may have
/// passed just before they began to record.
const UNSEEN: u32 = 2;

/// How a leg differs from what its socket believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// Packets leave with other addresses or sequence numbers than the socket's.
    Translated,
    /// They leave by another device than the routes say, or not as TCP.
    OtherWay,
    /// They arrive by another device than they leave by.
    OtherArrival,
}

/// The observations of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A packet each way was as the socket believes.
    Same,
    /// Not both yet.
    Unknown,
    /// The wire shows something else.
    Differs(Difference),
}

/// Segments of a socket, counted by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) received: u32,
    pub(super) sent: u32,
}

impl Traffic {
    /// The packets since `earlier`.
    pub(super) const fn since(self, earlier: Self) -> Self {
        Self {
            received: self.received.wrapping_sub(earlier.received),
            sent: self.sent.wrapping_sub(earlier.sent),
        }
    }
}

/// Judges a leg that should use `device` by the programs' record. At the end of the wait `traffic` is what
/// the socket has sent and received while they recorded: packets that they missed took another path. Only
/// then is a different device believed: a single packet may have taken a path that is no longer used, or be
/// on its way through a lower device.
pub(super) fn judge(device: u32, noted: &Handshake, traffic: Option<Traffic>) -> Verdict {
    if noted.translated != 0 {
        return Verdict::Differs(Difference::Translated);
    }
    let by_another = |noted: u32| noted != 0 && noted != device;
    if by_another(noted.leaves_by) {
        return traffic.map_or(Verdict::Unknown, |_| Verdict::Differs(Difference::OtherWay));
    }
    if by_another(noted.arrives_by) {
        return traffic.map_or(Verdict::Unknown, |_| Verdict::Differs(Difference::OtherArrival));
    }
    match (noted.leaves_by != 0, noted.arrives_by != 0, traffic) {
        (true, true, _) => Verdict::Same,
        (false, _, Some(Traffic { sent: UNSEEN.., .. })) => Verdict::Differs(Difference::OtherWay),
        (true, false, Some(Traffic { received: UNSEEN.., .. })) => Verdict::Differs(Difference::OtherArrival),
        _ => Verdict::Unknown,
    }
}

/// One end of connections that go through the same rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Those that clients make to this address of ours, by this device.
    Listener(SocketAddr, u32),
    /// Those that are made to this backend, by this device.
    Backend(SocketAddr, u32),
}

/// Differences of the last [`MEMORY`]: not every connection has to find out again.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<Place, (Difference, Instant)>);

impl Memory {
    /// Records the result. For clients, only what our own packets show: one client's packets must not count
    /// for others.
    pub(super) fn note(&mut self, place: Place, difference: Difference, now: Instant) {
        if matches!(place, Place::Listener(..)) && difference != Difference::Translated {
            return;
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, (_, then)| now.saturating_duration_since(*then) < MEMORY);
        }
        if self.0.len() < MOST {
            self.0.insert(place, (difference, now));
        }
    }

    /// The recent result.
    pub(super) fn recall(&mut self, place: Place, now: Instant) -> Option<Difference> {
        let (difference, then) = *self.0.get(&place)?;
        if now.saturating_duration_since(then) < MEMORY {
            return Some(difference);
        }
        self.0.remove(&place);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(arrives_by: u32, leaves_by: u32) -> Handshake {
        Handshake { arrives_by, leaves_by, ..Handshake::default() }
    }

    #[test]
    fn a_leg_is_the_same_once_it_has_shown_a_packet_each_way() {
        assert_eq!(judge(7, &noted(7, 7), None), Verdict::Same);
        for half in [noted(0, 0), noted(7, 0), noted(0, 7)] {
            assert_eq!(judge(7, &half, None), Verdict::Unknown);
            // A peer that says nothing proves nothing.
            assert_eq!(judge(7, &half, Some(Traffic { received: 1, sent: 1 })), Verdict::Unknown);
        }
        for other in [noted(8, 7), noted(7, 8)] {
            assert_eq!(judge(7, &other, None), Verdict::Unknown, "one packet out of the ordinary");
        }
        let translated = Handshake { translated: 1, ..noted(7, 7) };
        assert_eq!(judge(7, &translated, None), Verdict::Differs(Difference::Translated));
    }

    #[test]
    fn what_the_socket_counts_and_the_programs_do_not_see_went_another_way() {
        let differs = |noted, received, sent| match judge(7, &noted, Some(Traffic { received, sent })) {
            Verdict::Differs(difference) => Some(difference),
            _ => None,
        };
        assert_eq!(differs(noted(7, 8), 0, 0), Some(Difference::OtherWay));
        assert_eq!(differs(noted(8, 7), 0, 0), Some(Difference::OtherArrival));
        assert_eq!(differs(noted(7, 0), 0, 2), Some(Difference::OtherWay));
        assert_eq!(differs(noted(0, 7), 2, 2), Some(Difference::OtherArrival));
        assert_eq!(differs(noted(0, 7), 0, 5), None, "the peer is silent");
        assert_eq!(differs(noted(7, 7), 5, 5), None);
    }

    #[test]
    fn traffic_counts_modulo_two_to_the_32() {
        let at = |received, sent| Traffic { received, sent };
        assert_eq!(at(1, 3).since(at(u32::MAX, 3)), at(2, 0));
    }

    #[test]
    fn a_difference_is_remembered_for_a_while() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let address = SocketAddr::from(([192, 0, 2, 1], 443));
        let (listener, backend) = (Place::Listener(address, 2), Place::Backend(address, 2));
        memory.note(listener, Difference::OtherArrival, now);
        assert_eq!(memory.recall(listener, now), None, "one client speaks for itself alone");
        memory.note(listener, Difference::Translated, now);
        memory.note(backend, Difference::OtherArrival, now);
        assert_eq!(memory.recall(listener, now), Some(Difference::Translated));
        assert_eq!(memory.recall(backend, now), Some(Difference::OtherArrival));
        assert_eq!(memory.recall(Place::Backend(address, 3), now), None);
        assert_eq!(memory.recall(listener, now + MEMORY), None);
        assert_eq!(memory.0.len(), 1);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        for device in 0..5000 {
            memory.note(
                Place::Backend(SocketAddr::from(([192, 0, 2, 1], 443)), device),
                Difference::Translated,
                now,
            );
        }
        assert_eq!(memory.0.len(), MOST);
        memory.note(
            Place::Listener(SocketAddr::from(([192, 0, 2, 1], 1)), 1),
            Difference::Translated,
            now + MEMORY,
        );
        assert_eq!(memory.0.len(), 1);
    }
}
