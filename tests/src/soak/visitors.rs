//! Ordinary clients, which must be served at all times: short requests, slow hellos, transfers in both
//! directions, half-closes, resets, and connections that rest for hours. Each one that is not served is
//! recorded.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Error, Result};
use fastrand::Rng;

use super::{
    home::{Order, SITES, Site, WHOLE, Wish},
    ledger::{Ledger, Loss, Stage, Symptom},
};
use crate::{
    Lab,
    hello::ClientHello,
    stream::{self, End, Pace},
    topology::CLIENT_SECOND,
};

/// Bytes of most transfers; one in eight is sixteen times as large.
const TRANSFER: u64 = 256 * 1024;

/// The activities of a visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Short,
    SlowHello,
    Download,
    Upload,
    Both,
    HalfClosed,
    ResetByClient,
    ResetByBackend,
}

const KINDS: [Kind; 8] = [
    Kind::Short,
    Kind::SlowHello,
    Kind::Download,
    Kind::Upload,
    Kind::Both,
    Kind::HalfClosed,
    Kind::ResetByClient,
    Kind::ResetByBackend,
];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Short => "short request",
            Self::SlowHello => "slow hello",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Both => "both ways",
            Self::HalfClosed => "half-closed",
            Self::ResetByClient => "reset by client",
            Self::ResetByBackend => "reset by backend",
        }
    }

    const fn wish(self) -> Wish {
        match self {
            Self::Short | Self::SlowHello | Self::ResetByClient => Wish::Echo,
            Self::Download => Wish::Download,
            Self::Upload => Wish::Upload,
            Self::Both => Wish::Both,
            Self::HalfClosed => Wish::Trickle,
            Self::ResetByBackend => Wish::Abort,
        }
    }
}

/// The name of resting visitors' activity in the report.
const RESTING: &str = "resting";

/// Those that come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitors<'a> {
    /// Where they are.
    pub(super) lab: &'a Lab,
    /// Where they write down what they meet.
    pub(super) ledger: &'a Ledger,
    /// Set at the end of the day.
    pub(super) over: &'a AtomicBool,
}

/// A connection whose backend may have answered.
struct Visit {
    stream: TcpStream,
    backend: Option<usize>,
}

/// How a connection failed.
struct Failure {
    stage: Stage,
    symptom: Symptom,
    error: String,
    client: Option<SocketAddr>,
    backend: Option<usize>,
}

