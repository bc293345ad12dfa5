//! Connects to a backend: its addresses raced in order, bound to its device, with the next backend after a
//! failure.

mod stock;
pub mod unix;
pub mod warm;

use std::{
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    attempts::Pool,
    backend::{Backend, Lease},
    condition::BackendState,
    failures::Failure,
    location::Addresses,
    names::Labels,
};
use crate::{
    kernel::segment,
    places::Place,
    spec::{SocketName, UnixPath},
};

/// The head start of one address before the next is tried as well (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why there is no connection to a backend.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// All are drained or have weight 0.
    #[error("every backend of the pool is drained; `edgectl backends ready TO` brings one back")]
    Drained,
    /// Every backend that is not drained is at its limit of `connections`.
    #[error("every backend of the pool {0} is at its limit: raise `connections`, or add a backend")]
    Full(Arc<str>),
    /// The name has no address yet.
    #[error("{0} has no address: its name does not resolve")]
    Unresolved(String),
    /// The name that a client's label makes has no address.
    #[error("{to} for {label:?}: {error}")]
    NoLabel {
        /// The target.
        to: String,
        /// The part of the client's name.
        label: String,
        /// Why there is no address.
        error: Arc<str>,
    },
    /// The tunnel device cannot be bound to; nothing leaves by another.
    #[error("the device {device} of {address} {}", unusable(error))]
    Device {
        /// The backend's address.
        address: SocketAddr,
        /// The device's name.
        device: Arc<str>,
        /// The error of `SO_BINDTODEVICE`.
        error: io::Error,
    },
    /// This machine has no socket or port left.
    #[error("no socket for {address}: {error}; see `edgectl doctor` for limits")]
    Local {
        /// The backend's address.
        address: SocketAddr,
        /// The error of the call.
        error: io::Error,
    },
    /// The backend or something on the way refused.
    #[error("{address}: {error}")]
    Refused {
        /// The backend's address.
        address: SocketAddr,
        /// The error of `connect`.
        error: io::Error,
    },
    /// The Unix socket cannot be connected to.
    #[error("{path}: {}", unix::explain(error))]
    Unix {
        /// Where it is.
        path: UnixPath,
        /// The error of `connect`.
        error: io::Error,
    },
    /// Its state fell while it was being connected, and another is up.
    #[error("{0} went down while it was being connected")]
    WentDown(String),
    /// Nothing came back in time.
    #[error("{address} did not answer within {} ms", .after.as_millis())]
    TimedOut {
        /// The backend's (first) address.
        address: SocketAddr,
        /// The time it was given.
        after: Duration,
    },
}

/// The meaning of `SO_BINDTODEVICE`'s error, in the same words as the tunnel watch uses.
fn unusable(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENODEV) => "does not exist".into(),
        _ => format!("cannot be used: {error}"),
    }
}

/// No backend of a pool could be connected.
#[derive(Debug)]
pub struct GaveUp {
    /// Why the one tried last could not.
    pub error: ConnectError,
    /// Its address, where it has one.
    pub backend: Option<SocketName>,
    /// How many were tried.
    pub attempts: u32,
}

impl ConnectError {
    fn address(&self) -> Option<SocketName> {
        match self {
            Self::Unix { path, .. } => Some(SocketName::Unix(path.clone())),
            Self::Device { address, .. }
            | Self::Local { address, .. }
            | Self::Refused { address, .. }
            | Self::TimedOut { address, .. } => Some((*address).into()),
            Self::Drained
            | Self::Full(_)
            | Self::Unresolved(_)
            | Self::NoLabel { .. }
            | Self::WentDown(_) => None,
        }
    }

    /// Whether it says something about the backend rather than about this machine's resources.
    pub fn blames_backend(&self) -> bool {
        !matches!(
            self,
            Self::Drained | Self::Full(_) | Self::NoLabel { .. } | Self::Local { .. } | Self::WentDown(_)
        )
    }

    /// Whether any client can cause it with an invented name; then it is not worth a warning each time.
    pub fn is_clients_choice(&self) -> bool {
        matches!(self, Self::NoLabel { .. })
    }
}

/// Configures a TCP socket before `connect`: may bind it and set options.
pub trait Preparation: Sync {
    /// A value to keep for the lifetime of the socket.
    fn prepare(&self, socket: BorrowedFd<'_>, backend: SocketAddr) -> SocketGuard;
}

/// See [`Preparation::prepare`].
pub type SocketGuard = Option<Box<dyn fmt::Debug + Send + Sync>>;

/// The client that a connection is for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'c> {
    /// Its address.
    pub client: IpAddr,
    /// The listener's port, for backends that have none.
    pub default_port: u16,
    /// The part of its name that the route's `*` matched, for a `{label}` target.
    pub label: Option<&'c str>,
}

