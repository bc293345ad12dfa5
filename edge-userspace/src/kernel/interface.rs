//! The network interfaces of this machine, as far as attaching programs to them needs it.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    KernelError,
    netlink::{attributes, dump, number},
};

// linux/rtnetlink.h
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
/// `struct ifinfomsg`: family, padding, type (2 octets), index, flags, change mask (4 each).
const LINK_MESSAGE: usize = 16;
/// `struct ifaddrmsg`: family, prefix length, flags, scope (1 octet each), index (4).
const ADDRESS_MESSAGE: usize = 8;
// linux/if_link.h
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
// linux/if.h
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
const IFF_RUNNING: u32 = 0x40;
// linux/if_arp.h
const ARPHRD_PPP: u16 = 512;
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_TUNNEL: u16 = 768;
const ARPHRD_TUNNEL6: u16 = 769;
const ARPHRD_SIT: u16 = 776;
const ARPHRD_IPGRE: u16 = 778;
const ARPHRD_IP6GRE: u16 = 823;

/// Tunnels whose packets begin with an Ethernet header (`IFLA_INFO_KIND`). Those without one are told by their type.
const ETHERNET_TUNNELS: [&str; 8] =
    ["tun", "vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "wireguard"];

/// The header that a device's packets begin with where programs see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, WireGuard.
    RawIp,
    /// The IP header as well, for what comes in; what goes out gets a header from the device: PPP, IPIP, SIT, GRE.
    Encapsulated,
    /// Something else, or nothing that programs should look at: the loopback.
    #[default]
    Other,
}

