//! The operator's commands: the control API's calls on the running daemon.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Instant};

use super::{ControlState, Daemon, DaemonError, apply::Applied};
use crate::{
    config::state::{Drained, State, StateError},
    connection::{self, Destination, Source, View},
    control::{
        Operator, Refusal, RefusalKind,
        api::{
            AddBlock, AddRoute, AddedRoutes, Backend, BackendSelector, Block, Check, ClosedConnection,
            Connection, Considered, ReloadPlan, ReloadReport, RemoveBlock, RemoveRoute, RemovedRoutes, Route,
            RouteSource, RouteTest, Status, TestRoute, Trace, TraceClient,
        },
    },
    datapath::StopReason,
    observe::access_log::AccessLog,
    pool::BackendId,
    route::{Query, Rule},
    spec::{AlpnList, ClientProtocol, HostPattern, Protocol, RouteSpec, Target},
};

impl Operator for Daemon {
    fn routes(&self) -> Vec<Route> {
        self.edge.settle();
        self.edge.running.load().routes.iter().filter_map(|rule| shown(&rule.target)).collect()
    }

    async fn add_route(&self, route: AddRoute) -> Result<AddedRoutes, Refusal> {
        let specs = route.specs();
        let mut control_state = self.control_state.lock().await;
        let mut state = control_state.state.clone();
        for spec in &specs {
            check_new_route(&control_state, spec)?;
            match state.routes.iter_mut().find(|known| known.conditions == spec.conditions) {
                Some(known) if known == spec => {}
                Some(known) if route.replace => *known = spec.clone(),
                Some(known) => return Err(elsewhere(known)),
                None => state.routes.push(spec.clone()),
            }
        }
        self.provide_tiers(&control_state.settings, &state.routes)
            .map_err(|error| Refusal::new(RefusalKind::Unsupported, "no_such_tier", error.to_string()))?;
        self.save_and_swap(&mut control_state, state).await?;
        let added = specs.iter().map(|spec| self.shown_or_new(spec)).collect::<Vec<_>>();
        Ok(added.into())
    }

    async fn remove_route(&self, route: RemoveRoute) -> Result<RemovedRoutes, Refusal> {
        let mut control_state = self.control_state.lock().await;
        let mut state = control_state.state.clone();
        let meant: Vec<_> = state.routes.extract_if(.., |spec| route.means(&spec.conditions)).collect();
        for host in &route.host {
            let of_host: Vec<_> = meant.iter().filter(|spec| spec.conditions.host == *host).collect();
            match &*of_host {
                [_] => {}
                [] => return Err(not_removable(&control_state, &route, host)),
                several => return Err(ambiguous(host, several.len())),
            }
        }
        let removed = meant.iter().map(|spec| self.shown_or_new(spec)).collect();
        self.save_and_swap(&mut control_state, state).await?;
        let closed = if route.close { meant.iter().map(|spec| self.close_route(spec)).sum() } else { 0 };
        Ok(RemovedRoutes { removed, closed: closed as u64 })
    }

    async fn test_route(&self, client: TestRoute) -> Result<RouteTest, Refusal> {
        self.test(client).await
    }

    fn backends(&self) -> Vec<Backend> {
        self.edge.settle();
        self.shown_backends(|_| true)
    }

    async fn set_drained(&self, backend: BackendSelector, drained: bool) -> Result<Vec<Backend>, Refusal> {
        let mut control_state = self.control_state.lock().await;
        let meant = Drained { pool: backend.pool.clone(), to: backend.to.clone() };
        let known = control_state.retained.backends.all();
        let chosen: Vec<_> = known.iter().filter(|backend| means(&meant, backend.id())).collect();
        if chosen.is_empty() {
            let message = match &backend.pool {
                Some(pool) => format!("no backend {} in a pool {pool}", backend.to),
                None => format!("no backend {}", backend.to),
            };
            return Err(Refusal::new(RefusalKind::NotFound, "no_such_backend", message)
                .hint("`edgectl backends list` shows them as they are written in the configuration"));
        }
        let mut state = control_state.state.clone();
        // A later word about the same backend replaces the earlier one.
        state.drained.retain(|known| !chosen.iter().any(|backend| means(known, backend.id())));
        if drained {
            state.drained.push(meant.clone());
        }
        control_state.store.save(&state).await.map_err(|error| not_saved(&error))?;
        control_state.state = state;
        for backend in &chosen {
            if drained { backend.drain() } else { backend.ready() }
        }
        Ok(self.shown_backends(|backend| means(&meant, backend)))
    }

