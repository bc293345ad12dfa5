//! A daemon of the imagination: an [`Operator`] in memory, behind a real control socket.

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use edge::{
    config::Settings,
    control::{
        Operator, Refusal, RefusalKind,
        api::{
            AddBlock, AddRoute, AddedRoutes, Backend, BackendCount, BackendSelector, BackendState, Block,
            Check, CheckStatus, ClosedConnection, ConcernedConnections, ConfigStatus, Connection,
            ConnectionCount, Considered, DatapathStatus, HelloMemory, ListenerStatus, Probe, ProbeStep,
            ReloadPlan, ReloadReport, RemoveBlock, RemoveRoute, RemovedRoutes, Route, RouteCount,
            RouteSource, RouteTest, Status, TestRoute, TierStatus, Timestamp, Trace, TraceClient,
        },
    },
    observe::access_log::AccessLog,
    spec::{Choice, ClientProtocol, Conditions, Protocol, Tier},
};

/// The time of everything in it: 2023-11-14T22:13:20.000Z.
pub(crate) fn then() -> Timestamp {
    Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
}

/// The state of the imaginary daemon.
#[derive(Default)]
pub(crate) struct Fake {
    /// The token that changes on the admin address need.
    #[allow(dead_code, reason = "only the tests of the admin address read it")]
    pub(crate) token: Option<std::sync::Arc<edge::control::admin::Token>>,
    state: Mutex<State>,
    log: AccessLog,
}

#[derive(Default)]
struct State {
    routes: Vec<Route>,
    blocks: Vec<Block>,
    drained: bool,
    closed: Vec<u64>,
}

fn conditions(route: &Route) -> Conditions {
    Conditions {
        host: route.host.clone(),
        listeners: route.listener.clone(),
        protocols: route.protocol.clone(),
        alpn: route.alpn.clone(),
        from: route.from.clone(),
    }
}

fn backend(drained: bool) -> Backend {
    Backend {
        pool: "caddy".into(),
        to: "100.64.0.2:443".parse().unwrap(),
        address: Some("100.64.0.2:443".into()),
        state: if drained { BackendState::Drained } else { BackendState::Up },
        since: then(),
        reason: drained.then(|| "drained by the operator".to_owned()),
        last_error: Some("100.64.0.2:443: Connection refused".to_owned()),
        last_error_at: Some(then()),
        last_success_at: Some(then()),
        device: Some("wg0".into()),
        weight: 1,
        backup: false,
        connections: 1,
        connections_limit: 0,
        bytes_up: 1_234,
        bytes_down: 5_678_901,
        rtt_ms: Some(21.5),
    }
}

impl Operator for Fake {
    fn routes(&self) -> Vec<Route> {
        self.state.lock().unwrap().routes.clone()
    }

    fn add_route(&self, route: AddRoute) -> impl Future<Output = Result<AddedRoutes, Refusal>> + Send {
        let mut state = self.state.lock().unwrap();
        let added: Vec<_> = route.specs().iter().map(|spec| Route::new(spec, RouteSource::Runtime)).collect();
        let differs = |added: &&Route| {
            state.routes.iter().any(|old| conditions(old) == conditions(added) && old != *added)
        };
        let answer = if let Some(differs) = added.iter().find(differs) {
            let message = format!("{} leads elsewhere", differs.host);
            Err(Refusal::new(RefusalKind::Conflict, "route_exists", message)
                .hint("edgectl routes add --replace"))
        } else {
            state.routes.extend(added.clone());
            Ok(added.into())
        };
        std::future::ready(answer)
    }

