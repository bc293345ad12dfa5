//! Reads from a socket into a buffer that grows by the bytes received.
//!
//! Sockets must not be read through `AsyncRead` here. After a read that does not fill its buffer, tokio
//! considers the socket empty and waits for the next edge from epoll. But `tcp_recvmsg` also stops at an
//! urgent byte, and epoll reports no edge for the bytes behind it.

#![forbid(unsafe_code)]

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    task::{Poll, ready},
};

use rustix::{
    buffer::Buffer,
    net::{RecvFlags, recv},
};
use tokio::{io::Interest, net::TcpStream};

/// Room for the hellos of today's browsers in one read.
pub const ROOM: usize = 4096;

/// Reads once, up to [`ROOM`] bytes, and returns how many arrived; 0 is the end of the stream.
///
/// Receives on the stack, then allocates exactly as much as arrived. Many connections are opening at any
/// time, and the gaps between their allocations would be lost memory.
pub async fn receive(socket: &TcpStream, received: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|cx| {
        loop {
            ready!(socket.poll_read_ready(cx))?;
            match receive_now(socket, received) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    })
    .await
}

fn receive_now(socket: &TcpStream, received: &mut Vec<u8>) -> io::Result<usize> {
    let mut room = [MaybeUninit::<u8>::uninit(); ROOM];
    let (bytes, _) = receive_once(socket, &mut room)?;
    received.extend_from_slice(bytes);
    Ok(bytes.len())
}

/// Reads once. Only `EAGAIN` clears the socket's readiness; a short read does not.
pub fn receive_once<B: Buffer<u8>>(socket: &TcpStream, buffer: B) -> io::Result<B::Output> {
    socket.try_io(Interest::READABLE, || {
        let (output, _) = recv(socket, buffer, RecvFlags::empty())?;
        Ok(output)
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use socket2::SockRef;
    use tokio::{
        io::AsyncWriteExt,
        net::TcpListener,
        time::{Duration, timeout},
    };

    use super::*;

    #[tokio::test]
    async fn what_stands_behind_an_urgent_byte_is_read_without_another_event() {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let near = listener.accept().await.unwrap().0;
        far.write_all(b"before").await.unwrap();
        SockRef::from(&far).send_out_of_band(b"x").unwrap();
        far.write_all(b"behind").await.unwrap();
        // All of it is there before the first look, so that one event stands for it.
        while crate::kernel::tcp::info(&near).unwrap().bytes_received < 13 {
            tokio::task::yield_now().await;
        }
        let mut received = Vec::new();
        let all = async {
            while received.len() < 12 {
                assert_ne!(receive(&near, &mut received).await.unwrap(), 0);
            }
        };
        timeout(Duration::from_secs(5), all).await.expect("no event for what stands behind");
        assert_eq!(received, b"beforebehind");
        drop(far);
        assert_eq!(receive(&near, &mut received).await.unwrap(), 0);
    }
}
