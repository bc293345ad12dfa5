//! Listening sockets: bound by the daemon, before it drops its privileges, one for each worker.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

/// Connections that wait for accept; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Silence after which the kernel asks whether a peer is still there. Below the five minutes after which common
/// NATs forget a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(4);
/// Time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Questions without an answer after which the peer is gone.
const KEEPALIVE_RETRIES: u32 = 4;

/// Why an address could not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error("{0} is in use by another program: see `ss -ltnp 'sport = :{port}'`, stop it or bind another address", port = .0.port())]
    InUse(SocketAddr),
    /// A port below 1024 without the capability.
    #[error("not allowed to listen on {0}: run as root or with CAP_NET_BIND_SERVICE")]
    Denied(SocketAddr),
    /// No interface has the address.
    #[error("{0} is not an address of this machine")]
    NotLocal(SocketAddr),
    /// Anything else that the kernel said.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

impl BindError {
    fn new(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(address),
            io::ErrorKind::PermissionDenied => Self::Denied(address),
            io::ErrorKind::AddrNotAvailable => Self::NotLocal(address),
            _ => Self::Other(address, error),
        }
    }
}

/// Listens on `address` with `workers` sockets, among which the kernel spreads connections (`SO_REUSEPORT`).
///
/// `[::]` takes IPv4 too unless `v6_only`. On a machine without IPv6 it listens on `0.0.0.0` instead. With
/// `beside_ours` this process may listen there already.
pub fn bind(
    address: SocketAddr,
    workers: usize,
    v6_only: bool,
    beside_ours: bool,
) -> Result<Vec<TcpListener>, BindError> {
    match bind_all(address, workers, v6_only, beside_ours) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&error) && !v6_only => {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            tracing::warn!(%address, instead = %v4, "this machine has no IPv6");
            bind_all(v4, workers, false, beside_ours).map_err(|error| BindError::new(v4, error))
        }
        result => result.map_err(|error| BindError::new(address, error)),
    }
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
) -> io::Result<Vec<TcpListener>> {
    if !beside_ours {
        // With SO_REUSEPORT a second program of the same user would silently take half of the connections:
        // look without it first. Binding says so by itself (`inet_csk_get_port` refuses where somebody
        // listens); a probe that listened would accept clients only to reset them.
        socket(address, v6_only)?.bind(&SockAddr::from(address))?;
    }
    (0..workers)
        .map(|_| {
            let socket = socket(address, v6_only)?;
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

/// What accepted connections inherit from their listening socket, so that it costs no call for each.
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
        assert!(matches!(bind(taken, 2, false, false), Err(BindError::InUse(_))));
        drop(other);
        let sockets = bind(taken, 2, false, false).unwrap();
        assert_eq!(sockets.len(), 2);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == taken));
        assert!(matches!(bind(taken, 1, false, false), Err(BindError::InUse(_))));
    }

    #[test]
    fn a_foreign_address_is_refused() {
        let foreign = "192.0.2.1:0".parse().unwrap();
        assert!(matches!(bind(foreign, 1, false, false), Err(BindError::NotLocal(_))));
    }
}
