//! The `sockmap` tier: the kernel carries data between the two sockets; this task observes and acts at the
//! transitions.
//!
//! It wakes when a side closes or resets, and when the kernel has left a direction to user space because its
//! reader was too slow. [`judge`] decides what to do from numbers alone; a close is passed on only when every
//! byte before it is accounted for. A direction that was left to user space is carried by `copy` to its end:
//! `splice(2)` would not see the data that the kernel keeps for it.

mod spilled;

use std::{
    future::{pending, poll_fn},
    io,
    net::TcpStream as Socket,
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use rustix::net::{SendFlags, Shutdown, send, shutdown, sockopt::socket_error};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use self::spilled::in_user_space;
use super::{
    End, Meter, Pair, Preread, Side, Stop, StopReason,
    meter::KernelCount,
    relay::{self, LAST_BYTES, acknowledged, reset},
};
use crate::{
    kernel::{
        Joined, JoinedSocket, Progress, Sockmap,
        tcp::{self, TcpInfo},
    },
    spec::{Choice, Tier},
};

/// The first pause before a look at what has no event; it doubles up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// How long received bytes may be missing from the kernel's count before they are considered lost.
const MISSING: Duration = Duration::from_secs(1);

/// Carries a connection in the kernel, or by the other socket tiers where this one may not be.
pub(super) async fn carry(
    pair: Pair,
    mut preread: Preread,
    sockmap: Arc<Sockmap>,
    meter: &Meter,
    stop: &Stop,
) -> End {
    // Bytes that user space holds go before those that the kernel carries.
    if !send_first(&pair.backend, &mut preread, meter) {
        return relay::carry(pair, preread, Choice::Auto, meter, stop).await;
    }
    // Its memory is not kept for as long as the kernel carries.
    drop(preread);
    // The verdict sees urgent octets as any other, so that they count as such from the start.
    pair.keep_urgent(true);
    let joined = match sockmap.join(&pair.client, &pair.backend) {
        Ok(joined) => joined,
        Err(reason) => {
            tracing::debug!(%reason, "a connection is not handed to the kernel");
            pair.keep_urgent(false);
            let preread = Preread::default();
            return relay::carry(pair, preread, Choice::Auto, meter, stop).await;
        }
    };
    // It fails on no live socket.
    let _ = tcp::keep_alive(&pair.backend);
    meter.set_tier(Tier::Sockmap);
    meter.enter_kernel(Arc::clone(&joined.first) as _, Arc::clone(&joined.second) as _);
    let end = look_on(pair, &joined, meter, stop).await;
    for (side, socket) in [(Side::Client, &joined.first), (Side::Backend, &joined.second)] {
        if let Ok(progress) = socket.progress() {
            meter.leave_kernel(side, progress.redirected);
        }
    }
    end.unwrap_or_else(|error| {
        tracing::warn!(%error, "a connection in the kernel cannot be looked after and was reset");
        End::Reset(Side::Client)
    })
}

impl KernelCount for JoinedSocket {
    fn bytes(&self) -> Option<u64> {
        self.progress().ok().map(|progress| progress.redirected)
    }
}

/// Writes what was read before; `false` when the socket does not take all of it at once.
fn send_first(backend: &TcpStream, preread: &mut Preread, meter: &Meter) -> bool {
    // A failure shows again where it is handled.
    let sent = match preread.bytes.as_slice() {
        [] => 0,
        bytes => send(backend, bytes, SendFlags::NOSIGNAL).unwrap_or(0),
    };
    meter.counter_up().add(sent.saturating_sub(preread.uncounted));
    preread.uncounted = preread.uncounted.saturating_sub(sent);
    preread.bytes.drain(..sent);
    preread.bytes.is_empty()
}

/// Follows the connection to its end.
async fn look_on(pair: Pair, joined: &Joined, meter: &Meter, stop: &Stop) -> io::Result<End> {
    let sockets = Sockets { client: pair.client.into_std()?, backend: pair.backend.into_std()? };
    let mut up = Lane::new(&joined.first, &joined.second);
    let mut down = Lane::new(&joined.second, &joined.first);
    let mut pause = PAUSES.0;
    loop {
        let (client, backend) = (Account::of(&sockets.client)?, Account::of(&sockets.backend)?);
        let steps = [
            (Side::Client, up.step(&client, &sockets.backend)?),
            (Side::Backend, down.step(&backend, &sockets.client)?),
        ];
        let is = |wanted| move |(_, step): &&(Side, Step)| *step == wanted;
        if let Some((side, _)) = steps.iter().find(is(Step::Broken)) {
            let seen = (joined.first.progress(), joined.second.progress());
            tracing::warn!(from = ?side, ?seen, "bytes went astray in the kernel: the connection is reset");
            sockets.reset();
            return Ok(End::Reset(*side));
        }
        if steps.iter().any(|step| is(Step::Spill)(&step)) {
            meter.set_spilled();
            let ended = [up.ended, down.ended];
            return Ok(in_user_space(sockets.into_pair(joined)?, joined, ended, meter, stop).await);
        }
        if client.failed || backend.failed {
            let gone = if client.failed { Side::Client } else { Side::Backend };
            return Ok(sockets.pass_reset_on(gone, joined).await);
        }
        if up.ended && down.ended {
            return Ok(End::Finished);
        }
        let soon = steps.iter().any(|step| is(Step::Wait)(&step));
        let wake = async { if soon { sleep(pause).await } else { pending().await } };
        tokio::select! {
            biased;
            reason = stop.ordered_end() => {
                if reason != StopReason::Idle {
                    sockets.reset();
                }
                return Ok(End::Stopped(reason));
            }
            () = poll_fn(|cx| joined.poll_turn(cx)) => {}
            () = wake => {}
        }
        pause = if soon { (pause * 2).min(PAUSES.1) } else { PAUSES.0 };
    }
}

/// One direction in the kernel.
struct Lane<'a> {
    source: &'a JoinedSocket,
    destination: &'a JoinedSocket,
    /// Whether the end of the stream was passed on.
    ended: bool,
    /// Since when bytes are missing.
    missing_since: Option<Instant>,
}

