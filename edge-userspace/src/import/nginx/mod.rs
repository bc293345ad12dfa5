//! nginx.conf: `stream` servers that choose by `ssl_preread`, and the `http` servers on port 80 that redirect or pass on
//! (`ngx_stream_ssl_preread_module`, `ngx_stream_map_module`, `ngx_stream_upstream_module`).

mod http;
mod lex;
mod map;

use std::{collections::HashMap, time::Duration};

use self::{
    lex::{Directive, Reader},
    map::{Map, Maps},
};
use super::{
    Failure, Files, Source,
    model::{Bind, Front, Model, Place, Pool, Rule, To, When, address, net},
};
use crate::spec::{Access, BackendSpec, Balance, Protocol, ProxyProtocol};

pub(super) fn read(sources: &[Source], files: &dyn Files, model: &mut Model) -> Result<(), Failure> {
    let mut top = Vec::new();
    let mut reader = Reader { files, model, directives: 0, included: 0 };
    for source in sources {
        top.extend(reader.text(&source.name, &source.text, 0)?);
    }
    // A file of conf.d stands for what includes it.
    let preread = |directive: &Directive| {
        let has =
            |inner: &Directive| inner.words[0] == "ssl_preread" || inner.text().contains("$ssl_preread");
        directive.text().contains("$ssl_preread") || directive.block.iter().flatten().any(has)
    };
    let named = |directive: &Directive, name: &str| directive.words[0] == name && directive.block.is_some();
    let is_whole = top.iter().any(|directive| named(directive, "stream") || named(directive, "http"));
    if !is_whole {
        if top.iter().any(preread) {
            stream(&top, model);
        } else {
            http::read(&top, model);
        }
        return Ok(());
    }
    for directive in &top {
        match (&*directive.words[0], &directive.block) {
            ("stream", Some(block)) => stream(block, model),
            ("http", Some(block)) => http::read(block, model),
            ("mail", Some(_)) => model.lose(&directive.place, "mail", "edge does not speak mail protocols"),
            _ => {}
        }
    }
    Ok(())
}

fn stream(block: &[Directive], model: &mut Model) {
    let mut maps: Maps = HashMap::new();
    let mut common = Options::default();
    for directive in block {
        match (&*directive.words[0], &directive.block) {
            ("map", Some(lines)) => {
                if let [_, source, variable, ..] = &*directive.words {
                    maps.insert(variable.clone(), Map::read(source, lines, model));
                }
            }
            ("upstream", Some(lines)) => {
                let pool = upstream(directive, lines, model);
                model.pools.push(pool);
            }
            ("server", Some(_)) => {}
            _ if common.take(directive, model) => {}
            (_, Some(_)) => {
                model.lose(&directive.place, directive.text(), "edge has nothing like this block");
            }
            _ => model.lose(&directive.place, directive.text(), "edge has no such setting"),
        }
    }
    for directive in block.iter().filter(|directive| directive.words[0] == "server") {
        if let Some(lines) = &directive.block {
            server(directive, lines, &common, &maps, model);
        }
    }
}

/// The settings that a server has of its own or from the block around it.
#[derive(Clone, Debug, Default)]
struct Options {
    preread: bool,
    proxy_protocol: ProxyProtocol,
    connect_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    hello_timeout: Option<Duration>,
    allow: Vec<ipnet::IpNet>,
    deny: Vec<ipnet::IpNet>,
    trusted: Vec<ipnet::IpNet>,
}

