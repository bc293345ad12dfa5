//! Whether the two legs of a connection can be rewritten into each other, and the numbers for it.
//!
//! The differences of sequence numbers and timestamps are constants of a connection. They follow from where
//! each leg began and how many bytes went each way, and do not depend on the moment of the hand-over.

use std::net::SocketAddr;

use edge_common::flow::{
    CHANGES_FAMILY, DOWN, ESTABLISHED, Flow, FlowKey, HAS_ECN, HAS_TIMESTAMPS, Handshake, Tuple, UP, WATCHED,
};
use thiserror::Error;

use crate::kernel::{FlowPair, segment, tcp::TcpInfo};

/// How far ahead of the edge's clock translated timestamps start, in its ticks (milliseconds). The clock can
/// be read only shortly after the socket's last packet, and a timestamp must not go back (RFC 7323 §5.3).
const CLOCK_LEAD: u32 = 20;

/// The data that may still arrive and leave under the windows that the sockets announced, once the flow
/// exists: the limit for numbers that the flow has not seen but believes. Above the largest window that the
/// kernel announces by default (`tcp_rmem[2]`).
const AFTERWARDS: u32 = 1 << 24;

/// The largest window that fits in a header without scaling.
const UNSCALED: u32 = 0xffff;

/// The timestamps option, aligned.
const TIMESTAMPS: u32 = 12;

/// One connection of the two, seen from the edge.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// The edge's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// The device that its packets come and go through.
    pub device: u32,
    /// Its start.
    pub handshake: Handshake,
    /// The kernel's present information about it.
    pub info: TcpInfo,
    /// The clock of its timestamps now.
    pub clock: u32,
    /// Bytes read from its socket since the start.
    pub read: u64,
    /// Bytes written to its socket since the start.
    pub written: u64,
    /// Bytes of these that the peer has not acknowledged.
    pub unacknowledged: u32,
}

/// Why two legs do not fit, and the connection stays on its sockets.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// The handshake was not seen: the socket is not in the watched cgroup, or is older than the programs.
    #[error("its handshake was not noted")]
    Unseen,
    /// One side has closed.
    #[error("a side has closed already")]
    Closing,
    /// Timestamps on one leg only: what is not there cannot be translated.
    #[error("timestamps on one leg only")]
    Timestamps,
    /// ECN on one leg only.
    #[error("ECN on one leg only")]
    Ecn,
    /// A leg carries less than the other was promised.
    #[error("packets of one leg do not fit the path of the other")]
    PathMtu,
}

impl Leg {
    /// The next sequence number to be read from the peer.
    pub const fn received(&self) -> u32 {
        self.handshake.rcv_nxt.wrapping_add(low(self.read))
    }

    /// The sequence number behind the last byte written.
    pub const fn sent(&self) -> u32 {
        self.handshake.snd_nxt.wrapping_add(low(self.written))
    }

    const fn acknowledged(&self) -> u32 {
        self.sent().wrapping_sub(self.unacknowledged)
    }

    fn has(&self, flag: u32) -> bool {
        self.handshake.flags & flag != 0
    }

    fn headers(&self) -> u32 {
        // A mapped address is IPv4 on the wire.
        segment::headers(self.peer.ip().to_canonical().is_ipv4())
    }

    /// The longest packet that the edge told the peer to send, in bytes on this leg.
    fn promised(&self) -> u32 {
        // The kernel subtracts the timestamps option from the MSS that it reports as announced
        // (`tcp_rcv_synsent_state_process`).
        let timestamps = if self.has(HAS_TIMESTAMPS) { TIMESTAMPS } else { 0 };
        self.info.announced_mss + timestamps + self.headers()
    }

    /// Whether what `other`'s peer may send fits the path of this one, rewritten.
    fn takes(&self, other: &Self) -> bool {
        let rewritten = other.promised() + self.headers() - other.headers();
        rewritten <= self.info.path_mtu
    }
}

/// The data that a flow keeps for its account.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// The connection's number.
    pub id: u64,
    /// The key of its label.
    pub label: u32,
    /// When the client's connection was accepted, `CLOCK_MONOTONIC` in nanoseconds.
    pub accepted: u64,
    /// How long connecting to the backend took, in microseconds.
    pub connect_time: u32,
    /// Bytes of the stream so far, client → backend.
    pub bytes_up: u64,
    /// And backend → client.
    pub bytes_down: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub now: u64,
}

