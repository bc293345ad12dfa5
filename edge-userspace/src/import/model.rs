//! The result of every reader: frontends with rules, pools, and the list of what was lost. Knows no syntax.

use std::{fmt, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use crate::spec::{
    Access, BackendAddress, BackendSpec, Balance, ClientProtocol, HostPattern, Protocol, ProxyProtocol,
    ProxyTlvs,
};

/// The most losses that are listed; a hostile file could have millions.
const MOST_LOSSES: usize = 10_000;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Arc<str>,
    /// From 1.
    pub(super) line: usize,
}

impl Place {
    pub(super) fn new(file: &Arc<str>, line: usize) -> Self {
        Self { file: Arc::clone(file), line }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Something that has no translation. Displays as `file:line: what: why`, on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Untranslated {
    /// The file as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The words of the file.
    pub what: String,
    /// The reason, and what to do instead where there is something.
    pub why: String,
}

impl fmt::Display for Untranslated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.what, self.why)
    }
}

/// All that a configuration says and edge can do, and what was lost.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) fronts: Vec<Front>,
    pub(super) pools: Vec<Pool>,
    /// `limits.connections`; 0 where nothing was said.
    pub(super) connections: usize,
    pub(super) lost: Vec<Untranslated>,
}

impl Model {
    /// Notes that something has no translation.
    pub(super) fn lose(&mut self, place: &Place, what: impl AsRef<str>, why: impl Into<String>) {
        const LONGEST: usize = 100;
        if self.lost.len() >= MOST_LOSSES {
            return;
        }
        let mut text = what.as_ref().escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
        text = text.replace("\\\\", "\\");
        if text.chars().count() > LONGEST {
            text = text.chars().take(LONGEST - 1).chain(['…']).collect();
        }
        self.lost.push(Untranslated {
            file: place.file.to_string(),
            line: place.line,
            what: text,
            why: why.into(),
        });
    }
}

/// Names of ports as Traefik and HAProxy take them (`/etc/services`).
const SERVICES: [(&str, &str); 14] = [
    ("ftp", "21"),
    ("ssh", "22"),
    ("smtp", "25"),
    ("http", "80"),
    ("pop3", "110"),
    ("imap", "143"),
    ("https", "443"),
    ("submissions", "465"),
    ("submission", "587"),
    ("imaps", "993"),
    ("pop3s", "995"),
    ("mysql", "3306"),
    ("sieve", "4190"),
    ("postgresql", "5432"),
];

/// Ports on an address, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Bind {
    /// As it is written before the colon. All addresses are `[::]`, which takes IPv4 too.
    pub(super) host: String,
    pub(super) first: u16,
    pub(super) last: u16,
}

impl Bind {
    /// Reads `443`, `:443`, `*:443`, `10.0.0.1:443`, `[::]:443` and `:::443`, each also with a range of ports.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (host, ports) = match text.rsplit_once(':') {
            Some((host, ports)) => (host, ports),
            None => ("", text),
        };
        let ports = SERVICES.iter().find(|(name, _)| *name == ports).map_or(ports, |(_, port)| port);
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let host = match bare {
            "" | "*" | "0.0.0.0" | "::" => "[::]".to_owned(),
            _ => match bare.parse().ok()? {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            },
        };
        (first != 0 && first <= last).then_some(Self { host, first, last })
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let same = self.host == other.host || self.host == "[::]" || other.host == "[::]";
        same && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.first)?;
        if self.last > self.first { write!(f, "-{}", self.last) } else { Ok(()) }
    }
}

/// Where clients come to, and the rules for them.
#[derive(Clone, Debug)]
pub(super) struct Front {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) binds: Vec<Bind>,
    pub(super) protocol: Protocol,
    pub(super) accept_proxy: Vec<IpNet>,
    pub(super) access: Access,
    pub(super) hello_timeout: Option<Duration>,
    /// `Some(ZERO)` is never.
    pub(super) idle_timeout: Option<Duration>,
    pub(super) rules: Vec<Rule>,
    /// Whether the first rule that matches wins; otherwise the most exact host does, as in edge.
    pub(super) first_match_wins: bool,
    /// The hosts whose requests in clear text are sent to https; `*` for all.
    pub(super) redirect: Vec<HostPattern>,
}

impl Front {
    pub(super) fn new(name: &str, place: &Place, protocol: Protocol) -> Self {
        Self {
            name: name.to_owned(),
            place: place.clone(),
            binds: Vec::new(),
            protocol,
            accept_proxy: Vec::new(),
            access: Access::default(),
            hello_timeout: None,
            idle_timeout: None,
            rules: Vec::new(),
            first_match_wins: false,
            redirect: Vec::new(),
        }
    }
}

