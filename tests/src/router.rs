//! A router in a link of the lab. It has none of the addresses at either end, forwards packets, and reports
//! to senders if a packet exceeds the next link's MTU.
//!
//! ```text
//!  edge ── near (router) far ── client or home
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::Result;

use crate::{
    Host,
    netns::NetNs,
    topology::{add_address, join},
};

/// Its device towards the edge.
const NEAR: &str = "near";
/// Its device towards the other end.
const FAR: &str = "far";

/// A router.
#[derive(Debug)]
pub struct Router {
    host: Host,
}

/// One end of a link: the device, and the addresses that are behind it.
type End<'a> = (&'a Host, &'a str, Ipv4Addr, Ipv6Addr);

impl Router {
    /// The one towards the client and the one towards home.
    pub(crate) fn both([client, home]: [String; 2], directory: &Path) -> Result<[Self; 2]> {
        let router = |name: &str, subnet: u8| {
            let v4 = Ipv4Addr::new(198, 18, subnet, 254);
            let v6 = Ipv6Addr::new(0xfd18, subnet.into(), 0, 0, 0, 0, 0, 0xfe);
            anyhow::Ok(Self { host: Host::new(NetNs::create(name)?, v4, v6, directory) })
        };
        Ok([router(&client, 1)?, router(&home, 2)?])
    }

    /// Joins both ends to it.
    pub(crate) fn cable(&self, edge: (&Host, &str), other: (&Host, &str)) -> Result<()> {
        join(edge, (&self.host, NEAR))?;
        join((&self.host, FAR), other)
    }

    /// Leads the ends to each other. Their links are up and have their addresses.
    pub(crate) fn lead(&self, edge: End<'_>, other: End<'_>) -> Result<()> {
        let host = &self.host;
        host.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        for (device, (end, end_device, v4, v6), (.., far_v4, far_v6)) in
            [(NEAR, edge, other), (FAR, other, edge)]
        {
            // Of the same name on both sides: what is asked for on either link is answered.
            add_address(host, device, host.v4.into(), 32)?;
            add_address(host, device, host.v6.into(), 128)?;
            host.ip(&["link", "set", device, "up"])?;
            for (address, far) in [(IpAddr::from(v4), IpAddr::from(far_v4)), (v6.into(), far_v6.into())] {
                route(host, address, &["dev", device])?;
                let own: IpAddr = if address.is_ipv4() { host.v4.into() } else { host.v6.into() };
                route(end, far, &["via", &own.to_string(), "dev", end_device])?;
            }
        }
        Ok(())
    }

    /// Sets the MTU of the link towards the edge from now on, in both directions.
    pub fn set_near_mtu(&self, edge: &Host, device: &str, octets: u32) -> Result<()> {
        set_mtu([(&self.host, NEAR), (edge, device)], octets)
    }

    /// The same of the link to the other end.
    pub fn set_far_mtu(&self, other: &Host, octets: u32) -> Result<()> {
        set_mtu([(&self.host, FAR), (other, "eth0")], octets)
    }
}

fn route(host: &Host, to: IpAddr, way: &[&str]) -> Result<()> {
    let (family, length) = if to.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
    host.ip(&[&[family, "route", "add", &format!("{to}/{length}")], way].concat())
}

fn set_mtu(ends: [(&Host, &str); 2], octets: u32) -> Result<()> {
    let octets = octets.to_string();
    ends.into_iter().try_for_each(|(host, device)| host.ip(&["link", "set", device, "mtu", &octets]))
}
