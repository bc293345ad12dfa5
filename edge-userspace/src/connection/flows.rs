//! Connections that continue as flows: without sockets, without a task, and without state here. They are
//! found in the kernel's table, scanned from time to time (see [`sweep`]), and accounted for when they end.

mod evidence;
#[cfg(test)]
mod example;
mod inherited;
mod keepalive;
mod summary;
mod sweep;
mod unfinished;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use edge_common::flow::{CLOSED, Flow, FlowEvent, FlowKey, REPLACED, UP};

use self::{
    inherited::Accounted,
    keepalive::Keepalive,
    summary::{FlowEnd, Summary},
    sweep::{Census, Sweep},
    unfinished::Suspect,
};
use super::{Passport, View, open::TakenPlaces};
use crate::{
    accounts::{Accounts, Admission, SourceSlot},
    datapath::{StopReason, flow::FlowTier},
    kernel::{Ends, FlowPair, KernelError, monotonic},
    lock::lock,
    places::{Place, Places},
    tally::FlowSum,
};

/// All flows of this machine. Locks are taken in the order of the fields.
#[derive(Debug)]
pub struct Flows {
    tier: Arc<FlowTier>,
    accounts: Arc<Accounts>,
    /// Flows of hand-overs that an earlier daemon did not finish.
    suspects: Mutex<Vec<Suspect>>,
    /// Held during a sweep, so that whoever comes meanwhile waits for it.
    sweep: Mutex<Sweep>,
    /// Flows whose peers were asked whether they are still there.
    keepalive: Mutex<Keepalive>,
    book: Mutex<Book>,
    /// By key. As many as there are different ones.
    passports: Mutex<HashMap<u32, Arc<Passport>>>,
    census: Mutex<Census>,
}

/// A live flow.
#[derive(Clone, Debug)]
pub struct LiveFlow {
    /// The connection's number.
    pub id: u64,
    /// The client.
    pub client: SocketAddr,
    /// Since it last carried a packet other than the answer to a keepalive.
    pub idle: Duration,
    /// Its description.
    pub passport: Arc<Passport>,
    pair: FlowPair,
}

impl LiveFlow {
    /// As the operator sees it.
    pub fn view(&self) -> View {
        Summary::of_live(&self.pair).view(&self.passport)
    }

    /// The far end of the client's connection: the client, or a proxy that speaks for it.
    pub fn peer(&self) -> SocketAddr {
        self.pair.up_key.source()
    }

    /// The kernel's number of the device that leads to the backend.
    pub fn device(&self) -> u32 {
        self.pair.up.egress
    }
}

/// What must agree about flows that end: taken in one step, so that the bytes of each are counted once.
#[derive(Debug, Default)]
struct Book {
    /// Flows that were accounted for and linger.
    accounted: HashSet<u64>,
    /// Last counts of flows that were accounted for since the last sweep, by label.
    settled: Vec<(u32, FlowSum)>,
    /// The flows' places in the limit per source, if there is one. Lingering flows keep theirs.
    sources: HashMap<u64, SourceSlot>,
    /// Places on the route and at the backend, of flows that have not ended.
    places: HashMap<u64, [Place; 2]>,
}

impl Flows {
    /// The flows of a tier, with what is counted and logged of them in `accounts`.
    pub fn new(tier: Arc<FlowTier>, accounts: Arc<Accounts>) -> Self {
        Self {
            tier,
            accounts,
            suspects: Mutex::default(),
            sweep: Mutex::default(),
            keepalive: Mutex::default(),
            book: Mutex::default(),
            passports: Mutex::default(),
            census: Mutex::default(),
        }
    }

    /// The tier that carries them.
    pub fn tier(&self) -> &Arc<FlowTier> {
        &self.tier
    }

    /// Keeps the places that a connection has taken until its flow ends.
    pub(super) fn keep_places(&self, id: u64, TakenPlaces { source, route, backend }: TakenPlaces) {
        let mut book = lock(&self.book);
        if source.is_counted() {
            book.sources.insert(id, source);
        }
        // Its end may have been reported already.
        if !book.accounted.contains(&id) {
            book.places.insert(id, [route, backend]);
        }
    }

