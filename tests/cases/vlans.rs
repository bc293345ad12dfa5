//! Flows and blocks on VLANs, whose packets pass through the device below.

use std::net::Ipv4Addr;

use lab::{
    Result,
    require::{self, Need},
    service,
};

use crate::{
    case,
    devices::{flows_and_blocks, move_addresses},
    echo_once,
    flow::{echoed, edged, hello, wait_for_flows},
};

#[test]
fn a_vlan() -> Result<()> {
    if !require::all(&[Need::Device("vlan")]) {
        return Ok(());
    }
    case(|lab| {
        for (host, below, vlan) in [(&lab.edge, "front", "front.10"), (&lab.client, "eth0", "eth0.10")] {
            host.ip(&["link", "add", "link", below, "name", vlan, "type", "vlan", "id", "10"])?;
            move_addresses(host, below, vlan)?;
        }
        flows_and_blocks(lab, "front.10")
    })
}

/// Its packets pass through the device below, whose programs carry flows of their own.
#[test]
fn a_vlan_beside_flows_of_the_device_below() -> Result<()> {
    const ON_VLAN: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 10, 1), Ipv4Addr::new(198, 18, 10, 2)];
    if !require::all(&[Need::Device("vlan")]) {
        return Ok(());
    }
    case(|lab| {
        let ends = [(&lab.edge, "front", "front.10"), (&lab.client, "eth0", "eth0.10")];
        for ((host, below, vlan), address) in ends.into_iter().zip(ON_VLAN) {
            host.ip(&["link", "add", "link", below, "name", vlan, "type", "vlan", "id", "10"])?;
            host.ip(&["link", "set", vlan, "up"])?;
            host.ip(&["address", "add", &format!("{address}/24"), "dev", vlan])?;
        }
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let mut below = echoed(lab, &daemon)?;
        let mut above = lab.client.connect((ON_VLAN[0], 443))?;
        echo_once(&mut above, &hello())?;
        wait_for_flows(&daemon, 2)?;
        for _ in 0..3 {
            echo_once(&mut below, b"by the device below")?;
            echo_once(&mut above, b"by the VLAN")?;
        }
        Ok(())
    })
}
