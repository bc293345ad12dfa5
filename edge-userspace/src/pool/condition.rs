//! The state of a backend, composed of four parts: its health, its tunnel, its name and the operator's
//! setting. Each source sets and clears only its own part. Pure except for the time of day that it records.

use std::{sync::Arc, time::SystemTime};

use super::check::health::{Change, Evidence, Health};
use crate::{moment::Moment, spec::HealthSpec};

/// Whether a backend takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// It does.
    Up,
    /// It does, as far as is known: there are no checks, and no client's connection has decided it yet.
    Unchecked,
    /// It does not work, or cannot be reached.
    Down,
    /// The operator wants none there.
    Drained,
}

impl BackendState {
    /// The name in the control interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Unchecked => "unchecked",
            Self::Down => "down",
            Self::Drained => "drained",
        }
    }

    /// Whether it is among those that new connections are given to.
    pub fn takes_connections(self) -> bool {
        matches!(self, Self::Up | Self::Unchecked)
    }
}

/// Something other than health that keeps a backend down. Each is set and cleared by one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its tunnel: the device is gone or down, there is no route, or the peer is silent.
    Tunnel,
    /// Its name has no address.
    Name,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) state: BackendState,
    pub(super) reason: Arc<str>,
    /// It takes connections after it had been out, not for the first time.
    pub(super) recovered: bool,
}

/// All that is known of a backend's state.
#[derive(Debug)]
pub(super) struct Condition {
    health: Health,
    health_reason: Option<Arc<str>>,
    tunnel_reason: Option<Arc<str>>,
    name_reason: Option<Arc<str>>,
    drained: bool,
    pub(super) state: BackendState,
    pub(super) since: Moment,
    pub(super) reason: Option<Arc<str>>,
    pub(super) last_error: Option<(SystemTime, Arc<str>)>,
    /// It has been up, or has failed a check: a first resolution is no recovery.
    seen: bool,
}

