//! Devices, addresses and routes by rtnetlink: reading them, and learning that something changed.

use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc};

use futures_util::StreamExt;
use rtnetlink::{
    Error, Handle, MulticastGroup,
    packet_route::{
        AddressFamily,
        route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric},
    },
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};

use super::state::Device;
use crate::kernel::interfaces;

/// Multicast groups for all changes that may affect the path to a backend.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// Messages read from the socket at once. A flood is then processed in steps, which is soon enough.
const MAX_DRAIN: usize = 4096;

/// Notices that something has changed. Their contents are not read: the state is queried afterwards, so
/// nothing is lost if the kernel had to drop notices.
pub(super) struct Events {
    socket: TokioSocket,
}

impl Events {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket })
    }

    /// Ends when something changed since the last call.
    pub(super) async fn next(&self) -> io::Result<()> {
        // Too short for any message: the rest of it is dropped.
        let mut space = [0; 64];
        let mut received = self.socket.recv(&mut &mut space[..]).await;
        for _ in 0..MAX_DRAIN {
            match received {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            received = self.socket.socket_ref().recv(&mut &mut space[..], 0).map(|_| ());
        }
        Ok(())
    }
}

/// Every device with its addresses.
pub(super) fn devices() -> io::Result<BTreeMap<Arc<str>, Device>> {
    let found = interfaces().map_err(io::Error::other)?;
    Ok(found
        .into_iter()
        .map(|found| {
            let device = Device {
                index: found.index,
                up: found.is_up && found.is_running,
                mtu: found.mtu,
                addresses: found.networks,
                wireguard: found.is_wireguard,
            };
            (found.name.into(), device)
        })
        .collect())
}

/// Whether a route leads to `address` by the device with this index.
pub(super) async fn is_routed(netlink: &Handle, address: IpAddr, index: u32) -> io::Result<bool> {
    let mut question = question(address);
    // Without this the kernel assumes, for a given device, that every address is on its link (`fib_lookup`
    // failed in `ip_route_output_key_hash_rcu`). Since Linux 4.13.
    question.header.flags = RouteFlags::FibMatch;
    question.attributes.push(RouteAttribute::Oif(index));
    match ask(netlink, question).await {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV | libc::EACCES | libc::EINVAL) => {
                Ok(false)
            }
            _ => Err(error),
        },
    }
}

/// The device by which packets leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Its name.
    pub device: Arc<str>,
    /// The largest packet on this path, in bytes: the device's MTU, or the route's if it is smaller.
    pub mtu: u32,
    /// The address that packets leave with.
    pub source: Option<IpAddr>,
    /// Whether nothing but a default route leads there.
    pub by_default: bool,
}

/// The device by which packets to `address` leave now, according to the kernel's rules and tables; with
/// `device`, for packets bound to that one.
pub async fn egress(address: IpAddr, device: Option<&str>) -> io::Result<Egress> {
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    // It ends with the handle.
    tokio::spawn(connection);
    let devices = devices()?;
    let mut asked = question(address);
    if let Some(device) = device {
        let bound = devices.get(device).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        asked.attributes.push(RouteAttribute::Oif(bound.index));
    }
    let mut matched = asked.clone();
    matched.header.flags = RouteFlags::FibMatch;
    let by_default = ask(&netlink, matched).await?.header.destination_prefix_length == 0;
    let route = ask(&netlink, asked).await?;
    let mut index = None;
    let mut source = None;
    let mut route_mtu = u32::MAX;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(found) => index = Some(*found),
            RouteAttribute::PrefSource(found) => {
                source = match found {
                    rtnetlink::packet_route::route::RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
                    rtnetlink::packet_route::route::RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
                    _ => None,
                }
            }
            RouteAttribute::Metrics(metrics) => {
                let mtus = metrics.iter().filter_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
                route_mtu = mtus.min().unwrap_or(route_mtu);
            }
            _ => {}
        }
    }
    let found = devices.into_iter().find(|(_, device)| Some(device.index) == index);
    let (device, found) = found.ok_or_else(|| io::Error::other("the route names no device"))?;
    Ok(Egress { device, mtu: found.mtu.min(route_mtu), source, by_default })
}

fn question(address: IpAddr) -> RouteMessage {
    let mut question = RouteMessage::default();
    (question.header.address_family, question.header.destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    question.attributes.push(RouteAttribute::Destination(address.into()));
    question
}

async fn ask(netlink: &Handle, question: RouteMessage) -> io::Result<RouteMessage> {
    let answers = netlink.route().get(question).execute();
    let answer = std::pin::pin!(answers).next().await;
    answer.ok_or_else(|| io::Error::other("no answer about a route"))?.map_err(io_error)
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{in_namespace, sh};

    #[test]
    fn a_name_that_is_no_text_hides_no_device() {
        in_namespace("link", &[], async || {
            sh(
                "ip link add \"$(printf 'bad\\377')\" type veth peer name wg-home && ip link set wg-home mtu 1280 up \
                && ip address add 10.9.0.1/24 dev wg-home",
            );
            let devices = devices().unwrap();
            let found = &devices["wg-home"];
            assert_eq!((found.mtu, found.wireguard), (1280, false));
            assert_eq!(found.addresses, ["10.9.0.1/24".parse().unwrap()]);
            assert_eq!(devices["bad\\xff"].mtu, 1500);
            assert_eq!(egress([10, 9, 0, 2].into(), Some("wg-home")).await.unwrap().mtu, 1280);
        });
    }
}
