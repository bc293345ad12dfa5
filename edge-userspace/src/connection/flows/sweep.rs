//! Scans all flows periodically: updates counters, and finds flows that have ended or are idle.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use edge_common::flow::{DOWN, FIN, FLOW_ENTRIES, Flow, FlowKey, PEER_FIN, REPORTED, RESET, UP};

use super::{
    FlowEnd, Flows,
    evidence::Evidence,
    keepalive::{Due, Peer, Question},
    since,
};
use crate::{
    connection::{Passport, Running, account::patience},
    datapath::{Side, StopReason},
    kernel::{FlowPair, KernelError, monotonic},
    lock::lock,
    source::source_of,
    tally::FlowSum,
};

/// How long a closed flow still carries retransmissions: the same as the kernel's `TCP_TIMEWAIT_LEN`.
const CLOSED_LINGERS: Duration = Duration::from_mins(1);
/// How long a reset may be belied by whom it is said to have ended.
const RESET_LINGERS: Duration = Duration::from_secs(3);
/// Flows of one source at most: a sixteenth of what there may be.
const QUOTA: u64 = FLOW_ENTRIES as u64 / 2 / 16;
/// A flow that repeats so much, and more than it sends for the first time, does not work.
const REPEATS: u32 = 64;
/// Sweeps between two looks for labels and places that no flow has any more.
const LABEL_SWEEPS: u32 = 30;

/// The result of the last sweep.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Flows of each listener.
    pub listeners: HashMap<Arc<str>, u64>,
    /// All of them.
    pub live: u64,
}

/// The state that one sweep leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// When the last one began.
    began: Option<Instant>,
    count: u32,
    /// Whether there are so many flows that sources are worth counting.
    is_crowded: bool,
    /// Labels that no flow had at the last look for them.
    unused: HashSet<u32>,
    /// Flows with places that the table did not have at the last look for them.
    missing: HashSet<u64>,
    /// Flows that stall, and how much each had repeated when that was last held against it.
    stalling: HashMap<u64, u32>,
    /// The bytes that both sides of flows to suspected backends had acknowledged.
    pub(super) acknowledged: HashMap<u64, [u32; 2]>,
}

impl Flows {
    /// The result of the last sweep.
    pub fn census(&self) -> Census {
        lock(&self.census).clone()
    }

    /// Scans all flows, unless another scan began after `not_before`: updates counters, and ends flows that
    /// have ended or were idle for `idle`. Any number of concurrent callers cause at most two sweeps, one
    /// after the other.
    pub(in crate::connection) fn sweep(
        &self,
        running: &Running,
        idle: Option<Duration>,
        not_before: Instant,
    ) -> Result<(), KernelError> {
        let mut sweep = lock(&self.sweep);
        if sweep.began.is_some_and(|began| began >= not_before) {
            return Ok(());
        }
        let began = Instant::now();
        self.look_over(&mut sweep, running, idle)?;
        sweep.began = Some(began);
        Ok(())
    }

