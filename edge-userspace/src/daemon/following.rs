//! The tasks that feed the pools beside the connections: checks, name resolution, tunnels.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    config::ResolverSpec,
    pool::{
        Backend, Names, Resolver, TunnelPaths,
        check::{Checks, Plan},
    },
    spec::TunnelSpec,
    tunnel::{Tunnels, Watcher},
};

/// Follows the backends in use. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Following {
    checks: Checks,
    resolver: ResolverSpec,
    names: Names,
    watcher: Option<Arc<Watcher>>,
    ways: Option<TunnelPaths>,
}

impl Following {
    /// Follows nothing yet; runs on the runtime that it is called in.
    pub(super) fn new(resolver: &ResolverSpec, tunnel: TunnelSpec) -> Self {
        let watcher = Watcher::start(tunnel)
            .inspect_err(|error| tracing::warn!(%error, "tunnels are not watched: netlink cannot be used"))
            .ok()
            .map(Arc::new);
        Self {
            checks: Checks::default(),
            names: names(resolver),
            resolver: resolver.clone(),
            ways: watcher.clone().map(TunnelPaths::new),
            watcher,
        }
    }

    /// Follows these backends and no others from now on.
    pub(super) fn set(
        &mut self,
        wanted: Vec<(Arc<Backend>, Plan)>,
        resolver: &ResolverSpec,
        tunnel: TunnelSpec,
    ) {
        if self.resolver != *resolver {
            self.names = names(resolver);
            self.resolver = resolver.clone();
        }
        if let Some(watcher) = &self.watcher {
            watcher.judge(tunnel);
        }
        let backends = || wanted.iter().map(|(backend, _)| Arc::clone(backend));
        self.names.set(backends());
        if let Some(ways) = &mut self.ways {
            ways.set(backends());
        }
        self.checks.set(wanted);
    }

    /// Changes with devices, addresses and routes, whatever it was.
    pub(super) fn network_changed(&self) -> Option<watch::Receiver<()>> {
        self.watcher.as_ref().map(|watcher| watcher.network_changed())
    }

    /// The state of the tunnels; changes with them.
    pub(super) fn tunnels(&self) -> Option<watch::Receiver<Arc<Tunnels>>> {
        self.watcher.as_ref().map(|watcher| watcher.tunnels())
    }
}

fn names(resolver: &ResolverSpec) -> Names {
    let suffixes = resolver.suffixes.iter().map(|(suffix, servers)| (suffix.clone(), servers.clone()));
    Names::new(Resolver::new(&resolver.servers, suffixes, resolver.search.as_deref()))
}
