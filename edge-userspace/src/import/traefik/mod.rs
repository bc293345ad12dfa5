//! Traefik's TCP routers with `tls.passthrough`: from dynamic files (YAML, TOML), and from the labels and commands of
//! compose files. Entry points come from the static configuration; several files are read as one configuration.

mod rule;
mod tree;

use std::collections::BTreeMap;

use self::tree::{Node, Value};
use super::{
    Failure, Source,
    model::{Bind, Front, Model, Place, Pool, Rule, To, address, net},
};
use crate::spec::{BackendSpec, HostPattern, Protocol, ProxyProtocol};

const ENDS_TLS: &str = "TLS ends in Traefik here, and edge passes TLS on unopened: serve the certificate at home, then add the route";

pub(super) fn read(sources: &[Source], model: &mut Model) -> Result<(), Failure> {
    let mut trees = Vec::new();
    for source in sources {
        if looks_like_toml(&source.text) {
            trees.push(tree::toml(&source.name, &source.text)?);
        } else {
            trees.extend(tree::yaml(&source.name, &source.text)?);
        }
    }
    let mut more = Vec::new();
    for node in &trees {
        for (name, service) in node.get("services").map_or(&[][..], Node::entries) {
            more.extend(compose(name, service, model));
        }
    }
    trees.extend(more);
    let Some(first) = trees.first().cloned() else { return Ok(()) };
    let whole = trees.iter().skip(1).fold(first, |whole, other| whole.merged(other, 0));
    translate(&whole, model);
    Ok(())
}

pub(super) fn looks_like_toml(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.next().is_some_and(|line| {
        line.starts_with('[') && line.contains(']') && !line.contains(',')
            || line.split_once('=').is_some_and(|(key, _)| !key.contains(':'))
    })
}

/// The words of a compose service about Traefik: the flags of its command, and its labels.
fn compose(name: &str, service: &Node, model: &mut Model) -> Vec<Node> {
    let mut found = Vec::new();
    let split = |item: &Node, separator: char| {
        let (key, value) = item.text()?.split_once(separator)?;
        let value = item.replaced(value.trim());
        Some((key.trim().to_owned(), value))
    };
    let commands = service.get("command").into_iter().flat_map(Node::items);
    let flags: Vec<_> = commands
        .filter_map(|item| split(item, '='))
        .filter_map(|(key, value)| Some((key.strip_prefix("--")?.to_owned(), value)))
        .filter(|(key, _)| key.to_ascii_lowercase().starts_with("entrypoints."))
        .collect();
    if !flags.is_empty() {
        found.push(tree::of_labels(&flags, &service.place));
    }
    for labels in [service.get("labels"), service.path(&["deploy", "labels"])].into_iter().flatten() {
        let pairs: Vec<(String, Node)> = match &labels.value {
            Value::Map(entries) => (**entries).clone(),
            _ => labels.items().iter().filter_map(|item| split(item, '=')).collect(),
        };
        let pairs: Vec<(String, Node)> = pairs
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("traefik.")?.to_owned(), value)))
            .collect();
        if pairs.is_empty() {
            continue;
        }
        let tree = tree::of_labels(&pairs, &labels.place);
        found.push(with_servers(name, service, &tree, model));
    }
    found
}

/// The labels of a container name a port; the address is the container's.
fn with_servers(name: &str, service: &Node, tree: &Node, model: &mut Model) -> Node {
    let services = tree.path(&["tcp", "services"]);
    let mut lines = Vec::new();
    for (id, node) in services.map_or(&[][..], Node::entries) {
        let Some(port) = node.path(&["loadbalancer", "server", "port"]) else { continue };
        let Some(number) = port.text() else { continue };
        let to = published(service, number).map(|published| format!("127.0.0.1:{published}"));
        let to = to.unwrap_or_else(|| {
            let why = "the container's address, which only Docker knows: correct `to` (a published port, or home's address)";
            model.lose(&port.place, format!("{name}:{number}"), why);
            format!("{name}:{number}")
        });
        let value = port.replaced(&to);
        lines.push((format!("tcp.services.{id}.loadbalancer.server.address"), value));
    }
    // A router without a service has the only one there is.
    let ids: Vec<&String> = services.map_or(&[][..], Node::entries).iter().map(|(id, _)| id).collect();
    for (id, router) in tree.path(&["tcp", "routers"]).map_or(&[][..], Node::entries) {
        if let ([only], None) = (&*ids, router.get("service")) {
            let value = router.replaced(only);
            lines.push((format!("tcp.routers.{id}.service"), value));
        }
    }
    tree.merged(&tree::of_labels(&lines, &tree.place), 0)
}

