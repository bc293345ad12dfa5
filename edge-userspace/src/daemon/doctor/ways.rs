//! `edgectl doctor` on the paths home: the MSS of the listeners, the devices, and whether a ClientHello as
//! large as a browser's arrives.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream};

use crate::{
    connection::{Destination, Running},
    control::api::{Check, CheckStatus},
    daemon::segments::Clamp,
    pool::{
        Backend,
        check::{CheckError, Plan, diagnosis::is_black_hole},
    },
    spec::{Ask, HostName, HostPattern, Protocol},
    tunnel::{self, Peer},
};

/// Backends that are connected to for one report; each takes a few connections.
pub(super) const MOST: usize = 64;
/// How many at once.
pub(super) const AT_ONCE: usize = 16;

/// A backend that TLS clients are sent to, and how it is asked.
pub(super) struct Home {
    pub(super) backend: Arc<Backend>,
    pub(super) destination: Arc<Destination>,
    pub(super) plan: Plan,
}

/// Backends that TLS clients can reach: each path once per route, in the order of the routes.
pub(super) fn homes(running: &Running) -> Vec<Home> {
    let mut listeners: Vec<_> = running.listeners.values().collect();
    listeners.sort_by_key(|listener| &listener.spec.name);
    let tls: Vec<_> = listeners.iter().filter(|listener| listener.spec.protocol == Protocol::Tls).collect();
    let mut homes = Vec::new();
    for rule in &running.routes {
        let met = |name: &Arc<str>| {
            rule.conditions.listeners.is_empty() || rule.conditions.listeners.contains(name)
        };
        let Some(listener) = tls.iter().find(|listener| met(&listener.spec.name)) else { continue };
        let pool = &rule.target.pool;
        homes.extend(pool.backends().iter().map(|backend| Home {
            backend: Arc::clone(backend),
            destination: Arc::clone(&rule.target),
            plan: Plan {
                health: *pool.health(),
                asks: vec![Ask::Tls],
                port: listener.spec.bind.first().map_or(443, SocketAddr::port),
                server_name: exact(&rule.conditions.host).cloned(),
                proxy_protocol: rule.target.proxy_protocol,
            },
        }));
    }
    homes
}

/// The name of a route for one host. For other routes none is invented: a server may request a certificate
/// for it.
pub(super) fn exact(host: &HostPattern) -> Option<&HostName> {
    match host {
        HostPattern::Exact(name) => Some(name),
        HostPattern::Below(_) | HostPattern::Any => None,
    }
}

/// The MSS that a listener announces.
pub(super) fn announced(listener: &str, clamp: Option<&Clamp>) -> Check {
    let message = match clamp {
        Some(Clamp { mss, mtu, by }) => {
            format!("announces an MSS of {mss}: the narrowest way, to {by}, carries packets of {mtu} bytes")
        }
        None => "announces the MSS of the client's own link: no way home is known yet".into(),
    };
    Check::new(format!("listener {listener}"), CheckStatus::Ok, message)
}

/// The devices by which packets go home.
pub(super) async fn devices(backends: &[Arc<Backend>]) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut by_device: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    for backend in backends.iter().take(MOST) {
        for address in &backend.addresses(0) {
            let Ok(egress) = tunnel::egress(address.ip(), backend.device().map(|device| &**device)).await
            else {
                continue;
            };
            if egress.by_default && backend.device().is_none() && is_private(address.ip()) {
                checks.push(astray(backend, &egress.device));
            }
            let least = by_device.entry(egress.device).or_insert(egress.mtu);
            *least = egress.mtu.min(*least);
        }
    }
    for (device, mtu) in by_device {
        let peers = tunnel::peers(&device).await;
        checks.push(device_check(&device, mtu, peers.as_deref(), SystemTime::now()));
    }
    checks
}

fn astray(backend: &Backend, device: &str) -> Check {
    let message = format!("leaves by {device}, the way to the internet: no tunnel has a route to it");
    let remedy = "bring the tunnel up, or add the route; with `device = \"wg0\"` in its [[pool.backend]] nothing \
                  ever leaves another way";
    Check::new(format!("way to {}", backend.id()), CheckStatus::Warn, message).remedy(remedy)
}

fn device_check(device: &str, mtu: u32, peers: Option<&[Peer]>, now: SystemTime) -> Check {
    let name = format!("device {device}");
    let carries = format!("carries packets of {mtu} bytes");
    let Some(peers) = peers else { return Check::new(name, CheckStatus::Ok, carries) };
    match peers.iter().filter_map(|peer| peer.handshake).max() {
        None => Check::new(name, CheckStatus::Warn, format!("{carries}, but no peer has ever shaken hands"))
            .remedy(format!(
                "see with `wg show {device}` that keys and endpoint are right, and that UDP reaches the other end"
            )),
        Some(last) => {
            let ago = now.duration_since(last).unwrap_or_default();
            let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
            Check::new(name, CheckStatus::Ok, format!("{carries}; last handshake {ago} ago"))
        }
    }
}

