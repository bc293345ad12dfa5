//! The state that a connection meets: immutable, swapped whole, so that readers never wait.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::Destination;
use crate::{pool::Backend, route::Table, spec::ListenerSpec};

/// Everything that decides about a connection. One snapshot serves a connection from accept to connect. The
/// default has no listener.
#[derive(Debug, Default)]
pub struct Running {
    /// The routes.
    pub routes: Table<Arc<Destination>>,
    /// The listeners, by name.
    pub listeners: HashMap<Arc<str>, Arc<ListenerState>>,
    /// From accept to a complete hello.
    pub hello_timeout: Duration,
    /// The largest hello, in bytes.
    pub hello_bytes: usize,
    /// Connections of one source at the same time; 0 means no limit.
    pub connections_per_source: usize,
    /// New connections a second of one source; 0 means no limit.
    pub connection_rate_per_source: u32,
    /// A connection without a byte either way for this long is closed; `None` means never.
    pub idle_timeout: Option<Duration>,
    /// Whether connections that sent no byte have a line in the access log.
    pub log_empty: bool,
}

impl Running {
    /// Where connections may lead: the destinations of all routes and tcp listeners.
    pub fn destinations(&self) -> impl Iterator<Item = &Arc<Destination>> {
        let of_listeners = self.listeners.values().filter_map(|listener| listener.destination.as_ref());
        self.routes.iter().map(|rule| &rule.target).chain(of_listeners)
    }

    /// The backends there, each once.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let mut seen = HashSet::new();
        let all = self.destinations().flat_map(|destination| destination.pool.backends());
        all.filter(move |backend| seen.insert(Arc::as_ptr(backend)))
    }
}

/// A listener as its connections see it.
#[derive(Debug)]
pub struct ListenerState {
    /// As the operator said it.
    pub spec: ListenerSpec,
    /// Where a tcp listener leads.
    pub destination: Option<Arc<Destination>>,
    /// Whether a route is for bytes that none of its protocols begins with.
    pub takes_any: bool,
}

impl ListenerState {
    /// Whether this source may connect.
    pub fn admits(&self, source: IpAddr) -> bool {
        self.spec.access.admits(source)
    }

    /// Whether this peer must send a PROXY header, which is then believed.
    pub fn believes(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.spec.accept_proxy.iter().any(|net| net.contains(&peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Protocol;

    #[test]
    fn the_mapped_address_of_a_proxy_is_its_ipv4_address() {
        let listener = ListenerState {
            spec: ListenerSpec {
                accept_proxy: vec!["198.51.100.0/24".parse().unwrap()],
                ..ListenerSpec::new("https", vec!["[::]:443".parse().unwrap()], Protocol::Tls)
            },
            destination: None,
            takes_any: false,
        };
        assert!(listener.believes("::ffff:198.51.100.7".parse().unwrap()));
        assert!(!listener.believes("198.51.101.7".parse().unwrap()));
    }
}
