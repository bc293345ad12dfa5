//! `frontend` and `listen`: where clients come to, and the rules.

use super::{
    Defaults, Section,
    acl::{Acls, Meaning, not},
    lex::{self, Line},
};
use crate::{
    import::{
        Files,
        model::{Bind, Front, Model, Place, Rule, To, When, net},
        pattern,
    },
    spec::{HostPattern, Protocol},
};

/// A frontend, until the timeouts of its backends are known.
pub(super) struct Frontend {
    front: Front,
    pub(super) rules: Vec<Rule>,
    /// `reject` comes before every `use_backend`, wherever it stands.
    refusals: Vec<Rule>,
    /// The line of the `bind` that ends TLS.
    ends_tls: Option<Place>,
}

pub(super) fn read(section: &Section, own: &mut Defaults, files: &dyn Files, model: &mut Model) -> Frontend {
    let mut acls = Acls::default();
    let mut default = own.default_backend.clone().map(|name| (name, section.place.clone()));
    let mut front = Front::new(section.name(), &section.place, Protocol::Tcp);
    front.first_match_wins = true;
    let mut frontend = Frontend { front, rules: Vec::new(), refusals: Vec::new(), ends_tls: None };
    // `listen NAME ADDRESS`, an old form.
    if let Some(address) = section.title.get(2) {
        frontend.front.binds.extend(Bind::read(address));
    }
    for line in section.lines.iter().filter(|line| line.words[0] == "acl") {
        acls.define(&line.words()[1..], files);
    }
    for line in &section.lines {
        match line.words()[..] {
            ["acl", ..] => {}
            ["bind", address, ref options @ ..] => bind(line, address, options, &mut frontend, model),
            ["default_backend", name] => default = Some((name.to_owned(), line.place.clone())),
            ["use_backend", name, ref condition @ ..] => {
                use_backend(line, name, condition, &acls, files, &mut frontend, model);
            }
            ["tcp-request", "inspect-delay", time] => frontend.front.hello_timeout = lex::time(time),
            ["tcp-request", "connection" | "content" | "session", "reject", ref condition @ ..]
            | ["http-request", "deny" | "reject" | "silent-drop", ref condition @ ..] => {
                reject(line, condition, &acls, files, &mut frontend, model);
            }
            ["tcp-request", "connection", "expect-proxy", "layer4", ref condition @ ..] => {
                match rule_condition(condition, &acls, files) {
                    Meaning::When(when) => {
                        frontend.front.accept_proxy.extend(when.into_iter().flat_map(|when| when.from));
                    }
                    _ => model.lose(&line.place, line.text(), "write the sources in accept_proxy"),
                }
            }
            ["redirect", "scheme", "https", ref condition @ ..]
            | ["http-request", "redirect", "scheme", "https", ref condition @ ..] => {
                redirect(line, condition, &acls, files, &mut frontend, model);
            }
            _ if own.take(&line.words) || lex::is_needless(&line.words) => {}
            _ if section.kind() == "listen" && super::backend::is_of_backend(&line.words) => {}
            _ => model.lose(&line.place, line.text(), reason(&line.words)),
        }
    }
    let has_servers = || section.lines.iter().any(|line| line.words[0].starts_with("server"));
    if section.kind() == "listen" && default.is_none() && has_servers() {
        default = Some((section.name().to_owned(), section.place.clone()));
    }
    if let Some((name, place)) = default {
        frontend.rules.push(Rule { when: When::default(), to: To::Pool(name), place });
    }
    frontend
}

pub(super) fn reason(words: &[String]) -> &'static str {
    match words.first().map(String::as_str) {
        Some(
            "http-request"
            | "http-response"
            | "http-after-response"
            | "reqadd"
            | "rspadd"
            | "compression"
            | "cookie",
        ) => "edge passes requests on unchanged: let home do it",
        Some("option") if words.get(1).is_some_and(|word| word == "forwardfor") => {
            "edge passes requests on unchanged: proxy_protocol tells home who the client is"
        }
        Some("tcp-request") => "for limits see [limits], [shield], and `allow` and `deny` of a listener",
        Some("maxconn") => "edge limits connections in [limits] and by route",
        _ => "edge has no such setting",
    }
}

