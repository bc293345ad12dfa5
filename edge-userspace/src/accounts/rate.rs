//! The connection rate per source, counted in user space: for machines without XDP, and for clients behind a
//! trusted proxy, which the shield cannot tell apart.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// The burst that a source may use up at once, as time at its rate.
const BURST: Duration = Duration::from_secs(1);
/// The most sources that are remembered, a few megabytes. Further sources are let in uncounted rather than
/// all refused.
const MOST: usize = 1 << 16;

/// For each source, when it will have paid for its connections so far (the generic cell rate algorithm).
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<Ledger>);

#[derive(Debug, Default)]
struct Ledger {
    paid_at: HashMap<IpAddr, Instant>,
    /// When those that had paid were forgotten last.
    tidied: Option<Instant>,
}

impl Rates {
    /// Whether `source` may connect once more now, which then counts; `rate` is per second.
    pub(super) fn admits(&self, source: IpAddr, rate: u32, now: Instant) -> bool {
        if rate == 0 {
            return true;
        }
        let mut ledger = lock(&self.0);
        ledger.tidy(now);
        let is_known = ledger.paid_at.contains_key(&source);
        if !is_known && ledger.paid_at.len() >= MOST {
            return true;
        }
        let paid_at = ledger.paid_at.entry(source).or_insert(now);
        let then = (*paid_at).max(now) + BURST / rate;
        if then.saturating_duration_since(now) > BURST {
            return false;
        }
        *paid_at = then;
        true
    }
}

impl Ledger {
    /// Forgets those that have paid, as all have after this time: once in it, however many connect.
    fn tidy(&mut self, now: Instant) {
        if self.tidied.is_none_or(|last| now.saturating_duration_since(last) >= BURST) {
            self.paid_at.retain(|_, paid_at| *paid_at > now);
            self.tidied = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn a_second_of_the_rate_at_once_and_then_the_rate() {
        let rates = Rates::default();
        let start = Instant::now();
        let admitted = |at: u64, source| rates.admits(source, 10, start + Duration::from_millis(at));
        assert_eq!((0..50).filter(|_| admitted(0, source(1))).count(), 10);
        assert!(admitted(0, source(2)), "others are not to blame");
        assert!(!admitted(99, source(1)));
        assert!(admitted(100, source(1)) && !admitted(100, source(1)));
        assert_eq!((0..50).filter(|_| admitted(5000, source(1))).count(), 10, "more is not saved up");
        assert!((0..50).all(|_| rates.admits(source(1), 0, start)), "0 is no limit");
    }

    #[test]
    fn sources_are_forgotten_and_bounded() {
        let rates = Rates::default();
        let start = Instant::now();
        let known = || rates.0.lock().unwrap().paid_at.len();
        for number in 0..100_000 {
            assert!(rates.admits(source(number), 1, start));
        }
        assert_eq!(known(), MOST);
        assert!(rates.admits(source(0), 1, start + Duration::from_secs(2)));
        assert_eq!(known(), 1);
    }
}
