//! Connections: listed, closed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{BackendState, fields};
use crate::spec::{HostName, HostPattern, SocketName, Tier};

/// `GET /v1/connections`: one live connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number, the same as in the access log.
    pub id: u64,
    /// The client, behind a believed PROXY header the one it names.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// The name the client asked for.
    pub host: Option<HostName>,
    /// The client's ALPN list.
    pub alpn: Vec<Arc<str>>,
    /// The host of the route; `null` before there is one and on a tcp listener.
    pub route: Option<Arc<str>>,
    /// The address of the backend; `null` before it is connected.
    pub backend: Option<SocketName>,
    /// The tunnel that the backend is bound to; `null` for a flow whose backend has left the configuration.
    #[serde(default)]
    pub device: Option<Arc<str>>,
    /// The backend's current state; `null` before it is connected, and for a flow whose backend has left the
    /// configuration. A connection stays with its backend when that goes down.
    #[serde(default)]
    pub backend_state: Option<BackendState>,
    /// The tier that carries; `null` before the backend is connected.
    pub datapath: Option<Tier>,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// Seconds since the last byte either way.
    pub idle_seconds: f64,
    /// Bytes from the client to the backend.
    pub bytes_up: u64,
    /// Bytes from the backend to the client.
    pub bytes_down: u64,
    /// A sockmap connection that user space carries; absent where it does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spilled: bool,
}

/// The answer to `DELETE /v1/connections/{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedConnection {
    /// The connection that was ended.
    pub id: u64,
}

/// `GET /v1/connections`, `DELETE /v1/connections`: which connections are meant. A connection has to meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionFilter {
    /// The client is in this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "fields::some_prefix")]
    pub client: Option<IpNet>,
    /// The client asked for this name, or for one that the pattern matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostPattern>,
    /// This listener accepted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<Arc<str>>,
    /// The backend's address, with or without its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Arc<str>>,
    /// The tier that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath: Option<Tier>,
    /// It was accepted at least this long ago, like `"10m"`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "fields::span")]
    pub older: Option<Duration>,
    /// The most connections in the answer, the oldest first; 0 means all.
    #[serde(default, skip_serializing_if = "fields::is_zero", deserialize_with = "fields::number")]
    pub limit: usize,
}

impl ConnectionFilter {
    /// Whether it names no condition; `limit` is none.
    pub fn is_empty(&self) -> bool {
        *self == Self { limit: self.limit, ..Self::default() }
    }

    /// Whether a connection meets every condition.
    pub fn takes(&self, connection: &Connection) -> bool {
        let client = connection.client.ip().to_canonical();
        self.client.is_none_or(|prefix| prefix.contains(&client))
            && self.host.as_ref().is_none_or(|pattern| asks_for(pattern, connection.host.as_ref()))
            && self.listener.as_ref().is_none_or(|listener| *listener == connection.listener)
            && self.backend.as_ref().is_none_or(|wanted| leads_to(wanted, connection.backend.as_ref()))
            && self.datapath.is_none_or(|tier| connection.datapath == Some(tier))
            && self.older.is_none_or(|older| connection.age_seconds >= older.as_secs_f64())
    }

    /// The connections that are meant, in the order that they have.
    pub fn apply(&self, mut connections: Vec<Connection>) -> Vec<Connection> {
        connections.retain(|connection| self.takes(connection));
        if self.limit > 0 {
            connections.truncate(self.limit);
        }
        connections
    }
}

/// Whether a name is one that the pattern is for; `*` takes a client without a name too.
pub(in crate::control) fn asks_for(pattern: &HostPattern, host: Option<&HostName>) -> bool {
    match (pattern, host) {
        (HostPattern::Any, _) => true,
        (_, None) => false,
        (HostPattern::Exact(name), Some(host)) => name == host,
        (HostPattern::Below(suffix), Some(host)) => {
            let below = host.as_str().strip_suffix(suffix.as_str());
            below.is_some_and(|below| below.ends_with('.'))
        }
    }
}

/// Whether a backend's address is the one that was written, with or without its port.
fn leads_to(wanted: &str, backend: Option<&SocketName>) -> bool {
    backend.is_some_and(|backend| {
        backend.to_string() == wanted
            || backend.tcp().is_some_and(|address| {
                wanted.trim_start_matches('[').trim_end_matches(']') == address.ip().to_string()
            })
    })
}

/// The answer to `DELETE /v1/connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedConnections {
    /// How many were ended.
    pub closed: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn connection() -> Connection {
        serde_json::from_value(json!({
            "id": 7, "client": "192.0.2.7:4711", "listener": "https", "host": "a.example.com", "alpn": [],
            "route": "*.example.com", "backend": "[fd7a::2]:443", "datapath": "splice",
            "age_seconds": 61.0, "idle_seconds": 0.0, "bytes_up": 1, "bytes_down": 2
        }))
        .unwrap()
    }

    #[test]
    fn a_connection_has_to_meet_every_condition() {
        let takes = |filter| serde_json::from_value::<ConnectionFilter>(filter).unwrap().takes(&connection());
        for filter in [
            json!({}),
            json!({"client": "192.0.2.0/24"}),
            json!({"client": "192.0.2.7", "host": "A.example.com"}),
            json!({"host": "*.example.com"}),
            json!({"host": "*"}),
            json!({"backend": "[fd7a::2]:443"}),
            json!({"backend": "fd7a::2", "older": "1m"}),
            json!({"backend": "[fd7a::2]", "datapath": "splice", "listener": "https"}),
        ] {
            assert!(takes(filter.clone()), "{filter}");
        }
        for filter in [
            json!({"client": "198.51.100.0/24"}),
            json!({"client": "192.0.2.7", "host": "b.example.com"}),
            json!({"host": "*.a.example.com"}),
            json!({"host": "*.ample.com"}),
            json!({"backend": "[fd7a::2]:44"}),
            json!({"older": "2m"}),
            json!({"datapath": "flow"}),
            json!({"listener": "http"}),
        ] {
            assert!(!takes(filter.clone()), "{filter}");
        }
        for wrong in [json!({"clients": "192.0.2.7"}), json!({"client": "x"}), json!({"datapath": "warp"})] {
            serde_json::from_value::<ConnectionFilter>(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_limit_is_no_condition() {
        let filter = ConnectionFilter { limit: 1, ..ConnectionFilter::default() };
        assert!(filter.is_empty());
        assert_eq!(filter.apply(vec![connection(), connection()]).len(), 1);
        assert_eq!(serde_json::to_value(ConnectionFilter::default()).unwrap(), json!({}));
    }
}