    fn look_over(
        &self,
        sweep: &mut Sweep,
        running: &Running,
        idle: Option<Duration>,
    ) -> Result<(), KernelError> {
        let now = monotonic();
        let quiet = |flow: &Flow| since(now, flow.last_seen);
        let mut evidence = Evidence::of(self.tier.suspected());
        let mut sums: HashMap<u32, FlowSum> = HashMap::new();
        let mut candidates = Vec::new();
        let mut sources: HashMap<IpAddr, u64> = HashMap::new();
        let is_crowded = sweep.is_crowded;
        let settled;
        let mut missing = HashSet::new();
        let mut due;
        {
            let mut keepalive = lock(&self.keepalive);
            due = keepalive.begin(now);
            let accounted;
            {
                let mut book = lock(&self.book);
                settled = std::mem::take(&mut book.settled);
                if (sweep.count + 1).is_multiple_of(LABEL_SWEEPS) {
                    missing.extend(book.places.keys().chain(book.sources.keys()));
                }
                accounted = book.accounted.clone();
            }
            let known = lock(&self.passports).clone();
            // Unknown flows are examined below, where they become known.
            let may_be_idle = |flow: &Flow, active: u64| {
                let limit = known.get(&flow.label).map(|passport| limit(passport, idle, flow));
                limit.is_none_or(|limit| limit.is_some_and(|limit| since(now, active) >= limit))
            };
            self.tier.each_entry(|key, flow| {
                if is_crowded && flow.direction == UP {
                    *sources.entry(source_of(key.source().ip())).or_default() += 1;
                }
                keepalive.look_at(&key, &flow, &mut due);
                missing.remove(&flow.id);
                evidence.look_at(&key, &flow);
                let active = || keepalive.active(flow.id).unwrap_or(flow.last_seen);
                if flow.direction == UP
                    && (may_be_idle(&flow, active()) || flow.has(REPORTED) || is_stalling(&flow))
                {
                    candidates.push((key, flow.id));
                }
                if !accounted.contains(&flow.id) {
                    let sum = sums.entry(flow.label).or_default();
                    if flow.direction == DOWN {
                        sum.down += flow.bytes();
                    } else {
                        sum.live += 1;
                        sum.up += flow.bytes();
                    }
                }
            })?;
            keepalive.end();
        }
        self.keep_alive(due, now);
        let mut stalling = HashMap::new();
        for (key, id) in candidates {
            if let Some(pair) = self.tier.pair(&key, id)? {
                let active = lock(&self.keepalive).active(pair.up.id);
                let idle_for = active.map_or(quiet(&pair.up).min(quiet(&pair.down)), |then| since(now, then));
                self.judge(&pair, idle_for, idle);
                if is_stalling(&pair.up) {
                    stalling.insert(pair.up.id, self.judge_stall(&sweep.stalling, &pair));
                }
            }
        }
        sweep.stalling = stalling;
        self.weigh(sweep, evidence, now);
        self.tier.older().tables().iter().for_each(|table| table.look_whether_empty());
        sweep.is_crowded = self.publish(running, &sums, &settled) >= QUOTA;
        self.limit_sources(sources);
        self.forget_places(sweep, missing);
        self.forget_labels(sweep, &sums)
    }

    /// Asks whose turn it is, and ends the flows of peers that are gone.
    fn keep_alive(&self, mut due: Due, now: u64) {
        for Peer { up_key, id, direction } in std::mem::take(&mut due.gone) {
            if let Some(pair) = self.pair(&up_key, id) {
                let side = if direction == UP { Side::Client } else { Side::Backend };
                self.end(&pair, FlowEnd::Gone(side));
            }
        }
        for Question { peer: Peer { up_key, id, direction }, .. } in due.questions() {
            let Some(pair) = self.pair(&up_key, id) else { continue };
            // Some peers drop a segment without a timestamp if timestamps are in use, and some one with an
            // old timestamp.
            let with_timestamp = lock(&self.keepalive).unanswered(id, direction).is_multiple_of(2);
            if self.tier.ask(&pair, direction, with_timestamp) {
                lock(&self.keepalive).set_request(&pair, direction, now);
            }
        }
    }

    fn pair(&self, up_key: &FlowKey, id: u64) -> Option<FlowPair> {
        self.tier.pair(up_key, id).unwrap_or_default()
    }

    fn judge(&self, pair: &FlowPair, quiet: Duration, idle: Option<Duration>) {
        let FlowPair { up, down, .. } = pair;
        if up.is_reset() || down.is_reset() {
            if quiet >= RESET_LINGERS {
                let end = if up.has(RESET) { FlowEnd::ClientReset } else { FlowEnd::BackendReset };
                self.end(pair, end);
            }
        } else if pair.is_closed() {
            if quiet >= CLOSED_LINGERS {
                self.end(pair, FlowEnd::Finished);
            }
        } else if limit(&self.passport(up.label), idle, up).is_some_and(|limit| quiet >= limit) {
            self.end(pair, FlowEnd::Stopped(StopReason::Idle));
        }
    }

    /// A flow stalls. Once is once: it counts again when it has repeated as much again, for its counter is never reset.
    fn judge_stall(&self, stalling: &HashMap<u64, u32>, pair: &FlowPair) -> u32 {
        let repeated = pair.up.repeated;
        let before = stalling.get(&pair.up.id).copied();
        if let Some(before) = before.filter(|before| repeated.wrapping_sub(*before) < REPEATS) {
            return before;
        }
        self.tier.failed(pair, "most of what the client sends is sent again");
        repeated
    }