impl Options {
    /// Takes a directive if it is one of these, or one that edge needs not.
    fn take(&mut self, directive: &Directive, model: &mut Model) -> bool {
        match directive.words()[..] {
            ["ssl_preread", on] => self.preread = on == "on",
            ["proxy_protocol", "on"] => self.proxy_protocol = ProxyProtocol::V1,
            ["proxy_protocol", "off"] => self.proxy_protocol = ProxyProtocol::Off,
            ["proxy_connect_timeout", text] => self.connect_timeout = time(text),
            ["proxy_timeout", text] => self.idle_timeout = time(text),
            ["preread_timeout", text] => self.hello_timeout = time(text),
            ["set_real_ip_from", text] => self.trusted.extend(net(text)),
            ["deny", "all"] if !self.allow.is_empty() => {}
            ["allow", text] if net(text).is_some() => self.allow.extend(net(text)),
            ["deny", text] if net(text).is_some() => {
                if !self.allow.is_empty() {
                    let why = "in edge `deny` wins over `allow`, in whatever order they stand";
                    model.lose(&directive.place, directive.text(), why);
                }
                self.deny.extend(net(text));
            }
            ["allow", "all"]
            | [
                "log_format"
                | "access_log"
                | "error_log"
                | "tcp_nodelay"
                | "preread_buffer_size"
                | "proxy_buffer_size"
                | "proxy_socket_keepalive"
                | "resolver_timeout"
                | "variables_hash_max_size"
                | "map_hash_max_size"
                | "variables_hash_bucket_size"
                | "map_hash_bucket_size"
                | "proxy_next_upstream"
                | "open_log_file_cache"
                | "proxy_next_upstream_tries"
                | "proxy_next_upstream_timeout"
                | "server_name"
                | "status_zone"
                | "proxy_responses",
                ..,
            ] => {}
            ["resolver", ..] => {
                let why = "edge asks the system's name servers; [resolver] names others";
                model.lose(&directive.place, directive.text(), why);
            }
            _ => return false,
        }
        true
    }
}

fn upstream(directive: &Directive, lines: &[Directive], model: &mut Model) -> Pool {
    let mut pool = Pool::new(directive.words.get(1).map_or("", |name| name), &directive.place);
    for line in lines {
        match line.words()[..] {
            ["server", to, ref options @ ..] => {
                let Some(to) = target(to) else {
                    model.lose(&line.place, line.text(), "no address that edge could connect to");
                    continue;
                };
                if pool.backends.iter().any(|known| known.to == to) {
                    model.lose(
                        &line.place,
                        line.text(),
                        "the same server a second time: give one a larger `weight`",
                    );
                    continue;
                }
                let mut backend = BackendSpec::new(to);
                for option in options {
                    match option.split_once('=') {
                        Some(("weight", number)) => backend.weight = number.parse().unwrap_or(1).min(65535),
                        Some(("max_conns", number)) => pool.connections = number.parse().unwrap_or(0),
                        Some(("max_fails" | "fail_timeout" | "slow_start", _)) => {}
                        None if *option == "backup" => backend.backup = true,
                        None if *option == "down" => backend.weight = 0,
                        None if *option == "resolve" => {}
                        _ => model.lose(&line.place, *option, "edge has no such option"),
                    }
                }
                pool.backends.push(backend);
            }
            ["least_conn"] | ["least_time", ..] => pool.balance = Balance::LeastConnections,
            ["random", ..] => pool.balance = Balance::Random,
            ["hash", key, ..] if key.contains("$remote_addr") || key.contains("$binary_remote_addr") => {
                pool.balance = Balance::SourceHash;
            }
            ["zone" | "keepalive" | "keepalive_timeout" | "keepalive_requests", ..] => {}
            ["ip_hash"] => pool.balance = Balance::SourceHash,
            _ => model.lose(&line.place, line.text(), "edge has no such setting"),
        }
    }
    pool
}

fn server(directive: &Directive, lines: &[Directive], common: &Options, maps: &Maps, model: &mut Model) {
    let mut options = common.clone();
    let mut front = Front::new("", &directive.place, Protocol::Tcp);
    let mut pass: Option<(String, Place)> = None;
    let (mut ends_tls, mut expects_header) = (None, false);
    for line in lines {
        match line.words()[..] {
            ["listen", address, ref flags @ ..] => {
                if flags.contains(&"udp") {
                    model.lose(&line.place, line.text(), "edge carries TCP");
                    continue;
                }
                if flags.contains(&"ssl") {
                    ends_tls = Some(line.place.clone());
                }
                expects_header |= flags.contains(&"proxy_protocol");
                match Bind::read(address) {
                    Some(bind) => front.binds.push(bind),
                    None => model.lose(&line.place, line.text(), "edge listens on TCP addresses with a port"),
                }
            }
            ["proxy_pass", to] => pass = Some((to.to_owned(), line.place.clone())),
            [first, ..] if first.starts_with("ssl_") && first != "ssl_preread" => {
                ends_tls.get_or_insert(line.place.clone());
            }
            _ if options.take(line, model) => {}
            _ => model.lose(&line.place, line.text(), "edge has no such setting"),
        }
    }
    if let Some(place) = ends_tls {
        let why = "TLS ends here, and edge passes TLS on unopened: serve the certificate at home, then add the route";
        return model.lose(&place, "ssl", why);
    }
    let Some((to, place)) = pass else {
        return model.lose(&directive.place, "server", "it has no proxy_pass");
    };
    if front.binds.is_empty() {
        return;
    }
    front.name = format!("port-{}", front.binds[0].first);
    front.access = Access { allow: options.allow.clone(), deny: options.deny.clone() };
    if expects_header {
        front.accept_proxy = if options.trusted.is_empty() {
            ["0.0.0.0/0", "::/0"].iter().filter_map(|text| net(text)).collect()
        } else {
            options.trusted.clone()
        };
    }
    front.idle_timeout = options.idle_timeout;
    front.hello_timeout = options.hello_timeout.filter(|time| !time.is_zero());
    front.rules = rules(&to, &place, maps, model);
    if options.preread || front.rules.iter().any(|rule| rule.when != When::default()) {
        front.protocol = Protocol::Tls;
    } else {
        front.hello_timeout = None;
    }
    for rule in &mut front.rules {
        with_options(&mut rule.to, &options, model);
    }
    model.fronts.push(front);
}