    /// Takes over what an earlier daemon left. To be called before connections are accepted; reports that it has not
    /// read are in `events`. With `admission`, flows count against the limit per source. Each flow takes a
    /// place on its route and at its backend even without a limit, since a reload may set one.
    pub fn adopt(
        &self,
        admission: Option<&Arc<Admission>>,
        places: impl Fn(&Passport) -> [Arc<Places>; 2],
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
        let mut described: HashMap<u32, (Option<IpAddr>, [Arc<Places>; 2])> = labels
            .into_iter()
            .map(|label| {
                let passport = self.passport(label);
                (label, (passport.client.map(|client| client.ip()), places(&passport)))
            })
            .collect();
        let (mut flows, mut last_id) = (0_u64, 0);
        let mut accounted = Accounted::default();
        self.tier.each_entry(|key, flow| {
            last_id = last_id.max(flow.id);
            accounted.look_at(&flow);
            if flow.direction != UP {
                return;
            }
            flows += 1;
            // An earlier daemon may have ended before it could.
            self.tier.is_flow(flow.id, key);
            let (announced, places) =
                described.entry(flow.label).or_insert_with(|| (None, places(&Passport::default())));
            let client = announced.unwrap_or(key.source().ip());
            self.tier.ports().take_for_flow(flow.to.destination(), flow.to.source().port(), client);
            lock(&self.book).places.insert(flow.id, places.each_ref().map(Places::occupy));
            if let Some(place) =
                admission.and_then(|admission| admission.source(key.source().ip(), usize::MAX))
            {
                lock(&self.book).sources.insert(flow.id, place);
            }
        })?;
        // After the look at the flows: what ends from now on has its report still to come.
        let mut accounted = accounted.ids();
        for event in events {
            accounted.remove(&event.id);
            self.happened(&event);
        }
        // The earlier daemon has read theirs.
        {
            let mut book = lock(&self.book);
            book.places.retain(|id, _| !accounted.contains(id));
            book.accounted.extend(accounted);
        }
        self.accounts.continue_after(last_id);
        if flows != 0 || !unfinished.is_empty() {
            tracing::info!(flows, halves, unfinished = unfinished.len(), "flows of an earlier daemon go on");
        }
        Ok(())
    }

    /// Takes note of what the programs report.
    pub fn happened(&self, event: &FlowEvent) {
        // A reset counts when nobody has belied it for a while: the sweep sees to it.
        if event.kind != CLOSED && event.kind != REPLACED {
            return;
        }
        let is_up = event.direction == u32::from(UP);
        let ended = Summary::reported(event, is_up);
        let known = {
            let mut book = lock(&self.book);
            book.places.remove(&event.id);
            let known = if event.kind == REPLACED {
                book.sources.remove(&event.id);
                book.accounted.remove(&event.id)
            } else {
                !book.accounted.insert(event.id)
            };
            if !known {
                book.settled.push((ended.label, ended.sum()));
            }
            known
        };
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
        }
        if known {
            return;
        }
        let end = FlowEnd::reported(event, is_up);
        if end == FlowEnd::Finished && ended.bytes_up > 0 && ended.bytes_down > 0 {
            let quiet = since(monotonic(), event.last_seen);
            self.tier.worked(ended.peer.ip(), ended.backend.ip(), quiet);
        }
        let passport = self.passport(ended.label);
        self.accounts.close(ended.account(&passport, end));
    }

    /// Ends a flow now: removes it, with a reset to both sides where it has not ended by itself.
    fn end(&self, pair: &FlowPair, end: FlowEnd) {
        if matches!(end, FlowEnd::Stopped(_) | FlowEnd::Gone(_) | FlowEnd::Unfinished) {
            if !self.tier.cut(pair) {
                return;
            }
        } else {
            self.tier.remove(pair);
        }
        let id = pair.up.id;
        let ended = Summary::of_ended(pair, end);
        let was_accounted = {
            let mut book = lock(&self.book);
            book.sources.remove(&id);
            book.places.remove(&id);
            let was_accounted = book.accounted.remove(&id);
            if !was_accounted {
                book.settled.push((ended.label, ended.sum()));
            }
            was_accounted
        };
        if !was_accounted {
            let passport = self.passport(ended.label);
            self.accounts.close(ended.account(&passport, end));
        }
    }

    /// All flows that have not ended.
    pub fn list(&self) -> Result<Vec<LiveFlow>, KernelError> {
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
        let accounted = lock(&self.book).accounted.clone();
        let keepalive = lock(&self.keepalive);
        Ok(ups
            .into_iter()
            .filter(|(_, up)| !accounted.contains(&up.id))
            .filter_map(|(up_key, up)| {
                let down = *downs.get(&up.id)?;
                let passport = self.passport(up.label);
                Some(LiveFlow {
                    id: up.id,
                    client: passport.client_or(up_key.source()),
                    idle: since(now, keepalive.active(up.id).unwrap_or(up.last_seen.max(down.last_seen))),
                    passport,
                    pair: FlowPair { up_key, up, down },
                })
            })
            .collect())
    }

    /// Ends the flows that `which` picks; says how many.
    pub fn stop(&self, reason: StopReason, which: impl Fn(&LiveFlow) -> bool) -> Result<usize, KernelError> {
        let chosen: Vec<_> = self.list()?.into_iter().filter(which).collect();
        for flow in &chosen {
            self.end(&flow.pair, FlowEnd::Stopped(reason));
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