    /// Adds the sums up by destination, backend and listener; returns how many flows there are.
    fn publish(&self, running: &Running, sums: &HashMap<u32, FlowSum>, settled: &[(u32, FlowSum)]) -> u64 {
        let mut census = Census::default();
        let (mut destinations, mut backends) = (HashMap::new(), HashMap::new());
        let add = |to: &mut HashMap<u64, (FlowSum, FlowSum)>, key, live: FlowSum, ended: FlowSum| {
            let sum = to.entry(key).or_default();
            sum.0.add(live);
            sum.1.add(ended);
        };
        let none = FlowSum::default();
        let all = sums.iter().map(|(label, sum)| (*label, *sum, none));
        for (label, live, ended) in all.chain(settled.iter().map(|(label, sum)| (*label, none, *sum))) {
            let passport = self.passport(label);
            add(&mut destinations, passport.destination, live, ended);
            add(&mut backends, passport.backend, live, ended);
            *census.listeners.entry(Arc::clone(&passport.listener)).or_default() += live.live;
            census.live += live.live;
        }
        let live = census.live;
        let before = std::mem::replace(&mut *lock(&self.census), census);
        if live == 0 && before.live == 0 && settled.is_empty() {
            return live;
        }
        for destination in running.destinations() {
            // Removed from the map: a route of the file and one added at run time may have the same identity,
            // and the first, which clients use, has the flows.
            let (live, ended) = destinations.remove(&destination.identity).unwrap_or_default();
            destination.counters.carried(ended.up, ended.down);
            destination.counters.set_flows(live);
        }
        for backend in running.backends() {
            let (live, ended) = backends.get(&backend.id().key()).copied().unwrap_or_default();
            backend.tally().carried(ended.up, ended.down);
            backend.tally().set_flows(live);
        }
        live
    }

    /// Gives back the places of flows that were missing from the table in two such scans in a row: the report of their
    /// end was lost.
    fn forget_places(&self, sweep: &mut Sweep, missing: HashSet<u64>) {
        if !(sweep.count + 1).is_multiple_of(LABEL_SWEEPS) {
            return;
        }
        let before = std::mem::replace(&mut sweep.missing, missing);
        let mut book = lock(&self.book);
        for id in before.intersection(&sweep.missing) {
            book.places.remove(id);
            book.sources.remove(id);
        }
    }

    /// Removes labels that no flow had at this look and the one before.
    fn forget_labels(&self, sweep: &mut Sweep, used: &HashMap<u32, FlowSum>) -> Result<(), KernelError> {
        sweep.count += 1;
        if !sweep.count.is_multiple_of(LABEL_SWEEPS) {
            return Ok(());
        }
        let before = std::mem::take(&mut sweep.unused);
        let labels = self.tier.labels()?;
        let unused: HashSet<u32> = labels.into_iter().filter(|label| !used.contains_key(label)).collect();
        for label in unused.intersection(&before) {
            self.tier.table().remove_label(*label)?;
        }
        lock(&self.passports).retain(|label, _| used.contains_key(label));
        sweep.unused = unused;
        Ok(())
    }

    /// Sources that have reached their quota of flows get no more. While there are too few flows for any
    /// source to be past it, sources are not counted, so a quota takes effect one sweep after there are
    /// enough.
    fn limit_sources(&self, sources: HashMap<IpAddr, u64>) {
        let crowded = sources.into_iter().filter(|(_, count)| *count >= QUOTA).map(|(source, _)| source);
        self.tier.set_crowded(crowded.collect());
    }
}

/// The idle limit in force, where `idle` is the global one.
fn limit(passport: &Passport, idle: Option<Duration>, flow: &Flow) -> Option<Duration> {
    patience(passport.idle_timeout(), idle, flow.has(FIN) || flow.has(PEER_FIN))
}

fn is_stalling(flow: &Flow) -> bool {
    flow.repeated >= REPEATS && u64::from(flow.repeated) * 2 > flow.packets
}