fn bind(line: &Line, address: &str, options: &[&str], frontend: &mut Frontend, model: &mut Model) {
    for address in address.split(',') {
        let plain =
            ["ipv4@", "ipv6@"].iter().find_map(|family| address.strip_prefix(family)).unwrap_or(address);
        match Bind::read(plain) {
            Some(bind) => frontend.front.binds.push(bind),
            None => model.lose(
                &line.place,
                format!("bind {address}"),
                "edge listens on TCP addresses with a port",
            ),
        }
    }
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "ssl" => frontend.ends_tls = Some(line.place.clone()),
            "accept-proxy" => {
                frontend.front.accept_proxy =
                    ["0.0.0.0/0", "::/0"].iter().filter_map(|text| net(text)).collect();
            }
            "v4v6" | "tfo" | "defer-accept" | "no-sslv3" | "no-tlsv10" | "no-tlsv11" | "strict-sni" => {}
            "crt" | "alpn" | "name" | "id" | "ciphers" | "curves" | "maxconn" | "backlog" | "mode"
            | "level" | "process" | "thread" | "ssl-min-ver" | "ca-file" | "verify" | "ciphersuites"
            | "crt-list" | "npn" => {
                options.next();
            }
            other => model.lose(&line.place, format!("bind … {other}"), "edge has no such option"),
        }
    }
}

/// The condition after `if` or `unless`; without one the rule always holds.
fn rule_condition(words: &[&str], acls: &Acls, files: &dyn Files) -> Meaning {
    match words {
        [] => Meaning::When(vec![When::default()]),
        ["if", condition @ ..] => acls.condition(condition, files),
        ["unless", condition @ ..] => not(acls.condition(condition, files)),
        [_, rest @ ..] => rule_condition(rest, acls, files),
    }
}

fn use_backend(
    line: &Line,
    name: &str,
    condition: &[&str],
    acls: &Acls,
    files: &dyn Files,
    frontend: &mut Frontend,
    model: &mut Model,
) {
    let alternatives = match rule_condition(condition, acls, files) {
        Meaning::When(alternatives) => alternatives,
        Meaning::Never => return,
        Meaning::Challenge => {
            return model.lose(
                &line.place,
                line.text(),
                "edge sends ACME challenges where the route of the host leads",
            );
        }
        Meaning::EndsTls => {
            return model.lose(&line.place, line.text(), "it needs TLS to end here, which edge never does");
        }
        Meaning::NotFrom(_) => {
            return model.lose(
                &line.place,
                line.text(),
                "edge has no condition that excludes sources: see `deny`",
            );
        }
        Meaning::Unknown(why) => return model.lose(&line.place, line.text(), why),
    };
    let targets = match name.strip_prefix("%[") {
        None => vec![(When::default(), name.to_owned())],
        Some(expression) => match mapped(line, expression.trim_end_matches(']'), files, model) {
            Some(targets) => targets,
            None => return,
        },
    };
    for alternative in &alternatives {
        for (when, pool) in &targets {
            match when.and(alternative) {
                Some(when) => {
                    frontend.rules.push(Rule { when, to: To::Pool(pool.clone()), place: line.place.clone() });
                }
                None => model.lose(&line.place, line.text(), "edge cannot combine these conditions"),
            }
        }
    }
}

