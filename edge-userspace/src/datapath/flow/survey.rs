//! The path of a connection's packets, and whether a flow's would take the same, judged by the routes, the
//! IPsec policies and the packets on the wire. In doubt the connection stays on its sockets.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use edge_common::flow::Handshake;
use socket2::SockRef;

use super::{
    agreement::Mismatch,
    stay::Stay,
    tier::FlowTier,
    trust::Distrusted,
    wire::{Difference, Memory, Place, Traffic, Verdict, judge},
};
use crate::{
    datapath::Pair,
    kernel::{Ends, KernelError, Policies, RouteLookup, RouteQuestion, arrival_device, tcp},
    lock::lock,
    source::source_of,
};

/// The properties that decide the path of packets.
#[derive(Debug)]
pub(super) struct Surroundings {
    routes: std::sync::Mutex<RouteLookup>,
    policies: std::sync::Mutex<Policies>,
    memory: std::sync::Mutex<Memory>,
    /// Connections that are compared with the wire just now.
    comparing: std::sync::Mutex<u32>,
}

/// The two legs of a connection that may become a flow, as far as the machine is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Survey {
    pub(super) client: Leg,
    pub(super) backend: Leg,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    pub(super) ends: Ends,
    /// The index of the device that its packets leave by, and have to arrive by.
    pub(super) device: u32,
    /// The device that its socket is bound to, if any.
    bound: Option<u32>,
    place: Place,
    /// The packets that its socket had sent and received.
    before: Traffic,
}

/// Lets the programs note what the wire shows, for as long as it lives.
pub(super) struct Comparison<'a>(&'a FlowTier);

impl Surroundings {
    pub(super) fn new() -> Result<Self, KernelError> {
        let call = "opening a netlink socket";
        let routes = RouteLookup::open().map_err(|source| KernelError::Call { call, source })?;
        Ok(Self {
            routes: routes.into(),
            policies: Policies::open().into(),
            memory: std::sync::Mutex::default(),
            comparing: std::sync::Mutex::default(),
        })
    }

    /// The index of the device that packets to an address leave by.
    pub(super) fn device_to(&self, address: IpAddr) -> std::io::Result<u32> {
        lock(&self.routes).device(address.to_canonical())
    }

    /// The device by which a socket's packets leave, if those of a flow would take the same path. A
    /// redirected packet is routed by its addresses and device alone (`__bpf_redirect_neigh_v4`), without
    /// ports, user or mark.
    fn hop(&self, ends: &Ends, device: Option<u32>, mark: u32) -> Result<u32, Stay> {
        let of_socket = RouteQuestion {
            source: Some(ends.local.ip()),
            destination: ends.peer.ip(),
            ports: Some((ends.local.port(), ends.peer.port())),
            mark,
            device,
            user: None,
        };
        let mut routes = lock(&self.routes);
        let way = routes.hop(&of_socket)?;
        let of_flow =
            RouteQuestion { ports: None, mark: 0, device: Some(way.device), user: Some(0), ..of_socket };
        if routes.hop(&of_flow).ok().as_ref() == Some(&way) { Ok(way.device) } else { Err(Stay::PolicyRoute) }
    }
}

impl FlowTier {
    /// Surveys the paths of a connection. With `is_first`, the client's SYN must have arrived through the
    /// device by which answers leave. Later only the wire counts: the SYN may have come before its sender
    /// knew the path.
    pub(super) fn survey(&self, pair: &Pair, is_first: bool) -> Result<Survey, Stay> {
        let (client, backend) = (ends_of(&pair.client)?, ends_of(&pair.backend)?);
        if !self.ports().contains(backend.local.port()) {
            return Err(Stay::Port);
        }
        let source = client.peer.ip();
        match self.doubt(source, backend.peer.ip()) {
            Some(Distrusted::Backend) => return Err(Stay::Distrusted),
            Some(Distrusted::Source) => return Err(Stay::DistrustedSource),
            None => {}
        }
        if self.is_crowded(source_of(source)) {
            return Err(Stay::Quota);
        }
        let arrived = arrival_device(&pair.client)?;
        let bound =
            |socket| Ok::<_, std::io::Error>(Some(tcp::bound_index(socket)?).filter(|index| *index != 0));
        // A link-local address says nothing without its device.
        let client_bound = bound(&pair.client)?.or(is_link_local(source).then_some(arrived));
        let backend_bound = bound(&pair.backend)?;
        let around = self.surroundings();
        let leaves = match around.hop(&client, client_bound, 0) {
            Ok(device) if device == arrived || !is_first => device,
            Err(stay @ Stay::PolicyRoute) => return Err(stay),
            _ => return Err(Stay::Asymmetric),
        };
        let device = around.hop(&backend, backend_bound, 0)?;
        let survey = Survey {
            client: Leg {
                ends: client,
                device: leaves,
                bound: client_bound,
                place: Place::Listener(client.local, leaves),
                before: traffic(&pair.client)?,
            },
            backend: Leg {
                ends: backend,
                device,
                bound: backend_bound,
                place: Place::Backend(backend.peer, device),
                before: traffic(&pair.backend)?,
            },
        };
        for leg in survey.legs() {
            if let Some(difference) = lock(&around.memory).recall(leg.place, Instant::now()) {
                return Err(difference.into());
            }
        }
        Ok(survey)
    }

