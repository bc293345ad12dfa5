//! The findings on the machine, and their consequences: where home probably is, and which DNS records to make.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::spec::HostPattern;

/// The findings. Serialises as `edgectl init --json` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The tunnels, by device.
    pub tunnels: Vec<Tunnel>,
    /// Addresses that the internet can reach; empty behind a NAT.
    pub public: Vec<IpAddr>,
    /// Programs other than edged on ports 443 and 80.
    pub taken: Vec<PortHolder>,
    /// A firewall that has to let clients in, and the command that does.
    pub firewall: Option<String>,
}

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// Its name.
    pub device: String,
    /// The kind of tunnel.
    pub kind: TunnelKind,
    /// Whether it is up.
    pub up: bool,
    /// This machine's addresses in it.
    pub addresses: Vec<IpAddr>,
    /// The machines behind it, those most likely to be home first.
    pub homes: Vec<Home>,
}

/// The kind of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// The kernel's WireGuard, or a program that speaks for one.
    Wireguard,
    /// Tailscale.
    Tailscale,
    /// Another.
    Other,
}

/// A machine behind a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Home {
    /// Its address in the tunnel.
    pub address: IpAddr,
    /// The name that the tunnel knows it by.
    pub name: Option<String>,
    /// Whether it was heard of: a handshake, or online in the tailnet.
    pub alive: bool,
}

/// A program that listens where edge wants to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortHolder {
    /// The port.
    pub port: u16,
    /// The program and its process, where it can be told.
    pub program: Option<String>,
}

/// A DNS record to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The name, `*.example.com` for all below.
    pub name: String,
    /// `A` or `AAAA`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The address; `None` where this machine does not know it.
    pub address: Option<IpAddr>,
}

impl Findings {
    /// Where home probably is: the first machine behind a tunnel that is up, one that was heard of before others.
    pub fn guess(&self) -> Option<&Home> {
        let homes = || self.tunnels.iter().filter(|tunnel| tunnel.up).flat_map(|tunnel| &tunnel.homes);
        homes().find(|home| home.alive).or_else(|| homes().next())
    }

    /// The records that lead clients of these hosts here. `*` needs one for each name, which cannot be listed.
    pub fn records(&self, hosts: &[HostPattern]) -> Vec<Record> {
        let names = hosts.iter().filter(|host| **host != HostPattern::Any).map(ToString::to_string);
        let mut records = Vec::new();
        for name in names {
            let record = |address: IpAddr| Record {
                name: name.clone(),
                kind: if address.is_ipv4() { "A" } else { "AAAA" },
                address: Some(address),
            };
            records.extend(self.public.iter().copied().map(record));
            if !self.public.iter().any(IpAddr::is_ipv4) {
                records.push(Record { name: name.clone(), kind: "A", address: None });
            }
        }
        records
    }
}

/// The machines behind a WireGuard device: addresses that stand alone in `AllowedIPs`.
pub(super) fn homes(peers: impl IntoIterator<Item = (Vec<IpNet>, bool)>, own: &[IpAddr]) -> Vec<Home> {
    let mut homes = Vec::new();
    for (allowed, alive) in peers {
        let single = |net: &IpNet| (net.prefix_len() == net.max_prefix_len()).then(|| net.addr());
        let addresses = allowed.iter().filter_map(single).filter(|address| !own.contains(address));
        homes.extend(addresses.map(|address| Home { address, name: None, alive }));
    }
    // IPv4 first within a kind: it is what people type.
    homes.sort_by_key(|home| (!home.alive, home.address.is_ipv6()));
    homes
}

/// The peers in the answer of `tailscale status --json`, online ones first; what is not there is nobody.
pub(super) fn tailnet(json: &str) -> Vec<Home> {
    let Ok(status) = serde_json::from_str::<serde_json::Value>(json) else { return Vec::new() };
    let peers = status["Peer"].as_object().into_iter().flat_map(|peers| peers.values());
    let mut homes: Vec<Home> = peers
        .filter_map(|peer| {
            let mut addresses = peer["TailscaleIPs"].as_array()?.iter();
            let address = addresses.find_map(|address| address.as_str()?.parse().ok())?;
            let name = peer["HostName"].as_str().map(str::to_owned);
            Some(Home { address, name, alive: peer["Online"].as_bool().unwrap_or(false) })
        })
        .collect();
    homes.sort_by_key(|home| (!home.alive, home.address));
    homes
}

