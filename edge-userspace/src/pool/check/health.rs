//! Decides when a backend counts as up: rise and fall over the results of checks and clients' connections.
//!
//! A state machine without clock or socket: its input is results, its output how long to wait.
//! [`check`](super) performs the checks, and [`backend`](crate::pool::Backend) acts on changes.

use std::time::Duration;

use crate::spec::{HealthKind, HealthSpec};

/// The wait before the next check while the state may be changing, as a part of the interval.
const FAST_DIVISOR: u32 = 5;
/// The longest such wait, so that an interval of minutes does not make a failover take minutes.
const FAST_CEILING: Duration = Duration::from_secs(1);
/// The shortest wait between two checks of one backend, whatever the configuration says.
const FLOOR: Duration = Duration::from_millis(100);
/// The longest time that an unchecked backend stays out after failures.
const HOLD_CEILING: Duration = Duration::from_mins(1);

/// The origin of an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Evidence {
    /// A health check.
    Check,
    /// A client's connection, which began in this epoch.
    Traffic(Epoch),
}

/// The time between two changes of a backend's health, numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::pool) struct Epoch(pub(in crate::pool) u32);

impl Epoch {
    fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// A change of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Change {
    /// It takes connections again.
    Up,
    /// It takes no more connections.
    Down,
}

/// The health of one backend.
///
/// - It starts up; its first outcome settles the state without `rise` or `fall`, so that a backend that is
///   dead at start is out at once.
/// - Refused or timed-out client connections count like failed checks towards `fall`, unless they began before the
///   state last changed: a timeout tells of the time when it began. One that is established ends such a row, except
///   of a check that asks for more than a connection.
/// - Only checks count towards `rise`, so that a backend that comes and goes is not up for every moment in which
///   clients get through.
/// - With checks off nothing is known of it until a client's connection is established or fails. `fall` failed
///   connections in a row take it out for one interval, then it is tried again; one more failure doubles the time. A
///   backend that is alone in its pool stays down in the lists until a client gets through: every client tries it all
///   the same, since there is no other.
/// - A first check that fails settles nothing where a client was connected before it.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, of which each combination can occur")]
pub(in crate::pool) struct Health {
    spec: HealthSpec,
    alone: bool,
    up: bool,
    epoch: Epoch,
    settled: bool,
    /// A client was connected since the state last changed.
    served: bool,
    /// Outcomes in a row against the present state.
    against: u32,
    hold: Duration,
}

impl Health {
    /// The health of a backend that nothing is known of. `alone` means that its pool has no other.
    pub(in crate::pool) fn new(spec: HealthSpec, alone: bool) -> Self {
        let hold = spec.interval.max(FLOOR);
        Self {
            spec,
            alone,
            up: true,
            epoch: Epoch::default(),
            settled: false,
            served: false,
            against: 0,
            hold,
        }
    }

    /// Takes another configuration and keeps what is known.
    pub(in crate::pool) fn reconfigure(&mut self, spec: HealthSpec, alone: bool) {
        if self.spec != spec || self.alone != alone {
            let were_checks = self.spec.kind != HealthKind::Off;
            *self = Self {
                up: self.up,
                epoch: self.epoch,
                settled: self.settled,
                served: self.served,
                ..Self::new(spec, alone)
            };
            // Without checks their last result must not stay for ever, and nothing else would change it.
            if spec.kind == HealthKind::Off && were_checks {
                (self.up, self.settled) = (true, false);
            }
        }
    }

    /// Whether it counts as up.
    pub(in crate::pool) fn is_up(&self) -> bool {
        self.up
    }

    /// Whether nothing checks it and no client has found out about it.
    pub(in crate::pool) fn is_unknown(&self) -> bool {
        self.spec.kind == HealthKind::Off && self.up && !self.settled
    }

    /// Whether it is not checked and alone in its pool: down or not, every client tries it.
    pub(in crate::pool) fn is_only_way(&self) -> bool {
        self.spec.kind == HealthKind::Off && self.alone
    }

    /// Whether it is down, and no check has passed since.
    pub(in crate::pool) fn is_out(&self) -> bool {
        !self.up && self.against == 0
    }

