//! A connection that only the backend's kernel sees: a check of a port that nobody at home notices.
//!
//! A listening kernel hands a connection to its program when the last packet of the handshake arrives. Linux
//! lets the connecting side delay that packet if a reply is expected to carry it (`TCP_QUICKACK` off: up to
//! 200 ms, see `tcp_rcv_synsent_state_process` in `net/ipv4/tcp_input.c`). By then the SYN-ACK has arrived,
//! which is all that a check needs. The socket is closed at once, and a zero `SO_LINGER` makes the close a
//! reset. The backend's kernel forgets the half-open connection, and its program never had one to accept.
//!
//! If this machine stalls for more than those 200 ms at that moment, the packet is sent after all, and the
//! program sees one connection that is reset.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use rustix::net::sockopt::set_tcp_quickack;

use crate::{
    kernel::tcp,
    pool::connect::{Preparation, SocketGuard},
};

/// Prepares a socket that is closed as soon as it is connected.
pub(super) struct Quiet;

impl Preparation for Quiet {
    fn prepare(&self, socket: BorrowedFd<'_>, _: SocketAddr) -> SocketGuard {
        let prepared = set_tcp_quickack(socket, false).map_err(io::Error::from);
        if let Err(error) = prepared.and_then(|()| tcp::reset_on_close(socket)) {
            tracing::debug!(%error, "a check will be seen by the backend's program");
        }
        None
    }
}