/// A condition and where its clients go.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) when: When,
    pub(super) to: To,
    pub(super) place: Place,
}

/// The conditions of a rule; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct When {
    /// `None`: every host, and none.
    pub(super) hosts: Option<Vec<HostPattern>>,
    pub(super) alpn: Vec<Arc<str>>,
    pub(super) from: Vec<IpNet>,
    pub(super) protocols: Vec<ClientProtocol>,
}

impl When {
    pub(super) fn hosts(hosts: Vec<HostPattern>) -> Self {
        Self { hosts: Some(hosts), ..Self::default() }
    }

    /// Both. `None` where edge has no such condition: two hosts, two lists of sources.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        fn one<T: Clone>(a: &[T], b: &[T]) -> Option<Vec<T>> {
            match (a.is_empty(), b.is_empty()) {
                (_, true) => Some(a.to_vec()),
                (true, _) => Some(b.to_vec()),
                _ => None,
            }
        }
        let hosts = match (&self.hosts, &other.hosts) {
            (hosts, None) | (None, hosts) => hosts.clone(),
            _ => return None,
        };
        Some(Self {
            hosts,
            alpn: one(&self.alpn, &other.alpn)?,
            from: one(&self.from, &other.from)?,
            protocols: one(&self.protocols, &other.protocols)?,
        })
    }

    /// Whether nothing but the host counts.
    pub(super) fn is_host_only(&self) -> bool {
        self.alpn.is_empty() && self.from.is_empty() && self.protocols.is_empty()
    }

    /// The hosts, `*` where none is named.
    pub(super) fn patterns(&self) -> Vec<HostPattern> {
        self.hosts.clone().unwrap_or_else(|| vec![HostPattern::Any])
    }
}

/// Alternatives, each enough: a condition in disjunctive normal form. `None` inside a reader stands for a condition that
/// edge does not have.
pub(super) type Alternatives = Vec<When>;

/// The most alternatives of one condition.
const MOST_ALTERNATIVES: usize = 256;

/// Each of one with each of the other.
pub(super) fn both(left: &Alternatives, right: &Alternatives) -> Option<Alternatives> {
    if left.len().saturating_mul(right.len()) > MOST_ALTERNATIVES {
        return None;
    }
    left.iter().flat_map(|left| right.iter().map(|right| left.and(right))).collect()
}

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum To {
    /// A pool of the model, by the name that the file has for it.
    Pool(String),
    Address {
        to: BackendAddress,
        proxy_protocol: ProxyProtocol,
        connect_timeout: Option<Duration>,
    },
    Refuse,
}

/// Servers that offer the same.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) balance: Balance,
    pub(super) proxy_protocol: ProxyProtocol,
    pub(super) proxy_tlvs: ProxyTlvs,
    pub(super) connect_timeout: Option<Duration>,
    /// Of each backend; 0 is no limit.
    pub(super) connections: usize,
    pub(super) backends: Vec<BackendSpec>,
}

impl Pool {
    pub(super) fn new(name: &str, place: &Place) -> Self {
        Self {
            name: name.to_owned(),
            place: place.clone(),
            balance: Balance::default(),
            proxy_protocol: ProxyProtocol::Off,
            proxy_tlvs: ProxyTlvs::default(),
            connect_timeout: None,
            connections: 0,
            backends: Vec::new(),
        }
    }
}

/// Sources: an address or a prefix.
pub(super) fn net(text: &str) -> Option<IpNet> {
    let alone = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>().ok().or_else(alone).map(|net| net.trunc())
}

/// Where a server is, if edge can connect there.
pub(super) fn address(text: &str) -> Option<BackendAddress> {
    let ends_in_number = |host: &str| {
        host.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let address: BackendAddress = text.parse().ok()?;
    let refused = match &address.host {
        crate::spec::BackendHost::Name(name) => ends_in_number(name.as_str()) || name.as_str() == "*",
        crate::spec::BackendHost::Label(_) => true,
        _ => false,
    };
    (!refused).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on_are_read_in_all_their_forms() {
        for (text, bind) in [
            ("443", "[::]:443"),
            (":443", "[::]:443"),
            ("*:443", "[::]:443"),
            ("0.0.0.0:443", "[::]:443"),
            ("[::]:443", "[::]:443"),
            (":::443", "[::]:443"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            (":25565-25575", "[::]:25565-25575"),
            (":imaps", "[::]:993"),
        ] {
            assert_eq!(Bind::read(text).map(|bind| bind.to_string()).as_deref(), Some(bind), "{text}");
        }
        for text in ["", "x", "host:443", ":0", ":443-442", "unix@/run/x", ":99999", "[::1]"] {
            assert_eq!(Bind::read(text), None, "{text}");
        }
    }
}
