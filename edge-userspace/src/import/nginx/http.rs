//! `http` servers without TLS: those that redirect to https, and those that pass a whole host on.

use std::collections::HashMap;

use super::{lex::Directive, target, upstream};
use crate::{
    import::{
        model::{Bind, Front, Model, Pool, Rule, To, When},
        pattern,
    },
    spec::{HostPattern, Protocol, ProxyProtocol},
};

const ENDS_TLS: &str =
    "TLS ends here, and edge passes TLS on unopened: serve the certificate at home, then add the route";

pub(super) fn read(block: &[Directive], model: &mut Model) {
    // Upstreams of `http` and of `stream` may share names.
    let mut pools: HashMap<String, Pool> = HashMap::new();
    for directive in block {
        if let ("upstream", Some(lines)) = (&*directive.words[0], &directive.block) {
            let mut pool = upstream(directive, lines, model);
            let name = pool.name.clone();
            if model.pools.iter().any(|known| known.name == pool.name) {
                pool.name.push_str("-http");
            }
            pools.insert(name, pool);
        }
    }
    for directive in block.iter().filter(|directive| directive.words[0] == "server") {
        if let Some(lines) = &directive.block {
            server(directive, lines, &pools, model);
        }
    }
}

fn server(directive: &Directive, lines: &[Directive], pools: &HashMap<String, Pool>, model: &mut Model) {
    let mut front = Front::new("http", &directive.place, Protocol::Http);
    let (mut ends_tls, mut default) = (false, false);
    let mut hosts: Vec<HostPattern> = Vec::new();
    let mut names = Vec::new();
    for line in lines {
        match line.words()[..] {
            ["listen", address, ref flags @ ..] => {
                ends_tls |= flags.contains(&"ssl") || flags.contains(&"quic");
                default |= flags.contains(&"default_server");
                front.binds.extend(Bind::read(address));
            }
            ["server_name", ref given @ ..] => {
                for name in given {
                    names.push((*name).to_owned());
                    match *name {
                        "_" | "" => default = true,
                        _ => match name.strip_prefix('~') {
                            Some(expression) => {
                                hosts.extend(pattern::hosts(expression, true).unwrap_or_default());
                            }
                            None => hosts.extend(HostPattern::several(name).unwrap_or_default()),
                        },
                    }
                }
            }
            _ => {}
        }
    }
    let what = format!("server {}", names.join(" "));
    // A listener of its own on this machine only is no edge.
    let is_local = |bind: &Bind| bind.host == "127.0.0.1" || bind.host == "[::1]";
    if ends_tls {
        return model.lose(&directive.place, what, ENDS_TLS);
    }
    if !front.binds.is_empty() && front.binds.iter().all(is_local) {
        return model.lose(&directive.place, what, "it serves this machine only");
    }
    if front.binds.is_empty() {
        front.binds.extend(Bind::read("80"));
    }
    front.binds.sort_unstable();
    front.binds.dedup();
    if let Some(redirect) = redirect(lines) {
        front.place = redirect.place.clone();
        front.redirect = if default || hosts.is_empty() { vec![HostPattern::Any] } else { hosts };
        return model.fronts.push(front);
    }
    let Some((line, url)) = pass(lines) else {
        return model.lose(&directive.place, what, "edge serves nothing itself: let home serve it");
    };
    let Some(host) = url.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or(rest)) else {
        return model.lose(
            &line.place,
            line.text(),
            "edge passes requests on in clear text, as the client sends them",
        );
    };
    let to = match pools.get(host) {
        Some(pool) => {
            if !model.pools.iter().any(|known| known.name == pool.name) {
                model.pools.push(pool.clone());
            }
            Some(To::Pool(pool.name.clone()))
        }
        None => target(host).map(|mut to| {
            to.port = to.port.or(Some(80));
            To::Address { to, proxy_protocol: ProxyProtocol::Off, connect_timeout: None }
        }),
    };
    let Some(to) = to else {
        return model.lose(&line.place, line.text(), "no address that edge could connect to");
    };
    for other in lines.iter().filter(|line| line.block.is_some() && !is_root(line)) {
        model.lose(&other.place, other.text(), "edge does not route by path: let home do it");
    }
    let when = if default || hosts.is_empty() { When::default() } else { When::hosts(hosts) };
    front.rules.push(Rule { when, to, place: line.place.clone() });
    model.fronts.push(front);
}

fn is_root(line: &Directive) -> bool {
    line.words() == ["location", "/"]
}

/// The directive that sends everything to https.
fn redirect(lines: &[Directive]) -> Option<&Directive> {
    let is_redirect = |line: &&Directive| match line.words()[..] {
        ["return", "301" | "302" | "307" | "308", url] | ["rewrite", _, url, ..] => {
            url.starts_with("https://")
        }
        _ => false,
    };
    let root = lines.iter().filter(|line| is_root(line)).flat_map(|line| line.block.iter().flatten());
    lines.iter().chain(root).find(is_redirect)
}

/// The `proxy_pass` of everything.
fn pass(lines: &[Directive]) -> Option<(&Directive, &str)> {
    let mut root = lines.iter().filter(|line| is_root(line)).flat_map(|line| line.block.iter().flatten());
    let line = root.find(|line| line.words[0] == "proxy_pass")?;
    Some((line, line.words.get(1)?))
}
