//! Routes: listed, added, removed, tested.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Backend, CheckStatus, fields};
use crate::spec::{
    Access, BackendAddress, BackendAddressError, Choice, ClientProtocol, Conditions, HostName, HostPattern,
    ProxyProtocol, ProxyTlv, ProxyTlvs, Redirect, RouteSpec, Target,
};

/// Where a route came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteSource {
    /// The configuration file; it is removed there.
    File,
    /// `edgectl routes add`; kept in the state directory.
    Runtime,
}

/// `GET /v1/routes`: one route with its account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The host it is for: a name, `*.suffix` or `*`.
    pub host: HostPattern,
    /// The listeners; empty means every tls and http listener.
    pub listener: Vec<Arc<str>>,
    /// Matches when the client speaks any of these; empty means TLS and HTTP.
    #[serde(default)]
    pub protocol: Vec<ClientProtocol>,
    /// Where it leads: a pool, an address, a list of addresses, or `refuse`.
    pub to: Target,
    /// Where it came from.
    pub source: RouteSource,
    /// Matches when the client offers any of these; empty means always.
    pub alpn: Vec<Arc<str>>,
    /// Matches when the client is in any of these; empty means always.
    pub from: Vec<IpNet>,
    /// Sources that may use it; empty means all. The others are refused.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// Sources that may not; wins over `allow`.
    #[serde(default)]
    pub deny: Vec<IpNet>,
    /// Whether its requests in clear text are sent to https.
    #[serde(default)]
    pub redirect: Redirect,
    /// The most connections at the same time; left out where there is no limit.
    #[serde(default, skip_serializing_if = "fields::is_zero")]
    pub connections_limit: usize,
    /// The PROXY header sent where `to` is an address.
    pub proxy_protocol: ProxyProtocol,
    /// The TLVs in a header of version 2.
    #[serde(default)]
    pub proxy_tlvs: ProxyTlvs,
    /// The datapath tier allowed.
    pub datapath: Choice,
    /// Connections now.
    pub connections: u64,
    /// Bytes from clients to backends since the daemon started.
    pub bytes_up: u64,
    /// Bytes from backends to clients since the daemon started.
    pub bytes_down: u64,
}

impl Route {
    /// A route without an account yet.
    pub fn new(spec: &RouteSpec, source: RouteSource) -> Self {
        Self {
            host: spec.conditions.host.clone(),
            listener: spec.conditions.listeners.clone(),
            protocol: spec.conditions.protocols.clone(),
            to: spec.to.clone(),
            source,
            alpn: spec.conditions.alpn.clone(),
            from: spec.conditions.from.clone(),
            allow: spec.access.allow.clone(),
            deny: spec.access.deny.clone(),
            redirect: spec.redirect,
            connections_limit: spec.connections,
            proxy_protocol: spec.proxy_protocol,
            proxy_tlvs: spec.proxy_tlvs,
            datapath: spec.datapath,
            connections: 0,
            bytes_up: 0,
            bytes_down: 0,
        }
    }
}

/// `POST /v1/routes`: a route to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRoute {
    /// The hosts it is for: each a name, `*.suffix` or `*`; `.suffix` is short for `suffix` and `*.suffix`. Several
    /// make a route each.
    #[serde(serialize_with = "fields::as_one_or_many", deserialize_with = "hosts")]
    pub host: Vec<HostPattern>,
    /// Where it leads: a pool, an address, a list of addresses, or `refuse`.
    #[serde(deserialize_with = "target")]
    pub to: Target,
    /// The listeners; none means every tls and http listener.
    #[serde(default, deserialize_with = "fields::one_or_many")]
    pub listener: Vec<Arc<str>>,
    /// Matches when the client speaks any of these; none means TLS and HTTP.
    #[serde(default, deserialize_with = "fields::one_or_many")]
    pub protocol: Vec<ClientProtocol>,
    /// Matches when the client offers any of these; none means always.
    #[serde(default, deserialize_with = "fields::one_or_many")]
    pub alpn: Vec<Arc<str>>,
    /// Matches when the client is in any of these; none means always.
    #[serde(default, deserialize_with = "fields::prefixes")]
    pub from: Vec<IpNet>,
    // `allow`, `deny`, `redirect`, `connections` and `proxy_tlvs` are left out where empty: earlier daemons do not know
    // them.
    /// Sources that may use it; none means all. The others are refused and never fall through to another route.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "fields::prefixes")]
    pub allow: Vec<IpNet>,
    /// Sources that may not; wins over `allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "fields::prefixes")]
    pub deny: Vec<IpNet>,
    /// Whether its requests in clear text are sent to https.
    #[serde(default, skip_serializing_if = "fields::is_default")]
    pub redirect: Redirect,
    /// Connections at the same time; 0 means no limit.
    #[serde(default, skip_serializing_if = "fields::is_zero", deserialize_with = "fields::number")]
    pub connections: usize,
    /// The PROXY header for a `to` that is an address.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// The TLVs in a header of version 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "fields::one_or_many")]
    pub proxy_tlvs: Vec<ProxyTlv>,
    /// The datapath tier allowed.
    #[serde(default)]
    pub datapath: Choice,
    /// Take the place of a runtime route with the same conditions that leads elsewhere.
    #[serde(default, deserialize_with = "fields::flag")]
    pub replace: bool,
}