/// A connection to a backend.
#[derive(Debug)]
pub struct Connection {
    /// The socket, with `TCP_NODELAY` set.
    pub stream: TcpStream,
    /// The address that answered.
    pub address: SocketName,
    /// Counts it as live, and knows the backend.
    pub lease: Lease,
    /// Its place at the backend, to be kept for as long as the backend has the connection.
    pub place: Place,
    /// From the first attempt to the end of the handshake.
    pub took: Duration,
    /// Backends tried, this one included.
    pub attempts: u32,
    /// It was ready before the client came; `took` is next to nothing then.
    pub warm: bool,
    /// To be kept for as long as the socket is there.
    pub guard: SocketGuard,
}

impl Pool {
    /// Connects to the best backend that answers within the pool's `connect_timeout`. `default_port` is the
    /// listener's. The error is that of the last backend tried.
    pub async fn connect(&self, client: IpAddr, default_port: u16) -> Result<Connection, ConnectError> {
        self.connect_prepared(Wanted { client, default_port, label: None }, None)
            .await
            .map_err(|gave_up| gave_up.error)
    }

    /// The same, with `preparation` of the socket before each attempt. A warm connection is used unprepared.
    pub async fn connect_prepared(
        &self,
        wanted: Wanted<'_>,
        preparation: Option<&dyn Preparation>,
    ) -> Result<Connection, GaveUp> {
        let Wanted { client, default_port, .. } = wanted;
        let start = Instant::now();
        let mut elapsed = Duration::ZERO;
        let mut tried = 0;
        let mut last = None;
        let mut attempts = self.attempts(client);
        while let Some(backend) = attempts.next() {
            let time = attempts.time(elapsed);
            if time.is_zero() {
                break;
            }
            // Others may have taken the last one since it was picked.
            let Some(place) = backend.places().take() else { continue };
            tried += 1;
            // Counted before it is there, or a burst would all go to the same least loaded backend.
            let lease = backend.lease();
            if let Some((stream, address)) = warm::take(&backend, default_port) {
                backend.reused();
                return Ok(Connection {
                    stream,
                    address,
                    lease,
                    place,
                    took: start.elapsed(),
                    attempts: tried,
                    warm: true,
                    guard: None,
                });
            }
            let epoch = backend.epoch();
            let outcome = tokio::select! {
                biased;
                outcome = attempt(&backend, default_port, Some(wanted), time, preparation) => outcome,
                // A backend that is known to be unreachable is not waited for.
                () = down(&backend), if attempts.has_up() => {
                    Err(ConnectError::WentDown(backend.to().to_string()))
                }
            };
            let before = std::mem::replace(&mut elapsed, start.elapsed());
            match outcome {
                Ok(Connected { stream, address, guard }) => {
                    backend.connected(default_port, elapsed.saturating_sub(before));
                    return Ok(Connection {
                        stream,
                        address,
                        lease,
                        place,
                        took: elapsed,
                        attempts: tried,
                        warm: false,
                        guard,
                    });
                }
                Err(error) => {
                    if let Some(failure) = Failure::of(&error) {
                        backend.failures().count(failure);
                    }
                    if error.blames_backend() {
                        backend.failed(default_port, epoch, &error.to_string());
                    }
                    tracing::debug!(pool = &**self.name(), backend = %backend.id(), %error, "connecting failed");
                    let is_own = backend.labels().is_none();
                    let first = is_own.then(|| backend.addresses(default_port).first().copied()).flatten();
                    last = Some((error, first.map(SocketName::from)));
                }
            }
        }
        let (error, first) = last.unwrap_or_else(|| (self.nobody(), None));
        Err(GaveUp { backend: error.address().or(first), error, attempts: tried })
    }
}

impl Pool {
    /// Why no backend was tried at all.
    fn nobody(&self) -> ConnectError {
        let is_drained = |backend: &Arc<Backend>| backend.state() == BackendState::Drained;
        if self.backends().iter().all(is_drained) {
            ConnectError::Drained
        } else {
            ConnectError::Full(Arc::clone(self.name()))
        }
    }
}

/// Ends as soon as the backend is down.
async fn down(backend: &Backend) {
    loop {
        let changed = backend.changed();
        if backend.state() == BackendState::Down {
            return;
        }
        changed.await;
    }
}

/// Connects to one backend within `limit`, by its device if it has one. Its addresses are tried in order, each
/// with a head start before the next; the first that answers wins.
pub async fn connect(
    backend: &Backend,
    default_port: u16,
    limit: Duration,
) -> Result<(TcpStream, SocketName), ConnectError> {
    connect_in(backend, default_port, limit, None).await
}

/// The same with a socket that is prepared first.
pub(super) async fn connect_in(
    backend: &Backend,
    default_port: u16,
    limit: Duration,
    preparation: Option<&dyn Preparation>,
) -> Result<(TcpStream, SocketName), ConnectError> {
    let Connected { stream, address, .. } = attempt(backend, default_port, None, limit, preparation).await?;
    Ok((stream, address))
}

/// Segments of at most so many bytes either way.
pub(super) struct Segments(pub(super) u16);

