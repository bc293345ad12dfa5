//! Where the kernel has left a direction to user space: what it redirected goes first, then `copy` carries.

use std::{cmp::Ordering, future::poll_fn, io, pin::pin};

use futures_util::future::{FusedFuture as _, FutureExt as _};
use rustix::net::{Shutdown, shutdown};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Account, MISSING, PAUSES, Seen};
use crate::{
    datapath::{
        End, Meter, Pair, Preread, Side, Stop, StopReason,
        direction::Direction,
        relay::{LAST_BYTES, acknowledged, culprit, reset},
    },
    kernel::{Joined, JoinedSocket},
};

/// Carries on where the kernel has left at least one direction to user space. The other one stays there until it
/// ends or is left as well.
pub(super) async fn in_user_space(
    pair: Pair,
    joined: &Joined,
    [up_ended, down_ended]: [bool; 2],
    meter: &Meter,
    stop: &Stop,
) -> End {
    let Pair { client, backend } = &pair;
    let up = Spilled {
        side: Side::Client,
        source: client,
        destination: backend,
        from: &joined.first,
        to: &joined.second,
        meter,
    };
    let down = Spilled {
        side: Side::Backend,
        source: backend,
        destination: client,
        from: &joined.second,
        to: &joined.first,
        meter,
    };
    let mut up = pin!(up.carry(up_ended).fuse());
    let mut down = pin!(down.carry(down_ended).fuse());
    let gone = loop {
        if up.is_terminated() && down.is_terminated() {
            return End::Finished;
        }
        let result: Result<(), Lost> = tokio::select! {
            biased;
            reason = stop.ordered_end() => {
                if reason != StopReason::Idle {
                    reset(client);
                    reset(backend);
                }
                return End::Stopped(reason);
            }
            result = &mut up => result,
            result = &mut down => result,
            // A side whose bytes are not read, because the other does not take them, says by an error alone that
            // it is gone.
            _ = client.ready(Interest::ERROR) => Err(Lost::Side(Side::Client)),
            _ = backend.ready(Interest::ERROR) => Err(Lost::Side(Side::Backend)),
        };
        match result {
            Ok(()) => {}
            Err(Lost::Side(side)) => break side,
            Err(Lost::Bytes(from)) => {
                reset(client);
                reset(backend);
                return End::Reset(from);
            }
        }
    };
    let (rest, other) = match gone {
        Side::Client => (up, backend),
        Side::Backend => (down, client),
    };
    let delivered = async {
        if !rest.is_terminated() {
            let _ = rest.await;
        }
        acknowledged(other).await;
    };
    let _ = timeout(LAST_BYTES, delivered).await;
    reset(other);
    End::Reset(gone)
}

/// Why a direction ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// A side is gone.
    Side(Side),
    /// Bytes that came from a side went astray: neither side may take what it got for all there was.
    Bytes(Side),
}

/// One direction on its way from the kernel to user space.
struct Spilled<'a> {
    side: Side,
    source: &'a TcpStream,
    destination: &'a TcpStream,
    from: &'a JoinedSocket,
    to: &'a JoinedSocket,
    meter: &'a Meter,
}

impl Spilled<'_> {
    /// Waits for what the kernel leaves, lets everything before it go first, and copies until the end.
    async fn carry(self, ended: bool) -> Result<(), Lost> {
        if ended {
            return Ok(());
        }
        let gone = |_| Lost::Side(self.side);
        let failed = self.left().await?;
        let progress = self.from.progress().map_err(gone)?;
        self.settled(progress.redirected).await.map_err(gone)?;
        self.to.give_room_back(self.destination);
        self.meter.leave_kernel(self.side, progress.redirected);
        self.copy().await?;
        if failed {
            // The error is told once, and a close read in its place.
            return Err(Lost::Side(self.side));
        }
        // Fails only where the destination is gone already, which its own direction reports.
        let _ = shutdown(self.destination, Shutdown::Write);
        Ok(())
    }

    /// Copies everything that the kernel leaves.
    ///
    /// It says the end too early: what it leaves waits in one queue behind what is to be sent at this very socket,
    /// and once the FIN has come, a read that finds nothing on this side of that queue says 0 (`tcp_bpf.c`,
    /// `tcp_bpf_recvmsg_parser`). So the end is only believed when every byte is there.
    async fn copy(&self) -> Result<(), Lost> {
        let counter = || self.meter.counter(self.side);
        let before = self.meter.from(self.side);
        let mut pause = PAUSES.0;
        loop {
            let mut direction = Direction::new(Preread::default(), false);
            let copied = poll_fn(|cx| direction.poll(cx, self.source, self.destination, counter())).await;
            copied.map_err(|fault| Lost::Side(culprit(&fault, self.side)))?;
            let passed = self.passed().map_err(|_| Lost::Side(self.side))?;
            let copied = self.meter.from(self.side) - before;
            match copied.cmp(&passed) {
                Ordering::Equal => return Ok(()),
                Ordering::Less => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Ordering::Greater => return Err(self.astray()),
            }
        }
    }

    /// Octets that the kernel has left so far.
    fn passed(&self) -> io::Result<u64> {
        if !self.from.is_outside() {
            return Ok(self.from.progress()?.passed);
        }
        let account = Account::of(self.source)?;
        let received = self.from.received(&account.info);
        Ok(received - u64::from(account.ended && received > 0))
    }

    fn astray(&self) -> Lost {
        let progress = self.from.progress();
        tracing::warn!(from = ?self.side, ?progress, "bytes went astray in the kernel: the connection is reset");
        Lost::Bytes(self.side)
    }

    /// Returns when the kernel has redirected its last byte of this direction: it was left to user space, or the
    /// source has ended; `true` where it was reset.
    async fn left(&self) -> Result<bool, Lost> {
        let mut since = None;
        loop {
            self.source.readable().await.map_err(|_| Lost::Side(self.side))?;
            let mut missing = false;
            // Asked inside, so that an event in between is not lost.
            let left = self.source.try_io(Interest::READABLE, || {
                let account = Account::of(self.source)?;
                let progress = self.from.progress()?;
                if progress.broken {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let seen = Seen {
                    ended: account.ended,
                    received: self.from.received(&account.info),
                    queued: 0,
                    progress,
                };
                missing = account.ended && progress.redirected + progress.passed < seen.payload();
                let left = progress.spilled || account.failed || account.ended && !missing;
                if left { Ok(account.failed) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            match left {
                Ok(failed) => return Ok(failed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(self.astray()),
                Err(_) => return Err(Lost::Side(self.side)),
            }
            if missing {
                if since.get_or_insert_with(Instant::now).elapsed() > MISSING {
                    return Err(self.astray());
                }
                sleep(PAUSES.0).await;
            }
        }
    }

    /// Returns when the destination's socket has taken everything that was redirected. There is no event for it.
    async fn settled(&self, redirected: u64) -> io::Result<()> {
        let mut pause = PAUSES.0;
        while self.to.queued(self.destination)? < redirected {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        Ok(())
    }
}
