//! Connections that continue as flows: without sockets, without a task, and without state here. They are
//! found in the kernel's table, scanned from time to time (see [`sweep`]), and accounted for when they end.

mod evidence;
mod keepalive;
mod sweep;
mod unfinished;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use edge_common::flow::{CLOSED, Flow, FlowEvent, FlowKey, REPLACED, REPORTED, UP};

use self::{keepalive::Keepalive, sweep::Census, unfinished::Suspect};
use super::{Edge, Outcome, Passport, admission::SourceSlot};
use crate::{
    datapath::{End, Side, StopReason, flow::FlowTier},
    kernel::{Ends, FlowPair, KernelError, monotonic},
    tally::FlowSum,
};

/// All flows of this machine.
#[derive(Debug)]
pub struct Flows {
    tier: Arc<FlowTier>,
    /// By key. As many as there are different ones.
    passports: Mutex<HashMap<u32, Arc<Passport>>>,
    /// Flows that were accounted for and linger.
    accounted: Mutex<HashSet<u64>>,
    /// Last counts of flows that were accounted for since the last sweep.
    settled: Mutex<Vec<(u32, FlowSum)>>,
    /// Places among the connections of a source, where these are limited.
    places: Mutex<HashMap<u64, SourceSlot>>,
    /// Flows that stall, and how much each had repeated when that was last held against it.
    stalling: Mutex<HashMap<u64, u32>>,
    /// Flows whose peers were asked whether they are still there.
    keepalive: Mutex<Keepalive>,
    /// The acknowledgements of both sides at the last sweep, for flows to suspected backends.
    acknowledged: Mutex<HashMap<u64, [u32; 2]>>,
    census: Mutex<Census>,
    /// When the last sweep began. Locked during a sweep, so that callers that arrive meanwhile wait for it.
    swept: Mutex<Option<Instant>>,
    /// Flows of hand-overs that an earlier daemon did not finish.
    suspects: Mutex<Vec<Suspect>>,
}

/// A flow as the operator sees it.
#[derive(Clone, Debug)]
pub struct FlowView {
    /// The connection's number.
    pub id: u64,
    /// The client.
    pub client: SocketAddr,
    /// The backend's address.
    pub backend: SocketAddr,
    /// Since it was accepted.
    pub age: Duration,
    /// Since it last carried a packet other than the answer to a keepalive.
    pub idle: Duration,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// The rest of its description.
    pub passport: Arc<Passport>,
    pair: FlowPair,
}

impl FlowView {
    /// The far end of the client's connection: the client, or a proxy that speaks for it.
    pub fn peer(&self) -> SocketAddr {
        self.pair.up_key.source()
    }

    /// The kernel's number of the device that leads to the backend.
    pub fn device(&self) -> u32 {
        self.pair.up.egress
    }
}

/// The last account of a flow.
#[derive(Debug)]
pub(super) struct FlowAccount {
    pub(super) id: u64,
    pub(super) client: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) accepted: SystemTime,
    pub(super) duration: Duration,
    pub(super) connect_time: Duration,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    pub(super) passport: Arc<Passport>,
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowEnd {
    Finished,
    ClientReset,
    BackendReset,
    Stopped(StopReason),
    /// This side answered no keepalive.
    Gone(Side),
    /// A hand-over that an earlier daemon did not finish, and bytes were lost.
    Unfinished,
}

impl FlowEnd {
    /// `close` in the access log.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Finished => Outcome::Carried(End::Finished).label(),
            Self::ClientReset => Outcome::Carried(End::Reset(Side::Client)).label(),
            Self::BackendReset => Outcome::Carried(End::Reset(Side::Backend)).label(),
            Self::Stopped(reason) => Outcome::Stopped(reason).label(),
            Self::Gone(Side::Client) => "client_gone",
            Self::Gone(Side::Backend) => "backend_gone",
            Self::Unfinished => "handover_interrupted",
        }
    }
}

impl Flows {
    /// The flows of a tier.
    pub fn new(tier: Arc<FlowTier>) -> Self {
        Self {
            tier,
            passports: Mutex::default(),
            accounted: Mutex::default(),
            settled: Mutex::default(),
            places: Mutex::default(),
            stalling: Mutex::default(),
            keepalive: Mutex::default(),
            acknowledged: Mutex::default(),
            census: Mutex::default(),
            swept: Mutex::default(),
            suspects: Mutex::default(),
        }
    }

    /// The tier that carries them.
    pub fn tier(&self) -> &Arc<FlowTier> {
        &self.tier
    }

