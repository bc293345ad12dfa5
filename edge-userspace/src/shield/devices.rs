//! Which devices the shield belongs on. Pure.

use std::{collections::BTreeSet, sync::Arc};

use crate::kernel::{Framing, Hook, Interface};

/// How blocked sources are kept out where their packets come in by one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The device's name.
    pub device: Arc<str>,
    /// Where packets are dropped; `None` where connections are refused at accept alone.
    pub hook: Option<Hook>,
    /// Why they are not dropped in XDP; empty where they are.
    pub reason: String,
}

/// All devices by which clients can come in, as the shield sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Those that it belongs on.
    pub(super) watched: Vec<Interface>,
    /// Those that the check at accept is left with, and why.
    pub(super) others: Vec<(Arc<str>, &'static str)>,
}

impl Devices {
    /// Sorts the devices of a machine. `home` are the indices of the devices that lead to backends.
    pub fn sort(all: Vec<Interface>, home: &BTreeSet<u32>) -> Self {
        let mut devices = Self::default();
        for device in all {
            if device.faces_the_world() && !(device.is_tunnel && home.contains(&device.index)) {
                devices.watched.push(device);
            } else if device.faces_the_world() {
                devices.others.push((device.name.into(), "it is the tunnel to a backend"));
            } else if device.framing == Framing::Other
                && device.is_up
                && !device.is_loopback
                && !device.addresses.is_empty()
            {
                devices
                    .others
                    .push((device.name.into(), "its packets begin with a header that is not known"));
            }
        }
        devices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_home_are_left_to_the_check_at_accept() {
        let device = |index, name: &str, framing, is_tunnel| Interface {
            index,
            name: name.into(),
            framing,
            is_tunnel,
            is_up: true,
            addresses: vec![[192, 0, 2, 1].into()],
            ..Interface::default()
        };
        let all = vec![
            Interface { is_loopback: true, ..device(1, "lo", Framing::Other, false) },
            device(2, "eth0.10", Framing::Ethernet, false),
            device(3, "wg0", Framing::RawIp, true),
            device(4, "wg1", Framing::RawIp, true),
            device(5, "ppp0", Framing::Encapsulated, false),
            device(6, "ib0", Framing::Other, false),
            Interface { is_up: false, ..device(7, "eth1", Framing::Ethernet, false) },
            Interface { is_port: true, ..device(8, "veth1", Framing::Ethernet, false) },
            Interface { addresses: Vec::new(), ..device(9, "eth2", Framing::Ethernet, false) },
        ];
        // A backend in the same network as clients does not take the shield off it.
        let devices = Devices::sort(all, &[2, 3].into());
        let watched: Vec<_> = devices.watched.iter().map(|device| &*device.name).collect();
        assert_eq!(watched, ["eth0.10", "wg1", "ppp0", "eth1"]);
        let others: Vec<_> = devices.others.iter().map(|(name, _)| &**name).collect();
        assert_eq!(others, ["wg0", "ib0"]);
    }
}
