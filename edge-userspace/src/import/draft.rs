//! A configuration in the making, and its text.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{
    assemble::Target,
    model::{Bind, Front, Pool},
};
use crate::spec::{
    Access, BackendSpec, Balance, ClientProtocol, HostPattern, Protocol, ProxyProtocol, Redirect,
};

#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) connections: usize,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) listeners: Vec<ListenerDraft>,
    /// By their names in the text.
    pub(super) pools: Vec<(String, Pool)>,
    pub(super) routes: Vec<RouteDraft>,
}

#[derive(Debug)]
pub(super) struct ListenerDraft {
    pub(super) name: String,
    binds: Vec<Bind>,
    protocol: Protocol,
    pub(super) protocols: Vec<ClientProtocol>,
    accept_proxy: Vec<IpNet>,
    access: Access,
    hello_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) to: Option<Vec<String>>,
    place: String,
}

impl ListenerDraft {
    pub(super) fn new(name: String, front: &Front) -> Self {
        Self {
            name,
            binds: front.binds.clone(),
            protocol: front.protocol,
            protocols: Vec::new(),
            accept_proxy: front.accept_proxy.clone(),
            access: front.access.clone().normalised(),
            hello_timeout: front.hello_timeout.filter(|time| *time != Duration::from_secs(5)),
            idle_timeout: front.idle_timeout,
            connect_timeout: None,
            to: None,
            place: front.place.to_string(),
        }
    }

    /// Whether it is one of the two that there are without any `[[listener]]`.
    fn is_default(&self) -> bool {
        let at = |port| *self.binds == [Bind { host: "[::]".to_owned(), first: port, last: port }];
        let plain = self.protocols.is_empty()
            && self.accept_proxy.is_empty()
            && self.access.is_open()
            && self.hello_timeout.is_none()
            && self.idle_timeout.is_none();
        plain
            && match self.protocol {
                Protocol::Tls => self.name == "https" && at(443),
                Protocol::Http => self.name == "http" && at(80),
                Protocol::Tcp => false,
            }
    }
}

#[derive(Clone, Debug)]
pub(super) struct RouteDraft {
    pub(super) hosts: Vec<HostPattern>,
    /// By name; all that read a host where it is empty.
    pub(super) listeners: Vec<String>,
    pub(super) alpn: Vec<Arc<str>>,
    pub(super) from: Vec<IpNet>,
    pub(super) protocols: Vec<ClientProtocol>,
    pub(super) target: Target,
    pub(super) redirect: Redirect,
    pub(super) place: String,
    /// Whether requests in clear text for its hosts are to be redirected.
    pub(super) merges_with_redirect: bool,
}

impl RouteDraft {
    pub(super) fn takes_redirect(&self) -> bool {
        let web = self.protocols.is_empty() && self.alpn.is_empty();
        self.merges_with_redirect && web && self.target.to != ["refuse"]
    }

    fn joins(&self, other: &Self) -> bool {
        self.alpn == other.alpn
            && self.from == other.from
            && self.protocols == other.protocols
            && self.target == other.target
            && self.redirect == other.redirect
            && self.merges_with_redirect == other.merges_with_redirect
    }
}

impl Draft {
    /// Adds a route, or its hosts to one that is the same otherwise.
    pub(super) fn add(&mut self, route: RouteDraft) {
        // A long list of hosts is one route: the last ones are those that it may belong to.
        const NEAR: usize = 64;
        let near = self.routes.iter_mut().rev().take(NEAR);
        let mut near = near.filter(|known| known.listeners == route.listeners && known.joins(&route));
        let any = route.hosts.contains(&HostPattern::Any);
        match near.next() {
            Some(known) if !any && !known.hosts.contains(&HostPattern::Any) => {
                known.hosts.extend(route.hosts);
            }
            _ => self.routes.push(route),
        }
    }

    /// Redirects requests in clear text that come to a listener, for the hosts that `covers` names. Those hosts.
    pub(super) fn redirect(
        &mut self,
        listener: &str,
        covers: impl Fn(&HostPattern) -> bool,
    ) -> Vec<HostPattern> {
        let mut found = Vec::new();
        for mut route in std::mem::take(&mut self.routes) {
            let takes = route.takes_redirect();
            let (redirected, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut route.hosts).into_iter().partition(|host| takes && covers(host));
            if !rest.is_empty() {
                self.routes.push(RouteDraft { hosts: rest, ..route.clone() });
            }
            if !redirected.is_empty() {
                found.extend(redirected.iter().cloned());
                route.listeners.push(listener.to_owned());
                self.routes.push(RouteDraft { hosts: redirected, redirect: Redirect::Https, ..route });
            }
        }
        found
    }

