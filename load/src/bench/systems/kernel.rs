//! The kernel alone: forwarding, which is the limit, and nft DNAT, its own way of doing the job if no server
//! name has to be read.

use std::process::Command;

use anyhow::Result;

use super::{Running, System, debian, home};
use crate::bench::rig::{HANDSHAKES, ORDERS, Rig};

/// Plain IP forwarding: the client talks to home's address.
pub(super) struct Forwarding;

impl System for Forwarding {
    fn name(&self) -> &'static str {
        "forwarding"
    }

    fn about(&self) -> String {
        "plain kernel IP forwarding, no proxy: the limit".to_owned()
    }

    fn missing(&self, _: &Rig) -> Option<String> {
        None
    }

    fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>> {
        let (orders, handshakes) = home(rig);
        Ok(Running { rig, orders, handshakes, process: None, undo: None })
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn configuration(&self, _: &Rig) -> String {
        "sysctl net.ipv4.ip_forward=1".to_owned()
    }
}

/// Destination NAT with connection tracking, which exists only while this system is measured.
pub(super) struct Dnat;

impl System for Dnat {
    fn name(&self) -> &'static str {
        "dnat"
    }

    fn about(&self) -> String {
        "nft DNAT with conntrack: the kernel's own, without SNI".to_owned()
    }

    fn missing(&self, _: &Rig) -> Option<String> {
        debian("nft", "nftables")
    }

    fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>> {
        let rules = rig.lab.file("dnat.nft", self.configuration(rig))?;
        let mut add = Command::new("nft");
        add.arg("-f").arg(rules);
        rig.lab.edge.text_of(add)?;
        let mut undo = Command::new("nft");
        undo.args(["delete", "table", "ip", "bench"]);
        let edge = &rig.lab.edge;
        Ok(Running {
            rig,
            orders: edge.at(ORDERS),
            handshakes: edge.at(HANDSHAKES),
            process: None,
            undo: Some(undo),
        })
    }

    fn version(&self) -> Option<String> {
        super::version_of("nft".as_ref(), "--version")
    }

    fn configuration(&self, rig: &Rig) -> String {
        let (orders, handshakes) = home(rig);
        let edge = rig.lab.edge.v4;
        format!(
            "table ip bench {{\n  chain prerouting {{\n    type nat hook prerouting priority dstnat;\n    \
             ip daddr {edge} tcp dport {ORDERS} dnat to {orders}\n    \
             ip daddr {edge} tcp dport {HANDSHAKES} dnat to {handshakes}\n  }}\n}}\n"
        )
    }
}
