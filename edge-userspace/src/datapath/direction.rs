//! One direction of a relayed connection: from one socket to the other, by copy or by splice.
//!
//! The direction determines the order: earlier data is written first, and the end of the stream is passed on
//! last. It also chooses between the two carriers, which move the bytes.

use std::{
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpStream;

use super::{
    Preread,
    bulk::{Bulk, Carrier},
    copy::Copy,
    meter::Counter,
    splice::{Splice, Spliced},
};
use crate::spec::Tier;

/// Steps of one direction before other tasks of the thread get their turn ...
const STEPS_PER_TURN: usize = 16;
/// ... or bytes: about a tenth of a millisecond, by which a small message of another connection may be
/// delayed.
const BYTES_PER_TURN: usize = 512 * 1024;

/// Which of the two sockets of a direction failed, and how.
#[derive(Debug)]
pub(super) enum Fault {
    /// The one read from.
    Source(io::Error),
    /// The one written to.
    Destination(io::Error),
}

impl Fault {
    pub(super) fn error(&self) -> &io::Error {
        match self {
            Self::Source(error) | Self::Destination(error) => error,
        }
    }
}

/// The result of one step of a carrier.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This many bytes reached the destination's socket or are kept for it.
    Moved(usize),
    /// The source said that no more will come, and everything before has been moved.
    End,
}

#[derive(Debug)]
pub(super) struct Direction {
    copy: Copy,
    splice: Splice,
    bulk: Bulk,
    ended: bool,
}

impl Direction {
    /// A direction that first delivers `preread`.
    pub(super) fn new(preread: Preread, splice_allowed: bool) -> Self {
        Self {
            copy: Copy::new(preread),
            splice: Splice::default(),
            bulk: Bulk::new(splice_allowed),
            ended: false,
        }
    }

    /// Whether the source has ended and everything from it was delivered.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether bytes wait for the destination, so that the source is not read.
    pub(super) fn blocked(&self) -> bool {
        self.copy.holds_bytes() || self.splice.holds_bytes()
    }

    /// The tier that carries now.
    pub(super) fn tier(&self) -> Tier {
        match self.bulk.carrier() {
            Carrier::Copy => Tier::Copy,
            Carrier::Splice => Tier::Splice,
        }
    }

    /// Carries until nothing moves (`Pending`; the task is woken when something can), or until the source has
    /// ended and all its data was delivered. The caller passes on the end itself.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        destination: &TcpStream,
        counter: Counter<'_>,
    ) -> Poll<Result<(), Fault>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let mut moved = 0;
        for _ in 0..STEPS_PER_TURN {
            match ready!(self.step(cx, source, destination, counter))? {
                Step::Moved(_) if self.copy.is_at_end() => {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                Step::Moved(bytes) => {
                    moved += bytes;
                    if moved >= BYTES_PER_TURN {
                        break;
                    }
                }
                Step::End => {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn step(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        destination: &TcpStream,
        counter: Counter<'_>,
    ) -> Poll<Result<Step, Fault>> {
        let started = self.bulk.wants_time().then(time_of_thread);
        let step = match self.bulk.carrier() {
            // Bytes left by the other carrier go first.
            Carrier::Splice if !self.copy.holds_bytes() => {
                match ready!(self.splice.poll(cx, source, destination, counter)) {
                    Ok(Spliced::Moved(bytes)) => Step::Moved(bytes),
                    Ok(Spliced::Stopped) => {
                        let copied = self.copy.poll(cx, source, destination, counter);
                        if !matches!(copied, Poll::Ready(Ok(Step::Moved(_)))) {
                            self.splice.release();
                        }
                        ready!(copied)?
                    }
                    Err(SpliceFault::NoPipe) => {
                        self.bulk.forbid_splice();
                        Step::Moved(0)
                    }
                    Err(SpliceFault::Socket(fault)) => return Poll::Ready(Err(fault)),
                }
            }
            _ if self.splice.holds_bytes() => {
                match ready!(self.splice.poll_drain(cx, destination, counter)) {
                    Ok(()) => Step::Moved(0),
                    Err(error) => return Poll::Ready(Err(Fault::Destination(error))),
                }
            }
            _ => ready!(self.copy.poll(cx, source, destination, counter))?,
        };
        if let Step::Moved(bytes) = step {
            self.bulk.moved(bytes, started.map(|started| time_of_thread().saturating_sub(started)));
            if self.bulk.carrier() == Carrier::Copy && !self.splice.holds_bytes() {
                self.splice.release();
            }
        }
        Poll::Ready(Ok(step))
    }
}

/// Processor time of this thread. Wall-clock time would include the time that other threads run.
fn time_of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // A clock that counts from the start of the thread is never negative.
    time.try_into().unwrap_or_default()
}

/// Why a step by splice failed.
#[derive(Debug)]
pub(super) enum SpliceFault {
    /// No pipe to be had: carry by copy.
    NoPipe,
    /// A socket failed.
    Socket(Fault),
}