    /// The present epoch.
    pub(in crate::pool) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether every result agrees with the state, so that another one of the same kind changes nothing.
    pub(in crate::pool) fn is_steady(&self) -> bool {
        self.up && self.against == 0 && self.settled
    }

    /// It answered.
    pub(in crate::pool) fn passed(&mut self, evidence: Evidence) -> Option<Change> {
        if self.up && matches!(evidence, Evidence::Traffic(_)) {
            self.served = true;
        }
        let is_proof = match (evidence, self.spec.kind) {
            (Evidence::Check, _) | (_, HealthKind::Off) => true,
            (Evidence::Traffic(_), HealthKind::Tcp) => self.up,
            (Evidence::Traffic(_), _) => false,
        };
        if !is_proof {
            return None;
        }
        if self.up {
            self.settled = true;
            self.against = 0;
            self.hold = self.spec.interval.max(FLOOR);
            return None;
        }
        self.against += 1;
        let enough = match self.spec.kind {
            HealthKind::Off => 1,
            _ => self.spec.rise,
        };
        (self.against >= enough).then(|| self.turn(true))
    }

    /// It did not answer.
    pub(in crate::pool) fn failed(&mut self, evidence: Evidence) -> Option<Change> {
        if matches!(evidence, Evidence::Traffic(epoch) if epoch != self.epoch) {
            return None;
        }
        if !self.up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        // A single refused client may have met a restart; only a check settles the unknown at once.
        let first = !self.settled && !self.served && evidence == Evidence::Check;
        (first || self.against >= self.spec.fall).then(|| self.turn(false))
    }

    /// Ends the time out of an unchecked backend: it is up on probation, and the next failure takes it out
    /// for twice as long.
    pub(in crate::pool) fn retry(&mut self) -> Option<Change> {
        if self.up || self.spec.kind != HealthKind::Off || self.alone {
            return None;
        }
        let change = self.turn(true);
        self.settled = false;
        self.against = self.spec.fall.saturating_sub(1);
        self.hold = (self.hold * 2).min(HOLD_CEILING.max(self.spec.interval));
        Some(change)
    }

    /// The operator says that it is in order: up, until outcomes say otherwise.
    pub(in crate::pool) fn trust(&mut self) -> Option<Change> {
        let change = (!self.up).then_some(Change::Up);
        self.up = true;
        self.epoch = self.epoch.next();
        self.against = 0;
        self.hold = self.spec.interval.max(FLOOR);
        change
    }

    /// The wait from the start of one check to the next, `spread` (0 to 1) of the way through the jitter of
    /// a tenth either way. For an unchecked backend: the time until [`Health::retry`]; `None` means until
    /// something fails.
    pub(in crate::pool) fn next(&self, spread: f64) -> Option<Duration> {
        let wait = match self.spec.kind {
            HealthKind::Off if self.up || self.alone => return None,
            HealthKind::Off => self.hold,
            _ if self.against > 0 => (self.spec.interval / FAST_DIVISOR).min(FAST_CEILING),
            _ => self.spec.interval,
        };
        Some(wait.mul_f64(0.9 + 0.2 * spread.clamp(0.0, 1.0)).max(FLOOR))
    }

    fn turn(&mut self, up: bool) -> Change {
        self.up = up;
        self.epoch = self.epoch.next();
        self.settled = true;
        self.served = false;
        self.against = 0;
        if up { Change::Up } else { Change::Down }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: HealthKind) -> HealthSpec {
        HealthSpec { kind, ..HealthSpec::default() }
    }

    fn traffic(health: &Health) -> Evidence {
        Evidence::Traffic(health.epoch())
    }

    fn settled(kind: HealthKind) -> Health {
        let mut health = Health::new(spec(kind), false);
        health.passed(Evidence::Check);
        health
    }

    #[test]
    fn it_falls_after_three_and_rises_after_two() {
        let mut health = settled(HealthKind::Tcp);
        let mut said = Vec::new();
        for passed in [false, false, true, false, false, false, false, true, false, true, true, true] {
            said.push(if passed { health.passed(Evidence::Check) } else { health.failed(Evidence::Check) });
        }
        let mut expected = vec![None; 12];
        expected[5] = Some(Change::Down);
        expected[10] = Some(Change::Up);
        assert_eq!(said, expected);
    }

