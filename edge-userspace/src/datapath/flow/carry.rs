//! Decides when to hand a connection over: at once if its route requests it, otherwise when it has proved
//! worth it, at a moment when little is in flight. Until then, and if it cannot be handed over, the socket
//! tiers carry it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    again::Again,
    confirm::{Confirmed, confirm},
    drive::{Handed, hand_over},
    round_trip::{Rest, is_stretched},
    stay::Stay,
    tier::FlowTier,
};
use crate::{
    datapath::{
        End, Fate, Meter, Pair, Passenger, Preread, Side, Stop,
        relay::{Relay, Turn},
    },
    kernel::tcp::{self, TcpInfo},
};

/// The bytes that a connection has carried, in both directions together, before it is handed over. Short
/// connections never pay for a hand-over.
const WORTH_IT: u64 = 512 << 10;
/// The age at which a connection is handed over, however little it has carried: a long-lived one should
/// outlive the daemon, too.
pub const OLD_ENOUGH: Duration = Duration::from_secs(10);
/// The largest amount of data in all queues of both sockets and in flight, in bytes.
const QUIET: u64 = 128 << 10;
/// The windows that both sides get while it is waited for quiet, in bytes.
const NARROW: i32 = 16 << 10;
/// A window without a bound of ours.
const WIDE: i32 = 1 << 30;
/// How long quiet is waited for. A slow reader does not get there, and is better off on sockets.
const APPROACH: Duration = Duration::from_millis(500);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// If one in so many segments to a client was lost, the edge retransmits, because it is nearer than home.
const LOSSY: u64 = 200;
/// Fewer may be chance.
const LOSSES: u32 = 3;

/// [`WORTH_IT`] for what is never handed over.
const NEVER: u64 = u64::MAX;
/// And for what is handed over when it rests: the sweep says when to look.
const AT_REST: u64 = NEVER - 1;

/// Carries on sockets and hands over when it is time, or `at_once`.
pub(in crate::datapath) fn carry<'a>(
    pair: Pair,
    preread: Preread,
    at_once: bool,
    tier: &'a Arc<FlowTier>,
    passenger: &'a impl Passenger,
    meter: &'a Meter,
    stop: &'a Stop,
) -> impl Future<Output = Fate> + Send + 'a {
    // On the heap, because it is passed back and forth: inside the future it would exist twice.
    let mut relay = Box::new(Relay::new(pair, preread, true));
    async move {
        let mut due = if at_once { 0 } else { WORTH_IT };
        let mut rest = Rest::default();
        let mut again = Again::default();
        loop {
            let is_due = |meter: &Meter| {
                due != NEVER
                    && (meter.on_sockets() >= due
                        || stop.take_nudge() && (again.is_time() || stop.is_last_call()))
            };
            let turn = relay.run(meter, stop, is_due).await;
            if let Turn::End(end) = turn {
                return Fate::Ended(relay.finish(end, meter).await);
            }
            // When the daemon ends, a slow flow is better than none.
            if !at_once && !stop.is_last_call() {
                let (is_lossy, is_stretched) = look(relay.pair(), meter);
                if is_lossy {
                    stays(tier, &Stay::Lossy);
                    relay.keep_alive();
                    due = (2 * meter.on_sockets()).max(WORTH_IT);
                    continue;
                }
                if is_stretched && !rest.is_over(meter.on_sockets(), std::time::Instant::now()) {
                    if due != AT_REST {
                        stays(tier, &Stay::Stretched);
                        relay.keep_alive();
                    }
                    due = AT_REST;
                    continue;
                }
            }
            // Boxed: it is over soon, and the connection lives on without it.
            let attempt = Box::pin(attempt(relay, again.is_first(), tier, passenger, meter, stop));
            match attempt.await {
                Attempt::Over(fate) => return fate,
                Attempt::Later(back) => {
                    relay = back;
                    due = (2 * meter.on_sockets()).max(WORTH_IT);
                }
                Attempt::Again(back) => {
                    relay = back;
                    again.in_vain(Instant::now());
                    due = AT_REST;
                }
                Attempt::Never(back) => {
                    relay = back;
                    due = NEVER;
                }
            }
        }
    }
}

enum Attempt {
    Over(Fate),
    Later(Box<Relay>),
    /// The way of its packets may be another one in a while.
    Again(Box<Relay>),
    Never(Box<Relay>),
}

impl Attempt {
    fn after(stay: &Stay, relay: Box<Relay>) -> Self {
        if stay.is_passing() {
            Self::Later(relay)
        } else if stay.is_about_the_way() {
            Self::Again(relay)
        } else {
            Self::Never(relay)
        }
    }
}

