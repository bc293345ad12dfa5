//! The `splice` tier: bytes go from socket to pipe to socket without entering user space.
//!
//! The pipe is the only buffer. It is filled only when it is empty, so the source waits until the destination
//! has taken all of it.

use std::{
    io,
    os::fd::AsFd,
    task::{Context, Poll, ready},
};

use tokio::{io::Interest, net::TcpStream};

use super::{
    direction::{Fault, SpliceFault},
    meter::Counter,
    pipe::Pipe,
};

#[derive(Debug, Default)]
pub(super) struct Splice {
    pipe: Option<Box<Pipe>>,
}

/// The result of one step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Spliced {
    /// This many bytes reached the destination's socket or are in the pipe.
    Moved(usize),
    /// Nothing could be moved. Only `recv` can tell whether the source is empty, has ended or is at an urgent
    /// byte: `tcp_splice_read` returns `EAGAIN` or 0 for each of them. The source's readiness is unchanged.
    Stopped,
}

impl Splice {
    pub(super) fn holds_bytes(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| pipe.filled() > 0)
    }

    /// Drains the pipe, or else fills it once and drains what the destination takes.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        destination: &TcpStream,
        counter: Counter<'_>,
    ) -> Poll<Result<Spliced, SpliceFault>> {
        if self.holds_bytes() {
            ready!(self.poll_drain(cx, destination, counter))
                .map_err(|error| SpliceFault::Socket(Fault::Destination(error)))?;
        }
        match source.poll_read_ready(cx) {
            Poll::Ready(ready) => ready.map_err(|error| SpliceFault::Socket(Fault::Source(error)))?,
            Poll::Pending => {
                self.release();
                return Poll::Pending;
            }
        }
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            empty => empty.insert(Pipe::take().map_err(|_| SpliceFault::NoPipe)?),
        };
        let bytes = match pipe.fill(source.as_fd()) {
            Ok(0) => return Poll::Ready(Ok(Spliced::Stopped)),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Poll::Ready(Ok(Spliced::Stopped));
            }
            Err(error) => return Poll::Ready(Err(SpliceFault::Socket(Fault::Source(error)))),
        };
        if let Poll::Ready(Err(error)) = self.poll_drain(cx, destination, counter) {
            return Poll::Ready(Err(SpliceFault::Socket(Fault::Destination(error))));
        }
        Poll::Ready(Ok(Spliced::Moved(bytes)))
    }

    /// Drains the pipe until it is empty.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        destination: &TcpStream,
        counter: Counter<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        while pipe.filled() > 0 {
            ready!(destination.poll_write_ready(cx))?;
            match destination.try_io(Interest::WRITABLE, || pipe.drain(destination.as_fd())) {
                Ok(bytes) => counter.add(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the pipe back to the thread's pool.
    pub(super) fn release(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.release();
    }
}