/// The header and the time to connect are the server's in nginx, and the pool's in edge.
fn with_options(to: &mut To, options: &Options, model: &mut Model) {
    let connect = options.connect_timeout.filter(|time| !time.is_zero());
    match to {
        To::Refuse => {}
        To::Address { proxy_protocol, connect_timeout, .. } => {
            *proxy_protocol = options.proxy_protocol;
            *connect_timeout = connect;
        }
        To::Pool(name) => {
            let Some(at) = model.pools.iter().position(|pool| pool.name == *name) else { return };
            let wanted = (options.proxy_protocol, connect);
            let mut pool = model.pools[at].clone();
            let is_plain = (pool.proxy_protocol, pool.connect_timeout) == (ProxyProtocol::Off, None);
            (pool.proxy_protocol, pool.connect_timeout) = wanted;
            if is_plain && !model.fronts.iter().flat_map(|front| &front.rules).any(|rule| rule.to == *to) {
                model.pools[at] = pool;
            } else if (model.pools[at].proxy_protocol, model.pools[at].connect_timeout) != wanted {
                // Another server speaks to the same upstream in another way.
                pool.name = format!(
                    "{}{}",
                    pool.name,
                    if wanted.0 == ProxyProtocol::Off { "-plain" } else { "-proxy" }
                );
                *to = To::Pool(pool.name.clone());
                if !model.pools.iter().any(|known| known.name == pool.name) {
                    model.pools.push(pool);
                }
            }
        }
    }
}

/// The rules behind a `proxy_pass`: one target, or the lines of a map.
fn rules(to: &str, place: &Place, maps: &Maps, model: &mut Model) -> Vec<Rule> {
    if !to.contains('$') {
        return named_target(to, model).map_or_else(
            || {
                model.lose(place, format!("proxy_pass {to}"), "no address that edge could connect to");
                Vec::new()
            },
            |to| vec![Rule { when: When::default(), to, place: place.clone() }],
        );
    }
    // `$name` or `$name:443`.
    let (variable, suffix) = match to.rsplit_once(':') {
        Some((variable, port)) => (variable, format!(":{port}")),
        None => (to, String::new()),
    };
    let variable = variable.replace(['{', '}'], "");
    if !maps.contains_key(&variable) {
        let why = "the client would choose where edge connects to (an open proxy): name the hosts in routes";
        model.lose(place, format!("proxy_pass {to}"), why);
        return Vec::new();
    }
    map::rules(&variable, &suffix, maps, model)
}

/// An upstream of the file, or an address.
fn named_target(text: &str, model: &Model) -> Option<To> {
    if model.pools.iter().any(|pool| pool.name == text) {
        return Some(To::Pool(text.to_owned()));
    }
    target(text).map(|to| To::Address { to, proxy_protocol: ProxyProtocol::Off, connect_timeout: None })
}

fn target(text: &str) -> Option<crate::spec::BackendAddress> {
    address(text.strip_suffix(':').unwrap_or(text))
}

/// A time such as `1h 30m` in one word; without a unit, seconds.
fn time(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    humantime::parse_duration(text).ok().filter(|time| *time <= Duration::from_hours(365 * 24))
}