impl<'a> Lane<'a> {
    fn new(source: &'a JoinedSocket, destination: &'a JoinedSocket) -> Self {
        Self { source, destination, ended: false, missing_since: None }
    }

    /// Looks at the direction and passes on its end when it is time.
    fn step(&mut self, source: &Account, destination: impl AsFd) -> io::Result<Step> {
        if self.ended {
            return Ok(Step::Carry);
        }
        let progress = self.source.progress()?;
        let seen = Seen {
            ended: source.ended,
            received: self.source.received(&source.info),
            queued: if source.ended { self.destination.queued(&destination)? } else { 0 },
            progress,
        };
        let mut step = judge(&seen);
        let missing = step == Step::Wait && seen.payload() != progress.redirected;
        let since = missing.then(|| *self.missing_since.get_or_insert_with(Instant::now));
        self.missing_since = since;
        if since.is_some_and(|since| since.elapsed() > MISSING) {
            step = Step::Broken;
        }
        if step == Step::Close {
            self.ended = true;
            // Fails only where the destination is gone already, which shows by itself.
            let _ = shutdown(destination, Shutdown::Write);
        }
        Ok(step)
    }
}

/// One direction in numbers.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Whether the source has sent its FIN.
    ended: bool,
    /// Octets that the source has received since the hand-over, the FIN included.
    received: u64,
    /// Octets queued at the destination since the hand-over; asked for once the source has ended.
    queued: u64,
    progress: Progress,
}

impl Seen {
    fn payload(&self) -> u64 {
        self.received - u64::from(self.ended && self.received > 0)
    }
}

