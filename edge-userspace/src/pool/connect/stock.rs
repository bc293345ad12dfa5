//! How many warm connections a backend is worth, and how long one is kept. Pure; [`warm`](super::warm) has
//! the connections.

use std::time::{Duration, Instant};

/// Seconds of demand that `auto` remembers.
const MEMORY: usize = 60;
/// The most connections that `auto` keeps: what a browser opens at once, and some.
const AUTO_MAX: u32 = 8;
/// The life of an idle connection before anything is known: servers commonly close after 60 s.
const FIRST_LIFETIME: Duration = Duration::from_secs(50);
/// A backend that closes an idle connection sooner than this does not want any, or speaks first.
pub(super) const SHORT: Duration = Duration::from_secs(1);
/// The longest rest after such a close or a failure.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Recent demand, for `auto`: the most connections that were taken within one second of the last minute.
#[derive(Debug)]
pub(super) struct Demand {
    start: Option<Instant>,
    /// Connections taken in each second, in a ring.
    taken: [u32; MEMORY],
    /// The second that was written last.
    second: u64,
}

impl Default for Demand {
    fn default() -> Self {
        Self { start: None, taken: [0; MEMORY], second: 0 }
    }
}

impl Demand {
    /// A client took one, or would have.
    pub(super) fn taken(&mut self, now: Instant) {
        let at = self.advance(now);
        self.taken[at] = self.taken[at].saturating_add(1);
    }

    /// The connections worth keeping now; none after a minute without clients.
    pub(super) fn wanted(&mut self, now: Instant) -> usize {
        self.advance(now);
        self.taken.iter().copied().max().unwrap_or(0).min(AUTO_MAX) as usize
    }

    /// Forgets what is too old, and returns the place of the present second.
    fn advance(&mut self, now: Instant) -> usize {
        let start = *self.start.get_or_insert(now);
        let second = now.saturating_duration_since(start).as_secs();
        let ring = MEMORY as u64;
        for passed in (self.second + 1..=second).take(MEMORY) {
            self.taken[usize::try_from(passed % ring).unwrap_or(0)] = 0;
        }
        // A jump over the whole ring has cleared all of it, whichever seconds it began with.
        self.second = second;
        usize::try_from(second % ring).unwrap_or(0)
    }
}

/// How long a backend tolerates idle connections, learned from how they end.
#[derive(Debug)]
pub(super) struct Pace {
    lifetime: Duration,
    pause: Duration,
    next: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { lifetime: FIRST_LIFETIME, pause: Duration::ZERO, next: None }
    }
}

impl Pace {
    /// The age at which a connection is replaced, before the backend would close it: a client that took it at
    /// that very moment would fail.
    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The wait until another may be made.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// The backend closed one, or spoke first, at this age.
    pub(super) fn closed(&mut self, now: Instant, age: Duration) {
        if age < SHORT {
            self.failed(now);
        } else {
            self.lifetime = self.lifetime.min((age * 4 / 5).max(SHORT));
        }
    }

    /// One could not be made.
    pub(super) fn failed(&mut self, now: Instant) {
        // A burst of them is one event.
        if self.pause(now).is_zero() {
            self.pause = (self.pause * 2).clamp(SHORT, MAX_PAUSE);
            self.next = Some(now + self.pause);
        }
    }

    /// One lived to be replaced: perhaps it may live longer.
    pub(super) fn outlived(&mut self) {
        self.lifetime = (self.lifetime + self.lifetime / 50).min(FIRST_LIFETIME);
        self.used();
    }

    /// One was taken in good order.
    pub(super) fn used(&mut self) {
        (self.pause, self.next) = (Duration::ZERO, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_is_the_peak_of_the_last_minute() {
        let mut demand = Demand::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(demand.wanted(at(0)), 0);
        demand.taken(at(3));
        assert_eq!(demand.wanted(at(3)), 1);
        for _ in 0..6 {
            demand.taken(at(10));
        }
        demand.taken(at(11));
        assert_eq!(demand.wanted(at(30)), 6);
        assert_eq!(demand.wanted(at(69)), 6);
        assert_eq!(demand.wanted(at(70)), 1, "only what was taken at 11 is left");
        assert_eq!(demand.wanted(at(71)), 0);
        for _ in 0..100 {
            demand.taken(at(5000));
        }
        assert_eq!(demand.wanted(at(5001)), AUTO_MAX as usize);
        assert_eq!(demand.wanted(at(9000)), 0);
    }

    #[test]
    fn a_connection_is_replaced_before_the_backend_closes_it() {
        let mut pace = Pace::default();
        let now = Instant::now();
        assert_eq!(pace.lifetime(), FIRST_LIFETIME);
        pace.closed(now, Duration::from_secs(10));
        assert_eq!(pace.lifetime(), Duration::from_secs(8));
        assert_eq!(pace.pause(now), Duration::ZERO, "and a replacement is made at once");
        pace.closed(now, Duration::from_secs(40));
        assert_eq!(pace.lifetime(), Duration::from_secs(8), "one that lived longer teaches nothing");
        for _ in 0..1000 {
            pace.outlived();
        }
        assert_eq!(pace.lifetime(), FIRST_LIFETIME, "a server that became patient is noticed in time");
    }

    #[test]
    fn a_backend_that_wants_no_idle_connections_is_left_in_peace() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pace.closed(now, Duration::from_millis(30));
            pace.closed(now, Duration::from_millis(30));
            pauses.push(pace.pause(now).as_secs());
            now += pace.pause(now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        pace.used();
        assert_eq!(pace.pause(now), Duration::ZERO);
    }
}