/// `%[req.ssl_sni,lower,map_end(FILE,DEFAULT)]`: the lines of the map.
fn mapped(
    line: &Line,
    expression: &str,
    files: &dyn Files,
    model: &mut Model,
) -> Option<Vec<(When, String)>> {
    let is_host = ["req.ssl_sni", "req_ssl_sni", "hdr(host)", "req.hdr(host)"]
        .iter()
        .any(|sample| expression.to_ascii_lowercase().starts_with(sample));
    let map = expression.find(",map").map(|at| &expression[at + 1..]);
    let Some((kind, arguments)) = map.filter(|_| is_host).and_then(|map| map.split_once('(')) else {
        model.lose(&line.place, line.text(), "edge routes by the lines of a map, not by an expression");
        return None;
    };
    let arguments = arguments.split(')').next().unwrap_or_default();
    let (file, default) = match arguments.split_once(',') {
        Some((file, default)) => (file, Some(default)),
        None => (arguments, None),
    };
    let text = match files.read(file) {
        Ok(text) => text,
        Err(error) => {
            model.lose(
                &line.place,
                line.text(),
                format!("{file} cannot be read: {error}; copy it beside this file"),
            );
            return None;
        }
    };
    let method = kind.split('_').nth(1).unwrap_or("str");
    let name = std::sync::Arc::from(file);
    let mut targets = Vec::new();
    for (at, entry) in text.lines().enumerate() {
        let entry = entry.trim();
        let Some((key, value)) = entry.split_once(char::is_whitespace).filter(|_| !entry.starts_with('#'))
        else {
            continue;
        };
        let below = |name: &str| HostPattern::several(&format!(".{}", name.trim_start_matches('.'))).ok();
        let hosts = match method {
            "str" => key.parse().ok().map(|host| vec![host]),
            "end" if key.starts_with('.') => format!("*{key}").parse().ok().map(|host| vec![host]),
            "end" | "dom" => below(key),
            "reg" => pattern::hosts(key, true),
            _ => None,
        };
        match hosts {
            Some(hosts) => targets.push((When::hosts(hosts), value.trim().to_owned())),
            None => model.lose(
                &Place::new(&name, at + 1),
                entry,
                "edge matches exact names and everything below a name",
            ),
        }
    }
    targets.extend(default.map(|default| (When::default(), default.trim().to_owned())));
    Some(targets)
}

fn reject(
    line: &Line,
    condition: &[&str],
    acls: &Acls,
    files: &dyn Files,
    frontend: &mut Frontend,
    model: &mut Model,
) {
    match rule_condition(condition, acls, files) {
        // Clients of other protocols are refused anyway.
        Meaning::Never => {}
        Meaning::NotFrom(from) => frontend.front.access.allow.extend(from),
        Meaning::When(alternatives) => {
            for when in alternatives {
                if when == (When { from: when.from.clone(), ..When::default() }) && !when.from.is_empty() {
                    frontend.front.access.deny.extend(when.from);
                } else if when == When::default() {
                    // After the rules that accept.
                } else {
                    frontend.refusals.push(Rule { when, to: To::Refuse, place: line.place.clone() });
                }
            }
        }
        Meaning::Unknown(why) => model.lose(&line.place, line.text(), why),
        _ => model.lose(&line.place, line.text(), "edge has no such condition"),
    }
}

fn redirect(
    line: &Line,
    condition: &[&str],
    acls: &Acls,
    files: &dyn Files,
    frontend: &mut Frontend,
    model: &mut Model,
) {
    match rule_condition(condition, acls, files) {
        Meaning::When(when) if when.iter().all(When::is_host_only) => {
            frontend.front.redirect.extend(when.iter().flat_map(When::patterns));
        }
        _ => model.lose(&line.place, line.text(), "write redirect = \"https\" in the routes that it is for"),
    }
}

/// The frontend with the idle limit of both sides.
pub(super) fn finish(frontend: Frontend, own: &Defaults, model: &mut Model) {
    let Frontend { mut front, rules, refusals: mut all, ends_tls } = frontend;
    all.extend(rules);
    let rules = all;
    if let Some(place) = ends_tls {
        let why = "TLS ends here, and edge passes TLS on unopened: serve the certificate at home, then add the route";
        model.lose(&place, format!("frontend {}", front.name), why);
        for rule in rules.iter().filter(|rule| rule.when.hosts.is_some()) {
            let hosts: Vec<_> = rule.when.patterns().iter().map(ToString::to_string).collect();
            model.lose(&rule.place, hosts.join(", "), "its frontend ends TLS");
        }
        return;
    }
    let names_hosts = rules.iter().any(|rule| rule.when != When::default());
    front.protocol = match own.http {
        true => Protocol::Http,
        // One that waits for a hello is for TLS; without a rule, it may pass on anything.
        false if names_hosts || front.hello_timeout.is_some() => Protocol::Tls,
        false => Protocol::Tcp,
    };
    if front.protocol == Protocol::Tcp {
        front.hello_timeout = None;
    }
    front.hello_timeout = front.hello_timeout.filter(|time| !time.is_zero());
    front.idle_timeout = own.idle();
    front.rules = rules;
    model.fronts.push(front);
}
