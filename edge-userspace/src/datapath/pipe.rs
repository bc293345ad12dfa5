//! Pipes for `splice(2)`, kept by each worker thread and lent to a direction only while bytes are in transit.
//!
//! A direction takes a pipe when it turns out to be bulk, and returns it when it is empty and no more data is
//! ready, so that idle connections own none.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, MutexGuard, Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::lock::lock;
use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

/// The requested size. Large enough that one wake-up moves everything that a fast peer sent meanwhile; it is
/// also the default of `/proc/sys/fs/pipe-max-size`, so it is allowed without privileges.
const SIZE: usize = 1 << 20;
/// Pipes kept for later by each worker thread. More exist while more directions are in transit.
const KEPT: usize = 64;

/// Less than this is not asked for.
const LEAST: usize = 1 << 16;
/// Between two halvings: what is refused now may be granted when others have given up their half.
const HASTE: Duration = Duration::from_millis(100);
/// How long nothing is refused before more is asked for again.
const RELIEF: Duration = Duration::from_secs(10);
/// Fills of a pipe that is smaller than its share between two attempts to make it larger.
const GROWTH: u32 = 16;
/// Pipes that a thread takes between two looks whether that is so.
const LOOK: u32 = 1024;

/// The size requested for each pipe, so that all pipes share what the kernel grants. Beyond
/// `fs.pipe-user-pages-soft` a new pipe gets only two pages (`alloc_pipe_info`) and splices at a third of the
/// speed.
static SHARE: AtomicUsize = AtomicUsize::new(SIZE);
/// When the share changed or was refused.
static CHANGED: Mutex<Option<Instant>> = Mutex::new(None);

/// The warning for a machine that has reached `fs.pipe-user-pages-soft`.
pub const SMALL_PIPES: &str =
    "pipes for splice get 64 KiB and not 1 MiB, which takes up to two thirds of its speed";
/// The remedy.
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
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { kept: Vec::new(), taken: 0 }) };
}

/// Pipes of a thread.
struct Pool {
    #[expect(clippy::vec_box, reason = "a direction holds a box, so that one without a pipe stays small")]
    kept: Vec<Box<Pipe>>,
    taken: u32,
}

/// A pipe and the count of bytes in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    filled: usize,
    capacity: usize,
    fills: u32,
}

impl Pipe {
    /// Takes a pipe from this thread's pool or creates one. Fails if the process is out of file descriptors
    /// or pipe memory: then carry by copy.
    pub(super) fn take() -> io::Result<Box<Self>> {
        let (kept, is_time) = POOL.with_borrow_mut(|pool| {
            pool.taken = pool.taken.wrapping_add(1);
            (pool.kept.pop(), pool.taken.is_multiple_of(LOOK))
        });
        if is_time {
            relax();
        }
        let mut pipe = match kept {
            Some(pipe) => pipe,
            None => Box::new(Self::make()?),
        };
        pipe.fit();
        Ok(pipe)
    }

    fn make() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = fcntl_getpipe_size(&writer)?;
        Ok(Self { reader, writer, filled: 0, capacity, fills: 0 })
    }

    /// Makes an empty pipe as large as its share, or as is granted of that.
    fn fit(&mut self) {
        let mut size = SHARE.load(Ordering::Relaxed);
        while self.capacity != size {
            match fcntl_setpipe_size(&self.writer, size) {
                Ok(granted) => {
                    self.capacity = granted;
                    return;
                }
                Err(_) if size > LEAST && size > self.capacity => {
                    is_refused(size);
                    size /= 2;
                }
                Err(_) => return,
            }
        }
    }

    /// Gives the pipe back; one with bytes in it is closed instead.
    pub(super) fn give_back(mut self: Box<Self>) {
        if self.filled != 0 {
            return;
        }
        if self.capacity > SHARE.load(Ordering::Relaxed) {
            self.fit();
        }
        POOL.with_borrow_mut(|pool| {
            if pool.kept.len() < KEPT {
                pool.kept.push(self);
            }
        });
    }

    /// Bytes in the pipe.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Moves bytes from a socket into the pipe. Neither `Ok(0)` nor `WouldBlock` shows why none moved: the
    /// stream has ended, the socket is empty or at an urgent byte, or the pipe is full.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        if self.filled == 0 {
            self.fills = self.fills.wrapping_add(1);
            let share = SHARE.load(Ordering::Relaxed);
            // A stream that is never at rest keeps its pipe; others wait for what it has too much.
            if self.capacity > share || self.capacity < share && self.fills.is_multiple_of(GROWTH) {
                self.fit();
            }
        }
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

/// As much was not granted: all ask for half of it, if they still ask for that.
fn is_refused(size: usize) {
    SAID.call_once(|| tracing::warn!("{SMALL_PIPES}: {LARGER_PIPES}"));
    let mut changed = changed();
    if SHARE.load(Ordering::Relaxed) == size && changed.is_none_or(|then| then.elapsed() >= HASTE) {
        SHARE.store(size / 2, Ordering::Relaxed);
        *changed = Some(Instant::now());
    }
}

/// Asks for more again, where that was not tried for a while.
fn relax() {
    let share = SHARE.load(Ordering::Relaxed);
    if share == SIZE {
        return;
    }
    let mut changed = changed();
    if changed.is_some_and(|then| then.elapsed() >= RELIEF) {
        SHARE.store(share * 2, Ordering::Relaxed);
        *changed = Some(Instant::now());
    }
}

fn changed() -> MutexGuard<'static, Option<Instant>> {
    lock(&CHANGED)
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::capability;

    /// More than `fs.pipe-user-pages-soft` grants at full size.
    #[test]
    fn many_pipes_share_what_the_kernel_grants() {
        const PIPES: usize = 100;
        // The bound is for those without rights, which a thread gives up for itself alone.
        let unprivileged = std::thread::spawn(|| {
            capability::keep_only(&[]).unwrap();
            let mut capacities = Vec::new();
            for _ in 0..20 {
                let pipes: Vec<_> = (0..PIPES).map(|_| Pipe::take().unwrap()).collect();
                capacities = pipes.iter().map(|pipe| pipe.capacity).collect();
                if capacities.iter().all(|capacity| *capacity >= LEAST) {
                    break;
                }
                pipes.into_iter().for_each(Pipe::give_back);
                std::thread::sleep(HASTE);
            }
            capacities
        });
        let capacities = unprivileged.join().unwrap();
        assert!(capacities.iter().all(|capacity| *capacity >= LEAST), "some stay small: {capacities:?}");
    }
}
