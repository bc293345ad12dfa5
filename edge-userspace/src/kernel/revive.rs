//! Ending a connection that has no socket any more: one is made again from its numbers alone (`TCP_REPAIR`, as
//! checkpoints are restored) and closed with a reset.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::tcp::{self, Queue};

/// Sends a reset from `local` to `peer`: `next` is the sequence number that the peer expects, `expected` the one
/// that is expected of it. It leaves through the device with index `device`.
///
/// A peer that has received more than it has acknowledged answers the reset with a challenge (RFC 5961 §3.2), which
/// the stack, where the connection is unknown by then, answers with a reset that counts.
pub fn reset_peer(
    local: SocketAddr,
    peer: SocketAddr,
    next: u32,
    expected: u32,
    device: u32,
) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    // In this mode the port may be anybody's, a listener's too.
    tcp::enter_repair(&socket)?;
    // The address may have left this machine meanwhile, and with it the need to send anything.
    socket.bind(&SockAddr::from(local))?;
    tcp::bind_to_index(&socket, device)?;
    tcp::set_sequence(&socket, Queue::Send, next)?;
    tcp::set_sequence(&socket, Queue::Receive, expected)?;
    socket.connect(&SockAddr::from(peer))?;
    tcp::leave_repair(&socket)?;
    tcp::reset_on_close(&socket)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn a_connection_without_a_socket_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let (local, peer) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
        match tcp::enter_repair(&near) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: TCP_REPAIR needs CAP_NET_ADMIN here");
                return;
            }
            result => result.unwrap(),
        }
        let next = tcp::sequence(&near, Queue::Send).unwrap();
        let expected = tcp::sequence(&near, Queue::Receive).unwrap();
        drop(near);
        far.set_nonblocking(true).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "closed without a word");
        reset_peer(local, peer, next, expected, 1).unwrap();
        far.set_nonblocking(false).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
