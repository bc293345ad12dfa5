//! Records disturbances and lost connections, and decides whether the one explains the other. Pure, except
//! for the lock around it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::lock::lock;

/// How long after its cause a loss may be noticed: a little more than the longest that a client waits for an
/// answer.
pub const NOTICED: Duration = Duration::from_secs(40);
/// How long after its end a disturbance may still cause refusals: a health check's interval, a route that is
/// being relearned.
const RECOVERY: Duration = Duration::from_secs(2);

/// How far a connection had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its backend has not answered yet.
    Connecting,
    /// Its backend has answered.
    Carried,
}

/// The end of a connection as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// Nobody listened.
    Refused,
    /// RST.
    Reset,
    /// FIN before all was there.
    Short,
    /// Nothing for as long as the client waits.
    Silence,
    /// A TLS alert: no route, or no backend.
    Alert,
    /// Bytes that were not sent. Nothing excuses it.
    Corrupt,
}

/// A connection that did not end as its client wanted.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The client's own address, where it got as far as to have one.
    pub client: Option<SocketAddr>,
    /// The name asked for.
    pub host: &'static str,
    /// The backend that carried it, else those that might have.
    pub backends: Vec<usize>,
    /// The client's activity.
    pub doing: &'static str,
    /// From connecting on.
    pub began: Duration,
    /// When the client noticed.
    pub failed: Duration,
    /// How far it had come.
    pub stage: Stage,
    /// The end as the client saw it.
    pub symptom: Symptom,
    /// The same in the words of the error.
    pub error: String,
}

/// Why connections may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The backend reset its connections.
    BackendReset,
    /// The backend took no new connections.
    BackendAway,
    /// The tunnel's device was away.
    TunnelDown,
    /// The tunnel's device was deleted, and its connections with it.
    TunnelGone,
    /// edged was killed: connections on sockets end with it.
    Killed,
    /// edged was killed for want of memory.
    OutOfMemory,
    /// edged ended in order; what cannot become a flow is reset after `drain_timeout`.
    Restarted,
    /// edged was killed in the midst of a hand-over; the access log says so.
    HandoverInterrupted,
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::BackendReset => "the backend reset it",
            Self::BackendAway => "the backend was away",
            Self::TunnelDown => "the tunnel was down",
            Self::TunnelGone => "the tunnel was deleted",
            Self::Killed => "edged was killed",
            Self::OutOfMemory => "edged ran out of memory",
            Self::Restarted => "edged restarted, not a flow",
            Self::HandoverInterrupted => "edged was killed during the hand-over",
        })
    }
}

/// Whom a trouble may cost connections.
#[derive(Clone, Debug)]
pub enum Reach {
    /// New connections to these backends.
    New(BTreeSet<usize>),
    /// New and live connections of these backends.
    All(BTreeSet<usize>),
    /// Every connection but those that were flows: the clients of these.
    AllButFlows(BTreeSet<SocketAddr>),
}

/// A trouble that somebody made.
#[derive(Clone, Debug)]
pub struct Incident {
    /// The cause that its victims are excused by.
    pub cause: Cause,
    /// Whom it hits.
    pub reach: Reach,
    /// Its beginning.
    pub began: Duration,
    /// Its end, when it is over.
    pub ended: Option<Duration>,
}

impl Incident {
    fn explains(&self, loss: &Loss) -> bool {
        let ended = self.ended.unwrap_or(Duration::MAX);
        let hits = |backends: &BTreeSet<usize>| {
            !loss.backends.is_empty() && loss.backends.iter().all(|backend| backends.contains(backend))
        };
        let is_new = loss.stage == Stage::Connecting;
        let refuses = is_new && loss.began <= ended.saturating_add(RECOVERY) && loss.failed >= self.began;
        let cuts =
            loss.began <= ended && loss.failed >= self.began && loss.failed <= ended.saturating_add(NOTICED);
        match &self.reach {
            Reach::New(backends) => refuses && hits(backends),
            Reach::All(backends) => (refuses || cuts) && hits(backends),
            Reach::AllButFlows(flows) => {
                let was_flow = loss.client.is_some_and(|client| flows.contains(&client));
                (refuses || cuts) && !was_flow
            }
        }
    }
}