/// The action for a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Carry,
    /// Look again soon: its end has come, and not all bytes before it are at the destination.
    Wait,
    /// Pass on its end.
    Close,
    /// Take it over.
    Spill,
    /// Reset: what the destination has is not what the source sent.
    Broken,
}

fn judge(seen: &Seen) -> Step {
    let Progress { redirected, spilled, broken, .. } = seen.progress;
    if broken || seen.ended && redirected > seen.payload() {
        Step::Broken
    } else if spilled {
        Step::Spill
    } else if !seen.ended {
        Step::Carry
    } else if redirected < seen.payload() || seen.queued < redirected {
        Step::Wait
    } else {
        Step::Close
    }
}

/// One socket in numbers.
struct Account {
    info: TcpInfo,
    /// Whether the peer has sent its FIN.
    ended: bool,
    /// Whether it was reset or timed out.
    failed: bool,
}

impl Account {
    fn of(socket: impl AsFd) -> io::Result<Self> {
        let info = tcp::info(&socket)?;
        let failed = socket_error(&socket)?.is_err();
        // In the closed state without an error, both sides have closed.
        let ended = matches!(
            info.state,
            TcpInfo::CLOSE_WAIT | TcpInfo::LAST_ACK | TcpInfo::CLOSING | TcpInfo::TIME_WAIT | TcpInfo::CLOSED
        );
        Ok(Self { info, ended: ended && !failed, failed })
    }
}

/// Both sockets, out of the runtime's sight: see [`Joined::poll_turn`].
struct Sockets {
    client: Socket,
    backend: Socket,
}

impl Sockets {
    fn into_pair(self, joined: &Joined) -> io::Result<Pair> {
        let stream = |socket: Socket| {
            joined.leave(&socket);
            TcpStream::from_std(socket)
        };
        Ok(Pair { client: stream(self.client)?, backend: stream(self.backend)? })
    }

    fn reset(&self) {
        reset(&self.client);
        reset(&self.backend);
    }

    /// One side is gone. The data that it sent before still belongs to the other side, which is reset only
    /// afterwards.
    async fn pass_reset_on(&self, gone: Side, joined: &Joined) -> End {
        let (source, destination, other) = match gone {
            Side::Client => (&joined.first, &joined.second, &self.backend),
            Side::Backend => (&joined.second, &joined.first, &self.client),
        };
        let delivered = async {
            let mut pause = PAUSES.0;
            while let (Ok(progress), Ok(queued)) = (source.progress(), destination.queued(other))
                && queued < progress.redirected
            {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            acknowledged(other).await;
        };
        let _ = timeout(LAST_BYTES, delivered).await;
        reset(other);
        End::Reset(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARRYING: Seen = Seen {
        ended: false,
        received: 1000,
        queued: 0,
        progress: Progress { redirected: 900, passed: 0, spilled: false, broken: false },
    };

    #[test]
    fn nothing_is_done_while_bytes_flow() {
        assert_eq!(judge(&CARRYING), Step::Carry);
    }

    #[test]
    fn an_end_is_passed_on_when_every_byte_before_it_is_queued() {
        let at = |redirected, queued| {
            let progress = Progress { redirected, ..Progress::default() };
            judge(&Seen { ended: true, received: 1001, queued, progress })
        };
        assert_eq!(at(1000, 1000), Step::Close);
        assert_eq!(at(1000, 999), Step::Wait);
        assert_eq!(at(999, 999), Step::Wait);
        assert_eq!(at(1001, 1001), Step::Broken, "more than was sent");
    }

    #[test]
    fn what_the_kernel_says_comes_first() {
        let said = |spilled, broken| {
            let progress = Progress { spilled, broken, ..CARRYING.progress };
            [false, true].map(|ended| judge(&Seen { ended, progress, ..CARRYING }))
        };
        assert_eq!(said(true, false), [Step::Spill; 2]);
        assert_eq!(said(false, true), [Step::Broken; 2]);
        assert_eq!(said(true, true), [Step::Broken; 2]);
    }
}
