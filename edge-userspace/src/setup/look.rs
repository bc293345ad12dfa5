//! Reads the machine for [`Findings`]. What cannot be read is left out: `edgectl init` then asks.

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    process::{Command, Stdio},
};

use super::findings::{
    Findings, Home, PortHolder, Tunnel, TunnelKind, drops_by_default, homes, is_public, is_tailscale, tailnet,
};
use crate::{
    kernel::{Interface, interfaces},
    listener::holder,
    tunnel,
};

/// The ports of the default listeners.
const PORTS: [u16; 2] = [443, 80];

/// Looks at this machine. Peers of WireGuard and the owners of ports are shown to root only.
pub async fn look() -> Findings {
    let interfaces = interfaces().unwrap_or_default();
    let mut tunnels = Vec::new();
    for interface in interfaces.iter().filter(|interface| !interface.is_loopback) {
        tunnels.extend(tunnel_of(interface).await);
    }
    let is_tunnel =
        |interface: &&Interface| tunnels.iter().any(|tunnel: &Tunnel| tunnel.device == interface.name);
    let outer = interfaces.iter().filter(|interface| !is_tunnel(interface));
    let mut public: Vec<IpAddr> = outer
        .flat_map(|interface| &interface.addresses)
        .copied()
        .filter(|address| is_public(*address))
        .collect();
    public.sort_unstable();
    public.dedup();
    Findings { tunnels, public, taken: PORTS.into_iter().filter_map(taken).collect(), firewall: firewall() }
}

async fn tunnel_of(interface: &Interface) -> Option<Tunnel> {
    let own = &interface.addresses;
    let peers = tunnel::peers(&interface.name).await;
    let (kind, homes) = if interface.name.starts_with("tailscale") {
        (TunnelKind::Tailscale, machines_of_tailnet())
    } else if let Some(peers) = peers {
        let peers = peers.into_iter().map(|peer| (peer.allowed, peer.handshake.is_some()));
        (TunnelKind::Wireguard, homes(peers, own))
    } else if interface.is_wireguard {
        // Only root sees its peers.
        (TunnelKind::Wireguard, Vec::new())
    } else if interface.is_tunnel && own.iter().copied().any(is_tailscale) {
        (TunnelKind::Tailscale, machines_of_tailnet())
    } else if interface.is_tunnel && !own.is_empty() {
        (TunnelKind::Other, Vec::new())
    } else {
        return None;
    };
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let addresses = own.iter().copied().filter(|address| !link_local(address)).collect();
    Some(Tunnel { device: interface.name.clone(), kind, up: interface.is_up, addresses, homes })
}

fn machines_of_tailnet() -> Vec<Home> {
    output("tailscale", &["status", "--json"]).map(|json| tailnet(&json)).unwrap_or_default()
}

/// The program that keeps a port from edge; nobody where it is free or edged has it.
fn taken(port: u16) -> Option<PortHolder> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let in_use = |address: SocketAddr| matches!(TcpListener::bind(address), Err(error) if error.kind() == io::ErrorKind::AddrInUse);
    if !in_use(address) && !in_use(([0, 0, 0, 0], port).into()) {
        return None;
    }
    let found = holder(address);
    // systemd holds the sockets of edged between two runs.
    if found.as_ref().is_some_and(|found| found.name == "edged") {
        return None;
    }
    Some(PortHolder { port, program: found.map(|found| found.to_string()) })
}

/// The command that opens the ports where a firewall is seen to drop.
fn firewall() -> Option<String> {
    let ufw = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    if ufw.lines().any(|line| line.trim() == "ENABLED=yes") {
        return Some("ufw allow 80,443/tcp".to_owned());
    }
    if output("firewall-cmd", &["--state"]).is_some_and(|state| state.trim() == "running") {
        return Some(
            "firewall-cmd --permanent --add-service={http,https} && firewall-cmd --reload".to_owned(),
        );
    }
    let ruleset = output("nft", &["list", "ruleset"])?;
    drops_by_default(&ruleset)
        .then(|| "add `tcp dport { 80, 443 } accept` to the input chain in /etc/nftables.conf".to_owned())
}

/// The output of a program that is there, succeeds, and takes at most a few seconds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("timeout");
    command.args(["5", program]).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}
