//! The key of an entry: the addresses and ports with which packets arrive.

use core::net::{IpAddr, SocketAddr};

/// An address of either family in network order, an IPv4 address as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
pub type Address = [u32; 4];

/// The third word of an IPv4 address in an [`Address`].
pub const MAPPED: u32 = 0xffff_u32.to_be();

/// Protocol number of TCP (`IPPROTO_TCP`).
pub const TCP: u8 = 6;
/// Protocol number of UDP (`IPPROTO_UDP`).
pub const UDP: u8 = 17;

/// The addresses and ports of one direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The sender.
    pub source: Address,
    /// The receiver.
    pub destination: Address,
    /// Both ports as in the first word of a TCP or UDP header in memory: source, then destination.
    pub ports: u32,
}

impl Tuple {
    /// The tuple of packets from `source` to `destination`. An IPv4-mapped IPv6 address equals the IPv4 address.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let [a, b] = source.port().to_be_bytes();
        let [c, d] = destination.port().to_be_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        Self { source: address(source.ip()), destination: address(destination.ip()), ports }
    }

    /// The sender.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        let [a, b, ..] = self.ports.to_ne_bytes();
        SocketAddr::new(ip(&self.source), u16::from_be_bytes([a, b]))
    }

    /// The receiver.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        let [.., c, d] = self.ports.to_ne_bytes();
        SocketAddr::new(ip(&self.destination), u16::from_be_bytes([c, d]))
    }

    /// The tuple of the answers to these packets.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { source: self.destination, destination: self.source, ports: self.ports.rotate_left(16) }
    }

    /// Whether the addresses are IPv4. Both are always of one family.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.source[0] == 0 && self.source[1] == 0 && self.source[2] == MAPPED
    }
}

/// The key of an entry: the addresses and ports with which its packets arrive, and their protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Addresses and ports.
    pub tuple: Tuple,
    /// [`TCP`] or [`UDP`]. A word, so that no byte of the key is padding.
    pub protocol: u32,
}

impl FlowKey {
    /// The key of TCP segments from `source` to `destination`. An IPv4-mapped IPv6 address equals the IPv4 address.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::of(Tuple::new(source, destination), TCP)
    }

    /// The key of packets with these addresses and ports.
    #[must_use]
    pub const fn of(tuple: Tuple, protocol: u8) -> Self {
        Self { tuple, protocol: protocol as u32 }
    }

    /// The sender.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.tuple.source()
    }

    /// The receiver.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.tuple.destination()
    }

    /// The key of the answers to these packets.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { tuple: self.tuple.reversed(), protocol: self.protocol }
    }
}

fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    core::array::from_fn(|word| {
        let at = 4 * word;
        u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    })
}

fn ip(address: &Address) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(address) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(octets).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_addresses_and_ports() {
        for (source, destination, v4) in [
            ("198.51.100.7:50000", "192.0.2.1:443", true),
            ("[2001:db8::7]:1", "[2001:db8::1:0:1]:65535", false),
        ] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let key = FlowKey::new(source, destination);
            assert_eq!((key.source(), key.destination()), (source, destination));
            assert_eq!(key.reversed(), FlowKey::new(destination, source));
            assert_eq!(key.tuple.is_ipv4(), v4);
        }
    }

    #[test]
    fn a_mapped_address_is_the_address() {
        let plain = FlowKey::new("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        let mapped =
            FlowKey::new("[::ffff:192.0.2.1]:1".parse().unwrap(), "[::ffff:192.0.2.2]:2".parse().unwrap());
        assert_eq!(plain, mapped);
    }

    #[test]
    fn the_ports_are_in_the_order_of_the_wire() {
        let key = FlowKey::new("192.0.2.1:258".parse().unwrap(), "192.0.2.2:772".parse().unwrap());
        assert_eq!(key.tuple.ports.to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(key.tuple.source[3].to_ne_bytes(), [192, 0, 2, 1]);
    }
}