    #[test]
    fn the_first_check_settles_the_state() {
        let mut health = Health::new(spec(HealthKind::Tcp), false);
        assert!(health.is_up());
        assert_eq!(health.failed(Evidence::Check), Some(Change::Down));
        assert_eq!(health.passed(Evidence::Check), None, "then rise counts");
        let mut health = Health::new(spec(HealthKind::Tcp), false);
        assert_eq!(health.failed(traffic(&health)), None, "a client's failure does not");
        assert_eq!(health.failed(Evidence::Check), Some(Change::Down));
    }

    #[test]
    fn traffic_counts_towards_fall_where_it_proves_as_much() {
        let mut health = settled(HealthKind::Tcp);
        health.failed(traffic(&health));
        health.failed(Evidence::Check);
        health.passed(traffic(&health));
        health.failed(traffic(&health));
        health.failed(Evidence::Check);
        assert_eq!(health.failed(traffic(&health)), Some(Change::Down));

        let mut health = settled(HealthKind::Tls);
        health.failed(Evidence::Check);
        health.failed(Evidence::Check);
        assert_eq!(health.passed(traffic(&health)), None);
        assert_eq!(health.failed(Evidence::Check), Some(Change::Down), "an open port is no TLS service");
    }

    #[test]
    fn traffic_does_not_count_towards_rise() {
        for kind in [HealthKind::Tcp, HealthKind::Tls] {
            let mut health = settled(kind);
            while health.failed(Evidence::Check).is_none() {}
            assert!((0..100).all(|_| health.passed(traffic(&health)).is_none()));
            assert_eq!(health.passed(Evidence::Check), None, "{kind:?}");
            assert_eq!(health.passed(traffic(&health)), None, "{kind:?}");
            assert_eq!(health.passed(Evidence::Check), Some(Change::Up), "{kind:?}");
        }
    }

    #[test]
    fn a_connection_that_began_before_a_change_says_nothing_against_what_is_now() {
        let mut health = settled(HealthKind::Tcp);
        let before = traffic(&health);
        while health.failed(before).is_none() {}
        health.passed(Evidence::Check);
        assert_eq!(health.failed(before), None);
        assert_eq!(health.passed(Evidence::Check), Some(Change::Up), "the row of checks went on");
        assert!((0..100).all(|_| health.failed(before).is_none()));
        assert!(health.is_steady());
        health.failed(traffic(&health));
        let suspected = traffic(&health);
        health.trust();
        assert!((0..100).all(|_| health.failed(suspected).is_none()), "the operator knows better");
    }

    /// Clients connect all the time to a service that comes and goes: the state of the backend, and when it
    /// changes.
    fn flapping(
        kind: HealthKind,
        clients: bool,
        is_there: impl Fn(Duration) -> bool,
    ) -> Vec<(Duration, Change)> {
        const TICK: Duration = Duration::from_millis(10);
        let mut health = settled(kind);
        let (mut changes, mut now, mut check) = (Vec::new(), Duration::ZERO, Duration::ZERO);
        while now < Duration::from_mins(5) {
            let mut outcome = |health: &mut Health, evidence| {
                let change = if is_there(now) { health.passed(evidence) } else { health.failed(evidence) };
                changes.extend(change.map(|change| (now, change)));
            };
            if now >= check {
                outcome(&mut health, Evidence::Check);
                check = now + health.next(0.5).unwrap();
            }
            // While it is down they go there too, for want of another.
            if clients {
                let evidence = traffic(&health);
                outcome(&mut health, evidence);
            }
            now += TICK;
        }
        changes
    }

    #[test]
    fn clients_bring_a_flapping_backend_down_sooner_but_not_up() {
        // Up for half a second of every three, which no two checks in a row can see, and then permanently.
        let settles = Duration::from_mins(4);
        let is_there = |now: Duration| now >= settles || now.as_millis() % 3000 >= 2500;
        for kind in [HealthKind::Tcp, HealthKind::Tls] {
            let [alone, watched] = [false, true].map(|clients| flapping(kind, clients, is_there));
            let [(down, Change::Down), (up, Change::Up)] = watched[..] else { panic!("{watched:?}") };
            assert_eq!(down, Duration::from_millis(10), "three failures, one of them a check's: {kind:?}");
            assert!(down < alone[0].0, "{alone:?}");
            assert!(up > settles + Duration::from_millis(500) && up <= settles + Duration::from_secs(7));
        }
    }