    fn connections(&self) -> Vec<Connection> {
        let on_sockets = self.edge.registry.list();
        let now = Instant::now();
        let on_sockets = on_sockets.iter().map(|connection| {
            let backend = connection.upstream().map(|upstream| &**upstream.lease.backend());
            super::status::connection(View::of(connection), connection.idle(now), backend)
        });
        let mut all: Vec<_> = on_sockets.chain(self.flows()).collect();
        // One that becomes a flow at this moment may be on both sides.
        all.sort_by_key(|connection| connection.id);
        all.dedup_by_key(|connection| connection.id);
        all
    }

    fn close_connection(&self, id: u64) -> Result<ClosedConnection, Refusal> {
        match self.edge.stop(StopReason::Operator, |connection| connection.id == id, |flow| flow.id == id) {
            1.. => Ok(ClosedConnection { id }),
            0 => Err(Refusal::new(
                RefusalKind::NotFound,
                "no_such_connection",
                format!("there is no connection {id}"),
            )
            .hint("it may have ended; `edgectl connections list` shows those that live")),
        }
    }

    fn close_connections(&self, ids: &HashSet<u64>) -> u64 {
        let stop = |id: u64| ids.contains(&id);
        self.edge.stop(StopReason::Operator, |connection| stop(connection.id), |flow| stop(flow.id)) as u64
    }

    fn access_log(&self) -> &AccessLog {
        self.edge.accounts.access_log()
    }

    fn status(&self) -> Status {
        self.edge.settle();
        self.glance()
    }

    async fn reload(&self) -> Result<ReloadReport, Refusal> {
        let Applied { listeners, pools, routes, warnings, .. } =
            self.reload_file().await.map_err(|error| not_reloaded(&error))?;
        // When the caller gets the answer, removed listeners are closed and new ones accept.
        self.workers.answer().await;
        Ok(ReloadReport { listeners: listeners as u64, pools: pools as u64, routes: routes as u64, warnings })
    }

    async fn plan_reload(&self) -> Result<ReloadPlan, Refusal> {
        self.plan().await.map_err(|error| not_reloaded(&error))
    }

    async fn doctor(&self, found: impl FnMut(Check) + Send) {
        self.examine(found).await;
    }

    fn blocks(&self) -> Result<Vec<Block>, Refusal> {
        self.listed_blocks()
    }

    async fn add_block(&self, block: AddBlock) -> Result<Block, Refusal> {
        self.block(block).await
    }

    async fn remove_block(&self, block: RemoveBlock) -> Result<Block, Refusal> {
        self.unblock(block).await
    }

    fn trace(&self, client: TraceClient) -> Result<Trace, Refusal> {
        let Some(tracing) = &self.tracing else { return Err(super::trace::not_tracing()) };
        tracing.read(client)
    }
}

impl Daemon {
    /// Puts the new runtime state on disk, then in effect.
    async fn save_and_swap(&self, control_state: &mut ControlState, state: State) -> Result<(), Refusal> {
        control_state.store.save(&state).await.map_err(|error| not_saved(&error))?;
        self.change(control_state, state);
        Ok(())
    }

    /// A runtime route with its account.
    fn shown_or_new(&self, spec: &RouteSpec) -> Route {
        self.route_of(spec).unwrap_or_else(|| Route::new(spec, RouteSource::Runtime))
    }

    fn route_of(&self, spec: &RouteSpec) -> Option<Route> {
        let running = self.edge.running.load();
        let same = |rule: &&Rule<Arc<Destination>>| {
            rule.conditions == spec.conditions && rule.target.source == Source::Runtime
        };
        running.routes.iter().find(same).and_then(|rule| shown(&rule.target))
    }

    fn close_route(&self, spec: &RouteSpec) -> usize {
        let identity = connection::identity_of(Some(spec), "");
        self.edge.stop(
            StopReason::RouteRemoved,
            |connection| {
                connection.upstream().is_some_and(|upstream| upstream.destination.identity == identity)
            },
            |flow| flow.passport.destination == identity,
        )
    }