/// The port of the host that leads to a container's port.
fn published(service: &Node, port: &str) -> Option<u16> {
    let ports = service.get("ports")?.items().iter();
    ports.filter_map(Node::text).find_map(|text| {
        let text = text.split('/').next()?;
        let (before, target) = text.rsplit_once(':')?;
        (target == port).then(|| before.rsplit(':').next()?.parse().ok())?
    })
}

fn translate(whole: &Node, model: &mut Model) {
    let entry_points = entry_points(whole, model);
    for (id, service) in whole.path(&["tcp", "services"]).map_or(&[][..], Node::entries) {
        let pool = pool(id, service, model);
        model.pools.push(pool);
    }
    let mut fronts: BTreeMap<String, (Vec<Rule>, Vec<Rule>, Place)> = BTreeMap::new();
    for (id, router) in whole.path(&["tcp", "routers"]).map_or(&[][..], Node::entries) {
        let what = format!("tcp router {id}");
        let Some(text) = router.get("rule").and_then(Node::text) else {
            model.lose(&router.place, what, "it has no rule");
            continue;
        };
        let place = router.get("rule").map_or(&router.place, |rule| &rule.place);
        let tls = router.get("tls").filter(|tls| tls.text().is_none() || tls.is_true());
        if tls.is_some_and(|tls| !tls.get("passthrough").is_some_and(Node::is_true)) {
            model.lose(place, what, ENDS_TLS);
            continue;
        }
        if let Some(middlewares) = router.get("middlewares") {
            model.lose(
                &middlewares.place,
                middlewares.texts().join(", "),
                "edge has no middlewares: see `allow`, `deny` and [limits]",
            );
        }
        let Some(service) = router.get("service").and_then(Node::text) else {
            model.lose(place, what, "it has no service");
            continue;
        };
        let alternatives = match rule::read(text) {
            Ok(alternatives) => alternatives,
            Err(why) => {
                model.lose(place, text, why);
                continue;
            }
        };
        let mut names = router.get("entrypoints").map(Node::texts).unwrap_or_default();
        if names.is_empty() {
            names = match tls {
                Some(_) => entry_points
                    .iter()
                    .filter(|(_, at)| at.bind.first != 80)
                    .map(|(name, _)| name.clone())
                    .collect(),
                None => entry_points.keys().cloned().collect(),
            };
            if names.is_empty() {
                names.push("websecure".to_owned());
            }
        }
        for name in names {
            let (encrypted, plain, _) =
                fronts.entry(name).or_insert_with(|| (Vec::new(), Vec::new(), place.clone()));
            let to = To::Pool(service.split('@').next().unwrap_or(service).to_owned());
            let rules = if tls.is_some() { encrypted } else { plain };
            rules.extend(alternatives.iter().map(|when| Rule {
                when: when.clone(),
                to: to.clone(),
                place: place.clone(),
            }));
        }
    }
    for (name, (encrypted, plain, place)) in fronts {
        front(&name, encrypted, plain, &place, &entry_points, model);
    }
    untranslated(whole, model);
    redirections(&entry_points, model);
}

/// Where an entry point listens.
struct EntryPoint {
    bind: Bind,
    place: Place,
    trusted: Vec<ipnet::IpNet>,
    redirects: bool,
}

fn entry_points(whole: &Node, model: &mut Model) -> BTreeMap<String, EntryPoint> {
    let mut found = BTreeMap::new();
    for (name, node) in whole.get("entrypoints").map_or(&[][..], Node::entries) {
        let Some(address) = node.get("address") else { continue };
        let text = address.text().unwrap_or_default();
        if text.ends_with("/udp") {
            model.lose(&address.place, text, "edge carries TCP");
            continue;
        }
        let Some(bind) = Bind::read(text.trim_end_matches("/tcp")) else {
            model.lose(&address.place, text, "edge listens on TCP addresses with a port");
            continue;
        };
        let trusted = node.path(&["proxyprotocol", "trustedips"]).map(Node::texts).unwrap_or_default();
        let mut trusted: Vec<_> = trusted.iter().filter_map(|text| net(text)).collect();
        if node.path(&["proxyprotocol", "insecure"]).is_some_and(Node::is_true) {
            trusted = ["0.0.0.0/0", "::/0"].iter().filter_map(|text| net(text)).collect();
        }
        let redirects = node.path(&["http", "redirections", "entrypoint", "to"]).is_some();
        let place = address.place.clone();
        found.insert(name.to_ascii_lowercase(), EntryPoint { bind, place, trusted, redirects });
    }
    found
}

