//! The addresses that no block may cut off by accident: home and the tunnels to it, the operator's own sessions, and what this machine
//! itself needs. Looked up when it is asked for: tunnels roam, names move, operators come and go.

mod ssh;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use ipnet::IpNet;

pub(super) use self::ssh::remember_ports;
use crate::{
    config::Settings,
    connection::Running,
    kernel::{Interface, RouteLookup, RouteQuestion, connected_to, interfaces},
    shield::Vital,
    tunnel,
};

/// Addresses that only a default route leads to (RFC 5737, RFC 3849). Nothing is sent there.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Everything that must stay reachable, the most telling first. Waits for the kernel and for WireGuard: not to be called
/// on a thread that serves.
pub(super) fn find(settings: &Settings, running: &Running) -> Vec<Vital> {
    let devices = interfaces().unwrap_or_default();
    let mut found = sessions();
    let mut targets: Vec<IpAddr> = found.iter().map(|vital| vital.net.addr()).collect();
    let mut named: BTreeSet<&str> = BTreeSet::new();
    let backends: Vec<_> = running.backends().collect();
    for backend in &backends {
        named.extend(backend.device().map(|device| &**device));
        for address in backend.addresses(0) {
            let address = address.ip().to_canonical();
            targets.push(address);
            found.push(Vital::at(address, format!("the backend {} is there", backend.to())));
        }
    }
    found.extend(ways(&devices, named, &targets));
    found.extend(own(&devices));
    found.extend(name_servers(settings));
    found.extend(proxies(settings));
    found
}

/// Where operators are logged in from.
fn sessions() -> Vec<Vital> {
    let mut found = Vec::new();
    for port in ssh::ports() {
        match connected_to(port) {
            Ok(clients) => {
                found.extend(clients.into_iter().map(|client| {
                    Vital::at(client, format!("an SSH session (port {port}) comes from there"))
                }));
            }
            Err(error) => tracing::warn!(%error, port, "SSH sessions cannot be looked up"),
        }
    }
    found
}

/// The tunnels' other ends and the routers on the way to these addresses and to anywhere, by the routes in force. A
/// tunnel may lead through another one.
fn ways(devices: &[Interface], named: BTreeSet<&str>, targets: &[IpAddr]) -> Vec<Vital> {
    let by_index: BTreeMap<u32, &str> = devices.iter().map(|device| (device.index, &*device.name)).collect();
    let mut found = Vec::new();
    let mut routes = RouteLookup::open()
        .inspect_err(|error| tracing::warn!(%error, "the routes home cannot be looked up"))
        .ok();
    let mut waiting: Vec<IpAddr> = targets.iter().copied().chain(ANYWHERE).collect();
    let mut seen: BTreeSet<IpAddr> = waiting.iter().copied().collect();
    let mut asked: BTreeSet<&str> = BTreeSet::new();
    let mut next: Vec<&str> = named.into_iter().collect();
    loop {
        while let Some(address) = waiting.pop() {
            // An address without a route cannot be cut off.
            let Some(Ok(way)) = routes.as_mut().map(|routes| routes.hop(&RouteQuestion::to(address))) else {
                continue;
            };
            let Some(device) = by_index.get(&way.device).copied() else { continue };
            if let Some(router) = way.router()
                && seen.insert(router)
            {
                found.push(Vital::at(router, format!("it is the router on {device}")));
            }
            next.push(device);
        }
        for device in std::mem::take(&mut next) {
            if !asked.insert(device) {
                continue;
            }
            for end in tunnel::endpoints(device) {
                found.push(Vital::at(end, format!("the other end of the tunnel {device} is there")));
                if seen.insert(end) {
                    waiting.push(end);
                }
            }
        }
        if waiting.is_empty() {
            return found;
        }
    }
}

fn own(devices: &[Interface]) -> impl Iterator<Item = Vital> {
    let addresses = devices.iter().flat_map(|device| device.addresses.iter().map(move |own| (device, own)));
    addresses.map(|(device, own)| Vital::at(*own, format!("it is this machine's own ({})", device.name)))
}

fn name_servers(settings: &Settings) -> Vec<Vital> {
    let resolver = &settings.resolver;
    let configured = resolver.servers.iter().chain(resolver.suffixes.values().flatten());
    let mut servers: BTreeSet<IpAddr> = configured.map(|server| server.ip().to_canonical()).collect();
    let system = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    servers.extend(system_servers(&system));
    servers.into_iter().map(|server| Vital::at(server, "it is a name server of this machine")).collect()
}

/// `nameserver` lines of resolv.conf(5).
fn system_servers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let server = (words.next()? == "nameserver").then(|| words.next())??;
        // A link-local address may name its device.
        server.split('%').next()?.parse().ok()
    })
}

/// All clients of such a listener come with the address of a proxy.
fn proxies(settings: &Settings) -> impl Iterator<Item = Vital> {
    let proxies = settings
        .listeners
        .iter()
        .flat_map(|listener| listener.accept_proxy.iter().map(move |net: &IpNet| (&listener.name, *net)));
    proxies.map(|(listener, net)| Vital {
        net,
        what: format!("the proxies in front of the listener {listener} are there"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_the_system_are_read() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n nameserver\tfe80::1%eth0 # x\n\
                    nameserver\nnameserver nonsense\n";
        let found: Vec<String> = system_servers(text).map(|server| server.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "fe80::1"]);
    }
}
