//! The `copy` tier: `recv` and `send` through one buffer for each worker thread.
//!
//! The buffer is shared, so an idle connection owns none. Only bytes that the destination does not accept at
//! once are kept, in a separate allocation. The source is not read until they are gone, so that the kernel's
//! receive window holds the sender back.

use std::{
    cell::RefCell,
    future::Future as _,
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use rustix::net::{SendFlags, send};
use tokio::{io::Interest, net::TcpStream};

use super::{
    Hold, Preread,
    direction::{Fault, Step},
    meter::Counter,
};
use crate::receive::receive_once;

/// The size of the shared buffer. Larger ones gain nothing: what is larger is for splice.
const BUFFER: usize = 64 * 1024;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Bytes that the destination has not taken yet. Boxed: most of the time there are none.
#[derive(Debug, Default)]
pub(super) struct Copy {
    rest: Option<Box<Rest>>,
    /// The last read reached the end: the source's FIN is known to follow it.
    is_last: bool,
}

#[derive(Debug)]
struct Rest {
    bytes: Vec<u8>,
    /// How many of them are written.
    written: usize,
    /// How many of them, at the start, are not the client's and are not counted.
    uncounted: usize,
    _hold: Hold,
}

impl Copy {
    pub(super) fn new(preread: Preread) -> Self {
        let Preread { bytes, uncounted, hold } = preread;
        let rest = (!bytes.is_empty()).then(|| Box::new(Rest { bytes, written: 0, uncounted, _hold: hold }));
        Self { rest, is_last: false }
    }

    pub(super) fn holds_bytes(&self) -> bool {
        self.rest.is_some()
    }

    /// Whether the source is known to have ended behind what was moved, without another read.
    pub(super) fn is_at_end(&self) -> bool {
        self.is_last && !self.holds_bytes()
    }

    /// Writes what is kept, or else reads once and writes that.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        destination: &TcpStream,
        counter: Counter<'_>,
    ) -> Poll<Result<Step, Fault>> {
        if self.holds_bytes() {
            ready!(self.poll_flush(cx, destination, counter)).map_err(Fault::Destination)?;
            return Poll::Ready(Ok(Step::Moved(0)));
        }
        loop {
            ready!(source.poll_read_ready(cx)).map_err(Fault::Source)?;
            let has_ended = has_ended(source, cx);
            let moved = SHARED.with_borrow_mut(|buffer| {
                self.read_and_write(buffer, source, destination, has_ended, counter)
            });
            match moved {
                Ok(0) => return Poll::Ready(Ok(Step::End)),
                Ok(bytes) => return Poll::Ready(Ok(Step::Moved(bytes))),
                Err(Fault::Source(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(fault) => return Poll::Ready(Err(fault)),
            }
        }
    }

    fn read_and_write(
        &mut self,
        buffer: &mut [u8],
        source: &TcpStream,
        destination: &TcpStream,
        has_ended: bool,
        counter: Counter<'_>,
    ) -> Result<usize, Fault> {
        let (read, is_last) = if has_ended {
            receive_to_end(source, buffer).map_err(Fault::Source)?
        } else {
            (receive_once(source, &mut *buffer).map_err(Fault::Source)?, false)
        };
        if read == 0 {
            return Ok(0);
        }
        self.is_last = is_last;
        // The FIN that follows goes in the packet of the last bytes.
        let flags = if self.is_last { SendFlags::MORE } else { SendFlags::empty() };
        let written = match transmit(destination, &buffer[..read], flags) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(Fault::Destination(error)),
        };
        counter.add(written);
        if written < read {
            let rest = Rest { bytes: buffer[written..read].to_vec(), written: 0, uncounted: 0, _hold: None };
            self.rest = Some(Box::new(rest));
        }
        Ok(read)
    }

    /// Writes what is kept until it is gone.
    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        destination: &TcpStream,
        counter: Counter<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            while rest.written < rest.bytes.len() {
                ready!(destination.poll_write_ready(cx))?;
                match transmit(destination, &rest.bytes[rest.written..], SendFlags::empty()) {
                    Ok(bytes) => {
                        let before = rest.written.max(rest.uncounted);
                        rest.written += bytes;
                        counter.add(rest.written.saturating_sub(before));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        }
        self.rest = None;
        Poll::Ready(Ok(()))
    }
}

/// Whether a readable socket has received a FIN, and with it all data before it. A reset does not count.
fn has_ended(socket: &TcpStream, cx: &mut Context<'_>) -> bool {
    let found = pin!(socket.ready(Interest::READABLE | Interest::ERROR)).poll(cx);
    matches!(found, Poll::Ready(Ok(ready)) if ready.is_read_closed() && !ready.is_error())
}

/// Reads the data before a FIN that has arrived, as much as there is room for. Returns whether that was all,
/// which only a read of nothing proves.
fn receive_to_end(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut read = 0;
    while read < buffer.len() {
        match receive_once(socket, &mut buffer[read..]) {
            Ok(0) => return Ok((read, true)),
            Ok(bytes) => read += bytes,
            // No error is lost behind a FIN (`SOCK_DONE` comes before `sk_err` in `tcp_recvmsg`).
            Err(_) if read > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok((read, false))
}

/// Writes once; a partial write has filled the socket, so that its readiness is cleared at once.
fn transmit(socket: &TcpStream, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
    let mut sent = 0;
    let result = socket.try_io(Interest::WRITABLE, || {
        sent = send(socket, bytes, flags | SendFlags::NOSIGNAL)?;
        if sent < bytes.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    settle(sent, result)
}

fn settle(bytes: usize, result: io::Result<()>) -> io::Result<usize> {
    match result {
        Err(error) if bytes == 0 => Err(error),
        _ => Ok(bytes),
    }
}