    /// A pool for an address that needs more said than an address can.
    pub(super) fn pool_for(&mut self, target: &Target, name: &str) -> Vec<String> {
        let Some(backend) = target.to.first().and_then(|to| to.parse().ok()).map(BackendSpec::new) else {
            return target.to.clone();
        };
        let mut name = name.to_owned();
        while self.pools.iter().any(|(known, _)| *known == name) {
            name.push_str("-pool");
        }
        let place = super::model::Place::new(&Arc::from(""), 0);
        let mut pool = Pool::new(&name, &place);
        pool.proxy_protocol = target.proxy_protocol;
        pool.connect_timeout = target.connect_timeout;
        pool.backends.push(backend);
        self.pools.push((name.clone(), pool));
        vec![name]
    }

    /// Joins routes that differ in their listeners only, and leaves out what edge does by itself.
    pub(super) fn tidy(&mut self) {
        let mut joined: Vec<RouteDraft> = Vec::new();
        let mut at = std::collections::HashMap::<String, usize>::new();
        for mut route in std::mem::take(&mut self.routes) {
            route.merges_with_redirect = false;
            let mut hosts: Vec<_> = route.hosts.iter().map(ToString::to_string).collect();
            hosts.sort_unstable();
            match at.get(&hosts.join(" ")) {
                Some(&known) if joined[known].joins(&route) => {
                    joined[known].listeners.extend(route.listeners);
                }
                _ => {
                    at.insert(hosts.join(" "), joined.len());
                    joined.push(route);
                }
            }
        }
        let all: BTreeSet<&str> = self
            .listeners
            .iter()
            .filter(|listener| listener.to.is_none())
            .map(|listener| &*listener.name)
            .collect();
        for route in &mut joined {
            let here: BTreeSet<&str> = route.listeners.iter().map(|name| &**name).collect();
            if here == all {
                route.listeners = Vec::new();
            }
        }
        self.routes = joined;
        let by_default = self.listeners.iter().all(ListenerDraft::is_default) && self.listeners.len() == 2;
        if by_default {
            self.listeners.clear();
        }
    }

    /// Whether there is anything for a client.
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.listeners.iter().all(|listener| listener.to.is_none())
    }

    /// The text of the file.
    pub(super) fn text(&self, heading: &str) -> String {
        let mut text = String::new();
        for line in heading.lines() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# {line}");
        }
        let mut limits = Table::new("[limits]", None);
        limits.number("connections", self.connections);
        limits.duration("idle_timeout", self.idle_timeout);
        limits.write_unless_empty(&mut text);
        for listener in &self.listeners {
            listener.write(&mut text);
        }
        for (name, pool) in &self.pools {
            write_pool(name, pool, &mut text);
        }
        for route in &self.routes {
            route.write(&mut text);
        }
        text
    }
}

impl ListenerDraft {
    fn write(&self, text: &mut String) {
        let mut table = Table::new("[[listener]]", Some(&self.place));
        table.text("name", &self.name);
        table.list("bind", &self.binds);
        if self.protocols.is_empty() {
            table.text("protocol", protocol(self.protocol));
        } else {
            table.list("protocols", &self.protocols);
        }
        if let Some(to) = &self.to {
            table.one_or_many("to", to);
        }
        table.list("accept_proxy", &self.accept_proxy);
        table.access(&self.access);
        table.duration("hello_timeout", self.hello_timeout);
        table.duration("idle_timeout", self.idle_timeout);
        table.duration("connect_timeout", self.connect_timeout);
        table.write(text);
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tls => "tls",
        Protocol::Http => "http",
        Protocol::Tcp => "tcp",
    }
}