/// The entries for a flow of these legs, or why there can be none.
pub fn agree(client: &Leg, backend: &Leg, account: &Account) -> Result<FlowPair, Mismatch> {
    for leg in [client, backend] {
        if !leg.has(ESTABLISHED) {
            return Err(Mismatch::Unseen);
        }
        if leg.info.state != TcpInfo::ESTABLISHED {
            return Err(Mismatch::Closing);
        }
    }
    if client.has(HAS_TIMESTAMPS) != backend.has(HAS_TIMESTAMPS) {
        return Err(Mismatch::Timestamps);
    }
    if client.has(HAS_ECN) != backend.has(HAS_ECN) {
        return Err(Mismatch::Ecn);
    }
    if !client.takes(backend) || !backend.takes(client) {
        return Err(Mismatch::PathMtu);
    }
    let mut up = one_way(client, backend, account.bytes_up);
    let mut down = one_way(backend, client, account.bytes_down);
    // The echo of a timestamp is translated back by what its own way was translated with.
    up.tsecr_delta = down.tsval_delta.wrapping_neg();
    down.tsecr_delta = up.tsval_delta.wrapping_neg();
    (up.direction, down.direction) = (UP, DOWN);
    let Account { id, label, accepted, connect_time, now, .. } = *account;
    for flow in [&mut up, &mut down] {
        (flow.id, flow.label, flow.accepted) = (id, label, accepted);
        (flow.connect_time, flow.last_seen) = (connect_time, now);
        // Until the hand-over is over.
        flow.flags[WATCHED] = 1;
    }
    Ok(FlowPair { up_key: FlowKey::new(client.peer, client.local), up, down })
}

