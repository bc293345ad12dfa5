//! Where a backend is: an address given once for all, or what its name resolves to at the moment.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use super::names::Labels;
use crate::spec::{BackendAddress, BackendHost};

/// One address of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port, if the configuration or an SRV record gives one; else the listener's is meant.
    pub port: Option<u16>,
}

/// A backend's addresses in the order in which they are tried; seldom more than one of each family.
pub type Addresses = SmallVec<[SocketAddr; 2]>;

/// Where a backend is. Readers never wait for the resolver.
pub(super) struct Location {
    /// The configured port; wins over SRV.
    port: Option<u16>,
    host: Host,
}

enum Host {
    Ip(IpAddr),
    Name(ArcSwap<Vec<Endpoint>>),
    /// A Unix socket has no address.
    Unix,
    /// It depends on the client's name.
    Labels(Arc<Labels>),
}

impl Location {
    pub(super) fn new(to: &BackendAddress) -> Self {
        let host = match &to.host {
            BackendHost::Ip(ip) => Host::Ip(*ip),
            BackendHost::Name(_) => Host::Name(ArcSwap::default()),
            BackendHost::Unix(_) => Host::Unix,
            BackendHost::Label(template) => Host::Labels(Arc::new(Labels::new(template.clone()))),
        };
        Self { port: to.port, host }
    }

    /// Whether clients can be sent there: it has an address, or needs none.
    pub(super) fn is_known(&self) -> bool {
        match &self.host {
            Host::Ip(_) | Host::Unix | Host::Labels(_) => true,
            Host::Name(endpoints) => !endpoints.load().is_empty(),
        }
    }

    /// The addresses, `default_port` where neither the configuration nor SRV gives one. None for a Unix socket,
    /// and those of all names that are known for a `{label}` target.
    pub(super) fn addresses(&self, default_port: u16) -> Addresses {
        let address = |ip, srv: Option<u16>| SocketAddr::new(ip, self.port.or(srv).unwrap_or(default_port));
        match &self.host {
            Host::Ip(ip) => [address(*ip, None)].into_iter().collect(),
            Host::Name(endpoints) => endpoints.load().iter().map(|at| address(at.ip, at.port)).collect(),
            Host::Unix => Addresses::new(),
            Host::Labels(labels) => labels.endpoints().iter().map(|at| address(at.ip, at.port)).collect(),
        }
    }

    /// The names that depend on the client's; `None` for any other place.
    pub(super) fn labels(&self) -> Option<&Arc<Labels>> {
        match &self.host {
            Host::Labels(labels) => Some(labels),
            Host::Ip(_) | Host::Name(_) | Host::Unix => None,
        }
    }

    /// An address found, with the port to connect to.
    pub(super) fn address_of(&self, endpoint: Endpoint, default_port: u16) -> SocketAddr {
        SocketAddr::new(endpoint.ip, self.port.or(endpoint.port).unwrap_or(default_port))
    }

    /// The same for display.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        match &self.host {
            Host::Ip(ip) => vec![Endpoint { ip: *ip, port: self.port }],
            Host::Name(endpoints) => {
                let endpoints = endpoints.load();
                endpoints.iter().map(|at| Endpoint { ip: at.ip, port: self.port.or(at.port) }).collect()
            }
            // There would be one for each name.
            Host::Unix | Host::Labels(_) => Vec::new(),
        }
    }

    /// Takes the resolver's answer. The same endpoints in another order change nothing: the order in use may
    /// be the better one.
    pub(super) fn resolved(&self, found: Vec<Endpoint>) {
        let Host::Name(endpoints) = &self.host else { return };
        let known = endpoints.load();
        if known.len() != found.len() || !found.iter().all(|endpoint| known.contains(endpoint)) {
            endpoints.store(Arc::new(found));
        }
    }

    /// `ip` answered before the addresses ahead of it: it goes first from now on, so that an unreachable
    /// family delays one client and not every one. Not if SRV records determine the order.
    pub(super) fn prefer(&self, ip: IpAddr) {
        let Host::Name(endpoints) = &self.host else { return };
        endpoints.rcu(|known| {
            let mut ordered = Vec::clone(known);
            if known.iter().all(|endpoint| endpoint.port.is_none()) {
                // Stable, and `false` sorts first.
                ordered.sort_by_key(|endpoint| endpoint.ip != ip);
            }
            ordered
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(to: &str, endpoints: &[Endpoint]) -> Location {
        let location = Location::new(&to.parse().unwrap());
        location.resolved(endpoints.to_vec());
        location
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_comes_from_the_configuration_then_from_srv_then_from_the_listener() {
        let endpoints = [
            Endpoint { ip: ip("192.0.2.7"), port: Some(8443) },
            Endpoint { ip: ip("192.0.2.8"), port: None },
        ];
        let ports = |to: &str| -> Vec<u16> {
            location(to, &endpoints).addresses(443).iter().map(SocketAddr::port).collect()
        };
        assert_eq!(ports("caddy.home.example"), [8443, 443]);
        assert_eq!(ports("caddy.home.example:1443"), [1443, 1443]);
        assert_eq!(ports("192.0.2.1"), [443], "and the resolver has no say about an address");
    }

    #[test]
    fn the_address_that_answered_goes_first_unless_srv_says_otherwise() {
        let ips = ["2001:db8::7", "192.0.2.7"].map(ip);
        for (port, expected) in [(None, ips[1]), (Some(443), ips[0])] {
            let endpoints = ips.map(|ip| Endpoint { ip, port });
            let location = location("caddy.home.example", &endpoints);
            location.prefer(ips[1]);
            assert_eq!(location.addresses(443)[0].ip(), expected);
            location.resolved(endpoints.to_vec());
            assert_eq!(location.addresses(443)[0].ip(), expected, "and a repeated answer keeps that");
            location.resolved(endpoints[..1].to_vec());
            assert_eq!(location.addresses(443)[0].ip(), ips[0], "another one does not");
        }
    }
}