impl Visitors<'_> {
    /// Comes again and again with something else, until the day is over.
    pub(super) fn come_and_go(self, mut random: Rng) {
        while !self.is_over() {
            let site = &SITES[random.usize(..SITES.len())];
            let kind = KINDS[random.usize(..KINDS.len())];
            let began = self.ledger.now();
            match self.visit(site, kind, &mut random) {
                Ok(()) => self.ledger.served(kind.name()),
                Err(failure) => self.lose(site, kind.name(), began, &failure),
            }
            // Not a wait: people read what they have got.
            thread::sleep(Duration::from_millis(random.u64(20..400)));
        }
    }

    /// Opens a connection that sends something now and then until the day is over, and replaces it if it is
    /// lost.
    pub(super) fn rest(self, site: &'static Site, mut random: Rng) {
        while !self.is_over() {
            let began = self.ledger.now();
            match self.rest_once(site, &mut random) {
                Ok(()) => self.ledger.served(RESTING),
                Err(failure) => {
                    self.lose(site, RESTING, began, &failure);
                    // Not a wait: a program that reconnects does not do so at once.
                    thread::sleep(Duration::from_millis(random.u64(200..1500)));
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn lose(&self, site: &Site, doing: &'static str, began: Duration, failure: &Failure) {
        self.ledger.lost(Loss {
            client: failure.client,
            host: site.host,
            backends: failure.backend.map_or_else(|| site.backends.to_vec(), |backend| vec![backend]),
            doing,
            began,
            failed: self.ledger.now(),
            stage: failure.stage,
            symptom: failure.symptom,
            error: failure.error.clone(),
        });
    }

    fn visit(&self, site: &Site, kind: Kind, random: &mut Rng) -> Result<(), Failure> {
        let large = if random.u8(..8) == 0 { 16 } else { 1 };
        let length = match kind {
            Kind::Short | Kind::SlowHello | Kind::ResetByClient => random.u64(1..16_000),
            Kind::HalfClosed => random.u64(1..1000),
            _ => random.u64(1..TRANSFER) * large,
        };
        let order = Order { wish: kind.wish(), seed: random.u64(..), length };
        let hello = if random.bool() {
            ClientHello::new(site.host).post_quantum()
        } else {
            ClientHello::new(site.host)
        };
        let pieces = if kind == Kind::SlowHello { 8 } else { 1 };
        let mut visit = self.connect(random)?;
        let done =
            begin(&mut visit, &hello.records(), order, pieces).and_then(|()| finish(&visit, kind, order));
        match done {
            // The reset may overtake all data from its backend (close with a zero SO_LINGER).
            Err(error) if kind == Kind::ResetByBackend && symptom(&error) == Symptom::Reset => Ok(()),
            done => done.map_err(|error| visit.failed(&error)),
        }
    }

    fn rest_once(&self, site: &Site, random: &mut Rng) -> Result<(), Failure> {
        let order = Order { wish: Wish::Echo, seed: random.u64(..), length: 0 };
        let mut visit = self.connect(random)?;
        let hello = ClientHello::new(site.host).records();
        let done = begin(&mut visit, &hello, order, 1).and_then(|()| {
            while !self.is_over() {
                let bytes = order.up().bytes(random.usize(1..2000));
                echo(&mut visit.stream, &bytes)?;
                let rest = Duration::from_millis(random.u64(100..4000));
                let until = self.ledger.now() + rest;
                while self.ledger.now() < until && !self.is_over() {
                    // Not a wait: the connection rests.
                    thread::sleep(Duration::from_millis(50));
                }
            }
            visit.stream.shutdown(Shutdown::Write)?;
            expect_end(&mut visit.stream)
        });
        done.map_err(|error| visit.failed(&error))
    }

    fn connect(&self, random: &mut Rng) -> Result<Visit, Failure> {
        let edge = &self.lab.edge;
        let connected = match random.u8(..4) {
            0 => self.lab.client.connect(edge.at_v6(443)),
            1 => self.lab.client.connect_from(IpAddr::from(CLIENT_SECOND), edge.at(443)),
            _ => self.lab.client.connect(edge.at(443)),
        };
        connected.map(|stream| Visit { stream, backend: None }).map_err(|error| Failure {
            stage: Stage::Connecting,
            symptom: symptom(&error),
            error: format!("{error:#}"),
            client: None,
            backend: None,
        })
    }
}

impl Visit {
    fn failed(&self, error: &Error) -> Failure {
        Failure {
            stage: if self.backend.is_some() { Stage::Carried } else { Stage::Connecting },
            symptom: symptom(error),
            error: format!("{error:#}"),
            client: self.stream.local_addr().ok(),
            backend: self.backend,
        }
    }
}

/// An answer that came from the edge instead of the backend.
#[derive(Debug)]
struct Alert;

impl std::fmt::Display for Alert {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a TLS alert")
    }
}

impl std::error::Error for Alert {}

fn symptom(error: &Error) -> Symptom {
    if error.downcast_ref::<Alert>().is_some() {
        return Symptom::Alert;
    }
    let Some(error) = error.downcast_ref::<io::Error>() else { return Symptom::Corrupt };
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Symptom::Refused,
        io::ErrorKind::UnexpectedEof => Symptom::Short,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Symptom::Silence,
        _ => Symptom::Reset,
    }
}

fn short() -> Error {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
}

/// Sends hello and order in so many pieces, and learns which backend has them.
fn begin(visit: &mut Visit, hello: &[u8], order: Order, pieces: usize) -> Result<()> {
    let bytes = [hello, &order.bytes()].concat();
    for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
        visit.stream.write_all(piece)?;
        if pieces > 1 {
            // Not a wait: the client is slow.
            thread::sleep(Duration::from_millis(100));
        }
    }
    let mut backend = [0];
    visit.stream.read_exact(&mut backend)?;
    // The first byte of a record with an alert (RFC 8446 §5.1); backends have smaller numbers.
    if backend[0] == 21 {
        return Err(Alert.into());
    }
    visit.backend = Some(backend[0].into());
    Ok(())
}