    async fn test(&self, client: TestRoute) -> Result<RouteTest, Refusal> {
        let running = self.edge.running.load_full();
        let listener = tested_listener(&running, client.listener.as_ref(), client.protocol)?;
        let alpn: AlpnList = client.alpn.iter().map(|name| name.as_bytes()).collect();
        let source = client.from.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let protocol =
            client.protocol.or(listener.spec.speaks().first().copied()).unwrap_or(ClientProtocol::Tls);
        let query = Query {
            host: client.host.as_ref(),
            protocol,
            alpn: &alpn,
            source,
            listener: &listener.spec.name,
        };
        let considered: Vec<_> = running
            .routes
            .explain(&query)
            .into_iter()
            .map(|found| {
                let conditions = &found.rule.conditions;
                Considered {
                    host: conditions.host.clone(),
                    listener: conditions.listeners.clone(),
                    protocol: conditions.protocols.clone(),
                    alpn: conditions.alpn.clone(),
                    from: conditions.from.clone(),
                    to: found.rule.target.route.as_ref().map_or_else(
                        || Target::One(Arc::clone(found.rule.target.pool.name())),
                        |route| route.to.clone(),
                    ),
                    wins: matches!(found.outcome, crate::route::Outcome::Wins(_)),
                    reason: found.outcome.to_string(),
                }
            })
            .collect();
        let winner = running.routes.find(&query).map(|rule| Arc::clone(&rule.target));
        let refused =
            winner.as_ref().map_or(Some(connection::CloseReason::NoRoute), |won| won.refuses(source));
        let outcome = outcome(refused, winner.as_deref(), client.from, protocol);
        let way = winner.as_ref().filter(|_| refused.is_none());
        let backends = way.map_or_else(Vec::new, |destination| {
            destination.pool.backends().iter().map(|backend| super::status::backend(backend)).collect()
        });
        let probe = match (way, client.probe) {
            (Some(destination), true) => {
                let port = listener.spec.bind.first().map_or(0, std::net::SocketAddr::port);
                let blocked = self.shielding.shield().blocked().unwrap_or_default();
                let host = client.host.as_ref();
                Some(super::probe::probe(&destination.pool, host, protocol, port, &blocked).await)
            }
            _ => None,
        };
        Ok(RouteTest {
            host: client.host,
            listener: Arc::clone(&listener.spec.name),
            protocol,
            alpn: client.alpn,
            from: client.from,
            route: winner.and_then(|destination| shown(&destination)),
            outcome,
            considered,
            backends,
            probe,
        })
    }

    pub(super) fn shown_backends(&self, which: impl Fn(&BackendId) -> bool) -> Vec<Backend> {
        let running = self.edge.running.load();
        let chosen = running.backends().filter(|backend| which(backend.id()));
        chosen.map(|backend| super::status::backend(backend)).collect()
    }
}

/// Whether a backend is the one drained.
pub(super) fn means(drained: &Drained, backend: &BackendId) -> bool {
    drained.to == backend.to && drained.pool.as_ref().is_none_or(|pool| *pool == backend.pool)
}

fn shown(destination: &Destination) -> Option<Route> {
    let source = match destination.source {
        Source::File => RouteSource::File,
        Source::Runtime => RouteSource::Runtime,
    };
    let mut route = Route::new(destination.route.as_ref()?, source);
    route.connections = destination.counters.live();
    route.bytes_up = destination.counters.bytes_up();
    route.bytes_down = destination.counters.bytes_down();
    Some(route)
}

/// The result for a hypothetical client, in words.
fn outcome(
    refused: Option<connection::CloseReason>,
    winner: Option<&Destination>,
    from: Option<IpAddr>,
    protocol: ClientProtocol,
) -> String {
    let Some(refused) = refused else {
        let pool = winner.map_or("", |winner| winner.pool.name());
        return if winner.is_some_and(|winner| winner.redirects(Some(protocol))) {
            let told = connection::told(connection::CloseReason::Redirected, protocol);
            format!("redirected to https by its route: {told}; /.well-known/acme-challenge/ goes to {pool}")
        } else {
            format!("goes to {pool}")
        };
    };
    let why = match refused {
        connection::CloseReason::Refused => "refused by its route".to_owned(),
        connection::CloseReason::DeniedByRoute => match from {
            Some(from) => format!("denied by its route, which {from} may not use"),
            None => "denied by its route, which some sources may use (tell one by --from)".to_owned(),
        },
        _ => "no route".to_owned(),
    };
    format!("{why}: {}", connection::told(refused, protocol))
}