/// A client's line in the access log: how the connection was carried, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The tier.
    pub datapath: String,
    /// Why it ended.
    pub close: String,
}

/// A loss with what is known of it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The loss.
    pub loss: Loss,
    /// Its cause; `None` is a fault of the edge.
    pub cause: Option<Cause>,
    /// The tier that it was last seen on.
    pub tier: String,
    /// How the access log says that it ended.
    pub close: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loss = &self.loss;
        let client = loss.client.map_or_else(|| "unknown".to_owned(), |client| client.to_string());
        write!(
            formatter,
            "{:8.3} s  {client} → {} ({}, {:?}): {:?} after {:.3} s ({}), tier {}, access log: {}",
            loss.failed.as_secs_f64(),
            loss.host,
            loss.doing,
            loss.stage,
            loss.symptom,
            loss.failed.saturating_sub(loss.began).as_secs_f64(),
            loss.error,
            self.tier,
            self.close,
        )
    }
}

/// Finds the cause of each loss.
pub fn judge(
    losses: &[Loss],
    incidents: &[Incident],
    records: &BTreeMap<SocketAddr, Record>,
) -> Vec<Verdict> {
    let one = |loss: &Loss| {
        let record = loss.client.and_then(|client| records.get(&client));
        let explained = incidents.iter().find(|incident| incident.explains(loss)).map(|found| found.cause);
        let interrupted = record.is_some_and(|record| record.close == "handover_interrupted");
        let cause = match loss.symptom {
            Symptom::Corrupt => None,
            _ => explained.or(interrupted.then_some(Cause::HandoverInterrupted)),
        };
        let word =
            |pick: fn(&Record) -> &String| record.map_or("–".to_owned(), |record| pick(record).clone());
        Verdict { loss: loss.clone(), cause, tier: word(|r| &r.datapath), close: word(|r| &r.close) }
    };
    losses.iter().map(one).collect()
}

/// Where all threads of a run write.
#[derive(Debug)]
pub struct Ledger {
    start: Instant,
    written: Mutex<Written>,
}

/// The entries of a ledger.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Troubles in the order of their beginnings.
    pub incidents: Vec<Incident>,
    /// Lost connections.
    pub losses: Vec<Loss>,
    /// Connections that ended as their clients wanted, by what these did.
    pub served: BTreeMap<&'static str, u64>,
    /// Events whose own checks failed.
    pub faults: Vec<String>,
}

impl Ledger {
    /// An empty one; times count from now.
    pub fn begin() -> Self {
        Self { start: Instant::now(), written: Mutex::default() }
    }

    /// The time of the day.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// All that is written so far.
    pub fn read(&self) -> Written {
        self.lock().clone()
    }

    /// Another connection ended as its client wanted.
    pub fn served(&self, doing: &'static str) {
        *self.lock().served.entry(doing).or_default() += 1;
    }

    /// A connection was lost.
    pub fn lost(&self, loss: Loss) {
        self.lock().losses.push(loss);
    }

    /// The edge did not do what it has to.
    pub fn fault(&self, what: String) {
        self.lock().faults.push(what);
    }

