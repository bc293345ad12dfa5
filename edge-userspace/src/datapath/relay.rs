//! The socket tiers: both directions of a connection, half-close, reset and the order to stop.

use std::{
    any::Any,
    future::{Future, poll_fn},
    os::fd::AsFd,
    task::{Context, Poll},
    time::Duration,
};

use rustix::net::{Shutdown, shutdown};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::{
    End, Meter, Side, Stop, StopReason,
    direction::{Direction, Fault},
    meter::Counter,
};
use crate::{kernel::tcp, spec::Choice};

/// The time for data sent before a reset to reach the other side, after which that side is reset too.
pub(super) const LAST_BYTES: Duration = Duration::from_secs(2);

/// A client's connection and the backend's, both established.
#[derive(Debug)]
pub struct Pair {
    /// Accepted.
    pub client: TcpStream,
    /// Connected.
    pub backend: TcpStream,
}

impl Pair {
    /// Whether urgent bytes stay in the streams, where they are skipped by default.
    pub(super) fn keep_urgent(&self, keep: bool) {
        for socket in [&self.client, &self.backend] {
            // It fails on no socket.
            let _ = tcp::keep_urgent(socket, keep);
        }
    }
}

/// Bytes that go to the backend before any others.
#[derive(Debug, Default)]
pub struct Preread {
    /// Our own header, if any, then the client's first bytes.
    pub bytes: Vec<u8>,
    /// The length of our own header: not the client's, not counted.
    pub uncounted: usize,
    /// Dropped when the bytes are gone.
    pub hold: Hold,
}

/// A claim that is released when it is dropped.
pub type Hold = Option<Box<dyn Any + Send + Sync>>;

/// Carries a connection to its end on sockets, by copy and, where `choice` allows it, by splice.
///
/// The future is what an idle connection costs in user space, so it is kept small: no argument is held twice,
/// and rarely needed state is boxed on demand.
pub(super) fn carry<'a>(
    pair: Pair,
    preread: Preread,
    choice: Choice,
    meter: &'a Meter,
    stop: &'a Stop,
) -> impl Future<Output = End> + Send + 'a {
    let mut relay = Relay::new(pair, preread, choice != Choice::Copy);
    async move {
        let mut is_young = true;
        loop {
            match relay.run(meter, stop, |_| is_young && stop.take_nudge()).await {
                Turn::End(end) => return relay.finish(end, meter).await,
                Turn::Due => {
                    is_young = false;
                    relay.keep_alive();
                }
            }
        }
    }
}

/// Both sockets and what is between them.
#[derive(Debug)]
pub(super) struct Relay {
    pair: Pair,
    up: Direction,
    down: Direction,
}

/// Why a relay stopped for now.
pub(super) enum Turn {
    /// It is over; [`Relay::finish`] has the last word.
    End(End),
    /// The awaited moment has come, neither direction has ended, and no data is held between the sockets.
    Due,
}

impl Relay {
    pub(super) fn new(pair: Pair, preread: Preread, splice: bool) -> Self {
        Self { pair, up: Direction::new(preread, splice), down: Direction::new(Preread::default(), splice) }
    }

    pub(super) fn pair(&self) -> &Pair {
        &self.pair
    }

    pub(super) fn into_pair(self) -> Pair {
        self.pair
    }

    pub(super) fn sockets(&self) -> [&TcpStream; 2] {
        [&self.pair.client, &self.pair.backend]
    }

    /// Turns on TCP keepalive for a long-lived connection, so that a NAT on the path does not silently drop
    /// it. Clients' sockets inherit it from their listener.
    pub(super) fn keep_alive(&self) {
        // It fails on no live socket.
        let _ = tcp::keep_alive(&self.pair.backend);
    }

    /// Whether bytes were read that are not written yet.
    pub(super) fn holds_bytes(&self) -> bool {
        self.up.blocked() || self.down.blocked()
    }