/// The listener that a route is tested on: the one named, else the first that routes, or the first that
/// accepts the client's protocol if that is given.
fn tested_listener(
    running: &connection::Running,
    name: Option<&Arc<str>>,
    protocol: Option<ClientProtocol>,
) -> Result<Arc<connection::ListenerState>, Refusal> {
    let mut routing: Vec<_> =
        running.listeners.values().filter(|listener| listener.spec.protocol != Protocol::Tcp).collect();
    routing
        .sort_by_key(|listener| (listener.spec.protocol != Protocol::Tls, Arc::clone(&listener.spec.name)));
    let takes = |listener: &&&Arc<connection::ListenerState>| {
        protocol.is_none_or(|protocol| listener.spec.takes(protocol))
    };
    let found = match name {
        Some(name) => routing.iter().find(|listener| listener.spec.name == *name),
        None => routing.iter().find(takes),
    };
    found.map(|listener| Arc::clone(listener)).ok_or_else(|| {
        let known: Vec<_> = routing.iter().map(|listener| &*listener.spec.name).collect();
        Refusal::new(RefusalKind::NotFound, "no_such_listener", "there is no such listener that takes routes")
            .hint(format!("there are: {}", known.join(", ")))
    })
}

fn check_new_route(control_state: &ControlState, spec: &RouteSpec) -> Result<(), Refusal> {
    let settings = &control_state.settings;
    settings.check_route(spec).map_err(|problem| {
        let refusal = Refusal::new(RefusalKind::Invalid, "invalid_route", problem.message);
        match problem.hint {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    })?;
    match settings.routes.iter().find(|known| known.conditions == spec.conditions) {
        Some(known) => Err(Refusal::new(
            RefusalKind::Conflict,
            "route_in_file",
            format!(
                "the configuration file has a route for {} already, to {}",
                known.conditions.host, known.to
            ),
        )
        .hint("change it there and reload, or add --listener, --protocol, --alpn or --from to make a different one")),
        None => Ok(()),
    }
}

fn elsewhere(known: &RouteSpec) -> Refusal {
    Refusal::new(
        RefusalKind::Conflict,
        "route_exists",
        format!("there is a route for {} already, to {}", known.conditions.host, known.to),
    )
    .hint("`--replace` changes it; live connections go on")
}

fn not_removable(control_state: &ControlState, route: &RemoveRoute, host: &HostPattern) -> Refusal {
    let is_meant = |spec: &RouteSpec| spec.conditions.host == *host && route.means(&spec.conditions);
    if control_state.settings.routes.iter().any(is_meant) {
        return Refusal::new(
            RefusalKind::Conflict,
            "route_in_file",
            format!("the route for {host} is in the configuration file"),
        )
        .hint("take it out there and run `edgectl reload`");
    }
    Refusal::new(RefusalKind::NotFound, "no_such_route", format!("there is no route for {host}"))
        .hint("`edgectl routes list` shows all")
}

fn ambiguous(host: &HostPattern, routes: usize) -> Refusal {
    Refusal::new(RefusalKind::Conflict, "several_routes", format!("{routes} routes for {host} match"))
        .hint("say which one with --listener, --protocol, --alpn or --from")
}

fn not_reloaded(error: &DaemonError) -> Refusal {
    let code = match error {
        DaemonError::Config(_) => "config_invalid",
        DaemonError::Bind(_) => "cannot_listen",
        _ => "reload_failed",
    };
    Refusal::new(RefusalKind::Invalid, code, error.to_string())
        .hint("the running configuration is unchanged; `edgectl config check` shows errors without a reload")
}

pub(super) fn not_saved(error: &StateError) -> Refusal {
    Refusal::new(RefusalKind::Internal, "not_saved", format!("nothing was changed: {error}"))
}
