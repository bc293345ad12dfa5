//! The state that all connections share.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    CloseReason, Connection, Destination, Flows, HelloMemory, LiveFlow, Registry, Running, Sessions,
    open::TakenPlaces, outcome::Ended, passport::Passport,
};
use crate::{
    accounts::{Accounts, Admission, Ending, unique_id},
    datapath::{StopReason, Tiers},
    observe::timings::Timings,
    proxy_protocol::tlv,
    shield::BlockedSources,
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
    /// Counts and logs each connection that ended.
    pub accounts: Arc<Accounts>,
    /// How long hellos and connects take.
    pub timings: Timings,
    /// Which backends PostgreSQL clients have sessions with.
    pub sessions: Sessions,
    /// The tiers besides the sockets.
    pub tiers: Tiers,
    /// Connections that go on without sockets, where this machine can carry them.
    pub flows: Option<Arc<Flows>>,
    /// Sources that are refused at accept.
    pub blocked: Arc<BlockedSources>,
}

impl Edge {
    /// The globally unique name of the connection, for the access log and the header to the backend. Behind
    /// another proxy it is the name that the proxy gave.
    pub(super) fn unique_id(&self, connection: &Connection) -> String {
        given_id(connection).unwrap_or_else(|| unique_id(self.accounts.run(), connection.id))
    }

    /// The description of a connection after it has become a flow.
    pub(super) fn passport(&self, connection: &Connection) -> Passport {
        Passport::of(connection, given_id(connection), self.accounts.run())
    }

    /// A connection goes on as a flow: its counts go with it, and it needs its task no longer.
    pub(super) fn became_flow(&self, connection: &Connection, places: TakenPlaces) {
        let Some(flows) = &self.flows else { return };
        flows.keep_places(connection.id, places);
        connection.hand_counts_on();
        if let Some(reason) = connection.stop.ordered() {
            // It came too late for the task.
            self.stop(reason, |_| false, |flow| flow.id == connection.id);
        }
    }

    /// Ends all connections that `which` picks, those that are flows by `which_flow`; says how many.
    pub fn stop(
        &self,
        reason: StopReason,
        which: impl Fn(&Connection) -> bool,
        which_flow: impl Fn(&LiveFlow) -> bool,
    ) -> usize {
        let stopped = self.registry.stop(reason, which);
        let Some(flows) = &self.flows else { return stopped };
        match flows.stop(reason, which_flow) {
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

    /// Ends all connections whose client their listener or their route refuses by now; says how many. To be called after
    /// [`Self::running`] was swapped. What `from` says is left alone: it is a condition, not a wall.
    pub fn stop_denied(&self) -> usize {
        let running = self.running.load_full();
        let guarded: HashMap<u64, &Destination> = running
            .destinations()
            .filter(|destination| destination.is_guarded())
            .map(|destination| (destination.identity, &**destination))
            .collect();
        if guarded.is_empty() && running.listeners.values().all(|listener| listener.spec.access.is_open()) {
            return 0;
        }
        let is_denied = |listener: &str, identity: Option<u64>, client: IpAddr| {
            let by_listener =
                running.listeners.get(listener).is_some_and(|listener| !listener.admits(client));
            let route = identity.and_then(|identity| guarded.get(&identity));
            by_listener || route.is_some_and(|route| route.refuses(client).is_some())
        };
        self.stop(
            StopReason::Denied,
            |connection| {
                let identity = connection.upstream().map(|upstream| upstream.destination.identity);
                is_denied(&connection.listener, identity, connection.client().ip())
            },
            |flow| is_denied(&flow.passport.listener, Some(flow.passport.destination), flow.client.ip()),
        )
    }

    /// Whether this peer is blocked. Such a connection is counted but has no line in the access log: on other
    /// devices its packets are dropped unseen.
    pub fn refuses(&self, listener: &Arc<str>, peer: SocketAddr) -> bool {
        let refused = self.blocked.hold(peer.ip());
        if refused {
            self.accounts.count(Ending {
                listener: Arc::clone(listener),
                route: None,
                datapath: None,
                result: CloseReason::Blocked.label(),
                refused: true,
            });
        }
        refused
    }

    /// The last account of a connection on sockets. Its task calls this, when nothing is carried any more.
    pub(super) fn account(&self, connection: &Connection, ended: Ended) {
        connection.settle(Instant::now());
        let is_logged = !ended.is_empty || self.running.load().log_empty;
        self.accounts.close(ended.account(connection, self.unique_id(connection), is_logged));
    }

    /// Brings all counters up to date. Callers that come while another one looks the flows over share the next look.
    pub fn settle(&self) {
        let not_before = Instant::now();
        self.registry.settle();
        let idle = self.running.load().idle_timeout;
        self.sweep_flows(idle, not_before);
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
            && let Err(error) = flows.sweep(&self.running.load(), idle, not_before)
        {
            tracing::warn!(error = error.words(), "the flows cannot be looked over");
        }
    }
}

/// The name that another proxy gave it.
fn given_id(connection: &Connection) -> Option<String> {
    let header = connection.announced()?;
    Some(tlv::find(&header.tlvs, tlv::UNIQUE_ID)?.escape_ascii().to_string())
}
