//! A firewall on a host, as people have it: stateful rules that drop what they do not know, the NAT chains that Docker
//! brings, and what else changes packets on their way to a socket.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::{
    Host,
    wait::{self, SOON},
};

/// Names the environment variable that puts a [`stateful`] firewall on the edge of every lab.
pub const EVERYWHERE: &str = "EDGE_LAB_FIREWALL";

/// Rules as ufw and Docker leave them together: answers and what is new to an open port come in, the invalid and the
/// rest are dropped; nothing invalid goes out. Containers' ports are redirected, and what containers send is masqueraded.
const STATEFUL: &str = "
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname lo accept
        ct state established,related accept
        ct state invalid drop
        meta l4proto { icmp, icmpv6 } accept
        tcp dport { 22, 80, 443, 8443 } ct state new accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
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

/// The TCP connections that a host tracks, as `/proc/net/nf_conntrack` shows them.
pub fn tracked(host: &Host) -> Result<Vec<String>> {
    let all = host.run(|| {
        fs::read_to_string("/proc/thread-self/net/nf_conntrack").context("reading what is tracked")
    })?;
    Ok(all.lines().filter(|line| line.contains(" tcp ")).map(str::to_owned).collect())
}

/// Waits until a host tracks no connection whose entry is picked.
pub fn until_untracked(host: &Host, which: impl Fn(&str) -> bool) -> Result<()> {
    wait::until_ok("connection tracking to forget", SOON, || {
        let left: Vec<_> = tracked(host)?.into_iter().filter(|entry| which(entry)).collect();
        anyhow::ensure!(left.is_empty(), "{} entries are left: {:?}", left.len(), left.first());
        Ok(())
    })
}