    /// Attaches the programs to both devices, unless an IPsec policy covers the connection. May wait for the
    /// keeper.
    pub(super) fn attach_for(&self, survey: &Survey) -> Result<(), Stay> {
        for ends in survey.ends() {
            if lock(&self.surroundings().policies).covers(&ends)? {
                return Err(Stay::Ipsec);
            }
        }
        let mut program = self.program();
        survey.legs().into_iter().try_for_each(|leg| Ok(program.attach(leg.device)?))
    }

    /// Forgets what the wire showed of a connection before.
    pub(super) fn look_anew(&self, pair: &Pair) -> Result<(), Stay> {
        let mut table = self.table();
        Ok([&pair.client, &pair.backend].into_iter().try_for_each(|socket| table.forget_wire(socket))?)
    }

    /// Whether packets on the wire have confirmed the sockets' view of both legs. `is_late`: no more packets
    /// are awaited.
    pub(super) fn compare(&self, pair: &Pair, survey: &Survey, is_late: bool) -> Result<bool, Stay> {
        let around = self.surroundings();
        let mut all = true;
        for (leg, socket) in survey.legs().into_iter().zip([&pair.client, &pair.backend]) {
            let noted = self.table().handshake(socket)?.ok_or(Mismatch::Unseen)?;
            let seen = if is_late { Some(traffic(socket)?.since(leg.before)) } else { None };
            match judge(leg.device, &noted, seen) {
                Verdict::Same => self.is_marked_alike(leg, &noted)?,
                Verdict::Unknown if is_late => return Err(Stay::Unconfirmed),
                Verdict::Unknown => all = false,
                Verdict::Differs(difference) => {
                    lock(&around.memory).note(leg.place, difference, Instant::now());
                    return Err(difference.into());
                }
            }
        }
        Ok(all)
    }

    /// The firewall marks the socket's packets: rules may route them differently from a flow's, which have no
    /// mark.
    fn is_marked_alike(&self, leg: &Leg, noted: &Handshake) -> Result<(), Stay> {
        if noted.mark != 0 && self.surroundings().hop(&leg.ends, leg.bound, noted.mark)? != leg.device {
            return Err(Stay::PolicyRoute);
        }
        Ok(())
    }

    /// Has the programs note what the wire shows.
    pub(super) fn comparison(&self) -> Result<Comparison<'_>, KernelError> {
        let mut comparing = lock(&self.surroundings().comparing);
        if *comparing == 0 {
            self.table().compare(1)?;
        }
        *comparing += 1;
        drop(comparing);
        Ok(Comparison(self))
    }
}

impl Drop for Comparison<'_> {
    fn drop(&mut self) {
        let mut comparing = lock(&self.0.surroundings().comparing);
        *comparing -= 1;
        if *comparing == 0
            && let Err(error) = self.0.table().compare(0)
        {
            tracing::debug!(error = error.words(), "the programs go on comparing");
        }
    }
}

impl Survey {
    /// Both connections.
    pub(super) const fn ends(&self) -> [Ends; 2] {
        [self.client.ends, self.backend.ends]
    }

    /// Counts from now on what the programs have to see.
    pub(super) fn begin(&mut self, pair: &Pair) -> Result<(), Stay> {
        self.client.before = traffic(&pair.client)?;
        self.backend.before = traffic(&pair.backend)?;
        Ok(())
    }

    fn legs(&self) -> [&Leg; 2] {
        [&self.client, &self.backend]
    }
}

impl From<Difference> for Stay {
    fn from(difference: Difference) -> Self {
        match difference {
            Difference::Translated => Self::Translated,
            Difference::OtherWay => Self::PolicyRoute,
            Difference::OtherArrival => Self::Asymmetric,
        }
    }
}

fn ends_of(socket: &tokio::net::TcpStream) -> std::io::Result<Ends> {
    let socket = SockRef::from(socket);
    let canonical = |address: socket2::SockAddr| {
        let address = address.as_socket().ok_or(std::io::ErrorKind::Unsupported)?;
        Ok::<_, std::io::Error>(SocketAddr::new(address.ip().to_canonical(), address.port()))
    };
    Ok(Ends { local: canonical(socket.local_addr()?)?, peer: canonical(socket.peer_addr()?)? })
}

fn traffic(socket: &tokio::net::TcpStream) -> std::io::Result<Traffic> {
    let info = tcp::info(socket)?;
    Ok(Traffic { received: info.segments_in, sent: info.segments_out })
}

const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
