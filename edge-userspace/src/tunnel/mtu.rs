//! The largest packet that reaches an address unfragmented, as the kernel determines it for TCP: the device's
//! MTU, the route's if it is smaller, and the path MTU learned since.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
use socket2::{Domain, Protocol, Socket, Type};

/// The MTU of the path to `address`, in bytes; through this device only, if one is given.
///
/// # Errors
///
/// The device does not exist, or it has no route to the address.
pub fn path_mtu(address: IpAddr, device: Option<&str>) -> io::Result<u32> {
    let address = address.to_canonical();
    // Any port: connecting a UDP socket looks the route up and sends nothing.
    let target = SocketAddr::new(address, 9);
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.connect(&target.into())?;
    Ok(if address.is_ipv4() { ip_mtu(&socket)? } else { ipv6_mtu(&socket)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{in_namespace, sh};

    #[test]
    fn it_is_that_of_the_device_and_of_the_route() {
        in_namespace("mtu", &[], async || {
            sh(
                "ip link add wg0 mtu 1420 type veth peer name far0 && ip link add wg1 mtu 1280 type veth peer name far1",
            );
            sh("ip addr add 10.9.0.1/24 dev wg0 && ip addr add fd09::1/64 dev wg0 nodad");
            sh("for d in wg0 far0 wg1 far1; do ip link set $d up; done");
            let mtu = |address: &str, device| path_mtu(address.parse().unwrap(), device);
            assert_eq!(mtu("10.9.0.2", None).unwrap(), 1420);
            assert_eq!(mtu("::ffff:10.9.0.2", None).unwrap(), 1420);
            assert_eq!(mtu("fd09::2", None).unwrap(), 1420);
            assert!(mtu("192.0.2.1", None).is_err(), "no route");
            sh("ip route add 192.0.2.0/24 dev wg0 mtu 1300 && ip route add 192.0.2.0/24 dev wg1 metric 9");
            assert_eq!(mtu("192.0.2.1", None).unwrap(), 1300);
            assert_eq!(mtu("192.0.2.1", Some("wg1")).unwrap(), 1280);
            assert!(mtu("192.0.2.1", Some("wg2")).is_err(), "no such device");
        });
    }
}
