//! Listening sockets: bound by the daemon, before it drops its privileges, one for each worker.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::holder::{Holder, holder};

/// Connections that wait for accept; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Silence before the kernel's first keepalive probe. Shorter than the five minutes after which common NATs
/// forget a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(4);
/// Time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Questions without an answer after which the peer is gone.
const KEEPALIVE_RETRIES: u32 = 4;

/// Why an address could not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error(
        "{address} is in use by {}, stop it or bind another address",
        holder.as_ref().map_or_else(
            || format!("another program: see `ss -ltnp 'sport = :{}'`", address.port()),
            ToString::to_string,
        )
    )]
    InUse {
        /// The address.
        address: SocketAddr,
        /// The process that holds the port, if known.
        holder: Option<Holder>,
    },
    /// A port below 1024 without the capability.
    #[error("not allowed to listen on {0}: run as root or with CAP_NET_BIND_SERVICE")]
    Denied(SocketAddr),
    /// This machine has no addresses of this family now, or not the device of a link-local address.
    #[error("{0} cannot be listened on now: {1}")]
    NotNow(SocketAddr, io::Error),
    /// Anything else that the kernel said.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

impl BindError {
    fn new(address: SocketAddr, error: io::Error) -> Self {
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::AddrInUse, _) => Self::InUse { address, holder: holder(address) },
            (io::ErrorKind::PermissionDenied, _) => Self::Denied(address),
            (io::ErrorKind::AddrNotAvailable, _) | (_, Some(libc::ENODEV | libc::EAFNOSUPPORT)) => {
                Self::NotNow(address, error)
            }
            _ => Self::Other(address, error),
        }
    }

    /// Whether the same attempt may succeed later, without a change of the configuration.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::NotNow(..) => true,
            Self::Denied(_) | Self::Other(..) => false,
        }
    }
}

/// Listens on `address` with `workers` sockets, among which the kernel spreads connections (`SO_REUSEPORT`).
///
/// `[::]` accepts IPv4 too unless `v6_only`. On a machine without IPv6 this listens on `0.0.0.0` instead. It
/// also listens on an address that the machine does not have yet (`IP_FREEBIND`, ip(7)), so that clients are
/// accepted from the moment it appears; [`is_local`] tells the difference. With `beside_ours` this process
/// may listen there already.
pub fn bind(
    address: SocketAddr,
    workers: usize,
    v6_only: bool,
    beside_ours: bool,
) -> Result<Vec<TcpListener>, BindError> {
    match bind_all(address, workers, v6_only, beside_ours, false) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&error) && !v6_only => {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            tracing::warn!(%address, instead = %v4, "this machine has no IPv6");
            bind_all(v4, workers, false, beside_ours, false).map_err(|error| BindError::new(v4, error))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            bind_all(address, workers, v6_only, beside_ours, true)
                .map_err(|error| BindError::new(address, error))
        }
        result => result.map_err(|error| BindError::new(address, error)),
    }
}

/// Whether the machine has the address now; without it a socket listens in vain. An IPv6 address counts only
/// after duplicate address detection (RFC 4862 §5.4).
pub fn is_local(address: SocketAddr) -> bool {
    let attempt =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
            // Any port: only the address is looked at.
            let mut address = address;
            address.set_port(0);
            socket.bind(&SockAddr::from(address))
        });
    attempt.is_ok()
}

/// Whether another program listens on `address`, or on all addresses at its port.
pub fn is_taken(address: SocketAddr, v6_only: bool) -> bool {
    let attempt = socket(address, v6_only).and_then(|socket| socket.bind(&SockAddr::from(address)));
    attempt.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// EAFNOSUPPORT: no IPv6 in the kernel; EADDRNOTAVAIL: `net.ipv6.conf.all.disable_ipv6`.
fn no_ipv6(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    raw == Some(libc::EAFNOSUPPORT) || raw == Some(libc::EADDRNOTAVAIL)
}

fn bind_all(
    address: SocketAddr,
    workers: usize,
    v6_only: bool,
    beside_ours: bool,
    free: bool,
) -> io::Result<Vec<TcpListener>> {
    let socket = || {
        let socket = socket(address, v6_only)?;
        match address {
            _ if !free => {}
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        Ok::<_, io::Error>(socket)
    };
    if !beside_ours {
        // With SO_REUSEPORT a second program of the same user would silently take half of the connections. A
        // first bind without it detects that program (`inet_csk_get_port` refuses if somebody listens).
        // Listening is not needed for the test, and would accept clients only to reset them.
        socket()?.bind(&SockAddr::from(address))?;
    }
    (0..workers)
        .map(|_| {
            let socket = socket()?;
            socket.set_reuse_port(true)?;
            socket.bind(&SockAddr::from(address))?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn socket(address: SocketAddr, v6_only: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    tune(&socket)?;
    Ok(socket)
}

/// Options that accepted connections inherit from their listening socket, which saves a call for each.
pub fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_refused_and_workers_share_one() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        assert!(matches!(bind(taken, 2, false, false), Err(BindError::InUse { .. })));
        drop(other);
        let sockets = bind(taken, 2, false, false).unwrap();
        assert_eq!(sockets.len(), 2);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == taken));
        assert!(matches!(bind(taken, 1, false, false), Err(BindError::InUse { .. })));
    }

    #[test]
    fn an_address_that_is_not_there_yet_is_listened_on() {
        for foreign in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let foreign = foreign.parse().unwrap();
            assert!(!is_local(foreign), "{foreign}");
            assert_eq!(bind(foreign, 2, false, true).unwrap().len(), 2, "{foreign}");
        }
        assert!(is_local("127.0.0.1:443".parse().unwrap()));
    }

    #[test]
    fn what_may_pass_is_told_from_what_is_wrong() {
        let error =
            |number| BindError::new("[fe80::1%9]:443".parse().unwrap(), io::Error::from_raw_os_error(number));
        assert!(error(libc::EADDRINUSE).may_pass() && error(libc::ENODEV).may_pass());
        assert!(!error(libc::EACCES).may_pass() && !error(libc::EINVAL).may_pass());
    }
}
