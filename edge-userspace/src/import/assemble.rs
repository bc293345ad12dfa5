//! Frontends and pools → the listeners, pools and routes that do the same in edge.
//!
//! Edge prefers the most exact host. Where the other program takes the first rule that matches, rules that were never
//! reached are left out, and a wider rule with a condition is repeated for the hosts after it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{
    draft::{Draft, ListenerDraft, RouteDraft},
    model::{Bind, Front, Model, Place, Pool, Rule, To, When},
};
use crate::spec::{ClientProtocol, HostPattern, Protocol, ProxyProtocol, Redirect};

/// The most rules of one frontend that are compared with each other.
const MOST_COMPARED: usize = 2000;

pub(super) fn assemble(model: &mut Model) -> Draft {
    let mut fronts = merged(std::mem::take(&mut model.fronts));
    let pools = std::mem::take(&mut model.pools);
    without_conflicts(&mut fronts, model);
    let redirects = redirects(&mut fronts, model);
    let mut draft = Draft { connections: model.connections, ..Draft::default() };
    let mut names = Names { pools: &pools, given: HashMap::new(), used: HashSet::new() };
    let mut listener_names = HashSet::new();
    for front in &mut fronts {
        if front.first_match_wins {
            in_order(front, model);
        }
        let name = listener_name(front, &mut listener_names);
        if front.protocol == Protocol::Tcp {
            tcp(front, &name, &mut names, &mut draft, model);
        } else {
            named(front, &name, !redirects.is_empty(), &mut names, &mut draft, model);
        }
    }
    for front in redirects.iter().filter(|front| !front.binds.is_empty()) {
        let name = listener_name(front, &mut listener_names);
        let found = draft.redirect(&name, |host| front.redirect.iter().any(|wide| covers(wide, host)));
        for wide in front.redirect.iter().filter(|wide| !found.iter().any(|host| covers(wide, host))) {
            model.lose(&front.place, wide.to_string(), "no route for TLS has this host to redirect to");
        }
        if !found.is_empty() {
            draft.listeners.push(ListenerDraft::new(name, front));
        }
    }
    for pool in &pools {
        if !names.used.contains(pool.name.as_str()) {
            model.lose(&pool.place, &pool.name, "nothing that was translated leads there");
        }
    }
    common_idle(&mut draft);
    draft.tidy();
    draft
}

/// One frontend for several that share their addresses.
fn merged(fronts: Vec<Front>) -> Vec<Front> {
    let mut merged: Vec<Front> = Vec::new();
    for front in fronts {
        let same = |known: &&mut Front| {
            known.binds == front.binds
                && known.protocol == front.protocol
                && known.protocol != Protocol::Tcp
                && known.access == front.access
        };
        match merged.iter_mut().find(same) {
            Some(known) => {
                known.rules.extend(front.rules);
                known.redirect.extend(front.redirect);
            }
            None => merged.push(front),
        }
    }
    merged
}

/// Each address belongs to one listener.
fn without_conflicts(fronts: &mut Vec<Front>, model: &mut Model) {
    let mut taken: Vec<(Bind, Place)> = Vec::new();
    for front in fronts.iter_mut() {
        front.binds.sort_unstable();
        front.binds.dedup();
        let place = front.place.clone();
        front.binds.retain(|bind| {
            let other = taken.iter().find(|(other, _)| other.overlaps(bind)).map(|(_, place)| place.line);
            if let Some(line) = other {
                let why = format!("line {line} listens there already ([::] takes IPv4 too)");
                model.lose(&place, bind.to_string(), why);
            } else {
                taken.push((bind.clone(), place.clone()));
            }
            other.is_none()
        });
    }
    fronts.retain(|front| !front.binds.is_empty());
}

/// Frontends that do nothing but redirect become a property of the routes.
fn redirects(fronts: &mut Vec<Front>, model: &mut Model) -> Vec<Front> {
    let only_redirects = |front: &Front| !front.redirect.is_empty() && front.rules.is_empty();
    let (redirects, others) = std::mem::take(fronts).into_iter().partition(only_redirects);
    *fronts = others;
    for front in fronts.iter().filter(|front| !front.redirect.is_empty()) {
        if !front.redirect.contains(&HostPattern::Any) {
            let why = "write redirect = \"https\" in the routes that it is for";
            model.lose(&front.place, describe(&front.redirect), why);
        }
    }
    redirects
}

