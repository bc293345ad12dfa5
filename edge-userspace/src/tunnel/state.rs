//! The state of the tunnels at one moment, and faults of the paths through them. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::peer::Peer;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The kernel's number for it.
    pub index: u32,
    /// Set up by the operator, and with a carrier.
    pub up: bool,
    /// The largest packet it takes, in bytes.
    pub mtu: u32,
    /// Its own addresses.
    pub addresses: Vec<IpNet>,
    /// Whether it is WireGuard in the kernel.
    pub wireguard: bool,
}

/// An address to be reached through one device and no other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelPath {
    /// The device's name.
    pub device: Arc<str>,
    /// The address behind it; `None` while it is not known, then the device alone is judged.
    pub address: Option<IpAddr>,
}

/// A fault of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no such device.
    Gone,
    /// The device is down or has no carrier.
    Down,
    /// No route leads to the address by this device.
    NoRoute,
    /// No WireGuard peer of the device may have the address.
    NoPeer,
    /// The WireGuard peer was sent something and did not shake hands for this long.
    Silent(Duration),
}

/// The state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// Every device, by name.
    pub devices: BTreeMap<Arc<str>, Device>,
    /// The WireGuard peers of the devices that are followed.
    pub peers: BTreeMap<Arc<str>, Vec<Peer>>,
    pub(super) faults: HashMap<TunnelPath, Fault>,
}

impl Tunnels {
    /// The fault of this path; `None` also if nothing is known yet.
    pub fn fault(&self, way: &TunnelPath) -> Option<Fault> {
        match self.devices.get(&way.device) {
            None => Some(Fault::Gone),
            Some(device) if !device.up => Some(Fault::Down),
            Some(_) => self.faults.get(way).copied(),
        }
    }

    /// Whether this says the same about every way; the peers' counters do not matter for that.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        self.devices == other.devices && self.faults == other.faults
    }
}

impl TunnelPath {
    /// The fault, in words for the operator.
    pub fn explain(&self, fault: Fault) -> String {
        format!("{}", Explained { way: self, fault })
    }
}

struct Explained<'a> {
    way: &'a TunnelPath,
    fault: Fault,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.way.device;
        match self.fault {
            Fault::Gone => write!(f, "the device {device} does not exist")?,
            Fault::Down => write!(f, "the device {device} is down")?,
            Fault::NoRoute => write!(f, "no route leads by {device}")?,
            Fault::NoPeer => write!(f, "no WireGuard peer of {device} has it in its AllowedIPs")?,
            Fault::Silent(limit) => write!(
                f,
                "its WireGuard peer on {device} does not answer: no handshake for more than {} s",
                limit.as_secs()
            )?,
        }
        match self.way.address {
            Some(address) if !matches!(self.fault, Fault::Gone | Fault::Down) => write!(f, " ({address})"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_judged_before_what_is_behind_it() {
        let way = TunnelPath { device: "wg0".into(), address: Some("10.0.0.2".parse().unwrap()) };
        let mut tunnels = Tunnels::default();
        tunnels.faults.insert(way.clone(), Fault::NoRoute);
        assert_eq!(tunnels.fault(&way), Some(Fault::Gone));
        let device = Device { index: 7, up: false, mtu: 1420, addresses: Vec::new(), wireguard: true };
        tunnels.devices.insert("wg0".into(), device);
        assert_eq!(tunnels.fault(&way), Some(Fault::Down));
        tunnels.devices.get_mut("wg0").unwrap().up = true;
        assert_eq!(tunnels.fault(&way), Some(Fault::NoRoute));
        assert_eq!(way.explain(Fault::NoRoute), "no route leads by wg0 (10.0.0.2)");
        assert_eq!(tunnels.fault(&TunnelPath { address: None, ..way }), None);
    }
}