    /// A place among the connections of a source goes along with the flow.
    pub(super) fn keep_place(&self, id: u64, place: SourceSlot) {
        if place.is_counted() {
            lock(&self.places).insert(id, place);
        }
    }

    /// Takes over the flows of an earlier daemon. Must be called before connections are accepted; `events`
    /// holds the reports that it did not read.
    pub(super) fn adopt(
        &self,
        edge: &Edge,
        events: impl Iterator<Item = FlowEvent>,
    ) -> Result<(), KernelError> {
        let halves = self.tier.remove_halves()?;
        let unfinished = self.tier.unfinished();
        for (id, pending) in &unfinished {
            match self.tier.pair(&pending.up_key, *id)? {
                Some(pair) => lock(&self.suspects).push(Suspect::new(*id, *pending, &pair)),
                None => self.finish_handover(*id),
            }
        }
        let labels = self.tier.labels()?;
        let clients: HashMap<u32, IpAddr> =
            labels.into_iter().filter_map(|label| Some((label, self.passport(label).client?.ip()))).collect();
        let (mut flows, mut last_id) = (0_u64, 0);
        let mut reported = HashSet::new();
        let limit = edge.running.load().connections_per_source;
        self.tier.each_entry(|key, flow| {
            last_id = last_id.max(flow.id);
            if flow.direction != UP {
                return;
            }
            flows += 1;
            // An earlier daemon may have ended before it could.
            self.tier.is_flow(flow.id, key);
            let client = clients.get(&flow.label).copied().unwrap_or(key.source().ip());
            self.tier.ports().take_for_flow(flow.to.destination(), flow.to.source().port(), client);
            if flow.has(REPORTED) {
                reported.insert(flow.id);
            }
            if limit != 0
                && let Some(place) = edge.admission.source(key.source().ip(), usize::MAX)
            {
                lock(&self.places).insert(flow.id, place);
            }
        })?;
        // After the look at the flows: what ends from now on has its report still to come.
        for event in events {
            reported.remove(&event.id);
            self.happened(edge, &event);
        }
        // The earlier daemon has read theirs.
        lock(&self.accounted).extend(reported);
        edge.registry.continue_after(last_id);
        if flows != 0 || !unfinished.is_empty() {
            tracing::info!(flows, halves, unfinished = unfinished.len(), "flows of an earlier daemon go on");
        }
        Ok(())
    }

    /// Takes note of what the programs report.
    pub(super) fn happened(&self, edge: &Edge, event: &FlowEvent) {
        // A reset counts when nobody has belied it for a while: the sweep sees to it.
        if event.kind == CLOSED || event.kind == REPLACED {
            let known = match event.kind {
                REPLACED => lock(&self.accounted).remove(&event.id),
                _ => !lock(&self.accounted).insert(event.id),
            };
            let is_up = event.direction == u32::from(UP);
            if event.kind == CLOSED {
                self.tier.is_flow(event.id, if is_up { event.key } else { event.to.reversed() });
            } else {
                let (to, from) = (event.to, event.key);
                let (backend, port) = if is_up {
                    (to.destination(), to.source().port())
                } else {
                    (from.source(), from.destination().port())
                };
                let local = if is_up { to.source() } else { from.destination() };
                self.tier.was_flow(Ends { local, peer: backend });
                self.tier.ports().give_back(backend, port);
                lock(&self.places).remove(&event.id);
            }
            if !known {
                self.account_for(edge, event, is_up);
            }
        }
    }

    fn account_for(&self, edge: &Edge, event: &FlowEvent, is_up: bool) {
        let (client, local, backend) = if is_up {
            (event.key.source(), event.key.destination(), event.to.destination())
        } else {
            (event.to.destination(), event.to.source(), event.key.source())
        };
        let (bytes_up, bytes_down) =
            if is_up { (event.bytes, event.peer_bytes) } else { (event.peer_bytes, event.bytes) };
        let end = match (event.resets, is_up) {
            (0, _) => FlowEnd::Finished,
            (1, true) | (2, false) => FlowEnd::ClientReset,
            _ => FlowEnd::BackendReset,
        };
        let passport = self.passport(event.label);
        let clock = Clock::now();
        let connect_time = Duration::from_micros(event.connect_time.into());
        let account = FlowAccount {
            id: event.id,
            client: passport.client.unwrap_or(client),
            local,
            backend,
            accepted: clock.wall_time(event.accepted),
            // The kernel looks at a coarse clock, which may be a tick behind.
            duration: since(event.last_seen, event.accepted).max(connect_time),
            connect_time,
            bytes_up,
            bytes_down,
            passport,
        };
        self.settle(event.label, &account);
        if end == FlowEnd::Finished && account.bytes_up > 0 && account.bytes_down > 0 {
            let peer = if is_up { event.key.source() } else { event.to.destination() };
            self.tier.worked(peer.ip(), backend.ip(), since(clock.monotonic, event.last_seen));
        }
        edge.account_flow(&account, end);
    }

