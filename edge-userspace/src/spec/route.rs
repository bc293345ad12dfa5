//! A route as the operator configures it.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Access, Choice, ClientProtocol, HostName, HostNameError, ProxyProtocol, ProxyTlvs, Redirect, Target,
};

/// The host that a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This name.
    Exact(HostName),
    /// `*.suffix`: any name below, at any depth, never the suffix itself.
    Below(HostName),
    /// `*`: everything, a client without a usable name included.
    Any,
}

impl HostPattern {
    /// The hosts that an operator writes as one: `.example.com` is short for `example.com` and `*.example.com`.
    pub fn several(text: &str) -> Result<Vec<Self>, HostNameError> {
        match text.strip_prefix('.') {
            None | Some("") => text.parse().map(|host| vec![host]),
            Some(name) => {
                let name: HostName = name.parse()?;
                Ok(vec![Self::Exact(name.clone()), Self::Below(name)])
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("*.") {
            _ if text == "*" => Ok(Self::Any),
            Some(suffix) => suffix.parse().map(Self::Below),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// When a route applies. Two routes with equal conditions are the same route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Conditions {
    /// The host.
    pub host: HostPattern,
    /// The listeners, by name; empty means every tls and http listener.
    #[serde(rename = "listener", skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Arc<str>>,
    /// Matches when the client speaks any of these; empty means TLS and HTTP.
    #[serde(rename = "protocol", skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClientProtocol>,
    /// Matches when the client offers any of these protocols; empty means always.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<Arc<str>>,
    /// Matches when the client's address is in any of these; empty means always.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<IpNet>,
}

impl Conditions {
    /// For every client that asks for this host by TLS or HTTP.
    pub fn of(host: HostPattern) -> Self {
        Self { host, listeners: Vec::new(), protocols: Vec::new(), alpn: Vec::new(), from: Vec::new() }
    }

    /// Whether it is for clients of this listener.
    pub fn hear(&self, listener: &str) -> bool {
        self.listeners.is_empty() || self.listeners.iter().any(|name| &**name == listener)
    }

    /// Whether it is for clients that speak this.
    pub fn take(&self, protocol: ClientProtocol) -> bool {
        if self.protocols.is_empty() { protocol.is_web() } else { self.protocols.contains(&protocol) }
    }

    /// The same conditions in the one form in which equal ones compare equal: each list sorted, nothing twice.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        for names in [&mut self.listeners, &mut self.alpn] {
            names.sort_unstable();
            names.dedup();
        }
        self.protocols.sort_unstable();
        self.protocols.dedup();
        self.from.sort_unstable();
        self.from.dedup();
        self
    }
}

/// One route. Serialises with the keys of `[[route]]`; what is the default is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteSpec {
    /// When it applies.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// Where it leads.
    pub to: Target,
    /// Which of its clients may use it. The others are refused; they never fall through to another route.
    #[serde(flatten)]
    pub access: Access,
    /// Whether its requests in clear text are sent to https.
    #[serde(skip_serializing_if = "is_default")]
    pub redirect: Redirect,
    /// Connections at the same time; 0 means no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub connections: usize,
    /// The first host of the `[[route]]`, where that has several and a limit: all of them share it.
    #[serde(skip)]
    pub shares_limit_with: Option<HostPattern>,
    /// The PROXY header for a `to` that is an address or a list of addresses.
    #[serde(skip_serializing_if = "is_default")]
    pub proxy_protocol: ProxyProtocol,
    /// The TLVs in a header of version 2, where `to` is an address or a list of addresses.
    #[serde(skip_serializing_if = "is_default")]
    pub proxy_tlvs: ProxyTlvs,
    /// The datapath tier allowed.
    #[serde(skip_serializing_if = "is_default")]
    pub datapath: Choice,
    /// A connection without a byte either way for this long is closed, nothing is never; `None` is what the listener
    /// says.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "time")]
    pub idle_timeout: Option<Duration>,
    /// For all attempts to connect together, where `to` is an address or a list of addresses.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "time")]
    pub connect_timeout: Option<Duration>,
}

impl RouteSpec {
    /// A route with nothing else set.
    pub fn new(conditions: Conditions, to: Target) -> Self {
        Self {
            conditions,
            to,
            access: Access::default(),
            redirect: Redirect::Off,
            connections: 0,
            shares_limit_with: None,
            proxy_protocol: ProxyProtocol::Off,
            proxy_tlvs: ProxyTlvs::default(),
            datapath: Choice::Auto,
            idle_timeout: None,
            connect_timeout: None,
        }
    }

    /// Whether clients that speak this are sent to https.
    pub fn redirects(&self, protocol: ClientProtocol) -> bool {
        self.redirect == Redirect::Https && protocol == ClientProtocol::Http
    }
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn time<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&humantime::format_duration(*time)),
        None => serializer.serialize_none(),
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