/// Rules in the order in which edge finds the same winner.
fn in_order(front: &mut Front, model: &mut Model) {
    if front.rules.len() > MOST_COMPARED {
        model.lose(&front.place, &front.name, "too many rules to compare: check that none hides another");
        return;
    }
    let mut kept: Vec<Rule> = Vec::new();
    for mut rule in std::mem::take(&mut front.rules) {
        let mut hosts = rule.when.patterns();
        let mut hidden_by = None;
        for earlier in &mut kept {
            let earlier_hosts = earlier.when.patterns();
            let covered = |host: &HostPattern| earlier_hosts.iter().any(|wide| covers(wide, host));
            if earlier.when.is_host_only() && earlier.to != rule.to {
                let before = hosts.len();
                hosts.retain(|host| !covered(host));
                if hosts.len() < before {
                    hidden_by = Some(earlier.place.line);
                }
            } else if earlier.when.from != rule.when.from || earlier.when.alpn != rule.when.alpn {
                // Its condition counts for the exact host, too.
                let more: Vec<_> = hosts
                    .iter()
                    .filter(|host| covered(host) && !earlier_hosts.contains(host))
                    .filter(|_| !earlier.when.is_host_only() && earlier.when.protocols == rule.when.protocols)
                    .cloned()
                    .collect();
                if !more.is_empty() {
                    let mut all = earlier_hosts;
                    all.extend(more);
                    earlier.when.hosts = Some(all);
                }
            }
        }
        if let Some(line) = hidden_by {
            model.lose(
                &rule.place,
                describe(&rule.when.patterns()),
                format!("never reached: line {line} matches first"),
            );
        }
        if !hosts.is_empty() {
            if hidden_by.is_some() {
                rule.when.hosts = Some(hosts);
            }
            kept.push(rule);
        }
    }
    front.rules = kept;
}

fn describe(hosts: &[HostPattern]) -> String {
    hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether every name of one pattern is in the other.
fn covers(wide: &HostPattern, narrow: &HostPattern) -> bool {
    let below =
        |suffix: &str, name: &str| name.strip_suffix(suffix).is_some_and(|before| before.ends_with('.'));
    match (wide, narrow) {
        (HostPattern::Any, _) => true,
        (HostPattern::Exact(wide), HostPattern::Exact(narrow)) => wide == narrow,
        (HostPattern::Below(wide), HostPattern::Exact(narrow)) => below(wide.as_str(), narrow.as_str()),
        (HostPattern::Below(wide), HostPattern::Below(narrow)) => {
            wide == narrow || below(wide.as_str(), narrow.as_str())
        }
        _ => false,
    }
}

/// A listener that reads nothing: the one rule for everybody is its target.
fn tcp(front: &Front, name: &str, names: &mut Names<'_>, draft: &mut Draft, model: &mut Model) {
    let (everybody, others): (Vec<_>, Vec<_>) =
        front.rules.iter().partition(|rule| rule.when == When::default() && rule.to != To::Refuse);
    for rule in others {
        model.lose(
            &rule.place,
            describe(&rule.when.patterns()),
            "a listener that reads nothing has one target for everybody",
        );
    }
    let Some(target) = everybody.first().and_then(|rule| names.target(&rule.to, draft, model, &rule.place))
    else {
        model.lose(&front.place, &front.name, "it leads nowhere that edge could connect to");
        return;
    };
    let mut target = target;
    if target.proxy_protocol != ProxyProtocol::Off {
        // A listener's own target has no header of its own: a pool says it.
        target.to = draft.pool_for(&target, name);
        target.connect_timeout = None;
    }
    let mut listener = ListenerDraft::new(name.to_owned(), front);
    listener.to = Some(target.to);
    listener.connect_timeout = target.connect_timeout;
    draft.listeners.push(listener);
}

/// A listener whose routes go by host.
fn named(
    front: &Front,
    name: &str,
    https_redirects: bool,
    names: &mut Names<'_>,
    draft: &mut Draft,
    model: &mut Model,
) {
    let mut listener = ListenerDraft::new(name.to_owned(), front);
    let mut any = false;
    let mut seen = HashSet::new();
    for rule in &front.rules {
        let Some(target) = names.target(&rule.to, draft, model, &rule.place) else { continue };
        let When { alpn, from, protocols, .. } = rule.when.clone();
        let mut hosts = rule.when.patterns();
        hosts.retain(|host| {
            let key = format!("{host} {alpn:?} {from:?} {protocols:?}");
            let new = seen.insert(key);
            if !new && !front.first_match_wins {
                model.lose(&rule.place, host.to_string(), "it has a rule already, which comes first");
            }
            new
        });
        if hosts.is_empty() {
            continue;
        }
        let tells = protocols.iter().any(|protocol| !protocol.is_web());
        if tells && listener.protocols.is_empty() {
            listener.protocols.extend(front.protocol.client_protocol());
        }
        for protocol in protocols.iter().filter(|protocol| **protocol != ClientProtocol::Any) {
            if tells && !listener.protocols.contains(protocol) {
                listener.protocols.push(*protocol);
            }
        }
        let redirects = front.redirect.contains(&HostPattern::Any) && front.protocol == Protocol::Http;
        let redirect = if redirects && target.to != ["refuse"] { Redirect::Https } else { Redirect::Off };
        draft.add(RouteDraft {
            hosts,
            listeners: vec![name.to_owned()],
            alpn,
            from,
            protocols,
            target,
            redirect,
            place: rule.place.to_string(),
            merges_with_redirect: https_redirects && front.protocol == Protocol::Tls,
        });
        any = true;
    }
    if any {
        draft.listeners.push(listener);
    } else {
        model.lose(&front.place, &front.name, "it leads nowhere that edge could connect to");
    }
}

/// The name that the default listener of the port has; else the file's name for it, made a label.
fn listener_name(front: &Front, taken: &mut HashSet<String>) -> String {
    let port = front.binds.first().map_or(0, |bind| bind.first);
    let wanted = match (front.protocol, port) {
        (Protocol::Tls, 443) => "https".to_owned(),
        (Protocol::Http, 80) => "http".to_owned(),
        _ => label(&front.name),
    };
    unique(&wanted, taken)
}

fn unique(wanted: &str, taken: &mut HashSet<String>) -> String {
    let mut name = wanted.to_owned();
    let mut next = 2;
    while !taken.insert(name.clone()) {
        name = format!("{wanted}-{next}");
        next += 1;
    }
    name
}

/// A name of the characters and the length that edge takes.
fn label(name: &str) -> String {
    let fit = |character: char| match character {
        '-' | '_' | '.' => character,
        _ if character.is_ascii_alphanumeric() => character,
        _ => '-',
    };
    let name: String = name.chars().take(56).map(fit).collect();
    match name.as_str() {
        "" | "refuse" => format!("{name}pool"),
        _ if name.parse::<std::net::IpAddr>().is_ok() => format!("at-{name}"),
        _ => name,
    }
}

/// A target as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    /// A pool, an address or `refuse`.
    pub(super) to: Vec<String>,
    /// Of an address.
    pub(super) proxy_protocol: ProxyProtocol,
    /// Of an address.
    pub(super) connect_timeout: Option<Duration>,
}

