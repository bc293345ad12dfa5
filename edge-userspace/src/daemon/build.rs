//! Settings and runtime state → the [`Running`] state that connections meet.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use super::limits::{connection_limit, share_of_a_source};
use crate::{
    config::{Questions, Settings, Uses},
    connection::{
        Destination, ListenerState, Passport, Running, Source, identity_of, identity_of_conditions,
    },
    places::{KnownPlaces, Places},
    pool::{Backend, Backends, Pool, check::Plan},
    route::{Rule, Table},
    spec::{
        Ask, BackendAddress, BackendSpec, Choice, ClientProtocol, Conditions, HealthKind, PoolSpec,
        ProxyProtocol, ProxyTlvs, RouteSpec, Target,
    },
    tally::Tally,
};

/// The part that survives a reload: backends with their state, and counters.
#[derive(Debug, Default)]
pub(super) struct Retained {
    pub(super) backends: Backends,
    routes: HashMap<Conditions, Arc<Tally>>,
    listeners: HashMap<Arc<str>, Arc<Tally>>,
    /// By the identity of the destination.
    places: KnownPlaces,
}

impl Retained {
    /// The places that a flow has: of its destination, and at its backend.
    pub(super) fn places_of(&self, passport: &Passport) -> [Arc<Places>; 2] {
        [self.places.of(passport.destination), self.backends.places(passport.backend)]
    }
}

/// The running state, and what the operator should know about it.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) running: Running,
    /// How the backends of all pools in use are checked, those that a `to` made by itself included.
    pub(super) checks: Vec<(Arc<Backend>, Plan)>,
    /// Settings whose effect may surprise the operator.
    pub(super) warnings: Vec<String>,
}

/// Builds the running state. The operator's runtime routes come before those of the file for the same host,
/// since they are more recent.
pub(super) fn build(settings: &Settings, runtime: &[RouteSpec], retained: &mut Retained) -> Built {
    let uses = settings.uses(runtime);
    let mut pools = Pools { settings, uses, retained, built: HashMap::new(), checks: Vec::new() };
    let sourced = runtime.iter().map(|spec| (spec, Source::Runtime));
    let sourced = sourced.chain(settings.routes.iter().map(|spec| (spec, Source::File)));
    let mut rules = Vec::new();
    let mut warnings = settings.warnings(runtime);
    let mut counters = HashMap::new();
    for (spec, source) in sourced {
        let wants = (spec.proxy_protocol, spec.proxy_tlvs, spec.connect_timeout);
        let Some(pool) = pools.pool(&spec.to, wants) else {
            warnings.push(format!(
                "the route for {} leads to the pool {}, which is gone: it is left out until the pool is back",
                spec.conditions.host, spec.to
            ));
            continue;
        };
        // Of two routes with the same conditions the second is never used: it has its own counters, which
        // stay 0.
        let identity = identity_of(Some(spec), "");
        let places = match spec.shares_limit_with.clone() {
            Some(host) => {
                let first = Conditions { host, ..spec.conditions.clone() };
                pools.retained.places.shared(identity, identity_of_conditions(&first))
            }
            None => pools.retained.places.of(identity),
        };
        let counter = match counters.entry(spec.conditions.clone()) {
            Entry::Occupied(_) => Arc::default(),
            Entry::Vacant(free) => {
                places.set_limit(spec.connections);
                let retained = pools.retained.routes.get(&spec.conditions).cloned().unwrap_or_default();
                Arc::clone(free.insert(retained))
            }
        };
        let destination = Destination {
            label: spec.conditions.host.to_string().into(),
            proxy_protocol: pool.proxy_protocol(),
            pool,
            datapath: narrower(settings.daemon.datapath, spec.datapath),
            identity,
            route: Some(spec.clone()),
            source,
            idle_timeout: spec.idle_timeout,
            counters: counter,
            places,
        };
        rules.push(Rule { conditions: spec.conditions.clone(), target: Arc::new(destination) });
    }
    let mut listeners = HashMap::new();
    let mut listener_counters = HashMap::new();
    for spec in &settings.listeners {
        let destination = spec.to.as_ref().and_then(|to| {
            let pool = pools.pool(to, (ProxyProtocol::Off, ProxyTlvs::default(), spec.connect_timeout))?;
            let retained = pools.retained.listeners.get(&spec.name).cloned().unwrap_or_default();
            listener_counters.insert(Arc::clone(&spec.name), Arc::clone(&retained));
            let identity = identity_of(None, &spec.name);
            Some(Arc::new(Destination {
                label: Arc::clone(&spec.name),
                proxy_protocol: pool.proxy_protocol(),
                pool,
                datapath: settings.daemon.datapath,
                identity,
                route: None,
                source: Source::File,
                idle_timeout: None,
                counters: retained,
                places: pools.retained.places.of(identity),
            }))
        });
        let takes_any = spec.takes(ClientProtocol::Any)
            && rules
                .iter()
                .any(|rule| rule.conditions.take(ClientProtocol::Any) && rule.conditions.hear(&spec.name));
        listeners.insert(
            Arc::clone(&spec.name),
            Arc::new(ListenerState { spec: spec.clone(), destination, takes_any }),
        );
    }
    let checks = pools.checks;
    retained.routes = counters;
    retained.listeners = listener_counters;
    retained.places.forget_unused();
    let limits = &settings.limits;
    let running = Running {
        routes: Table::new(rules),
        listeners,
        hello_timeout: limits.hello_timeout,
        hello_bytes: limits.hello_bytes,
        connections_per_source: limits
            .connections_per_source
            .unwrap_or_else(|| share_of_a_source(connection_limit(limits.connections))),
        connection_rate_per_source: limits.connection_rate_per_source,
        idle_timeout: limits.idle_timeout,
        log_empty: settings.daemon.access_log_empty,
    };
    Built { running, checks, warnings }
}

