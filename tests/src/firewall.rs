//! A typical firewall of a host: stateful rules that drop unknown packets, Docker's NAT chains, and other
//! rules that change packets on their way to a socket.

use std::{fs, net::Ipv4Addr, process::Command};

use anyhow::{Context, Result};

use crate::{
    Host, topology,
    wait::{self, SOON},
};

/// Names the environment variable that puts a [`stateful`] firewall on the edge of every lab.
pub const EVERYWHERE: &str = "EDGE_LAB_FIREWALL";

/// Rules as ufw and Docker leave them together, with open ports for the cases. Answers and new connections to
/// an open port are accepted; invalid packets and the rest are dropped. Nothing invalid leaves; home may
/// reach the internet through it. Containers' ports are redirected, and packets of containers are
/// masqueraded.
const STATEFUL: &str = "
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname lo accept
        ct state established,related accept
        ct state invalid drop
        meta l4proto { icmp, icmpv6 } accept
        tcp dport { 22, 80, 443, 5000, 5432, 7000, 8443, 9443, 50001, 50002 } ct state new accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname back ct state new accept
    }
    chain output {
        type filter hook output priority filter; policy drop;
        oifname lo accept
        ct state established,related accept
        ct state invalid drop
        meta l4proto { icmp, icmpv6 } accept
        ct state new accept
    }
}
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        fib daddr type local jump docker
    }
    chain output {
        type nat hook output priority -100;
        ip daddr != 127.0.0.0/8 fib daddr type local jump docker
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr 172.17.0.0/16 oifname != docker0 masquerade
    }
    chain docker {
        iifname docker0 return
        tcp dport 8080 dnat to 172.17.0.2:80
    }
}
";

/// Puts it on a host.
pub fn stateful(host: &Host) -> Result<()> {
    nft(host, STATEFUL)
}

/// Adds these rules, in the words of nft.
pub fn nft(host: &Host, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    let output = host.output_of(command, rules.as_bytes(), SOON)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "nft: {complaint}");
    Ok(())
}

/// The rules of ufw on a fresh machine: incoming traffic is denied except SSH and the web. It works on copies
/// of the files, so that the machine's own stay unchanged.
const UFW: &str = "
set -e
cp -a /etc/ufw \"$1/ufw\"
cp /etc/default/ufw \"$1/ufw.default\"
mount --bind \"$1/ufw\" /etc/ufw
mount --bind \"$1/ufw.default\" /etc/default/ufw
ufw default deny incoming
ufw default allow outgoing
for port in 22/tcp 80/tcp 443; do ufw allow $port; done
ufw --force enable
ufw status verbose
";

/// Lets ufw itself put up its rules on a host.
pub fn ufw(host: &Host) -> Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", UFW, "ufw"]).arg(host.directory());
    let status = host.text_of(command)?;
    anyhow::ensure!(status.contains("Status: active") && status.contains("deny (incoming)"), "{status}");
    Ok(())
}

/// The output of `iptables-save` on a machine with Docker 24: one container on the default bridge, with its
/// port 80 published as 8080.
const DOCKER: &str = "
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
";

/// Docker's bridge on a host.
pub const DOCKER_BRIDGE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
/// Its container.
pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

/// Gives a host Docker's rules and its bridge, with another host for the container.
pub fn docker(host: &Host, container: &Host) -> Result<()> {
    let mut command = Command::new("iptables-restore");
    command.arg("--noflush");
    let output = host.output_of(command, DOCKER.as_bytes(), SOON)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "iptables-restore: {complaint}");
    topology::join((host, "veth0"), (container, "eth1"))?;
    host.ip(&["link", "add", "docker0", "type", "bridge"])?;
    host.ip(&["link", "set", "veth0", "master", "docker0", "up"])?;
    for (host, device, address) in [(host, "docker0", DOCKER_BRIDGE), (container, "eth1", CONTAINER)] {
        topology::add_address(host, device, address.into(), 16)?;
        host.ip(&["link", "set", device, "up"])?;
    }
    // Like a container's, its answers go by the bridge.
    let (own, bridge) = (CONTAINER.to_string(), DOCKER_BRIDGE.to_string());
    container.ip(&["route", "add", "default", "via", &bridge, "dev", "eth1", "table", "17"])?;
    container.ip(&["rule", "add", "from", &own, "lookup", "17"])?;
    host.sysctl(&[("net.ipv4.ip_forward", "1")])
}

/// The TCP connections that a host tracks, as `/proc/net/nf_conntrack` shows them.
pub fn tracked(host: &Host) -> Result<Vec<String>> {
    let all = host.run(|| {
        fs::read_to_string("/proc/thread-self/net/nf_conntrack").context("reading what is tracked")
    })?;
    Ok(all.lines().filter(|line| line.contains(" tcp ")).map(str::to_owned).collect())
}

/// How many entries connection tracking has on a host.
pub fn tracked_count(host: &Host) -> Result<usize> {
    let count = host.run(|| {
        fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").context("counting what is tracked")
    })?;
    count.trim().parse().with_context(|| format!("nf_conntrack_count is {count:?}"))
}

/// Waits until a host tracks no connection whose entry is picked.
pub fn until_untracked(host: &Host, which: impl Fn(&str) -> bool) -> Result<()> {
    wait::until_ok("connection tracking to forget", SOON, || {
        let left: Vec<_> = tracked(host)?.into_iter().filter(|entry| which(entry)).collect();
        anyhow::ensure!(left.is_empty(), "{} entries are left: {:?}", left.len(), left.first());
        Ok(())
    })
}