    /// Carries until it is over or `is_due`. Dropped in between, it can be run again.
    pub(super) async fn run(
        &mut self,
        meter: &Meter,
        stop: &Stop,
        mut is_due: impl FnMut(&Meter) -> bool,
    ) -> Turn {
        let Self { pair: Pair { client, backend }, up, down } = self;
        // A side that is not read, because the other side is blocked, shows only by an error that it is gone.
        let mut client_error = None;
        let mut backend_error = None;
        poll_fn(|cx| {
            let over = |end| Poll::Ready(Turn::End(end));
            if let Poll::Ready(reason) = stop.poll(cx) {
                return over(End::Stopped(reason));
            }
            let sent = advance(up, down.ended(), cx, client, backend, meter.counter_up());
            if let Poll::Ready(Err(fault)) = sent {
                return over(End::Reset(culprit(&fault, Side::Client)));
            }
            let received = advance(down, up.ended(), cx, backend, client, meter.counter_down());
            if let Poll::Ready(Err(fault)) = received {
                return over(End::Reset(culprit(&fault, Side::Backend)));
            }
            if up.ended() && down.ended() {
                return over(End::Finished);
            }
            if up.ended() || down.ended() {
                meter.set_half_closed();
            }
            meter.set_tier(up.tier().max(down.tier()));
            if up.blocked()
                && client_error
                    .get_or_insert_with(|| Box::pin(client.ready(Interest::ERROR)))
                    .as_mut()
                    .poll(cx)
                    .is_ready()
            {
                return over(End::Reset(Side::Client));
            }
            if down.blocked()
                && backend_error
                    .get_or_insert_with(|| Box::pin(backend.ready(Interest::ERROR)))
                    .as_mut()
                    .poll(cx)
                    .is_ready()
            {
                return over(End::Reset(Side::Backend));
            }
            if !up.blocked() && !down.blocked() && !up.ended() && !down.ended() && is_due(meter) {
                return Poll::Ready(Turn::Due);
            }
            Poll::Pending
        })
        .await
    }

    /// Closes or resets the sockets once it is over.
    pub(super) async fn finish(&mut self, end: End, meter: &Meter) -> End {
        let Self { pair: Pair { client, backend }, up, down } = self;
        match end {
            End::Finished | End::Stopped(StopReason::Idle) => {}
            End::Stopped(_) => {
                reset(&*client);
                reset(&*backend);
            }
            End::Reset(Side::Client) => {
                Box::pin(deliver_last(up, client, backend, meter.counter_up())).await;
            }
            End::Reset(Side::Backend) => {
                Box::pin(deliver_last(down, backend, client, meter.counter_down())).await;
            }
        }
        end
    }
}

/// Continues, and passes the end of the stream on when it comes. If the other direction has already ended
/// (`other_ended`), both sockets are about to be closed, which has the same effect.
fn advance(
    direction: &mut Direction,
    other_ended: bool,
    cx: &mut Context<'_>,
    from: &TcpStream,
    to: &TcpStream,
    counter: Counter<'_>,
) -> Poll<Result<(), Fault>> {
    if direction.ended() {
        return Poll::Ready(Ok(()));
    }
    let moved = direction.poll(cx, from, to, counter);
    if direction.ended() && !other_ended {
        // Fails only where `to` is gone already, which its own direction reports.
        let _ = shutdown(to, Shutdown::Write);
    }
    moved
}

/// The side whose socket failed.
pub(super) fn culprit(fault: &Fault, source: Side) -> Side {
    tracing::debug!(error = %fault.error(), from = ?source, "a socket failed");
    match (fault, source) {
        (Fault::Source(_), side) => side,
        (Fault::Destination(_), Side::Client) => Side::Backend,
        (Fault::Destination(_), Side::Backend) => Side::Client,
    }
}

/// One side is gone. The data that it sent before still belongs to the other side, which is reset only
/// afterwards.
async fn deliver_last(direction: &mut Direction, gone: &TcpStream, other: &TcpStream, counter: Counter<'_>) {
    let deadline = Instant::now() + LAST_BYTES;
    let delivered = async {
        // Ends after the last byte, with the error of the gone side or, if that was already reported, as if
        // it had closed. The other side must not take it for a close.
        let _ = poll_fn(|cx| direction.poll(cx, gone, other, counter)).await;
        acknowledged(other).await;
    };
    let _ = timeout_at(deadline, delivered).await;
    reset(other);
}

/// Waits until all written data is acknowledged: a reset discards what the socket still holds. The kernel has
/// no event for that.
pub(super) async fn acknowledged(socket: impl AsFd) {
    let mut pause = Duration::from_millis(1);
    while tcp::send_queue(&socket).is_ok_and(|octets| octets > 0) {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Makes closing the socket send a reset.
pub(crate) fn reset(socket: impl AsFd) {
    // Fails only on what is no socket.
    let _ = tcp::reset_on_close(socket);
}
