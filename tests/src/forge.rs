//! TCP segments that no stack has made, sent from a host of the lab: what an attacker can do who sees
//! nothing, or as much as the case reveals.

use std::{io::Read, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use etherparse::{Ipv4Slice, PacketBuilder, TcpHeader, TcpSlice};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    Host,
    wait::{self, SOON},
};

/// `IPPROTO_RAW`: the IP header comes from who sends (raw(7)).
const WITH_HEADER: i32 = 255;
const HOP_LIMIT: u8 = 64;
/// Longer than any segment that comes here.
const LARGEST: usize = 1 << 16;
/// A segment on which nothing more follows: longer than an acknowledgement may be delayed (200 ms).
const QUIET: Duration = Duration::from_millis(300);

/// A connection as one of its ends names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The pretended sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
}

/// The type that a forged segment pretends to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bare acknowledgement.
    Ack,
    /// A few bytes.
    Data,
    /// FIN, with an acknowledgement as always.
    Fin,
    /// RST without an acknowledgement.
    Rst,
    /// RST with one.
    RstAck,
    /// The beginning of another connection.
    Syn,
    /// And the answer to one.
    SynAck,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Ack, Self::Data, Self::Fin, Self::Rst, Self::RstAck, Self::Syn, Self::SynAck];
}

/// Where a direction of a connection is, as the receiver counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The sequence number that is expected next.
    pub seq: u32,
    /// The acknowledged sequence number.
    pub ack: u32,
}

impl Numbers {
    /// As far behind these as said, or ahead.
    #[must_use]
    pub fn moved(self, seq: i64, ack: i64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "they count modulo 2³²")]
        let by = |number: u32, distance: i64| number.wrapping_add(distance as u32);
        Self { seq: by(self.seq, seq), ack: by(self.ack, ack) }
    }
}

impl Tuple {
    /// The packets from the one to the other.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self { source, destination }
    }

    /// The other direction.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// A sender of forged segments.
#[derive(Debug)]
pub struct Forger {
    socket: Socket,
}

impl Forger {
    /// One on this host, for segments of the family of this address.
    pub fn on(host: &Host, family: SocketAddr) -> Result<Self> {
        let protocol = Some(Protocol::from(WITH_HEADER));
        let socket = host.run(|| Ok(Socket::new(Domain::for_address(family), Type::RAW, protocol)?))?;
        Ok(Self { socket })
    }

    /// Sends one segment.
    pub fn send(&self, tuple: Tuple, kind: Kind, numbers: Numbers) -> Result<()> {
        let Numbers { seq, ack } = numbers;
        let mut header = TcpHeader::new(tuple.source.port(), tuple.destination.port(), seq, 512);
        header.acknowledgment_number = ack;
        header.ack = !matches!(kind, Kind::Rst | Kind::Syn);
        header.fin = kind == Kind::Fin;
        header.rst = matches!(kind, Kind::Rst | Kind::RstAck);
        header.syn = matches!(kind, Kind::Syn | Kind::SynAck);
        let data: &[u8] = if kind == Kind::Data { b"forged" } else { b"" };
        let builder = match (tuple.source, tuple.destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.ip().octets(), destination.ip().octets(), HOP_LIMIT)
            }
            (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.ip().octets(), destination.ip().octets(), HOP_LIMIT)
            }
            _ => anyhow::bail!("{tuple:?} is of two families"),
        };
        let builder = builder.tcp_header(header);
        let mut packet = Vec::with_capacity(builder.size(data.len()));
        builder.write(&mut packet, data)?;
        // A raw socket takes no port.
        let mut to = tuple.destination;
        to.set_port(0);
        wait::until_ok("room for a forged segment", SOON, || {
            Ok(self.socket.send_to(&packet, &SockAddr::from(to))?)
        })
        .map(drop)
    }
}

/// A receiver that sees all segments that come to a host.
#[derive(Debug)]
pub struct Observer {
    socket: Socket,
    tuple: Tuple,
}

impl Observer {
    /// Watches for what comes to this host from now on, of the connection and direction named.
    pub fn on(host: &Host, tuple: Tuple) -> Result<Self> {
        let domain = Domain::for_address(tuple.source);
        let socket = host.run(|| Ok(Socket::new(domain, Type::RAW, Some(Protocol::TCP))?))?;
        socket.set_read_timeout(Some(QUIET))?;
        Ok(Self { socket, tuple })
    }

    /// The state of the *other* direction, from the next segment that arrives: the number that its receiver
    /// has acknowledged, and the number with which to acknowledge this segment.
    pub fn next(&self) -> Result<Numbers> {
        wait::until_ok("a segment", SOON, || {
            let mut packet = vec![0; LARGEST];
            let length = (&self.socket).read(&mut packet)?;
            self.numbers(&packet[..length])
        })
    }

    /// The same by the last of the segments that come until there are no more.
    pub fn last(&self) -> Result<Numbers> {
        let mut last = self.next()?;
        let mut packet = vec![0; LARGEST];
        while let Ok(length) = (&self.socket).read(&mut packet) {
            last = self.numbers(&packet[..length]).unwrap_or(last);
        }
        Ok(last)
    }

    fn numbers(&self, packet: &[u8]) -> Result<Numbers> {
        let Tuple { source, destination } = self.tuple;
        // Of IPv6 the header stays behind.
        let segment = if source.is_ipv4() {
            let ip = Ipv4Slice::from_slice(packet)?;
            ensure!(ip.header().source_addr() == source.ip(), "of somebody else");
            ip.payload().payload
        } else {
            packet
        };
        let tcp = TcpSlice::from_slice(segment)?;
        let ports = (tcp.source_port(), tcp.destination_port());
        ensure!(ports == (source.port(), destination.port()), "of another connection");
        ensure!(tcp.ack() && !tcp.rst(), "without an acknowledgement");
        let length = u32::try_from(tcp.payload().len()).context("a length")?;
        let ack = tcp.sequence_number().wrapping_add(length).wrapping_add(u32::from(tcp.fin()));
        Ok(Numbers { seq: tcp.acknowledgment_number(), ack })
    }
}
