//! The state that all connections share.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use edge_common::flow::FlowEvent;

use super::{
    Admission, Connection, FlowView, Flows, HelloMemory, Outcome, Registry, Running, Sessions,
    admission::SourceSlot,
    flows::{FlowAccount, FlowEnd},
    outcome::{Ended, Failure},
    passport::Passport,
};
use crate::{
    datapath::{StopReason, Tiers},
    kernel::{FlowEvents, KernelError},
    observe::{
        access_log::{AccessLog, Record},
        timings::Timings,
    },
    proxy_protocol::tlv,
    shield::BlockedSources,
    spec::Tier,
};

/// The state that all connections share: the running state, the registry, the limits and the accounts.
#[derive(Debug)]
pub struct Edge {
    /// The running state; swapped by a reload.
    pub running: ArcSwap<Running>,
    /// Every connection that lives.
    pub registry: Registry,
    /// How many there may be.
    pub admission: Arc<Admission>,
    /// How much memory first bytes may take.
    pub hello_memory: Arc<HelloMemory>,
    /// A line for each connection that ended.
    pub access_log: AccessLog,
    /// How long hellos and connects take.
    pub timings: Timings,
    /// How connections ended.
    pub endings: Endings,
    /// Which backends PostgreSQL clients have sessions with.
    pub sessions: Sessions,
    /// The tiers besides the sockets.
    pub tiers: Tiers,
    /// Connections that go on without sockets, where this machine can carry them.
    pub flows: Option<Flows>,
    /// Sources that are refused at accept.
    pub blocked: Arc<BlockedSources>,
    /// Makes the connection numbers of this process globally unique.
    pub run: u64,
}

/// Connections that ended, by how.
#[derive(Debug, Default)]
pub struct Endings(Mutex<HashMap<Ending, u64>>);

/// The keys by which ended connections are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ending {
    /// The listener.
    pub listener: Arc<str>,
    /// The route; `None` before one was picked.
    pub route: Option<Arc<str>>,
    /// The tier; `None` before the backend was connected.
    pub datapath: Option<Tier>,
    /// [`Outcome::label`].
    pub result: &'static str,
    /// Whether the edge refused it.
    pub refused: bool,
}

impl Endings {
    /// Every kind of ending so far, and how often it was seen.
    pub fn counts(&self) -> HashMap<Ending, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, ending: Ending) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(ending).or_insert(0) += 1;
    }
}

impl Edge {
    /// The globally unique name of the connection, for the access log and the header to the backend. Behind
    /// another proxy it is the name that the proxy gave.
    pub(super) fn unique_id(&self, connection: &Connection) -> String {
        given_id(connection).unwrap_or_else(|| unique(self.run, connection.id))
    }

    /// The description of a connection after it has become a flow.
    pub(super) fn passport(&self, connection: &Connection) -> Passport {
        Passport::of(connection, given_id(connection), self.run)
    }

    /// A connection goes on as a flow: its counts go with it, and it needs its task no longer.
    pub(super) fn became_flow(&self, connection: &Connection, place: SourceSlot) {
        let Some(flows) = &self.flows else { return };
        flows.keep_place(connection.id, place);
        connection.hand_counts_on();
        if let Some(reason) = connection.stop.ordered() {
            // It came too late for the task.
            self.stop(reason, |_| false, |flow| flow.id == connection.id);
        }
    }

    /// Takes over what an earlier daemon left, with what the programs have reported meanwhile.
    pub fn adopt_flows(&self, events: impl Iterator<Item = FlowEvent>) -> Result<(), KernelError> {
        self.flows.as_ref().map_or(Ok(()), |flows| flows.adopt(self, events))
    }

    /// Finds out which flows of hand-overs that an earlier daemon did not finish can go on.
    pub async fn finish_handovers(&self) {
        if let Some(flows) = &self.flows {
            flows.finish_handovers(self).await;
        }
    }

    /// Keeps connection tracking free of flows, for as long as the daemon lives.
    pub async fn tend_tracks(&self) {
        if let Some(flows) = &self.flows {
            flows.tier().tend_tracks().await;
        }
    }

    /// Prepares connections for their hand-over, for as long as the daemon lives. Waits for the keeper, so it
    /// must run on the control runtime.
    pub async fn ready_connections(&self) {
        if let Some(flows) = &self.flows {
            flows.tier().ready_connections().await;
        }
    }

    /// Takes note of what the programs have reported.
    pub fn flows_happened(&self, events: &mut FlowEvents) {
        if let Some(flows) = &self.flows {
            for event in events {
                flows.happened(self, &event);
            }
        }
    }

    /// Ends all connections that `which` selects, and all flows that `which_flow` selects; returns how many.
    pub fn stop(
        &self,
        reason: StopReason,
        which: impl Fn(&Connection) -> bool,
        which_flow: impl Fn(&FlowView) -> bool,
    ) -> usize {
        let stopped = self.registry.stop(reason, which);
        let Some(flows) = &self.flows else { return stopped };
        match flows.stop(self, reason, which_flow) {
            Ok(flows) => stopped + flows,
            Err(error) => {
                tracing::warn!(error = error.words(), "flows cannot be ended");
                stopped
            }
        }
    }

