//! The daemon as its metrics show it.

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::Daemon;
use crate::{
    connection::ListenerState,
    control::{
        admin::{Health, Observed, Token, Tunnel},
        api::Timestamp,
    },
    kernel::Fill,
    observe::{
        metrics::{BackendCounts, Ended, Handshake, Snapshot},
        process::Process,
        refusals::Refusal,
    },
    pool::{Backend, BackendState},
    spec::{HostName, Tier},
    tunnel::Tunnels,
};

impl Observed for Daemon {
    fn health(&self) -> Health {
        let running = self.edge.running.load();
        let unreachable = |listener: &&Arc<ListenerState>| {
            let troubles = self.troubles.of(&listener.spec.name);
            listener.spec.bind.iter().all(|address| troubles.iter().any(|(troubled, _)| troubled == address))
        };
        let mut closed: Vec<_> = running
            .listeners
            .values()
            .filter(unreachable)
            .map(|listener| Arc::clone(&listener.spec.name))
            .collect();
        closed.sort();
        Health { draining: self.shown().draining, closed, troubles: self.troubles.lines() }
    }

    fn admin_hosts(&self) -> Vec<HostName> {
        self.shown().settings.daemon.admin_hosts.clone()
    }

    fn admin_token(&self) -> Option<Arc<Token>> {
        self.admin_token.clone()
    }

    fn tunnels(&self) -> Vec<Tunnel> {
        let Some(tunnels) = &self.tunnels else { return Vec::new() };
        let tunnels = Arc::clone(&tunnels.borrow());
        let running = self.edge.running.load();
        let bound = running.backends().filter_map(|backend| backend.device().cloned());
        let names: BTreeSet<_> = bound.chain(tunnels.peers.keys().cloned()).collect();
        names.into_iter().map(|name| shown_tunnel(&tunnels, &name)).collect()
    }

    fn refusals(&self) -> Vec<Refusal> {
        self.edge.accounts.refusals().list()
    }

    fn metrics(&self) -> Snapshot {
        let edge = &self.edge;
        // Counters of routes lag behind their live connections by up to a sweep.
        edge.settle();
        let running = edge.running.load();
        let endings = edge.accounts.endings().into_iter().map(|(ending, count)| Ended {
            listener: ending.listener,
            route: ending.route,
            datapath: ending.datapath,
            result: ending.result,
            refused: ending.refused,
            count,
        });
        let active = edge.registry.list().into_iter().map(|connection| {
            (Arc::clone(&connection.listener), connection.upstream().map(|_| connection.meter.tier()), 1)
        });
        let flows = edge.flows.as_ref().map(|flows| flows.census().listeners).unwrap_or_default();
        let flows = flows.into_iter().map(|(listener, count)| (listener, Some(Tier::Flow), count));
        let connects = edge.timings.connects();
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            ended: endings.collect(),
            active: active.chain(flows).collect(),
            routes: running
                .destinations()
                .map(|destination| {
                    let counters = &destination.counters;
                    (Arc::clone(&destination.label), counters.bytes_up(), counters.bytes_down())
                })
                .collect(),
            hello: edge.timings.hellos().into(),
            connect: connects
                .iter()
                .map(|(pool, histogram)| (Arc::clone(pool), (&**histogram).into()))
                .collect(),
            backends: running.backends().map(|backend| counts(backend)).collect(),
            handshakes: self.handshakes(),
            access_log_dropped: edge.accounts.access_log().dropped(),
            process: Process::now()
                .inspect_err(|error| tracing::debug!(%error, "the process cannot be seen"))
                .ok(),
            blocked_packets: self.shielding.dropped(),
            conntrack: Fill::now().map(|fill| (fill.entries, fill.limit)),
            hello_memory: edge.hello_memory.usage().0,
            flow: edge.flows.as_deref().map(super::flows::measured),
            reload_successful: self.shown().last_reload.as_ref().is_none_or(|reload| reload.error.is_none()),
        }
    }
}

impl Daemon {
    /// The last handshakes of the tunnels that are followed.
    fn handshakes(&self) -> Vec<Handshake> {
        let Some(tunnels) = &self.tunnels else { return Vec::new() };
        let tunnels = Arc::clone(&tunnels.borrow());
        let peers =
            tunnels.peers.iter().flat_map(|(device, peers)| peers.iter().map(move |peer| (device, peer)));
        peers
            .filter_map(|(device, peer)| {
                let peer_name = BASE64_STANDARD.encode(peer.key);
                Some(Handshake { device: Arc::clone(device), peer: peer_name, at: peer.handshake? })
            })
            .collect()
    }
}

fn shown_tunnel(tunnels: &Tunnels, name: &Arc<str>) -> Tunnel {
    let device = tunnels.devices.get(name);
    let peers = tunnels.peers.get(name);
    Tunnel {
        device: name.to_string(),
        up: device.is_some_and(|device| device.up),
        mtu: device.map(|device| device.mtu),
        wireguard: peers.is_some() || device.is_some_and(|device| device.wireguard),
        last_handshake: peers.into_iter().flatten().filter_map(|peer| peer.handshake).max().map(Timestamp),
        peers: peers.map_or(0, Vec::len),
    }
}

fn counts(backend: &Backend) -> BackendCounts {
    let status = backend.status();
    BackendCounts {
        pool: Arc::clone(&status.id.pool),
        // The same address by another device is another backend.
        backend: status.id.to_string(),
        up: match status.state {
            BackendState::Unchecked => None,
            state => Some(state == BackendState::Up),
        },
        last_success: status.last_success,
        last_error: status.last_error.map(|(at, _)| at),
        connections: status.connections,
        rtt: status.rtt,
        failures: backend.failures().counts().map(|(failure, count)| (failure.as_str(), count)).collect(),
    }
}