    /// A trouble for as long as `during` takes.
    pub fn incident<T>(&self, cause: Cause, reach: Reach, during: impl FnOnce() -> T) -> T {
        let index = {
            let mut written = self.lock();
            written.incidents.push(Incident { cause, reach, began: self.now(), ended: None });
            written.incidents.len() - 1
        };
        let outcome = during();
        let ended = Some(self.now());
        if let Some(incident) = self.lock().incidents.get_mut(index) {
            incident.ended = ended;
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        lock(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 1, 2], port))
    }

    fn loss(began: u64, failed: u64, stage: Stage) -> Loss {
        Loss {
            client: Some(client(1)),
            host: "a.example",
            backends: vec![1],
            doing: "resting",
            began: s(began),
            failed: s(failed),
            stage,
            symptom: Symptom::Reset,
            error: String::new(),
        }
    }

    fn cause(loss: &Loss, cause: Cause, reach: Reach) -> Option<Cause> {
        let incident = Incident { cause, reach, began: s(100), ended: Some(s(103)) };
        judge(std::slice::from_ref(loss), &[incident], &BTreeMap::new())[0].cause
    }

    #[test]
    fn a_backend_takes_its_own_connections_along_and_no_others() {
        let reset = |loss: &Loss, backend| cause(loss, Cause::BackendReset, Reach::All([backend].into()));
        let live = loss(50, 101, Stage::Carried);
        assert_eq!(reset(&live, 1), Some(Cause::BackendReset));
        assert_eq!(reset(&live, 2), None);
        // Lost before, and begun after it was over.
        assert_eq!(reset(&loss(50, 99, Stage::Carried), 1), None);
        assert_eq!(reset(&loss(104, 105, Stage::Carried), 1), None);
        assert_eq!(reset(&loss(50, 200, Stage::Carried), 1), None, "long after");
        // A pool with another backend has no excuse.
        let pool = Loss { backends: vec![1, 2], ..loss(101, 102, Stage::Connecting) };
        assert_eq!(reset(&pool, 1), None);
    }

    #[test]
    fn who_takes_no_new_connections_loses_no_live_ones() {
        let away = |loss: &Loss| cause(loss, Cause::BackendAway, Reach::New([1].into()));
        assert_eq!(away(&loss(101, 102, Stage::Connecting)), Some(Cause::BackendAway));
        assert_eq!(away(&loss(104, 105, Stage::Connecting)), Some(Cause::BackendAway), "while it recovers");
        assert_eq!(away(&loss(110, 111, Stage::Connecting)), None);
        assert_eq!(away(&loss(50, 101, Stage::Carried)), None);
    }

    #[test]
    fn a_kill_costs_no_flow() {
        let killed = |loss: &Loss, flows: &[SocketAddr]| {
            cause(loss, Cause::Killed, Reach::AllButFlows(flows.iter().copied().collect()))
        };
        let live = loss(50, 101, Stage::Carried);
        assert_eq!(killed(&live, &[client(2)]), Some(Cause::Killed));
        assert_eq!(killed(&live, &[client(1)]), None);
        let unknown = Loss { client: None, ..loss(101, 101, Stage::Connecting) };
        assert_eq!(killed(&unknown, &[]), Some(Cause::Killed));
        // Unless its hand-over was interrupted, which the access log says.
        let record = Record { datapath: "flow".into(), close: "handover_interrupted".into() };
        let verdicts = judge(&[live], &[], &[(client(1), record)].into());
        assert_eq!(verdicts[0].cause, Some(Cause::HandoverInterrupted));
    }

    #[test]
    fn nothing_excuses_wrong_bytes() {
        let corrupt = Loss { symptom: Symptom::Corrupt, ..loss(50, 101, Stage::Carried) };
        assert_eq!(cause(&corrupt, Cause::Killed, Reach::AllButFlows([].into())), None);
        assert_eq!(cause(&corrupt, Cause::BackendReset, Reach::All([1].into())), None);
    }

    #[test]
    fn an_incident_is_open_until_it_is_over() {
        let ledger = Ledger::begin();
        let outcome = ledger.incident(Cause::Killed, Reach::New([].into()), || {
            assert_eq!(ledger.read().incidents[0].ended, None);
            5
        });
        assert_eq!(outcome, 5);
        let incident = &ledger.read().incidents[0];
        assert!(incident.ended.is_some_and(|ended| ended >= incident.began));
    }
}
