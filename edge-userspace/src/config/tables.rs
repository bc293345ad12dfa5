//! The tables of the configuration and the keys that each may have: this file is the list of them.
//!
//! The types that are made here document the meaning of each setting and its default. The reader named behind
//! a key documents how its value is written.

use std::{collections::HashMap, net::SocketAddr, ops::RangeInclusive, sync::Arc};

use toml::de::DeValue;

use super::{
    document::Section,
    hosts::{Host, Seen, hosts},
    listeners::listeners,
    network::{
        FEWEST_PORTS, alpn, backend_address, bind, device, label, name_server, ports, prefixes, spoken_name,
        suffix,
    },
    port_ranges::free_part,
    problem::Refusal,
    references::{References, label_out_of_place},
    settings::{DaemonSettings, FlowSpec, Limits, ResolverSpec, Settings, ShieldSpec},
    uses::Uses,
    value::{Value, boolean, duration, duration_or_zero, integer, list, one_of, path, quoted},
};
use crate::{
    observe::access_log::AccessLogTarget,
    spec::{
        Access, BackendAddress, BackendSpec, Choice, ClientProtocol, Conditions, HealthKind, HealthSpec,
        HostPattern, ListenerSpec, PoolSpec, ProxyProtocol, ProxyTlv, ProxyTlvs, Redirect, RouteSpec, Target,
        TunnelSpec, Warm,
    },
};

/// The longest path of a Unix socket (`sun_path` of `struct sockaddr_un` without the NUL).
const MAX_SOCKET_PATH: usize = 107;
/// The largest ClientHello or request head that may be allowed for, in bytes.
const MAX_HELLO: usize = 65536;
/// Bounds for the memory of all clients' first bytes. The minimum holds a few of the largest hellos.
const HELLO_MEMORY: RangeInclusive<usize> = 1 << 20..=1 << 31;
/// The highest rate that a limit can speak of: one a microsecond.
const MAX_RATE: u32 = 1_000_000;
/// The most connections that a limit can speak of: file descriptors are 32-bit.
const MAX_CONNECTIONS: usize = i32::MAX as usize;

pub(super) fn settings(top: &mut Section<'_>) -> Settings {
    let daemon = top.section("daemon", "[daemon]", daemon);
    let limits = top.section("limits", "[limits]", limits);
    let mut references = References::default();
    let mut lines = HashMap::new();
    let pools = top.sections("pool", "[[pool]]", |table| pool(table, &mut references, &mut lines));
    let listeners = listeners(top, &mut references, &limits);
    let routes = routes(top, Some(&references));
    fit_checks(top, &references, &routes, &listeners);
    let flow = top.section("flow", "[flow]", |table| flow(table, &listeners, &daemon));
    Settings {
        daemon,
        limits,
        listeners,
        pools,
        routes,
        resolver: top.section("resolver", "[resolver]", resolver),
        flow,
        tunnel: top.section("tunnel", "[tunnel]", tunnel),
        shield: top.section("shield", "[shield]", shield),
    }
}

/// Refuses checks that cannot pass. Skipped after any other error: a route that is wrong would be missing here.
fn fit_checks(top: &Section<'_>, references: &References, routes: &[RouteSpec], listeners: &[ListenerSpec]) {
    if !top.is_sound() {
        return;
    }
    let uses = Uses::of(routes, listeners);
    for (pool, kind, at) in &references.checks {
        if let Err(refusal) = uses.fit(&Target::One(Arc::clone(pool)), *kind) {
            top.refuse_at(*at, refusal);
        }
    }
}

fn daemon(table: &mut Section<'_>) -> DaemonSettings {
    let default = DaemonSettings::default();
    DaemonSettings {
        datapath: table.or("datapath", default.datapath, one_of),
        state_dir: table.or("state_dir", default.state_dir, path),
        control: table.or("control", default.control, |value| match path(value)? {
            path if path.as_os_str().len() <= MAX_SOCKET_PATH => Some(path),
            _ => value.expected(format_args!("a path of at most {MAX_SOCKET_PATH} bytes, as sockets have")),
        }),
        admin: table.or("admin", default.admin, |value| {
            match value.text("\"off\" or an address and a port")? {
                "off" => Some(None),
                _ => bind(value).map(Some),
            }
        }),
        admin_hosts: table.or(
            "admin_hosts",
            default.admin_hosts,
            list("host names such as [\"vps.tail1234.ts.net\"]", |value| {
                value.text_as("a host name such as \"vps.tail1234.ts.net\"", suffix)
            }),
        ),
        admin_token_file: table.or("admin_token_file", None, |value| path(value).map(Some)),
        access_log: table.or("access_log", default.access_log, access_log),
        access_log_empty: table.or("access_log_empty", default.access_log_empty, boolean),
        access_log_clients: table.or("access_log_clients", default.access_log_clients, one_of),
        drain_timeout: table.or("drain_timeout", default.drain_timeout, duration_or_zero),
    }
}