impl AddRoute {
    /// The routes that are asked for, one for each host.
    pub fn specs(&self) -> Vec<RouteSpec> {
        self.host.iter().map(|host| self.spec(host)).collect()
    }

    fn spec(&self, host: &HostPattern) -> RouteSpec {
        let conditions = Conditions {
            host: host.clone(),
            listeners: self.listener.clone(),
            protocols: self.protocol.clone(),
            alpn: self.alpn.clone(),
            from: self.from.clone(),
        };
        RouteSpec {
            access: Access { allow: self.allow.clone(), deny: self.deny.clone() }.normalised(),
            redirect: self.redirect,
            connections: self.connections,
            shares_limit_with: None,
            proxy_protocol: self.proxy_protocol,
            proxy_tlvs: self.proxy_tlvs.iter().copied().collect(),
            datapath: self.datapath,
            ..RouteSpec::new(conditions.normalised(), self.to.clone())
        }
    }
}

/// The answer to `POST /v1/routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AddedRoutes {
    /// The route, where one host was asked for.
    One(Box<Route>),
    /// The routes, in the order of the hosts.
    Several(Vec<Route>),
}

impl AddedRoutes {
    /// All of them.
    pub fn all(&self) -> &[Route] {
        match self {
            Self::One(route) => std::slice::from_ref(route),
            Self::Several(routes) => routes,
        }
    }
}

impl From<Vec<Route>> for AddedRoutes {
    fn from(routes: Vec<Route>) -> Self {
        match <[Route; 1]>::try_from(routes) {
            Ok([route]) => Self::One(Box::new(route)),
            Err(routes) => Self::Several(routes),
        }
    }
}

/// One host or several, each once.
fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HostPattern>, D::Error> {
    let texts: Vec<String> = fields::one_or_many(deserializer)?;
    let mut hosts = Vec::new();
    let mut seen = HashSet::new();
    for text in &texts {
        let several = HostPattern::several(text).map_err(de::Error::custom)?;
        hosts.extend(several.into_iter().filter(|host| seen.insert(host.clone())));
    }
    if hosts.is_empty() { Err(de::Error::custom("expected at least one host")) } else { Ok(hosts) }
}

/// Why some texts are no target of a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing, or an empty text.
    #[error("expected a pool, an address or a list of addresses")]
    Empty,
    /// A list with something that is no address.
    #[error("{0:?} in a list of addresses: {1}")]
    Address(String, BackendAddressError),
}

/// Parses the texts of `to`: one is a pool or an address, several are addresses.
pub fn parse_target<S: AsRef<str>>(texts: &[S]) -> Result<Target, TargetError> {
    match texts {
        [] => Err(TargetError::Empty),
        [one] if one.as_ref().is_empty() => Err(TargetError::Empty),
        [one] => Ok(Target::from_text(one.as_ref())),
        many => many
            .iter()
            .map(|text| {
                let text = text.as_ref();
                text.parse::<BackendAddress>().map_err(|error| TargetError::Address(text.to_owned(), error))
            })
            .collect::<Result<_, _>>()
            .map(Target::Many),
    }
}

fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
    let texts: Vec<String> = fields::one_or_many(deserializer)?;
    parse_target(&texts).map_err(de::Error::custom)
}

