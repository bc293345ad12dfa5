//! `backend`, and the servers of `listen`.

use super::{
    Defaults, Section,
    lex::{self, Line},
};
use crate::{
    import::model::{Model, Pool, address},
    spec::{BackendSpec, Balance, ProxyProtocol, ProxyTlv, ProxyTlvs},
};

/// Whether a line of `listen` is for its servers.
pub(super) fn is_of_backend(words: &[String]) -> bool {
    matches!(
        words.first().map(String::as_str),
        Some(
            "server"
                | "server-template"
                | "default-server"
                | "balance"
                | "hash-type"
                | "http-check"
                | "tcp-check"
        )
    ) || matches!(words, [first, second, ..] if first == "option" && second.ends_with("chk"))
}

pub(super) fn read(section: &Section, own: &mut Defaults, model: &mut Model) -> Pool {
    let mut pool = Pool::new(section.name(), &section.place);
    let balance = own.balance.clone();
    pool.balance = balance.as_deref().and_then(read_balance).unwrap_or_default();
    let mut default_options: Vec<&str> = Vec::new();
    let listen = section.kind() == "listen";
    for line in &section.lines {
        match line.words()[..] {
            ["balance", ..] => match read_balance(&line.words) {
                Some(balance) => pool.balance = balance,
                None => {
                    model.lose(&line.place, line.text(), "edge has no such balancing; connections go round");
                }
            },
            ["default-server", ..] => default_options.extend(line.words.iter().skip(1).map(String::as_str)),
            ["server", name, address, ref options @ ..] => {
                let options: Vec<&str> = default_options.iter().chain(options).copied().collect();
                server(line, name, address, &options, &mut pool, model);
            }
            ["server-template", name, _, address, ref options @ ..] => {
                // Each address that the name has is one server.
                let options: Vec<&str> = default_options.iter().chain(options).copied().collect();
                server(line, name, address, &options, &mut pool, model);
            }
            ["http-check" | "tcp-check" | "hash-type", ..] => {}
            ["option", option, ..] if option.ends_with("chk") => {}
            _ if listen || own.take(&line.words) || lex::is_needless(&line.words) => {}
            _ => {
                model.lose(
                    &line.place,
                    line.text(),
                    "edge passes bytes on unchanged and has no such setting",
                );
            }
        }
    }
    if listen {
        for line in &section.lines {
            own.take(&line.words);
        }
    }
    // The default of edge.
    pool.connect_timeout = own.connect.filter(|time| time.as_secs() != 5 && !time.is_zero());
    pool
}

fn read_balance(words: &[String]) -> Option<Balance> {
    match words.get(1)?.as_str() {
        "roundrobin" | "static-rr" | "first" => Some(Balance::RoundRobin),
        "leastconn" => Some(Balance::LeastConnections),
        "source" => Some(Balance::SourceHash),
        random if random.starts_with("random") => Some(Balance::Random),
        _ => None,
    }
}

fn server(line: &Line, name: &str, to: &str, options: &[&str], pool: &mut Pool, model: &mut Model) {
    let to = ["ipv4@", "ipv6@"].iter().find_map(|family| to.strip_prefix(family)).unwrap_or(to);
    let path = to.strip_prefix("unix@").unwrap_or(to);
    let target = if path.starts_with('/') { format!("unix:{path}") } else { to.to_owned() };
    let what = format!("server {name} {to}");
    let Some(target) = address(&target) else {
        return model.lose(&line.place, what, "no address that edge could connect to");
    };
    if pool.backends.iter().any(|known| known.to == target) {
        return model.lose(&line.place, what, "the same server a second time: give one a larger `weight`");
    }
    let mut backend = BackendSpec::new(target);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut number =
            |default: usize| options.next().and_then(|word| word.parse().ok()).unwrap_or(default);
        match *option {
            "check" | "check-ssl" | "check-send-proxy" | "no-check" | "agent-check" | "tfo" | "no-ssl"
            | "no-check-ssl" | "enabled" | "non-stick" => {}
            "send-proxy" => pool.proxy_protocol = ProxyProtocol::V1,
            "send-proxy-v2" => pool.proxy_protocol = ProxyProtocol::V2,
            "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                pool.proxy_protocol = ProxyProtocol::V2;
                model.lose(&line.place, *option, "edge does not open TLS: its header has no TLV about it");
            }
            "proxy-v2-options" => {
                for tlv in options.next().unwrap_or(&"").split(',') {
                    match tlv {
                        "authority" => pool.proxy_tlvs = pool.proxy_tlvs.with(ProxyTlv::Authority),
                        "unique-id" => pool.proxy_tlvs = pool.proxy_tlvs.with(ProxyTlv::UniqueId),
                        "crc32c" => pool.proxy_tlvs = pool.proxy_tlvs.with(ProxyTlv::Crc32c),
                        other => model.lose(&line.place, other, "edge has no such TLV"),
                    }
                }
            }
            "backup" => backend.backup = true,
            "disabled" => backend.weight = 0,
            "weight" => backend.weight = u32::try_from(number(1)).unwrap_or(1).min(65535),
            "maxconn" => pool.connections = number(0),
            "ssl" => {
                let why = "HAProxy opens TLS to this server; edge passes on what the client sends";
                return model.lose(&line.place, what, why);
            }
            "inter" | "fastinter" | "downinter" | "rise" | "fall" | "port" | "addr" | "resolvers"
            | "resolve-prefer" | "resolve-opts" | "init-addr" | "on-marked-down" | "on-marked-up"
            | "on-error" | "error-limit" | "observe" | "check-sni" | "check-alpn" | "check-proto" | "id"
            | "maxqueue" | "minconn" | "slowstart" | "cookie" | "verify" | "sni" | "ca-file" | "crt"
            | "alpn" | "proto" | "pool-max-conn" | "pool-purge-delay" | "pool-low-conn" | "agent-port"
            | "agent-inter" | "agent-addr" | "log-proto" | "ws" => {
                options.next();
            }
            other => model.lose(&line.place, format!("server {name} … {other}"), "edge has no such option"),
        }
    }
    if pool.proxy_protocol != ProxyProtocol::V2 {
        pool.proxy_tlvs = ProxyTlvs::default();
    }
    pool.backends.push(backend);
}