    /// Ends a flow now: removes it, with a reset to both sides where it has not ended by itself.
    fn end(&self, edge: &Edge, pair: &FlowPair, end: FlowEnd) {
        let FlowPair { up_key, up, down } = pair;
        if matches!(end, FlowEnd::Stopped(_) | FlowEnd::Gone(_) | FlowEnd::Unfinished) {
            if !self.tier.cut(pair) {
                return;
            }
        } else {
            self.tier.remove(pair);
        }
        lock(&self.places).remove(&up.id);
        if lock(&self.accounted).remove(&up.id) {
            return;
        }
        let passport = self.passport(up.label);
        let clock = Clock::now();
        let last_seen = up.last_seen.max(down.last_seen);
        let until = if matches!(end, FlowEnd::Stopped(_)) { clock.monotonic } else { last_seen };
        let account = FlowAccount {
            id: up.id,
            client: passport.client.unwrap_or(up_key.source()),
            local: up_key.destination(),
            backend: up.to.destination(),
            accepted: clock.wall_time(up.accepted),
            duration: since(until, up.accepted),
            connect_time: Duration::from_micros(up.connect_time.into()),
            bytes_up: up.bytes(),
            bytes_down: down.bytes(),
            passport,
        };
        self.settle(up.label, &account);
        edge.account_flow(&account, end);
    }

    fn settle(&self, label: u32, account: &FlowAccount) {
        let sum = FlowSum { live: 0, up: account.bytes_up, down: account.bytes_down };
        lock(&self.settled).push((label, sum));
    }

    /// All flows that have not ended.
    pub fn list(&self) -> Result<Vec<FlowView>, KernelError> {
        let mut ups: Vec<(FlowKey, Flow)> = Vec::new();
        let mut downs: HashMap<u64, Flow> = HashMap::new();
        self.tier.each_entry(|key, flow| {
            if flow.direction == UP {
                ups.push((key, flow));
            } else {
                downs.insert(flow.id, flow);
            }
        })?;
        let now = monotonic();
        let accounted = lock(&self.accounted).clone();
        let keepalive = lock(&self.keepalive);
        Ok(ups
            .into_iter()
            .filter(|(_, up)| !accounted.contains(&up.id))
            .filter_map(|(up_key, up)| {
                let down = *downs.get(&up.id)?;
                let passport = self.passport(up.label);
                Some(FlowView {
                    id: up.id,
                    client: passport.client.unwrap_or(up_key.source()),
                    backend: up.to.destination(),
                    age: since(now, up.accepted),
                    idle: since(now, keepalive.active(up.id).unwrap_or(up.last_seen.max(down.last_seen))),
                    bytes_up: up.bytes(),
                    bytes_down: down.bytes(),
                    passport,
                    pair: FlowPair { up_key, up, down },
                })
            })
            .collect())
    }

    /// Ends the flows that `which` picks; says how many.
    pub fn stop(
        &self,
        edge: &Edge,
        reason: StopReason,
        which: impl Fn(&FlowView) -> bool,
    ) -> Result<usize, KernelError> {
        let chosen: Vec<_> = self.list()?.into_iter().filter(which).collect();
        for flow in &chosen {
            self.end(edge, &flow.pair, FlowEnd::Stopped(reason));
        }
        Ok(chosen.len())
    }

    fn passport(&self, label: u32) -> Arc<Passport> {
        if let Some(known) = lock(&self.passports).get(&label) {
            return Arc::clone(known);
        }
        let text = self.tier.table().label_text(label).ok().flatten();
        let passport = Arc::new(text.map(|text| Passport::read(&text)).unwrap_or_default());
        lock(&self.passports).insert(label, Arc::clone(&passport));
        passport
    }
}

fn since(now: u64, then: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(then))
}

/// Both clocks at one time.
struct Clock {
    monotonic: u64,
    wall: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self { monotonic: monotonic(), wall: SystemTime::now() }
    }

    fn wall_time(&self, then: u64) -> SystemTime {
        self.wall.checked_sub(since(self.monotonic, then)).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