    #[test]
    fn checks_come_faster_while_the_state_may_change() {
        let mut health = settled(HealthKind::Tcp);
        assert_eq!(health.next(0.5), Some(Duration::from_secs(5)));
        assert_eq!(health.next(0.0), Some(Duration::from_millis(4500)));
        assert_eq!(health.next(1.0), Some(Duration::from_millis(5500)));
        health.failed(Evidence::Check);
        assert_eq!(health.next(0.5), Some(Duration::from_secs(1)));
        health.failed(Evidence::Check);
        health.failed(Evidence::Check);
        assert_eq!(health.next(0.5), Some(Duration::from_secs(5)), "down for good");
        health.passed(Evidence::Check);
        assert_eq!(health.next(0.5), Some(Duration::from_secs(1)), "perhaps back");
        let hasty = HealthSpec { interval: Duration::ZERO, ..HealthSpec::default() };
        assert_eq!(Health::new(hasty, false).next(0.5), Some(FLOOR));
    }

    #[test]
    fn an_unchecked_backend_is_out_for_a_while_and_longer_each_time() {
        let mut health = Health::new(spec(HealthKind::Off), false);
        assert_eq!(health.next(0.5), None);
        for expected in [None, None, Some(Change::Down)] {
            assert_eq!(health.failed(traffic(&health)), expected);
        }
        assert_eq!(health.next(0.5), Some(Duration::from_secs(5)));
        assert_eq!(health.retry(), Some(Change::Up));
        assert_eq!(health.failed(traffic(&health)), Some(Change::Down), "on probation");
        assert_eq!(health.next(0.5), Some(Duration::from_secs(10)));
        for _ in 0..9 {
            health.retry();
            health.failed(traffic(&health));
        }
        assert_eq!(health.next(0.5), Some(HOLD_CEILING));
        assert_eq!(health.passed(traffic(&health)), Some(Change::Up), "one success is enough");
        health.passed(traffic(&health));
        for _ in 0..3 {
            health.failed(traffic(&health));
        }
        assert_eq!(health.next(0.5), Some(Duration::from_secs(5)), "and success is remembered");
    }

    #[test]
    fn an_unchecked_backend_alone_is_down_until_a_client_gets_through() {
        let mut health = Health::new(spec(HealthKind::Off), true);
        assert!(health.is_unknown());
        for expected in [None, None, Some(Change::Down), None, None] {
            assert_eq!(health.failed(traffic(&health)), expected);
        }
        assert!(!health.is_up() && health.is_only_way());
        assert_eq!((health.next(0.5), health.retry()), (None, None), "time alone says nothing");
        assert_eq!(health.passed(traffic(&health)), Some(Change::Up));
        assert!(health.is_up() && !health.is_unknown());
        let mut health = settled(HealthKind::Tcp);
        for _ in 0..3 {
            health.failed(Evidence::Check);
        }
        health.reconfigure(spec(HealthKind::Off), true);
        assert!(health.is_up() && health.is_unknown(), "nothing else would bring it back");
    }

    #[test]
    fn a_first_check_that_fails_does_not_outweigh_a_client_that_was_served() {
        for kind in [HealthKind::Auto, HealthKind::Tcp] {
            let mut health = Health::new(spec(kind), false);
            health.passed(traffic(&health));
            assert_eq!(health.failed(Evidence::Check), None, "{kind:?}");
            assert_eq!(health.failed(Evidence::Check), None, "{kind:?}");
            assert_eq!(health.failed(Evidence::Check), Some(Change::Down), "{kind:?}: three in a row do");
        }
        let mut health = Health::new(spec(HealthKind::Auto), false);
        assert_eq!(health.failed(Evidence::Check), Some(Change::Down), "without a client it counts at once");
    }

    #[test]
    fn a_new_configuration_keeps_the_state() {
        let mut health = settled(HealthKind::Tcp);
        for _ in 0..3 {
            health.failed(Evidence::Check);
        }
        health.reconfigure(HealthSpec { rise: 1, ..HealthSpec::default() }, false);
        assert!(!health.is_up());
        assert_eq!(health.passed(Evidence::Check), Some(Change::Up));
        assert_eq!(health.trust(), None);
    }
}