fn access_log(value: &Value<'_>) -> Option<AccessLogTarget> {
    const EXPECTED: &str = "\"stdout\", \"off\" or a path with a `/`";
    match value.text(EXPECTED)? {
        "stdout" => Some(AccessLogTarget::Stdout),
        "off" => Some(AccessLogTarget::Off),
        text if text.contains('/') => Some(AccessLogTarget::File(text.into())),
        _ => value.expected(EXPECTED),
    }
}

fn limits(table: &mut Section<'_>) -> Limits {
    let default = Limits::default();
    let idle = table.or("idle_timeout", default.idle_timeout.unwrap_or_default(), duration_or_zero);
    Limits {
        hello_timeout: table.or("hello_timeout", default.hello_timeout, duration),
        hello_bytes: table.or("hello_bytes", default.hello_bytes, integer(1..=MAX_HELLO)),
        hello_memory: table.or("hello_memory", default.hello_memory, integer(HELLO_MEMORY)),
        connections: table.or("connections", default.connections, integer(0..=MAX_CONNECTIONS)),
        connections_per_source: table.or("connections_per_source", default.connections_per_source, |value| {
            match value.get() {
                // A share of all.
                DeValue::String(text) if text == "auto" => Some(None),
                DeValue::Integer(_) => integer(0..=MAX_CONNECTIONS)(value).map(Some),
                _ => value.expected(format_args!("\"auto\" or a whole number from 0 to {MAX_CONNECTIONS}")),
            }
        }),
        connection_rate_per_source: table.or(
            "connection_rate_per_source",
            default.connection_rate_per_source,
            integer(0..=MAX_RATE),
        ),
        idle_timeout: (!idle.is_zero()).then_some(idle),
    }
}

fn resolver(table: &mut Section<'_>) -> ResolverSpec {
    let servers = list("name servers such as [\"100.100.100.100\"]", name_server);
    ResolverSpec {
        servers: table.or("servers", Vec::new(), &servers),
        suffixes: table
            .or("suffixes", Vec::new(), |value| {
                value.entries(r#"a table such as { "ts.net" = ["100.100.100.100"] }"#, suffix, |value| {
                    let servers = servers(value)?;
                    if servers.is_empty() {
                        value.expected("at least one name server")
                    } else {
                        Some(servers)
                    }
                })
            })
            .into_iter()
            .collect(),
        search: table.or("search", None, |value| {
            let domain = |value: &Value<'_>| value.text_as("a domain such as \"ts.net\"", suffix);
            list("domains such as [\"tail1234.ts.net\"]", domain)(value).map(Some)
        }),
    }
}

/// A port of a listener cannot also be a local port for connections to backends.
fn flow(table: &mut Section<'_>, listeners: &[ListenerSpec], daemon: &DaemonSettings) -> FlowSpec {
    let bound = listeners.iter().flat_map(|listener| &listener.bind).chain(&daemon.admin);
    let default = free_part(FlowSpec::default().ports, bound.map(SocketAddr::port), FEWEST_PORTS);
    let ports = table.or("ports", default, |value| {
        let ports = ports(value)?;
        let listens = |listener: &&ListenerSpec| listener.bind.iter().any(|at| ports.contains(&at.port()));
        let taken = match listeners.iter().find(listens) {
            Some(listener) => format!("the listener \"{}\"", listener.name),
            None if daemon.admin.is_some_and(|at| ports.contains(&at.port())) => "`admin`".to_owned(),
            None => return Some(ports),
        };
        value.refuse(
            Refusal::new(format!("{taken} has one of these ports"))
                .hint("flows need ports of their own: choose others, here or there"),
        )
    });
    FlowSpec { ports }
}