impl Condition {
    /// Nothing is known: up or unchecked, or down if its name is yet to be resolved.
    pub(super) fn new(health: HealthSpec, alone: bool, by_name: bool) -> Self {
        let unresolved: Option<Arc<str>> = by_name.then(|| "the name is not resolved yet".into());
        let health = Health::new(health, alone);
        let known = if health.is_unknown() { BackendState::Unchecked } else { BackendState::Up };
        Self {
            health,
            health_reason: None,
            tunnel_reason: None,
            name_reason: unresolved.clone(),
            drained: false,
            state: if by_name { BackendState::Down } else { known },
            since: Moment::now(),
            reason: unresolved,
            last_error: None,
            seen: !by_name,
        }
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    pub(super) fn reconfigure(&mut self, health: HealthSpec, alone: bool) -> Option<Turn> {
        self.health.reconfigure(health, alone);
        self.settle("reconfigured")
    }

    /// A check or a client's connection ended.
    pub(super) fn report(&mut self, evidence: Evidence, outcome: Result<(), &str>) -> Option<Turn> {
        match outcome {
            Ok(()) => {
                self.health.passed(evidence);
            }
            Err(reason) => {
                self.failed(reason);
                if self.health.failed(evidence) == Some(Change::Down) {
                    self.health_reason = Some(reason.into());
                }
            }
        }
        let first = self.state == BackendState::Unchecked;
        self.settle(if first { "a client was connected" } else { "it answers again" })
    }

    /// Remembers a failure that says nothing about its health.
    pub(super) fn failed(&mut self, reason: &str) {
        self.last_error = Some((SystemTime::now(), reason.into()));
    }

    /// Ends the time out of an unchecked backend.
    pub(super) fn retry(&mut self) -> Option<Turn> {
        self.health.retry();
        self.settle("tried again after failed connections")
    }

    pub(super) fn set(&mut self, obstacle: Obstacle, reason: Option<&str>) -> Option<Turn> {
        let (slot, cleared) = match obstacle {
            Obstacle::Tunnel => (&mut self.tunnel_reason, "its tunnel works"),
            Obstacle::Name => (&mut self.name_reason, "its name resolves"),
        };
        *slot = reason.map(Arc::from);
        self.settle(cleared)
    }

    pub(super) fn is_set(&self, obstacle: Obstacle) -> bool {
        match obstacle {
            Obstacle::Tunnel => self.tunnel_reason.is_some(),
            Obstacle::Name => self.name_reason.is_some(),
        }
    }

    pub(super) fn drain(&mut self) -> Option<Turn> {
        self.drained = true;
        self.settle("")
    }

    /// Back in, whatever was known against its health.
    pub(super) fn ready(&mut self) -> Option<Turn> {
        self.drained = false;
        self.health.trust();
        self.settle("set ready by the operator")
    }

    /// Puts the parts together; `up` is the reason if that brings it up.
    fn settle(&mut self, up: &str) -> Option<Turn> {
        if self.health.is_up() {
            self.health_reason = None;
        }
        // The cause before the symptom.
        let down = [&self.tunnel_reason, &self.name_reason, &self.health_reason].into_iter().flatten().next();
        let (state, reason) = match down {
            _ if self.drained => (BackendState::Drained, "drained by the operator".into()),
            Some(reason) => (BackendState::Down, Arc::clone(reason)),
            None if self.health.is_unknown() => (BackendState::Unchecked, up.into()),
            None => (BackendState::Up, up.into()),
        };
        if state == self.state {
            // It may be down for another reason by now; that is worth showing but no change.
            if state == BackendState::Down {
                self.reason = Some(reason);
            }
            return None;
        }
        let came_back = state.takes_connections() && !self.state.takes_connections();
        let recovered = came_back && std::mem::replace(&mut self.seen, true);
        self.state = state;
        self.since = Moment::now();
        self.reason = Some(Arc::clone(&reason));
        Some(Turn { state, reason, recovered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::HealthKind;

    fn fragile() -> Condition {
        Condition::new(HealthSpec { rise: 1, fall: 1, ..HealthSpec::default() }, false, false)
    }

    fn said(turn: Option<Turn>) -> Option<(BackendState, String)> {
        turn.map(|turn| (turn.state, turn.reason.to_string()))
    }

    #[test]
    fn each_side_keeps_it_down_until_it_is_cleared() {
        use BackendState::{Down, Up};
        let mut condition = fragile();
        let check = Evidence::Check;
        let turn = condition.report(check, Err("connection refused"));
        assert_eq!(said(turn), Some((Down, "connection refused".into())));
        assert_eq!(condition.set(Obstacle::Tunnel, Some("wg0 is gone")), None);
        assert_eq!(condition.reason.as_deref(), Some("wg0 is gone"), "the cause before the symptom");
        assert_eq!(condition.report(check, Ok(())), None);
        assert_eq!(condition.state, Down);
        let turn = condition.set(Obstacle::Tunnel, None);
        assert!(turn.as_ref().is_some_and(|turn| turn.recovered));
        assert_eq!(said(turn), Some((Up, "its tunnel works".into())));
        assert_eq!(&*condition.last_error.unwrap().1, "connection refused");
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let mut condition = fragile();
        assert_eq!(said(condition.drain()).unwrap().0, BackendState::Drained);
        assert_eq!(condition.drain(), None);
        assert_eq!(condition.report(Evidence::Check, Err("no route")), None);
        assert_eq!(condition.reason.as_deref(), Some("drained by the operator"));
        let turn = condition.ready();
        assert_eq!(said(turn), Some((BackendState::Up, "set ready by the operator".into())));
        condition.set(Obstacle::Tunnel, Some("wg0 is gone"));
        assert_eq!(condition.ready(), None, "but no word brings a device back");
    }

    #[test]
    fn what_nobody_has_checked_is_unchecked_until_a_client_says_otherwise() {
        let off = HealthSpec { kind: HealthKind::Off, fall: 2, ..HealthSpec::default() };
        let mut condition = Condition::new(off, true, false);
        assert_eq!(condition.state, BackendState::Unchecked);
        let traffic = |condition: &Condition| Evidence::Traffic(condition.health().epoch());
        let evidence = traffic(&condition);
        assert_eq!(condition.report(evidence, Err("connection refused")), None);
        assert_eq!((condition.state, condition.last_error.is_some()), (BackendState::Unchecked, true));
        let turn = condition.report(evidence, Err("connection refused"));
        assert_eq!(said(turn), Some((BackendState::Down, "connection refused".into())));
        let evidence = traffic(&condition);
        let turn = condition.report(evidence, Ok(())).unwrap();
        assert_eq!((turn.state, turn.recovered), (BackendState::Up, true));

        let mut condition = Condition::new(off, false, true);
        assert_eq!(condition.set(Obstacle::Name, None).unwrap().state, BackendState::Unchecked);
        let evidence = traffic(&condition);
        let turn = condition.report(evidence, Ok(())).unwrap();
        assert_eq!((turn.state, turn.recovered), (BackendState::Up, false), "it was not out");
    }

    #[test]
    fn a_first_resolution_is_no_recovery() {
        let mut condition = Condition::new(HealthSpec::default(), false, true);
        assert_eq!(condition.state, BackendState::Down);
        let turn = condition.set(Obstacle::Name, None).unwrap();
        assert_eq!((turn.state, turn.recovered), (BackendState::Up, false));
        condition.set(Obstacle::Tunnel, Some("wg0 is gone"));
        assert!(condition.set(Obstacle::Tunnel, None).unwrap().recovered);
    }
}