/// A tier forced by the daemon's setting or by the route's; the route's word is the closer one.
fn narrower(daemon: Choice, route: Choice) -> Choice {
    if route == Choice::Auto { daemon } else { route }
}

/// A route's settings for the pool that its `to` makes: the header, its TLVs, and the time to connect.
type Wants = (ProxyProtocol, ProxyTlvs, Option<Duration>);

/// Pools by what makes them the same.
struct Pools<'a> {
    settings: &'a Settings,
    uses: Uses<'a>,
    retained: &'a mut Retained,
    built: HashMap<(Target, Wants), Arc<Pool>>,
    checks: Vec<(Arc<Backend>, Plan)>,
}

impl Pools<'_> {
    /// The pool of a target; `None` where it names one that there is not.
    fn pool(
        &mut self,
        target: &Target,
        (proxy_protocol, proxy_tlvs, connect_timeout): Wants,
    ) -> Option<Arc<Pool>> {
        let named = named(self.settings, target);
        // A pool of the configuration has its own header setting, unless the route overrides it.
        let (proxy_protocol, proxy_tlvs) = match (named, proxy_protocol) {
            (Some(pool), ProxyProtocol::Off) => (pool.proxy_protocol, pool.proxy_tlvs),
            (_, said) => (said, proxy_tlvs),
        };
        let key = (target.clone(), (proxy_protocol, proxy_tlvs, connect_timeout));
        if let Some(pool) = self.built.get(&key) {
            return Some(Arc::clone(pool));
        }
        let mut spec = named.cloned().or_else(|| unnamed(target))?;
        spec.proxy_protocol = proxy_protocol;
        spec.proxy_tlvs = proxy_tlvs;
        spec.connect_timeout = connect_timeout.unwrap_or(spec.connect_timeout);
        let kind = spec.health.kind;
        let questions = |own_port| self.uses.questions(target, kind, own_port);
        let connects = |backend: &BackendSpec| questions(backend.to.is_one_place()).asks == [Ask::Connect];
        if spec.backends.iter().all(connects) {
            // Then a client's connection proves as much as a check.
            spec.health.kind = HealthKind::Tcp;
        }
        let pool = Arc::new(self.retained.backends.pool(&spec));
        self.checks.extend(pool.backends().iter().map(|backend| {
            let Questions { asks, port, server_name } = questions(backend.to().is_one_place());
            (Arc::clone(backend), Plan { health: *pool.health(), asks, port, server_name, proxy_protocol })
        }));
        self.built.insert(key, Arc::clone(&pool));
        Some(pool)
    }
}

/// The configured pool that a target names.
fn named<'a>(settings: &'a Settings, target: &Target) -> Option<&'a PoolSpec> {
    match target {
        Target::One(name) => settings.pools.iter().find(|pool| pool.name == *name),
        Target::Many(_) | Target::Refuse => None,
    }
}

/// The pool that an address or a list of addresses makes, an empty one if clients are refused. With one
/// backend there is no choice, so it is not checked.
fn unnamed(target: &Target) -> Option<PoolSpec> {
    let addresses = match target {
        Target::One(text) => vec![text.parse::<BackendAddress>().ok()?],
        Target::Many(addresses) => addresses.clone(),
        Target::Refuse => Vec::new(),
    };
    let backends: Vec<_> = addresses.into_iter().map(BackendSpec::new).collect();
    let mut spec = PoolSpec::new(target.to_string(), backends);
    if spec.backends.len() < 2 {
        spec.health.kind = HealthKind::Off;
    }
    Some(spec)
}