fn tunnel(table: &mut Section<'_>) -> TunnelSpec {
    let default = TunnelSpec::default();
    TunnelSpec { handshake: table.or("handshake_timeout", default.handshake, duration) }
}

fn shield(table: &mut Section<'_>) -> ShieldSpec {
    ShieldSpec {
        lists: table.or("lists", Vec::new(), list("paths", path)),
        syn_rate: table.or("syn_rate", 0, integer(0..=u32::MAX)),
    }
}

/// A name that nothing else of its kind has.
pub(super) fn unique(
    value: &Value<'_>,
    lines: &mut HashMap<Arc<str>, usize>,
    kind: &str,
) -> Option<Arc<str>> {
    let name = label(value)?;
    match lines.insert(name.clone(), value.line()) {
        Some(line) => {
            value.refuse(Refusal::new(format!("the {kind} on line {line} is called \"{name}\" already")))
        }
        None => Some(name),
    }
}

fn pool(
    table: &mut Section<'_>,
    references: &mut References,
    names: &mut HashMap<Arc<str>, usize>,
) -> Option<PoolSpec> {
    let default = PoolSpec::new("", Vec::new());
    let name = table.required("name", "\"caddy\"", |value| match unique(value, names, "pool")? {
        name if *name == *Target::REFUSE => value.refuse(
            Refusal::new("no pool can have this name")
                .hint("`to = \"refuse\"` in a [[route]] refuses clients; choose another name"),
        ),
        name => Some(name),
    });
    // Known even where the rest of the pool is wrong, so that routes to it are not complained of.
    references.pools.extend(name.clone());
    let mut lines = Ways::new();
    let proxy_protocol = table.or("proxy_protocol", default.proxy_protocol, one_of);
    let pool = PoolSpec {
        name: name.clone().unwrap_or_default(),
        balance: table.or("balance", default.balance, one_of),
        proxy_protocol,
        proxy_tlvs: table.or("proxy_tlvs", default.proxy_tlvs, proxy_tlvs(proxy_protocol, None)),
        proxy_align: table.or("proxy_align", default.proxy_align, integer(0..=u8::MAX)),
        connect_timeout: table.or("connect_timeout", default.connect_timeout, duration),
        warm: table.or("warm", default.warm, warm),
        connections: table.or("connections", default.connections, integer(0..=MAX_CONNECTIONS)),
        health: table.section("health", "[pool.health]", |table| health(table, name.as_ref(), references)),
        backends: table.sections("backend", "[[pool.backend]]", |table| backend(table, &mut lines)),
    };
    if table.lacks("backend") {
        return table.refuse(
            Refusal::new("a pool needs at least one backend")
                .hint("add below it [[pool.backend]] and to = \"100.64.0.2:443\""),
        );
    }
    if pool.is_on_unix_socket() {
        references.on_unix_sockets.extend(name.clone());
    }
    name.map(|_| pool)
}

/// The TLVs of a header of this version.
fn proxy_tlvs(version: ProxyProtocol, to: Option<&Target>) -> impl Fn(&Value<'_>) -> Option<ProxyTlvs> {
    move |value| {
        let kinds = list("TLVs such as [\"authority\", \"unique_id\"]", one_of::<ProxyTlv>)(value)?;
        let wanted = kinds.into_iter().collect();
        match References::proxy_tlvs(wanted, version, to) {
            Ok(()) => Some(wanted),
            Err(refusal) => value.refuse(refusal),
        }
    }
}

fn warm(value: &Value<'_>) -> Option<Warm> {
    const MOST: u32 = 1024;
    match value.get() {
        DeValue::String(text) if text == "auto" => Some(Warm::Auto),
        DeValue::Integer(_) => integer(0..=MOST)(value).map(Warm::Count),
        _ => value.expected(format_args!("\"auto\" or a whole number from 0 to {MOST}")),
    }
}

