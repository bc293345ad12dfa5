//! Sends one packet to the peer of a connection that no longer has a socket. A socket is recreated from the
//! connection's numbers alone (`TCP_REPAIR`, as for restored checkpoints).

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    Ends, admin,
    tcp::{self, Queue},
};

/// One side of a connection, as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The address here.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// The sequence number that the peer has acknowledged last.
    pub next: u32,
    /// The number behind all data sent to it: the peer expects this one if it has received everything but not
    /// yet acknowledged it.
    pub sent: u32,
    /// The one that is expected of it.
    pub expected: u32,
    /// The index of the device that leads to it.
    pub device: u32,
}

impl Standing {
    /// The addresses.
    pub const fn ends(&self) -> Ends {
        Ends { local: self.local, peer: self.peer }
    }
}

/// Sends a reset to the peer. If it may have received more than it has acknowledged, sends one from there
/// too: a reset takes effect at once only with exactly the expected number.
///
/// A peer that expects neither, because part of the data was lost, answers with a challenge ACK (RFC 5961
/// §3.2). The stack no longer knows the connection, and answers that with a reset that takes effect.
pub fn reset_peer(standing: &Standing) -> io::Result<()> {
    let standing = *standing;
    admin::run(move || {
        let reset = |next| {
            let socket = revive(&Standing { next, ..standing })?;
            tcp::leave_repair(&socket)?;
            tcp::reset_on_close(&socket)
        };
        reset(standing.next)?;
        if standing.sent == standing.next { Ok(()) } else { reset(standing.sent) }
    })?
}

/// Sends a keepalive probe (RFC 9293 §3.8.4), which the peer answers with its numbers: a segment without
/// data, one before the number that it expects. No socket receives the answer. `timestamp` is one that it has
/// seen, if timestamps are in use.
pub fn ask_peer(standing: &Standing, timestamp: Option<u32>) -> io::Result<()> {
    let standing = *standing;
    admin::run(move || {
        let socket = revive(&standing)?;
        if let Some(timestamp) = timestamp {
            tcp::show_timestamp(&socket, timestamp)?;
        }
        tcp::leave_repair_asking(&socket)?;
        // Frozen, it closes without a word.
        tcp::enter_repair(&socket)
    })?
}

/// A frozen socket that stands there.
fn revive(standing: &Standing) -> io::Result<Socket> {
    let Standing { local, peer, next, expected, device, .. } = *standing;
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    // In this mode the port may be anybody's, a listener's too.
    tcp::enter_repair(&socket)?;
    // The address may have left this machine meanwhile, and with it the need to send anything.
    socket.bind(&SockAddr::from(local))?;
    tcp::bind_to_index(&socket, device)?;
    tcp::set_sequence(&socket, Queue::Send, next)?;
    tcp::set_sequence(&socket, Queue::Receive, expected)?;
    socket.connect(&SockAddr::from(peer))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// A connection whose near end has vanished without a word; `None` where that cannot be done.
    fn orphaned() -> Option<(TcpStream, Standing)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let (local, peer) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
        match tcp::enter_repair(&near) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: TCP_REPAIR needs CAP_NET_ADMIN here");
                return None;
            }
            result => result.unwrap(),
        }
        let next = tcp::sequence(&near, Queue::Send).unwrap();
        let expected = tcp::sequence(&near, Queue::Receive).unwrap();
        drop(near);
        Some((far, Standing { local, peer, next, sent: next, expected, device: 1 }))
    }

    #[test]
    fn a_connection_without_a_socket_is_reset() {
        let Some((mut far, standing)) = orphaned() else { return };
        far.set_nonblocking(true).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "closed without a word");
        reset_peer(&standing).unwrap();
        far.set_nonblocking(false).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    /// As behind a block, where what the peer answers does not arrive.
    #[test]
    fn a_peer_that_has_received_more_than_it_acknowledged_is_reset_without_its_answer() {
        let Some((mut far, standing)) = orphaned() else { return };
        // It has answered all before; an older number stands for what it has not.
        let standing = Standing { next: standing.next.wrapping_sub(1), ..standing };
        reset_peer(&standing).unwrap();
        far.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_peer_that_is_asked_is_not_harmed() {
        let Some((mut far, standing)) = orphaned() else { return };
        ask_peer(&standing, Some(1)).unwrap();
        far.set_nonblocking(true).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        reset_peer(&standing).unwrap();
        far.set_nonblocking(false).unwrap();
        assert_eq!(
            far.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionReset,
            "the numbers still hold"
        );
    }
}