/// `DELETE /v1/routes`: which runtime routes to remove, one for each host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRoute {
    /// Its host, or the hosts of several routes; `.suffix` is short for `suffix` and `*.suffix`.
    #[serde(serialize_with = "fields::as_one_or_many", deserialize_with = "hosts")]
    pub host: Vec<HostPattern>,
    /// Its listeners, where several routes have this host.
    #[serde(default, deserialize_with = "fields::some_one_or_many", skip_serializing_if = "Option::is_none")]
    pub listener: Option<Vec<Arc<str>>>,
    /// Its protocols, where several routes have this host.
    #[serde(default, deserialize_with = "fields::some_one_or_many", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Vec<ClientProtocol>>,
    /// Its ALPN condition, where several routes have this host.
    #[serde(default, deserialize_with = "fields::some_one_or_many", skip_serializing_if = "Option::is_none")]
    pub alpn: Option<Vec<Arc<str>>>,
    /// Its source condition, where several routes have this host.
    #[serde(default, deserialize_with = "fields::some_prefixes", skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<IpNet>>,
    /// End its live connections too.
    #[serde(default, deserialize_with = "fields::flag")]
    pub close: bool,
}

impl RemoveRoute {
    /// Whether a route is meant: the host is one of those asked for, and every condition that is given, in any order.
    pub fn means(&self, conditions: &Conditions) -> bool {
        fn same<T: PartialEq>(asked: Option<&Vec<T>>, has: &[T]) -> bool {
            asked.is_none_or(|asked| asked.len() == has.len() && asked.iter().all(|item| has.contains(item)))
        }
        self.host.contains(&conditions.host)
            && same(self.listener.as_ref(), &conditions.listeners)
            && same(self.protocol.as_ref(), &conditions.protocols)
            && same(self.alpn.as_ref(), &conditions.alpn)
            && same(self.from.as_ref(), &conditions.from)
    }
}

/// The answer to `DELETE /v1/routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedRoutes {
    /// The routes as they were.
    pub removed: Vec<Route>,
    /// Live connections that were ended, with `close`.
    pub closed: u64,
}

/// `POST /v1/routes/test`: a client to imagine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestRoute {
    /// The name it asks for; none means no SNI or no Host.
    pub host: Option<HostName>,
    /// The client's protocol; `None` means the listener's, the first of several.
    #[serde(default)]
    pub protocol: Option<ClientProtocol>,
    /// The client's ALPN list.
    #[serde(default, deserialize_with = "fields::one_or_many")]
    pub alpn: Vec<Arc<str>>,
    /// Its address; none means an address that no `from` names.
    #[serde(default)]
    pub from: Option<IpAddr>,
    /// The listener it comes to; none means the first that matches by host.
    #[serde(default)]
    pub listener: Option<Arc<str>>,
    /// Send a real `ClientHello` (or request head) to each backend.
    #[serde(default, deserialize_with = "fields::flag")]
    pub probe: bool,
}

/// The answer to `POST /v1/routes/test`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteTest {
    /// The name asked for.
    pub host: Option<HostName>,
    /// The listener.
    pub listener: Arc<str>,
    /// The protocol.
    pub protocol: ClientProtocol,
    /// The ALPN list.
    pub alpn: Vec<Arc<str>>,
    /// The client's address.
    pub from: Option<IpAddr>,
    /// The route that wins.
    pub route: Option<Route>,
    /// The result for such a client, in words.
    pub outcome: String,
    /// The routes looked at, in the order of precedence.
    pub considered: Vec<Considered>,
    /// The backends that would be tried, the first one first.
    pub backends: Vec<Backend>,
    /// The probe of each backend; `null` if not requested.
    pub probe: Option<Vec<Probe>>,
}

/// A route that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// Its host.
    pub host: HostPattern,
    /// Its listeners.
    pub listener: Vec<Arc<str>>,
    /// Its protocols.
    #[serde(default)]
    pub protocol: Vec<ClientProtocol>,
    /// Its ALPN condition.
    pub alpn: Vec<Arc<str>>,
    /// Its source condition.
    pub from: Vec<IpNet>,
    /// Where it leads.
    pub to: Target,
    /// Whether it is the one.
    pub wins: bool,
    /// Why it wins or not.
    pub reason: String,
}

/// The way to one backend, walked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The backend as the configuration names it.
    pub to: BackendAddress,
    /// The address tried.
    pub address: Option<Arc<str>>,
    /// `ok` where every step was.
    pub status: CheckStatus,
    /// The steps in order, up to the one where it stops.
    pub steps: Vec<ProbeStep>,
}

