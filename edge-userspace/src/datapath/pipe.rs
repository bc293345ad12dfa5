//! Pipes for `splice(2)`, kept by each worker thread and lent to a direction only while bytes are in transit.
//!
//! A pipe is taken when a direction turns out to be bulk and given back as soon as it is empty and nothing more
//! is at hand, so that idle connections own none.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Once,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

/// The size asked for. Large enough that one wake-up moves what a fast peer sent meanwhile; it is also the
/// default of `/proc/sys/fs/pipe-max-size`, so that it is allowed without privileges.
const SIZE: usize = 1 << 20;
/// Pipes kept for later by each worker thread. More exist while more directions are in transit.
const KEPT: usize = 64;

/// What a pipe has without asking, `PIPE_DEF_BUFFERS` (`linux/pipe_fs_i.h`) of 4 KiB: it keeps that where more is
/// refused.
const UNSIZED: usize = 1 << 16;

/// What is the matter beyond `fs.pipe-user-pages-soft`.
pub const SMALL_PIPES: &str =
    "pipes for splice get 64 KiB and not 1 MiB, which takes up to two thirds of its speed";
/// And what mends it.
pub const LARGER_PIPES: &str = "give edged CAP_SYS_RESOURCE, or raise fs.pipe-user-pages-soft (sysctl): other \
                                programs of this user may have used it up";

/// The warning is for the first pipe alone.
static SAID: Once = Once::new();

/// Whether a pipe of full size can be had now.
pub fn are_pipes_large() -> io::Result<bool> {
    let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok(fcntl_setpipe_size(&writer, SIZE).is_ok())
}

thread_local! {
    #[expect(clippy::vec_box, reason = "a direction holds a box, so that one without a pipe stays small")]
    static POOL: RefCell<Vec<Box<Pipe>>> = const { RefCell::new(Vec::new()) };
}

/// A pipe and the count of bytes in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    filled: usize,
    capacity: usize,
}

impl Pipe {
    /// Takes a pipe from this thread's pool or makes one. Fails when the process is out of file descriptors or
    /// pipe memory: then carry by copy.
    pub(super) fn take() -> io::Result<Box<Self>> {
        if let Some(pipe) = POOL.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = fcntl_setpipe_size(&writer, SIZE).unwrap_or_else(|_| {
            SAID.call_once(|| tracing::warn!("{SMALL_PIPES}: {LARGER_PIPES}"));
            UNSIZED
        });
        Ok(Box::new(Self { reader, writer, filled: 0, capacity }))
    }

    /// Gives the pipe back; one with bytes in it is closed instead.
    pub(super) fn give_back(self: Box<Self>) {
        if self.filled == 0 {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < KEPT {
                    pool.push(self);
                }
            });
        }
    }

    /// Bytes in the pipe.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Moves bytes from a socket into the pipe. `Ok(0)` is the end of the stream; `WouldBlock` means that the
    /// socket is empty or, if the pipe is not, that the pipe may be full.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let moved = retry(|| {
            splice(
                socket.as_fd(),
                None,
                self.writer.as_fd(),
                None,
                self.capacity,
                SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
            )
        })?;
        self.filled += moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe to a socket.
    pub(super) fn drain(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = retry(|| {
            splice(
                self.reader.as_fd(),
                None,
                socket,
                None,
                self.filled,
                SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
            )
        })?;
        self.filled -= moved;
        Ok(moved)
    }
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}
