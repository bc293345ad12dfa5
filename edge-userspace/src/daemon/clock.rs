//! The wall clock, which may be set while edged runs: boards without a battery start in 1970 until NTP sets
//! their clock. Blocks with an end must follow it; intervals use other clocks.

use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::Daemon;
use crate::{config::state::Block, moment::Moment, shield::ShieldError};

/// A look at the clock.
const EVERY: Duration = Duration::from_secs(1);
/// 2026-01-01: this program is younger.
const EARLIEST: Duration = Duration::from_hours(20_454 * 24);

/// Whether the clock can be right.
pub(super) fn is_plausible(now: SystemTime) -> bool {
    now >= SystemTime::UNIX_EPOCH + EARLIEST
}

/// The fate of a block after the clock was set.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its end came from the disk, a time of the right clock: it is in force until then.
    Until(SystemTime),
    /// The same, and that time is over.
    Over,
    /// It was made for a duration while the clock was wrong. The kernel measures the duration, and this is
    /// its end.
    Ends(SystemTime),
}

/// The fate of the blocks that have an end. `loaded` were on disk when edged started; `in_kernel` returns the
/// end of one that is in force.
fn outcomes(
    blocks: &[Block],
    loaded: &[Block],
    in_kernel: impl Fn(IpNet) -> Option<SystemTime>,
    now: SystemTime,
) -> Vec<(IpNet, Outcome)> {
    blocks
        .iter()
        .filter_map(|block| {
            let until = block.until?;
            let outcome = if !loaded.contains(block) {
                Outcome::Ends(in_kernel(block.cidr)?)
            } else if block.has_ended(now) {
                Outcome::Over
            } else {
                Outcome::Until(until)
            };
            Some((block.cidr, outcome))
        })
        .collect()
}

impl Daemon {
    /// Takes up that the clock was set, for as long as the daemon lives.
    pub(super) async fn follow_clock(&self) {
        let mut last = Moment::now();
        loop {
            tokio::time::sleep(EVERY).await;
            let now = Moment::now();
            if let Some(change) = last.set_by(now) {
                tracing::warn!("the clock was set {change}");
                self.settle_blocks().await;
            }
            last = now;
        }
    }

    async fn settle_blocks(&self) {
        let mut control_state = self.control_state.lock().await;
        let mut state = control_state.state.clone();
        {
            let mut shield = self.shielding.shield();
            let blocked = shield.blocked().unwrap_or_default();
            let held: Vec<_> = self.shielding.held().iter().map(|(net, _)| *net).collect();
            let in_kernel = |net| blocked.iter().find(|known| known.net == net)?.until;
            for (net, outcome) in outcomes(&state.blocks, &self.loaded_blocks, in_kernel, SystemTime::now()) {
                if held.contains(&net) {
                    continue;
                }
                let settled = match outcome {
                    Outcome::Until(until) => shield.block(net, Some(until), &[]),
                    Outcome::Over => shield.unblock(net).map(drop),
                    Outcome::Ends(until) => {
                        let own = state.blocks.iter_mut().filter(|block| block.cidr == net);
                        own.for_each(|block| block.until = Some(until));
                        Ok(())
                    }
                };
                match settled {
                    Ok(()) | Err(ShieldError::NotBlocked(_) | ShieldError::Listed { .. }) => {}
                    Err(error) => tracing::error!(%net, %error, "a block does not follow the clock"),
                }
            }
        }
        if state != control_state.state {
            match control_state.store.save(&state).await {
                Ok(()) => control_state.state = state,
                Err(error) => tracing::error!(%error, "blocks keep the times of the clock before on disk"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn block(cidr: &str, until: Option<u64>) -> Block {
        Block { cidr: cidr.parse().unwrap(), until: until.map(at), forced: false }
    }

    #[test]
    fn blocks_follow_a_clock_that_is_set() {
        const NOW: u64 = 1_800_000_000;
        let lasting = block("192.0.2.1/32", Some(NOW + 60));
        let over = block("192.0.2.2/32", Some(NOW - 60));
        let for_ever = block("192.0.2.3/32", None);
        // For an hour, twenty seconds after a start in 1970.
        let fresh = block("192.0.2.4/32", Some(3620));
        let loaded = [lasting.clone(), over.clone(), for_ever.clone()];
        let all = [lasting.clone(), over.clone(), for_ever, fresh.clone()];
        let found = outcomes(&all, &loaded, |_| Some(at(NOW + 3590)), at(NOW));
        assert_eq!(
            found,
            [
                (lasting.cidr, Outcome::Until(at(NOW + 60))),
                (over.cidr, Outcome::Over),
                (fresh.cidr, Outcome::Ends(at(NOW + 3590))),
            ]
        );
    }

    #[test]
    fn a_clock_of_1970_is_not_believed() {
        assert!(!is_plausible(at(3600)));
        assert!(is_plausible(at(1_800_000_000)));
    }
}
