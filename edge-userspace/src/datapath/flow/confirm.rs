//! Before a hand-over, packets on the wire must confirm the sockets' view of both legs. The sockets carry
//! everything until then, so nothing can be lost, and ordinary traffic suffices. A quiet side gets keepalive
//! probes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{agreement::Mismatch, stay::Stay, survey::Survey, tier::FlowTier};
use crate::{
    datapath::{
        End, Meter, Pair, Stop,
        relay::{Relay, Turn},
    },
    kernel::tcp,
};

/// Between two looks, at first and at last.
const LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(50);
/// How long ordinary traffic is waited for at least, before the sides are asked.
const TRAFFIC: Duration = Duration::from_millis(100);
/// Between two questions: the kernel answers one each half second (`tcp_invalid_ratelimit`).
const ASK: Duration = Duration::from_millis(600);
/// How long all of it may take: some questions, and the round trip of a long path.
const PATIENCE: Duration = Duration::from_secs(3);

/// The result.
pub(super) enum Confirmed {
    /// The connection may be handed over.
    Yes(Survey),
    /// It has ended meanwhile.
    End(End),
    /// It stays on its sockets.
    No(Stay),
}

/// Carries on the sockets until everything is prepared and both legs are confirmed. `is_first`: nobody has
/// looked before.
pub(super) async fn confirm(
    tier: &FlowTier,
    relay: &mut Relay,
    is_first: bool,
    meter: &Meter,
    stop: &Stop,
) -> Confirmed {
    let mut survey = match tier.survey(relay.pair(), is_first) {
        Ok(survey) => survey,
        Err(stay) => return Confirmed::No(stay),
    };
    let readied = tokio::select! {
        biased;
        turn = relay.run(meter, stop, |_| false) => match turn {
            Turn::End(end) => return Confirmed::End(end),
            Turn::Due => Err(Stay::NotReady),
        },
        readied = tier.readied(survey) => readied,
    };
    let looked = readied.and_then(|()| {
        if !is_first {
            tier.look_anew(relay.pair())?;
        }
        survey.begin(relay.pair())?;
        let known = tier.compare(relay.pair(), &survey, false)?;
        // Packets that arrived meanwhile have been recorded.
        Ok(if known { None } else { Some(tier.comparison()?) })
    });
    let comparison = match looked {
        Ok(None) => return Confirmed::Yes(survey),
        Ok(Some(comparison)) => comparison,
        Err(stay) => return Confirmed::No(stay),
    };
    let started = Instant::now();
    let mut question =
        started + if stop.is_last_call() { Duration::ZERO } else { TRAFFIC.max(round_trips(relay.pair())) };
    let mut pause = LOOK;
    let outcome = loop {
        tokio::select! {
            biased;
            turn = relay.run(meter, stop, |_| false) => {
                if let Turn::End(end) = turn {
                    break Confirmed::End(end);
                }
            }
            () = sleep(pause) => {}
        }
        if meter.half_closed() {
            break Confirmed::No(Mismatch::Closing.into());
        }
        let now = Instant::now();
        match tier.compare(relay.pair(), &survey, now - started >= PATIENCE) {
            Ok(true) => break Confirmed::Yes(survey),
            Err(stay) => break Confirmed::No(stay),
            Ok(false) if now >= question => {
                ask(relay.pair());
                question = now + ASK;
            }
            Ok(false) => {}
        }
        pause = (pause * 2).min(LONGEST_LOOK);
    };
    drop(comparison);
    outcome
}

fn ask(pair: &Pair) {
    for socket in [&pair.client, &pair.backend] {
        // One that has been reset says so when it is read.
        let _ = tcp::ask(socket);
    }
}

/// The longest time for home's answer to a client's hello and the client's answer to that: twice the round
/// trip.
fn round_trips(pair: &Pair) -> Duration {
    let rtt = |socket| tcp::info(socket).map(|info| info.rtt).unwrap_or_default();
    ((rtt(&pair.client) + rtt(&pair.backend)) * 2).min(PATIENCE / 3)
}