fn write_pool(name: &str, pool: &Pool, text: &mut String) {
    let place = pool.place.to_string();
    let mut table = Table::new("[[pool]]", (pool.place.line != 0).then_some(&*place));
    table.text("name", name);
    let balance = match pool.balance {
        Balance::RoundRobin => None,
        Balance::LeastConnections => Some("least-connections"),
        Balance::Random => Some("random"),
        Balance::SourceHash => Some("source-hash"),
    };
    balance.inspect(|balance| table.text("balance", balance));
    table.proxy_protocol(pool.proxy_protocol);
    let tlvs = pool.proxy_tlvs.to_string();
    table.list("proxy_tlvs", &tlvs.split(", ").filter(|tlv| !tlv.is_empty()).collect::<Vec<_>>());
    table.duration("connect_timeout", pool.connect_timeout);
    table.number("connections", pool.connections);
    table.write(text);
    for backend in &pool.backends {
        let mut table = Table::new("[[pool.backend]]", None);
        table.text("to", &backend.to.to_string());
        if backend.weight != 1 {
            table.line("weight", &backend.weight.to_string());
        }
        if backend.backup {
            table.line("backup", "true");
        }
        table.write(text);
    }
}

impl RouteDraft {
    fn write(&self, text: &mut String) {
        let mut table = Table::new("[[route]]", Some(&self.place));
        let nameless =
            !self.protocols.is_empty() && !self.protocols.iter().any(|protocol| protocol.names_a_host());
        if !nameless {
            table.one_or_many("host", &written_hosts(&self.hosts));
        }
        table.list("protocol", &self.protocols);
        table.one_or_many("to", &self.target.to);
        table.list("listener", &self.listeners);
        table.list("alpn", &self.alpn);
        table.list("from", &self.from);
        if self.redirect == Redirect::Https {
            table.text("redirect", "https");
        }
        table.proxy_protocol(self.target.proxy_protocol);
        table.duration("connect_timeout", self.target.connect_timeout);
        table.write(text);
    }
}

/// Hosts as people write them: `.example.com` for the name and all below it.
fn written_hosts(hosts: &[HostPattern]) -> Vec<String> {
    let set: std::collections::HashSet<String> = hosts.iter().map(ToString::to_string).collect();
    let short = |host: &HostPattern| match host {
        HostPattern::Exact(name) if set.contains(&format!("*.{name}")) => Some(format!(".{name}")),
        HostPattern::Below(name) if set.contains(name.as_str()) => None,
        host => Some(host.to_string()),
    };
    hosts.iter().filter_map(short).collect()
}

/// A table of the text; keys without a value are left out.
struct Table<'t> {
    title: &'static str,
    comment: Option<&'t str>,
    lines: Vec<String>,
}

impl<'t> Table<'t> {
    fn new(title: &'static str, comment: Option<&'t str>) -> Self {
        Self { title, comment, lines: Vec::new() }
    }

    fn line(&mut self, key: &str, value: &str) {
        self.lines.push(format!("{key} = {value}"));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.line(key, &quoted(value));
    }

    fn list(&mut self, key: &str, values: &[impl ToString]) {
        let values: Vec<_> = values.iter().map(|value| quoted(&value.to_string())).collect();
        let one_line = values.join(", ");
        match values.len() {
            0 => {}
            _ if one_line.len() <= 100 => self.line(key, &format!("[{one_line}]")),
            _ => self.line(key, &format!("[\n    {},\n]", values.join(",\n    "))),
        }
    }

    fn one_or_many(&mut self, key: &str, values: &[String]) {
        match values {
            [one] => self.text(key, one),
            many => self.list(key, many),
        }
    }

    fn number(&mut self, key: &str, value: usize) {
        if value != 0 {
            self.line(key, &value.to_string());
        }
    }

    fn duration(&mut self, key: &str, value: Option<Duration>) {
        match value {
            None => {}
            Some(Duration::ZERO) => self.line(key, "0"),
            Some(time) => self.text(key, &humantime::format_duration(time).to_string()),
        }
    }

    fn proxy_protocol(&mut self, version: ProxyProtocol) {
        match version {
            ProxyProtocol::Off => {}
            ProxyProtocol::V1 => self.text("proxy_protocol", "v1"),
            ProxyProtocol::V2 => self.text("proxy_protocol", "v2"),
        }
    }

    fn access(&mut self, access: &Access) {
        self.list("allow", &access.allow);
        self.list("deny", &access.deny);
    }

    fn write_unless_empty(self, text: &mut String) {
        if !self.lines.is_empty() {
            self.write(text);
        }
    }

    fn write(self, text: &mut String) {
        let comment = self.comment.map(|comment| format!(" # {}", comment.replace(char::is_control, "?")));
        let _ = write!(text, "\n{}{}\n{}\n", self.title, comment.unwrap_or_default(), self.lines.join("\n"));
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
