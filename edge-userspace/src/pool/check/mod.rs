//! Health checks: the questions to a backend, and which answers count.
//!
//! A check that only needs a connection ([`Ask::Connect`]) never completes one: see [`quiet`]. The others
//! speak the protocol of the routes that lead to the backend. [`health`] decides what a result means.

pub mod certificate;
pub mod diagnosis;
pub(super) mod health;
pub mod probe;
mod question;
mod quiet;
mod run;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout_at},
};

use self::quiet::Quiet;
pub use self::run::Checks;
use super::{
    backend::Backend,
    connect::{self, ConnectError, Preparation, Segments, connect_in},
};
use crate::{
    kernel::tcp,
    proxy_protocol::{ProxySource, Tlvs, write},
    receive::receive,
    spec::{Ask, HealthSpec, HostName, ProxyProtocol, SocketName},
};

/// How a backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The pool's check.
    pub health: HealthSpec,
    /// The questions, in this order; the check passes with the first answer. Empty if the backend is not
    /// checked.
    pub asks: Vec<Ask>,
    /// The port for a backend that has none of its own: that of a listener whose routes lead to it. Results
    /// of clients on other ports do not affect its health.
    pub port: u16,
    /// The name in the ClientHello or in the HTTP request.
    pub server_name: Option<HostName>,
    /// The PROXY header that the backend wants. A check that sends data sends one with the addresses of its
    /// own socket: real servers refuse the protocol's forms for a proxy's own connections (Postfix: `UNKNOWN`
    /// of version 1; LOCAL of version 2 ends its `smtpd`).
    pub proxy_protocol: ProxyProtocol,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There was no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It broke before the answer.
    #[error("connected, but then: {0}")]
    Broken(#[from] io::Error),
    /// It was closed before the answer.
    #[error("closed the connection without answering {}", .0.asked())]
    Closed(Ask),
    /// The answer was something else.
    #[error("answered {} with something that is not {}", .0.asked(), .0.protocol())]
    Foreign(Ask),
    /// It answered with an alert instead of a certificate.
    #[error("shows no certificate to a client of TLS 1.2, but alert {0} (70: it speaks TLS 1.3 only)")]
    NoCertificate(u8),
    /// It stayed silent.
    #[error("connected, but did not answer {} within {} ms", .0.asked(), .1.as_millis())]
    Silent(Ask, Duration),
}

/// Checks a backend once: returns the question that was answered, and the round trip. Each question ends
/// within `plan.health.timeout`. The error is that of the first.
pub async fn check(backend: &Backend, plan: &Plan) -> Result<(Ask, Duration), CheckError> {
    let mut failed = None;
    for &ask in &plan.asks {
        match check_by(backend, plan, ask).await {
            Ok(rtt) => return Ok((ask, rtt)),
            // The other questions go to the same address.
            Err(error @ CheckError::Connect(_)) => return Err(error),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    // A plan that asks nothing is not carried out.
    Err(failed.unwrap_or(CheckError::Connect(ConnectError::Drained)))
}

async fn check_by(backend: &Backend, plan: &Plan, ask: Ask) -> Result<Duration, CheckError> {
    if let (Ask::Connect, Some(path)) = (ask, backend.to().unix()) {
        let start = Instant::now();
        connect::unix::look(path)?;
        return Ok(start.elapsed());
    }
    if ask == Ask::Connect {
        let start = Instant::now();
        let (stream, _) = connect_in(backend, plan.port, plan.health.timeout, Some(&Quiet)).await?;
        // Dropped at once: see `Quiet`.
        return Ok(round_trip(&stream, start));
    }
    let question = |address: &SocketName| ask.question(plan.server_name.as_ref(), address);
    converse(backend, plan, ask, None, question, |received| ask.understand(received))
        .await
        .map(|(rtt, ())| rtt)
}

/// The kernel's figure is that of the SYN alone, without our own waits.
fn round_trip(stream: &tokio::net::TcpStream, start: Instant) -> Duration {
    let measured = tcp::info(stream).map(|info| info.rtt).ok().filter(|rtt| !rtt.is_zero());
    measured.unwrap_or_else(|| start.elapsed())
}

/// Connects, sends the PROXY header of the plan and the bytes that `question` makes for the backend's
/// address, and reads until `understand` has an answer. Neither side sends larger segments than `segments`,
/// if given. Also returns the round trip.
async fn converse<T>(
    backend: &Backend,
    plan: &Plan,
    ask: Ask,
    segments: Option<u16>,
    question: impl FnOnce(&SocketName) -> Vec<u8>,
    mut understand: impl FnMut(&[u8]) -> Option<Result<T, CheckError>>,
) -> Result<(Duration, T), CheckError> {
    let start = Instant::now();
    let limit = plan.health.timeout;
    let segments = segments.map(Segments);
    let preparation = segments.as_ref().map(|segments| segments as &dyn Preparation);
    let (mut stream, address) = connect_in(backend, plan.port, limit, preparation).await?;
    let rtt = round_trip(&stream, start);
    // Reset at the end: checks that left TIME_WAIT behind would in time use up the ports to the backend.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let source = own_connection(&stream, &address)?;
    let mut said = write(plan.proxy_protocol, source, &Tlvs::default()).bytes;
    said.append(&mut question(&address));
    let talk = async {
        stream.write_all(&said).await?;
        let mut received = Vec::new();
        loop {
            if receive(&stream, &mut received).await? == 0 {
                return Err(CheckError::Closed(ask));
            }
            if let Some(understood) = understand(&received) {
                return understood;
            }
        }
    };
    let answer = timeout_at(start + limit, talk).await.unwrap_or(Err(CheckError::Silent(ask, limit)))?;
    Ok((rtt, answer))
}

/// The two ends of a check's connection, for its PROXY header. The ends of a Unix socket have no addresses: there the
/// check comes from this machine, which is the loopback address.
fn own_connection(stream: &tokio::net::TcpStream, address: &SocketName) -> io::Result<ProxySource> {
    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    Ok(match address {
        SocketName::Tcp(address) => {
            ProxySource::Client { source: stream.local_addr()?, destination: *address }
        }
        SocketName::Unix(_) => ProxySource::Client { source: LOOPBACK, destination: LOOPBACK },
    })
}

#[cfg(test)]
pub(in crate::pool) mod tests;