    /// Ends all connections of blocked sources; returns how many. Must be called after [`Self::blocked`]
    /// contains a new block: a connection that arrives meanwhile is then either among those or sees the block
    /// itself.
    pub fn stop_blocked(&self) -> usize {
        let hold = |address: SocketAddr| self.blocked.hold(address.ip());
        self.stop(
            StopReason::Blocked,
            |connection| hold(connection.peer) || hold(connection.client()),
            |flow| hold(flow.peer()) || hold(flow.client),
        )
    }

    /// Whether this peer is blocked. Such a connection is counted but has no line in the access log: on other
    /// devices its packets are dropped unseen.
    pub fn refuses(&self, listener: &Arc<str>, peer: SocketAddr) -> bool {
        let refused = self.blocked.hold(peer.ip());
        if refused {
            self.endings.count(Ending {
                listener: Arc::clone(listener),
                route: None,
                datapath: None,
                result: Outcome::Blocked.label(),
                refused: true,
            });
        }
        refused
    }

    /// Updates all counters. Callers that arrive during a scan of the flows share the next one.
    pub fn settle(&self) {
        let not_before = Instant::now();
        self.registry.settle();
        self.sweep_flows(self.running.load().idle_timeout, not_before);
    }

    /// Updates all counters, and ends connections that were idle for `idle`, unless they have a limit of
    /// their own.
    pub fn sweep(&self, idle: Option<Duration>) {
        let not_before = Instant::now();
        self.registry.sweep(idle);
        self.sweep_flows(idle, not_before);
    }

    fn sweep_flows(&self, idle: Option<Duration>, not_before: Instant) {
        if let Some(flows) = &self.flows
            && let Err(error) = flows.sweep(self, idle, not_before)
        {
            tracing::warn!(error = error.words(), "the flows cannot be looked over");
        }
    }

    /// The last account of a flow.
    pub(super) fn account_flow(&self, flow: &FlowAccount, end: FlowEnd) {
        let passport = &*flow.passport;
        let close = end.label();
        self.endings.count(Ending {
            listener: Arc::clone(&passport.listener),
            route: Some(Arc::clone(&passport.route)),
            datapath: Some(Tier::Flow),
            result: close,
            refused: false,
        });
        self.access_log.write(Record {
            time: flow.accepted,
            id: flow.id,
            client: flow.client,
            local: flow.local,
            listener: Arc::clone(&passport.listener),
            protocol: passport.protocol,
            sni: passport.host.clone(),
            sni_raw: passport.raw_name.clone(),
            alpn: passport.alpn(),
            ech: passport.ech,
            route: Some(Arc::clone(&passport.route)),
            backend: Some(flow.backend),
            attempts: None,
            error: None,
            datapath: Some(Tier::Flow),
            spilled: false,
            bytes_up: flow.bytes_up,
            bytes_down: flow.bytes_down,
            duration: flow.duration,
            connect_time: Some(flow.connect_time),
            close,
            unique_id: passport.unique_id.clone().unwrap_or_else(|| unique(passport.run, flow.id)),
        });
    }

    /// The last account of a connection.
    pub(super) fn account(&self, connection: &Connection, ended: Ended) {
        let Ended { outcome, failure, is_empty } = ended;
        connection.settle(Instant::now());
        let way = connection.way();
        let asked = connection.asked();
        let failed_route = failure.as_ref().map(|failure| Arc::clone(&failure.route));
        let route = way.map(|way| Arc::clone(&way.destination.label)).or(failed_route);
        let datapath = way.map(|_| connection.meter.tier());
        self.endings.count(Ending {
            listener: Arc::clone(&connection.listener),
            route: route.clone(),
            datapath,
            result: outcome.label(),
            refused: outcome.refused().is_some(),
        });
        if is_empty && !self.running.load().log_empty {
            return;
        }
        let (failed, attempts, error) = match failure.map(|failure| *failure) {
            Some(Failure { backend, attempts, error, .. }) => (backend, Some(attempts), Some(error)),
            None => (None, None, None),
        };
        self.access_log.write(Record {
            time: connection.accepted_at(),
            id: connection.id,
            client: connection.client(),
            local: connection.local,
            listener: Arc::clone(&connection.listener),
            protocol: asked.and_then(|asked| asked.protocol),
            sni: asked.and_then(|asked| asked.host.clone()),
            sni_raw: asked.and_then(|asked| asked.raw_name.as_ref()).map(ToString::to_string),
            alpn: asked.map(|asked| asked.alpn.clone()).unwrap_or_default(),
            ech: asked.is_some_and(|asked| asked.ech),
            route,
            backend: way.map(|way| way.address).or(failed),
            attempts,
            error,
            datapath,
            spilled: connection.meter.spilled(),
            bytes_up: connection.meter.up(),
            bytes_down: connection.meter.down(),
            duration: connection.accepted.elapsed(),
            connect_time: way.map(|way| way.connect_time),
            close: outcome.label(),
            unique_id: self.unique_id(connection),
        });
    }
}

/// The name that another proxy gave it.
fn given_id(connection: &Connection) -> Option<String> {
    let header = connection.announced()?;
    Some(tlv::find(&header.tlvs, tlv::UNIQUE_ID)?.escape_ascii().to_string())
}

fn unique(run: u64, id: u64) -> String {
    format!("{run:016x}{id:016x}")
}
