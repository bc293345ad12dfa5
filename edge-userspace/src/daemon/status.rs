//! The daemon, its connections and its backends as the control API shows them.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

use super::{Daemon, troubles::Trouble};
use crate::{
    connection,
    control::api::{
        self, BackendCount, BindTrouble, ConfigStatus, ConnectionCount, ConntrackStatus, DatapathStatus,
        ListenerStatus, ReloadStatus, RouteCount, Status, TierStatus, Timestamp,
    },
    kernel::Fill,
    pool::{self, BackendState},
    spec::Tier,
};

impl Daemon {
    pub(super) fn glance(&self) -> Status {
        let running = self.edge.running.load();
        let live = self.edge.registry.list();
        let census = self.edge.flows.as_deref().map(connection::Flows::census).unwrap_or_default();
        let endings = self.edge.accounts.endings();
        let mut rejected: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for (ending, count) in endings.iter().filter(|(ending, _)| ending.refused) {
            *rejected.entry(ending.result.into()).or_default() += count;
        }
        let ended: u64 = endings.values().sum();
        let mut listeners: Vec<_> = running
            .listeners
            .values()
            .map(|listener| {
                let name = &listener.spec.name;
                let connections = live.iter().filter(|connection| connection.listener == *name).count()
                    as u64
                    + census.listeners.get(name).copied().unwrap_or_default();
                let ended: u64 = endings
                    .iter()
                    .filter(|(ending, _)| ending.listener == *name)
                    .map(|(_, count)| count)
                    .sum();
                ListenerStatus {
                    name: Arc::clone(name),
                    protocol: listener.spec.protocol,
                    protocols: listener.spec.protocols.clone(),
                    bind: listener.spec.bind.clone(),
                    troubles: bind_troubles(self.troubles.of(name)),
                    connections,
                    accepted: connections + ended,
                    mss: self.segments.of(name).map(|clamp| clamp.mss),
                }
            })
            .collect();
        listeners.sort_by(|a, b| a.name.cmp(&b.name));
        let mut backends = BackendCount { up: 0, unchecked: 0, down: 0, drained: 0 };
        let (mut bytes_up, mut bytes_down) = (0, 0);
        for backend in self.shown_backends(|_| true) {
            match backend.state {
                api::BackendState::Up => backends.up += 1,
                api::BackendState::Unchecked => backends.unchecked += 1,
                api::BackendState::Down => backends.down += 1,
                api::BackendState::Drained => backends.drained += 1,
            }
            bytes_up += backend.bytes_up;
            bytes_down += backend.bytes_down;
        }
        let runtime =
            running.routes.iter().filter(|rule| rule.target.source == connection::Source::Runtime).count();
        let shown = self.shown();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started: Timestamp(self.started.wall()),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            draining: shown.draining,
            config: ConfigStatus {
                path: self.config.clone(),
                loaded: Timestamp(shown.loaded.wall()),
                last_reload: shown.last_reload.as_ref().map(|reload| ReloadStatus {
                    time: Timestamp(reload.time.wall()),
                    successful: reload.error.is_none(),
                    error: reload.error.clone(),
                }),
            },
            datapath: DatapathStatus {
                allowed: shown.settings.daemon.datapath,
                tiers: self.tiers(),
                others: self.left_by_others(),
            },
            listeners,
            troubles: self
                .troubles
                .lines()
                .into_iter()
                .chain(self.edge.accounts.access_log().trouble())
                .collect(),
            connections: ConnectionCount {
                now: live.len() as u64 + census.live,
                total: live.len() as u64 + census.live + ended,
                limit: self.edge.admission.limit() as u64,
                limit_per_source: running.connections_per_source as u64,
            },
            bytes_up,
            bytes_down,
            hello_memory: {
                let (now, limit) = self.edge.hello_memory.usage();
                api::HelloMemory { now: now as u64, limit: limit as u64 }
            },
            rejected,
            routes: RouteCount { file: (running.routes.len() - runtime) as u64, runtime: runtime as u64 },
            backends,
            blocked_packets: self.shielding.dropped(),
            conntrack: Fill::now().map(|Fill { entries, limit }| ConntrackStatus { entries, limit }),
            shield: super::blocks::guards(&self.shielding),
        }
    }
}

impl Daemon {
    fn tiers(&self) -> Vec<TierStatus> {
        let sockmap = self.edge.tiers.sockmap().is_some();
        let tier = |tier, reason: Option<&str>| TierStatus {
            tier,
            available: reason.is_none(),
            reason: reason.map(str::to_owned),
        };
        vec![
            tier(Tier::Copy, None),
            tier(Tier::Splice, None),
            tier(Tier::Sockmap, (!sockmap).then_some("no route asks for it")),
            tier(Tier::Flow, self.edge.flows.is_none().then_some("`edgectl doctor` says why")),
        ]
    }
}

fn bind_troubles(troubles: Vec<(SocketAddr, Trouble)>) -> Vec<BindTrouble> {
    let shown = |(bind, trouble): (SocketAddr, Trouble)| BindTrouble {
        bind,
        listening: trouble == Trouble::Away,
        reason: trouble.to_string(),
    };
    troubles.into_iter().map(shown).collect()
}

pub(super) fn connection(connection: &connection::Connection) -> api::Connection {
    let (asked, way) = (connection.asked(), connection.way());
    api::Connection {
        id: connection.id,
        client: connection.client(),
        listener: Arc::clone(&connection.listener),
        host: asked.and_then(|asked| asked.host.clone()),
        alpn: asked
            .map_or_else(Vec::new, |asked| asked.alpn.to_strings().into_iter().map(Arc::from).collect()),
        route: way.map(|way| Arc::clone(&way.destination.label)),
        backend: way.map(|way| way.address.clone()),
        device: way.and_then(|way| way.lease.backend().device().cloned()),
        backend_state: way.map(|way| state(way.lease.backend().state())),
        datapath: way.map(|_| connection.meter.tier()),
        age_seconds: connection.accepted.elapsed().as_secs_f64(),
        idle_seconds: connection.idle(Instant::now()).as_secs_f64(),
        bytes_up: connection.meter.up(),
        bytes_down: connection.meter.down(),
        spilled: connection.meter.spilled(),
    }
}

pub(super) fn state(state: BackendState) -> api::BackendState {
    match state {
        BackendState::Up => api::BackendState::Up,
        BackendState::Unchecked => api::BackendState::Unchecked,
        BackendState::Down => api::BackendState::Down,
        BackendState::Drained => api::BackendState::Drained,
    }
}

pub(super) fn backend(backend: &pool::Backend) -> api::Backend {
    let status = backend.status();
    let address = status.addresses.first().map(|endpoint| match endpoint.port {
        Some(port) => std::net::SocketAddr::new(endpoint.ip, port).to_string().into(),
        None => endpoint.ip.to_string().into(),
    });
    let (last_error_at, last_error) = status.last_error.unzip();
    api::Backend {
        pool: Arc::clone(&status.id.pool),
        to: status.id.to.clone(),
        address,
        state: state(status.state),
        since: Timestamp(status.since),
        reason: status.reason.map(|reason| reason.to_string()),
        last_error: last_error.map(|error| error.to_string()),
        last_error_at: last_error_at.map(Timestamp),
        last_success_at: status.last_success.map(Timestamp),
        device: status.id.device.clone(),
        weight: status.weight,
        backup: status.backup,
        connections: status.connections,
        connections_limit: status.connections_limit,
        bytes_up: status.bytes_up,
        bytes_down: status.bytes_down,
        rtt_ms: status.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
    }
}