/// Whether no route of the internet leads there (RFC 1918, RFC 6598, RFC 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Sends a small and a large ClientHello through every way there is.
pub(super) async fn hellos(homes: &[Home]) -> Vec<Check> {
    let mut seen = HashSet::new();
    let distinct: Vec<_> = homes.iter().filter(|home| seen.insert(home.backend.id())).collect();
    let all = distinct.len();
    let asked: Vec<_> = distinct.into_iter().take(MOST).map(hello).collect();
    let mut checks: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    if all > MOST {
        let message = format!("{MOST} of {all} backends were connected to");
        checks.push(Check::new("hellos", CheckStatus::Skip, message));
    }
    checks
}

async fn hello(home: &Home) -> Check {
    hello_check(&home.backend, is_black_hole(&home.backend, &home.plan).await)
}

fn hello_check(backend: &Backend, outcome: Result<bool, CheckError>) -> Check {
    let name = format!("hello to {}", backend.id());
    match outcome {
        Ok(false) => Check::new(name, CheckStatus::Ok, "a ClientHello of 2.4 kB, as browsers send it, is answered"),
        Ok(true) => {
            let device = backend.device().map_or("the tunnel", |device| &**device);
            Check::new(
                name,
                CheckStatus::Fail,
                "a ClientHello of 2.4 kB in small packets is answered, in large ones it is lost: they vanish on the way",
            )
            .remedy(format!(
                "lower the MTU of {device} at both ends (`ip link set {device} mtu 1280`, and MTU = 1280 in its \
                 configuration): what is below the tunnel carries less than it promises"
            ))
        }
        Err(error @ CheckError::Connect(_)) => Check::new(name, CheckStatus::Fail, error.to_string())
            .remedy("see that the service runs at home and that the tunnel is up"),
        Err(error) => Check::new(name, CheckStatus::Warn, error.to_string()).remedy(
            "see that a TLS service listens there, and that `proxy_protocol` is what it expects; a route that is \
             for HTTP only names its listener",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Settings,
        daemon::build::{Retained, build},
    };

    fn running(text: &str) -> Running {
        build(&Settings::parse("test", text).unwrap(), &[], &mut Retained::default()).running
    }

    #[test]
    fn only_what_tls_clients_reach_is_sent_a_hello() {
        let running = running(
            "[[route]]\nhost = \"a.example\"\nto = [\"10.0.0.1\", \"10.0.0.2:8443\"]\nproxy_protocol = \"v2\"\n\
             [[route]]\nhost = \"b.example\"\nto = \"10.0.0.3\"\nlistener = [\"http\"]\n\
             [[route]]\nhost = \"*.c.example\"\nto = \"10.0.0.4\"\n",
        );
        let shown: Vec<_> = homes(&running)
            .iter()
            .map(|home| {
                let name = home.plan.server_name.as_ref().map(HostName::to_string);
                (home.backend.to().to_string(), home.plan.port, name)
            })
            .collect();
        let a = Some("a.example".to_owned());
        let expected = [
            ("10.0.0.1".to_owned(), 443, a.clone()),
            ("10.0.0.2:8443".to_owned(), 443, a),
            ("10.0.0.4".to_owned(), 443, None),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_peer_that_never_answered_is_said() {
        let now = SystemTime::now();
        let peer = |handshake| Peer {
            key: [1; 32],
            endpoint: None,
            allowed: Vec::new(),
            handshake,
            received: 0,
            sent: 148,
        };
        let check = device_check("wg0", 1420, Some(&[peer(None)]), now);
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.remedy.unwrap().contains("wg show wg0"));
        let shaken = now - Duration::from_secs(75);
        let check = device_check("wg0", 1420, Some(&[peer(None), peer(Some(shaken))]), now);
        assert_eq!(
            (check.status, &*check.message),
            (CheckStatus::Ok, "carries packets of 1420 bytes; last handshake 1m 15s ago")
        );
        assert_eq!(device_check("eth0", 1500, None, now).message, "carries packets of 1500 bytes");
    }

    #[test]
    fn a_black_hole_comes_with_its_remedy() {
        let running = running(
            "[[pool]]\nname = \"p\"\n[[pool.backend]]\nto = \"10.0.0.1\"\ndevice = \"wg7\"\n[[route]]\nhost = \"*\"\nto = \"p\"\n",
        );
        let homes = homes(&running);
        let check = |outcome| hello_check(&homes[0].backend, outcome);
        let lost = check(Ok(true));
        assert_eq!((lost.status, &*lost.name), (CheckStatus::Fail, "hello to 10.0.0.1 by wg7"));
        assert!(lost.remedy.unwrap().contains("ip link set wg7 mtu 1280"));
        assert_eq!(check(Ok(false)).status, CheckStatus::Ok);
        assert_eq!(check(Err(CheckError::Foreign(Ask::Tls))).status, CheckStatus::Warn);
    }

    #[test]
    fn addresses_of_homes_are_private() {
        for (ip, expected) in [
            ("100.64.0.2", true),
            ("100.127.255.255", true),
            ("100.128.0.1", false),
            ("192.168.1.2", true),
            ("fd7a:115c:a1e0::2", true),
            ("203.0.113.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_private(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
