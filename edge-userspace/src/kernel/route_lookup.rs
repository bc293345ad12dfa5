//! Queries the kernel for the device by which packets to an address leave: `RTM_GETROUTE` is answered within
//! the call, so nothing waits. `tunnel` follows changes of routes.

use std::{io, net::IpAddr};

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// The properties of a packet that decide its route.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuestion {
    /// Where it comes from; `None` before that is known.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: IpAddr,
    /// The ports there, of TCP. `None` for a packet whose ports the kernel does not look at.
    pub ports: Option<(u16, u16)>,
    /// `skb->mark`.
    pub mark: u32,
    /// The device that it has to leave by.
    pub device: Option<u32>,
    /// Whose socket sends it; `None` for this process's.
    pub user: Option<u32>,
}

/// The way of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The index of the device that it leaves by.
    pub device: u32,
    /// The router there; `None` where the destination is on the link.
    pub next_hop: Option<RouteAttribute>,
}

impl Hop {
    /// The router's address, of either family.
    pub fn router(&self) -> Option<IpAddr> {
        match self.next_hop.as_ref()? {
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address))
            | RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
            _ => None,
        }
    }
}

impl RouteQuestion {
    /// A packet of which nothing but its destination is known.
    pub const fn to(destination: IpAddr) -> Self {
        Self { source: None, destination, ports: None, mark: 0, device: None, user: None }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        (header.address_family, header.destination_prefix_length) = match self.destination {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(self.destination.into()));
        if let Some(source) = self.source {
            header.source_prefix_length = header.destination_prefix_length;
            attributes.push(RouteAttribute::Source(source.into()));
            attributes.push(RouteAttribute::IpProto(TCP));
        }
        if let Some((source, destination)) = self.ports {
            attributes.extend([RouteAttribute::Sport(source), RouteAttribute::Dport(destination)]);
        }
        if self.mark != 0 {
            attributes.push(RouteAttribute::Mark(self.mark));
        }
        attributes.extend(self.device.map(RouteAttribute::Oif));
        attributes.extend(self.user.map(RouteAttribute::Uid));
        message
    }
}

/// A netlink socket for questions about routes.
pub struct RouteLookup {
    socket: Socket,
    sequence: u32,
}

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

impl std::fmt::Debug for RouteLookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteLookup").finish_non_exhaustive()
    }
}

impl RouteLookup {
    /// Opens the socket, in the network namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of the device that packets to `address` leave by. Without a route it is an error.
    pub fn device(&mut self, address: IpAddr) -> io::Result<u32> {
        self.hop(&RouteQuestion::to(address)).map(|way| way.device)
    }

    /// The way of packets, as the rules and tables have it. Without a route it is an error.
    pub fn hop(&mut self, question: &RouteQuestion) -> io::Result<Hop> {
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question.message()));
        message.header.flags = NLM_F_REQUEST;
        self.sequence = self.sequence.wrapping_add(1);
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut octets = vec![0; message.buffer_len()];
        message.serialize(&mut octets);
        self.socket.send(&octets, 0)?;
        self.answer()
    }

    fn answer(&self) -> io::Result<Hop> {
        loop {
            let (octets, _) = self.socket.recv_from_full()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&octets)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            // A late answer to a query that was given up.
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    let device = route.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    });
                    let device = device.ok_or_else(|| io::Error::other("the route names no device"))?;
                    let next_hop = route.attributes.into_iter().find(|attribute| {
                        matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
                    });
                    Ok(Hop { device, next_hop })
                }
                NetlinkPayload::Error(error) => Err(error.to_io()),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer about a route")),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_by_the_loopback_device() {
        let mut lookup = RouteLookup::open().unwrap();
        for _ in 0..3 {
            assert_eq!(lookup.device("127.0.0.1".parse().unwrap()).unwrap(), 1);
        }
        let local = "127.0.0.1".parse().unwrap();
        let question = RouteQuestion {
            source: Some(local),
            destination: local,
            ports: Some((443, 50_000)),
            mark: 7,
            device: None,
            user: Some(0),
        };
        assert_eq!(lookup.hop(&question).unwrap(), Hop { device: 1, next_hop: None });
        let foreign = RouteQuestion { source: "192.0.2.1".parse().ok(), ..question };
        assert!(lookup.hop(&foreign).is_err(), "that address is not here");
    }
}
