//! Decides whether a hand-over would lengthen the round trip of a running stream too much.
//!
//! On sockets a sender sees the round trip of its own leg; in a flow, that of both legs together. BBR takes
//! the shortest round trip of the last ten seconds for the path's (`bbr_min_rtt_win_sec`,
//! `net/ipv4/tcp_bbr.c`), and limits the data in flight to twice what such a path would hold. If the whole
//! path is much longer than the leg, that is less than it holds. BBR then measures a lower rate with each
//! round trip and slows down further, until the ten seconds are over. The edge cannot see which senders use
//! BBR. Such a stream therefore stays on sockets, and becomes a flow once it has rested for that long: its
//! sender then measures the path's round trip anew.

use std::time::{Duration, Instant};

use crate::kernel::tcp::TcpInfo;

/// The longest path, for each 2 of the sender's leg. Measured at 2.5 times the leg, BBR's rate does not
/// suffer; at 3 times it drops by a sixth, at 4 times by half.
const STRETCH: u32 = 5;
/// The increase of the round trip that is always allowed: on short legs the ratio is a matter of chance.
const NEGLIGIBLE: Duration = Duration::from_millis(5);
/// How long BBR remembers, and some for what is on its way.
const REMEMBERED: Duration = Duration::from_secs(11);
/// The bytes that a resting connection may move within that time, in both directions together. BBR keeps four
/// segments in flight whatever it believes, and so little needs no more.
const STREAM: u64 = 64 << 10;

/// Notices when a stream rests. A connection that has moved little since it began counts as rested: when it
/// is handed over for its age, it is older than its peers' memory of the handshake.
#[derive(Debug, Default)]
pub(super) struct Rest(Option<Box<Mark>>);

#[derive(Debug)]
struct Mark {
    moved: u64,
    at: Instant,
}

impl Rest {
    /// Whether the connection, which has moved this many bytes so far, has rested for as long as its senders
    /// remember.
    pub(super) fn is_over(&mut self, moved: u64, now: Instant) -> bool {
        let (before, since) = self.0.as_ref().map_or((0, None), |mark| (mark.moved, Some(mark.at)));
        if moved.saturating_sub(before) >= STREAM {
            self.0 = Some(Box::new(Mark { moved, at: now }));
            return false;
        }
        since.is_none_or(|since| now.saturating_duration_since(since) >= REMEMBERED)
    }
}

/// Whether one of the two senders would see a path that is too long, judged by the bytes it has sent: `up`
/// and `down`.
pub(super) fn is_stretched(client: &TcpInfo, backend: &TcpInfo, up: u64, down: u64) -> bool {
    let is_longer = |sender: &TcpInfo, receiver: &TcpInfo| {
        let leg = as_seen_by_peer(sender);
        let path = leg + receiver.shortest_rtt;
        path * 2 > leg * STRETCH && path > leg + NEGLIGIBLE
    };
    (down >= STREAM && is_longer(backend, client)) || (up >= STREAM && is_longer(client, backend))
}

/// The shortest round trip that a peer which sends much has seen. The edge sends it little, and may have
/// measured only a slow handshake; the receiving side's measurement is better.
fn as_seen_by_peer(info: &TcpInfo) -> Duration {
    if info.receive_rtt.is_zero() { info.shortest_rtt } else { info.shortest_rtt.min(info.receive_rtt) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(milliseconds: u64) -> TcpInfo {
        TcpInfo { shortest_rtt: Duration::from_millis(milliseconds), ..TcpInfo::default() }
    }

    #[test]
    fn it_is_the_senders_leg_that_counts() {
        let (near, far) = (info(10), info(150));
        assert!(is_stretched(&far, &near, 500, 1 << 20), "a download from near");
        assert!(!is_stretched(&near, &far, 500, 1 << 20), "one from far");
        assert!(is_stretched(&near, &far, 1 << 20, 500), "an upload");
        assert!(!is_stretched(&far, &near, 1 << 20, 500));
        assert!(is_stretched(&near, &far, 1 << 20, 1 << 20), "both");
    }

    #[test]
    fn some_more_is_not_too_long() {
        assert!(!is_stretched(&info(30), &info(20), 0, 1 << 20));
        assert!(is_stretched(&info(31), &info(20), 0, 1 << 20));
        assert!(!is_stretched(&info(4), &info(0), 0, 1 << 20), "by chance");
        assert!(!is_stretched(&info(150), &info(10), 1000, 1000), "no stream");
    }

    #[test]
    fn what_was_received_tells_of_a_slow_handshake() {
        let slow = TcpInfo { receive_rtt: Duration::from_millis(10), ..info(60) };
        assert!(is_stretched(&info(50), &slow, 0, 1 << 20));
        let unknown = TcpInfo { receive_rtt: Duration::ZERO, ..slow };
        assert!(!is_stretched(&info(50), &unknown, 0, 1 << 20));
    }

    #[test]
    fn a_stream_has_rested_when_its_senders_have_forgotten() {
        let now = Instant::now();
        assert!(Rest::default().is_over(STREAM - 1, now), "never a stream");
        let mut rest = Rest::default();
        assert!(!rest.is_over(1 << 20, now));
        assert!(!rest.is_over(1 << 20, now + REMEMBERED / 2));
        assert!(rest.is_over((1 << 20) + 1000, now + REMEMBERED));
        assert!(!rest.is_over(2 << 20, now + REMEMBERED), "it moves again");
        assert!(!rest.is_over(2 << 20, now + REMEMBERED * 3 / 2));
        assert!(rest.is_over(2 << 20, now + REMEMBERED * 2));
    }
}
