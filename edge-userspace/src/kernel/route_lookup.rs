//! By which device packets to an address leave, asked of the kernel at once: `RTM_GETROUTE` is answered within the
//! call, so nobody waits. Following changes of routes is not for here: see `tunnel`.

use std::{io, net::IpAddr};

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAttribute, RouteFlags, RouteMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// A netlink socket for questions about routes.
pub struct RouteLookup {
    socket: Socket,
    sequence: u32,
}

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

    /// The index of the device that packets to `address` leave by; with `device`, only a route through that one
    /// counts. Without a route it is an error.
    pub fn device(&mut self, address: IpAddr, device: Option<u32>) -> io::Result<u32> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        question.attributes.push(RouteAttribute::Destination(address.into()));
        if let Some(device) = device {
            // Without this the kernel takes everything for being on the link of a given device.
            question.header.flags = RouteFlags::FibMatch;
            question.attributes.push(RouteAttribute::Oif(device));
        }
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question));
        message.header.flags = NLM_F_REQUEST;
        self.sequence = self.sequence.wrapping_add(1);
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut octets = vec![0; message.buffer_len()];
        message.serialize(&mut octets);
        self.socket.send(&octets, 0)?;
        self.answer()
    }

    fn answer(&self) -> io::Result<u32> {
        loop {
            let (octets, _) = self.socket.recv_from_full()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&octets)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            // What is left of a question that was given up.
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    let device = route.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    });
                    device.ok_or_else(|| io::Error::other("the route names no device"))
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
            assert_eq!(lookup.device("127.0.0.1".parse().unwrap(), None).unwrap(), 1);
        }
        assert!(lookup.device("192.0.2.1".parse().unwrap(), Some(1)).is_err());
    }
}