impl Framing {
    /// By the type of the link, `ARPHRD_*`. Devices of the last but one kind have set the mac header to the IP header
    /// since Linux 5.14; a program that finds no IP header there passes the packet.
    const fn of(kind: u16) -> Self {
        match kind {
            libc::ARPHRD_ETHER => Self::Ethernet,
            libc::ARPHRD_NONE | ARPHRD_RAWIP => Self::RawIp,
            ARPHRD_PPP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6 | ARPHRD_SIT | ARPHRD_IPGRE | ARPHRD_IP6GRE => {
                Self::Encapsulated
            }
            _ => Self::Other,
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that stand side by side")]
pub struct Interface {
    /// Its name. Names are octets: what is no UTF-8 is escaped, and the configuration cannot name such a device.
    pub name: String,
    /// Its index, which stays the same when it is renamed.
    pub index: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The networks that it reaches by them: address and prefix length.
    pub networks: Vec<IpNet>,
    /// The largest packet that it carries, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether it could carry packets, were it up: a cable is plugged in.
    pub is_running: bool,
    /// Whether the kernel's own WireGuard is behind it.
    pub is_wireguard: bool,
    /// Whether nobody else's packets come by it.
    pub is_loopback: bool,
    /// The header that its packets begin with.
    pub framing: Framing,
    /// Whether it hands its packets to a bridge, bond or team, which has the addresses.
    pub is_port: bool,
    /// Whether it is a tunnel: packets come in by another device before.
    pub is_tunnel: bool,
}

impl Interface {
    /// Whether packets of clients may come in by this device: all devices face the world that
    ///
    /// - have an address, since without one nothing is delivered here. (Packets to an address of the loopback may come by
    ///   a device that has none; there the check at accept keeps blocked sources out.) One that is down counts: it comes
    ///   up without a moment in which its packets pass.
    /// - carry IP behind a header that is known. The loopback does not: nobody else's packets come by it.
    /// - are no port of a bridge, bond or team. Their packets come by that device, and what a bridge forwards to virtual
    ///   machines and containers is not ours to drop. A port of a VRF keeps its packets, and faces the world.
    ///
    /// Tunnels face it too: a VPS may be reached through one. Those that lead to backends are left out by whoever knows
    /// the backends, since a list of prefixes that no client can have must not drop what home sends.
    pub fn faces_the_world(&self) -> bool {
        self.framing != Framing::Other && !self.is_port && !self.addresses.is_empty()
    }
}

/// All interfaces of this network namespace, by index.
pub fn interfaces() -> Result<Vec<Interface>, KernelError> {
    read().map_err(|source| KernelError::Call { call: "asking for the network interfaces", source })
}

fn read() -> io::Result<Vec<Interface>> {
    let links = dump(RTM_GETLINK, LINK_MESSAGE)?;
    let mut found: BTreeMap<u32, Interface> =
        links.iter().filter_map(|link| read_link(link)).map(|found| (found.index, found)).collect();
    for (index, address, prefix) in
        dump(RTM_GETADDR, ADDRESS_MESSAGE)?.iter().filter_map(|message| read_address(message))
    {
        if let Some(interface) = found.get_mut(&index) {
            interface.addresses.push(address);
            interface.networks.extend(IpNet::new(address, prefix).ok());
        }
    }
    Ok(found.into_values().collect())
}

fn read_link(message: &[u8]) -> Option<Interface> {
    let (fixed, rest) = message.split_at_checked(LINK_MESSAGE)?;
    let framing = Framing::of(u16::from_ne_bytes([fixed[2], fixed[3]]));
    let mut interface = Interface {
        index: number(&fixed[4..])?,
        is_up: number(&fixed[8..])? & IFF_UP != 0,
        is_running: number(&fixed[8..])? & IFF_RUNNING != 0,
        is_loopback: number(&fixed[8..])? & IFF_LOOPBACK != 0,
        framing,
        is_tunnel: framing == Framing::RawIp
            || framing == Framing::Encapsulated && u16::from_ne_bytes([fixed[2], fixed[3]]) != ARPHRD_PPP,
        ..Interface::default()
    };
    let mut has_master = false;
    let mut port = "";
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => interface.name = text_of(until_nul(value)),
            IFLA_MTU => interface.mtu = number(value)?,
            IFLA_MASTER => has_master = true,
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    let value = str::from_utf8(until_nul(value)).unwrap_or_default();
                    match kind {
                        IFLA_INFO_KIND => {
                            interface.is_tunnel |= ETHERNET_TUNNELS.contains(&value);
                            interface.is_wireguard = value == "wireguard";
                        }
                        IFLA_INFO_SLAVE_KIND => port = value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    interface.is_port = has_master && port != "vrf";
    Some(interface)
}

/// The index of the device, the address, and the length of the prefix.
fn read_address(message: &[u8]) -> Option<(u32, IpAddr, u8)> {
    let (fixed, rest) = message.split_at_checked(ADDRESS_MESSAGE)?;
    let (mut own, mut any) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            // On a point-to-point device the other is the far end's.
            IFA_LOCAL => own = address(value),
            IFA_ADDRESS => any = address(value),
            _ => {}
        }
    }
    Some((number(&fixed[4..])?, own.or(any)?, fixed[1]))
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(Ipv4Addr::from(*octets.first_chunk()?).into()),
        16 => Some(Ipv6Addr::from(*octets.first_chunk()?).into()),
        _ => None,
    }
}

fn text_of(name: &[u8]) -> String {
    str::from_utf8(name).map_or_else(|_| name.escape_ascii().to_string(), str::to_owned)
}

fn until_nul(octets: &[u8]) -> &[u8] {
    octets.split(|&octet| octet == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{in_namespace, sh};

    #[test]
    fn the_loopback_is_found_and_does_not_face_the_world() {
        let all = interfaces().unwrap();
        let loopback = all.iter().find(|interface| interface.name == "lo").unwrap();
        assert_eq!(loopback.index, 1);
        assert!(loopback.framing == Framing::Other && !loopback.faces_the_world());
        assert!(!loopback.is_up || loopback.addresses.contains(&Ipv4Addr::LOCALHOST.into()), "{loopback:?}");
    }

    #[test]
    fn devices_are_told_by_what_they_are_not_by_their_names() {
        in_namespace("interface", &[], async || {
            sh("ip link add eth0.10 type veth peer name 'a~2fb' && ip link add br0 type bridge \
                && ip link add port type veth peer name far && ip link set port master br0 \
                && ip link add mv0 link eth0.10 type macvlan && ip tuntap add dev t0 mode tun \
                && ip tuntap add dev t1 mode tap \
                && for dev in eth0.10 br0 port mv0 t0 t1; do ip link set $dev up; done \
                && ip addr add 10.9.0.1 peer 10.9.0.2 dev t0 && ip addr add 10.9.1.1/24 dev port \
                && ip addr add 10.9.2.1/24 dev eth0.10 && ip addr add 10.9.3.1/24 dev br0 \
                && ip addr add 10.9.4.1/24 dev mv0 && ip addr add 10.9.5.1/24 dev t1");
            let all = interfaces().unwrap();
            let named = |name: &str| all.iter().find(|found| found.name == name).unwrap();
            for name in ["eth0.10", "br0", "mv0", "t0", "t1"] {
                assert!(named(name).faces_the_world(), "{:?}", named(name));
            }
            assert!(!named("port").faces_the_world() && named("port").is_port);
            assert!(!named("a~2fb").faces_the_world(), "no address");
            assert_eq!((named("t0").framing, named("t1").framing), (Framing::RawIp, Framing::Ethernet));
            assert!(named("t0").is_tunnel && named("t1").is_tunnel && !named("eth0.10").is_tunnel);
            assert_eq!(named("t0").addresses[0].to_string(), "10.9.0.1", "its own and not the far end's");
        });
    }
}