/// The way from the peer of `from` to the peer of `to`, which has carried so many bytes.
fn one_way(from: &Leg, to: &Leg, bytes: u64) -> Flow {
    let seq_delta = to.sent().wrapping_sub(from.received());
    let ack_delta = to.received().wrapping_sub(from.sent());
    let clock = to.clock.wrapping_add(CLOCK_LEAD);
    let tsval_delta = if from.has(HAS_TIMESTAMPS) { clock.wrapping_sub(from.handshake.ts_recent) } else { 0 };
    let scales = |leg: &Leg| {
        let scaled = leg.info.options & TcpInfo::WINDOW_SCALE != 0;
        if scaled { (leg.info.send_scale, leg.info.receive_scale) } else { (0, 0) }
    };
    // The receiver's window is unknown until its first packet: this is the smallest safe value.
    let floor = to.acknowledged().wrapping_sub(seq_delta);
    Flow {
        to: Tuple::new(to.local, to.peer),
        seq_delta,
        ack_delta,
        tsval_delta,
        ingress: from.device,
        egress: to.device,
        scales: Flow::with_scales(scales(from).0, scales(to).1),
        shape: if from.headers() == to.headers() { 0 } else { CHANGES_FAMILY },
        start: from.received().wrapping_sub(low(bytes)),
        position: bytes,
        acked: from.acknowledged(),
        // More is learnt from its packets, less is not.
        window: UNSCALED,
        floor,
        ceiling: from.received().wrapping_add(AFTERWARDS),
        ack_ceiling: from.sent().wrapping_add(AFTERWARDS),
        ..Flow::default()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sequence numbers count modulo 2³²")]
const fn low(bytes: u64) -> u32 {
    bytes as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(number: u32, local: &str, peer: &str) -> Leg {
        let handshake = Handshake {
            snd_nxt: number,
            rcv_nxt: number.wrapping_mul(7),
            ts_recent: number / 3,
            flags: ESTABLISHED | HAS_TIMESTAMPS,
            ..Handshake::default()
        };
        let info = TcpInfo {
            state: TcpInfo::ESTABLISHED,
            options: TcpInfo::TIMESTAMPS | TcpInfo::SACK | TcpInfo::WINDOW_SCALE,
            send_scale: 7,
            receive_scale: 9,
            announced_mss: 1400,
            path_mtu: 1500,
            ..TcpInfo::default()
        };
        let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
        let (clock, device) = (5_000_000, number % 10);
        Leg { local, peer, device, handshake, info, clock, read: 0, written: 0, unacknowledged: 0 }
    }

    fn legs() -> (Leg, Leg) {
        let client = leg(0xffff_fff3, "192.0.2.1:443", "198.51.100.7:50000");
        let backend = leg(0x7fff_0002, "10.0.0.1:20001", "10.0.0.2:443");
        (client, backend)
    }

    #[test]
    fn the_differences_do_not_depend_on_when() {
        let (mut client, mut backend) = legs();
        let first = agree(&client, &backend, &Account::default()).unwrap();
        // A hello of 517 bytes later, and the answer of 4,000.
        (client.read, backend.written) = (517, 517);
        (backend.read, client.written) = (4000, 4000);
        let later = agree(&client, &backend, &Account::default()).unwrap();
        for (before, after) in [(first.up, later.up), (first.down, later.down)] {
            assert_eq!((before.seq_delta, before.ack_delta), (after.seq_delta, after.ack_delta));
        }
        assert_eq!(later.up.sent(), client.handshake.rcv_nxt.wrapping_add(517));
    }

    #[test]
    fn a_header_of_our_own_shifts_what_the_client_sends() {
        let (mut client, mut backend) = legs();
        let plain = agree(&client, &backend, &Account::default()).unwrap();
        (client.read, backend.written) = (100, 128);
        let headed = agree(&client, &backend, &Account::default()).unwrap();
        assert_eq!(headed.up.seq_delta, plain.up.seq_delta.wrapping_add(28));
        assert_eq!(headed.down.ack_delta, plain.down.ack_delta.wrapping_sub(28));
    }

    #[test]
    fn what_goes_up_comes_back_down() {
        let (client, backend) = legs();
        let FlowPair { up, down, up_key } = agree(&client, &backend, &Account::default()).unwrap();
        assert_eq!(up.seq_delta, down.ack_delta.wrapping_neg());
        assert_eq!(up.ack_delta, down.seq_delta.wrapping_neg());
        assert_eq!(up.tsval_delta, down.tsecr_delta.wrapping_neg());
        assert_eq!(up.tsecr_delta, down.tsval_delta.wrapping_neg());
        assert_eq!(down.reverse_key(), up_key);
        assert_eq!((up.ingress, up.egress), (down.egress, down.ingress));
        // The peer's timestamp becomes one just ahead of the edge's own clock on the other leg.
        assert_eq!(client.handshake.ts_recent.wrapping_add(up.tsval_delta), backend.clock + 20);
    }

    #[test]
    fn legs_that_differ_stay_on_sockets() {
        type Change = fn(&mut Leg);
        let changes: [(Change, Mismatch); 5] = [
            (|leg| leg.handshake.flags = 0, Mismatch::Unseen),
            (|leg| leg.info.state = TcpInfo::CLOSE_WAIT, Mismatch::Closing),
            (|leg| leg.handshake.flags &= !HAS_TIMESTAMPS, Mismatch::Timestamps),
            (|leg| leg.handshake.flags |= HAS_ECN, Mismatch::Ecn),
            (|leg| leg.info.path_mtu = 1451, Mismatch::PathMtu),
        ];
        for (change, expected) in changes {
            let (mut client, mut backend) = legs();
            change(&mut client);
            assert_eq!(agree(&client, &backend, &Account::default()), Err(expected));
            let (client, _) = legs();
            change(&mut backend);
            assert_eq!(agree(&client, &backend, &Account::default()), Err(expected));
        }
    }

    #[test]
    fn families_are_compared_as_they_are_on_the_wire() {
        let client = leg(1, "[::ffff:192.0.2.1]:443", "[::ffff:198.51.100.7]:50000");
        let (_, backend) = legs();
        assert!(!agree(&client, &backend, &Account::default()).unwrap().up.changes_family());
        let mut client = leg(1, "[2001:db8::1]:443", "[2001:db8::7]:50000");
        assert!(agree(&client, &backend, &Account::default()).unwrap().up.changes_family());
        // 20 bytes less of header on the other leg, and the path is just wide enough.
        client.info.announced_mss = 1448;
        assert!(agree(&client, &backend, &Account::default()).is_ok());
        client.info.announced_mss = 1449;
        assert_eq!(agree(&client, &backend, &Account::default()), Err(Mismatch::PathMtu));
    }
}
