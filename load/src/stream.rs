//! Bulk on one connection: sent from one warm buffer, and thrown away where it arrives.

use std::{
    io::{self, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

/// Octets of one `send`: they stay in the processor's cache.
const PIECE: usize = 128 * 1024;
/// Octets that one `recv` throws away at most.
const DISCARD: usize = 4 << 20;

/// Sends for this long.
pub(crate) fn send_for(stream: &mut TcpStream, time: Duration) -> io::Result<()> {
    let piece = vec![0x5a; PIECE];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&piece)?;
    }
    Ok(())
}

/// Counts what comes until the stream ends.
pub(crate) fn discard(stream: &TcpStream) -> io::Result<u64> {
    // With MSG_TRUNC the kernel does not write to it (tcp(7)): the pages are never touched.
    let mut nowhere = vec![0; DISCARD];
    let mut total = 0;
    loop {
        match recv(stream, nowhere.as_mut_slice(), RecvFlags::TRUNC) {
            Ok((_, 0)) => return Ok(total),
            Ok((_, octets)) => total += octets as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