    async fn remove_route(&self, route: RemoveRoute) -> Result<RemovedRoutes, Refusal> {
        let mut state = self.state.lock().unwrap();
        let (removed, kept): (Vec<_>, _) =
            state.routes.drain(..).partition(|old| route.means(&conditions(old)));
        state.routes = kept;
        if removed.is_empty() {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                "no_such_route",
                format!("no route for {}", route.host[0]),
            ));
        }
        Ok(RemovedRoutes { removed, closed: u64::from(route.close) })
    }

    async fn test_route(&self, client: TestRoute) -> Result<RouteTest, Refusal> {
        let routes = self.routes();
        let wins =
            |route: &Route| client.host.as_ref().is_some_and(|host| route.host.to_string() == host.as_str());
        Ok(RouteTest {
            host: client.host.clone(),
            listener: client.listener.clone().unwrap_or_else(|| "https".into()),
            protocol: client.protocol.unwrap_or(ClientProtocol::Tls),
            alpn: client.alpn.clone(),
            from: client.from,
            route: routes.iter().find(|route| wins(route)).cloned(),
            outcome: "a client gets what it deserves".into(),
            considered: routes
                .iter()
                .map(|route| Considered {
                    host: route.host.clone(),
                    listener: route.listener.clone(),
                    protocol: route.protocol.clone(),
                    alpn: route.alpn.clone(),
                    from: route.from.clone(),
                    to: route.to.clone(),
                    wins: wins(route),
                    reason: if wins(route) { "the exact host" } else { "another host" }.into(),
                })
                .collect(),
            backends: vec![backend(false)],
            probe: client.probe.then(|| {
                vec![Probe {
                    to: "100.64.0.2:443".parse().unwrap(),
                    address: Some("100.64.0.2:443".into()),
                    status: CheckStatus::Fail,
                    steps: vec![ProbeStep {
                        name: "connect".into(),
                        status: CheckStatus::Fail,
                        message: "connection refused".into(),
                        duration_ms: Some(0.4),
                        remedy: None,
                    }],
                }]
            }),
        })
    }

    fn backends(&self) -> Vec<Backend> {
        vec![backend(self.state.lock().unwrap().drained)]
    }

    async fn set_drained(&self, selector: BackendSelector, drained: bool) -> Result<Vec<Backend>, Refusal> {
        if selector.to != backend(false).to || selector.pool.is_some_and(|pool| &*pool != "caddy") {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                "no_such_backend",
                format!("no pool has {}", selector.to),
            )
            .hint("edgectl backends list"));
        }
        self.state.lock().unwrap().drained = drained;
        Ok(self.backends())
    }

    fn connections(&self) -> Vec<Connection> {
        vec![Connection {
            id: 7,
            client: "[2001:db8::7]:50123".parse().unwrap(),
            listener: "https".into(),
            host: Some("cloud.example.com".parse().unwrap()),
            alpn: vec!["h2".into(), "http/1.1".into()],
            route: Some("*.example.com".into()),
            backend: Some("100.64.0.2:443".parse().unwrap()),
            device: None,
            backend_state: Some(BackendState::Up),
            datapath: Some(Tier::Splice),
            age_seconds: 3723.5,
            idle_seconds: 0.25,
            bytes_up: 1_234,
            bytes_down: 5_678_901,
            spilled: false,
        }]
    }

    fn close_connection(&self, id: u64) -> Result<ClosedConnection, Refusal> {
        if id != 7 {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                "no_such_connection",
                format!("no connection {id}"),
            ));
        }
        self.state.lock().unwrap().closed.push(id);
        Ok(ClosedConnection { id })
    }

    fn close_connections(&self, ids: &HashSet<u64>) -> u64 {
        self.state.lock().unwrap().closed.extend(ids);
        ids.len() as u64
    }

    fn access_log(&self) -> &AccessLog {
        &self.log
    }

    fn status(&self) -> Status {
        Status {
            version: "0.1.0".into(),
            pid: 42,
            started: then(),
            uptime_seconds: 90_061.0,
            draining: false,
            config: ConfigStatus { path: "/etc/edge/edge.toml".into(), loaded: then(), last_reload: None },
            datapath: DatapathStatus {
                allowed: Choice::Auto,
                tiers: vec![
                    TierStatus { tier: Tier::Copy, available: true, reason: None },
                    TierStatus {
                        tier: Tier::Flow,
                        available: false,
                        reason: Some("CAP_BPF is missing".into()),
                    },
                ],
                others: Vec::new(),
            },
            listeners: vec![ListenerStatus {
                name: "https".into(),
                protocol: Protocol::Tls,
                protocols: Vec::new(),
                bind: vec!["[::]:443".parse().unwrap()],
                troubles: Vec::new(),
                connections: 1,
                accepted: 10,
                mss: Some(1380),
            }],
            troubles: Vec::new(),
            connections: ConnectionCount { now: 1, total: 10, limit: 1000, limit_per_source: 128 },
            bytes_up: 1_234,
            bytes_down: 5_678_901,
            hello_memory: HelloMemory { now: 4096, limit: 16 << 20 },
            rejected: BTreeMap::from([("no_route".into(), 2)]),
            routes: RouteCount { file: 0, runtime: self.routes().len() as u64 },
            backends: BackendCount { up: 1, unchecked: 0, down: 0, drained: 0 },
            blocked_packets: 0,
            conntrack: None,
            shield: Vec::new(),
        }
    }

    async fn reload(&self) -> Result<ReloadReport, Refusal> {
        Err(Refusal::new(
            RefusalKind::Invalid,
            "config_invalid",
            "edge.toml:3:1: unknown key `hots`\n  did you mean `host`?",
        )
        .hint("edgectl config check"))
    }

    async fn plan_reload(&self) -> Result<ReloadPlan, Refusal> {
        let old = Settings::parse("old", "[[route]]\nhost = \"a.example\"\nto = \"100.64.0.2\"\n").unwrap();
        let new = Settings::parse("new", "[[route]]\nhost = \"b.example\"\nto = \"100.64.0.2\"\n").unwrap();
        Ok(ReloadPlan {
            changes: old.changes(&new),
            connections: ConcernedConnections { ended: 1, kept: 2 },
            warnings: vec!["daemon.admin changed".to_owned()],
        })
    }

    async fn doctor(&self, mut found: impl FnMut(Check) + Send) {
        found(Check::new("kernel", CheckStatus::Ok, "Linux 6.12.0"));
        found(Check::new("bpffs", CheckStatus::Warn, "not mounted").remedy("mount -t bpf bpf /sys/fs/bpf"));
    }

    fn blocks(&self) -> Result<Vec<Block>, Refusal> {
        Ok(self.state.lock().unwrap().blocks.clone())
    }

    async fn add_block(&self, block: AddBlock) -> Result<Block, Refusal> {
        if let Some(own) = block.protect.iter().find(|own| block.cidr.contains(*own) && !block.force) {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                "own_address",
                format!("{own} is where you come from"),
            ));
        }
        let until = block.duration.map(|duration| Timestamp(then().0 + duration));
        let closed = if block.force { 3 } else { 0 };
        let (cidr, source, devices) = (block.cidr, "runtime".into(), Vec::new());
        let block = Block { cidr, until, packets: 0, source, devices, closed };
        self.state.lock().unwrap().blocks.push(block.clone());
        Ok(block)
    }

    async fn remove_block(&self, block: RemoveBlock) -> Result<Block, Refusal> {
        let mut state = self.state.lock().unwrap();
        match state.blocks.iter().position(|old| old.cidr == block.cidr) {
            Some(place) => Ok(state.blocks.remove(place)),
            None => Err(Refusal::new(RefusalKind::Unsupported, "no_xdp", "this machine has no XDP")),
        }
    }

    fn trace(&self, _: TraceClient) -> Result<Trace, Refusal> {
        Err(Refusal::new(RefusalKind::Conflict, "not_tracing", "the imagination has no packets"))
    }
}