fn front(
    name: &str,
    encrypted: Vec<Rule>,
    plain: Vec<Rule>,
    place: &Place,
    entry_points: &BTreeMap<String, EntryPoint>,
    model: &mut Model,
) {
    let known = entry_points.get(&name.to_ascii_lowercase());
    let guessed = match name.to_ascii_lowercase().as_str() {
        "websecure" | "https" | "web-secure" => Some("443"),
        "web" | "http" => Some("80"),
        _ => None,
    };
    let Some(bind) = known.map(|known| known.bind.clone()).or_else(|| Bind::read(guessed?)) else {
        let why = "its address is in Traefik's static configuration: give that file, too";
        return model.lose(place, format!("entry point {name}"), why);
    };
    let protocol = if encrypted.is_empty() { Protocol::Tcp } else { Protocol::Tls };
    let mut front = Front::new(name, known.map_or(place, |known| &known.place), protocol);
    front.binds.push(bind);
    front.accept_proxy = known.map(|known| known.trusted.clone()).unwrap_or_default();
    if protocol == Protocol::Tcp {
        front.rules = plain;
    } else {
        for rule in &plain {
            let why = "beside TLS, edge tells protocols by their first bytes: see `protocols` of a listener";
            model.lose(&rule.place, "a router without tls", why);
        }
        front.rules = encrypted;
    }
    model.fronts.push(front);
}

/// `redirections` of an entry point.
fn redirections(entry_points: &BTreeMap<String, EntryPoint>, model: &mut Model) {
    for (name, at) in entry_points.iter().filter(|(_, at)| at.redirects) {
        let mut front = Front::new(name, &at.place, Protocol::Http);
        front.binds.push(at.bind.clone());
        front.redirect = vec![HostPattern::Any];
        model.fronts.push(front);
    }
}

fn pool(id: &str, service: &Node, model: &mut Model) -> Pool {
    let mut pool = Pool::new(id, &service.place);
    if let Some(weighted) = service.get("weighted") {
        let why = "edge weighs servers, not services: list all of them in one pool";
        model.lose(&weighted.place, format!("{id}: weighted"), why);
        return pool;
    }
    let Some(balancer) = service.get("loadbalancer") else { return pool };
    if let Some(header) = balancer.get("proxyprotocol") {
        let version = header.get("version").and_then(Node::text).unwrap_or("2");
        pool.proxy_protocol = if version == "1" { ProxyProtocol::V1 } else { ProxyProtocol::V2 };
    }
    let listed = balancer.get("servers").map_or(&[][..], Node::items).iter();
    let addresses = listed.chain(balancer.get("server")).filter_map(|server| {
        if server.get("tls").is_some_and(Node::is_true) {
            let why = "Traefik opens TLS to this server; edge passes on what the client sends";
            model.lose(&server.place, id, why);
            return None;
        }
        server.get("address")
    });
    let addresses: Vec<&Node> = addresses.collect();
    for node in addresses {
        let text = node.text().unwrap_or_default();
        match address(text) {
            Some(to) if pool.backends.iter().all(|known| known.to != to) => {
                pool.backends.push(BackendSpec::new(to));
            }
            Some(_) => {}
            None => model.lose(&node.place, text, "no address that edge could connect to"),
        }
    }
    if let Some(transport) = balancer.get("serverstransport") {
        model.lose(&transport.place, transport.text().unwrap_or_default(), "edge opens no TLS to servers");
    }
    pool
}

fn untranslated(whole: &Node, model: &mut Model) {
    for (id, router) in whole.path(&["http", "routers"]).map_or(&[][..], Node::entries) {
        let rule = router.get("rule").and_then(Node::text).unwrap_or_default();
        let why = match router.get("tls") {
            Some(_) => ENDS_TLS,
            None => "edge does not route requests: let home do it, and add the host as a route",
        };
        model.lose(&router.place, format!("http router {id}: {rule}"), why);
    }
    for (id, router) in whole.path(&["udp", "routers"]).map_or(&[][..], Node::entries) {
        model.lose(&router.place, format!("udp router {id}"), "edge carries TCP");
    }
    for (key, provider) in whole.get("providers").map_or(&[][..], Node::entries) {
        if key.eq_ignore_ascii_case("file") {
            model.lose(&provider.place, "providers.file", "give the file that it names, too");
        }
    }
}