fn health(table: &mut Section<'_>, pool: Option<&Arc<str>>, references: &mut References) -> HealthSpec {
    const MOST: u32 = 1000;
    let default = HealthSpec::default();
    HealthSpec {
        kind: table.or("kind", default.kind, |value| {
            let kind = spoken_name::<HealthKind>(value)?;
            references.checks.extend(pool.map(|pool| (Arc::clone(pool), kind, value.at())));
            Some(kind)
        }),
        interval: table.or("interval", default.interval, duration),
        timeout: table.or("timeout", default.timeout, duration),
        rise: table.or("rise", default.rise, integer(1..=MOST)),
        fall: table.or("fall", default.fall, integer(1..=MOST)),
    }
}

/// Where the backends of a pool are, and on which line each is.
type Ways = HashMap<(BackendAddress, Option<Arc<str>>), usize>;

fn backend(table: &mut Section<'_>, lines: &mut Ways) -> Option<BackendSpec> {
    const HEAVIEST: u32 = 65535;
    // Asked for first: the same address by two tunnels is two backends.
    let device = table.optional("device", device);
    let to = table.required("to", "\"100.64.0.2:443\"", |value| {
        let address = value.text_as("an address or a name", backend_address)?;
        if address.has_label() {
            return value.refuse(label_out_of_place());
        }
        if let (Some(device), Some(path)) = (&device, address.unix()) {
            return value.refuse(
                Refusal::new(format!("{path} is on this machine, and no device leads there"))
                    .hint(format!("leave device = \"{device}\" out")),
            );
        }
        distinct(address, device.as_ref(), value, lines)
    });
    let weight = table.or("weight", 1, integer(0..=HEAVIEST));
    let backup = table.or("backup", false, boolean);
    Some(BackendSpec { to: to?, weight, backup, device })
}

/// An address that its pool does not have yet by this device.
fn distinct(
    address: BackendAddress,
    device: Option<&Arc<str>>,
    value: &Value<'_>,
    lines: &mut Ways,
) -> Option<BackendAddress> {
    match lines.insert((address.clone(), device.cloned()), value.line()) {
        Some(line) => value.refuse(
            Refusal::new(format!("{address} is in this pool already, on line {line}"))
                .hint("a larger share is a higher `weight` in its [[pool.backend]]"),
        ),
        None => Some(address),
    }
}

/// All routes, one for each host; `references` where what they name must be there.
pub(super) fn routes(top: &mut Section<'_>, references: Option<&References>) -> Vec<RouteSpec> {
    let mut seen = Seen::default();
    let routes = top.sections("route", "[[route]]", |table| {
        let (hosts, mut route) = route(table, references)?;
        if route.connections != 0 && hosts.len() > 1 {
            route.shares_limit_with = hosts.first().map(|host| host.pattern.clone());
        }
        let first = seen.is_empty();
        let mut routes = Vec::with_capacity(hosts.len());
        for Host { pattern, place } in hosts {
            let conditions = Conditions { host: pattern, ..route.conditions.clone() };
            if seen.is_new(table, &conditions, place) {
                routes.push(RouteSpec { conditions, ..route.clone() });
            }
        }
        if first && references.is_some_and(|references| !references.carry_routes()) {
            return table.refuse(Refusal::new("there is no tls or http listener for this route").hint(
                "a [[listener]] of your own replaces the default ones: add one with protocol = \"tls\"",
            ));
        }
        Some(routes)
    });
    routes.into_iter().flatten().collect()
}