/// The rest of a visit.
fn finish(visit: &Visit, kind: Kind, order: Order) -> Result<()> {
    let mut stream = &visit.stream;
    match kind {
        Kind::Short | Kind::SlowHello => {
            echo(&mut stream, &order.up().bytes(usize::try_from(order.length)?))?;
            stream.shutdown(Shutdown::Write)?;
            expect_end(&mut stream)
        }
        Kind::Download => whole(order.down().receive(&mut stream, Pace::Uneven)?, order),
        Kind::Upload => {
            order.up().send(&mut stream, order.length, Pace::Uneven)?;
            stream.shutdown(Shutdown::Write)?;
            confirmed(&mut stream)
        }
        Kind::Both => {
            let mut sending = visit.stream.try_clone()?;
            thread::scope(|scope| {
                let sent = scope.spawn(move || {
                    order.up().send(&mut sending, order.length, Pace::Steady)?;
                    Ok::<_, Error>(sending.shutdown(Shutdown::Write)?)
                });
                let mut down = (&mut stream).take(order.length);
                let received = order.down().receive(&mut down, Pace::Uneven)?;
                sent.join().unwrap_or_else(|_| Err(short()))?;
                whole(received, order)
            })?;
            confirmed(&mut stream)
        }
        Kind::HalfClosed => {
            stream.shutdown(Shutdown::Write)?;
            whole(order.down().receive(&mut stream, Pace::Steady)?, order)
        }
        Kind::ResetByClient => {
            echo(&mut stream, &order.up().bytes(usize::try_from(order.length)?))?;
            Ok(socket2::SockRef::from(&visit.stream).set_linger(Some(Duration::ZERO))?)
        }
        Kind::ResetByBackend => match order.down().receive(&mut stream, Pace::Steady) {
            // A reset may overtake what was sent before it.
            Ok((_, End::Reset)) => Ok(()),
            Ok((_, End::Fin)) => Err(short()),
            Err(error) => Err(error),
        },
    }
}

fn echo(stream: &mut (impl Read + Write), bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    anyhow::ensure!(back == bytes, "the echo differs");
    Ok(())
}

fn expect_end(stream: &mut impl Read) -> Result<()> {
    match stream::read_to_end(stream)? {
        (rest, End::Fin) if rest.is_empty() => Ok(()),
        (rest, End::Fin) => anyhow::bail!("{} bytes behind the last", rest.len()),
        (_, End::Reset) => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
    }
}

fn whole((length, end): (u64, End), order: Order) -> Result<()> {
    match end {
        End::Fin if length == order.length => Ok(()),
        End::Fin if length < order.length => Err(short()),
        End::Fin => anyhow::bail!("{length} bytes, not {}", order.length),
        End::Reset => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
    }
}

/// The backend's word about what it was sent.
fn confirmed(stream: &mut impl Read) -> Result<()> {
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    anyhow::ensure!(answer[0] == WHOLE, "the backend got something else");
    expect_end(stream)
}

const _: () = assert!(WHOLE != 21);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_bytes_are_told_from_those_of_connections() {
        let of = |kind: io::ErrorKind| symptom(&Error::from(io::Error::from(kind)).context("while reading"));
        assert_eq!(of(io::ErrorKind::ConnectionReset), Symptom::Reset);
        assert_eq!(of(io::ErrorKind::ConnectionRefused), Symptom::Refused);
        assert_eq!(of(io::ErrorKind::WouldBlock), Symptom::Silence);
        assert_eq!(symptom(&short()), Symptom::Short);
        assert_eq!(symptom(&Alert.into()), Symptom::Alert);
        let differs = Error::msg("the stream differs at byte 3");
        assert!(super::super::home::is_content(&differs));
        assert_eq!(symptom(&differs), Symptom::Corrupt);
    }
}