/// One step of the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeStep {
    /// `resolve`, `tunnel`, `connect`, `send`, `answer`, `certificate`.
    pub name: Arc<str>,
    /// How it went.
    pub status: CheckStatus,
    /// The finding.
    pub message: String,
    /// How long it took, in milliseconds.
    pub duration_ms: Option<f64>,
    /// How to mend it, where it failed and the cause is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_route_to_add_is_read_with_one_or_many_of_each() {
        let add: AddRoute = serde_json::from_value(json!({
            "host": "Cloud.Example.com", "to": "caddy", "listener": "https", "alpn": ["h2"], "from": "192.0.2.7"
        }))
        .unwrap();
        assert_eq!(add.host, ["cloud.example.com".parse().unwrap()]);
        assert_eq!(
            serde_json::to_value(&add).unwrap()["host"],
            "cloud.example.com",
            "as earlier daemons read it"
        );
        assert_eq!(add.to, Target::One("caddy".into()));
        assert_eq!(add.listener, ["https".into()]);
        assert_eq!(add.from, ["192.0.2.7/32".parse().unwrap()]);
        assert_eq!(serde_json::from_value::<AddRoute>(serde_json::to_value(&add).unwrap()).unwrap(), add);

        let add: AddRoute =
            serde_json::from_value(json!({"host": "*", "to": ["100.64.0.2", "[fd7a::2]:443"]})).unwrap();
        assert!(matches!(&add.to, Target::Many(list) if list.len() == 2));
        assert!(add.specs()[0].conditions.listeners.is_empty());
    }

    #[test]
    fn several_hosts_are_a_route_each() {
        for host in [json!(".a.test"), json!(["a.test", "*.a.test"]), json!([".a.test", "A.test"])] {
            let add: AddRoute = serde_json::from_value(json!({"host": host, "to": "x"})).unwrap();
            let specs = add.specs();
            let hosts: Vec<_> = specs.iter().map(|spec| spec.conditions.host.to_string()).collect();
            assert_eq!(hosts, ["a.test", "*.a.test"]);
            let routes: Vec<_> = specs.iter().map(|spec| Route::new(spec, RouteSource::Runtime)).collect();
            for routes in [&routes[..], &routes[..1]] {
                let added = AddedRoutes::from(routes.to_vec());
                assert_eq!(added.all(), routes);
                let text = serde_json::to_string(&added).unwrap();
                assert_eq!(serde_json::from_str::<AddedRoutes>(&text).unwrap(), added);
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_route_is_said() {
        for (body, says) in [
            (json!({"host": "a..b", "to": "x"}), "empty label"),
            (json!({"host": ["a", ".b."], "to": "x", "alpn": 5}), "a string or a list"),
            (json!({"host": [], "to": "x"}), "at least one host"),
            (json!({"host": ["a", "."], "to": "x"}), "the name is empty"),
            (json!({"host": "a", "to": []}), "expected a pool"),
            (json!({"host": "a", "to": ""}), "expected a pool"),
            (json!({"host": "a", "to": ["x", ":1"]}), "\":1\" in a list of addresses"),
            (json!({"host": "a", "to": 5}), "a string or a list of strings"),
            (json!({"host": "a", "to": "x", "form": []}), "unknown field `form`"),
            (json!({"host": "a", "to": "x", "from": "10/8"}), "CIDR"),
            (json!({"to": "x"}), "missing field `host`"),
        ] {
            let error = serde_json::from_value::<AddRoute>(body).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_route_to_remove_is_told_apart_by_what_is_given() {
        let conditions = Conditions {
            alpn: vec!["h2".into(), "acme-tls/1".into()],
            ..Conditions::of("a.example".parse().unwrap())
        };
        let means = |body| serde_json::from_value::<RemoveRoute>(body).unwrap().means(&conditions);
        assert!(means(json!({"host": "a.example"})));
        assert!(means(json!({"host": ".a.example"})) && !means(json!({"host": ".example"})));
        assert!(means(json!({"host": "a.example", "alpn": ["acme-tls/1", "h2"], "close": "true"})));
        assert!(!means(json!({"host": "a.example", "alpn": "h2"})));
        assert!(!means(json!({"host": "a.example", "alpn": []})));
        assert!(!means(json!({"host": "*.example"})));
    }
}