/// A route and the hosts that it is for; the host in its conditions is one of them.
fn route(table: &mut Section<'_>, references: Option<&References>) -> Option<(Vec<Host>, RouteSpec)> {
    let protocols =
        table.or("protocol", Vec::new(), list("protocols such as [\"ssh\"]", spoken_name::<ClientProtocol>));
    let names_no_host = !protocols.is_empty() && !protocols.iter().any(|protocol| protocol.names_a_host());
    let hosts = if names_no_host {
        table.or("host", Some(Host::any()), |value| {
            let hosts = hosts(value)?;
            if hosts.iter().all(|host| host.pattern == HostPattern::Any) {
                return Some(Some(hosts));
            }
            value.refuse(
                Refusal::new("this route can never match: a client of these protocols names no host")
                    .hint("write host = \"*\", or leave it out"),
            )
        })
    } else {
        table.required("host", "\"cloud.example.com\"", hosts)
    };
    let to = table.required("to", "\"100.64.0.2\"", |value| target(value, references));
    let listeners = table.or(
        "listener",
        Vec::new(),
        list("listener names such as [\"https\"]", |value| match references {
            Some(references) => value.text_as("the name of a listener", |text| references.listener(text)),
            None => label(value),
        }),
    );
    let alpn = table.or("alpn", Vec::new(), |value| {
        let alpn = list("ALPN protocol names such as [\"acme-tls/1\"]", alpn)(value)?;
        let asked = references.filter(|_| !alpn.is_empty());
        match asked.map(|references| references.alpn(&listeners, &protocols)) {
            Some(Err(refusal)) => value.refuse(refusal),
            _ => Some(alpn),
        }
    });
    let from = table.or("from", Vec::new(), prefixes);
    let access = access(table);
    let redirect = table.or("redirect", Redirect::Off, one_of);
    let connections = table.or("connections", 0, |value| {
        let connections = integer(0..=MAX_CONNECTIONS)(value)?;
        match to.as_ref().map(|to| References::connections(connections, to)) {
            Some(Err(refusal)) => value.refuse(refusal),
            _ => Some(connections),
        }
    });
    let proxy_protocol = table.or("proxy_protocol", ProxyProtocol::Off, |value| {
        let wanted = one_of(value)?;
        match references.zip(to.as_ref()).map(|(references, to)| references.proxy_protocol(wanted, to)) {
            Some(Err(refusal)) => value.refuse(refusal),
            _ => Some(wanted),
        }
    });
    let proxy_tlvs = table.or("proxy_tlvs", ProxyTlvs::default(), proxy_tlvs(proxy_protocol, to.as_ref()));
    let datapath = table.or("datapath", Choice::Auto, |value| {
        let forced = one_of(value)?;
        match references.zip(to.as_ref()).map(|(references, to)| references.datapath(forced, to)) {
            Some(Err(refusal)) => value.refuse(refusal),
            _ => Some(forced),
        }
    });
    let idle_timeout = table.optional("idle_timeout", duration_or_zero);
    let connect_timeout = table.optional("connect_timeout", |value| {
        let time = duration(value)?;
        match references.zip(to.as_ref()).map(|(references, to)| references.connect_timeout(to)) {
            Some(Err(refusal)) => value.refuse(refusal),
            _ => Some(time),
        }
    });
    if let Some(Err(refusal)) = references.map(|references| references.protocols(&listeners, &protocols)) {
        return table.refuse(refusal);
    }
    let hosts = hosts?;
    let host = hosts.first()?.pattern.clone();
    let conditions = Conditions { host, listeners, protocols, alpn, from }.normalised();
    let to = to?;
    let judge = |references: &References| {
        References::label(&to, hosts.iter().map(|host| &host.pattern))?;
        References::access(&access, &to)?;
        references.redirect(redirect, &conditions, &to)
    };
    if let Some(Err(refusal)) = references.map(judge) {
        return table.refuse(refusal);
    }
    let route = RouteSpec {
        conditions,
        to,
        access,
        redirect,
        connections,
        shares_limit_with: None,
        proxy_protocol,
        proxy_tlvs,
        datapath,
        idle_timeout,
        connect_timeout,
    };
    Some((hosts, route))
}

/// Which sources may use a listener or a route.
pub(super) fn access(table: &mut Section<'_>) -> Access {
    let allow = table.or("allow", Vec::new(), prefixes);
    let deny = table.or("deny", Vec::new(), prefixes);
    Access { allow, deny }.normalised()
}

/// A pool, an address, a list of addresses, or `refuse`.
pub(super) fn target(value: &Value<'_>, references: Option<&References>) -> Option<Target> {
    const EXPECTED: &str = "a pool, an address or a list of addresses";
    if value.get().is_str() {
        return value.text_as(EXPECTED, |text| match references {
            Some(references) => references.target(text),
            None if text.is_empty() => {
                Err(Refusal::new(format!("expected {EXPECTED}, got {}", quoted(text))))
            }
            None => Ok(Target::from_text(text)),
        });
    }
    let mut lines = Ways::new();
    let addresses = value.items(EXPECTED, |item| {
        let address = item.text_as("an address", |text| match references {
            Some(references) => references.member(text),
            None => backend_address(text),
        })?;
        distinct(address, None, item, &mut lines)
    })?;
    if addresses.is_empty() { value.expected("at least one address") } else { Some(Target::Many(addresses)) }
}