async fn attempt(
    mut relay: Box<Relay>,
    is_first: bool,
    tier: &FlowTier,
    passenger: &impl Passenger,
    meter: &Meter,
    stop: &Stop,
) -> Attempt {
    let survey = match confirm(tier, &mut relay, is_first, meter, stop).await {
        Confirmed::Yes(survey) => survey,
        Confirmed::End(end) => return Attempt::Over(Fate::Ended(relay.finish(end, meter).await)),
        Confirmed::No(reason) => {
            stays(tier, &reason);
            relay.keep_alive();
            return Attempt::after(&reason, relay);
        }
    };
    match approach(&mut relay, meter, stop).await {
        Approach::Quiet => {}
        Approach::End(end) => return Attempt::Over(Fate::Ended(relay.finish(end, meter).await)),
        Approach::Busy => {
            relay.keep_alive();
            return Attempt::Later(relay);
        }
    }
    match hand_over(tier, relay.into_pair(), &survey, passenger, meter).await {
        Handed::Carried => Attempt::Over(Fate::HandedOver),
        Handed::Cut(failure) => Attempt::Over(cut(failure)),
        Handed::Stay(pair, reason) => {
            stays(tier, &reason);
            widen(&pair);
            let relay = Box::new(Relay::new(pair, Preread::default(), true));
            relay.keep_alive();
            Attempt::after(&reason, relay)
        }
    }
}

enum Approach {
    Quiet,
    Busy,
    End(End),
}

/// Waits until little is in flight. A stream at full speed never pauses, so both senders get small windows
/// meanwhile.
async fn approach(relay: &mut Relay, meter: &Meter, stop: &Stop) -> Approach {
    if is_quiet(relay) {
        return Approach::Quiet;
    }
    for socket in relay.sockets() {
        // Without it quiet may still come.
        let _ = tcp::set_window_clamp(socket, NARROW);
    }
    let started = Instant::now();
    while started.elapsed() < APPROACH {
        tokio::select! {
            biased;
            turn = relay.run(meter, stop, |_| false) => {
                if let Turn::End(end) = turn {
                    return Approach::End(end);
                }
            }
            () = sleep(LOOK) => {
                if is_quiet(relay) {
                    return Approach::Quiet;
                }
            }
        }
    }
    widen(relay.pair());
    Approach::Busy
}

fn widen(pair: &Pair) {
    for socket in [&pair.client, &pair.backend] {
        // The kernel's own bounds hold on.
        let _ = tcp::set_window_clamp(socket, WIDE);
    }
}

fn is_quiet(relay: &Relay) -> bool {
    let queued = |socket| {
        let out = u64::from(tcp::send_queue(socket).unwrap_or(u32::MAX));
        out + tcp::receive_queue(socket).unwrap_or(u64::from(u32::MAX))
    };
    !relay.holds_bytes() && relay.sockets().into_iter().map(queued).sum::<u64>() <= QUIET
}

/// Whether the client's line loses so much, and home is so far behind it, that the edge should do the
/// retransmissions (losses towards the edge are not visible); and whether the path is much longer than a
/// sender believes.
fn look(pair: &Pair, meter: &Meter) -> (bool, bool) {
    let infos = tcp::info(&pair.client).and_then(|client| Ok((client, tcp::info(&pair.backend)?)));
    infos.map_or((false, false), |(client, backend)| {
        let is_lossy = is_better_repaired_here(&client, &backend);
        (is_lossy, is_stretched(&client, &backend, meter.up(), meter.down()))
    })
}

fn is_better_repaired_here(client: &TcpInfo, backend: &TcpInfo) -> bool {
    let lost = u64::from(client.retransmitted) * u64::from(client.send_mss);
    client.retransmitted >= LOSSES && lost * LOSSY > client.bytes_acked && backend.rtt * 2 > client.rtt
}

fn stays(tier: &FlowTier, reason: &Stay) {
    tracing::debug!(%reason, "a connection stays on its sockets");
    tier.stays(reason);
}

/// Both sides were reset. The backend's way is the more likely one to have failed.
fn cut(failure: super::handover::Failure) -> Fate {
    tracing::warn!(?failure, "a connection was lost while it was handed over, and both sides were reset");
    Fate::Ended(End::Reset(Side::Backend))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(retransmitted: u32, bytes_acked: u64, rtt: u64) -> TcpInfo {
        let rtt = Duration::from_millis(rtt);
        TcpInfo { retransmitted, bytes_acked, rtt, send_mss: 1448, ..TcpInfo::default() }
    }

    #[test]
    fn repairs_are_made_here_where_much_is_lost_and_home_is_far() {
        let home = info(0, 1 << 20, 100);
        assert!(is_better_repaired_here(&info(7, 1 << 19, 20), &home), "one in fifty");
        assert!(!is_better_repaired_here(&info(2, 1 << 19, 20), &home), "perhaps by chance");
        assert!(!is_better_repaired_here(&info(7, 1 << 24, 20), &home), "one in two thousand");
        assert!(!is_better_repaired_here(&info(7, 1 << 19, 20), &info(0, 1 << 20, 5)), "home is near");
    }
}