/// Whether an address of a device is one of Tailscale's: CGNAT space, or its ULA prefix.
pub(super) fn is_tailscale(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]),
        IpAddr::V6(v6) => v6.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0],
    }
}

/// Whether the internet can reach an address.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || is_tailscale(address))
        }
        // 2000::/3 is what is given out (RFC 4291 §2.4).
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000,
    }
}

/// Whether a ruleset as `nft list ruleset` prints it drops what it does not name at input.
pub(super) fn drops_by_default(ruleset: &str) -> bool {
    ruleset.lines().any(|line| line.contains("hook input") && line.contains("policy drop"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn home_is_a_single_address_of_a_peer_that_was_heard_of() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let own = [ip("10.8.0.1")];
        let silent = (nets(&["10.8.0.9/32"]), false);
        let alive = (nets(&["fd00::2/128", "10.8.0.2/32", "192.168.1.0/24"]), true);
        let all = (nets(&["0.0.0.0/0", "10.8.0.1/32"]), true);
        let homes = homes([silent, alive, all], &own);
        assert_eq!(
            homes.iter().map(|home| home.address).collect::<Vec<_>>(),
            [ip("10.8.0.2"), ip("fd00::2"), ip("10.8.0.9")]
        );
        let tunnel = |up, homes| Tunnel {
            device: "wg0".into(),
            kind: TunnelKind::Wireguard,
            up,
            addresses: own.to_vec(),
            homes,
        };
        let findings = |up| Findings { tunnels: vec![tunnel(up, homes.clone())], ..Findings::default() };
        assert_eq!(findings(true).guess().map(|home| home.address), Some(ip("10.8.0.2")));
        assert_eq!(findings(false).guess(), None);
    }

    #[test]
    fn a_tailnet_names_its_machines() {
        let json = r#"{"Self": {"TailscaleIPs": ["100.64.0.1"]}, "Peer": {
            "a": {"HostName": "phone", "TailscaleIPs": ["100.64.0.3", "fd7a:115c:a1e0::3"], "Online": false},
            "b": {"HostName": "nas", "TailscaleIPs": ["100.64.0.4"], "Online": true}, "c": {}}}"#;
        let homes = tailnet(json);
        assert_eq!(homes.len(), 2);
        assert_eq!((homes[0].address, homes[0].name.as_deref()), (ip("100.64.0.4"), Some("nas")));
        assert!(tailnet("no").is_empty() && tailnet("{}").is_empty());
    }

    #[test]
    fn records_are_for_public_addresses() {
        let findings = Findings { public: vec![ip("2001:db8::1")], ..Findings::default() };
        let hosts = ["example.com", "*.example.com", "*"].map(|host| host.parse().unwrap());
        let records = findings.records(&hosts);
        assert_eq!(records.len(), 4);
        assert_eq!((records[0].kind, records[0].address), ("AAAA", Some(ip("2001:db8::1"))));
        assert_eq!((records[1].kind, records[1].address), ("A", None));
        for (address, public) in [
            ("203.0.113.1", true),
            ("10.0.0.1", false),
            ("100.100.0.1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("2a01::1", true),
            ("::1", false),
        ] {
            assert_eq!(is_public(ip(address)), public, "{address}");
        }
    }

    #[test]
    fn a_firewall_that_drops_is_seen() {
        let drops = "table inet filter {\n chain input {\n  type filter hook input priority filter; policy drop;\n }\n}";
        assert!(drops_by_default(drops));
        assert!(!drops_by_default(&drops.replace("policy drop", "policy accept")));
        assert!(!drops_by_default(""));
    }
}
