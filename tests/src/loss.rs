//! Packets that are lost by chance on their way to a host.

use std::process::Command;

use anyhow::{Context, Result};

use crate::Host;

const TABLE: &str = "lab";

/// A host to which not everything gets.
#[derive(Debug)]
pub struct Loss<'a>(&'a Host);

impl<'a> Loss<'a> {
    /// From now on the host loses one of so many packets that come to it.
    pub fn to(host: &'a Host, one_of: u32) -> Result<Self> {
        let loss = Self(host);
        loss.nft(&format!(
            "add table inet {TABLE}; \
             add chain inet {TABLE} input {{ type filter hook input priority 0; }}; \
             add rule inet {TABLE} input meta l4proto tcp numgen random mod {one_of} == 0 counter drop"
        ))?;
        Ok(loss)
    }

    /// How many are lost so far.
    pub fn lost(&self) -> Result<u64> {
        let listed = self.nft(&format!("list table inet {TABLE}"))?;
        let count = listed.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
        Ok(count.with_context(|| format!("no counter in {listed}"))?.parse()?)
    }

    fn nft(&self, text: &str) -> Result<String> {
        let mut nft = Command::new("nft");
        nft.arg(text);
        self.0.text_of(nft)
    }
}

/// From now on every segment is a packet of its own, as on a wire: what is lost is one, not forty.
pub fn one_by_one(hosts: &[&Host]) -> Result<()> {
    hosts.iter().try_for_each(|host| host.ip(&["link", "set", "eth0", "gso_max_segs", "1"]))
}