/// The pools of the model and the names that they got.
struct Names<'p> {
    pools: &'p [Pool],
    given: HashMap<&'p str, String>,
    used: HashSet<&'p str>,
}

impl Names<'_> {
    fn target(&mut self, to: &To, draft: &mut Draft, model: &mut Model, place: &Place) -> Option<Target> {
        let plain =
            |to: String| Target { to: vec![to], proxy_protocol: ProxyProtocol::Off, connect_timeout: None };
        match to {
            To::Refuse => Some(plain("refuse".to_owned())),
            To::Address { to, proxy_protocol, connect_timeout } => Some(Target {
                to: vec![to.to_string()],
                proxy_protocol: *proxy_protocol,
                connect_timeout: connect_timeout.filter(|time| !time.is_zero()),
            }),
            To::Pool(name) => {
                let Some(pool) = self.pools.iter().find(|pool| pool.name == *name) else {
                    model.lose(place, name, "the file has no such backend");
                    return None;
                };
                self.used.insert(&pool.name);
                match &*pool.backends {
                    [] => {
                        model.lose(place, name, "it has no server that edge could connect to");
                        None
                    }
                    // A pool of one with nothing to say is an address.
                    [one] if one.weight != 0 && pool.connections == 0 && pool.proxy_tlvs.is_empty() => {
                        Some(Target {
                            to: vec![one.to.to_string()],
                            proxy_protocol: pool.proxy_protocol,
                            connect_timeout: pool.connect_timeout,
                        })
                    }
                    _ => {
                        let name = self.given.get(name.as_str()).cloned().unwrap_or_else(|| {
                            let mut taken = draft.pools.iter().map(|(name, _)| name.clone()).collect();
                            let name = unique(&label(&pool.name), &mut taken);
                            draft.pools.push((name.clone(), pool.clone()));
                            self.given.insert(&pool.name, name.clone());
                            name
                        });
                        Some(plain(name))
                    }
                }
            }
        }
    }
}

/// An idle limit that all listeners share stands in `[limits]`.
fn common_idle(draft: &mut Draft) {
    let by_name = |listener: &&ListenerDraft| listener.to.is_none();
    let mut times = draft.listeners.iter().filter(by_name).map(|listener| listener.idle_timeout);
    let Some(Some(first)) = times.next() else { return };
    if times.all(|time| time == Some(first)) {
        draft.idle_timeout = Some(first);
        for listener in draft.listeners.iter_mut().filter(|listener| listener.to.is_none()) {
            listener.idle_timeout = None;
        }
    }
}