impl Preparation for Segments {
    fn prepare(&self, socket: BorrowedFd<'_>, _: SocketAddr) -> SocketGuard {
        if let Err(error) = segment::set_limit(socket, self.0) {
            tracing::debug!(%error, "the MSS cannot be set");
        }
        None
    }
}

struct Connected {
    stream: TcpStream,
    address: SocketName,
    guard: SocketGuard,
}

async fn attempt(
    backend: &Backend,
    default_port: u16,
    wanted: Option<Wanted<'_>>,
    limit: Duration,
    preparation: Option<&dyn Preparation>,
) -> Result<Connected, ConnectError> {
    if let Some(path) = backend.to().unix() {
        let stream = unix::connect(path, limit).await?;
        return Ok(Connected { stream, address: SocketName::Unix(path.clone()), guard: None });
    }
    let (addresses, limit) = match backend.labels() {
        Some(labels) => {
            let start = Instant::now();
            let found = labelled(backend, labels, default_port, wanted, limit).await?;
            (found, limit.saturating_sub(start.elapsed()))
        }
        None => (backend.addresses(default_port), limit),
    };
    let Some(&first) = addresses.first() else {
        return Err(ConnectError::Unresolved(backend.to().to_string()));
    };
    let device = backend.device();
    let outcome = match addresses.len() {
        1 => timeout(limit, connect_to(first, device, preparation)).await,
        _ => timeout(limit, race(&addresses, device, preparation)).await,
    };
    let connected = outcome.map_err(|_| ConnectError::TimedOut { address: first, after: limit })??;
    if let Some(answered) = connected.address.tcp().filter(|answered| *answered != first) {
        backend.prefer(answered);
    }
    Ok(connected)
}

/// The addresses for one client of a `{label}` target.
async fn labelled(
    backend: &Backend,
    labels: &Arc<Labels>,
    default_port: u16,
    wanted: Option<Wanted<'_>>,
    limit: Duration,
) -> Result<Addresses, ConnectError> {
    let to = || backend.to().to_string();
    // Only a client has a label, so that nothing else connects there.
    let Some((label, client)) = wanted.and_then(|wanted| Some((wanted.label?, wanted.client))) else {
        return Err(ConnectError::Unresolved(to()));
    };
    let answer = timeout(limit, labels.resolve(label, client)).await;
    match answer.unwrap_or_else(|_| Err("the name servers have not answered yet".into())) {
        Ok(found) => Ok(found.iter().map(|at| backend.address_of(*at, default_port)).collect()),
        Err(error) => Err(ConnectError::NoLabel { to: to(), label: label.to_owned(), error }),
    }
}

async fn race(
    addresses: &[SocketAddr],
    device: Option<&Arc<str>>,
    preparation: Option<&dyn Preparation>,
) -> Result<Connected, ConnectError> {
    let mut addresses = addresses.iter().copied();
    let mut running = FuturesUnordered::new();
    let mut failed = None;
    loop {
        let another = addresses.next();
        if let Some(address) = another {
            running.push(connect_to(address, device, preparation));
        }
        let head_start = sleep(ATTEMPT_DELAY);
        tokio::pin!(head_start);
        tokio::select! {
            finished = running.next() => match finished {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => failed = Some(error),
                None => break,
            },
            () = &mut head_start, if another.is_some() => {}
        }
    }
    // `attempt` calls this with two addresses or more, so one has failed when none is left.
    Err(failed.unwrap_or(ConnectError::Drained))
}

async fn connect_to(
    address: SocketAddr,
    device: Option<&Arc<str>>,
    preparation: Option<&dyn Preparation>,
) -> Result<Connected, ConnectError> {
    let local = |error| ConnectError::Local { address, error };
    let fresh = || -> Result<Socket, ConnectError> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP)).map_err(local)?;
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes())).map_err(|error| ConnectError::Device {
                address,
                device: Arc::clone(device),
                error,
            })?;
        }
        socket.set_tcp_nodelay(true).map_err(local)?;
        Ok(socket)
    };
    let socket = fresh()?;
    let mut guard = preparation.and_then(|preparation| preparation.prepare(socket.as_fd(), address));
    let mut connected = establish(socket, address).await;
    if guard.is_some() && connected.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable) {
        // The port that it was bound to is still remembered towards this address.
        guard = None;
        connected = establish(fresh()?, address).await;
    }
    match connected {
        Ok(stream) => Ok(Connected { stream, address: address.into(), guard }),
        // No port left towards this address.
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Err(local(error)),
        Err(error) => Err(ConnectError::Refused { address, error }),
    }
}

/// As `TcpSocket::connect`, without the call that asks for an error where none is reported.
async fn establish(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        done => done?,
    }
    let stream = TcpStream::from_std(socket.into())?;
    // A connection that came to nothing is closed for writing (`tcp_poll`: EPOLLERR and EPOLLHUP).
    if stream.ready(Interest::WRITABLE).await?.is_write_closed()
        && let Some(error) = stream.take_error()?
    {
        return Err(error);
    }
    Ok(stream)
}

#[cfg(test)]
mod tests;
